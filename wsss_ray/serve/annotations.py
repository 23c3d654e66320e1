# SPDX-License-Identifier: Apache-2.0
"""Masks as annotations people can correct: COCO JSON with RLE or polygons (CVAT), and Label Studio tasks.

One annotation is one class in one image. Polygons run along pixel edges and read back exactly; a tolerance makes
them lighter. A hole is joined to its surrounding by a cut of no width, since COCO's polygons have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from wsss_ray.data.coco_masks import pycocotools_mask
from wsss_ray.data.image import list_values

Ring = list[tuple[float, float]]
"""(x, y) corners of a closed line; the last one is not the first again."""


def trace_rings(bitmap: np.ndarray) -> list[Ring]:
    """(H, W) bool -> the closed lines along its pixel edges, corners only; the inside lies to the right.

    Outlines run clockwise (positive area in image coordinates), holes the other way; pixels that touch at a corner
    alone belong to different outlines.
    """
    padded = np.pad(bitmap.astype(bool), 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # An edge goes from corner to corner: right along the top, down the right side, left along the bottom, up the left.
    for inside, outside, start, step in (
        (padded[1:, :], padded[:-1, :], (0, 0), (1, 0)),
        (padded[:-1, :], padded[1:, :], (1, 0), (-1, 0)),
        (padded[:, :-1], padded[:, 1:], (0, 0), (0, 1)),
        (padded[:, 1:], padded[:, :-1], (0, 1), (0, -1)),
    ):
        ys, xs = np.nonzero(inside & ~outside)
        # Corner (x, y) of the image lies at (x + 1, y + 1) of the padded grid; edge arrays are one shorter.
        vertical = step[0] == 0
        for x, y in zip((xs - (0 if vertical else 1)).tolist(), (ys - (1 if vertical else 0)).tolist(), strict=True):
            at = (x + start[0], y + start[1])
            following.setdefault(at, []).append(step)
    found = []
    # The topmost corner left is never a crossing: whatever goes up from one starts a line above it.
    for begin in sorted(following, key=lambda corner: (corner[1], corner[0])):
        if begin in following:
            found.append(_follow(following, begin))
    return found


def _follow(following: dict[tuple[int, int], list[tuple[int, int]]], begin: tuple[int, int]) -> Ring:
    """One closed line from ``begin``, taken out of ``following``; it turns right where pixels touch at a corner."""
    corners: Ring = []
    at, heading = begin, (0, 0)
    while True:
        choices = following[at]
        right = (-heading[1], heading[0])
        step = right if right in choices else choices[0]
        choices.remove(step)
        if not choices:
            del following[at]
        if step != heading:
            corners.append((float(at[0]), float(at[1])))
        at, heading = (at[0] + step[0], at[1] + step[1]), step
        if at == begin:
            return corners


def signed_area(ring: Sequence[tuple[float, float]]) -> float:
    """Signed area by the shoelace formula: positive where the line runs clockwise on the screen."""
    x, y = np.asarray(ring, dtype=np.float64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def simplify_ring(ring: Ring, tolerance: float) -> Ring:
    """Douglas-Peucker on a closed line: no dropped corner is further than ``tolerance`` pixels from what is left.

    Fewer than four corners are left alone, and so is a line that would lose its area.
    """
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    points = np.asarray(ring, dtype=np.float64)
    far = int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([points, points[:1]])
    keep = np.zeros(len(closed), dtype=bool)
    keep[[0, far, len(points)]] = True
    waiting = [(0, far), (far, len(points))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        start, line = closed[first], closed[last] - closed[first]
        offset = closed[first + 1 : last] - start
        length = float(np.hypot(*line))
        distance = np.abs(line[0] * offset[:, 1] - line[1] * offset[:, 0]) / length if length else np.hypot(*offset.T)
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance:
            keep[first + 1 + worst] = True
            waiting += [(first, first + 1 + worst), (first + 1 + worst, last)]
    left = [ring[index] for index in np.flatnonzero(keep[:-1]).tolist()]
    return left if len(left) >= 3 and signed_area(left) * signed_area(ring) > 0 else ring


def trace_polygons(bitmap: np.ndarray, tolerance: float = 0.0) -> list[Ring]:
    """(H, W) bool -> polygons without holes that cover it; at ``tolerance`` 0 exactly."""
    lines = [simplify_ring(ring, tolerance) for ring in trace_rings(bitmap)]
    outer = [ring for ring in lines if signed_area(ring) > 0]
    # From the top: what lies straight above the top of a hole is an outline or a hole that is joined already.
    holes = sorted(
        (_start_at_top(ring) for ring in lines if signed_area(ring) < 0), key=lambda ring: (ring[0][1], ring[0][0])
    )
    for hole in holes:
        _join(outer, hole)
    return outer


def _start_at_top(ring: Ring) -> Ring:
    top = min(range(len(ring)), key=lambda index: (ring[index][1], ring[index][0]))
    return ring[top:] + ring[:top]


def _join(outer: list[Ring], hole: Ring) -> None:
    """Cut from the hole's top corner straight up to the next line, and make the two one."""
    x, y = hole[0]
    best: tuple[float, int, int] | None = None
    for number, ring in enumerate(outer):
        for index, (x0, y0) in enumerate(ring):
            x1, y1 = ring[(index + 1) % len(ring)]
            if min(x0, x1) <= x < max(x0, x1):
                height = y0 + (y1 - y0) * (x - x0) / (x1 - x0)
                if height <= y and (best is None or height > best[0]):
                    best = height, number, index
    if best is None:
        return  # only after simplification: the hole has left its surrounding
    height, number, index = best
    ring = outer[number]
    meets = (x, height)
    outer[number] = [*ring[: index + 1], meets, *hole, hole[0], meets, *ring[index + 1 :]]


