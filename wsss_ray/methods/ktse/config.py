# SPDX-License-Identifier: Apache-2.0
"""The settings of KTSE, knowledge transfer with simulated inter-image erasing (Chen et al., ECCV 2024)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import nn

from wsss_ray.config import Changes
from wsss_ray.contracts import FusionRule, Need
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.ktse.losses import EPSILON
from wsss_ray.methods.ktse.network import KTSE
from wsss_ray.nets.backbone import Backbone

Fraction = Annotated[float, Field(ge=0, le=1)]
LabelOrder = Literal["threshold_then_refine", "refine_then_threshold"]

RELEASED: dict[str, Any] = {
    "warmup_epochs": 10,
    "activation": "minmax",
    "kt_margin": 0.05,
    "kt_region": "both",
    "kt_labels": "union",
    "num_pairs": 4,
    "concat_supervision": "both",
    "local_margin": 0.05,
    "local_region": "outside",
    "label_order": "refine_then_threshold",
    "truncated_guide": True,
    "foreground_images": "simple",
    "ce_mean": "separate",
    "rectify_scores": True,
    "inter_source": "scores",
    "inter_detach_top": True,
}
"""Where the authors' code departs from the paper; the fields' own defaults are the paper's. A field that is left out or
None takes the profile's value."""


IRN_FUSION = FusionRule(rectify="pair")
"""How KTSE's maps are fused when IRN refines them: a map and its flip are added, then rectified (released irn/)."""


