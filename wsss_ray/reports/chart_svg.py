"""Charts of a report page as inline SVG; colours come from the page's style, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 38
_MAX_NAME = 16


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


def chart(
    series: Sequence[Series],
    title: str,
    x_title: str,
    y_title: str,
    marks: Sequence[Mark] = (),
    x_names: Sequence[str] | None = None,
    zero: bool = False,
    whole: bool = False,
    log: bool = False,
) -> str:
    """Lines over x; ``x_names`` names x = 0, 1, 2 ...; ``whole`` ticks x at integers; ``zero`` starts y at 0; ``log``
    spaces x, all positive, by its logarithm and ticks it at the values themselves.

    An empty string where there is no point.
    """
    points = [
        (x, y, e) for one in series for x, y, e in zip(one.x, one.y, one.errors or [None] * len(one.x), strict=True)
    ]
    if not points:
        return ""
    y_low, y_high = min(y - (e or 0) for _, y, e in points), max(y + (e or 0) for _, y, e in points)
    y_ticks = ticks(min(0.0, y_low) if zero else y_low, y_high)
    x_low, x_high = min(x for x, _, _ in points), max(x for x, _, _ in points)
    if x_names is not None:
        x_ticks = [float(place) for place in range(len(x_names))]
        x_low, x_high = -0.4, len(x_names) - 0.6
    else:
        x_ticks = [tick for tick in ticks(x_low, x_high, inside=True) if not whole or tick == round(tick)]
    if log:
        x_ticks = sorted({x for x, _, _ in points})
        x_low, x_high = math.log10(x_low), math.log10(x_high)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5

    def at_x(x: float) -> float:
        return LEFT + ((math.log10(x) if log else x) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    body = []
    for tick in y_ticks:
        body.append(_line(LEFT, at_y(tick), WIDTH - RIGHT, at_y(tick), "grid"))
        body.append(_text(LEFT - 6, at_y(tick) + 3.5, short(tick), "end"))
    for place, tick in enumerate(x_ticks):
        name = short(tick) if x_names is None else cut(x_names[place])
        body.append(_text(at_x(tick), HEIGHT - BOTTOM + 15, name, "middle"))
    body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, x_title, "middle", "axis"))
    for one in series:
        body.append(_series(one, at_x, at_y))
    told: list[tuple[float, float]] = []
    for mark in marks:
        x, y = at_x(mark.x), at_y(mark.y)
        anchor = "end" if x > WIDTH * 0.7 else "start"
        above = max(TOP + 8, y - 7)
        crowded = any(abs(x - other) < 7 * _MAX_NAME and abs(above - height) < 14 for other, height in told)
        told.append((x, y + 19 if crowded else above))
        body.append(f'<circle class="fill{mark.colour}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        body.append(_text(x + (8 if anchor == "start" else -8), told[-1][1], mark.text, anchor, "mark"))
    legend = "".join(
        f'<span class="key"><i class="back{one.colour}"></i>{escape(one.name)}</span>' for one in series if one.name
    )
    return _figure(title, f"{y_title}: {title}", legend, WIDTH, HEIGHT, body)


def _series(one: Series, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> str:
    parts = []
    where = [(at_x(x), at_y(y)) for x, y in zip(one.x, one.y, strict=True)]
    if one.line and len(where) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        parts.append(f'<polyline class="line{one.colour}" points="{path}"/>')
    for (x, _), y, error in zip(where, one.y, one.errors, strict=False):
        if error:
            low, high = at_y(y - error), at_y(y + error)
            parts.append(_line(x, low, x, high, f"line{one.colour}"))
            parts += [_line(x - 4, end, x + 4, end, f"line{one.colour}") for end in (low, high)]
    if one.dots or len(where) == 1:
        for (x, y), value in zip(where, one.y, strict=True):
            hint = f"<title>{escape(one.name)} {value:.2f}</title>"
            parts.append(f'<circle class="fill{one.colour}" cx="{x:.1f}" cy="{y:.1f}" r="4">{hint}</circle>')
    return "".join(parts)


def confusion_chart(matrix: np.ndarray, labels: Sequence[str]) -> str:
    """(K, K + 1) counts as shares of each truth label; numbers in the cells where there is room."""
    count = len(labels)
    unknown = matrix[:, -1].any()
    columns = [*labels, "unknown"] if unknown else list(labels)
    cell = 40 if count <= 8 else 28 if count <= 22 else 12
    font = 11 if cell >= 28 else 9
    names_width = max(len(cut(name)) for name in columns) * font * 0.6 + 8
    width, height = names_width + cell * len(columns) + 4, names_width + cell * count + 4
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    body = []
    for place, name in enumerate(columns):
        x = names_width + cell * (place + 0.5) + font * 0.35
        body.append(
            f'<text class="label" font-size="{font}" transform="translate({x:.1f},{names_width - 6:.1f}) rotate(-90)">'
            f"{escape(cut(name))}</text>"
        )
    for row, name in enumerate(labels):
        y = names_width + cell * row
        middle = y + cell / 2 + font * 0.35
        body.append(
            f'<text class="label" font-size="{font}" x="{names_width - 6:.1f}" y="{middle:.1f}" text-anchor="end">'
            f"{escape(cut(name))}</text>"
        )
        for column, other in enumerate(columns):
            share, x = float(shares[row, column]), names_width + cell * column
            if share < 0.0005 and count > 22:
                continue
            strength = math.sqrt(share)
            hint = f"<title>{escape(name)} → {escape(other)}: {100 * share:.1f} %</title>"
            body.append(
                f'<rect class="{"cell hit" if row == column else "cell"}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1}" '
                f'height="{cell - 1}" fill-opacity="{0.04 + 0.96 * strength:.2f}">{hint}</rect>'
            )
            if cell >= 28 and share >= 0.005:
                style = "over" if strength > 0.6 else "label"
                body.append(
                    f'<text class="{style}" font-size="{font}" x="{x + cell / 2:.1f}" y="{middle:.1f}" '
                    f'text-anchor="middle" pointer-events="none">{100 * share:.0f}</text>'
                )
    style = f'style="width:{width:.0f}px;max-width:none"' if count > 8 else f'style="max-width:{1.2 * width:.0f}px"'
    return (
        f'<div class="scroll"><svg class="confusion" viewBox="0 0 {width:.0f} {height:.0f}" {style} role="img" '
        f'aria-label="confusion matrix">{"".join(body)}</svg></div>'
    )


def ticks(low: float, high: float, count: int = 5, inside: bool = False) -> list[float]:
    """About ``count`` round numbers that enclose [low, high] (or lie within it)."""
    if high <= low:
        high = low + (abs(low) or 1.0) * 0.1
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = (math.ceil, math.floor) if inside else (math.floor, math.ceil)
    start, stop = (
        first(low / step - 1e-9 if inside else low / step + 1e-9),
        last(high / step + (1e-9 if inside else -1e-9)),
    )
    return [round(place * step, 10) for place in range(start, max(stop, start + (0 if inside else 1)) + 1)]


def short(value: float) -> str:
    """A number for an axis."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def cut(name: str) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _figure(title: str, label: str, legend: str, width: float, height: float, body: Sequence[str]) -> str:
    size = f"0 0 {width:.0f} {height:.0f}"
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{legend}</figcaption>'
        f'<svg viewBox="{size}" role="img" aria-label="{escape(label)}">{"".join(body)}</svg></figure>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
