# SPDX-License-Identifier: Apache-2.0
"""A study: the rows of one published table or figure, each a recipe with its published numbers beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from wsss_ray.config import Profile as Profile
from wsss_ray.recipe import Recipe, Scale, cut_after
from wsss_ray.score.names import find_last_step, find_study_column

Metric = str
"""A column of a study's table, a key of ``score.names.list_study_columns``: ``seeds`` (mIoU of class maps at a
threshold), ``masks`` (of pseudo masks), ``segmentation`` (of predictions on val), ``pixel_accuracy``,
``params`` (millions) ..."""


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
    """A table or figure of a paper at one scale; UserError for a column that there is not."""

    name: str
    """``paper.table``, e.g. ``l2g.table1``."""
    title: str
    source: str
    """Paper, table or figure, data set and split of the published numbers."""
    metric: Metric
    """The column the rows are ranked by."""
    rows: tuple[Row, ...]
    axis: str | None = None
    """For figures: what the points vary; row names are then the values."""
    variant: str | None = None
    """Which scored variant the metric is read from (``fixed``, ``best``, ``mask``, ``single_scale``, ``crf`` ...);
    None: the usual one."""
    also: tuple[Metric, ...] = ()
    """Further columns of ours, which no paper prints for these rows."""

    def __post_init__(self) -> None:
        for key in self.columns:
            find_study_column(key)

    @property
    def columns(self) -> tuple[Metric, ...]:
        """Every column of its table."""
        printed = (key for row in self.rows for key in row.published)
        return tuple(dict.fromkeys((self.metric, *self.also, *printed)))


def shorten_recipe(study: Study, recipe: Recipe) -> Recipe:
    """The recipe without the steps that no column of the study reads: masks and networks behind seeds, and so on."""
    return cut_after(recipe, find_last_step(study.columns))


StudyFunction = Callable[[Scale, Profile], Study]
"""What a file of ``studies/`` lists in ``STUDIES = {"table1": table1, ...}``."""
