# SPDX-License-Identifier: Apache-2.0
"""Where an image lands on a training canvas: numbers are drawn first, then every array goes through the same
deterministic steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear", "linear", "nearest"]
"""``bicubic`` and ``bilinear`` are PIL's (smoothing when they shrink), ``linear`` is OpenCV's, ``nearest`` takes
pixel centres."""
_PIL = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(frozen=True)
class Geometry:
    """One draw: cut ``box``, resize to ``size``, mirror, and look through a square window at ``offset``."""

    size: tuple[int, int]
    """(H, W) after resizing."""
    crop: int
    """Side of the window."""
    offset: tuple[int, int] = (0, 0)
    """(row, column) of the resized image at the window's corner; negative where the image starts inside the
    window."""
    flip: bool = False
    box: tuple[int, int, int, int] | None = None
    """(top, left, height, width) cut out of the original first."""
    flip_last: bool = False
    """Mirror the finished window, padding included, instead of the image."""


def side_to(height: int, width: int, target: int, side: Literal["long", "short"]) -> tuple[int, int]:
    """(H, W) with the long or the short side at ``target``, the other rounded (halves to even), at least 1."""
    reference = max(height, width) if side == "long" else min(height, width)
    sides = (max(1, round(height * target / reference)), max(1, round(width * target / reference)))
    fixed = height >= width if side == "long" else height <= width
    return (target, sides[1]) if fixed else (sides[0], target)


def scale_by(height: int, width: int, factor: float, whole: Literal["round", "floor"] = "round") -> tuple[int, int]:
    """(H, W) times ``factor``, rounded (halves to even) or cut, at least 1."""
    cut = round if whole == "round" else int
    return max(1, cut(height * factor)), max(1, cut(width * factor))


def draw_offset(
    size: tuple[int, int], crop: int, rng: np.random.Generator, pad: Literal["random", "right_bottom"] = "random"
) -> tuple[int, int]:
    """A window inside the image where that is larger; else the image anywhere inside the window, or at its upper
    left corner.
    """
    ranges = [(min(0, side - crop), max(0, side - crop)) for side in size]
    if pad == "right_bottom":
        ranges = [(0, high) for _, high in ranges]
    row, column = (int(rng.integers(low, high + 1)) for low, high in ranges)
    return row, column


def draw_swapped_offset(size: tuple[int, int], crop: int, rng: np.random.Generator) -> tuple[int, int]:
    """L2G's released crop, whose axes are swapped: rows are drawn from the width's range and columns from the height's.

    The window leaves images that are not square (l2g_eps_smaf 4.6.1).
    """
    height, width = size
    row = int(rng.integers(0, max(0, width - crop) + 1))
    column = int(rng.integers(0, max(0, height - crop) + 1))
    return row, column


def draw_area(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random-resized crop: uniform area, log-uniform aspect (w / h), ten tries, else
    the middle.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = float(np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1]))))
        w, h = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    w, h = width, height
    if width / height < aspect[0]:
        h = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        w = max(1, round(height * aspect[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(array: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 -> the same at ``size``, uint8 (``linear`` rounds)."""
    if array.shape[:2] == tuple(size):
        return array
    if interpolation == "linear":
        planes = torch.from_numpy(np.atleast_3d(array).astype(np.float32)).permute(2, 0, 1)[None]
        done = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        return done.round().clamp(0, 255).to(torch.uint8).numpy().reshape(*size, *array.shape[2:])
    image = Image.fromarray(np.ascontiguousarray(array))
    return np.array(image.resize((size[1], size[0]), _PIL[interpolation]))


def resize_maps(maps: Tensor, size: tuple[int, int], align_corners: bool = True) -> Tensor:
    """(N, h, w) float -> (N, H, W), bilinear; SMAF's loader aligns corners."""
    if maps.shape[1:] == size or maps.shape[0] == 0:
        return maps if maps.shape[0] else maps.new_zeros((0, *size))
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=align_corners)[0]


def place(array: np.ndarray, offset: tuple[int, int], crop: int, fill: float = 0) -> np.ndarray:
    """(H, W, ...) -> (crop, crop, ...): the window at ``offset``, ``fill`` where it leaves the array."""
    canvas = np.full((crop, crop, *array.shape[2:]), fill, dtype=array.dtype)
    spans = []
    for side, start in zip(array.shape[:2], offset, strict=True):
        low, high = max(0, start), min(side, start + crop)
        if low >= high:
            return canvas
        spans.append((slice(low, high), slice(low - start, high - start)))
    (rows, to_rows), (columns, to_columns) = spans
    canvas[to_rows, to_columns] = array[rows, columns]
    return canvas


def through(array: np.ndarray, geometry: Geometry, interpolation: Interpolation, fill: float = 0) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 of the original image -> (crop, crop, ...) as ``geometry`` says."""
    return window(resized(array, geometry, interpolation), geometry, fill)


def resized(array: np.ndarray, geometry: Geometry, interpolation: Interpolation) -> np.ndarray:
    """Cut, resized and, unless that comes last, mirrored."""
    if geometry.box is not None:
        top, left, height, width = geometry.box
        array = array[top : top + height, left : left + width]
    array = resize(array, geometry.size, interpolation)
    return array[:, ::-1] if geometry.flip and not geometry.flip_last else array


def window(array: np.ndarray, geometry: Geometry, fill: float = 0) -> np.ndarray:
    """What the window shows of a resized array, mirrored if that comes last."""
    view = place(array, geometry.offset, geometry.crop, fill)
    return view[:, ::-1] if geometry.flip and geometry.flip_last else view


def maps_through(maps: np.ndarray, geometry: Geometry, align_corners: bool = True) -> np.ndarray:
    """(N, H, W) float32 at the size of the original image -> (N, crop, crop), 0 on the canvas."""
    if geometry.box is not None:
        top, left, height, width = geometry.box
        maps = maps[:, top : top + height, left : left + width]
    scaled = resize_maps(torch.from_numpy(np.ascontiguousarray(maps)), geometry.size, align_corners).numpy()
    planes = scaled.transpose(1, 2, 0)
    if geometry.flip and not geometry.flip_last:
        planes = planes[:, ::-1]
    return np.ascontiguousarray(window(planes, geometry).transpose(2, 0, 1))