def encode_rle(bitmap: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed RLE, JSON-able."""
    encoded = pycocotools_mask().encode(np.asfortranarray(bitmap, dtype=np.uint8))
    return {"size": [int(side) for side in bitmap.shape], "counts": encoded["counts"].decode("ascii")}


class CocoWriter:
    """Pieces of a COCO annotation file, image by image, so that no more than one is in memory."""

    def __init__(self, classes: Sequence[str], as_polygons: bool, tolerance: float = 0.0) -> None:
        self.classes, self.as_polygons, self.tolerance = tuple(classes), as_polygons, tolerance
        self.num_images = self.num_annotations = 0

    def categories(self) -> list[dict[str, Any]]:
        """Category ids are mask indices: 1 is the first class."""
        return [{"id": number, "name": name, "supercategory": ""} for number, name in enumerate(self.classes, 1)]

    def add_image(self, file_name: str, mask: np.ndarray) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The entries of one image: its image and one annotation for each class in its (H, W) uint8 mask."""
        self.num_images += 1
        height, width = (int(side) for side in mask.shape)
        entry = {"id": self.num_images, "file_name": file_name, "height": height, "width": width}
        return entry, list(self._annotations(mask))

    def _annotations(self, mask: np.ndarray) -> Iterator[dict[str, Any]]:
        for index, bitmap in split_classes(mask, len(self.classes)):
            shape: Any = encode_rle(bitmap)
            if self.as_polygons:
                shape = [
                    [float(v) for corner in ring for v in corner] for ring in trace_polygons(bitmap, self.tolerance)
                ]
            ys, xs = np.nonzero(bitmap)
            left, top = int(xs.min()), int(ys.min())
            self.num_annotations += 1
            yield {
                "id": self.num_annotations,
                "image_id": self.num_images,
                "category_id": index,
                "segmentation": shape,
                "area": int(bitmap.sum()),
                "bbox": [left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1],
                "iscrowd": 0,
            }


def split_classes(mask: np.ndarray, num_classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index, (H, W) bool) of every class in a mask, ascending; background and 255 belong to none."""
    for index in list_values(mask):
        if 1 <= index <= num_classes:
            yield index, mask == index


def build_label_studio_task(
    file_name: str, mask: np.ndarray, classes: Sequence[str], tolerance: float, prefix: str = "/data/local-files/?d="
) -> dict[str, Any]:
    """One task with its polygons as a prediction to correct; coordinates are percent of width and height."""
    height, width = mask.shape
    results = []
    for index, bitmap in split_classes(mask, len(classes)):
        for number, ring in enumerate(trace_polygons(bitmap, tolerance)):
            points = [[100 * x / width, 100 * y / height] for x, y in ring]
            results.append(
                {
                    "id": f"{index}-{number}",
                    "type": "polygonlabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": int(width),
                    "original_height": int(height),
                    "image_rotation": 0,
                    "value": {"points": points, "closed": True, "polygonlabels": [classes[index - 1]]},
                }
            )
    return {
        "data": {"image": prefix + quote(file_name)},
        "predictions": [{"model_version": "wsss-ray", "result": results}],
    }


def build_label_studio_config(classes: Iterable[str], palette: Sequence[Sequence[int]]) -> str:
    """The labelling interface the tasks belong to."""
    from xml.sax.saxutils import quoteattr

    lines = ["<View>", '  <Image name="image" value="$image"/>', '  <PolygonLabels name="label" toName="image">']
    for number, name in enumerate(classes, start=1):
        colour = "#" + "".join(f"{value:02x}" for value in palette[number])
        lines.append(f"    <Label value={quoteattr(name)} background={quoteattr(colour)}/>")
    return "\n".join([*lines, "  </PolygonLabels>", "</View>", ""])
