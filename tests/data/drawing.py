# SPDX-License-Identifier: Apache-2.0
"""Small drawn images for tests of what users bring: a class is a square of its own colour on a noisy ground."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsss_ray.data.image import decode_mask
from wsss_ray.data.manifest import DataSet, open_data
from wsss_ray.data.shards import read_shard, write_dataset
from wsss_ray.data.sources import open_source

COLOURS = ((220, 60, 40), (40, 60, 220), (50, 190, 60), (210, 190, 40))


def draw(labels: Sequence[int], seed: int, size: tuple[int, int] = (40, 48)) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) image and (H, W) mask of class + 1, one square a label, side by side."""
    height, width = size
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 150, (height, width, 3)).astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    part = width // max(1, len(labels))
    for place, label in enumerate(labels):
        rows = slice(height // 4, height // 2 + seed % 5 + 1)
        columns = slice(place * part + part // 4, place * part + part // 2 + 1)
        image[rows, columns] = COLOURS[label % 4]
        mask[rows, columns] = label + 1
    return image, mask


def save(path: Path, array: np.ndarray, **how: Any) -> Path:
    """Write an array as the image its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path, **how)
    return path


def write_table(path: Path, rows: Sequence[Sequence[str]], head: Sequence[str] = ("image", "labels"), encoding="utf-8"):
    """A CSV table in any encoding."""
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([head, *rows])
    path.write_bytes(stream.getvalue().encode(encoding))


def tagged(root: Path, number: int = 8, names: Sequence[str] = ("cat", "dog"), values: Any = None) -> Path:
    """A folder of images with labels.csv, classes.txt and masks; ``values`` changes the stored mask values."""
    rows = []
    for place in range(number):
        label = place % len(names)
        image, mask = draw([label], place)
        save(root / "images" / f"p{place}.jpg", image)
        save(root / "masks" / f"p{place}.png", mask if values is None else values(mask))
        rows.append((f"p{place}.jpg", names[label]))
    write_table(root / "labels.csv", rows)
    (root / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return root


def prepared(out: Path, root: Path, source: str = "folder", **options: Any) -> tuple[DataSet, dict[str, Any]]:
    """The prepared data of a folder, and its rows by id."""
    write_dataset(open_source(source, root, **options), str(out))
    data = open_data(str(out))
    rows = [row for shard in data.manifest.shards for row in read_shard(data.uri, shard)]
    return data, {row["image_id"]: row for row in rows}


def shown(row: dict[str, Any]) -> list[int]:
    """The values of a prepared mask."""
    return np.unique(decode_mask(row["mask"])).tolist()
