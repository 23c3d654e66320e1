# SPDX-License-Identifier: Apache-2.0
"""The tiles of one image: the image, its ground truth, and what a run made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from wsss_ray import storage
from wsss_ray.artifacts.tables import decode_maps, name_part, read_table
from wsss_ray.contracts import ClassMaps
from wsss_ray.data.image import decode_image, decode_mask
from wsss_ray.data.shards import read_shard_table
from wsss_ray.refine.planes import add_constant_background, make_mask, pick_winners
from wsss_ray.reports.drawing import overlay_map, overlay_mask
from wsss_ray.score.names import STEPS, VARIANTS

GROUND_TRUTH = "ground truth"
Tile = tuple[str, np.ndarray]
"""Caption and (H, W, 3) uint8."""


@dataclass(frozen=True)
class GivenImage:
    """An image as the data set holds it."""

    image_id: str
    pixels: np.ndarray
    """(H, W, 3) uint8."""
    classes: tuple[int, ...]
    """0-based foreground classes in it, of its image-level labels."""
    truth: np.ndarray | None
    """(H, W) uint8 ground truth, None where there is none."""


@dataclass(frozen=True)
class NamedMask:
    """A mask that a run made of an image."""

    caption: str
    mask: np.ndarray
    """(H, W) uint8."""


class PartReader:
    """Images by shard and id, from prepared data and from what a run made of it.

    Of every folder the part that was read last is kept, so images asked for shard by shard read each part once.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, pa.Table, dict[str, int]]] = {}

    def read_given(self, data: str, shard: str, image_id: str) -> GivenImage:
        """One image of a shard of prepared data."""
        columns = ["image_id", "image", "labels", "mask"]
        row = self._find_row(data, shard, image_id, lambda: read_shard_table(data, shard, columns=columns))
        return GivenImage(
            image_id=image_id,
            pixels=decode_image(row["image"], image_id),
            classes=tuple(row["labels"] or ()),
            truth=None if row["mask"] is None else decode_mask(row["mask"], image_id),
        )

    def read_maps(self, folder: str, shard: str, image_id: str) -> ClassMaps:
        """The class maps of one image of a shard."""
        return decode_maps(self._read_row(folder, shard, image_id))

    def read_masks(self, step: str, folder: str, shard: str, image_id: str) -> list[NamedMask]:
        """The drawn variants of a step for one image, of those its artifact holds as masks."""
        row = self._read_row(folder, shard, image_id)
        return [
            NamedMask(VARIANTS[variant].caption, decode_mask(row[variant], image_id))
            for variant in STEPS[step].drawn
            if row.get(variant) is not None
        ]

    def _read_row(self, folder: str, shard: str, image_id: str) -> dict[str, Any]:
        """The row of an image in the part that an artifact made of a shard."""
        where = storage.join(folder, name_part(shard))
        return self._find_row(folder, shard, image_id, lambda: read_table(where))

    def _find_row(self, folder: str, shard: str, image_id: str, read: Callable[[], pa.Table]) -> dict[str, Any]:
        if self._kept.get(folder, ("",))[0] != shard:
            table = read()
            self._kept[folder] = shard, table, {name: row for row, name in enumerate(table["image_id"].to_pylist())}
        _, table, places = self._kept[folder]
        row: dict[str, Any] = table.slice(places[image_id], 1).to_pylist()[0]
        return row


def draw_seeds(maps: ClassMaps, variant: str, threshold: float) -> NamedMask:
    """The seeds of class maps at a threshold, under the variant's caption."""
    mask = make_mask(pick_winners(add_constant_background(maps.full(), threshold)), maps.classes)
    return NamedMask(VARIANTS[variant].caption.format(threshold=f"{threshold:g}"), mask)


def draw_map(image: np.ndarray, maps: ClassMaps, caption: str = "class map") -> Tile:
    """The strongest class map of every pixel over the image."""
    full = maps.full()
    strongest = full.max(axis=0) if len(full) else np.zeros(image.shape[:2], np.float32)
    return caption, overlay_map(image, strongest)


def draw_mask(image: np.ndarray, named: NamedMask, palette: np.ndarray) -> Tile:
    """A mask in class colours over the image."""
    return named.caption, overlay_mask(image, named.mask, palette)
