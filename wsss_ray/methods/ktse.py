"""KTSE: knowledge transfer with simulated inter-image erasing (Chen et al., ECCV 2024)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE, Batch, FusionRule, Need, ParamGroup, Progress
from wsss_ray.methods import ktse_labels as pseudo
from wsss_ray.methods import ktse_losses as terms
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.cam import classification_loss
from wsss_ray.methods.gpp import GppHead
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import standard_groups

Fraction = Annotated[float, Field(ge=0, le=1)]
HEIGHT, WIDTH = -2, -1

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


class Ktse(MethodConfig):
    """KTSE, whole by default; ``sie``, ``ssr``, ``ga``, ``la`` all off is the base row of its Table 6.

    Not in here, but in the recipe: epochs, batch size 8 then 16, learning rate, the pictures' augmentation, dropout.
    Each of several training workers counts for itself: ``num_pairs`` pictures of its own share, and the means of
    labelled pixels (Eq 5-7) over that share; with one worker both are the published ones. So does each piece of a batch
    under ``train.accumulate``.
    """

    name: Literal["ktse"] = "ktse"
    sie: bool = True
    """Simulated inter-image erasing: L_kt on pictures joined with a partner (section 3.2)."""
    ssr: bool = True
    """Self-supervised regularisation: pseudo labels and L_inter (section 3.3)."""
    ga: bool = True
    """Global alignment of the erased picture (Eq 8)."""
    la: bool = True
    """Local alignment of the erased picture (Eq 9)."""
    rigid_classification: bool = False
    """Table 7's ACoL row: a classification loss on the erased picture."""
    soft_gpp_alignment: bool = False
    """Table 7's AEFT row: Eq 8 on the pooled maps of the GPP head (our reading; no code was released for it)."""

    hidden: PositiveInt = 256
    """Channels between the two 1x1 convolutions of the head."""
    new_layer_multiplier: PositiveFloat = 1.0
    """Learning rate of the head over the backbone's: 1 in the code, and the paper prints a single rate."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs with L_cls alone; the paper mentions none."""
    warmup_background: bool = False
    """With SSR, the background plane learns in the warm-up, alone: from labels not smoothed yet, on cut-off features.

    Neither in the paper nor in the code, which have time to recover. Untrained, the plane loses every background pixel
    as SSR begins, and its cross-entropy pushes the classes down until all pixels are labelled background.
    """
    activation: Literal["max", "minmax"] = "max"
    """How maps are normalised before thresholds 0.6 and 0.2 (Eq 1 against the code)."""

    num_pairs: PositiveInt | Literal["all"] = "all"
    """Pictures of a batch that are joined with their partner, from the first."""
    concat_axis: Literal["height", "width"] = "height"
    """The paper does not say; the code stacks the partner below."""
    partner_rule: Literal["shared", "random"] = "shared"
    """``random`` joins each picture with the next of its batch, whatever its classes."""
    kt_margin: NonNegativeFloat = 0.0
    kt_region: Literal["anchor", "both"] = "anchor"
    kt_labels: Literal["anchor", "union"] = "anchor"
    kt_detach: Literal["none", "single", "joined"] = "none"
    """Cuts the gradient of one side of L_kt: the pictures alone (the paper finds that unstable) or the joined ones."""
    concat_supervision: Literal["anchor", "both"] = "anchor"
    """Which part of the joined picture its pseudo labels supervise."""

    erase_threshold: NonNegativeFloat = 0.6
    erase_mode: Literal["hard", "soft"] = "hard"
    """``soft`` is AEFT's mask, which keeps the activation as weight."""
    local_margin: NonNegativeFloat = 0.0
    local_region: Literal["all", "outside"] = "all"
    """``outside``: only where the anchor's activation is under ``erase_threshold``."""

    label_levels: tuple[Fraction, Fraction] = (0.3, 0.15)
    """beta_h and beta_l: background levels above which a class, under which the background is certain."""
    label_order: Literal["threshold_then_refine", "refine_then_threshold"] = "threshold_then_refine"
    par_iterations: NonNegativeInt = 10
    truncated_guide: bool = False
    """Gives PAR the released code's picture, truncated to 8 bits a second time."""
    guard_maximum: bool = True
    """Off repeats the released code where a present class is negative everywhere: its sign flips."""
    foreground_weight: NonNegativeFloat = 0.0125
    foreground_images: Literal["all", "simple"] = "all"
    """Pictures alone whose foreground labels count: ``simple`` ones have a single class. Joined ones always count."""
    ce_mean: Literal["joint", "separate"] = "joint"
    """One mean over all labelled pixels (Eq 5), or one over background and one over foreground."""
    rectify_scores: bool = False
    """ReLU on all C + 1 planes before their softmax."""
    inter_weight: NonNegativeFloat = 0.005
    inter_threshold: Fraction = 0.2
    inter_source: Literal["features", "scores"] = "features"
    """L_inter on the signed features, or on the rectified planes at picture size."""
    inter_detach_top: bool = False

    @model_validator(mode="before")
    @classmethod
    def _profile_defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {key: value for key, value in data.items() if value is not None}
        return {**RELEASED, **given} if data.get("profile") == "released" else given

    @model_validator(mode="after")
    def _ordered_levels(self) -> Ktse:
        if self.label_levels[0] < self.label_levels[1]:
            raise ValueError(f"label_levels are (high, low): swap {self.label_levels}")
        return self

    @property
    def needs(self) -> frozenset[Need]:  # type: ignore[override]
        """A partner for every picture, where SIE is on and wants one that shares a class."""
        return frozenset({"partner"}) if self.sie and self.partner_rule == "shared" else frozenset()

    @property
    def erases(self) -> bool:
        """Whether a loss looks at the erased picture."""
        return self.ga or self.la or self.rigid_classification or self.soft_gpp_alignment

    @property
    def looks_at_partner(self) -> bool:
        """Whether the partner alone goes through the network."""
        labels_it = self.ssr and self.concat_supervision == "both"
        return self.sie and (self.kt_region == "both" or labels_it)

    def fusion(self) -> FusionRule:
        """Each pass up-sampled, then rectified; passes summed, then divided by the maximum (released evaluation)."""
        return FusionRule(rectify="per_pass", reduce="sum", normalize="max", epsilon=terms.EPSILON)

    def background(self) -> float:
        """0.2: the paper reports the best of 0.10 to 0.29 on the training masks and does not name it."""
        return 0.2

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> nn.Module:
        """A ``KtseNet`` on ``backbone``; ``base`` is not used."""
        return KtseNet(self, backbone, num_classes)


