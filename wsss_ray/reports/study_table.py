"""The report of a study: published beside ours, row by row, and whether the rows order as in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.score.names import STEPS
from wsss_ray.score.rank import Agreement, measure_agreement

if TYPE_CHECKING:
    from PIL import Image

Status = Literal["finished", "partly", "failed", "not run", "quoted"]
METRICS: dict[str, str] = {
    "seeds": "seeds mIoU %",
    "masks": "pseudo masks mIoU %",
    "segmentation": "segmentation mIoU %",
    "pixel_accuracy": "pixel accuracy %",
    "params": "parameters (millions)",
    "seeds.fixed": "seeds mIoU % at the fixed threshold",
    "segmentation.single_scale": "segmentation mIoU %, single scale",
    "segmentation.multi_scale": "segmentation mIoU %, all views",
    "precision": "precision %",
    "recall": "recall %",
    "precision.fixed": "precision % at the fixed threshold",
    "recall.fixed": "recall % at the fixed threshold",
    "precision_foreground": "precision %, foreground",
    "recall_foreground": "recall %, foreground",
    "precision_foreground.fixed": "precision %, foreground, at the fixed threshold",
    "recall_foreground.fixed": "recall %, foreground, at the fixed threshold",
    "heads": "recall of heads %",
    "bodies": "recall of bodies %",
    "minutes": "minutes of training",
}
"""Columns there may be. Precision and recall, means over all labels or over the foreground's, are those of the study's
own metric; parts (toy) of its fixed threshold."""
BESIDE = {"params": (1.0, "params"), "minutes": (1 / 60, "train_seconds")}
"""Columns that are no score: (factor, key of a finished seed)."""
PARTS = {"heads": "1", "bodies": "2"}
OF_THE_METRIC = {
    "precision": "mean_precision",
    "recall": "mean_recall",
    "precision_foreground": "precision_foreground",
    "recall_foreground": "recall_foreground",
}
"""Columns and the scores they are."""
ACCURACY_OF = ("segmentation", "masks", "seeds")
"""Pixel accuracy is read from the last of these a run has."""


@dataclass(frozen=True)
class Cell:
    """One metric of one row."""

    published: float | None
    ours: tuple[float, ...]
    """One number per finished seed, in per cent (parameters in millions)."""
    protocol: str | None = None

    @property
    def mean(self) -> float | None:
        """Mean over seeds."""
        return float(np.mean(self.ours)) if self.ours else None

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds (of a sample), None for fewer than two."""
        return float(np.std(self.ours, ddof=1)) if len(self.ours) > 1 else None

    @property
    def difference(self) -> float | None:
        """Ours less published."""
        return None if self.mean is None or self.published is None else self.mean - self.published


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    name: str
    cells: dict[str, Cell]
    status: Status
    reason: str
    """Why a seed failed."""
    note: str
    num_stale: int = 0
    """Seeds of another recipe, data or version, which the cells leave out."""


@dataclass(frozen=True)
class Report:
    """A study's table."""

    name: str
    title: str
    source: str
    scale: str
    profile: str
    axis: str | None
    metric: str
    metrics: tuple[str, ...]
    """The one the rows are ordered by first."""
    lines: tuple[Line, ...]
    order: Agreement | None
    """None where fewer than two rows have both numbers."""
    settings: tuple[str, ...] = ()
    data: str | None = None


def summarize(results: dict[str, Any]) -> Report:
    """The report of what ``stages.study`` keeps in ``results.json``."""
    metric = results["metric"]
    published = {key for row in results["rows"] for key in row["published"]}
    printed = (key for key in METRICS if key in published and key != metric)
    metrics = tuple(dict.fromkeys((metric, *printed, *results.get("also", ()))))
    lines = tuple(_line(row, metrics, metric, results.get("variant")) for row in results["rows"])
    both = [(cell.published, cell.ours) for cell in (line.cells[metric] for line in lines)]
    ranked = [(value, ours) for value, ours in both if value is not None and ours]
    return Report(
        name=results["study"],
        title=results["title"],
        source=results["source"],
        scale=results["scale"],
        profile=results["profile"],
        axis=results.get("axis"),
        metric=metric,
        metrics=metrics,
        lines=lines,
        order=measure_agreement([value for value, _ in ranked], [ours for _, ours in ranked])
        if len(ranked) > 1
        else None,
        settings=tuple(results.get("settings", ())),
        data=results.get("data"),
    )


