# SPDX-License-Identifier: Apache-2.0
"""Maps and masks over images, and rows of images as one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_EDGE, _BAR = 8, 22
_INK, _PAPER = (40, 44, 52), (250, 250, 248)
_HEAT = np.array([[13, 8, 65], [92, 18, 110], [187, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float32)
"""Anchors of a dark-to-bright heat scale (perceptually ordered, readable in grey)."""


@dataclass
class Panel:
    """One row of a sheet."""

    title: str
    tiles: list[tuple[str, np.ndarray]] = field(default_factory=list)
    """(caption, (H, W, 3) uint8) pairs."""


def paint_heat(values: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (H, W, 3) uint8 heat colours."""
    place = np.clip(values, 0, 1) * (len(_HEAT) - 1)
    low = np.minimum(place.astype(int), len(_HEAT) - 2)
    share = (place - low)[..., None]
    colours: np.ndarray = ((1 - share) * _HEAT[low] + share * _HEAT[low + 1]).astype(np.uint8)
    return colours


def blend(image: np.ndarray, colours: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """``colours`` over ``image``, both (H, W, 3) uint8, with opacity ``share`` (number or (H, W))."""
    opacity = np.asarray(share, dtype=np.float32)
    opacity = opacity[..., None] if opacity.ndim == 2 else opacity
    return (image * (1 - opacity) + colours * opacity).astype(np.uint8)


def overlay_map(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A class map (H, W) in [0, 1] as heat over the image."""
    return blend(image, paint_heat(values), 0.25 + 0.5 * np.clip(values, 0, 1))


def overlay_mask(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """A mask (H, W) in class colours over the image; background shows the image, 255 is grey."""
    colours = palette[mask].astype(np.uint8)
    colours[mask == 255] = 160
    return blend(image, colours, np.where(mask == 0, 0.0, 0.65).astype(np.float32))


def draw_sheet(panels: Sequence[Panel], height: int = 180) -> Image.Image:
    """All rows as one image, tiles scaled to ``height``, captions above the first row's columns."""
    font = ImageFont.load_default(size=13)
    rows = [[_scaled(tile, height) for _, tile in panel.tiles] for panel in panels]
    num_columns = max((len(row) for row in rows), default=0)
    widths = [max((row[k].width for row in rows if k < len(row)), default=0) for k in range(num_columns)]
    width = sum(widths) + _EDGE * (num_columns + 1)
    canvas = Image.new("RGB", (max(width, 240), _BAR + len(rows) * (height + _BAR + _EDGE) + _EDGE), _PAPER)
    draw = ImageDraw.Draw(canvas)
    x = _EDGE
    longest = max(panels, key=lambda panel: len(panel.tiles), default=Panel(""))
    for k, column in enumerate(widths):
        draw.text((x, 4), longest.tiles[k][0], fill=_INK, font=font)
        x += column + _EDGE
    for number, (panel, row) in enumerate(zip(panels, rows, strict=True)):
        y = _BAR + number * (height + _BAR + _EDGE)
        draw.text((_EDGE, y + 2), panel.title, fill=_INK, font=font)
        x = _EDGE
        for k, tile in enumerate(row):
            canvas.paste(tile, (x, y + _BAR))
            x += widths[k] + _EDGE
    return canvas


def _scaled(tile: np.ndarray, height: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(tile))
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BILINEAR)
