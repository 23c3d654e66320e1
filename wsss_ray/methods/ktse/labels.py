# SPDX-License-Identifier: Apache-2.0
"""KTSE's pseudo labels: class features against two background levels, refined by PAR (Eq. 4, Sec. 3.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wsss_ray.contracts import IGNORE
from wsss_ray.methods.ktse.losses import EPSILON, normalize_features
from wsss_ray.methods.layers import Size, resize_bilinear
from wsss_ray.refine.pamr import refine_with_par

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def truncate_levels() -> np.ndarray:
    """What the released code makes of each 8-bit level, and, last, of the canvas: (3, 257) float32 in [0, 1].

    It gets its 8-bit image back from the normalised one in float32 and truncates: 40 % of the values end one lower.
    """
    mean, std = np.array(IMAGENET_MEAN)[:, None], np.array(IMAGENET_STD)[:, None]
    normalized_levels = ((np.arange(256) / 255 - mean) / std).astype(np.float32)
    canvas = np.zeros((3, 1), np.float32)
    shown = np.concatenate([normalized_levels, canvas], axis=1) * std.astype(np.float32) + mean.astype(np.float32)
    levels: np.ndarray = np.floor(shown * np.float32(255)).clip(0, 255) / np.float32(255)
    return levels


def make_guide(rgb: Tensor, inside: Tensor, truncated: bool = False) -> Tensor:
    """PAR's guide image: (B, 3, H, W) in [0, 1], canvas outside ``inside`` (B, 1, H, W) in the mean colour.

    ``truncated`` takes the levels of ``truncate_levels``.
    """
    if not truncated:
        return rgb * inside + rgb.new_tensor(IMAGENET_MEAN)[:, None, None] * (1 - inside)
    table = torch.from_numpy(truncate_levels()).to(rgb)
    levels = (rgb * 255).round().long().masked_fill(inside == 0, 256)
    return table[torch.arange(3, device=rgb.device)[:, None, None], levels]


def select_present(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The planes of present classes alone, so that work grows with them and not with C.

    (B, C, h, w), (B, C) -> planes (B, P, h, w), valid (B, P) bool, classes (B, P) int64; P is the most classes any
    image has, at least 1.
    """
    num = max(int(labels.sum(dim=1).max().item()), 1)
    classes = labels.argsort(dim=1, descending=True, stable=True)[:, :num]
    planes = features.gather(1, classes[:, :, None, None].expand(-1, -1, *features.shape[-2:]))
    return planes, labels.gather(1, classes) > 0, classes


def halve_size(size: Size) -> tuple[int, int]:
    """The size PAR works at: half of (H, W), at least 1."""
    return max(size[0] // 2, 1), max(size[1] // 2, 1)


def score_planes(planes: Tensor, valid: Tensor, level: float, size: Size) -> Tensor:
    """Softmax over a background of ``level`` and the valid planes: (B, P, h, w) -> (B, 1 + P, H / 2, W / 2).

    Planes go to the image's (H, W) and then to half of it; planes that are not valid come out 0.
    """
    stack = resize_bilinear(planes, size)
    stack = torch.cat([torch.full_like(stack[:, :1], level), stack], dim=1)
    stack = resize_bilinear(stack, halve_size(size))
    counted = torch.cat([torch.ones_like(valid[:, :1]), valid], dim=1)[:, :, None, None]
    return stack.masked_fill(~counted, float("-inf")).softmax(dim=1)


def convert_to_labels(index: Tensor, classes: Tensor) -> Tensor:
    """Turn plane numbers (B, H, W), 0 background, into mask values: 0 or class + 1."""
    values = torch.cat([torch.zeros_like(classes[:, :1]), classes + 1], dim=1)
    return values.gather(1, index.flatten(1)).view_as(index)


def combine_labels(high: Tensor, low: Tensor) -> Tensor:
    """Classes that beat the high background level, background where nothing beats the low one, else 255 (Eq. 4)."""
    unsure = torch.where(low == 0, torch.zeros_like(high), torch.full_like(high, IGNORE))
    return torch.where(high != 0, high, unsure)


@torch.no_grad()
def refine_then_threshold(
    features: Tensor,
    labels: Tensor,
    image: Tensor,
    levels: tuple[float, float] = (0.3, 0.15),
    num_iterations: int = 10,
    guard_maximum: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pseudo labels as released: PAR on the softmax against each background level, then both labels combined.

    (B, C, h, w) signed features, (B, C), (B, 3, H, W) guide -> combined, high and low labels, each (B, H, W) int64.
    Negative features count in the softmax. A class that is negative everywhere flips its sign in the released code;
    ``guard_maximum`` divides it by 1e-5 instead, so that it stays below the background.
    """
    size = image.shape[-2:]
    planes, valid, classes = select_present(features, labels)
    top = planes.amax(dim=(2, 3), keepdim=True)
    scaled = planes / ((top.clamp(min=0) if guard_maximum else top) + EPSILON)
    stacks = torch.cat([score_planes(scaled, valid, level, size) for level in levels], dim=1)
    refined = refine_with_par(resize_bilinear(image, halve_size(size)), stacks, num_iterations=num_iterations)
    high, low = (
        convert_to_labels(resize_bilinear(part, size).argmax(dim=1), classes) for part in refined.chunk(2, dim=1)
    )
    return combine_labels(high, low), high, low


@torch.no_grad()
def threshold_then_refine(
    features: Tensor,
    labels: Tensor,
    image: Tensor,
    levels: tuple[float, float] = (0.3, 0.15),
    num_iterations: int = 10,
) -> Tensor:
    """Pseudo labels as the paper writes them: Eq. 4, then PAR on the label -> (B, H, W) int64 (Sec. 3.3).

    The largest map of Eq. 1 decides whether a pixel is certain, the largest feature which class it has. The paper does
    not say how PAR reads a label with unknown pixels: here they spread nothing and stay 255, and what is certain takes
    the class, or background, that weighs most among its neighbours.
    """
    size = image.shape[-2:]
    planes, valid, classes = select_present(features, labels)
    raised = resize_bilinear(planes, size)
    best = (normalize_features(raised, "max") * valid[:, :, None, None]).amax(dim=1)
    number = raised.masked_fill(~valid[:, :, None, None], float("-inf")).argmax(dim=1) + 1
    number = torch.where(best < levels[1], torch.zeros_like(number), number)
    certain = (best > levels[0]) | (best < levels[1])
    one_hot = torch.nn.functional.one_hot(number, classes.shape[1] + 1).movedim(-1, 1).to(image.dtype)
    one_hot = one_hot * certain[:, None]
    refined = refine_with_par(
        resize_bilinear(image, halve_size(size)),
        resize_bilinear(one_hot, halve_size(size)),
        num_iterations=num_iterations,
    )
    known = convert_to_labels(resize_bilinear(refined, size).argmax(dim=1), classes)
    return known.masked_fill(~certain, IGNORE)
