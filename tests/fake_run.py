# SPDX-License-Identifier: Apache-2.0
"""A finished run written by hand, without Ray: prepared images, masks, maps, per-image counts and ``run.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from wsss_ray import storage
from wsss_ray.artifacts.tables import COUNTS_SCHEMA, MAPS_SCHEMA, MASKS_SCHEMA, encode_maps, name_part, write_table
from wsss_ray.contracts import ClassMaps
from wsss_ray.data import image as pic
from wsss_ray.data.shards import read_shard, write_dataset
from wsss_ray.data.source import Item, Source, blank_row
from wsss_ray.score.bootstrap import stack_counts
from wsss_ray.score.confusion import compute_scores, count_confusion, make_matrix

CLASSES = ["cat", "dog <b>", "katze & co"]
RECIPE: dict[str, Any] = {
    "name": "fake",
    "scale": "toy",
    "seed": 0,
    "method": {"name": "cam", "profile": "paper"},
    "net": {"backbone": "toy"},
    "data": {"uri": None},
    "train": {"epochs": 2, "optimizer": {"lr": 0.1}},
    "refine": {"name": "seeds", "threshold": 0.2},
    "score": {"absent": "skip"},
    "resources": {"train_workers": 1},
    "tags": {},
}


def _load(item: Item) -> dict[str, Any]:
    generator = np.random.default_rng(int(item.image_id))
    height, width = item.extra["size"]
    assert item.labels is not None
    truth = np.zeros((height, width), np.uint8)
    truth[height // 4 : height // 2, width // 4 :] = item.labels[0] + 1
    truth[0, 0] = 255
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return blank_row(item.image_id) | {
        "image": pic.encode_jpeg(image),
        "labels": list(item.labels),
        "mask": pic.encode_mask(truth),
        "height": height,
        "width": width,
    }


def prepare(folder: Path, num_images: int = 12, size: tuple[int, int] = (24, 32)) -> str:
    """Noise images with one rectangle each, in shards of 5; the folder."""
    items = [
        Item(f"{place:03d}", None, (place % len(CLASSES),), splits=("train",), extra={"size": size})
        for place in range(num_images)
    ]
    write_dataset(Source("fake", CLASSES, items, _load, ("train",)), str(folder), rows_per_shard=5)
    return str(folder)


def fake_run(out: Path, name: str, data: str, wrong: set[str] = frozenset(), **recipe: Any) -> str:  # type: ignore[assignment]
    """A run whose pseudo masks are the truth, except that images ``wrong`` are all background; its folder."""
    labels = len(CLASSES) + 1
    total = make_matrix(labels)
    for shard in sorted(path for path in storage.list_names(data) if path.endswith(".parquet")):
        masks, maps, counts = [], [], []
        for row in read_shard(data, shard):
            truth = pic.decode_mask(row["mask"])
            mask = np.where((truth == 255) | (row["image_id"] in wrong), 0, truth).astype(np.uint8)
            matrix = count_confusion(truth, mask, labels)
            total += matrix
            found = stack_counts(matrix)
            there = np.flatnonzero(found.any(axis=0))
            counts.append(
                {
                    "image_id": row["image_id"],
                    "variant": "mask",
                    "labels": there.tolist(),
                    "counts": found[:, there].tobytes(),
                }
            )
            masks.append({"image_id": row["image_id"], "mask": pic.encode_mask(mask)})
            values = np.ones((1, 3, 4), np.float32)
            maps.append(encode_maps(ClassMaps(row["image_id"], np.array(row["labels"]), values, truth.shape)))
        part = name_part(shard)
        for stage, schema, rows in (
            ("refine", MASKS_SCHEMA, masks),
            ("localize", MAPS_SCHEMA, maps),
            ("score", COUNTS_SCHEMA, counts),
        ):
            write_table(pa.Table.from_pylist(rows, schema=schema), str(out / stage / name / part))
    found = compute_scores(total)
    names = ["background", *CLASSES]
    score = {
        **found.numbers(),
        "iou": dict(zip(names, found.iou.tolist(), strict=True)),
        "matrix": total.tolist(),
        "protocol": "train, refined by seeds, image labels used",
    }
    seeds = {**score, "threshold": 0.5, "protocol": "train, threshold 0.5 chosen on train ground truth"}
    curve = {"thresholds": [0.0, 0.25, 0.5, 0.75], "miou": [0.1, 0.3, score["miou"], 0.2]}
    losses = [{"total": 2.0, "cls": 1.5, "aux": 0.5}, {"total": 1.0, "cls": 0.75, "aux": 0.25}]
    record = {
        "scores": {"masks": {"mask": score}, "seeds": {"best": seeds, "curve": curve}},
        "history": {
            "train": [
                {"epoch": epoch, "losses": part, "mean_ap": None if epoch == 0 else 0.5}
                for epoch, part in enumerate(losses)
            ]
        },
        "steps": [
            {"title": "train", "stage": "train", "digest": "0123456789abcdef", "seconds": 90.0, "reused": True},
            {"title": "refine", "stage": "refine", "digest": name, "seconds": 3.0, "reused": False},
        ],
        "artifacts": {
            "masks": {"stage": "refine", "digest": name},
            "maps": {"stage": "localize", "digest": name},
            "score masks": {"stage": "score", "digest": name},
        },
        "data": data,
        "classes": CLASSES,
        "splits": {"score": "train", "val": "train"},
        "finished": "2026-01-02 03:04:05",
    }
    folder = out / "runs" / name
    storage.write_json(str(folder / "run.json"), record)
    storage.write_bytes(str(folder / "recipe.yaml"), yaml.safe_dump({**RECIPE, **recipe}, sort_keys=False).encode())
    return str(folder)
