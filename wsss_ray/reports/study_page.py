"""The page of a study: published beside ours, as a table and as a chart."""

from __future__ import annotations

from html import escape
from typing import Any

from wsss_ray.reports.chart_png import wide
from wsss_ray.reports.chart_svg import Series, chart, cut
from wsss_ray.reports.layout import document, duration, section, table
from wsss_ray.reports.study_table import (
    METRICS,
    Report,
    headings,
    order_in_words,
    protocols_in_words,
    rows,
    setting_in_words,
    summarize,
)


def study_page(results: dict[str, Any]) -> str:
    """The page of what ``results.json`` of a study holds, as HTML."""
    report = summarize(results)
    facts = {
        "scale": report.scale,
        "profile": report.profile,
        "data": report.data or "generated toy images",
        "rows": f"{sum(line.status in ('finished', 'partly') for line in report.lines)} of {len(report.lines)} run",
    }
    notes = [setting_in_words(report), *protocols_in_words(report)]
    listed = "".join(f'<p class="soft">{escape(text)}</p>' for text in notes)
    sections = [
        f"<p>{escape(report.title)}</p>",
        section("Table", table(headings(report), rows(report)) + listed, report.source),
        section("Order", f"<p>{escape(order_in_words(report))}</p>" if report.order is not None else ""),
        section("Chart", rows_chart(report)),
        section("Runs", runs_table(results)),
    ]
    return document(report.name, facts, sections, f"{report.name} · {report.scale}")


def rows_chart(report: Report) -> str:
    """Published and ours over the rows; over the values of the axis where these are numbers."""
    values = [_value(line.name) for line in report.lines] if report.axis else [None]
    numeric = all(value is not None for value in values)
    places = [float(value or 0) for value in values] if numeric else [float(p) for p in range(len(report.lines))]
    cells = [line.cells[report.metric] for line in report.lines]
    series = []
    for name, colour in (("published", 2), ("ours", 1)):
        found = [
            (x, value, cell.std if name == "ours" else None)
            for x, cell in zip(places, cells, strict=True)
            if (value := cell.published if name == "published" else cell.mean) is not None
        ]
        if found:
            xs, ys, errors = (list(part) for part in zip(*found, strict=True))
            series.append(Series(name, xs, ys, colour, errors, dots=True, line=report.axis is not None))
    names = None
    if not numeric:
        short = all(len(line.name) <= 8 for line in report.lines) and len(report.lines) <= 8
        names = [line.name if short else str(place) for place, line in enumerate(report.lines, start=1)]
    log = names is None and wide([x for one in series for x in one.x])
    drawn = chart(series, METRICS[report.metric], report.axis or "row", METRICS[report.metric], x_names=names, log=log)
    if names is None or not drawn or names[0] == report.lines[0].name:
        return drawn
    key = ", ".join(f"{place} {cut(line.name)}" for place, line in enumerate(report.lines, start=1))
    return f'{drawn}<p class="soft">Rows: {escape(key)}</p>'


def runs_table(results: dict[str, Any]) -> str:
    """Every run with its seed, time and outcome."""
    lines = [
        [
            row["name"],
            seed,
            duration(entry.get("seconds", 0.0)),
            entry["status"],
            entry.get("run") or entry.get("reason", ""),
        ]
        for row in results["rows"]
        for seed, entry in sorted(row["seeds"].items(), key=lambda pair: int(pair[0]))
    ]
    return table(["row", "seed", "time", "outcome", "run, or why it failed"], lines) if lines else ""


def _value(name: str) -> float | None:
    try:
        return float(name)
    except ValueError:
        return None
