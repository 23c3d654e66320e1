"""``wsss study``: the tables and figures of the papers, run and laid beside the published numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from wsss_ray.reports.study_table import Report

app = typer.Typer(no_args_is_help=True, help="Run the tables and figures of the papers.")
Out = Annotated[str, typer.Option("--out", help="Folder or URI of artifacts and runs.")]
Name = Annotated[str, typer.Argument(help="A name of 'wsss study list', e.g. cam.baseline.")]


@app.command("list")
def list_studies() -> None:
    """The studies there are: name, rows, title."""
    from wsss_ray.studies import build_study, study_names

    known = study_names()
    width = max(map(len, known), default=0)
    for name in known:
        study = build_study(name)
        runnable = sum(row.recipe is not None for row in study.rows)
        typer.echo(f"{name:<{width}}  {runnable:>2} of {len(study.rows):>2} rows run  {study.title}")


@app.command()
def run(
    name: Name,
    scale: Annotated[str, typer.Option(help="toy, small or paper: the same rows at three sizes.")] = "toy",
    seeds: Annotated[int, typer.Option(help="Runs of every row, each with its own seed.", min=1)] = 1,
    data: Annotated[str | None, typer.Option(help="Prepared shards; default: generated toy images.")] = None,
    out: Out = "results",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field in every row.", metavar="KEY=VALUE")
    ] = None,
    profile: Annotated[str, typer.Option(help="paper or released, where they disagree.")] = "paper",
    rows: Annotated[str, typer.Option(help="Only these rows: names or numbers from 1, with commas.")] = "",
    max_concurrent: Annotated[
        int | None, typer.Option(help="Rows at the same time; default: as many as have two cores or a GPU.", min=1)
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: a local one.")] = None,
) -> None:
    """Run every row that is not done yet; failed rows are reported and do not stop the others."""
    from wsss_ray.studies import build_study

    from wsss_ray.experiments.study_run import run_study
    from wsss_ray.reports.study_table import summarize

    study = build_study(name, scale, profile)
    wanted = [row.strip() for row in rows.split(",") if row.strip()]
    results = run_study(study, scale, profile, out, seeds, data, set_ or [], wanted, address, max_concurrent)
    _show(summarize(results))
    if any(row["runs"] and _failed(row) for row in results["rows"]):
        raise typer.Exit(1)


@app.command()
def report(
    name: Name,
    scale: Annotated[str | None, typer.Option(help="Which size; default: the one there is.")] = None,
    out: Out = "results",
    to: Annotated[str | None, typer.Option(help="Also write the table as Markdown into this file.")] = None,
) -> None:
    """Published beside ours, and whether the rows order as in the paper."""
    from wsss_ray import storage
    from wsss_ray.reports.study_table import find_results, markdown, summarize

    found = summarize(find_results(name, out, scale))
    _show(found)
    if to is not None:
        storage.write_bytes(to, markdown(found).encode())


def _failed(row: dict[str, Any]) -> bool:
    return any(seed["status"] == "failed" for seed in row["seeds"].values())


def _show(found: Report) -> None:
    from rich.table import Table
    from rich.text import Text

    from wsss_ray.cluster.progress import console
    from wsss_ray.reports.study_table import headings, order_in_words, protocols_in_words, rows, setting_in_words

    table = Table(title=Text(f"{found.name}: {found.title}", style="table.title"), title_justify="left")
    titles = headings(found)
    for place, title in enumerate(titles):
        numeric = 0 < place < len(titles) - 1
        table.add_column(Text(title), justify="right" if numeric else "left", no_wrap=numeric and "±" in title)
    for cells in rows(found):
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    for text in (found.source, setting_in_words(found), *protocols_in_words(found), order_in_words(found)):
        console.print(text, markup=False)
