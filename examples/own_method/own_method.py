# SPDX-License-Identifier: Apache-2.0
"""Own: class maps of a classifier that pools its scores by log-sum-exp, in the place of CAM's mean."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from wsss_ray.config import Changes
from wsss_ray.contracts import Batch, ParamGroup, Progress
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.layers import build_class_head, classification_loss
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import group_parameters


class OwnConfig(MethodConfig):
    """Log-sum-exp pooling (Pinheiro & Collobert, CVPR 2015), without the paper's background class and priors."""

    name: Annotated[Literal["own"], Changes("weights")] = "own"
    sharpness: Annotated[float, Field(gt=0), Changes("weights")] = 5.0
    """r of the log-sum-exp: towards 0 it is the mean of all scores, large values come close to their maximum."""

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> nn.Module:
        """An ``Own`` on ``backbone``; ``base`` is not used."""
        return Own(self, backbone, num_classes)


class Own(nn.Module):
    """Backbone and a 1x1 classifier, which gives a score of every class at every place."""

    def __init__(self, config: OwnConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = build_class_head(backbone.channels["out"], num_classes)

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) signed scores s."""
        scores: Tensor = self.head(self.backbone(images)["out"])
        return scores

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), ReLU(s)."""
        return torch.relu(self.evidence(images))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C): log(mean of exp(r s)) / r over all places."""
        sharpness, scores = self.config.sharpness, self.evidence(images).flatten(2)
        return (torch.logsumexp(sharpness * scores, dim=2) - math.log(scores.shape[2])) / sharpness

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The classification loss alone."""
        return {"cls": classification_loss(self.logits(batch.image), batch.labels)}

    def param_groups(self) -> list[ParamGroup]:
        """Pretrained and new weights at the field's rates."""
        return group_parameters(self)
