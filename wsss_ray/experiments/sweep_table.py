# SPDX-License-Identifier: Apache-2.0
"""The closing table and the figure of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from wsss_ray import storage
from wsss_ray.experiments.sweep import Plan
from wsss_ray.experiments.sweep_outcomes import Line, Outcome, find_best, group_lines, order_outcomes
from wsss_ray.experiments.sweep_space import Axis, format_value, name_point, shorten_keys
from wsss_ray.reports.figure import Axes, Mark, Series, draw_charts
from wsss_ray.reports.terminal import build_text_table
from wsss_ray.score.names import STEPS, make_title, split_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "sweep.png"
"""In the sweep's folder."""


def list_lines(plan: Plan, outcomes: Sequence[Outcome]) -> list[Line]:
    """The outcomes of a sweep, a line per point, in the order of the plan."""
    return group_lines(order_outcomes(outcomes, plan.list_points() if plan.search != "tpe" else []))


def describe_sweep(plan: Plan, outcomes: Sequence[Outcome], folder: str) -> list[Table | str]:
    """What a command prints of a sweep whose results lie in ``folder``: its table, the best point, the figure."""
    lines = list_lines(plan, outcomes)
    best = find_best(lines)
    parts: list[Table | str] = [build_closing_table(plan, lines)]
    if best is not None:
        parts.append(f"best:     {name_point(best.point)}: {describe_metric(plan.metric)} {best.mean:.1f}")
    return [*parts, f"figure:   {storage.join(folder, FIGURE)}", "compare:  wsss compare RUN OTHER"]


def build_closing_table(plan: Plan, lines: Sequence[Line]) -> Table:
    """One row per point."""
    headings = list_headings(plan.axes, plan.metric)
    title = f"sweep of {plan.recipe.name} ({plan.recipe.scale}), {plan.search}"
    return build_text_table(title, headings, format_rows(lines, plan.axes), range(len(headings) - 1))


def describe_metric(metric: str) -> str:
    """What people read of a sweep's metric: "CAM seeds mIoU %"."""
    step, variant = split_metric(metric)
    return f"{STEPS[step].title if variant is None else make_title(step, variant)} mIoU %"


def list_headings(axes: Sequence[Axis], metric: str) -> list[str]:
    """Column titles of ``format_rows``."""
    keys = shorten_keys([axis.key for axis in axes]).values()
    return [*keys, describe_metric(metric), "± (random seeds)", "seconds", "steps"]


def format_rows(lines: Sequence[Line], axes: Sequence[Axis]) -> list[list[str]]:
    """The closing table as text, one line per point."""
    table = []
    for line in lines:
        spread = f"{line.std:.1f} ({len(line.values)})" if line.std is not None else ""
        number = "-" if line.mean is None else f"{line.mean:.1f}"
        seconds = f"{sum(one.seconds for one in line.outcomes):.0f}"
        table.append(
            [*(format_value(line.point[axis.key]) for axis in axes), number, spread, seconds, write_remark(line)]
        )
    return table


def write_remark(line: Line) -> str:
    """Which steps were computed and which loaded, or why there is no number."""
    bad = dict.fromkeys(f"{one.state}: {one.reason}" for one in line.outcomes if one.state != "finished")
    if bad:
        return "; ".join(bad)
    computed = list(dict.fromkeys(title for one in line.outcomes for title in one.computed))
    reused = [title for title in dict.fromkeys(t for one in line.outcomes for t in one.reused) if title not in computed]
    parts = [f"computed {', '.join(computed)}"] if computed else []
    parts += [f"reused {', '.join(reused)}"] if reused else []
    return "; ".join(parts)


def draw_figure(plan: Plan, lines: Sequence[Line]) -> Figure:
    """The metric over the swept keys: one chart with a line per value of a second axis, or a chart per key."""
    label = describe_metric(plan.metric)
    names = shorten_keys([axis.key for axis in plan.axes])
    shown = [line for line in lines if line.values]
    if plan.search == "grid" and len(plan.axes) <= 2:
        *others, first = sorted((axis.key for axis in plan.axes), key=lambda key: _drawing_order(plan.axes, key))
        series = _group_series(shown, first, others[0], names) if others else [Series("", _marks(shown, first))]
        return draw_charts([(series, Axes(plan.recipe.name, names[first], label))])
    return draw_charts(
        [
            (
                [Series("", _marks(shown, axis.key), joined=False)],
                Axes(plan.recipe.name, names[axis.key], label, axis.log),
            )
            for axis in plan.axes
        ]
    )


def _group_series(lines: Sequence[Line], first: str, other: str, names: dict[str, str]) -> list[Series]:
    """A line over ``first`` for every value of ``other``."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(f"{names[other]} {format_value(line.point[other])}", []).append(line)
    return [Series(name, _marks(group, first)) for name, group in groups.items()]


def _marks(lines: Sequence[Line], key: str) -> tuple[Mark, ...]:
    return tuple(Mark(_place(line.point[key]), line.values) for line in lines)


def _place(value: Any) -> float | str:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else format_value(value)


def _drawing_order(axes: Sequence[Axis], key: str) -> tuple[bool, int]:
    """Sorts the axis that is drawn along x last: numbers before words, then the one with most values."""
    values = next(axis.values for axis in axes if axis.key == key)
    return all(not isinstance(_place(value), str) for value in values), len(values)
