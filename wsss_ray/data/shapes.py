# SPDX-License-Identifier: Apache-2.0
"""Masks of images whose annotations are shapes: drawn where the image is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from wsss_ray.data.checks import FileLoader, Reading
from wsss_ray.data.coco_index import Annotation
from wsss_ray.data.coco_masks import DrawRules, render_shapes
from wsss_ray.data.image import encode_mask, open_image
from wsss_ray.data.source import Item, Row, read_file


def describe_shapes(shapes: list[tuple[int, Any]], size: tuple[int, int] | None) -> dict[str, Any]:
    """The ``extra`` of an item whose mask ``ShapeLoader`` draws: (mask index, polygons or RLE) in drawing order, and
    (height, width) of the image where the annotations say it.
    """
    return {"shapes": shapes, **({"size": size} if size is not None else {})}


@dataclass(frozen=True)
class ShapeLoader:
    """A ``load`` that draws the mask of an item with shapes, then reads the image; runs on workers."""

    load: FileLoader
    rules: DrawRules = DrawRules()

    @property
    def reading(self) -> Reading:
        """How the images are read."""
        return self.load.reading

    def settle(self, reading: Reading) -> ShapeLoader:
        """The same with another reading."""
        return replace(self, load=self.load.settle(reading))

    def __call__(self, item: Item) -> Row:
        """The row of an item; UserError names the image."""
        if "shapes" not in item.extra or item.image is None:
            return self.load(item)
        shapes = [
            Annotation(place, label, -1.0, False, shape) for place, (label, shape) in enumerate(item.extra["shapes"])
        ]
        indices: Mapping[int, int] = {label: label for label in range(1, self.reading.num_classes + 1)}
        size = item.extra.get("size") or _stored_size(item.image, item.image_id)
        mask = render_shapes(shapes, indices, size, self.rules, str(item.file or item.image_id))
        return self.load(replace(item, mask=encode_mask(mask)))


def _stored_size(image: str | bytes, image_id: str) -> tuple[int, int]:
    width, height = open_image(read_file(image, "image"), image_id).size
    return height, width
