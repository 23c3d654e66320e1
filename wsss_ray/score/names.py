# SPDX-License-Identifier: Apache-2.0
"""The one table of what is scored: steps, their variants, titles, column heads, metric names and protocol sentences.

A new variant is a line in ``VARIANTS``, its name in the ``variants`` of its step, and the code in ``stages/score.py``
that computes it. Commands, pages, study tables, ``wsss compare`` and sweeps read everything else from here.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from wsss_ray.config import UserError

Kind = Literal["maps", "masks", "predictions"]
"""The artifacts that are scored."""


@dataclass(frozen=True)
class Variant:
    """One scored reading of a step."""

    title: str
    """After the step's title: "best threshold"."""
    protocol: str
    """The sentence beside its number; ``{split}``, ``{threshold}``, ``{refiner}``, ``{views}``, ``{dropped}`` and
    ``{labels}`` are filled in."""
    by_image: bool = True
    """Whether it is a mask of every image; the others are read off the threshold curve of the whole set."""
    parts: bool = False
    """Whether the recall of an object's parts is reported (synthetic images)."""
    caption: str = ""
    """Over its tile in panels; ``{threshold}`` is filled in; empty where it is not drawn."""


VARIANTS: dict[str, Variant] = {
    "best": Variant(
        "best threshold",
        "{split}, threshold {threshold} chosen on {split} ground truth, image labels used",
        by_image=False,
    ),
    "fixed": Variant(
        "fixed threshold",
        "{split}, threshold {threshold} fixed by the method, image labels used",
        parts=True,
        caption="seeds at {threshold}",
    ),
    "otsu": Variant(
        "Otsu's threshold",
        "{split}, threshold {threshold} by Otsu's method on the maps' values, image labels used",
        by_image=False,
    ),
    "mask": Variant("refined", "{split}, refined by {refiner}, image labels used", parts=True, caption="pseudo mask"),
    "crf": Variant("multi-scale + CRF", "{split}, {views} + CRF{dropped}, {labels}", caption="prediction + CRF"),
    "multi_scale": Variant("multi-scale", "{split}, {views}, {labels}", caption="prediction"),
    "single_scale": Variant("single scale", "{split}, single scale, {labels}"),
}
"""Variant -> what people read of it."""


@dataclass(frozen=True)
class ScoredStep:
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
    option: str | None = None
    """Its name in --metric and --sort, where its key means something else there; the key is understood, too."""


STEPS: dict[str, ScoredStep] = {
    "seeds": ScoredStep("CAM seeds", "maps", "score", ("best", "fixed", "otsu"), ("fixed",), option="cam"),
    "masks": ScoredStep("Pseudo masks", "masks", "score", ("mask",), ("mask",)),
    "segmentation": ScoredStep(
        "Segmentation", "predictions", "val", ("crf", "multi_scale", "single_scale"), ("multi_scale", "crf")
    ),
}
"""Step -> how it is scored, in the order of a run."""

NOT_SCORED = "not_scored"
"""In place of variants: why a step has no score though it has ground truth."""

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


@dataclass(frozen=True)
class Column:
    """A column of a study's table: which number it shows, and of what."""

    title: str
    number: str
    """A number of a scored variant (a share, shown in %), or of the whole run."""
    steps: tuple[str, ...] = ()
    """Read from the first of these steps that was scored; empty: from the step of the study's own column."""
    variant: str | None = None
    """The variant that is read; None: the study's own, or the usual one."""
    own_variant: bool = False
    """Whether the study's own variant is read where ``variant`` is None."""
    part: str | None = None
    """The part whose recall it is: an index of ``PARTS``."""
    factor: float = 100.0
    scored: bool = True
    """False: a number of the whole run, no score."""
    needs: str | None = None
    """The last scored step a run must reach for it; None: whichever the others need."""


def list_study_columns() -> dict[str, Column]:
    """Key -> column of a study's table, of all there may be, in the order of a table.

    ``seeds`` and the like are the usual variant of a step, ``seeds.fixed`` a named one; ``precision``, ``recall`` and
    parts are of the study's own step and variant, ``precision.fixed`` of a named variant.
    """
    last = list(STEPS)[-1]
    columns = {key: Column(f"{step.title} mIoU %", "miou", (key,), needs=key) for key, step in STEPS.items()}
    columns["pixel_accuracy"] = Column("pixel accuracy %", "pixel_accuracy", tuple(reversed(STEPS)), needs=last)
    columns["params"] = Column("parameters (millions)", "params", factor=1.0, scored=False, needs=last)
    for key, step in STEPS.items():
        for name in step.variants:
            title = f"{step.title} mIoU %, {VARIANTS[name].title}"
            columns[f"{key}.{name}"] = Column(title, "miou", (key,), name, needs=key)
    for key, number in _OF_THE_STEP.items():
        columns[key] = Column(NUMBERS[number], number, own_variant=True)
        for name, variant in VARIANTS.items():
            columns[f"{key}.{name}"] = Column(f"{NUMBERS[number]}, {variant.title}", number, variant=name)
    for index, name in PARTS.items():
        columns[name] = Column(f"recall on {name} % (synthetic parts)", "part_recall", part=index)
    columns["minutes"] = Column("minutes of training", "train_seconds", factor=1 / 60, scored=False)
    columns["mean_ap"] = Column("image-level mAP %, val", "mean_ap", scored=False)
    for key, title in MONITORS.items():
        columns[key] = Column(title, f"monitor/{key}", factor=1.0, scored=False)
    return columns


