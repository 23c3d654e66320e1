# SPDX-License-Identifier: Apache-2.0
"""Charts of a report page as inline SVG; colours come from the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from wsss_ray.reports.rendering import render
from wsss_ray.reports.ticks import find_ticks

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 38
_MAX_NAME = 16
Shape = dict[str, Any]
"""A line, dot, path or word: what ``templates/charts.html`` draws by its ``kind``."""


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int
    """1 to 4: the page's series colours."""
    errors: Sequence[float | None] = ()
    """Half the height of the error bar at every point; empty for none."""
    dots: bool = False
    line: bool = True


@dataclass(frozen=True)
class Mark:
    """A point with a word beside it."""

    x: float
    y: float
    text: str
    colour: int


@dataclass(frozen=True)
class Axes:
    """What is written around a chart, and how its axes are divided."""

    title: str
    x: str
    y: str
    names: Sequence[str] | None = None
    """Names of x = 0, 1, 2 ..."""
    zero: bool = False
    """y starts at 0."""
    whole: bool = False
    """x is labelled at whole numbers."""
    log: bool = False
    """x, all positive, is spaced by its logarithm and labelled at the values themselves."""


class _Frame:
    """Where values lie on the canvas, and where its axes are labelled."""

    def __init__(self, points: Sequence[tuple[float, float, float | None]], axes: Axes) -> None:
        y_low, y_high = min(y - (e or 0) for _, y, e in points), max(y + (e or 0) for _, y, e in points)
        self.y_ticks = find_ticks(min(0.0, y_low) if axes.zero else y_low, y_high)
        self.log = axes.log
        xs = sorted({x for x, _, _ in points})
        low, high = xs[0], xs[-1]
        if axes.names is not None:
            self.x_ticks = [float(place) for place in range(len(axes.names))]
            low, high = -0.4, len(axes.names) - 0.6
        elif axes.log:
            self.x_ticks, low, high = xs, math.log10(low), math.log10(high)
        else:
            ticks = find_ticks(low, high, inside=True)
            self.x_ticks = [tick for tick in ticks if not axes.whole or tick == round(tick)]
        self.x_low, self.x_high = (low - 0.5, high + 0.5) if low == high else (low, high)

    def at_x(self, x: float) -> float:
        """The place of a value along x."""
        share = ((math.log10(x) if self.log else x) - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def at_y(self, y: float) -> float:
        """The place of a value along y, which points down."""
        share = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def draw_chart(series: Sequence[Series], axes: Axes, marks: Sequence[Mark] = ()) -> Markup:
    """Lines over x, and ``marks`` with their words; an empty string where there is no point."""
    points = [
        (x, y, e) for one in series for x, y, e in zip(one.x, one.y, one.errors or [None] * len(one.x), strict=True)
    ]
    if not points:
        return Markup("")
    frame = _Frame(points, axes)
    shapes: list[Shape] = []
    for tick in frame.y_ticks:
        shapes.append(_line(LEFT, frame.at_y(tick), WIDTH - RIGHT, frame.at_y(tick), "grid"))
        shapes.append(_words(LEFT - 6, frame.at_y(tick) + 3.5, format_tick(tick), "end"))
    for place, tick in enumerate(frame.x_ticks):
        name = format_tick(tick) if axes.names is None else shorten(axes.names[place])
        shapes.append(_words(frame.at_x(tick), HEIGHT - BOTTOM + 15, name, "middle"))
    shapes.append(_words((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, axes.x, "middle", "axis"))
    shapes += [shape for one in series for shape in _series(one, frame)]
    shapes += _marks(marks, frame)
    legend = [(one.colour, one.name) for one in series if one.name]
    return render("charts", "chart", axes=axes, size=(WIDTH, HEIGHT), legend=legend, shapes=shapes)


def _marks(marks: Sequence[Mark], frame: _Frame) -> list[Shape]:
    """Points with their words; a word that would lie on another one goes below its point."""
    shapes: list[Shape] = []
    taken: list[tuple[float, float]] = []
    for mark in marks:
        x, y = frame.at_x(mark.x), frame.at_y(mark.y)
        anchor = "end" if x > WIDTH * 0.7 else "start"
        above = max(TOP + 8, y - 7)
        crowded = any(abs(x - other) < 7 * _MAX_NAME and abs(above - height) < 14 for other, height in taken)
        taken.append((x, y + 19 if crowded else above))
        shapes.append(_dot(x, y, mark.colour, 4.5))
        shapes.append(_words(x + (8 if anchor == "start" else -8), taken[-1][1], mark.text, anchor, "mark"))
    return shapes


def _series(one: Series, frame: _Frame) -> list[Shape]:
    shapes: list[Shape] = []
    where = [(frame.at_x(x), frame.at_y(y)) for x, y in zip(one.x, one.y, strict=True)]
    if one.line and len(where) > 1:
        shapes.append({"kind": "path", "colour": one.colour, "points": where})
    for (x, _), y, error in zip(where, one.y, one.errors, strict=False):
        if error:
            low, high = frame.at_y(y - error), frame.at_y(y + error)
            shapes.append(_line(x, low, x, high, f"line{one.colour}"))
            shapes += [_line(x - 4, end, x + 4, end, f"line{one.colour}") for end in (low, high)]
    if one.dots or len(where) == 1:
        for (x, y), value in zip(where, one.y, strict=True):
            shapes.append(_dot(x, y, one.colour, 4, f"{one.name} {value:.2f}"))
    return shapes


def draw_confusion(matrix: np.ndarray, labels: Sequence[str]) -> Markup:
    """(K, K + 1) counts as shares of each truth label; numbers in the cells where there is room."""
    count = len(labels)
    columns = [*labels, "unknown"] if matrix[:, -1].any() else list(labels)
    cell = 40 if count <= 8 else 28 if count <= 22 else 12
    font = 11 if cell >= 28 else 9
    left = max(len(shorten(name)) for name in columns) * font * 0.6 + 8
    width, height = left + cell * len(columns) + 4, left + cell * count + 4
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rows = []
    for row, name in enumerate(labels):
        y = left + cell * row
        cells = [
            {
                **{"x": left + cell * column, "y": y, "hit": row == column, "strength": math.sqrt(share)},
                "hint": f"{name} → {other}: {100 * share:.1f} %",
                "number": f"{100 * share:.0f}" if cell >= 28 and share >= 0.005 else None,
            }
            for column, (other, share) in enumerate(zip(columns, shares[row].tolist(), strict=False))
            if share >= 0.0005 or count <= 22
        ]
        rows.append((y + cell / 2 + font * 0.35, shorten(name), cells))
    return render(
        "charts",
        "confusion",
        font=font,
        cell=cell,
        left=left,
        width=f"{width:.0f}",
        height=f"{height:.0f}",
        style=f"width:{width:.0f}px;max-width:none" if count > 8 else f"max-width:{1.2 * width:.0f}px",
        columns=[(left + cell * (k + 0.5) + font * 0.35, shorten(name)) for k, name in enumerate(columns)],
        rows=rows,
    )


def format_tick(value: float) -> str:
    """A number for an axis."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def shorten(name: str) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Shape:
    return {"kind": "line", "x1": x1, "y1": y1, "x2": x2, "y2": y2, "style": style}


def _words(x: float, y: float, text: str, anchor: str, style: str = "tick") -> Shape:
    return {"kind": "words", "x": x, "y": y, "text": text, "anchor": anchor, "style": style}


def _dot(x: float, y: float, colour: int, radius: float, hint: str = "") -> Shape:
    return {"kind": "dot", "x": x, "y": y, "colour": colour, "radius": radius, "hint": hint}
