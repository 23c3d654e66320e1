# SPDX-License-Identifier: Apache-2.0
"""Seeds scored at many background thresholds in one pass against scoring at one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.claim import CPU, Claim, Given, Goal, Pair, timed
from benchmarks.crf import make_scores
from benchmarks.images import VOC_SIZE
from wsss_ray.contracts import ClassMaps
from wsss_ray.refine.planes import add_constant_background, make_mask, pick_winners
from wsss_ray.score.confusion import count_confusion, make_matrix
from wsss_ray.score.curve import ThresholdCurve

NUM_LABELS, STRIDE = 21, 4


def draw_maps(count: int) -> list[tuple[ClassMaps, np.ndarray]]:
    """Class maps of one to three classes, normalised, with a mask as their truth."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        classes = np.sort(rng.choice(NUM_LABELS - 1, size=number % 3 + 1, replace=False)).astype(np.int32)
        scores = make_scores(VOC_SIZE, len(classes) + 1, number, network=False)
        truth = np.concatenate([[0], classes + 1])[scores.argmax(axis=0)].astype(np.uint8)
        maps = torch.nn.functional.avg_pool2d(torch.from_numpy(scores[1:])[None], STRIDE, ceil_mode=True)[0]
        maps = maps / maps.amax(dim=(1, 2), keepdim=True)
        found.append((ClassMaps(str(number), classes, maps.numpy(), VOC_SIZE), truth))
    return found


def measure(given: Given) -> Iterator[Pair]:
    """100 and 256 thresholds."""
    torch.set_num_threads(1)
    images = draw_maps(40 if given.quick else 160)
    for num_thresholds in (100, 256):
        steps = np.arange(num_thresholds) / num_thresholds
        level = float(steps[num_thresholds // 4])
        found: dict[str, np.ndarray] = {}

        def score_all(steps: np.ndarray = steps, found: dict[str, np.ndarray] = found) -> None:
            curve = ThresholdCurve(steps, NUM_LABELS)
            for maps, truth in images:
                curve.add(truth, maps.classes, maps.full())
            found["all"] = curve.matrices()[len(steps) // 4]

        def score_one(level: float = level, found: dict[str, np.ndarray] = found) -> None:
            matrix = make_matrix(NUM_LABELS)
            for maps, truth in images:
                mask = make_mask(pick_winners(add_constant_background(maps.full(), level)), maps.classes)
                matrix += count_confusion(truth, mask, NUM_LABELS)
            found["one"] = matrix

        def describe(found: dict[str, np.ndarray] = found) -> str:
            return "equal counts" if np.array_equal(found["all"], found["one"]) else "COUNTS DIFFER"

        yield Pair(
            f"{num_thresholds} thresholds, {len(images)} images",
            top=timed(score_all),
            bottom=timed(score_one),
            goals={CPU: Goal(at_most=1.0)},
            rounds=5,
            describe=describe,
        )


CLAIM = Claim(
    says="the whole curve of background thresholds costs no more than one threshold",
    ratio="all thresholds in one pass / one threshold",
    measure=measure,
    seconds=15,
)
