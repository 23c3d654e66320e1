"""Small charts drawn with Pillow alone: scores over a setting, error bars over seeds, published values beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from PIL import Image, ImageDraw, ImageFont

from wsss_ray.reports.ticks import find_ticks

_INK, _SOFT, _GRID, _PAPER = (38, 42, 51), (110, 116, 128), (228, 230, 234), (255, 255, 255)
COLOURS = ((31, 105, 193), (217, 95, 14), (22, 138, 90), (152, 60, 150), (190, 45, 55), (90, 100, 115))
"""Colours of the series, told apart also by those who confuse red and green."""
_SCALE = 2
"""Pixels per unit, so that images are sharp on dense screens."""
_FINE = 4 * _SCALE
"""Pixels per unit of the canvas for lines, which is averaged down."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 34, 46
NUM_TICKS = 6
"""About so many labels along an axis."""


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
    size: tuple[int, int] = (520, 340)
    """Units of the chart; its image has twice as many pixels."""


Point = tuple[float, float]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Text:
    at: Point
    text: str
    anchor: str
    colour: Colour
    size: int


class _Frame:
    """Where values lie on the canvas; words that are no numbers lie at 0, 1, 2 ... in their order."""

    def __init__(self, series: Sequence[Series], axes: Axes) -> None:
        self.width, self.height = axes.size
        self.marks = [mark for one in series for mark in one.marks if mark.values]
        self.numeric = all(isinstance(mark.x, (int, float)) for mark in self.marks)
        self.log = axes.log and self.numeric and all(float(mark.x) > 0 for mark in self.marks)
        self.words = list(dict.fromkeys(str(mark.x) for mark in self.marks))
        self.top = _TOP + (20 if len(series) > 1 else 0)
        xs = [self.place(mark.x) for mark in self.marks] or [0.0]
        ys = [mark.mean + side * mark.spread for mark in self.marks for side in (-1, 1)] or [0.0, 1.0]
        self.x_low, self.x_high = _widen(min(xs), max(xs), 0.06 if self.numeric else 0.0, 0.5)
        self.y_low, self.y_high = _widen(min(ys), max(ys), 0.12, 0.5)
        self.floor = self.height - _BOTTOM

    def place(self, x: float | str) -> float:
        """The coordinate of a mark along x."""
        if not self.numeric:
            return float(self.words.index(str(x)))
        return math.log10(float(x)) if self.log else float(x)

    def at(self, x: float, y: float) -> Point:
        """The point of the canvas, in units."""
        across = (x - self.x_low) / (self.x_high - self.x_low) * (self.width - _LEFT - _RIGHT)
        up = (y - self.y_low) / (self.y_high - self.y_low) * (self.height - self.top - _BOTTOM)
        return _LEFT + across, self.height - _BOTTOM - up

    def labels(self) -> list[tuple[float, str]]:
        """Where the x axis is labelled: at the values themselves where they have room, else at round numbers."""
        width = self.width - _LEFT - _RIGHT
        if not self.numeric:
            room = max(3, int(width / max(1, len(self.words)) / 6))
            return [
                (float(k), word if len(word) <= room else word[: room - 1] + "…") for k, word in enumerate(self.words)
            ]
        values = sorted({float(mark.x) for mark in self.marks})
        spots = [(math.log10(value) if self.log else value, f"{value:.4g}") for value in values]
        gap = (self.x_high - self.x_low) / width
        pairs = zip(spots, spots[1:], strict=False)
        if all(b[0] - a[0] > gap * (4 * (len(a[1]) + len(b[1])) / 1.2) for a, b in pairs):
            return spots
        if self.log:
            return [(float(k), f"1e{k}") for k in range(math.ceil(self.x_low), math.floor(self.x_high) + 1)]
        return [(value, f"{value:g}") for value in find_ticks(self.x_low, self.x_high, NUM_TICKS, inside=True)]


