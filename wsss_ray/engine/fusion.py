# SPDX-License-Identifier: Apache-2.0
"""One map per class from the maps of several scales and flips of an image, by the rule of each paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from wsss_ray.config import UserError
from wsss_ray.contracts import FusionRule


class Pass(NamedTuple):
    """What a network says of B images at one scale; (B, C, h, w) each."""

    plain: Tensor
    flipped: Tensor | None = None
    """Maps of the mirrored images, still mirrored."""


def scale_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(H, W) times ``scale``, exact halves to the even number as the released loaders round; at least one pixel."""
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def compute_unit_scale(size: tuple[int, int], long_side: int | None) -> float:
    """What scale 1 multiplies (H, W) by: 1, or the factor that makes the longer side ``long_side`` pixels."""
    return 1.0 if long_side is None else long_side / max(size)


def compute_grid_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """The grid with a cell every ``stride`` pixels: (H, W) divided and rounded up (IRN, stride 4)."""
    return -(-size[0] // stride), -(-size[1] // stride)


def round_to_cells(size: tuple[int, int], cell: int) -> tuple[int, int]:
    """(H, W) rounded up to multiples of ``cell``: what IRN up-samples to before it crops (cell 16)."""
    return -(-size[0] // cell) * cell, -(-size[1] // cell) * cell


def make_scaled_inputs(
    image: np.ndarray, scale: float, normalize: Callable[[np.ndarray], Tensor], flip: bool = True
) -> Tensor:
    """An image and its mirror image at one scale: (H, W, 3) uint8 RGB -> (2, 3, h, w); without ``flip`` (1, 3, h, w).

    PIL bicubic on 8 bits, which smooths where it shrinks: a float or torch resize gives other maps. ``normalize`` takes
    (h, w, 3) uint8 to (3, h, w).
    """
    height, width = scale_size((image.shape[0], image.shape[1]), scale)
    if (height, width) != image.shape[:2]:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    tensor = normalize(image)
    return torch.stack([tensor, tensor.flip(2)]) if flip else tensor[None]


def find_present_classes(labels: Tensor, num_classes: int) -> Tensor:
    """(B, C) labels -> (B, C) bool; raises UserError where C is not ``num_classes``."""
    if labels.dim() != 2 or labels.shape[1] != num_classes:
        raise UserError(
            f"labels of shape {tuple(labels.shape)} for maps of {num_classes} classes: give (B, {num_classes})"
        )
    return labels > 0


def fuse_present(
    passes: Sequence[Pass],
    rule: FusionRule,
    size: tuple[int, int],
    labels: Tensor,
    crop: tuple[int, int] | None = None,
) -> Tensor:
    """Fused maps of the labelled classes alone: (N, H, W), image-major and by class, N the ones in (B, C) ``labels``.

    Passes are up-sampled to ``size`` (align_corners False), added up or averaged, cut to ``crop`` at the top left, and
    divided by their maximum (plus epsilon) over the whole image. A rectified map that is nowhere positive comes out
    0. Every map is computed by itself, so packing images together changes no bit.
    """
    if not passes:
        raise UserError("no maps to fuse: give at least one scale")
    present = find_present_classes(labels, passes[0].plain.shape[1]).to(passes[0].plain.device)
    fused = _enlarge(passes[0], present, rule, size)
    for one in passes[1:]:
        fused += _enlarge(one, present, rule, size)
    if rule.reduce == "mean":
        fused /= sum(1 if one.flipped is None else 2 for one in passes)
    if crop is not None:
        fused = fused[:, : crop[0], : crop[1]]
    return normalize_maps(fused.relu() if rule.rectify == "after" else fused, rule)


def _enlarge(one: Pass, present: Tensor, rule: FusionRule, size: tuple[int, int]) -> Tensor:
    """The sum of a scale's one or two passes at ``size``, of the classes in (B, C) bool: (N, H, W)."""
    sides = [one.plain[present]] if one.flipped is None else [one.plain[present], one.flipped[present].flip(-1)]
    if rule.rectify == "per_pass":
        return sum((_resize(side, rule, size).relu() for side in sides[1:]), _resize(sides[0], rule, size).relu())
    if rule.rectify == "before":
        sides = [side.relu() for side in sides]
    # Up-sampling is linear: adding first halves its cost.
    pair = sides[0] if len(sides) == 1 else sides[0] + sides[1]
    return _resize(pair.relu() if rule.rectify == "pair" else pair, rule, size)


def _resize(maps: Tensor, rule: FusionRule, size: tuple[int, int]) -> Tensor:
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    if not len(maps):
        return maps.new_zeros(0, *size)
    return F.interpolate(maps[:, None], size=size, mode=rule.interpolation, align_corners=False)[:, 0]


def normalize_maps(maps: Tensor, rule: FusionRule) -> Tensor:
    """(N, H, W) -> per map: divided by max + epsilon, or (value - min) / (max - min + epsilon), or as it is."""
    if rule.normalize == "none":
        return maps
    if rule.normalize == "minmax":
        maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    top = maps.amax(dim=(1, 2), keepdim=True).clamp(min=0) + rule.epsilon
    return maps / top.clamp(min=torch.finfo(top.dtype).tiny)
