"""The one table of what is scored: steps, their variants, titles, column heads, metric names and protocol sentences.

A new variant is a line in ``VARIANTS``, its name in the ``variants`` of its step, and the code in ``stages/score.py``
that computes it. Commands, pages, study tables, ``wsss compare`` and sweeps read everything else from here.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["maps", "masks", "predictions"]
"""The artifacts that are scored."""


@dataclass(frozen=True)
class Variant:
    """One scored reading of a step."""

    title: str
    """After the step's title: "best threshold"."""
    protocol: str
    """The sentence beside its number; ``{split}``, ``{threshold}``, ``{refiner}``, ``{views}`` and ``{labels}`` are
    filled in."""
    by_image: bool = True
    """Whether it is a mask of every image; the best threshold is read off the curve of the whole set."""
    parts: bool = False
    """Whether the recall of an object's parts is reported (synthetic images)."""
    caption: str = ""
    """Over its tile in panels; empty where it is not drawn."""


VARIANTS: dict[str, Variant] = {
    "best": Variant(
        "best threshold",
        "{split}, threshold {threshold} chosen on {split} ground truth, image labels used",
        by_image=False,
    ),
    "fixed": Variant(
        "fixed threshold", "{split}, threshold {threshold} fixed by the method, image labels used", parts=True
    ),
    "mask": Variant("refined", "{split}, refined by {refiner}, image labels used", parts=True, caption="pseudo mask"),
    "crf": Variant("multi-scale + CRF", "{split}, {views} + CRF, {labels}", caption="prediction + CRF"),
    "multi_scale": Variant("multi-scale", "{split}, {views}, {labels}", caption="prediction"),
    "single_scale": Variant("single scale", "{split}, single scale, {labels}"),
}
"""Variant -> what people read of it."""


@dataclass(frozen=True)
class Step:
    """A scored step."""

    title: str
    kind: Kind
    """The artifact it scores."""
    split: Literal["score", "val"]
    """Which split's ground truth it reads: that of the training images, or the validation images."""
    variants: tuple[str, ...]
    """The one that papers usually print first."""
    drawn: tuple[str, ...] = field(default=())
    """The variants drawn as tiles, in order."""


STEPS: dict[str, Step] = {
    "seeds": Step("Seeds", "maps", "score", ("best", "fixed")),
    "masks": Step("Pseudo masks", "masks", "score", ("mask",), ("mask",)),
    "segmentation": Step(
        "Segmentation", "predictions", "val", ("crf", "multi_scale", "single_scale"), ("multi_scale", "crf")
    ),
}
"""Step -> how it is scored, in the order of a run."""

NUMBERS: dict[str, str] = {
    "miou": "mIoU %",
    "miou_foreground": "mIoU %, foreground",
    "pixel_accuracy": "pixel accuracy %",
    "mean_precision": "precision %",
    "mean_recall": "recall %",
    "precision_foreground": "precision %, foreground",
    "recall_foreground": "recall %, foreground",
    "coverage": "coverage %",
}
"""What is reported of a variant, shares in [0, 1] -> its column head."""

PARTS: dict[str, str] = {"1": "heads", "2": "bodies"}
"""Parts of synthetic objects: index in the ``parts`` column -> name."""


def variants_of(kind: Kind) -> tuple[str, ...]:
    """The variants of one kind of artifact, as their step lists them."""
    return next(step.variants for step in STEPS.values() if step.kind == kind)


def usual_variant(step: str, scored: Container[str]) -> str | None:
    """The variant a paper usually prints, of those in ``scored``; None where there is none."""
    return next((name for name in STEPS[step].variants if name in scored), None)


def metric_name(step: str, variant: str, number: str) -> str:
    """The name of a number in MLflow: ``seeds/fixed/miou``."""
    return f"{step}/{variant}/{number}"