class _Pen:
    """A canvas on which lines are drawn finely at once and texts at the end, at the image's own size."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.texts: list[_Text] = []
        self._canvas = Image.new("RGB", (size[0] * _FINE, size[1] * _FINE), _PAPER)
        self._draw = ImageDraw.Draw(self._canvas)

    def write(self, at: Point, text: str, anchor: str, colour: Colour, size: int) -> None:
        """A text, anchored as in Pillow."""
        self.texts.append(_Text(at, text, anchor, colour, size))

    def stroke(self, points: Sequence[Point], colour: Colour, width: float, dashed: bool = False) -> None:
        """A line through the points."""
        for (x1, y1), (x2, y2) in zip(points, points[1:], strict=False):
            length = math.hypot(x2 - x1, y2 - y1)
            pieces = max(1, round(length / 5)) if dashed else 1
            for k in range(0, pieces, 2):
                start, end = k / pieces, min(1.0, (k + 1) / pieces)
                ends = [(x1 + (x2 - x1) * t, y1 + (y2 - y1) * t) for t in (start, end)]
                fine = [(x * _FINE, y * _FINE) for x, y in ends]
                self._draw.line(fine, fill=colour, width=max(1, round(width * _FINE)))

    def dot(self, at: Point, colour: Colour, hollow: bool = False) -> None:
        """A mark with a white edge."""
        for radius, fill in ((4.6, _PAPER), (3.6, colour), *(((2.0, _PAPER),) if hollow else ())):
            corners = [(v - radius) * _FINE for v in at] + [(v + radius) * _FINE for v in at]
            self._draw.ellipse(corners, fill=fill)

    def finish(self) -> Image.Image:
        """The image."""
        image = self._canvas.resize((self.size[0] * _SCALE, self.size[1] * _SCALE), Image.Resampling.BOX)
        draw = ImageDraw.Draw(image)
        for one in self.texts:
            font = ImageFont.load_default(size=one.size * _SCALE)
            place = (one.at[0] * _SCALE, one.at[1] * _SCALE)
            draw.text(place, one.text, fill=one.colour, font=font, anchor=one.anchor)
        return image


def draw_chart(series: Sequence[Series], axes: Axes) -> Image.Image:
    """One chart; places that are not all numbers stand in the order in which they come."""
    frame, pen = _Frame(series, axes), _Pen(axes.size)
    _draw_axes(pen, frame, axes)
    along = float(_LEFT)
    for number, one in enumerate(series):
        colour = COLOURS[number % len(COLOURS)]
        _draw_series(pen, frame, one, colour)
        if len(series) > 1:
            pen.dot((along + 5, 38), colour, hollow=one.dashed)
            pen.write((along + 14, 38), one.name, "lm", _INK, 11)
            along += 28 + ImageFont.load_default(size=11).getlength(one.name)
    return pen.finish()


def _draw_axes(pen: _Pen, frame: _Frame, axes: Axes) -> None:
    width, height = axes.size
    pen.write((_LEFT, 14), axes.title, "lm", _INK, 14)
    for y in find_ticks(frame.y_low, frame.y_high, NUM_TICKS, inside=True):
        pen.stroke([frame.at(frame.x_low, y), frame.at(frame.x_high, y)], _GRID, 1)
        pen.write((_LEFT - 7, frame.at(0, y)[1]), f"{y:g}", "rm", _SOFT, 11)
    for x, text in frame.labels():
        across = frame.at(x, 0)[0]
        pen.stroke([(across, frame.floor), (across, frame.floor + 4)], _SOFT, 1)
        pen.write((across, frame.floor + 6), text, "ma", _SOFT, 11)
    pen.stroke([(_LEFT, frame.floor), (width - _RIGHT, frame.floor)], _SOFT, 1)
    pen.write(((_LEFT + width - _RIGHT) / 2, height - 6), axes.x, "mb", _INK, 12)
    pen.write((width - _RIGHT, 14), axes.y, "rm", _SOFT, 12)


def _draw_series(pen: _Pen, frame: _Frame, one: Series, colour: Colour) -> None:
    points = [(mark, frame.at(frame.place(mark.x), mark.mean)) for mark in one.marks if mark.values]
    if one.joined and frame.numeric:
        points = sorted(points, key=lambda entry: entry[1][0])
    if one.joined:
        pen.stroke([point for _, point in points], colour, 1.8, one.dashed)
    for mark, (x, y) in points:
        if mark.spread:
            low, high = (frame.at(0, mark.mean + side * mark.spread)[1] for side in (-1, 1))
            pen.stroke([(x, low), (x, high)], colour, 1.4)
            for end in (low, high):
                pen.stroke([(x - 4, end), (x + 4, end)], colour, 1.4)
        pen.dot((x, y), colour, hollow=one.dashed)


def spans_decades(values: Sequence[float]) -> bool:
    """Whether an axis of these values needs a logarithm: all positive, the largest over 20 times the smallest."""
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def tile_charts(charts: Sequence[Image.Image], columns: int = 2) -> Image.Image:
    """Charts of one size as a sheet, ``columns`` side by side."""
    columns = min(columns, len(charts))
    width, height = charts[0].size
    sheet = Image.new("RGB", (width * columns, height * -(-len(charts) // columns)), _PAPER)
    for number, one in enumerate(charts):
        sheet.paste(one, (number % columns * width, number // columns * height))
    return sheet


def _widen(low: float, high: float, share: float, least: float) -> tuple[float, float]:
    room = max((high - low) * share, least if high == low or share == 0 else 0)
    return low - room, high + room
