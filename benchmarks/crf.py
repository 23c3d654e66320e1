# SPDX-License-Identifier: Apache-2.0
"""The compiled CRF against pydensecrf: CPU time of whole calls, both on the same images in turn, and equal labels.

    python benchmarks/crf.py --data FOLDER [--images 20] [--labels 2,21,81] [--presets all] [--drop 1e-4]

FOLDER is searched for photographs (JPEG), the first ones by name are taken. Scores are smooth noise through a softmax;
with ``--drop`` they are like a network's: three labels in blobs, the others nearly 0. Prints a table whose spread is
that of the images (10th to 90th percentile). Compile time is left out and printed before.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from wsss_ray.refine.crf import PRESETS, CRFConfig, smooth_scores

torch.set_num_threads(1)


@dataclass
class Line:
    """One row of the table."""

    preset: str
    labels: int
    reference: float
    fast: float
    ratio: float
    low: float
    high: float
    equal: float


def make_scores(size: tuple[int, int], num_labels: int, seed: int, network: bool) -> np.ndarray:
    """(L, H, W) float32 that sum to 1; ``network``: background and two classes in blobs, the rest nearly 0."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(num_labels, size[0] // 16 + 1, size[1] // 16 + 1)) * 2
    if network:
        coarse[3:] -= 14
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(coarse.astype(np.float32))[None], size, mode="bilinear", align_corners=False
    )
    scores: np.ndarray = smooth[0].softmax(dim=0).numpy()
    return scores


def measure(image: np.ndarray, scores: np.ndarray, config: CRFConfig) -> tuple[float, np.ndarray]:
    """CPU seconds and labels of one call."""
    start = time.process_time()
    marginals = smooth_scores(image, scores, config)
    return time.process_time() - start, marginals.argmax(axis=0)


def compare(name: str, num_labels: int, images: list[np.ndarray], drop: float) -> Line:
    """All images with one preset and number of labels, each side first in turn."""
    reference = PRESETS[name].model_copy(update={"engine": "pydensecrf"})
    fast = PRESETS[name].model_copy(update={"drop": drop})
    times, equal = [], []
    for place, image in enumerate(images):
        scores = make_scores((image.shape[0], image.shape[1]), num_labels, place, drop > 0)
        sides = [reference, fast] if place % 2 == 0 else [fast, reference]
        found = [measure(image, scores, side) for side in sides]
        slow, quick = found if place % 2 == 0 else found[::-1]
        times.append((slow[0], quick[0]))
        equal.append(np.mean(slow[1] == quick[1]))
    both = np.array(times)
    low, high = np.percentile(both[:, 0] / both[:, 1], [10, 90])
    mean = [float(side) for side in both.mean(axis=0)]
    return Line(name, num_labels, mean[0], mean[1], mean[0] / mean[1], float(low), float(high), float(np.mean(equal)))


def list_presets(wanted: str) -> list[str]:
    """The named ones; ``all``: one name of every set of settings."""
    if wanted != "all":
        return wanted.split(",")
    return sorted({config: name for name, config in sorted(PRESETS.items(), reverse=True)}.values())


def main() -> None:
    """Compile, measure, print, and write the rows as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--labels", default="2,21,81")
    parser.add_argument("--presets", default="all")
    parser.add_argument("--drop", type=float, default=0.0)
    parser.add_argument("--json")
    given = parser.parse_args()
    files = sorted(Path(given.data).rglob("*.jpg"))[: given.images]
    images = [np.array(Image.open(path).convert("RGB")) for path in files]
    start = time.process_time()
    for num_labels in (2, 3, 5):
        measure(images[0][:9, :9], make_scores((9, 9), num_labels, 0, False), PRESETS["psa"])
    print(f"{len(images)} images; {platform.processor() or platform.machine()}, numpy {np.__version__}")
    print(f"compiling or loading compiled code: {time.process_time() - start:.1f} s")
    print(
        "| preset | labels | pydensecrf, s | fast, s | ratio | spread | equal labels |\n|---|---|---|---|---|---|---|"
    )
    lines = []
    for name in list_presets(given.presets):
        for num_labels in map(int, given.labels.split(",")):
            line = compare(name, num_labels, images, given.drop)
            spread = f"{line.low:.1f}-{line.high:.1f}"
            cells = (name, num_labels, f"{line.reference:.3f}", f"{line.fast:.3f}", f"{line.ratio:.2f}", spread)
            print(f"| {' | '.join(map(str, cells))} | {100 * line.equal:.4f} % |", flush=True)
            lines.append(asdict(line))
    if given.json:
        Path(given.json).write_text(json.dumps(lines, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
