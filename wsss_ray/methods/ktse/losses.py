# SPDX-License-Identifier: Apache-2.0
"""The terms of KTSE's objective, one function per equation (Chen et al., ECCV 2024, Sec. 3).

Features are signed and foreground only: (B, C, h, w). ``labels``, (B, C) in {0, 1}, are CFE: they keep the classes of
the image, and means are over all C.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from wsss_ray.contracts import IGNORE
from wsss_ray.methods.layers import Size, resize_bilinear, spatial_mean

EPSILON = 1e-5


def normalize_features(features: Tensor, rule: Literal["minmax", "max"] = "minmax") -> Tensor:
    """(B, C, H, W) -> [0, 1] per image and class: ReLU over maximum (Eq. 1), or by minimum and maximum (released)."""
    positive = features.relu()
    top = positive.amax(dim=(2, 3), keepdim=True)
    if rule == "max":
        return positive / (top + EPSILON)
    bottom = positive.amin(dim=(2, 3), keepdim=True)
    return (positive - bottom - EPSILON).relu() / (top - bottom + EPSILON)


def strongest_activation(
    features: Tensor, labels: Tensor, size: Size | None = None, rule: Literal["minmax", "max"] = "minmax"
) -> Tensor:
    """max(A) of Eq. 4, the largest map of the present classes: (B, C, h, w), (B, C) -> (B, 1, h, w), without gradient.

    With ``size``, features are rectified, up-sampled and only then normalised, as the released code does.
    """
    with torch.no_grad():
        maps = features.relu() if size is None else resize_bilinear(features.relu(), size)
        present = normalize_features(maps, rule) * labels[:, :, None, None]
        return present.amax(dim=1, keepdim=True)


def erase_images(images: Tensor, active: Tensor, threshold: float, mode: Literal["hard", "soft"] = "hard") -> Tensor:
    """(B, 3, H, W) with 0, the mean colour, where ``active`` (B, 1, H, W) >= threshold (Sec. 3.4).

    ``soft`` also multiplies what is kept by its activation (AEFT).
    """
    kept = (active < threshold).to(images.dtype)
    return images * kept if mode == "hard" else images * kept * active.to(images.dtype)


def local_alignment_loss(
    masked: Tensor, anchor: Tensor, labels: Tensor, region: Tensor | None = None, margin: float = 0.0
) -> Tensor:
    """L_local: what the erased image shows and the anchor does not, mean over all (B, C, h, w) cells (Eq. 9).

    ``region`` (B, 1, h, w) in {0, 1} limits it (released: outside the discriminative part); gradient reaches both.
    """
    surplus = (masked - anchor - margin).relu() * labels[:, :, None, None]
    return (surplus if region is None else surplus * region).mean()


def global_alignment_loss(anchor: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
    """L_global: mean over (B, C) of the gap between rectified means of present classes (Eq. 8); gradient to both."""
    confidence = [spatial_mean(features.relu()) * labels for features in (anchor, masked)]
    return (confidence[0] - confidence[1]).abs().mean()


def knowledge_transfer_loss(single: Tensor, joined: Tensor, labels: Tensor, margin: float = 0.0) -> Tensor:
    """L_kt: what images show alone and lose when joined, mean over all cells of (n, C, h, w) features (Eq. 3)."""
    return ((single - joined - margin).relu() * labels[:, :, None, None]).mean()


def label_losses(
    planes: Tensor,
    target: Tensor,
    foreground_of: Tensor | None = None,
    rectify: bool = True,
    mean: Literal["separate", "joint"] = "separate",
) -> tuple[Tensor, Tensor]:
    """L_ce of background and of foreground pixels, before w_fg (Eq. 5): (B, K, h, w), (B, H, W) -> two scalars.

    Planes (background first) are rectified before (released) and up-sampled to the target. ``foreground_of`` (B,) picks
    the images whose foreground counts. ``separate`` divides each by its own pixels, ``joint`` both by all that count.
    A kind without pixels is 0, not NaN.
    """
    scores = resize_bilinear(planes.relu() if rectify else planes, target.shape[-2:])
    pixel = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="none")
    background = (target == 0).to(pixel.dtype)
    foreground = ((target > 0) & (target != IGNORE)).to(pixel.dtype)
    if foreground_of is not None:
        foreground = foreground * foreground_of.to(pixel.dtype)[:, None, None]
    counts = [background.sum(), foreground.sum()]
    if mean == "joint":
        counts = [counts[0] + counts[1]] * 2
    return (pixel * background).sum() / counts[0].clamp(min=1), (pixel * foreground).sum() / counts[1].clamp(min=1)


def inter_class_loss(
    scores: Tensor, active: Tensor, labels: Tensor, threshold: float, detach_top: bool = True
) -> Tensor:
    """L_inter: second minus largest class score, mean over active pixels of images of two or more classes (Eq. 6-7).

    (B, C, H, W) foreground scores, ``active`` (B, 1, H, W). All classes that tie with the largest go before the
    second is sought. ``detach_top`` (released) only lowers the second; without it the first is raised as well.
    """
    top = scores.amax(dim=1, keepdim=True)
    second = scores.masked_fill(scores == top, float("-inf")).amax(dim=1, keepdim=True)
    second = torch.where(second == float("-inf"), top, second)
    gap = second - (top.detach() if detach_top else top)
    complex_images = (labels.sum(dim=1) >= 2).to(scores.dtype)[:, None, None, None]
    counted = (active > threshold).to(scores.dtype) * complex_images
    return (gap * counted).sum() / (counted.sum() + EPSILON)
