# SPDX-License-Identifier: Apache-2.0
"""L2G: a local network sees patches, a global one learns the whole image's maps from it (Jiang et al., CVPR 2022)."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import Batch, FusionRule, Need, ParamGroup, Progress
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.l2g.correlation import PixelCorrelation
from wsss_ray.methods.l2g.losses import (
    BackgroundTarget,
    compute_attention,
    crop_saliency,
    keep_strongest,
    make_transfer_target,
    read_global_views,
    transfer_loss,
)
from wsss_ray.methods.layers import build_class_head, classification_loss, spatial_mean
from wsss_ray.methods.views import Align, Sampling, crop_views, sample_boxes
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import group_parameters

RELEASED: dict[str, Any] = {
    "num_views": 6,
    "sampling": "corners",
    "pcm": True,
    "local_background": True,
    "hard_target": True,
    "threshold": 0.001,
    "background_target": "binary",
    "kd_weight": 10.0,
    "align": "roi",
    "empty_saliency": "none",
    "normalize_saliency": True,
    "map_form": "logits",
    "background_threshold": 0.25,
}
"""What the ``released`` profile sets (scripts/train_l2g_sal_voc.py); the defaults of the fields are the paper's."""

RELEASED_PLAIN: dict[str, Any] = {**RELEASED, "num_views": 4, "background_target": "soft"}
"""The same without saliency (scripts/train_l2g.py, which cannot run but can be read): the four corners alone, and as
target the winner of the C + 1 channels with the value it has, so that background is taught where it wins."""

PRESETS: dict[str, dict[str, Any]] = {
    "voc": {"profile": "released"},
    "coco": {
        "profile": "released",
        "num_views": 4,
        "sampling": "random",
        "threshold": 0.1,
        "background_target": "soft",
        "kd_weight": 30.0,
    },
}
"""The released scripts of the two data sets."""


