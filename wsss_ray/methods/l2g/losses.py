# SPDX-License-Identifier: Apache-2.0
"""What a local network's attention asks of a global one under each view (Jiang et al., CVPR 2022, Sec. 3.3-3.4)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_ray.methods.views import Align, crop_views, sample_cells

BackgroundTarget = Literal["ignore", "complement", "binary", "soft"]


def compute_attention(scores: Tensor, labels: Tensor, epsilon: float = 1e-8) -> Tensor:
    """A of Eq. 2: ReLU over its spatial maximum, absent classes 0, without gradient; (B, K, h, w) in [0, 1].

    K is C or C + 1; a background channel, being last, is kept whatever the (B, C) labels say.
    """
    positive = torch.relu(scores.detach())
    kept = F.pad(labels, (0, scores.shape[1] - labels.shape[1]), value=1.0)
    return positive / (positive.amax(dim=(2, 3), keepdim=True) + epsilon) * kept[:, :, None, None]


def keep_strongest(maps: Tensor) -> Tensor:
    """(B, K, h, w) with all but the largest channel of each pixel set to 0 (released code alone)."""
    winner = maps.argmax(dim=1, keepdim=True)
    return torch.zeros_like(maps).scatter(1, winner, maps.gather(1, winner))


def make_transfer_target(
    attended: Tensor,
    num_classes: int,
    saliency: Tensor | None,
    threshold: float,
    background: BackgroundTarget,
    fallback: bool,
) -> Tensor:
    """A_i of Eq. 6, or B_i x S_i of Eq. 7: (V, C + 1, h, w), or (V, C, h, w) with background "ignore".

    ``attended`` is (V, K, h, w) attention, ``saliency`` (V, 1, h, w) on its grid; the background is outside saliency.
    The target is the attention itself where there is no saliency, or where it is empty and ``fallback``.
    """
    classes = attended[:, :num_classes]
    local = attended[:, num_classes:]
    if saliency is not None:
        shaped = (classes > threshold) * saliency
        outside = ((local > threshold) if background == "binary" else local) * (1 - saliency)
        empty = (saliency == 0).all(dim=3, keepdim=True).all(dim=2, keepdim=True) & fallback
        classes, local = torch.where(empty, classes, shaped), torch.where(empty, local, outside)
    if background == "ignore":
        return classes
    if background == "complement":
        return torch.cat([classes, 1 - classes.amax(dim=1, keepdim=True)], dim=1)
    return torch.cat([classes, local], dim=1)


def transfer_loss(probabilities: Tensor, target: Tensor, norm: Literal["mean", "sum"] = "mean") -> Tensor:
    """L_at or L_st: squared distance of (V, C + 1, h, w) and the target, by element or summed per view (Eq. 6-7)."""
    squared = (probabilities[:, : target.shape[1]] - target).square()
    return squared.mean() if norm == "mean" else squared.sum() / len(squared)


def read_global_views(scores: Tensor, boxes: Tensor, size: tuple[int, int], stride: int, align: Align) -> Tensor:
    """G_i of Eq. 5-6: (B, C + 1, H, W) global scores -> (B * N, C + 1, h, w) probabilities under each view."""
    if align == "crop":
        return sample_cells(scores.softmax(dim=1), boxes, size, stride, "crop")
    return sample_cells(scores, boxes, size, stride, "roi").softmax(dim=1)


def crop_saliency(saliency: Tensor, boxes: Tensor, size: tuple[int, int], normalize: bool) -> Tensor:
    """S_i of Eq. 7: (B, 1, H, W) -> (B * N, 1, h, w) by nearest; ``normalize`` divides by the image's maximum first."""
    if normalize:
        saliency = saliency / (saliency.amax(dim=(2, 3), keepdim=True) + 1e-10)
    return F.interpolate(crop_views(saliency, boxes), size=size, mode="nearest")
