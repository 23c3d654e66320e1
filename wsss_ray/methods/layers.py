# SPDX-License-Identifier: Apache-2.0
"""What several methods share: the classification loss, pooling, resizing and the class head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int] | torch.Size
"""Height and width."""


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin: the binary cross-entropy of (B, C) logits, mean over images and classes.

    L2G Eq. 1, KTSE Eq. 2, SMAF Eq. 3 (printed there without its minus), ESOL Eq. 1.
    """
    return F.binary_cross_entropy_with_logits(logits, labels)


def spatial_mean(scores: Tensor, keepdim: bool = False) -> Tensor:
    """Global average pooling: (B, K, h, w) -> (B, K), or (B, K, 1, 1) with ``keepdim``."""
    return scores.mean(dim=(2, 3), keepdim=keepdim)


def resize_bilinear(planes: Tensor, size: Size) -> Tensor:
    """(B, K, h, w) -> (B, K, *size), align_corners False; untouched where the size fits."""
    if planes.shape[-2:] == torch.Size(size):
        return planes
    return F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)


def resize_aligned(planes: Tensor, size: Size) -> Tensor:
    """(B, K, h, w) -> (B, K, *size), bilinear, align_corners True."""
    return F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=True)


def build_class_head(in_channels: int, out_channels: int, xavier: bool = True) -> nn.Conv2d:
    """Bias-free 1x1 convolution, Xavier uniform as in PSA, SEAM, EPS and L2G, or with torch's own init as in IRN."""
    head = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    if xavier:
        nn.init.xavier_uniform_(head.weight)
    return head
