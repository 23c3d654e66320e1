# SPDX-License-Identifier: Apache-2.0
"""The compiled CRF with ``drop`` against pydensecrf, on what the segmenters of finished runs say of their images.

    python -m benchmarks.crf_drop RUN [RUN ...] [--split val] [--images 20] [--drop 3e-5]

RUN: the folder of a run with a step ``segment``, as ``wsss run`` prints it. CPU time of whole calls, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.claim import CPU, Goal, Pair
from benchmarks.crf import Engine, describe_equal
from benchmarks.machine import describe_machine
from benchmarks.report import list_lines
from benchmarks.runner import measure_pair
from wsss_ray.api.data import Data
from wsss_ray.artifacts.network import open_predictor
from wsss_ray.artifacts.record import read_record
from wsss_ray.cluster.memory import keep_freed_memory
from wsss_ray.engine.predict import MaskPredictor
from wsss_ray.refine.crf import PRESETS
from wsss_ray.serve.model import open_model

LEAST = {21: 3.5, 81: 6.0}
"""Labels -> least ratio."""
HOUR = 3600.0


def score_images(run: str, split: str, count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Images of a split, spread over it, and (L, H, W) float32 probabilities by the run's own test-time protocol."""
    data, model = Data(read_record(run)["data"]), open_model(run)
    ids = data.ids(split)
    images = [np.asarray(data.image(name)) for name in ids[:: max(1, len(ids) // count)][:count]]
    trained = open_predictor(model.folder)
    network = MaskPredictor(trained.segments, len(model.classes) + 1, model.predict, trained.on(4))
    found = dict(network.score_images(images))
    return images, [found[place].multi for place in range(len(images))]


def list_pairs(run: str, split: str, count: int, drop: float) -> Iterator[Pair]:
    """PSA's preset and DeepLab v2's, each without ``drop`` and with it."""
    images, scores = score_images(run, split, count)
    num_labels = len(scores[0])
    for name in ("psa", "deeplab_v2"):
        for share in (0.0, drop):
            reference = Engine(PRESETS[name].model_copy(update={"engine": "pydensecrf"}), images, scores)
            fast = Engine(PRESETS[name].model_copy(update={"drop": share}), images, scores)
            yield Pair(
                f"{name}, {num_labels} labels{f', drop {share:g}' if share else ''}",
                top=reference.smooth_next,
                bottom=fast.smooth_next,
                goals={CPU: Goal(at_least=LEAST[num_labels])} if share and num_labels in LEAST else {},
                rounds=len(images),
                describe=lambda one=reference, other=fast: describe_equal(one, other),  # type: ignore[misc]
            )


def main() -> None:
    """Print a table for every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--split", default="val")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--drop", type=float, default=3e-5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(", ".join(f"{name} {value}" for name, value in describe_machine().items()))
    for run in given.runs:
        start = time.monotonic()
        pairs = list_pairs(run, given.split, given.images, given.drop)
        rows = [row for pair in pairs for row in measure_pair(pair, start + HOUR)]
        told: dict[str, Any] = {
            "name": Path(run).name,
            "says": f"the dense CRF on {given.images} images of {given.split}",
        }
        told |= {"ratio": "pydensecrf / ours", "rows": rows, "error": "", "seconds": time.monotonic() - start}
        print("\n".join(list_lines(told)), flush=True)


if __name__ == "__main__":
    main()
