"""Small charts drawn with Pillow alone: scores over a setting, error bars over seeds, published values beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from PIL import Image, ImageDraw, ImageFont

_INK, _SOFT, _GRID, _PAPER = (38, 42, 51), (110, 116, 128), (228, 230, 234), (255, 255, 255)
COLOURS = ((31, 105, 193), (217, 95, 14), (22, 138, 90), (152, 60, 150), (190, 45, 55), (90, 100, 115))
"""Colours of the series, told apart also by those who confuse red and green."""
_SCALE = 2
"""Pixels per unit, so that images are sharp on dense screens; lines are drawn four times as fine and averaged."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 46


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


def chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    log: bool = False,
    size: tuple[int, int] = (520, 340),
) -> Image.Image:
    """One chart of ``size`` units (twice as many pixels); places that are not all numbers stand as they come."""
    width, height = size
    marks = [mark for one in series for mark in one.marks if mark.values]
    numeric = all(isinstance(mark.x, (int, float)) for mark in marks)
    log = log and numeric and all(float(mark.x) > 0 for mark in marks)
    words = list(dict.fromkeys(str(mark.x) for mark in marks))
    legend = _TOP + (20 if len(series) > 1 else 0)

    def place(x: float | str) -> float:
        if not numeric:
            return float(words.index(str(x)))
        return math.log10(float(x)) if log else float(x)

    xs = [place(mark.x) for mark in marks] or [0.0]
    ys = [mark.mean + side * mark.spread for mark in marks for side in (-1, 1)] or [0.0, 1.0]
    x_low, x_high = _widened(min(xs), max(xs), 0.06 if numeric else 0.0, 0.5)
    y_low, y_high = _widened(min(ys), max(ys), 0.12, 0.5)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (width - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (height - legend - _BOTTOM)
        return _LEFT + across, height - _BOTTOM - up

    fine = _SCALE * 4
    canvas = Image.new("RGB", (width * fine, height * fine), _PAPER)
    draw = ImageDraw.Draw(canvas)
    texts: list[tuple[tuple[float, float], str, str, tuple[int, int, int], int]] = []
    texts.append(((_LEFT, 14), title, "lm", _INK, 14))
    for y in ticks(y_low, y_high):
        _stroke(draw, [at(x_low, y), at(x_high, y)], _GRID, 1, fine)
        texts.append(((_LEFT - 7, at(0, y)[1]), f"{y:g}", "rm", _SOFT, 11))
    floor = height - _BOTTOM
    for x, text in _places(marks, numeric, log, words, x_low, x_high, width - _LEFT - _RIGHT):
        _stroke(draw, [(at(x, 0)[0], floor), (at(x, 0)[0], floor + 4)], _SOFT, 1, fine)
        texts.append(((at(x, 0)[0], floor + 6), text, "ma", _SOFT, 11))
    _stroke(draw, [(_LEFT, floor), (width - _RIGHT, floor)], _SOFT, 1, fine)
    texts.append((((_LEFT + width - _RIGHT) / 2, height - 6), x_label, "mb", _INK, 12))
    texts.append(((width - _RIGHT, 14), y_label, "rm", _SOFT, 12))
    along = float(_LEFT)
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        points = [(mark, at(place(mark.x), mark.mean)) for mark in one.marks if mark.values]
        if one.joined and numeric:
            points = sorted(points, key=lambda entry: entry[1][0])
        if one.joined:
            _stroke(draw, [point for _, point in points], colour, 1.8, fine, one.dashed)
        for mark, (x, y) in points:
            if mark.spread:
                low, high = (at(0, mark.mean + side * mark.spread)[1] for side in (-1, 1))
                _stroke(draw, [(x, low), (x, high)], colour, 1.4, fine)
                for end in (low, high):
                    _stroke(draw, [(x - 4, end), (x + 4, end)], colour, 1.4, fine)
            _dot(draw, x, y, colour, fine, hollow=one.dashed)
        if len(series) > 1:
            _dot(draw, along + 5, 38, colour, fine, hollow=one.dashed)
            texts.append(((along + 14, 38), one.name, "lm", _INK, 11))
            along += 28 + ImageFont.load_default(size=11).getlength(one.name)
    canvas = canvas.resize((width * _SCALE, height * _SCALE), Image.Resampling.BOX)
    pen = ImageDraw.Draw(canvas)
    for (x, y), text, anchor, colour, points_high in texts:
        font = ImageFont.load_default(size=points_high * _SCALE)
        pen.text((x * _SCALE, y * _SCALE), text, fill=colour, font=font, anchor=anchor)
    return canvas


def wide(values: Sequence[float]) -> bool:
    """Whether an axis of these values wants a logarithm: all positive, the largest over 20 times the smallest."""
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def beside(charts: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Charts of one size as a sheet, ``columns`` side by side."""
    columns = min(columns, len(charts))
    width, height = charts[0].size
    sheet = Image.new("RGB", (width * columns, height * -(-len(charts) // columns)), _PAPER)
    for number, one in enumerate(charts):
        sheet.paste(one, (number % columns * width, number // columns * height))
    return sheet


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round numbers within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round((first + k) * step, 12) for k in range(int(math.floor(high / step + 1e-9)) - first + 1)]


def _places(
    marks: Sequence[Mark], numeric: bool, log: bool, words: Sequence[str], low: float, high: float, width: float
) -> list[tuple[float, str]]:
    """Where the x axis is labelled: at the values themselves where they have room, else at round numbers."""
    if not numeric:
        room = max(3, int(width / max(1, len(words)) / 6))
        return [(float(k), word if len(word) <= room else word[: room - 1] + "…") for k, word in enumerate(words)]
    values = sorted({float(mark.x) for mark in marks})
    spots = [(math.log10(value) if log else value, f"{value:.4g}") for value in values]
    gap = (high - low) / width
    if all(b[0] - a[0] > gap * (4 * (len(a[1]) + len(b[1])) / 1.2) for a, b in zip(spots, spots[1:], strict=False)):
        return spots
    if log:
        return [(float(k), f"1e{k}") for k in range(math.ceil(low), math.floor(high) + 1)]
    return [(value, f"{value:g}") for value in ticks(low, high)]


def _widened(low: float, high: float, share: float, least: float) -> tuple[float, float]:
    room = max((high - low) * share, least if high == low or share == 0 else 0)
    return low - room, high + room


def _stroke(
    draw: ImageDraw.ImageDraw,
    points: Sequence[tuple[float, float]],
    colour: tuple[int, int, int],
    width: float,
    fine: int,
    dashed: bool = False,
) -> None:
    for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False):
        length = math.hypot(x2 - x1, y2 - y1)
        pieces = max(1, round(length / 5)) if dashed else 1
        for k in range(0, pieces, 2):
            start, end = k / pieces, min(1.0, (k + 1) / pieces)
            ends = [(x1 + (x2 - x1) * t, y1 + (y2 - y1) * t) for t in (start, end)]
            draw.line([(x * fine, y * fine) for x, y in ends], fill=colour, width=max(1, round(width * fine)))


def _dot(
    draw: ImageDraw.ImageDraw, x: float, y: float, colour: tuple[int, int, int], fine: int, hollow: bool = False
) -> None:
    for radius, fill in ((4.6, _PAPER), (3.6, colour), *(((2.0, _PAPER),) if hollow else ())):
        draw.ellipse([(v - radius) * fine for v in (x, y)] + [(v + radius) * fine for v in (x, y)], fill=fill)
