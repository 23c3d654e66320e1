# SPDX-License-Identifier: Apache-2.0
"""Peak memory of reading COCO annotations while the file grows; ``python -m benchmarks.coco_memory [SIZE ...]``.

For every size a file of so many annotations (seven an image, polygons of twelve points) is generated, and a fresh
process opens it as a source, walks over all its images and renders the masks of the first hundred; its peak resident
memory is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.claim import MEMORY, Claim, Given, Goal, Pair, Reading
from wsss_ray.data.coco_categories import CATEGORY_IDS, CLASSES

PER_IMAGE = 7

_READ = """
import resource, sys, time
from wsss_ray.data.coco_index import read_shapes
from wsss_ray.data.coco_masks import DrawRules, render_shapes
from wsss_ray.data.sources import open_source
start = time.monotonic()
source = open_source("coco", sys.argv[1], index=sys.argv[1] + "/index")
indexed = time.monotonic() - start
images = labels = 0
for item in source.items:
    if images < 100:
        shapes = read_shapes(item.extra["index"], item.extra["image"])
        render_shapes(shapes, source.load.tables["train"], item.extra["size"], DrawRules())
    images += 1
    labels += len(item.labels)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{peak:.0f} {indexed:.1f} {time.monotonic() - start - indexed:.1f} {images} {labels}")
"""


def generate(root: Path, num_annotations: int, seed: int = 0) -> Path:
    """An ``instances_train2014.json`` below ``root``, written as it is made."""
    rng = random.Random(seed)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "train2014").mkdir(exist_ok=True)
    path = root / "annotations" / "instances_train2014.json"
    num_images = max(1, num_annotations // PER_IMAGE)
    with path.open("w") as out:
        out.write('{"images": [')
        for number in range(num_images):
            head = {"id": number, "file_name": f"{number:012d}.jpg", "height": 480, "width": 640}
            out.write((", " if number else "") + json.dumps(head))
        out.write('], "annotations": [')
        for number in range(num_annotations):
            x, y = rng.uniform(50, 590), rng.uniform(50, 430)
            points = [round(value + rng.uniform(-40, 40), 2) for _ in range(12) for value in (x, y)]
            one = {
                "id": number,
                "image_id": rng.randrange(num_images),
                "category_id": rng.choice(CATEGORY_IDS),
                "iscrowd": 0,
                "area": round(rng.uniform(100, 6000), 3),
                "bbox": [round(x - 40, 2), round(y - 40, 2), 80.0, 80.0],
                "segmentation": [points],
            }
            out.write((", " if number else "") + json.dumps(one))
        names = [{"id": k, "name": name} for k, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
        out.write('], "categories": ' + json.dumps(names) + "}")
    return path


def measure_size(num_annotations: int) -> dict[str, float]:
    """Peak memory (MB) and seconds of one size, read in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = generate(Path(folder), num_annotations)
        done = subprocess.run([sys.executable, "-c", _READ, folder], check=True, capture_output=True, text=True)
        peak, indexed, walked, images, labels = map(float, done.stdout.split())
        megabytes = path.stat().st_size / 1e6
    return {
        "file_mb": megabytes,
        "peak_mb": peak,
        "index_seconds": indexed,
        "walk_seconds": walked,
        "images": images,
        "labels": labels,
    }


def read_peak(num_annotations: int) -> Reading:
    """Of one size."""
    return {MEMORY: measure_size(num_annotations)["peak_mb"]}


def measure(given: Given) -> Iterator[Pair]:
    """A large file against one of ten thousand annotations."""
    large = 50_000 if given.quick else 1_000_000
    yield Pair(
        f"{large:,} annotations",
        top=partial(read_peak, large),
        bottom=partial(read_peak, 10_000),
        goals={MEMORY: Goal(at_most=1.2)},
        rounds=1,
        warm=False,
    )


CLAIM = Claim(
    says="reading COCO takes the same memory whatever the size of its annotation file",
    ratio="large file / file of 10,000 annotations",
    measure=measure,
    seconds=20,
)


def main(sizes: list[int]) -> None:
    """Print one line for every size."""
    print(f"{'annotations':>12} {'file MB':>8} {'peak MB':>8} {'index s':>8} {'walk s':>7} {'images':>9}")
    for size in sizes:
        start = time.monotonic()
        done = measure_size(size)
        print(
            f"{size:>12} {done['file_mb']:>8.0f} {done['peak_mb']:>8.0f} {done['index_seconds']:>8.1f} "
            f"{done['walk_seconds']:>7.1f} {done['images']:>9.0f}   ({time.monotonic() - start:.0f} s in all)",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0].partition(":")[0])
    usual = [10_000, 100_000, 1_000_000]
    parser.add_argument("sizes", type=int, nargs="*", default=usual, help="numbers of annotations in a file")
    main(parser.parse_args().sizes)