class KTSEConfig(MethodConfig):
    """KTSE, whole by default; ``sie``, ``ssr``, ``ga``, ``la`` all off is the base row of its Table 6.

    The recipe holds the rest: epochs, batch size 8 then 16, learning rate, the images' augmentation, dropout. Each of
    several training workers joins ``num_pairs`` images of its own share of a batch and takes the means over labelled
    pixels (Eq. 5-7) over that share, and so does each piece of a batch under ``train.accumulate``; one worker gives the
    published ones.
    """

    name: Annotated[Literal["ktse"], Changes("weights")] = "ktse"
    sie: Annotated[bool, Changes("weights")] = True
    """Simulated inter-image erasing: L_kt on images joined with a partner (Sec. 3.2)."""
    ssr: Annotated[bool, Changes("weights")] = True
    """Self-supervised regularisation: pseudo labels and L_inter (Sec. 3.3)."""
    ga: Annotated[bool, Changes("weights")] = True
    """Global alignment of the erased image (Eq. 8)."""
    la: Annotated[bool, Changes("weights")] = True
    """Local alignment of the erased image (Eq. 9)."""
    rigid_classification: Annotated[bool, Changes("weights")] = False
    """Table 7's ACoL row: a classification loss on the erased image."""
    soft_gpp_alignment: Annotated[bool, Changes("weights")] = False
    """Table 7's AEFT row: Eq. 8 on the pooled maps of the GPP head (our reading; no code was released for it)."""

    pooling: Annotated[Literal["gpp", "mean"], Changes("weights")] = "gpp"
    """How class planes become logits: gated pyramid pooling (Sec. 3.1), or their plain mean over the image as in CAM,
    with which the base tells what the pooling itself is worth."""
    hidden: Annotated[PositiveInt, Changes("weights")] = 256
    """Channels between the two 1x1 convolutions of the head."""
    new_layer_multiplier: Annotated[PositiveFloat, Changes("weights")] = 1.0
    """Learning rate of the head over the backbone's: 1 in the code, and the paper prints a single rate."""
    warmup_epochs: Annotated[NonNegativeInt, Changes("weights")] = 0
    """Epochs with L_cls (Eq. 2) alone; the paper mentions none."""
    warmup_background: Annotated[bool, Changes("weights")] = False
    """With SSR, the background plane alone learns in the warm-up, from labels that PAR has not refined.

    In neither the paper nor the code. An untrained plane loses every background pixel as SSR begins, and its
    cross-entropy pushes the classes down until all pixels are labelled background; long training recovers from that.
    """
    ramp_epochs: Annotated[NonNegativeInt, Changes("weights")] = 0
    """Epochs after the warm-up in which all losses but L_cls come in, by a factor that grows by the same amount each
    epoch: of 4 it is 0.2, 0.4, 0.6 and 0.8, then 1. Neither the paper nor the code has it."""
    activation: Annotated[Literal["max", "minmax"], Changes("weights")] = "max"
    """How maps are normalised before thresholds 0.6 and 0.2 (Eq. 1 against the code)."""

    num_pairs: Annotated[PositiveInt | Literal["all"], Changes("weights")] = "all"
    """How many images of a batch, from the first, are joined with their partner (released: 4)."""
    concat_axis: Annotated[Literal["height", "width"], Changes("weights")] = "height"
    """The paper does not say; the code stacks the partner below."""
    partner_rule: Annotated[Literal["shared", "random"], Changes("weights")] = "shared"
    """``random`` joins each image with the next of its batch, whatever its classes."""
    kt_margin: Annotated[NonNegativeFloat, Changes("weights")] = 0.0
    """Margin of L_kt; Eq. 3 has none (released: 0.05)."""
    kt_region: Annotated[Literal["anchor", "both"], Changes("weights")] = "anchor"
    """Which part of the joined image L_kt compares: the anchor (Eq. 3), or both (released)."""
    kt_labels: Annotated[Literal["anchor", "union"], Changes("weights")] = "anchor"
    """The classes that L_kt counts: the anchor's (Eq. 3), or those of either image (released)."""
    kt_detach: Annotated[Literal["none", "single", "joined"], Changes("weights")] = "none"
    """Cuts the gradient of one side of L_kt: the single images (unstable by Sec. 3.3), or the joined ones."""
    concat_supervision: Annotated[Literal["anchor", "both"], Changes("weights")] = "anchor"
    """Which part of the joined image its pseudo labels supervise."""

    erase_threshold: Annotated[NonNegativeFloat, Changes("weights")] = 0.6
    """Activation from which a pixel is erased (Sec. 3.4)."""
    erase_mode: Annotated[Literal["hard", "soft"], Changes("weights")] = "hard"
    """``soft`` is AEFT's mask, which keeps the activation as weight."""
    local_margin: Annotated[NonNegativeFloat, Changes("weights")] = 0.0
    """Margin of L_local; Eq. 9 has none (released: 0.05)."""
    local_region: Annotated[Literal["all", "outside"], Changes("weights")] = "all"
    """``outside``: only where the anchor's activation is under ``erase_threshold``."""

    label_levels: Annotated[tuple[Fraction, Fraction], Changes("weights")] = (0.3, 0.15)
    """beta_h and beta_l of Eq. 4: activations above which a class, under which the background is certain."""
    label_order: Annotated[LabelOrder, Changes("weights")] = "threshold_then_refine"
    """Whether PAR refines the label of Eq. 4 (Sec. 3.3), or the scores before they are thresholded (released)."""
    par_iterations: Annotated[NonNegativeInt, Changes("weights")] = 10
    truncated_guide: Annotated[bool, Changes("weights")] = False
    """Gives PAR the released code's image, truncated to 8 bits a second time."""
    guard_maximum: Annotated[bool, Changes("weights")] = True
    """Off repeats the released code where a present class is negative everywhere: its sign flips."""
    foreground_weight: Annotated[NonNegativeFloat, Changes("weights")] = 0.0125
    """w_fg of Eq. 5."""
    foreground_images: Annotated[Literal["all", "simple"], Changes("weights")] = "all"
    """Images by themselves whose foreground labels count: ``simple`` ones have one class. Joined ones always count."""
    ce_mean: Annotated[Literal["joint", "separate"], Changes("weights")] = "joint"
    """One mean over all labelled pixels (Eq. 5), or one over background and one over foreground."""
    rectify_scores: Annotated[bool, Changes("weights")] = False
    """ReLU on all C + 1 planes before their softmax."""
    inter_weight: Annotated[NonNegativeFloat, Changes("weights")] = 0.005
    """lambda_inter of Eq. 10."""
    inter_threshold: Annotated[Fraction, Changes("weights")] = 0.2
    """beta_s, the activation above which a pixel counts in L_inter (Eq. 6)."""
    inter_source: Annotated[Literal["features", "scores"], Changes("weights")] = "features"
    """L_inter on the signed features, or on the rectified planes at image size."""
    inter_detach_top: Annotated[bool, Changes("weights")] = False
    """Whether L_inter only lowers the second class (released), or raises the first too (Eq. 6)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {key: value for key, value in data.items() if value is not None}
        return {**RELEASED, **given} if data.get("profile") == "released" else given

    @model_validator(mode="after")
    def _check_levels(self) -> KTSEConfig:
        if self.label_levels[0] < self.label_levels[1]:
            raise ValueError(f"label_levels are (high, low): swap {self.label_levels}")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """Pixels for SSR's refined labels; a partner for every image, where SIE wants one that shares a class."""
        wanted: dict[Need, bool] = {"rgb": self.ssr, "partner": self.sie and self.partner_rule == "shared"}
        return frozenset(name for name, needed in wanted.items() if needed)

    @property
    def erases(self) -> bool:
        """Whether a loss reads the erased image."""
        return self.ga or self.la or self.rigid_classification or self.soft_gpp_alignment

    def ramp_at(self, epoch: int) -> float:
        """What the losses beside L_cls are multiplied by in an epoch after the warm-up, in (0, 1]."""
        return min(1.0, (epoch - self.warmup_epochs + 1) / (self.ramp_epochs + 1))

    @property
    def needs_partner_planes(self) -> bool:
        """Whether the partner goes through the network by itself too."""
        labels_it = self.ssr and self.concat_supervision == "both"
        return self.sie and (self.kt_region == "both" or labels_it)

    def fusion(self) -> FusionRule:
        """Each pass up-sampled, then rectified; passes summed, then divided by the maximum (released evaluation)."""
        return FusionRule(rectify="per_pass", reduce="sum", normalize="max", epsilon=EPSILON)

    def background(self) -> float:
        """0.2: the paper reports the best of 0.10 to 0.29 on the training masks and does not name it."""
        return 0.2

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> KTSE:
        """A ``KTSE`` on ``backbone``; ``base`` is not used."""
        return KTSE(self, backbone, num_classes)