class L2GConfig(MethodConfig):
    """L2G and its ablations; ``profile`` sets the defaults, every field can be given beside it."""

    name: Annotated[Literal["l2g"], Changes("weights")] = "l2g"
    saliency: Annotated[bool, Changes("weights")] = True
    """On: shape transfer (Eq. 7). Off: attention transfer (Eq. 6)."""
    num_views: Annotated[int, Field(ge=1), Changes("weights")] = 4
    """N local views of an image (Sec. 4.2); ``uniform`` sampling sets its own number. Released: 6 (VOC), 4 (COCO)."""
    patch_size: Annotated[int, Field(ge=8), Changes("weights")] = 320
    """Side of a local view in pixels (Sec. 4.1); at most the training crop."""
    sampling: Annotated[Sampling, Changes("weights")] = "random"
    """released: corners (the four corners and N - 4 random views)."""
    uniform_stride: Annotated[int, Field(ge=1), Changes("weights")] = 64
    shared: Annotated[bool, Changes("weights")] = False
    """One backbone under both heads (Sec. 4.2: 70.3 falls to 69.2); the paper's L2G and the released one have two."""
    global_classification: Annotated[bool, Changes("weights")] = False
    """A classification loss on the global network too (Sec. 4.2: 70.3 falls to 53.8)."""
    local_only: Annotated[bool, Changes("weights")] = False
    """Tables 1-2, rows "Local": the local network alone, no transfer. With saliency it is its own teacher (how the
    paper gives the local network shape is not stated)."""
    pcm: Annotated[bool, Changes("weights")] = False
    """Pixel correlation in every head, in training and at inference. Not in the paper; released: on."""
    local_background: Annotated[bool, Changes("weights")] = False
    """A background channel in the local head. released: on, where no loss reaches it yet it competes in the target."""
    hard_target: Annotated[bool, Changes("weights")] = False
    """Keep only the strongest channel of each pixel in the target. released: on."""
    threshold: Annotated[float, Field(ge=0, lt=1), Changes("weights")] = 0.1
    """Attention above it counts as foreground under saliency. released: 0.001 (VOC), 0.1 (COCO)."""
    background_target: Annotated[BackgroundTarget, Changes("weights")] = "ignore"
    """What the global background channel is compared with, which the paper leaves open. ignore: nothing (it takes what
    the classes leave); complement: 1 - the strongest class; binary / soft: the local background, binarised or not,
    outside saliency. released: binary (VOC), soft (COCO, and without saliency, where nothing is binarised)."""
    kd_weight: Annotated[float, Field(gt=0), Changes("weights")] = 1.0
    """Weight of the transfer loss. released: 10 (VOC), 30 (COCO)."""
    norm: Annotated[Literal["mean", "sum"], Changes("weights")] = "mean"
    """Squared norm of Eq. 6-7: mean over all elements (released), or their sum per view (Eq. 6 as printed)."""
    new_layer_multiplier: Annotated[float, Field(gt=0), Changes("weights")] = 10.0
    """Learning rate of the heads over the backbones'. A head that overshoots predicts background everywhere, and the
    gradient of a squared distance between probabilities vanishes there."""
    align: Annotated[Align, Changes("weights")] = "crop"
    """crop: softmax, then the cells under the view. roi: legacy RoIAlign of the scores, then softmax (released)."""
    empty_saliency: Annotated[Literal["fallback", "none"], Changes("weights")] = "fallback"
    """Views without saliency: the attention itself (Eq. 7, lower case), or no special care (released)."""
    normalize_saliency: Annotated[bool, Changes("weights")] = False
    """Divide saliency by its maximum over the training crop. Unstated in the paper; released: on."""
    map_form: Annotated[Literal["attention", "logits", "softmax"], Changes("maps")] = "attention"
    """Maps at inference: ReLU of the scores (Eq. 2), raw scores (released), or the softmax's foreground, as in EPS."""
    background_threshold: Annotated[float, Field(ge=0, le=1), Changes("scores")] = 0.2
    """Constant of the background at label time: as in EPS (Sec. 4.1). released: 0.25."""

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = dict(data)
        if data.get("profile") == "released":
            given = {**(RELEASED if data.get("saliency", True) else RELEASED_PLAIN), **data}
        if given.get("local_only") and given.get("saliency", True):
            given.setdefault("local_background", True)
        return given

    @model_validator(mode="after")
    def _check_combination(self) -> L2GConfig:
        if self.sampling == "corners" and self.num_views < 4:
            raise ValueError(f"sampling=corners needs num_views >= 4, not {self.num_views}: use sampling=random")
        if self.background_target in ("binary", "soft") and not self.local_background:
            raise ValueError(f"background_target={self.background_target} needs local_background=true")
        if self.local_only and (self.shared or self.global_classification):
            raise ValueError("local_only has no global network: leave out shared and global_classification")
        if self.local_only and not self.local_background and (self.saliency or self.map_form == "softmax"):
            raise ValueError("local_only with saliency or map_form=softmax needs local_background=true")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """Saliency, unless it is switched off."""
        return frozenset({"saliency"}) if self.saliency else frozenset()

    def fusion(self) -> FusionRule:
        """PSA's rule for attention (Sec. 4.1), EPS's for softmax; released: bicubic, mean, ReLU last, no 1e-5."""
        if self.map_form == "logits":
            return FusionRule(rectify="after", interpolation="bicubic", reduce="mean", epsilon=1e-8)
        return FusionRule(rectify="before" if self.map_form == "attention" else "none")

    def background(self) -> float:
        """``background_threshold``."""
        return self.background_threshold

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> L2G:
        """An ``L2G`` whose two networks start from the weights ``backbone`` has now; ``base`` is not used."""
        return L2G(self, backbone, num_classes)


