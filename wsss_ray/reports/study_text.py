# SPDX-License-Identifier: Apache-2.0
"""A study's table as text: cells and remarks, sentences about it, Markdown, and its figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsss_ray.config import UserError
from wsss_ray.reports.study_table import Cell, Line, Status, StudyTable
from wsss_ray.score.names import find_study_column

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table
    from rich.text import Text


def list_headings(table: StudyTable) -> list[str]:
    """Column titles of ``format_rows``."""
    columns = [table.axis or "row"]
    for metric in table.metrics:
        title = find_study_column(metric).title
        columns += [f"{title}: published", "ours", "difference"] if table.has_published(metric) else [f"{title}: ours"]
    return [*columns, "remarks"]


def format_rows(table: StudyTable) -> list[list[str]]:
    """The table's lines as text."""
    rows = []
    for line in table.lines:
        texts = [line.name]
        for metric in table.metrics:
            cell = line.cells[metric]
            numbers = [
                format_number(cell.published),
                format_ours(cell, line.status),
                format_number(cell.difference, sign=True),
            ]
            texts += numbers if table.has_published(metric) else numbers[1:2]
        rows.append([*texts, write_remarks(line)])
    return rows


def format_number(value: float | None, sign: bool = False) -> str:
    """A number with one decimal, "-" for none."""
    if value is None:
        return "-"
    return f"{round(value, 1) + 0.0:+.1f}" if sign else f"{value:.1f}"


def format_ours(cell: Cell, status: Status) -> str:
    """Mean and spread over seeds, or why there is none."""
    if cell.mean is None:
        return {"failed": "failed", "not run": "not run"}.get(status, "-")
    return format_number(cell.mean) + (f" ± {cell.std:.1f} ({len(cell.ours)})" if cell.std is not None else "")


def write_remarks(line: Line) -> str:
    """What there is to say about a row: failure, then note."""
    parts = [f"failed: {line.reason}"] if line.reason else []
    parts += ["quoted, not run"] if line.status == "quoted" else []
    parts += [f"{line.num_stale} older seed{'s' * (line.num_stale > 1)} left out"] if line.num_stale else []
    return "; ".join([*parts, line.note] if line.note else parts)


def describe_ranking(table: StudyTable) -> str:
    """One or two sentences that compare the ranking of the rows with the paper's."""
    ranking = table.ranking
    if not table.has_published(table.metric):
        return "Ranking: the paper prints no numbers to compare with."
    if ranking is None:
        return "Ranking: not known (fewer than two rows have both a published number and ours)."
    if math.isnan(ranking.tau):
        return "Ranking: not known (all rows are equal)."
    spread = (
        f"{ranking.low:.2f} to {ranking.high:.2f} over seeds"
        if ranking.num_seeds > 1
        else "its spread is not known from one seed"
    )
    pairs = f"{ranking.num_agreeing} of {ranking.num_pairs} pairs ranked as in the paper"
    chance = f"a random ranking of {ranking.num_rows} rows does as well with probability {ranking.p_value:.3f}"
    return f"Ranking: {pairs}, Kendall's tau-b {ranking.tau:.2f} ({spread}); {chance}."


def describe_setting(table: StudyTable) -> str:
    """At which scale and on which images ours was run."""
    data = f"data {table.data}" if table.data else "synthetic images"
    changed = f", with {', '.join(table.settings)}" if table.settings else ""
    text = f"Ours: scale {table.scale}, profile {table.profile}, {data}{changed}."
    printed = any(table.has_published(metric) for metric in table.metrics)
    if printed and (table.scale != "paper" or table.data is None or table.settings):
        text += " Published numbers are for the paper's own setting: compare the ranking of the rows, not the values."
    return text


def describe_protocols(table: StudyTable) -> list[str]:
    """The protocol of ours for every column that has one."""
    sentences = []
    for metric in table.metrics:
        texts = list(dict.fromkeys(text for line in table.lines if (text := line.cells[metric].protocol)))
        if texts:
            more = f" (and {len(texts) - 1} other, by row)" if len(texts) > 1 else ""
            sentences.append(f"{find_study_column(metric).title}: {texts[0]}{more}")
    return sentences


def write_markdown(table: StudyTable) -> str:
    """The table as a Markdown document."""
    if not table.lines:
        raise UserError(f"{table.name}: the study has no rows")
    titles = list_headings(table)
    lines = [f"# {table.name}: {table.title}", "", table.source, "", describe_setting(table), ""]
    lines += ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in format_rows(table)]
    lines += ["", describe_ranking(table), "", *(f"- {text}" for text in describe_protocols(table))]
    return "\n".join(lines) + "\n"


def describe_study(table: StudyTable) -> list[Table | Text]:
    """What a command prints of a study: the table, its setting and protocols, and how the ranking compares with the
    paper's.
    """
    from rich.text import Text

    from wsss_ray.reports.terminal import build_text_table

    titles = list_headings(table)
    printed = build_text_table(
        f"{table.name}: {table.title}", titles, format_rows(table), numeric=range(1, len(titles) - 1)
    )
    sentences = (table.source, describe_setting(table), *describe_protocols(table), describe_ranking(table))
    return [printed, *map(Text, sentences)]


def draw_figure(table: StudyTable) -> Figure | None:
    """Published and ours over the rows with error bars over seeds; joined where the study varies an axis.

    None where no row has a number of ours.
    """
    from wsss_ray.reports.figure import Axes, Mark, Series, draw_charts, spans_decades

    numbers = place_rows(table)
    places: Sequence[float | str] = [line.name for line in table.lines] if numbers is None else numbers
    cells = [line.cells[table.metric] for line in table.lines]
    published = tuple(Mark(x, (c.published,)) for x, c in zip(places, cells, strict=True) if c.published is not None)
    ours = tuple(Mark(x, c.ours) for x, c in zip(places, cells, strict=True) if c.ours)
    joined = table.axis is not None
    series = [Series("ours", ours, joined), *([Series("published", published, joined, True)] if published else [])]
    if not ours:
        return None
    axes = Axes(
        title=f"{table.name} ({table.scale})",
        x=table.axis or "row",
        y=find_study_column(table.metric).title,
        log=numbers is not None and spans_decades(numbers),
    )
    return draw_charts([(series, axes)])


def encode_table(table: StudyTable, to: str) -> bytes:
    """What ``to`` is named for: the table as Markdown, or its figure as ``.png``, ``.svg`` or ``.pdf``.

    UserError where there is nothing to draw.
    """
    from wsss_ray.reports.figure import KINDS, encode_figure

    kind = to.rpartition(".")[2].lower()
    if kind not in KINDS:
        return write_markdown(table).encode()
    figure = draw_figure(table)
    if figure is None:
        raise UserError(f"{to}: no row of {table.name} has a number of ours yet: run it with 'wsss study run'")
    return encode_figure(figure, kind)


def place_rows(table: StudyTable) -> list[float] | None:
    """Where the rows stand on an axis of numbers; None where the study varies no axis or a row's name is no number."""
    try:
        return [float(line.name) for line in table.lines] if table.axis is not None else None
    except ValueError:
        return None
