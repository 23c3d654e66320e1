"""``wsss compare``: runs side by side, in tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from wsss_ray.reports.compare import Comparison

MANY_CLASSES = 30
"""Above this many labels only those that changed most are listed, unless all are asked for."""


def compare(
    runs: Annotated[list[str], typer.Argument(help="Two or more runs: folders or names below --out/runs.")],
    out: Annotated[str, typer.Option("--out", help="Folder or URI of artifacts and runs.")] = "results",
    resamples: Annotated[int, typer.Option(help="Draws of the paired bootstrap over images.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    all_classes: Annotated[bool, typer.Option("--all-classes", help="List every class, however many.")] = False,
) -> None:
    """What differs between runs, their scores, and whether the difference is more than chance."""
    from wsss_ray.artifacts.record import open_run
    from wsss_ray.cluster.progress import console
    from wsss_ray.reports.compare import compare_runs

    result = compare_runs([open_run(name, out) for name in runs], resamples, seed)
    for table in (_recipes(result), _scores(result), *_classes(result, all_classes), _tests(result)):
        console.print(table)
    if any(line.variant == "best" for line in result.scores):
        console.print("seeds are tested at the method's fixed threshold: the best one was chosen on these images")


def _recipes(result: Comparison) -> Table:
    table = _table("Recipes differ in" if result.differing else "Recipes are the same", result)
    for key, values in result.differing.items():
        _row(table, key, *("-" if value is None else str(value) for value in values))
    return table


def _scores(result: Comparison) -> Table:
    table = _table("mIoU in %", result, justify="right")
    table.add_column("protocol")
    for line in result.scores:
        texts = [text for text in line.protocols if text is not None]
        protocol = texts[0] if line.one_protocol else "differs: " + " | ".join(text or "-" for text in line.protocols)
        _row(table, f"{line.step} {line.variant}", *map(_percent, line.values), protocol)
    return table


def _classes(result: Comparison, all_classes: bool) -> list[Table]:
    tables, shown = [], set()
    for line in result.scores:
        if line.step in shown:
            continue
        shown.add(line.step)
        rows = list(zip(result.labels, result.iou[f"{line.step}/{line.variant}"], strict=True))
        title = f"IoU in % per class: {line.step} {line.variant}"
        if len(rows) > MANY_CLASSES and not all_classes:
            rows = sorted(rows, key=lambda row: -_largest(row[1]))[:MANY_CLASSES]
            title += f" ({MANY_CLASSES} that differ most; --all-classes lists all)"
        table = _table(title, result, justify="right")
        for place in range(1, len(result.names)):
            table.add_column(f"({place + 1}) - (1)", justify="right")
        for label, values in rows:
            _row(table, label, *map(_percent, values), *(_signed(values[0], value) for value in values[1:]))
        tables.append(table)
    return tables


def _tests(result: Comparison) -> Table:
    from rich.table import Table

    table = Table(title="Against (1), images drawn anew (paired bootstrap)", title_justify="left")
    for name in ("score", "run", "difference", "95 % interval", "p", "verdict"):
        table.add_column(name)
    for test in result.tests:
        name, found = f"{test.step} {test.variant}", test.result
        if found is None:
            _row(table, name, f"({test.run + 1})", "-", "-", "-", test.verdict)
            continue
        interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
        gap, chance = f"{100 * found.difference:+.1f}", f"{found.p_value:.3f}"
        verdict = f"{test.verdict} ({found.num_images} images)"
        _row(table, name, f"({test.run + 1})", gap, interval, chance, verdict)
    return table


def _table(title: str, result: Comparison, justify: str = "left") -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    table.add_column("")
    for place, name in enumerate(result.names):
        heading = Text(f"({place + 1}) {name}")
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _row(table: Table, *cells: str) -> None:
    """A row of texts: Rich would take brackets in values for its markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _signed(first: float | None, value: float | None) -> str:
    return "-" if first is None or value is None else f"{round(100 * (value - first), 1) + 0.0:+.1f}"


def _largest(values: tuple[float | None, ...]) -> float:
    return max(
        (abs(value - values[0]) for value in values[1:] if value is not None and values[0] is not None), default=-1
    )
