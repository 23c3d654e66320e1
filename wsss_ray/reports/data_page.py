# SPDX-License-Identifier: Apache-2.0
"""One page that shows prepared data before anybody trains on it: counts, classes, notes, and a sheet of images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.data.image import IGNORE, decode_image, decode_mask, list_values
from wsss_ray.data.manifest import DataSet, open_data
from wsss_ray.data.shards import read_shard
from wsss_ray.reports.drawing import overlay_mask
from wsss_ray.reports.images import BUDGET, encode_image
from wsss_ray.reports.panels import choose_rows
from wsss_ray.reports.rendering import render, render_document


@dataclass
class _Seen:
    """What a pass over the shards gathers."""

    labels: dict[str, Counter[int]] = field(default_factory=dict)
    """Split -> class -> images."""
    masks: Counter[str] = field(default_factory=Counter)
    saliency: Counter[str] = field(default_factory=Counter)
    panels: list[dict[str, Any]] = field(default_factory=list)
    """One image each, as ``templates/data.html`` shows it."""


def write_data_page(uri: str, out: Path, num_images: int = 24) -> str:
    """Write the page of prepared data; says where. UserError where there is no data."""
    data = open_data(uri)
    text = build_data_page(data, _gather(data, num_images))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(str(out), text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); choose another --out") from error
    return f"{data.manifest.num_images} images, {len(data.notes)} notes: {out}"


def build_data_page(data: DataSet, seen: _Seen) -> str:
    """The page as HTML; every text of the data is escaped."""
    manifest = data.manifest
    counts = [
        [name, str(info.num_images), str(seen.masks[name]), str(seen.saliency[name])]
        for name, info in manifest.splits.items()
    ]
    classes = [
        [name, str(index), *(str(seen.labels.get(split, Counter())[index - 1]) for split in manifest.splits)]
        for index, name in enumerate(manifest.classes, start=1)
    ]
    choices = "\n".join(f"{key}: {value}" for key, value in manifest.options.items())
    lead = f"{len(seen.panels)} of {manifest.num_images}, each with its labels and its mask laid over it."
    notes = render("parts", "notes", texts=data.notes or ["None."], style="")
    of_splits = render("parts", "table", titles=("split", "images", "with mask", "with saliency"), rows=counts)
    of_classes = render("parts", "table", titles=("class", "mask index", *manifest.splits), rows=classes)
    images = render("data", "images", panels=seen.panels) if seen.panels else ""
    sections = [
        render("parts", "section", title="Notes", body=notes),
        render("parts", "section", title="Splits", body=of_splits),
        render("parts", "section", title="Classes", body=of_classes),
        render("parts", "section", title="Images", body=images, lead=lead),
        render("parts", "section", title="Choices", body=render("data", "choices", text=choices) if choices else ""),
    ]
    facts = {"images": manifest.num_images, "classes": len(manifest.classes), "source": manifest.source}
    return render_document(f"Data: {data.uri.rstrip('/').rpartition('/')[2]}", facts, sections, data.uri)


def _gather(data: DataSet, num_images: int) -> _Seen:
    """Counts over all shards, and images spread evenly over them."""
    seen = _Seen()
    shards = data.manifest.shards
    wanted = set(choose_rows([(shard.path, shard.num_rows) for shard in shards], num_images))
    share = BUDGET // max(1, num_images)
    for shard in shards:
        rows = read_shard(data.uri, shard)
        for split in shard.splits:
            counts = seen.labels.setdefault(split, Counter())
            for row in rows:
                counts.update(row["labels"] or ())
            seen.masks[split] += shard.num_masks
            seen.saliency[split] += shard.num_saliency
        chosen = [row for place, row in enumerate(rows) if (shard.path, place) in wanted]
        seen.panels += [_build_panel(row, data, shard.splits, share) for row in chosen]
    return seen


def _build_panel(row: dict[str, Any], data: DataSet, splits: tuple[str, ...], share: int) -> dict[str, Any]:
    """One image with its mask over it, its name, labels and what the mask shows; at most ``share`` characters."""
    pixels = decode_image(row["image"], row["image_id"])
    mask = None if row["mask"] is None else decode_mask(row["mask"], row["image_id"])
    drawn = pixels if mask is None else overlay_mask(pixels, mask, _fill_palette(data))
    labels = None if row["labels"] is None else [data.manifest.classes[label] for label in row["labels"]]
    return {
        "source": encode_image(drawn, share),
        "name": row["image_id"],
        "splits": ", ".join(splits),
        "labels": "unknown" if labels is None else ", ".join(labels) or "none",
        "swatches": None if mask is None else [_name_value(one, data) for one in list_values(mask) if one],
    }


def _name_value(value: int, data: DataSet) -> tuple[tuple[int, ...], str]:
    """The colour and the name of a class of a mask."""
    if value == IGNORE:
        return (160, 160, 160), "ignored"
    return tuple(data.manifest.palette[value]), data.labels[value]


def _fill_palette(data: DataSet) -> np.ndarray:
    """(256, 3) uint8: the colours of the data, black where it lists fewer."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(data.manifest.palette)] = np.array(data.manifest.palette, np.uint8)[:256]
    return palette
