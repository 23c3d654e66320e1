# SPDX-License-Identifier: Apache-2.0
"""A dry pass over a source: every image is looked at, nothing is written."""

from __future__ import annotations

from collections.abc import Callable

from wsss_ray.data.checks import Problem, ReadsFiles, Tally, inspect_item, plain_reading, validate_row
from wsss_ray.data.source import Item, Source


def find_problems(source: Source, fast: bool = False, on_item: Callable[[Item], None] | None = None) -> list[Problem]:
    """A dry pass over a source: every image, then what only the whole shows (ids used twice, empty splits, unused
    classes).

    ``fast`` opens headers only; ``on_item`` is called after each image (progress bars).
    """
    tally = Tally()
    problems: list[Problem] = []
    reading = source.load.reading if isinstance(source.load, ReadsFiles) else plain_reading(len(source.classes))
    for item in source.items:
        problems += tally.count(item)
        if item.image is None and item.labels is not None:
            problems += validate_row(source.load(item), reading) if not fast else []
        else:
            problems += inspect_item(item, reading, fast).problems
        if on_item is not None:
            on_item(item)
    return problems + tally.finish(source)
