# SPDX-License-Identifier: Apache-2.0
"""CAM: a bias-free 1x1 classifier on a backbone, read as class maps (Zhou et al., CVPR 2016).

Trained as PSA (Ahn & Kwak, CVPR 2018) or IRN (Ahn et al., CVPR 2019) train theirs; L2G Table 1, rows 1 and 2.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from wsss_ray.config import Changes
from wsss_ray.contracts import Batch, ParamGroup, Progress
from wsss_ray.methods.base import MethodConfig
from wsss_ray.methods.layers import build_class_head, classification_loss, spatial_mean
from wsss_ray.methods.views import slide_window
from wsss_ray.nets.backbone import Backbone
from wsss_ray.nets.groups import PSA_MULTIPLIERS, group_parameters

IRN_MULTIPLIERS = (1.0, 1.0, 10.0, 10.0)
"""IRN's CAM network: no special rate and no freedom from decay for biases (IRN step/train_cam)."""


class CAMConfig(MethodConfig):
    """The baseline every method starts from; ``style`` sets the defaults of the two code bases the field uses."""

    name: Annotated[Literal["cam"], Changes("weights")] = "cam"
    style: Annotated[Literal["psa", "irn"], Changes("weights")] = "psa"
    """psa: dropout 0.5, Xavier, rates 1/2/10/20, background 0.2. irn: none, torch's own init, 1/1/10/10, 0.15."""
    dropout: Annotated[float, Field(ge=0, lt=1), Changes("weights")] = 0.5
    """Channel dropout on the features the classifier sees in training; never on the maps. irn: 0."""
    window: Annotated[int | None, Field(ge=1), Changes("maps")] = None
    """Side of the sliding window at inference (L2G Table 1, row 2: 320); None: the whole image at once."""
    window_stride: Annotated[int, Field(ge=1), Changes("maps")] = 64

    @model_validator(mode="before")
    @classmethod
    def _fill_style(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("style") == "irn":
            return {"dropout": 0.0, **data}
        return data

    def background(self) -> float:
        """0.2 (PSA) or 0.15 (IRN's cam_eval_thres)."""
        return 0.15 if self.style == "irn" else 0.2

    def build(self, backbone: Backbone, num_classes: int, base: nn.Module | None = None) -> CAM:
        """A ``CAM`` on ``backbone``; ``base`` is not used."""
        return CAM(self, backbone, num_classes)


class CAM(nn.Module):
    """Backbone and a C-channel head: z = W mean(dropout(X)), maps = ReLU(W X)."""

    def __init__(self, config: CAMConfig, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.dropout = nn.Dropout2d(config.dropout)
        self.head = build_class_head(backbone.channels["out"], num_classes, xavier=config.style == "psa")

    def evidence(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w) signed scores W X, without dropout."""
        scores: Tensor = self.head(self.backbone(images)["out"])
        return scores

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C); pooling before the linear classifier gives the same numbers as after it."""
        pooled = spatial_mean(self.backbone(images)["out"], keepdim=True)
        scores: Tensor = self.head(self.dropout(pooled))
        return scores.flatten(1)

    def maps(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), non-negative; with ``window``, the mean over all windows that hold a cell."""
        if self.config.window is None:
            return torch.relu(self.evidence(images))
        return slide_window(
            lambda part: torch.relu(self.evidence(part)),
            images,
            self.config.window,
            self.config.window_stride,
            self.backbone.strides["out"],
        )

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The classification loss alone."""
        return {"cls": classification_loss(self.logits(batch.image), batch.labels)}

    def param_groups(self) -> list[ParamGroup]:
        """PSA's four groups, or IRN's two rates."""
        if self.config.style == "irn":
            return group_parameters(self, IRN_MULTIPLIERS, bias_decay=None)
        return group_parameters(self, PSA_MULTIPLIERS)