class CorrelatedHead(nn.Module):
    """F = W X, or with pixel correlation F = W X + W PCM(X)."""

    def __init__(self, backbone: Backbone, num_channels: int, pcm: bool) -> None:
        super().__init__()
        self.classifier = build_class_head(backbone.channels["out"], num_channels)
        self.correlation = PixelCorrelation(backbone) if pcm else None

    def forward(self, images: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """(B, 3, H, W) and the backbone's taps -> (B, K, h, w) raw scores."""
        scores: Tensor = self.classifier(taps["out"])
        if self.correlation is None:
            return scores
        gathered: Tensor = self.correlation(scores, images, taps)
        return scores + gathered


class L2G(nn.Module):
    """``backbone`` and ``head`` are the network that is tested; ``local_backbone`` and ``local_head`` teach it."""

    def __init__(self, config: L2GConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone
        num_local = num_classes + int(config.local_background)
        num_head = num_local if config.local_only else num_classes + 1
        self.head = CorrelatedHead(backbone, num_head, config.pcm)
        self.local_head = None if config.local_only else CorrelatedHead(backbone, num_local, config.pcm)
        separate = not (config.local_only or config.shared)
        self.local_backbone = copy.deepcopy(backbone) if separate else None

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, h, w) scores of the global network; (B, C or C + 1, h, w) with ``local_only``."""
        scores: Tensor = self.head(images, self.backbone(images))
        return scores

    def local_scores(self, images: Tensor) -> Tensor:
        """(V, 3, p, p) -> (V, C or C + 1, h, w) scores of the local network."""
        if self.local_head is None:
            return self.evidence(images)
        scores: Tensor = self.local_head(images, (self.local_backbone or self.backbone)(images))
        return scores

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C) from the network that a classification loss trained: the local one, as a rule."""
        scores = self.evidence(images) if self.config.global_classification else self.local_scores(images)
        return spatial_mean(scores[:, : self.num_classes])

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) in the form ``map_form`` names; signed only as ``logits``."""
        scores = self.evidence(images)
        if self.config.map_form == "softmax":
            scores = scores.softmax(dim=1)
        elif self.config.map_form == "attention":
            scores = torch.relu(scores)
        return scores[:, : self.num_classes]

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L_cls on the views (Eq. 4) and L_kt, L_at or L_st, on the global network (Eq. 3, 6-7); all views in one pass.

        Raises UserError where saliency is asked for and the batch has none, or where a patch does not fit the crop.
        """
        config = self.config
        if config.saliency and batch.saliency is None:
            raise UserError("l2g needs saliency maps: give the data set saliency or set method.saliency=false")
        images = batch.image
        view = (images.shape[2], images.shape[3])
        boxes = sample_boxes(
            config.sampling, len(images), config.num_views, config.patch_size, view, config.uniform_stride
        )
        labels = batch.labels.repeat_interleave(boxes.shape[1], dim=0)
        scores = self.local_scores(crop_views(images, boxes))
        parts = {"cls": classification_loss(spatial_mean(scores[:, : self.num_classes]), labels)}
        if config.local_only:
            if config.saliency:
                parts["transfer"] = self._transfer_loss(scores.softmax(dim=1), scores, labels, batch.saliency, boxes)
            return parts
        whole = self.evidence(images)
        size = (scores.shape[2], scores.shape[3])
        under = read_global_views(whole, boxes, size, self.backbone.strides["out"], config.align)
        parts["transfer"] = self._transfer_loss(under, scores, labels, batch.saliency, boxes)
        whole_loss = classification_loss(spatial_mean(whole[:, : self.num_classes]), batch.labels)
        if config.global_classification:
            return {**parts, "global_cls": whole_loss}
        return {**parts, "monitor/global_cls": whole_loss.detach()}

    def _transfer_loss(
        self, under: Tensor, scores: Tensor, labels: Tensor, saliency: Tensor | None, boxes: Tensor
    ) -> Tensor:
        """The weighted L_at or L_st of the global network under the views (Eq. 6-7)."""
        target = self.make_target(scores, labels, saliency, boxes)
        return self.config.kd_weight * transfer_loss(under, target, self.config.norm)

    def make_target(self, scores: Tensor, labels: Tensor, saliency: Tensor | None, boxes: Tensor) -> Tensor:
        """What the global network is to answer under the views (Eq. 6-7): (V, C or C + 1, h, w), without gradient.

        ``scores`` are the local network's of the (V, C) labelled views, ``saliency`` (B, 1, S, S) is the images'.
        """
        config = self.config
        attended = compute_attention(scores, labels)
        if config.hard_target:
            attended = keep_strongest(attended)
        seen = None
        if config.saliency and saliency is not None:
            seen = crop_saliency(saliency, boxes, (scores.shape[2], scores.shape[3]), config.normalize_saliency)
        return make_transfer_target(
            attended,
            self.num_classes,
            seen,
            config.threshold,
            config.background_target,
            config.empty_saliency == "fallback",
        )

    def param_groups(self) -> list[ParamGroup]:
        """PSA's four groups over both networks, biases at twice the rate of weights."""
        new = self.config.new_layer_multiplier
        return group_parameters(self, (1.0, 2.0, new, 2 * new))