class KtseNet(nn.Module):
    """A backbone with C + 1 planes, background first, scored by gated pyramid pooling (section 3.1)."""

    def __init__(self, config: Ktse, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = GppHead(backbone.channels["out"], num_classes, config.hidden)

    def planes(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, h, w) float32, signed, background first."""
        return self.head.planes(self.backbone(images)["out"]).float()

    def pool(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) foreground planes -> (B, C) logits and (B, C, h, w) pooled maps."""
        return self.head.pool(features)

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, h, w), background last."""
        return self.planes(images).roll(-1, dims=1)

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), signed: ``Ktse.fusion`` rectifies after up-sampling."""
        return self.planes(images)[:, 1:]

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C) of the pooling head."""
        return self.pool(self.planes(images)[:, 1:])[0]

    def param_groups(self) -> list[ParamGroup]:
        """Backbone and head at one rate (times ``new_layer_multiplier``), biases like weights."""
        new = self.config.new_layer_multiplier
        return standard_groups(self, (1.0, 1.0, new, new), bias_decay=None)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """Eq 10, each part with its weight; L_cls alone in the warm-up. Every branch sends gradient to the network."""
        config = self.config
        partner = self._partner(batch)
        if progress.epoch < config.warmup_epochs:
            return self._warmup_parts(batch)

        num = len(batch.image)
        alone = partner is not None and config.looks_at_partner
        images = torch.cat([batch.image, partner.image]) if alone and partner is not None else batch.image
        planes = self.planes(images)
        anchor = planes[:num]
        logits, pooled = self.pool(anchor[:, 1:])
        low = terms.activation(anchor[:, 1:], batch.labels, rule=config.activation)
        high = terms.activation(anchor[:, 1:], batch.labels, batch.image.shape[-2:], config.activation)

        parts = {"cls": classification_loss(logits, batch.labels)}
        if config.erases:
            parts |= self._erased_parts(batch, anchor[:, 1:], pooled, low, high)
        target = self._labels(anchor, batch) if config.ssr else None
        if target is not None:
            parts |= self._label_parts(anchor, target, batch.labels, low, high)
            parts["monitor/labelled"] = (target != IGNORE).float().mean()
        if partner is not None:
            parts |= self._joined_parts(batch, partner, anchor, planes[num:] if alone else None, target)
        return parts

    def _warmup_parts(self, batch: Batch) -> dict[str, Tensor]:
        taps = self.backbone(batch.image)["out"]
        planes = self.head.planes(taps).float()
        parts = {"cls": classification_loss(self.pool(planes[:, 1:])[0], batch.labels)}
        if self.config.ssr and self.config.warmup_background:
            both = torch.cat([self.head.background(taps).float(), planes[:, 1:].detach()], dim=1)
            target = self._labels(both, batch, num_iterations=0)
            # Signed in both profiles: rectified, a negative plane has no gradient to come up by.
            counted, mean = self._counted(batch.labels), self.config.ce_mean
            background, foreground = terms.label_losses(both, target, counted, rectify=False, mean=mean)
            parts |= {"bg": background, "fg": self.config.foreground_weight * foreground}
        return parts

    def _counted(self, labels: Tensor) -> Tensor | None:
        """Which pictures' foreground labels count: (B,) bool, None for all."""
        return labels.sum(dim=1) == 1 if self.config.foreground_images == "simple" else None

    def _partner(self, batch: Batch) -> Batch | None:
        if not self.config.sie:
            return None
        limit = self.config.num_pairs
        num = len(batch.image) if limit == "all" else min(limit, len(batch.image))
        if self.config.partner_rule == "random":
            index = torch.arange(num, device=batch.image.device).add(1) % len(batch.image)
            return _pick(batch, index)
        if batch.partner is None:
            raise UserError("KTSE joins pictures with a partner: give the batch its partner, or set method.sie=false")
        return _pick(batch.partner, torch.arange(num, device=batch.image.device))

    def _erased_parts(
        self, batch: Batch, anchor: Tensor, pooled: Tensor, low: Tensor, high: Tensor
    ) -> dict[str, Tensor]:
        config = self.config
        erased = terms.erase(batch.image, high, config.erase_threshold, config.erase_mode)
        masked = self.planes(erased)[:, 1:]
        parts = {"monitor/erased": (high >= config.erase_threshold).float().mean()}
        if config.la:
            region = (low < config.erase_threshold).to(masked) if config.local_region == "outside" else None
            parts["local"] = terms.local_alignment(masked, anchor, batch.labels, region, config.local_margin)
        if config.ga:
            parts["global"] = terms.global_alignment(anchor, masked, batch.labels)
        if config.rigid_classification or config.soft_gpp_alignment:
            logits, masked_pooled = self.pool(masked)
            if config.rigid_classification:
                parts["rigid"] = classification_loss(logits, batch.labels)
            if config.soft_gpp_alignment:
                parts["soft_gpp"] = terms.global_alignment(pooled, masked_pooled, batch.labels)
        return parts

    def _labels(self, planes: Tensor, batch: Batch, num_iterations: int | None = None) -> Tensor:
        config = self.config
        features = planes[:, 1:].detach()
        iterations = config.par_iterations if num_iterations is None else num_iterations
        with torch.autocast(planes.device.type, enabled=False):
            picture = pseudo.guide(batch.rgb, batch.inside, config.truncated_guide)
            if config.label_order == "threshold_then_refine":
                return pseudo.threshold_then_refine(features, batch.labels, picture, config.label_levels, iterations)
            return pseudo.refine_then_threshold(
                features, batch.labels, picture, config.label_levels, iterations, config.guard_maximum
            )[0]

    def _label_parts(
        self, planes: Tensor, target: Tensor, labels: Tensor, low: Tensor, high: Tensor
    ) -> dict[str, Tensor]:
        config = self.config
        counted = self._counted(labels)
        background, foreground = terms.label_losses(planes, target, counted, config.rectify_scores, config.ce_mean)
        if config.inter_source == "scores":
            scores, active = terms.resize(planes[:, 1:].relu(), high.shape[-2:]), high
        else:
            scores, active = planes[:, 1:], low
        inter = terms.inter_class(scores, active, labels, config.inter_threshold, config.inter_detach_top)
        return {
            "bg": background,
            "fg": config.foreground_weight * foreground,
            "inter": config.inter_weight * inter,
        }

    def _joined_parts(
        self, batch: Batch, partner: Batch, anchor: Tensor, other: Tensor | None, target: Tensor | None
    ) -> dict[str, Tensor]:
        config, num = self.config, len(partner.image)
        axis = HEIGHT if config.concat_axis == "height" else WIDTH
        joined = self.planes(torch.cat([batch.image[:num], partner.image], dim=axis))
        size = list(anchor.shape[-2:])
        size[axis] *= 2
        # A crop that is no multiple of the stride leaves the joined map one cell short.
        joined = terms.resize(joined, (size[0], size[1]))

        single, learner = anchor[:num, 1:], joined[:, 1:]
        if config.kt_region == "both" and other is not None:
            single = torch.cat([single, other[:, 1:]], dim=axis)
        else:
            learner = learner.narrow(axis, 0, single.shape[axis])
        if config.kt_detach == "single":
            single = single.detach()
        elif config.kt_detach == "joined":
            learner = learner.detach()
        labels = batch.labels[:num]
        labels = torch.maximum(labels, partner.labels) if config.kt_labels == "union" else labels
        parts = {"kt": terms.knowledge_transfer(single, learner, labels, config.kt_margin)}
        if target is None:
            return parts

        wanted = target[:num]
        if config.concat_supervision == "both" and other is not None:
            wanted = torch.cat([wanted, self._labels(other, partner)], dim=axis)
        else:
            joined = joined.narrow(axis, 0, anchor.shape[axis])
        background, foreground = terms.label_losses(joined, wanted, None, config.rectify_scores, config.ce_mean)
        return parts | {"joined_bg": background, "joined_fg": config.foreground_weight * foreground}


def _pick(batch: Batch, index: Tensor) -> Batch:
    """The pictures of a batch at ``index``, with what KTSE reads of them."""
    return Batch(batch.image[index], batch.labels[index], batch.inside[index], batch.rgb[index])
