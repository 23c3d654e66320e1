# SPDX-License-Identifier: Apache-2.0
"""Images for benchmarks: photographs where some are given, else noise with the spectrum of photographs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_ray.data.image import decode_image, encode_grey, encode_jpeg
from wsss_ray.data.manifest import MANIFEST, load_manifest
from wsss_ray.data.shards import read_shard, write_dataset
from wsss_ray.data.source import Item, Row, Source, blank_row

VOC_SIZE = (375, 500)


def draw_noise(seed: int, size: tuple[int, int] = VOC_SIZE) -> np.ndarray:
    """(H, W, 3) uint8: noise of seven octaves, each half as strong as the one below, as in photographs; and edges."""
    rng = np.random.default_rng(seed)
    height, width = size
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(7):
        cells = rng.integers(0, 256, (2 + 2**octave, 2 + 2**octave, 3), dtype=np.uint8)
        large = Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
        total += (np.asarray(large, np.float32) - 128) / 2**octave
    levels = total + 48 * np.sign(total)
    drawn: np.ndarray = np.clip(128 + 0.6 * levels, 0, 255).astype(np.uint8)
    return drawn


def list_files(data: str | None) -> Iterator[bytes]:
    """The encoded images of prepared data or of a folder, in the order of their names."""
    if data is None:
        return
    if (Path(data) / MANIFEST).exists():
        for shard in load_manifest(data).shards:
            yield from (bytes(row["image"]) for row in read_shard(data, shard, columns=["image"]))
        return
    for path in sorted(path for path in Path(data).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg")):
        yield path.read_bytes()


def list_images(data: str | None, count: int, size: tuple[int, int] = VOC_SIZE) -> list[np.ndarray]:
    """``count`` images, (H, W, 3) uint8; generated ones of ``size`` where there are fewer photographs."""
    found = [decode_image(file, "image") for file, _ in zip(list_files(data), range(count), strict=False)]
    return found + [draw_noise(seed, size) for seed in range(len(found), count)]


def write_images(
    folder: Path, images: list[np.ndarray], num_classes: int = 20, rows_per_shard: int = 32, saliency: bool = False
) -> str:
    """Prepared data of these images in one split ``train``, one or two labels each; grey images as saliency maps."""
    rng = np.random.default_rng(0)
    items = []
    for number, image in enumerate(images):
        labels = rng.choice(num_classes, size=min(int(rng.integers(1, 3)), num_classes), replace=False)
        items.append(
            Item(
                f"image_{number:06d}",
                encode_jpeg(image),
                tuple(sorted(int(label) for label in labels)),
                saliency=encode_grey(np.asarray(Image.fromarray(image).convert("L"))) if saliency else None,
                splits=("train",),
                extra={"size": image.shape[:2]},
            )
        )
    names = [f"class {number}" for number in range(num_classes)]
    write_dataset(Source("benchmark", names, items, _load_row, ("train",)), str(folder), rows_per_shard)
    return str(folder)


def _load_row(item: Item) -> Row:
    height, width = item.extra["size"]
    files = {"image": item.image, "saliency": item.saliency, "height": height, "width": width}
    return {**blank_row(item.image_id), **files, "labels": list(item.labels or ())}
