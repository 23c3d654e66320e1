# SPDX-License-Identifier: Apache-2.0
"""Resizing and normalising on the device, with the very numbers that PIL and NumPy give on the CPU."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from wsss_ray.data.colour import NormalizeConfig

BITS = 22
"""PIL holds weights as integers of 2^-22 and rounds to 8 bits after each axis."""


def resizes_columns_first(size: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether every version of PIL resizes the width first: from 13 on it begins with a height that shrinks far more.

    Only then is ``resize_pixels`` equal to PIL.
    """
    return size[0] - new[0] <= max(1.5 * (size[1] - new[1]), 0)


def resize_pixels(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, h, w, 3) uint8 by PIL's bicubic on 8 bits, bit by bit: the width first."""
    found = images.permute(0, 3, 1, 2)
    for axis, num in ((3, size[1]), (2, size[0])):
        if found.shape[axis] != num:
            weights = torch.from_numpy(weigh_bicubic(found.shape[axis], num)).to(images.device)
            # Integers below 2^53 are exact in double precision, in whatever order they are added.
            total = found.transpose(axis, 3).double() @ weights.T
            whole = ((total + 2.0 ** (BITS - 1)) / 2.0**BITS).floor_().clamp_(0, 255)
            found = whole.to(torch.uint8).transpose(axis, 3)
    return found.permute(0, 2, 3, 1)


@lru_cache(maxsize=64)
def weigh_bicubic(num_in: int, num_out: int) -> np.ndarray:
    """(num_out, num_in) float64 whole numbers: PIL's weights of every input cell, times 2^22.

    The cubic with a = -0.5, stretched over more cells where the image shrinks.
    """
    scale = num_in / num_out
    stretch = max(scale, 1.0)
    weights = np.zeros((num_out, num_in))
    for place in range(num_out):
        centre = (place + 0.5) * scale
        first = max(int(centre - 2 * stretch + 0.5), 0)
        last = min(int(centre + 2 * stretch + 0.5), num_in)
        row = [_cubic((cell + first - centre + 0.5) / stretch) for cell in range(last - first)]
        total = sum(row)
        weights[place, first:last] = [math.trunc(value / total * 2**BITS + math.copysign(0.5, value)) for value in row]
    return weights


def _cubic(x: float, a: float = -0.5) -> float:
    """The cubic convolution kernel, 0 from 2 on."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def normalize_pixels(images: Tensor, normalize: NormalizeConfig) -> Tensor:
    """(B, H, W, 3) uint8 RGB -> (B, 3, H, W) float32: ``normalize.apply`` of each, on the device."""
    levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    table = normalize.apply(levels)[:, 0].to(images.device)
    order = ["RGB".index(channel) for channel in normalize.describe()["channels"]]
    return torch.stack([table[place][images[..., channel].int()] for place, channel in enumerate(order)], dim=1)
