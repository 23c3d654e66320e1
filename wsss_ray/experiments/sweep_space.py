# SPDX-License-Identifier: Apache-2.0
"""The space of a sweep: ``--over method.num_views=1,2,4`` as axes, their grid, and samples that a seed decides."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from wsss_ray.config import UserError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_STEPS = re.compile(rf"({_NUMBER}):({_NUMBER}):({_NUMBER})")
_INTERVAL = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(:log)?")
_HELP = "write KEY=1,2,4 or KEY=240:400:40 (from:to:step) or KEY=1e-5..1e-2[:log] (random and tpe)"
MAX_POINTS = 10_000

Point = dict[str, Any]
"""Settings of one trial: key of the recipe -> value."""


@dataclass(frozen=True)
class Axis:
    """One swept key: either listed values or an interval."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    """Whole numbers of the interval only, both ends included."""

    @property
    def listed(self) -> bool:
        """Whether there are finitely many values, named one by one."""
        return bool(self.values)

    def draw(self, chance: random.Random) -> Any:
        """A random value, uniform (in the logarithm with ``log``)."""
        if self.listed:
            return chance.choice(self.values)
        if self.whole and not self.log:
            return chance.randint(int(self.low), int(self.high))
        if not self.log:
            return chance.uniform(self.low, self.high)
        value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
        return round(value) if self.whole else value


def parse_axis(text: str) -> Axis:
    """An axis from ``KEY=...``; UserError says how to write one."""
    key, equals, values = (part.strip() for part in text.partition("="))
    if not key or not equals or not values:
        raise UserError(f"--over {text}: {_HELP}")
    steps, interval = _STEPS.fullmatch(values), _INTERVAL.fullmatch(values)
    if steps:
        return Axis(key, _stepped(text, *(Decimal(part) for part in steps.groups())))
    if interval:
        low, high, log = _number(interval[1]), _number(interval[2]), bool(interval[3])
        _text_in_json(text, [low, high])
        if not low < high or (log and low <= 0):
            raise UserError(f"--over {text}: an interval rises{' from above 0' if log else ''}; {_HELP}")
        return Axis(key, (), low, high, log, isinstance(low, int) and isinstance(high, int))
    try:
        listed = yaml.safe_load(f"[{values}]")
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--over {text}: the values are not valid YAML; {_HELP}") from None
    found = tuple(_number(value) if isinstance(value, str) else value for value in listed)
    if len({_text_in_json(text, value) for value in found}) < len(found):
        raise UserError(f"--over {text}: a value is given twice")
    return Axis(key, found)


def parse_space(texts: Sequence[str]) -> tuple[Axis, ...]:
    """All axes; UserError where there is none or a key comes twice."""
    axes = tuple(parse_axis(text) for text in texts)
    if not axes:
        raise UserError(f"a sweep needs --over: {_HELP.replace('write ', 'give --over ')}")
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--over {key}: given twice; list all its values in one --over")
    return axes


def build_grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination, the last axis fastest; UserError for an interval or too many."""
    for axis in axes:
        if not axis.listed:
            raise UserError(f"--over {axis.key}: a grid needs listed values (KEY=1,2,4); or use --search random or tpe")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MAX_POINTS:
        raise UserError(f"--over: the grid has {count} points (limit {MAX_POINTS}); use --search random --trials N")
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def count_points(axes: Sequence[Axis]) -> int | None:
    """How many different points there are, None for endlessly many."""
    if any(not axis.listed and not axis.whole for axis in axes):
        return None
    return math.prod(len(axis.values) if axis.listed else int(axis.high) - int(axis.low) + 1 for axis in axes)


def sample_points(axes: Sequence[Axis], num_wanted: int, seed: int) -> list[Point]:
    """``num_wanted`` random points, none twice (all of them where there are no more), the same ones for the same seed.

    A longer sample begins with the shorter one.
    """
    chance = random.Random(seed)
    size = count_points(axes) or num_wanted
    points: dict[str, Point] = {}
    for _ in range(100 * num_wanted):
        if len(points) >= min(num_wanted, size):
            break
        point = {axis.key: axis.draw(chance) for axis in axes}
        points.setdefault(json.dumps(point), point)
    return list(points.values())


def name_point(point: Point) -> str:
    """``num_views=4 patch_size=240``: keys by their last part where that is unambiguous."""
    short = shorten_keys(list(point))
    return " ".join(f"{short[key]}={format_value(value)}" for key, value in point.items())


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Key -> its last part, or the whole key where two would be the same."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}


def format_value(value: Any) -> str:
    """A value for people: short numbers, JSON for lists."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _number(text: str) -> Any:
    """A number where the text is one (YAML reads 1e-5 as text), else the text."""
    if not re.fullmatch(_NUMBER, text):
        return text
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _text_in_json(text: str, value: Any) -> str:
    """A value as the JSON it is kept in; UserError for dates, infinite numbers and whatever else JSON cannot hold."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError):
        raise UserError(
            f"--over {text}: dates and infinite numbers are not valid values; write finite numbers, words, true, "
            "false, null, or lists of them, and quotes around a word that looks like a date"
        ) from None


def _stepped(text: str, low: Decimal, high: Decimal, step: Decimal) -> tuple[Any, ...]:
    if step <= 0 or low > high:
        raise UserError(f"--over {text}: from:to:step rises by a step above 0, like 240:400:40")
    count = int((high - low) / step) + 1
    if count > MAX_POINTS:
        raise UserError(f"--over {text}: {count} values (limit {MAX_POINTS}); take a larger step")
    whole = all(part == part.to_integral_value() and "." not in str(part) for part in (low, high, step))
    values = [low + place * step for place in range(count)]
    return tuple(int(value) if whole else float(value) for value in values)