def find_results(name: str, out: str, scale: str | None = None) -> dict[str, Any]:
    """The kept results of a study by name, or of the folder ``name``; UserError where there is not exactly one."""
    found: dict[str, Any]
    direct = storage.join(storage.absolute(name), "results.json")
    if storage.exists(direct):
        found = storage.read_json(direct)
        return found
    scales = [scale] if scale else ["toy", "small", "paper"]
    places = [storage.join(storage.absolute(out), "studies", f"{name}-{one}", "results.json") for one in scales]
    there = [place for place in places if storage.exists(place)]
    if not there:
        raise UserError(f"no results of study {name!r} below {out}: run it with 'wsss study run {name}'")
    if len(there) > 1:
        raise UserError(f"study {name!r} was run at several scales below {out}: choose one with --scale")
    found = storage.read_json(there[0])
    return found


def _line(row: dict[str, Any], metrics: Sequence[str], metric: str, variant: str | None) -> Line:
    seeds = row.get("seeds", {})
    finished = [seeds[key] for key in sorted(seeds, key=int) if seeds[key]["status"] == "finished"]
    failed = [seed for seed in seeds.values() if seed["status"] == "failed"]
    num_stale = sum(seed["status"] == "stale" for seed in seeds.values())
    cells = {}
    for key in metrics:
        found = [
            read(seed, key, variant if key in OF_THE_METRIC or key == metric else None, metric) for seed in finished
        ]
        values = tuple(value for value, _ in found if value is not None)
        protocols = dict.fromkeys(text for _, text in found if text)
        cells[key] = Cell(row["published"].get(key), values, " | ".join(protocols) or None)
    status: Status = "finished" if finished else "failed" if failed else "not run" if row["runs"] else "quoted"
    if finished and failed:
        status = "partly"
    reasons = dict.fromkeys(seed["reason"] for seed in failed)
    return Line(row["name"], cells, status, "; ".join(reasons), row.get("note", ""), num_stale)


def read(
    seed: dict[str, Any], column: str, variant: str | None = None, metric: str = "seeds"
) -> tuple[float | None, str | None]:
    """(number in per cent, its protocol) of one column of a finished seed; (None, None) where it has none.

    ``variant`` None takes the one a paper usually prints: seeds at the best threshold, segmentation with the CRF where
    there is one, then multi-scale. ``metric`` is the study's own, whose precision, recall and parts are meant.
    """
    if column in BESIDE:
        factor, key = BESIDE[column]
        return (None if seed.get(key) is None else factor * seed[key]), None
    steps: tuple[str, ...]
    if column in PARTS:
        steps, key, variant = (metric,), "part_recall", None
    elif column.partition(".")[0] in OF_THE_METRIC:
        what, _, named = column.partition(".")
        steps, key, variant = (metric,), OF_THE_METRIC[what], named or variant
    elif column == "pixel_accuracy":
        steps, key = ACCURACY_OF, "pixel_accuracy"
    else:
        step, _, named = column.partition(".")
        steps, key, variant = (step,), "miou", named or variant
    for step in steps:
        scored = {name: values for name, values in seed["scores"].get(step, {}).items() if values.get(key) is not None}
        name = variant if variant in scored else next((one for one in STEPS[step].variants if one in scored), None)
        if name is None or (variant is not None and name != variant):
            continue
        value = scored[name][key].get(PARTS[column]) if column in PARTS else scored[name][key]
        return (None if value is None else 100 * value), scored[name]["protocol"]
    return None, None


def headings(report: Report) -> list[str]:
    """Column titles of ``rows``."""
    columns = [report.axis or "row"]
    for metric in report.metrics:
        named = [f"{METRICS[metric]}: published", "ours", "difference"]
        columns += named if has_published(report, metric) else [f"{METRICS[metric]}: ours"]
    return [*columns, "remarks"]


def has_published(report: Report, metric: str) -> bool:
    """Whether the paper prints this metric for any row."""
    return any(line.cells[metric].published is not None for line in report.lines)


def rows(report: Report) -> list[list[str]]:
    """The table's lines as text."""
    table = []
    for line in report.lines:
        cells = [line.name]
        for metric in report.metrics:
            cell = line.cells[metric]
            texts = [number(cell.published), ours(cell, line.status), number(cell.difference, sign=True)]
            cells += texts if has_published(report, metric) else texts[1:2]
        table.append([*cells, remarks(line)])
    return table


