# SPDX-License-Identifier: Apache-2.0
"""The panels of a run, drawn from its artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_ray import storage
from wsss_ray.config import UserError, suggest
from wsss_ray.data.manifest import DataSet
from wsss_ray.data.shards import read_shard
from wsss_ray.reports.drawing import Panel, draw_sheet
from wsss_ray.reports.tiles import (
    GROUND_TRUTH,
    GivenImage,
    NamedMask,
    PartReader,
    Tile,
    draw_map,
    draw_mask,
)
from wsss_ray.score.names import STEPS

NUM_ROWS = 8
SHEETS = {"score": "train", "val": "val"}
"""Which split's ground truth a step reads (``ScoredStep.split``) -> name of the sheet its images are drawn on."""


def draw_panels(data: DataSet, splits: Mapping[str, str], artifacts: Mapping[str, str], folder: str) -> list[Path]:
    """Draw a sheet of training and one of validation images into ``<folder>/panels``; local paths of what was drawn.

    Image | ground truth | class map | pseudo mask, and image | ground truth | predictions. ``splits`` names the splits
    ``score`` and ``val``; ``artifacts`` are the folders of ``maps``, ``masks`` and ``predictions``, as far as the run
    made them. Images are the first of evenly spaced shards, the same for every run on the same data, so that runs
    compare side by side.
    """
    local = storage.find_local(folder)
    target = (local / "panels") if local is not None else Path(tempfile.mkdtemp())
    target.mkdir(parents=True, exist_ok=True)
    paths = []
    for split, name in SHEETS.items():
        kinds = [step.kind for step in STEPS.values() if step.split == split and step.kind in artifacts]
        if not kinds:
            continue
        path = target / f"{name}.png"
        rows = choose_rows(data.shards(splits[split]))
        draw_rows(data, rows, {kind: artifacts[kind] for kind in kinds}).save(path)
        if local is None:
            storage.write_bytes(storage.join(folder, "panels", path.name), path.read_bytes())
        paths.append(path)
    return paths


def choose_rows(shards: Sequence[tuple[str, int]], count: int = NUM_ROWS) -> list[tuple[str, int]]:
    """(shard, row) of ``count`` images spread evenly over the shards, given as (name, rows)."""
    total = sum(rows for _, rows in shards)
    wanted = sorted({int(place) for place in np.linspace(0, total - 1, min(count, total))}) if total else []
    picked, start = [], 0
    for name, rows in shards:
        picked += [(name, place - start) for place in wanted if start <= place < start + rows]
        start += rows
    return picked


def draw_rows(data: DataSet, rows: Sequence[tuple[str, int]], artifacts: Mapping[str, str]) -> Image.Image:
    """A sheet of images, given as (shard, row): what the data gives, then what the artifacts hold of each."""
    reader = PartReader()
    return draw_sheet([_draw_row(data, reader, row, artifacts) for row in rows])


def find_rows(data: DataSet, split: str, ids: Sequence[str]) -> list[tuple[str, int]]:
    """(shard, row) of the images with these ids; UserError for one that the split has not."""
    found: dict[str, tuple[str, int]] = {}
    for shard, _ in data.shards(split):
        for row, given in enumerate(read_shard(data.uri, shard, columns=["image_id"])):
            found[given["image_id"]] = shard, row
    missing = [name for name in ids if name not in found]
    if missing:
        hint = suggest(missing[0], found) or f"the first of its {len(found)} images is {min(found, default='none')}"
        raise UserError(f"no image {missing[0]!r} in split {split!r}; {hint}")
    return [found[name] for name in ids]


def _draw_row(data: DataSet, reader: PartReader, row: tuple[str, int], artifacts: Mapping[str, str]) -> Panel:
    """One image: what the data gives, then what the artifacts hold, in the order of the steps."""
    palette = np.asarray(data.manifest.palette, dtype=np.uint8)
    shard, place = row
    image_id = read_shard(data.uri, shard, columns=["image_id"])[place]["image_id"]
    given = reader.read_given(data.uri, shard, image_id)
    names = [data.manifest.classes[index] for index in given.classes]
    panel = Panel(f"{image_id}: {', '.join(names)}", [("image", given.pixels), _draw_truth(given, palette)])
    for key, step in STEPS.items():
        folder = artifacts.get(step.kind)
        if folder is None:
            continue
        if step.kind == "maps":
            maps = reader.read_maps(folder, shard, image_id)
            panel.tiles.append(draw_map(given.pixels, maps, "class map (max over classes)"))
        else:
            masks = reader.read_masks(key, folder, shard, image_id)
            panel.tiles += [draw_mask(given.pixels, mask, palette) for mask in masks]
    return panel


def _draw_truth(given: GivenImage, palette: np.ndarray) -> Tile:
    if given.truth is None:
        return f"{GROUND_TRUTH} (none)", np.full_like(given.pixels, 235)
    return draw_mask(given.pixels, NamedMask(GROUND_TRUTH, given.truth), palette)
