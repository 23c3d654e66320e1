# SPDX-License-Identifier: Apache-2.0
"""How the numbers of a paper stand in its file, and the rows of a study that are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from wsss_ray.experiments.study import Metric, Row
from wsss_ray.recipe import Recipe


class Line(TypedDict, total=False):
    """One line of a table as it is printed: mIoU in per cent, unless said, and what stands beside it."""

    seeds: float
    masks: float
    segmentation: float
    """On val."""
    pixel_accuracy: float
    params: float
    """Millions."""
    test: float
    """``segmentation`` on test."""
    supervision: str
    backbone: str
    note: str
    """What else is printed, is not stated, or differs here."""


Table = Mapping[str, Line]
"""Row -> its line, in the order of print. A paper's ``PUBLISHED`` has one for each of its studies."""


def make_rows(
    table: Table, recipes: Mapping[str, Recipe] | None = None, note: Mapping[str, str] | None = None, digits: int = 1
) -> tuple[Row, ...]:
    """The lines of a table as rows; those with a recipe are run, the others quoted.

    ``note`` replaces the note of a line, ``digits`` are those of its test number. Raises KeyError for a recipe or a
    note whose row is not in the table.
    """
    made, notes = dict(recipes or {}), dict(note or {})
    unknown = (made.keys() | notes.keys()) - table.keys()
    if unknown:
        raise KeyError(f"no such row in the published table: {', '.join(sorted(unknown))}")
    return tuple(
        Row(name, made.get(name), _numbers(line), _remarks(line, notes.get(name, line.get("note", "")), digits))
        for name, line in table.items()
    )


def _numbers(line: Line) -> dict[Metric, float]:
    """The metrics of a line; what stands beside them is no number of ours."""
    beside = ("test", "supervision", "backbone", "note")
    return {metric: float(str(value)) for metric, value in line.items() if metric not in beside}


def _remarks(line: Line, note: str, digits: int) -> str:
    supervision = line.get("supervision", "")
    remarks = [supervision if "supervised" in supervision or not supervision else f"supervision {supervision}"]
    remarks += [line.get("backbone", ""), f"test {line['test']:.{digits}f}" if "test" in line else "", note]
    return "; ".join(remark for remark in remarks if remark)


def keep_val(table: Table) -> dict[str, Line]:
    """A table without its column of test."""
    lines: dict[str, Line] = {}
    for name, line in table.items():
        kept = line.copy()
        kept.pop("test", None)
        lines[name] = kept
    return lines


def keep_test(table: Table) -> dict[str, Line]:
    """Its column of test alone, for a study of it."""
    return {name: {"segmentation": line["test"]} for name, line in table.items() if "test" in line}
