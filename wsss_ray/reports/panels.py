"""The panels of a run, from its artifacts: what people look at first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wsss_ray import storage
from wsss_ray.artifacts.tables import decode_maps, part_name, read_table
from wsss_ray.data.image import decode_image, decode_mask
from wsss_ray.data.manifest import Manifest
from wsss_ray.data.shards import read_shard
from wsss_ray.reports.drawing import Panel, overlay_map, overlay_mask, sheet

if TYPE_CHECKING:
    from wsss_ray.artifacts.record import FinishedRun as Run
    from wsss_ray.artifacts.store import Artifact
    from wsss_ray.experiments.road import Walk

NUM_ROWS = 8


def draw_panels(run):  # replaced at the merge
    """Two sheets."""
    sheets = {}
    arts = run.artifacts
    if "maps" in arts:
        sheets["train"] = training_panels(
            run.data.uri, run.data.manifest, run.data.shards(run.recipe.data.score_split), arts
        )
    if "predictions" in arts:
        sheets["val"] = prediction_panels(
            run.data.uri, run.data.manifest, run.data.shards(run.recipe.data.val_split), arts["predictions"]
        )
    folder = storage.local_path(run.folder)
    local = (folder / "panels") if folder is not None else Path(tempfile.mkdtemp())
    local.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, panels in sheets.items():
        path = local / f"{name}.png"
        sheet(panels).save(path, optimize=True)
        paths.append(path)
    return paths


def chosen(shards: list[tuple[str, int]], count: int = NUM_ROWS) -> list[tuple[str, int]]:
    """(shard, row) of ``count`` images spread evenly over the shards."""
    total = sum(rows for _, rows in shards)
    wanted = sorted({int(place) for place in np.linspace(0, total - 1, min(count, total))}) if total else []
    picked, start = [], 0
    for name, rows in shards:
        picked += [(name, place - start) for place in wanted if start <= place < start + rows]
        start += rows
    return picked


def training_panels(
    data: str, manifest: Manifest, shards: list[tuple[str, int]], artifacts: dict[str, Artifact]
) -> list[Panel]:
    """Image, truth where there is one, the map of every present class, pseudo mask."""
    palette = np.asarray(manifest.palette, dtype=np.uint8)
    panels = []
    for shard, place in chosen(shards):
        row = read_shard(data, shard)[place]
        image = decode_image(row["image"], row["image_id"])
        maps = decode_maps(_row_of(artifacts["maps"], shard, row["image_id"]))
        names = [manifest.classes[index] for index in maps.classes]
        panel = Panel(f"{row['image_id']}: {', '.join(names)}", [("image", image), _truth(row, image, palette)])
        full = maps.full()
        strongest = full.max(axis=0) if len(full) else np.zeros(maps.size, dtype=np.float32)
        panel.tiles.append(("class map (max over classes)", overlay_map(image, strongest)))
        if "masks" in artifacts:
            mask = decode_mask(_row_of(artifacts["masks"], shard, row["image_id"])["mask"])
            panel.tiles.append(("pseudo mask", overlay_mask(image, mask, palette)))
        panels.append(panel)
    return panels


def prediction_panels(
    data: str, manifest: Manifest, shards: list[tuple[str, int]], predictions: Artifact
) -> list[Panel]:
    """Image, truth where there is one, prediction without and with the CRF."""
    palette = np.asarray(manifest.palette, dtype=np.uint8)
    panels = []
    for shard, place in chosen(shards):
        row = read_shard(data, shard)[place]
        image = decode_image(row["image"], row["image_id"])
        found = _row_of(predictions, shard, row["image_id"])
        names = [manifest.classes[index] for index in row["labels"] or []]
        panel = Panel(f"{row['image_id']}: {', '.join(names)}", [("image", image), _truth(row, image, palette)])
        for variant, caption in (("multi_scale", "prediction (multi-scale)"), ("crf", "prediction + CRF")):
            if found[variant] is not None:
                panel.tiles.append((caption, overlay_mask(image, decode_mask(found[variant]), palette)))
        panels.append(panel)
    return panels


def _truth(row: dict[str, Any], image: np.ndarray, palette: np.ndarray) -> tuple[str, np.ndarray]:
    if row["mask"] is None:
        return "truth (none)", np.full_like(image, 235)
    return "truth", overlay_mask(image, decode_mask(row["mask"]), palette)


def _row_of(artifact: Artifact, shard: str, image_id: str) -> dict[str, Any]:
    table = read_table(storage.join(artifact.uri, part_name(shard)))
    place = table["image_id"].to_pylist().index(image_id)
    row: dict[str, Any] = table.slice(place, 1).to_pylist()[0]
    return row
