# SPDX-License-Identifier: Apache-2.0
"""COCO shapes to masks through pycocotools, with the rules on which code bases disagree as switches.

BECO and ReCAM (annToMask.py): crowds excluded, the last shape wins. coco2voc (recommended by AFA): crowds included, the
smallest wins. YUDE: included, the last (or, in a helper, the first) wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.data.coco_index import Annotation
from wsss_ray.data.image import IGNORE

_FARTHEST = 100_000
"""Coordinates beyond it are refused: drawing takes memory with the length of a line."""
Crowd = Literal["included", "excluded", "ignore"]
Overlap = Literal["smallest", "last", "first"]


def pycocotools_mask() -> Any:
    """``pycocotools.mask``; UserError says how to install it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise UserError("COCO shapes need pycocotools: pip install 'wsss-ray[coco]'") from error
    return mask


def shape_mask(shape: Any, height: int, width: int, where: str) -> np.ndarray:
    """(height, width) bool of one annotation's polygons or RLE; UserError, starting with ``where``, for a bad one."""
    tools = pycocotools_mask()
    if isinstance(shape, dict):
        rle = _checked_rle(shape, height, width, where, tools)
    elif isinstance(shape, list):
        _check_polygons(shape, where)
        if not shape:
            return np.zeros((height, width), dtype=bool)
        # One polygon at a time: given a list whose first polygon has 4 numbers pycocotools would draw boxes.
        rle = tools.merge([tools.frPyObjects([polygon], height, width)[0] for polygon in shape])
    else:
        raise UserError(f"{where}: segmentation is a {type(shape).__name__}; give polygons or RLE")
    try:
        return np.asarray(tools.decode(rle), dtype=bool)
    except ValueError as error:
        raise UserError(f"{where}: RLE cannot be decoded ({error}); export it again") from error


def _check_polygons(polygons: list[Any], where: str) -> None:
    for polygon in polygons:
        numbers = isinstance(polygon, list) and all(isinstance(value, (int, float)) for value in polygon)
        if not numbers or not np.isfinite(polygon).all():
            raise UserError(f"{where}: a polygon is a list of numbers x, y, x, y, ...; correct it")
        if polygon and max(map(abs, polygon)) > _FARTHEST:
            raise UserError(f"{where}: a polygon reaches {max(polygon, key=abs):g}, which is in no image; correct it")
        if len(polygon) % 2:
            raise UserError(f"{where}: a polygon of {len(polygon)} numbers has half a point; correct it")
        if len(polygon) < 6:
            raise UserError(
                f"{where}: a polygon of {len(polygon) // 2} points has no area; give it at least 3 or remove it"
            )


def _checked_rle(shape: dict[str, Any], height: int, width: int, where: str, tools: Any) -> Any:
    size, counts = shape.get("size"), shape.get("counts")
    if not isinstance(size, (list, tuple)) or [int(side) for side in size] != [height, width]:
        raise UserError(f"{where}: RLE of size {size} but the image is {height}x{width} (height x width); correct size")
    if isinstance(counts, str):
        runs = string_counts(counts, where)
    elif isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts):
        runs = counts
    else:
        raise UserError(f"{where}: RLE without counts (a list of run lengths or COCO's string); export it again")
    # pycocotools writes past its buffer for counts that are too many, so the sum is checked first.
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise UserError(f"{where}: RLE covers {sum(runs)} pixels but the image has {height * width}; export it again")
    return tools.frPyObjects({"size": [height, width], "counts": runs}, height, width)


def string_counts(text: str, where: str) -> list[int]:
    """Run lengths of COCO's compressed string: 5 bits a character from the lowest, differences to the run two before
    from the fourth on (pycocotools ``rleFrString``).
    """
    runs: list[int] = []
    place = 0
    while place < len(text):
        value = shift = 0
        while True:
            if place >= len(text):
                raise UserError(f"{where}: RLE string ends in the middle of a number; export it again")
            bits = ord(text[place]) - 48
            if not 0 <= bits < 64:
                raise UserError(f"{where}: RLE string has a character {text[place]!r}; export it again")
            value |= (bits & 0x1F) << (5 * shift)
            place, shift = place + 1, shift + 1
            if not bits & 0x20:
                if bits & 0x10:
                    value |= -1 << (5 * shift)
                break
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


@dataclass(frozen=True)
class DrawRules:
    """How shapes become a mask where code bases disagree.

    ``crowd``: crowds drawn as their class, left out (what they cover stays background unless a shape is there), or
    255 where no shape is. ``overlap``: who keeps a pixel two shapes cover: the one with the smallest stated area (ties:
    the first), the last or the first in the file.
    """

    crowd: Crowd = "included"
    overlap: Overlap = "smallest"


def render_shapes(
    shapes: Sequence[Annotation],
    indices: Mapping[int, int],
    size: tuple[int, int],
    rules: DrawRules,
    where: str = "annotations",
) -> np.ndarray:
    """(height, width) uint8 mask of an image's annotations; ``indices`` maps category ids to mask values 1..C."""
    mask = np.zeros(size, dtype=np.uint8)
    drawn = [one for one in shapes if not one.crowd or rules.crowd == "included"]
    bitmaps = {id(one): shape_mask(one.shape, *size, f"{where}: annotation {one.id}") for one in shapes}
    if rules.overlap == "smallest":
        drawn = sorted(drawn, key=lambda one: one.area if one.area > 0 else float(bitmaps[id(one)].sum()))
    for one in drawn:
        bitmap = bitmaps[id(one)]
        if rules.overlap != "last":
            bitmap = bitmap & (mask == 0)
        mask[bitmap] = indices[one.category]
    if rules.crowd == "ignore":
        for one in shapes:
            if one.crowd:
                mask[bitmaps[id(one)] & (mask == 0)] = IGNORE
    return mask


def reach_outside(shapes: Sequence[Annotation], size: tuple[int, int]) -> bool:
    """Whether a polygon reaches beyond the image by more than a tenth of its sides, or two pixels."""
    height, width = size
    for one in shapes:
        for polygon in one.shape if isinstance(one.shape, list) else ():
            x, y = np.array(polygon[::2], np.float64), np.array(polygon[1::2], np.float64)
            over = max(-x.min(), x.max() - width) > max(2.0, 0.1 * width)
            if over or max(-y.min(), y.max() - height) > max(2.0, 0.1 * height):
                return True
    return False
