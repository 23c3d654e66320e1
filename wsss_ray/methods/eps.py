# SPDX-License-Identifier: Apache-2.0
"""EPS: a C + 1 classifier whose maps must add up to the saliency map (Lee et al., CVPR 2021).

Explicit pseudo-pixel supervision, as its released code computes it; both profiles are the same. File names below are
those of that code.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from wsss_ray.config import Changes, UserError
from wsss_ray.contracts import Batch, FusionRule, Need, ParamGroup, Progress
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.layers import build_class_head, classification_loss, spatial_mean
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import group_parameters

PRESETS: dict[str, dict[str, Any]] = {
    "voc": {"tau": 0.4, "foreground_weight": 0.5},
    "coco": {"tau": 0.4, "foreground_weight": 0.9},
}
"""The values its scripts train with (script/voc12_eps.sh, script/coco_eps.sh); its parser's default of tau is 0.5."""

OVERLAP_EPSILON = 1e-4
"""Added to every pixel of the class area, inside the sum (eps.py)."""


class EPSConfig(MethodConfig):
    """EPS as its script for VOC trains it; ``PRESETS["coco"]`` are the values for COCO."""

    name: Annotated[Literal["eps"], Changes("weights")] = "eps"
    saliency: Annotated[bool, Changes("weights")] = True
    """Off: the plain C + 1 classifier, whose background channel no loss reaches."""
    tau: Annotated[float, Field(ge=0, le=1), Changes("weights")] = 0.4
    """Share of a class's confident area that must be salient for the class to count as foreground."""
    foreground_weight: Annotated[float, Field(ge=0, le=1), Changes("weights")] = 0.5
    """Lambda: weight of the foreground estimate against one minus the background estimate."""
    bottleneck: Annotated[int | None, Field(ge=1), Changes("weights")] = None
    """Channels of a 1x1 reduction with a frozen BatchNorm before the classifier (SMAF's EPS network: 128)."""

    @property
    def needs(self) -> frozenset[Need]:
        """Saliency, unless it is switched off."""
        return frozenset({"saliency"}) if self.saliency else frozenset()

    def fusion(self) -> FusionRule:
        """Softmax at feature size, bilinear, sum over scales and flips, per-class maximum (infer.py)."""
        return FusionRule(rectify="none")

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> EPS:
        """An ``EPS`` on ``backbone``; ``base`` is not used."""
        return EPS(self, backbone, num_classes)


class Routing(NamedTuple):
    """Where the present classes go; (B, C) bool each, absent classes in neither."""

    foreground: Tensor
    background: Tensor


def shrink_saliency(saliency: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 1, H, W) -> (B, 1, h, w) by torch's nearest: the value at floor(i * H / h)."""
    return F.interpolate(saliency, size=size, mode="nearest")


def overlap_ratio(probabilities: Tensor, saliency: Tensor) -> Tensor:
    """O_c, the share of a class's confident area that is salient: (B, C + 1, h, w), (B, 1, h, w) -> (B, C) (eps.py).

    Both are rounded to {0, 1} (an exact half is 0); not an IoU, and without gradient.
    """
    area = probabilities.detach()[:, :-1].round()
    return (area * saliency.round()).sum(dim=(2, 3)) / (area + OVERLAP_EPSILON).sum(dim=(2, 3))


def route_classes(labels: Tensor, overlap: Tensor, tau: float) -> Routing:
    """Present classes with an overlap strictly above ``tau`` are foreground, other present ones background (eps.py)."""
    present, above = labels > 0, overlap > tau
    return Routing(present & above, present & ~above)


def estimate_saliency(
    probabilities: Tensor, routing: Routing, foreground_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """M_fg, 1 - M_bg and S_hat, (B, 1, h, w) each, from (B, C + 1, h, w) probabilities, background last (eps.py).

    S_hat = lambda M_fg + (1 - lambda)(1 - M_bg) = M_fg + (1 - lambda) * (mass of the absent classes).
    """
    classes = probabilities[:, :-1]

    def mass(chosen: Tensor) -> Tensor:
        return (classes * chosen[:, :, None, None]).sum(dim=1, keepdim=True)

    foreground = mass(routing.foreground)
    not_background = 1 - (probabilities[:, -1:] + mass(routing.background))
    return foreground, not_background, foreground_weight * foreground + (1 - foreground_weight) * not_background


def saliency_loss(scores: Tensor, labels: Tensor, saliency: Tensor, tau: float, foreground_weight: float) -> Tensor:
    """L_sal: mean squared gap of estimated and given saliency, at the size of the (B, C + 1, h, w) scores (eps.py)."""
    probabilities = scores.softmax(dim=1)
    small = shrink_saliency(saliency, (scores.shape[2], scores.shape[3]))
    routing = route_classes(labels, overlap_ratio(probabilities, small), tau)
    return F.mse_loss(estimate_saliency(probabilities, routing, foreground_weight)[2], small)


class ScoreHead(nn.Module):
    """1x1 classifier over the features, with SMAF's optional reduction: conv, frozen BatchNorm, ReLU.

    The BatchNorm is frozen from birth at mean 0, variance 1, gamma 1, beta 0 (SMAF models/EPS.py).
    """

    def __init__(self, in_channels: int, out_channels: int, bottleneck: int | None = None) -> None:
        super().__init__()
        self.reduce = build_class_head(in_channels, bottleneck) if bottleneck else None
        self.norm = nn.BatchNorm2d(bottleneck).requires_grad_(False) if bottleneck else None
        self.classifier = build_class_head(bottleneck or in_channels, out_channels)

    def train(self, mode: bool = True) -> ScoreHead:
        """Train mode, the BatchNorm apart."""
        super().train(mode)
        if self.norm is not None:
            self.norm.eval()
        return self

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) -> (B, K, h, w) raw scores."""
        if self.reduce is not None and self.norm is not None:
            features = self.norm(self.reduce(features)).relu()
        scores: Tensor = self.classifier(features)
        return scores


class EPS(nn.Module):
    """Backbone and a C + 1 head, background last; no dropout before the head."""

    def __init__(self, config: EPSConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = ScoreHead(backbone.channels["out"], num_classes + 1, config.bottleneck)

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C + 1, h, w) raw signed scores."""
        scores: Tensor = self.head(self.backbone(images)["out"])
        return scores

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C): the spatial mean of the foreground scores."""
        return spatial_mean(self.evidence(images)[:, :-1])

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w): the foreground part of the softmax over C + 1, in [0, 1]."""
        return self.evidence(images).softmax(dim=1)[:, :-1]

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """L_cls + L_sal, weights 1 : 1 (module/train.py); UserError where the batch has no saliency."""
        scores = self.evidence(batch.image)
        parts = {"cls": classification_loss(spatial_mean(scores[:, :-1]), batch.labels)}
        if self.config.saliency:
            if batch.saliency is None:
                raise UserError("eps needs saliency maps: give the data set saliency or set method.saliency=false")
            parts["saliency"] = saliency_loss(
                scores, batch.labels, batch.saliency, self.config.tau, self.config.foreground_weight
            )
        return parts

    def param_groups(self) -> list[ParamGroup]:
        """PSA's four groups."""
        return group_parameters(self)
