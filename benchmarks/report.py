# SPDX-License-Identifier: Apache-2.0
"""The results of a call as lines on a terminal, as Markdown, and as a block of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MARKS = ("<!-- benchmarks -->", "<!-- end of benchmarks -->")
"""Between these lines of a page the results of the last call stand."""


def format_number(value: float) -> str:
    """Three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def describe_row(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """(ratio with spread, both sides, goal) of a row."""
    ratio = f"{format_number(row['ratio'])} ({format_number(row['low'])}-{format_number(row['high'])})"
    sides = f"{format_number(row['top'])} / {format_number(row['bottom'])} {row['measure']}"
    goal = "" if row["goal"] is None else f"{row['goal']}: {'yes' if row['kept'] else 'NO'}"
    return ratio, sides, goal


def list_lines(result: Mapping[str, Any]) -> list[str]:
    """One claim for a terminal."""
    lines = [f"{result['name']}: {result['says']}", f"  ratio: {result['ratio']}   [{result['seconds']:.0f} s]"]
    for row in result["rows"]:
        ratio, sides, goal = describe_row(row)
        line = f"  {row['case']:<34} {ratio:>22}  {sides:<26} {row['rounds']} rounds  {goal}"
        lines.append(f"{line.rstrip()}{'  ' + row['note'] if row['note'] else ''}")
    return lines + ([f"  FAILED: {result['error']}"] if result["error"] else [])


def write_markdown(record: Mapping[str, Any]) -> str:
    """All claims of a call as one table, with the machine above it."""
    facts = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    text = [f"`{record['command']}`, {record['seconds'] / 60:.0f} minutes. {facts}.", ""]
    text += ["The ratio is the median of the rounds, with its 10th to 90th percentile.", ""]
    text += ["| claim | case | ratio | sides | rounds | goal kept | |", "|---|---|---|---|---|---|---|"]
    for result in record["claims"]:
        first = f"`{result['name']}`: {result['ratio']}"
        for row in result["rows"]:
            ratio, sides, goal = describe_row(row)
            cells = (first, row["case"], ratio, sides, str(row["rounds"]), goal, row["note"])
            text.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
            first = ""
        if result["error"]:
            text.append(f"| {first or result['name']} | not finished: {result['error'].replace('|', '/')} | | | | | |")
    return "\n".join(text) + "\n"


def replace_block(page: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Put a text between the marks of a page; ValueError where it has none."""
    first, last = marks
    whole = page.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{page}: no lines {first!r} and {last!r}; add them where the table shall stand")
    page.write_text(f"{before}{first}\n\n{text}\n{last}{after}", encoding="utf-8")


def count_missed(claims: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """(goals that are not kept, claims that failed)."""
    missed = sum(row["kept"] is False for result in claims for row in result["rows"])
    return missed, sum(bool(result["error"]) for result in claims)
