# SPDX-License-Identifier: Apache-2.0
"""SMAF: a trained localizer learns, at one scale, its own maps fused over several scales (Yang et al., 2023).

The fused maps (Sec. 3.2, Eq. 5-6) are made once by the localize step from the base's weights, with that step's scales
and flips (Tables 3 and 4 are its settings); they reach the loss as ``batch.maps``. The base trains on as the student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import Batch, FusionRule, Localizer, Need, ParamGroup, Progress
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.layers import classification_loss, resize_aligned, spatial_mean
from wsss_ray.nets.backbone import Backbone

Form = Literal["relu", "softmax"]
TARGET_STRIDE = 4
"""The loss is taken on a grid of a quarter of the training crop (SMAF data/VOC_dataset.py)."""

RELEASED: dict[str, Any] = {"classification": False, "student": "softmax"}
"""What the ``released`` profile sets; its 128-channel head is the base's: ``EPSConfig(bottleneck=128)``."""


class SMAFConfig(MethodConfig):
    """Self-training of any localizer; field defaults are the paper's, ``profile`` released sets those of its code."""

    name: Annotated[Literal["smaf"], Changes("weights")] = "smaf"
    alpha: Annotated[float, Field(gt=0), Changes("weights")] = 100.0
    """Weight of the consistency loss (Eq. 1)."""
    threshold: Annotated[float, Field(gt=0, le=1), Changes("weights")] = 0.2
    """Value of the background channel in the target (Sec. 3.3), with or without reactivation."""
    reactivation: Annotated[bool, Changes("weights")] = True
    """Divide every pixel by its largest channel (Eq. 8, 9). Off (Eq. 7, Table 5): classes keep their fused value and
    the background its ``threshold``, which the paper does not state."""
    classification: Annotated[bool, Changes("weights")] = True
    """L_cls of Eq. 1 on the pooled evidence. released: off."""
    student: Annotated[Form, Changes("weights")] = "relu"
    """The student's maps. relu: ReLU over the spatial maximum, the C classes only (Eq. 2). softmax: over C + 1
    (released)."""
    background_logit: Annotated[float, Changes("weights")] = 0.0
    """Constant background score under the softmax for a base that has no background channel (CAM, and the like)."""

    @model_validator(mode="before")
    @classmethod
    def _fill_profile(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("profile") == "released":
            return {**RELEASED, **data}
        return data

    @property
    def needs(self) -> frozenset[Need]:
        """The base's fused maps."""
        return frozenset({"maps"})

    @property
    def wants_base(self) -> bool:
        """Always: it trains another localizer further."""
        return True

    def fusion(self) -> FusionRule:
        """Maps are non-negative already: bilinear, sum over scales and flips, per-class maximum (Eq. 5-6)."""
        return FusionRule(rectify="none")

    def background(self) -> float:
        """``threshold``: seeds begin where the student was taught that the background ends (0.2 published for both)."""
        return self.threshold

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> SMAF:
        """A ``SMAF`` whose student is ``base`` itself; ``backbone`` is not used. Raises UserError without a base."""
        if base is None:
            raise UserError("smaf trains another localizer further: give localization.base")
        return SMAF(self, base, num_classes)


def shrink_maps(maps: Tensor, stride: int = TARGET_STRIDE) -> Tensor:
    """(B, C, S, S) -> (B, C, S // 4, S // 4), bilinear, align_corners True."""
    return resize_aligned(maps, (max(maps.shape[2] // stride, 1), max(maps.shape[3] // stride, 1)))


def denoise_maps(maps: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Set absent classes to 0 and append a constant background (Sec. 3.3): (B, C, h, w), (B, C) -> (B, C + 1, h, w)."""
    return F.pad(maps * labels[:, :, None, None], (0, 0, 0, 0, 0, 1), value=threshold)


def reactivate_maps(maps: Tensor) -> Tensor:
    """Divide every pixel by its largest channel (Eq. 8): (B, C + 1, h, w) with a positive background -> [0, 1]."""
    return maps / maps.amax(dim=1, keepdim=True)


def make_student_maps(scores: Tensor, num_classes: int, form: Form, background_logit: float = 0.0) -> Tensor:
    """M_o, the student's side of Eq. 9, from (B, C or C + 1, h, w) scores.

    ``softmax``: (B, C + 1, h, w), a base without background getting a constant one. ``relu``: (B, C, h, w), each class
    over its spatial maximum (Eq. 2).
    """
    if form == "relu":
        positive = torch.relu(scores[:, :num_classes])
        return positive / (positive.amax(dim=(2, 3), keepdim=True) + 1e-5)
    return append_background(scores, num_classes, background_logit).softmax(dim=1)


def append_background(scores: Tensor, num_classes: int, background_logit: float) -> Tensor:
    """(B, C or C + 1, h, w) -> (B, C + 1, h, w): a constant background score where there is none."""
    missing = num_classes + 1 - scores.shape[1]
    return F.pad(scores, (0, 0, 0, 0, 0, missing), value=background_logit) if missing else scores


class SMAF(nn.Module):
    """The base localizer as the student of its own fused maps (Fig. 2)."""

    base: Localizer

    def __init__(self, config: SMAFConfig, base: nn.Module, num_classes: int) -> None:
        super().__init__()
        if not isinstance(base, Localizer):
            raise UserError(f"smaf trains a localizer further, and {type(base).__name__} is none: set another 'base'")
        self.config = config
        self.base = base
        self.num_classes = num_classes
        freeze_unreached(base, base.evidence)

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, h, w) scores of the base, with the constant background where it has none."""
        return append_background(self.base.evidence(images), self.num_classes, self.config.background_logit)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C): the base's own."""
        return self.base.logits(images)

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), non-negative: the softmax's foreground, or ReLU of the scores."""
        scores = self.evidence(images)
        if self.config.student == "softmax":
            return scores.softmax(dim=1)[:, : self.num_classes]
        return torch.relu(scores[:, : self.num_classes])

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L_cls (Eq. 3) and alpha times L_mac (Eq. 9), as Eq. 1 sums them.

        Raises UserError where the batch has no fused maps of the base.
        """
        config = self.config
        if batch.maps is None:
            raise UserError("smaf needs the fused maps of its base: give localization.base, whose maps are made first")
        target = denoise_maps(shrink_maps(batch.maps), batch.labels, config.threshold)
        if config.reactivation:
            target = reactivate_maps(target)
        scores = self.base.evidence(batch.image)
        grown = resize_aligned(scores, target.shape[2:])
        found = make_student_maps(grown, self.num_classes, config.student, config.background_logit)
        parts = {"mac": config.alpha * F.mse_loss(found, target[:, : found.shape[1]])}
        if config.classification:
            parts["cls"] = classification_loss(spatial_mean(scores[:, : self.num_classes]), batch.labels)
        return parts

    def param_groups(self) -> list[ParamGroup]:
        """The base's groups, less what its evidence does not depend on."""
        groups: list[ParamGroup] = []
        for group in self.base.param_groups():
            params = [p for p in group.params if p.requires_grad]
            if params:
                groups.append(replace(group, params=params))
        return groups


def freeze_unreached(base: nn.Module, evidence: Callable[[Tensor], Tensor]) -> None:
    """Freeze the parameters of a localizer that its ``evidence`` does not depend on (L2G's local network, for one).

    One small image goes forth and back; random numbers and modes are left as they were.
    """
    params = [p for p in base.parameters() if p.requires_grad]
    modes = {part: part.training for part in base.modules()}
    base.eval()
    with torch.enable_grad():
        scores = evidence(torch.zeros(1, 3, 64, 64, device=params[0].device))
        gradients = torch.autograd.grad(scores.sum(), params, allow_unused=True)
    for part, training in modes.items():
        part.training = training
    for parameter, gradient in zip(params, gradients, strict=True):
        if gradient is None:
            parameter.requires_grad_(False)
