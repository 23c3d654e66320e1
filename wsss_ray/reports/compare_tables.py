# SPDX-License-Identifier: Apache-2.0
"""What ``wsss compare`` prints: recipes, scores, classes and paired tests as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from wsss_ray.reports.compare import Comparison, PairedTest, ScoreLine
from wsss_ray.reports.layout import format_percent
from wsss_ray.reports.terminal import build_text_table
from wsss_ray.score.names import VARIANTS, make_title

MANY_CLASSES = 30
"""Above this many labels only those that changed most are listed, unless all are asked for."""


def build_tables(result: Comparison, all_classes: bool = False) -> list[Table]:
    """All tables of a comparison, in the order in which they are printed."""
    return [
        build_recipe_table(result),
        build_score_table(result),
        *build_class_tables(result, all_classes),
        build_test_table(result),
    ]


def list_untested(result: Comparison) -> list[str]:
    """Sentences about the scored variants that the paired test leaves out."""
    return [
        f"{make_title(line.step, line.variant)}: not tested, because it is chosen on the whole set, not for each image"
        for line in result.scores
        if not VARIANTS[line.variant].by_image
    ]


def build_recipe_table(result: Comparison) -> Table:
    """The settings that differ."""
    rows = [
        [key, *("-" if value is None else str(value) for value in values)] for key, values in result.differing.items()
    ]
    return build_text_table("Recipes differ in" if rows else "Recipes are the same", _headings(result), rows)


def build_score_table(result: Comparison) -> Table:
    """The mIoU of every scored variant with its protocol."""
    headings = [*_headings(result), "protocol"]
    rows = [
        [make_title(one.step, one.variant), *map(format_percent, one.values), _protocol(one)] for one in result.scores
    ]
    return build_text_table("mIoU in %", headings, rows, range(1, len(headings) - 1))


def build_class_tables(result: Comparison, all_classes: bool) -> list[Table]:
    """IoU per class of every step's usual variant, with the differences from the first run."""
    first: dict[str, ScoreLine] = {}
    for line in result.scores:
        first.setdefault(line.step, line)
    return [_class_table(result, line, all_classes) for line in first.values()]


def build_test_table(result: Comparison) -> Table:
    """The paired bootstrap of every run against the first."""
    headings = ("score", "run", "difference", "95 % interval", "p", "verdict")
    title = "Against run (1): paired bootstrap over images"
    return build_text_table(title, headings, [_test_row(test) for test in result.tests])


def _class_table(result: Comparison, line: ScoreLine, all_classes: bool) -> Table:
    values = list(zip(result.labels, result.iou[f"{line.step}/{line.variant}"], strict=True))
    title = f"IoU in % per class: {make_title(line.step, line.variant)}"
    if len(values) > MANY_CLASSES and not all_classes:
        values = sorted(values, key=lambda row: -_largest_change(row[1]))[:MANY_CLASSES]
        title += f" ({MANY_CLASSES} that differ most; --all-classes lists all)"
    headings = [*_headings(result), *(f"({place}) - (1)" for place in range(2, len(result.names) + 1))]
    rows = [
        [label, *map(format_percent, found), *(_format_change(found[0], value) for value in found[1:])]
        for label, found in values
    ]
    return build_text_table(title, headings, rows, range(1, len(headings)))


def _test_row(test: PairedTest) -> list[str]:
    name, found = make_title(test.step, test.variant), test.result
    if found is None:
        return [name, f"({test.run + 1})", "-", "-", "-", test.verdict]
    return [
        name,
        f"({test.run + 1})",
        f"{100 * found.difference:+.1f}",
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
        f"{found.p_value:.3f}",
        f"{test.verdict} ({found.num_images} images)",
    ]


def _headings(result: Comparison) -> list[str]:
    return ["", *(f"({place}) {name}" for place, name in enumerate(result.names, start=1))]


def _protocol(line: ScoreLine) -> str:
    texts = [text for text in line.protocols if text is not None]
    return texts[0] if line.one_protocol else "differs: " + " | ".join(text or "-" for text in line.protocols)


def _format_change(first: float | None, value: float | None) -> str:
    return "-" if first is None or value is None else f"{round(100 * (value - first), 1) + 0.0:+.1f}"


def _largest_change(values: Sequence[float | None]) -> float:
    return max(
        (abs(value - values[0]) for value in values[1:] if value is not None and values[0] is not None), default=-1
    )
