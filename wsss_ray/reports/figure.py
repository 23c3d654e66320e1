# SPDX-License-Identifier: Apache-2.0
"""Figures for papers, by matplotlib: scores over a setting, error bars over seeds, published values beside them.

Nothing of the machine enters them: no display, no user's style, no date; equal numbers give equal bytes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, stdev
from typing import TYPE_CHECKING

from wsss_ray.config import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Plot
    from matplotlib.figure import Figure

COLOURS = ("#1f69c1", "#d95f0e", "#168a5a", "#983c96", "#be2d37", "#5a6473")
"""Colours of the series, told apart also by those who confuse red and green."""
SIZE = (5.2, 3.4)
"""Inches of one chart."""
DOTS = 200
"""Pixels per inch of a PNG."""
KINDS = ("png", "svg", "pdf")
_STAMPS = {"png": ("Software",), "svg": ("Date",), "pdf": ("CreationDate", "Creator", "Producer")}
_MOST_LABELS, _LONGEST_LABEL = 10, 18
_STYLE = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib
    "font.size": 9,
    "text.parse_math": False,  # names of rows are no formulas
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e4e6ea",
    "svg.hashsalt": "wsss-ray",
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Mark:
    """One place of a series: a number or a word, and a value per seed."""

    x: float | str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation of a sample over seeds, 0 for one."""
        return stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Series:
    """A line of a chart, or its points alone."""

    name: str
    marks: tuple[Mark, ...]
    joined: bool = True
    dashed: bool = False
    """For published values."""


@dataclass(frozen=True)
class Axes:
    """What is written around a chart."""

    title: str
    x: str
    y: str
    log: bool = False
    """Space x, where all places are positive numbers, by its logarithm."""


Chart = tuple[Sequence[Series], Axes]


def draw_charts(charts: Sequence[Chart], columns: int = 2) -> Figure:
    """Charts as one figure, ``columns`` side by side."""
    with _own_style():
        from matplotlib.figure import Figure

        columns = min(columns, len(charts))
        rows = -(-len(charts) // columns)
        figure = Figure(figsize=(SIZE[0] * columns, SIZE[1] * rows), dpi=DOTS, layout="constrained")
        for place, (series, axes) in enumerate(charts, start=1):
            _draw_chart(figure.add_subplot(rows, columns, place), series, axes)
        return figure


def encode_figure(figure: Figure, kind: str = "png") -> bytes:
    """The bytes of a figure's file of one of ``KINDS``; UserError for another."""
    if kind not in KINDS:
        raise UserError(f"figures are not written as .{kind}; choose {', '.join(f'.{one}' for one in KINDS)}")
    stream = io.BytesIO()
    with _own_style():
        figure.savefig(stream, format=kind, metadata=dict.fromkeys(_STAMPS[kind]))
    return stream.getvalue()


@contextmanager
def _own_style() -> Iterator[None]:
    """Matplotlib's defaults and ours, whatever the user's configuration says."""
    import matplotlib.style

    with matplotlib.style.context(_STYLE, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _draw_chart(plot: Plot, series: Sequence[Series], axes: Axes) -> None:
    """One chart; places that are not all numbers stand in the order in which they come."""
    marks = [mark for one in series for mark in one.marks if mark.values]
    numeric = all(isinstance(mark.x, (int, float)) for mark in marks)
    words = list(dict.fromkeys(str(mark.x) for mark in marks))
    for one, colour in zip(series, _repeat(COLOURS, len(series)), strict=True):
        _draw_series(plot, one, colour, None if numeric else words)
    plot.set_title(axes.title, loc="left")
    plot.set_xlabel(axes.x)
    plot.set_ylabel(axes.y)
    if numeric:
        places = sorted({float(mark.x) for mark in marks})
        if axes.log and places and places[0] > 0:
            plot.set_xscale("log")
        if 0 < len(places) <= _MOST_LABELS and _have_room(places, plot.get_xscale() == "log"):
            plot.set_xticks(places, [f"{place:.4g}" for place in places], minor=False)
            plot.set_xticks([], minor=True)
    else:
        slanted = max(map(len, words)) * len(words) > 50
        plot.set_xticks(range(len(words)), [_shorten(word) for word in words])
        if slanted:
            for label in plot.get_xticklabels():
                label.set(rotation=30, ha="right", rotation_mode="anchor")
        plot.set_xlim(-0.5, len(words) - 0.5)
    plot.margins(y=0.12)
    if len(series) > 1:
        plot.legend(frameon=False)


def _draw_series(plot: Plot, one: Series, colour: str, words: list[str] | None) -> None:
    points = [
        (float(mark.x) if words is None else float(words.index(str(mark.x))), mark) for mark in one.marks if mark.values
    ]
    if one.joined and words is None:
        points = sorted(points, key=lambda point: point[0])
    plot.errorbar(
        [place for place, _ in points],
        [mark.mean for _, mark in points],
        yerr=[mark.spread for _, mark in points] if any(mark.spread for _, mark in points) else None,
        color=colour,
        linestyle="none" if not one.joined else "dashed" if one.dashed else "solid",
        marker="o",
        markersize=5,
        markerfacecolor="white" if one.dashed else colour,
        capsize=3,
        label=_name_series(one.name),
    )


def _name_series(name: str) -> str:
    """A name for the legend, from which matplotlib leaves out what begins with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def _have_room(places: Sequence[float], log: bool) -> bool:
    """Whether labels at the values themselves would not lie on each other."""
    spots = [math.log10(place) if log else place for place in places]
    whole = spots[-1] - spots[0]
    return all(b - a > 0.08 * whole for a, b in zip(spots, spots[1:], strict=False))


def _shorten(word: str) -> str:
    return word if len(word) <= _LONGEST_LABEL else word[: _LONGEST_LABEL - 1] + "…"


def _repeat(colours: Sequence[str], count: int) -> list[str]:
    return [colours[place % len(colours)] for place in range(count)]


def spans_decades(values: Sequence[float]) -> bool:
    """Whether an axis of these values needs a logarithm: all positive, the largest over 20 times the smallest."""
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)
