# SPDX-License-Identifier: Apache-2.0
"""The table of a study: published numbers beside ours, row by row, and how far both rank the rows alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from wsss_ray.reports.study_results import STALE
from wsss_ray.score.names import Column, choose_variant, find_study_column, list_study_columns
from wsss_ray.score.rank import Agreement, measure_agreement

Status = Literal["finished", "partly", "failed", "not run", "quoted"]


@dataclass(frozen=True)
class Cell:
    """One column of one row."""

    published: float | None
    ours: tuple[float, ...]
    """One number per finished seed, in per cent (parameters in millions)."""
    protocol: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return float(np.mean(self.ours)) if self.ours else None

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds (of a sample), None for fewer than two."""
        return float(np.std(self.ours, ddof=1)) if len(self.ours) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours less published."""
        return None if self.mean is None or self.published is None else self.mean - self.published


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    name: str
    cells: dict[str, Cell]
    status: Status
    reason: str
    """Why a seed failed."""
    note: str
    num_stale: int = 0
    """Seeds of another recipe, data or version, which the cells leave out."""


@dataclass(frozen=True)
class StudyTable:
    """A study's rows with their numbers."""

    name: str
    title: str
    source: str
    scale: str
    profile: str
    axis: str | None
    metric: str
    """The column the rows are ranked by."""
    metrics: tuple[str, ...]
    """Keys of ``score.names.study_columns``, ``metric`` first."""
    lines: tuple[Line, ...]
    ranking: Agreement | None
    """None where fewer than two rows have both numbers."""
    settings: tuple[str, ...] = ()
    data: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a seed of some row failed."""
        return any(line.status in ("failed", "partly") for line in self.lines)

    def has_published(self, metric: str) -> bool:
        """Whether the paper prints this column for any row."""
        return any(line.cells[metric].published is not None for line in self.lines)


def summarize_study(results: Mapping[str, Any]) -> StudyTable:
    """The table of what a study keeps in ``results.json``."""
    metric = results["metric"]
    published = {key for row in results["rows"] for key in row["published"]}
    printed = (key for key in list_study_columns() if key in published and key != metric)
    metrics = tuple(dict.fromkeys((metric, *printed, *results.get("also", ()))))
    lines = tuple(_summarize_row(row, metrics, metric, results.get("variant")) for row in results["rows"])
    both = [(cell.published, cell.ours) for cell in (line.cells[metric] for line in lines)]
    ranked = [(value, ours) for value, ours in both if value is not None and ours]
    return StudyTable(
        name=results["study"],
        title=results["title"],
        source=results["source"],
        scale=results["scale"],
        profile=results["profile"],
        axis=results.get("axis"),
        metric=metric,
        metrics=metrics,
        lines=lines,
        ranking=measure_agreement([value for value, _ in ranked], [ours for _, ours in ranked])
        if len(ranked) > 1
        else None,
        settings=tuple(results.get("settings", ())),
        data=results.get("data"),
    )


def _summarize_row(row: Mapping[str, Any], metrics: Sequence[str], metric: str, variant: str | None) -> Line:
    seeds = row.get("seeds", {})
    finished = [seeds[key] for key in sorted(seeds, key=int) if seeds[key]["status"] == "finished"]
    failed = [seed for seed in seeds.values() if seed["status"] == "failed"]
    num_stale = sum(seed["status"] == STALE for seed in seeds.values())
    cells = {}
    for key in metrics:
        found = [read_column(seed, key, metric, variant) for seed in finished]
        values = tuple(value for value, _ in found if value is not None)
        protocols = dict.fromkeys(text for _, text in found if text)
        cells[key] = Cell(row["published"].get(key), values, " | ".join(protocols) or None)
    status: Status = "finished" if finished else "failed" if failed else "not run" if row["runs"] else "quoted"
    if finished and failed:
        status = "partly"
    reasons = dict.fromkeys(seed["reason"] for seed in failed)
    return Line(row["name"], cells, status, "; ".join(reasons), row.get("note", ""), num_stale)


def read_column(
    seed: Mapping[str, Any], key: str, metric: str, variant: str | None = None
) -> tuple[float | None, str | None]:
    """(number, its protocol) of one column of a finished seed; (None, None) where it has none.

    ``metric`` is the study's own column and ``variant`` the one it is read from, None for the usual one. A column of
    the study's own step, such as precision, is read from the step of ``metric``.
    """
    column = find_study_column(key)
    if not column.scored:
        value = seed.get(column.number)
        return (None if value is None else column.factor * value), None
    wanted = column.variant or (variant if column.own_variant or key == metric else None)
    for step in column.steps or find_study_column(metric).steps:
        with_number = {
            name: values
            for name, values in seed["scores"].get(step, {}).items()
            if values.get(column.number) is not None
        }
        name = choose_variant(step, with_number) if wanted is None else wanted
        if name is not None and name in with_number:
            return _scaled(column, with_number[name]), with_number[name]["protocol"]
    return None, None


def _scaled(column: Column, values: Mapping[str, Any]) -> float | None:
    value = values[column.number] if column.part is None else values[column.number].get(column.part)
    return None if value is None else column.factor * value
