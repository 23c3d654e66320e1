# SPDX-License-Identifier: Apache-2.0
"""Finished runs as a table, a line each."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from wsss_ray.artifacts.usage import RunSummary
from wsss_ray.config import UserError
from wsss_ray.reports.layout import format_percent
from wsss_ray.reports.terminal import build_text_table
from wsss_ray.score.names import STEPS, read_metric, write_metric


def sort_runs(runs: Sequence[RunSummary], key: str) -> list[RunSummary]:
    """By time or by name, ascending, or by the score of a step, the best first; UserError for another key."""
    key = read_metric(key)
    if key in STEPS:
        return sorted(runs, key=lambda run: -run.scores.get(key, -1.0))
    if key not in ("finished", "name"):
        raise UserError(f"--sort {key}: choose finished, name, {', '.join(map(write_metric, STEPS))}")
    return sorted(runs, key=lambda run: str(getattr(run, key)))


def build_run_table(runs: Sequence[RunSummary]) -> Table:
    """Name, scale, seed, the usual score of every step, and when it ended."""
    headings = ("run", "scale", "seed", *(step.title for step in STEPS.values()), "finished")
    rows = [
        (run.name, run.scale, str(run.seed), *(_show(run.scores.get(step)) for step in STEPS), run.finished)
        for run in runs
    ]
    return build_text_table(f"{len(runs)} runs, mIoU in %", headings, rows, numeric=range(2, len(headings) - 1))


def _show(score: float | None) -> str:
    return "-" if score is None else format_percent(score)
