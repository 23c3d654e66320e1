# SPDX-License-Identifier: Apache-2.0
"""The compiled CRF against pydensecrf: CPU time of whole calls on the same images, one thread, and equal labels.

Scores are smooth noise through a softmax; with ``drop`` they are like a network's: three labels in blobs, the others
nearly 0. One round is one image. Compiling is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch

from benchmarks.claim import CPU, Claim, Given, Goal, Pair, Reading, timed
from benchmarks.images import list_images
from wsss_ray.cluster.memory import keep_freed_memory
from wsss_ray.refine.crf import PRESETS, CRFConfig, smooth_scores

QUICK = (("psa", 2, 0.0, 3.5), ("psa", 21, 0.0, 2.5), ("deeplab_v2", 21, 0.0, 1.7), ("psa", 21, 3e-5, 3.5))
"""(preset, labels, drop, least ratio)."""
FULL = (
    *((name, 2, 0.0, 3.5) for name in ("psa", "irn", "wsfcn", "deeplab_v2", "largefov")),
    ("psa", 21, 0.0, 2.5),
    ("deeplab_v2", 21, 0.0, 1.7),
    ("psa", 81, 0.0, 2.0),
    ("psa", 21, 3e-5, 3.5),
    ("psa", 81, 3e-5, 6.0),
)


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


@dataclass
class Engine:
    """One engine over the images, one a call."""

    config: CRFConfig
    images: list[np.ndarray]
    scores: list[np.ndarray]
    labels: dict[int, np.ndarray] = field(default_factory=dict)
    """Image -> what came out."""

    def __post_init__(self) -> None:
        self.places = count()

    def smooth_next(self) -> Reading:
        """CPU time of one image."""
        place = next(self.places) % len(self.images)

        def smooth() -> None:
            marginals = smooth_scores(self.images[place], self.scores[place], self.config)
            self.labels[place] = marginals.argmax(axis=0)

        return {CPU: timed(smooth)()[CPU]}


def measure(given: Given) -> Iterator[Pair]:
    """Every case over the images, the first one as a warm-up."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as a worker does, for both sides
    images = list_images(given.data, 4 if given.quick else 20)
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    for name, num_labels, drop, least in QUICK if given.quick else FULL:
        scores = [make_scores(size, num_labels, place, drop > 0) for place, size in enumerate(sizes)]
        reference = Engine(PRESETS[name].model_copy(update={"engine": "pydensecrf"}), images, scores)
        fast = Engine(PRESETS[name].model_copy(update={"drop": drop}), images, scores)
        yield Pair(
            f"{name}, {num_labels} labels{f', drop {drop:g}' if drop else ''}",
            top=reference.smooth_next,
            bottom=fast.smooth_next,
            goals={CPU: Goal(at_least=least)},
            rounds=len(images),
            describe=lambda one=reference, other=fast: describe_equal(one, other),  # type: ignore[misc]
        )


def describe_equal(one: Engine, other: Engine) -> str:
    """The share of equal labels of the images that both have smoothed."""
    both = one.labels.keys() & other.labels.keys()
    return f"{100 * np.mean([np.mean(one.labels[key] == other.labels[key]) for key in both]):.4f} % equal labels"


CLAIM = Claim(
    says="the compiled dense CRF is several times as fast as pydensecrf and gives the same labels",
    ratio="pydensecrf / ours",
    measure=measure,
    seconds=45,
)