MONITORS: dict[str, str] = {"offset": "mean offset, cells", "outside": "share of samples outside the map"}
"""What a localizer's training monitors (``monitor/offset``) that a study can show -> its column head; the last epoch's
mean."""


_OF_THE_STEP = {
    "precision": "mean_precision",
    "recall": "mean_recall",
    "precision_foreground": "precision_foreground",
    "recall_foreground": "recall_foreground",
}
"""Key of a column -> the number it shows of the study's own step."""


def find_study_column(key: str) -> Column:
    """One column of a study's table; UserError lists the keys there are."""
    columns = list_study_columns()
    if key not in columns:
        raise _user_error(f"no study column {key!r}; known: {', '.join(columns)}")
    return columns[key]


def list_kept_numbers() -> tuple[str, ...]:
    """The numbers of a scored variant that some column of a study reads."""
    return tuple(dict.fromkeys(column.number for column in list_study_columns().values() if column.scored))


def find_last_step(keys: Iterable[str]) -> str:
    """The last scored step that a run must reach for these columns of a study."""
    order = list(STEPS)
    needed = (find_study_column(key).needs for key in keys)
    return max((step for step in needed if step is not None), key=order.index, default=order[0])


def list_variants(kind: Kind) -> tuple[str, ...]:
    """The variants of one kind of artifact, as their step lists them."""
    return next(step.variants for step in STEPS.values() if step.kind == kind)


def take_scored(step: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """Variant -> its numbers, of what the score of a step holds; empty where the step was not scored."""
    variants = STEPS[step].variants if step in STEPS else ()
    return {variant: found[variant] for variant in variants if variant in found}


def choose_variant(step: str, scored: Container[str]) -> str | None:
    """The variant a paper usually prints, of those in ``scored``; None where there is none."""
    return next((name for name in STEPS[step].variants if name in scored), None)


def make_title(step: str, variant: str) -> str:
    """What people read of one variant: "CAM seeds, best threshold"."""
    return f"{STEPS[step].title}, {VARIANTS[variant].title}"


def name_metric(step: str, variant: str, number: str) -> str:
    """The name of a number in MLflow: ``seeds/fixed/miou``."""
    return f"{step}/{variant}/{number}"


def describe_metrics() -> str:
    """What a sweep may be judged by: ``cam[.best|fixed], masks[.mask], ...``."""
    return ", ".join(f"{write_metric(name)}[.{'|'.join(step.variants)}]" for name, step in STEPS.items())


def write_metric(metric: str) -> str:
    """As commands write it: ``seeds.fixed`` -> ``cam.fixed``, since ``--seeds`` are random ones."""
    step, dot, variant = metric.partition(".")
    return f"{STEPS[step].option or step}{dot}{variant}"


def read_metric(written: str) -> str:
    """The metric that a command names: ``cam.fixed`` -> ``seeds.fixed``; anything else as it is."""
    name, dot, variant = written.partition(".")
    return f"{next((key for key, step in STEPS.items() if step.option == name), name)}{dot}{variant}"


def split_metric(metric: str) -> tuple[str, str | None]:
    """``seeds.fixed`` -> step and variant, ``seeds`` -> step and None; UserError lists the choices."""
    step, _, variant = metric.partition(".")
    if step not in STEPS or (variant and variant not in STEPS[step].variants):
        raise _user_error(f"unknown metric {metric!r}; choose one of {describe_metrics()}")
    return step, variant or None


def read_miou(scores: Mapping[str, Mapping[str, Any]], metric: str) -> float | None:
    """The mIoU of ``seeds.fixed``, or of the usual variant of ``seeds``; None where a run was not scored so."""
    step, variant = split_metric(metric)
    scored = scores.get(step, {})
    name = variant or choose_variant(step, scored)
    value: float | None = scored[name].get("miou") if name is not None and name in scored else None
    return value


def explain_missing(scores: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    """Why ``read_miou`` has no number: what the score of the step says, or that there is none."""
    step, _ = split_metric(metric)
    return str(scores.get(step, {}).get(NOT_SCORED, f"nothing scored as {write_metric(metric)}"))


def _user_error(message: str) -> UserError:
    """Only here does this table import anything: ``wsss --help`` prints from it and answers at once."""
    from wsss_ray.config import UserError

    return UserError(message)
