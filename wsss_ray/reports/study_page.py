# SPDX-License-Identifier: Apache-2.0
"""The page of a study: published numbers beside ours, as a table and as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from wsss_ray.reports.chart_svg import Axes, Series, draw_chart, shorten
from wsss_ray.reports.figure import spans_decades
from wsss_ray.reports.layout import format_duration
from wsss_ray.reports.rendering import render, render_document
from wsss_ray.reports.study_table import StudyTable, summarize_study
from wsss_ray.reports.study_text import (
    describe_protocols,
    describe_ranking,
    describe_setting,
    format_rows,
    list_headings,
    place_rows,
)
from wsss_ray.score.names import find_study_column

MAX_NAMED_ROWS = 8
"""Up to so many rows, with names of at most as many letters, are named below the chart; more are numbered."""


def build_study_page(results: Mapping[str, Any]) -> str:
    """The page of what ``results.json`` of a study holds, as HTML."""
    table = summarize_study(results)
    facts = {
        "scale": table.scale,
        "profile": table.profile,
        "data": table.data or "synthetic images",
        "rows": f"{sum(line.status in ('finished', 'partly') for line in table.lines)} of {len(table.lines)} run",
    }
    texts = [describe_setting(table), *describe_protocols(table)]
    numbers = render("study", "numbers", titles=list_headings(table), rows=format_rows(table), texts=texts)
    ranking = [describe_ranking(table)] if table.ranking is not None else []
    sections = [
        render("parts", "notes", texts=[table.title], style=""),
        render("parts", "section", title="Table", body=numbers, lead=table.source),
        render("parts", "section", title="Ranking", body=render("parts", "notes", texts=ranking, style="")),
        render("parts", "section", title="Chart", body=draw_rows(table)),
        render("parts", "section", title="Runs", body=build_runs_table(results)),
    ]
    return render_document(table.name, facts, sections, f"{table.name} · {table.scale}")


def draw_rows(table: StudyTable) -> Markup:
    """Published and ours over the rows; over the values of the axis where these are numbers."""
    numbers = place_rows(table)
    places = [float(place) for place in range(len(table.lines))] if numbers is None else numbers
    names = name_rows(table) if numbers is None else None
    series = list_series(table, places)
    title = find_study_column(table.metric).title
    log = names is None and spans_decades([x for one in series for x in one.x])
    drawn = draw_chart(series, Axes(title, table.axis or "row", title, names=names, log=log))
    if names is None or not drawn or names[0] == table.lines[0].name:
        return drawn
    key = ", ".join(f"{place} {shorten(line.name)}" for place, line in enumerate(table.lines, start=1))
    return render("study", "rows", chart=drawn, names=key)


def list_series(table: StudyTable, places: list[float]) -> list[Series]:
    """Published and ours at the rows' places, of those that have such a number."""
    series = []
    for name, colour in (("published", 2), ("ours", 1)):
        found = [
            (x, value, cell.std if name == "ours" else None)
            for x, cell in zip(places, (line.cells[table.metric] for line in table.lines), strict=True)
            if (value := cell.published if name == "published" else cell.mean) is not None
        ]
        if found:
            xs, ys, errors = (list(part) for part in zip(*found, strict=True))
            series.append(Series(name, xs, ys, colour, errors, dots=True, line=table.axis is not None))
    return series


def name_rows(table: StudyTable) -> list[str]:
    """What stands below the rows of a chart: their names where these are few and short, else their numbers."""
    names = [line.name for line in table.lines]
    short = len(names) <= MAX_NAMED_ROWS and all(len(name) <= MAX_NAMED_ROWS for name in names)
    return names if short else [str(place) for place in range(1, len(names) + 1)]


def build_runs_table(results: Mapping[str, Any]) -> Markup:
    """Every run with its seed, time and outcome."""
    rows = [
        [
            row["name"],
            seed,
            format_duration(entry.get("seconds", 0.0)),
            entry["status"],
            entry.get("run") or entry.get("reason", ""),
        ]
        for row in results["rows"]
        for seed, entry in sorted(row["seeds"].items(), key=lambda pair: int(pair[0]))
    ]
    titles = ["row", "seed", "time", "outcome", "run, or why it failed"]
    return render("parts", "table", titles=titles, rows=rows) if rows else Markup("")