def number(value: float | None, sign: bool = False) -> str:
    """A number with one decimal, "-" for none."""
    if value is None:
        return "-"
    return f"{round(value, 1) + 0.0:+.1f}" if sign else f"{value:.1f}"


def ours(cell: Cell, status: Status) -> str:
    """Mean and spread over seeds, or why there is none."""
    if cell.mean is None:
        return {"failed": "failed", "not run": "not run"}.get(status, "-")
    return number(cell.mean) + (f" ± {cell.std:.1f} ({len(cell.ours)})" if cell.std is not None else "")


def remarks(line: Line) -> str:
    """What is to be known of a row: failure, then note."""
    parts = [f"failed: {line.reason}"] if line.reason else []
    parts += ["quoted, not run"] if line.status == "quoted" else []
    parts += [f"{line.num_stale} older seed{'s' * (line.num_stale > 1)} left out"] if line.num_stale else []
    return "; ".join([*parts, line.note] if line.note else parts)


def order_in_words(report: Report) -> str:
    """One or two sentences on whether the rows order as in the paper."""
    order = report.order
    if not has_published(report, report.metric):
        return "Order: the paper prints no numbers to compare with."
    if order is None:
        return "Order: not known (fewer than two rows have both a published number and ours)."
    if np.isnan(order.tau):
        return "Order: not known (all rows are equal)."
    spread = (
        f"{order.low:.2f} to {order.high:.2f} over seeds"
        if order.num_seeds > 1
        else "its spread is not known from one seed"
    )
    pairs = f"{order.num_agreeing} of {order.num_pairs} pairs as published"
    chance = f"a random order of {order.num_rows} rows does as well with probability {order.p_value:.3f}"
    return f"Order: {pairs}, Kendall's tau-b {order.tau:.2f} ({spread}); {chance}."


def setting_in_words(report: Report) -> str:
    """At which size and on which images ours was run."""
    data = f"data {report.data}" if report.data else "generated toy images"
    changed = f", with {', '.join(report.settings)}" if report.settings else ""
    text = f"Ours: scale {report.scale}, profile {report.profile}, {data}{changed}."
    printed = any(has_published(report, metric) for metric in report.metrics)
    if printed and (report.scale != "paper" or report.data is None or report.settings):
        text += " Published numbers are of the paper's own setting: compare the order of the rows, not the values."
    return text


def protocols_in_words(report: Report) -> list[str]:
    """The protocol of ours for every metric that has one."""
    found = []
    for metric in report.metrics:
        texts = dict.fromkeys(line.cells[metric].protocol for line in report.lines if line.cells[metric].protocol)
        if texts:
            known = [str(text) for text in texts]
            more = f" (and {len(known) - 1} other, by row)" if len(known) > 1 else ""
            found.append(f"{METRICS[metric]}: {known[0]}{more}")
    return found


def drawn(report: Report) -> Image.Image | None:
    """Published and ours over the rows with error bars over seeds; joined where the study varies an axis."""
    from wsss_ray.reports.chart_png import Mark, Series, chart, wide

    numbers = report.axis is not None and all(_is_number(line.name) for line in report.lines)
    places: list[float | str] = [float(line.name) if numbers else line.name for line in report.lines]
    cells = [line.cells[report.metric] for line in report.lines]
    published = tuple(Mark(x, (c.published,)) for x, c in zip(places, cells, strict=True) if c.published is not None)
    found = tuple(Mark(x, c.ours) for x, c in zip(places, cells, strict=True) if c.ours)
    joined = report.axis is not None
    series = [Series("ours", found, joined), *([Series("published", published, joined, True)] if published else [])]
    if not found:
        return None
    log = numbers and wide([float(mark.x) for one in series for mark in one.marks])
    return chart(f"{report.name} ({report.scale})", series, report.axis or "row", METRICS[report.metric], log)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def markdown(report: Report) -> str:
    """The report as a Markdown document."""
    if not report.lines:
        raise UserError(f"{report.name}: the study has no rows")
    titles = headings(report)
    lines = [f"# {report.name}: {report.title}", "", report.source, "", setting_in_words(report), ""]
    lines += ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows(report)]
    lines += ["", order_in_words(report), "", *(f"- {text}" for text in protocols_in_words(report))]
    return "\n".join(lines) + "\n"
