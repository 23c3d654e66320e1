"""A study: the rows of one published table or figure, each a recipe with its published numbers beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from wsss_ray.recipe import Recipe, Scale, up_to

Metric = Literal["seeds", "masks", "segmentation", "pixel_accuracy", "params"]
"""seeds: mIoU of class maps at a threshold; masks: of refined pseudo masks; segmentation: of predictions on val;
params: millions."""
Profile = Literal["paper", "released"]


@dataclass(frozen=True)
class Row:
    """One line of a table, or one point of a figure."""

    name: str
    """As the paper prints it."""
    recipe: Recipe | None = None
    """None: another method's number, quoted and not run."""
    published: dict[Metric, float] = field(default_factory=dict)
    """In per cent (params in millions); empty where the paper prints none (values only in a figure)."""
    note: str = ""
    """What is not stated, or differs from the paper."""


@dataclass(frozen=True)
class Study:
    """A table or figure of a paper at one scale."""

    name: str
    """``paper.table``, e.g. ``l2g.table1``."""
    title: str
    source: str
    """Paper, table or figure, data set and split of the published numbers."""
    metric: Metric
    """The one the rows are ordered by."""
    rows: tuple[Row, ...]
    axis: str | None = None
    """For figures: what the points vary; row names are then the values."""
    variant: str | None = None
    """Which scored variant the metric is read from (``fixed``, ``best``, ``mask``, ``single_scale``, ``crf`` ...);
    None: the usual one."""
    also: tuple[str, ...] = ()
    """Further columns of ours (``study_report.METRICS``), which no paper prints for these rows."""


OF_SEEDS = frozenset(
    {
        "seeds",
        "seeds.fixed",
        "precision",
        "recall",
        "precision.fixed",
        "recall.fixed",
        "precision_foreground",
        "recall_foreground",
        "precision_foreground.fixed",
        "recall_foreground.fixed",
        "heads",
        "bodies",
        "minutes",
    }
)
"""Columns that a run may answer with its seeds alone."""


def needed(study: Study, recipe: Recipe) -> Recipe:
    """The recipe without the steps that no column of the study reads: masks and networks behind seeds, and so on."""
    columns = {study.metric, *study.also, *(key for row in study.rows for key in row.published)}
    if columns <= OF_SEEDS:
        return up_to(recipe, "seeds")
    return up_to(recipe, "masks") if columns <= OF_SEEDS | {"masks"} else recipe


StudyFunction = Callable[[Scale, Profile], Study]
"""What a file of ``studies/`` lists in ``STUDIES = {"table1": table1, ...}``."""
