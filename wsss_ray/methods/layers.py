"""What several methods share: the classification loss, pooling and the class head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin: the mean over images and classes of the binary cross-entropy of (B, C) logits."""
    return F.binary_cross_entropy_with_logits(logits, labels)


def spatial_mean(scores: Tensor) -> Tensor:
    """Global average pooling: (B, K, h, w) -> (B, K)."""
    return scores.mean(dim=(2, 3))


def class_head(in_channels: int, out_channels: int, xavier: bool = True) -> nn.Conv2d:
    """Bias-free 1x1 convolution, Xavier uniform as in PSA, SEAM, EPS and L2G, or with torch's own init as in IRN."""
    head = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    if xavier:
        nn.init.xavier_uniform_(head.weight)
    return head
