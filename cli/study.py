# SPDX-License-Identifier: Apache-2.0
"""``wsss study``: the papers' tables, listed, run and compared with what was published."""

from __future__ import annotations

from typing import Annotated

import typer

from wsss_ray.cli.choices import (
    MAX_CONCURRENT,
    MAX_SEEDS,
    Address,
    Data,
    Json,
    OptionalScale,
    Out,
    complete_study,
    find_data,
    find_scale,
    say_scale,
)
from wsss_ray.cli.output import keep_stdout_clean, print_json, print_parts
from wsss_ray.config import Profile, Scale

app = typer.Typer(no_args_is_help=True, help="Run the tables and figures of the papers.")
Name = Annotated[
    str, typer.Argument(help="A name from 'wsss study list', e.g. cam.baseline.", autocompletion=complete_study)
]


@app.command("list")
def list_studies(
    rows: Annotated[
        bool, typer.Option("--rows", help="Also count the rows, and those that can be run; takes some seconds.")
    ] = False,
    json: Json = False,
) -> None:
    """List available studies: name and what each compares."""
    from wsss_ray import studies

    listed = [{"name": name, "title": title} for name, title in studies.list_studies().items()]
    if rows:
        listed = [{**entry, **_count_rows(entry["name"])} for entry in listed]
    if json:
        print_json(listed)
        return
    width = max((len(entry["name"]) for entry in listed), default=0)
    for entry in listed:
        counted = f"{entry['runnable']:>2} of {entry['rows']:>2} rows runnable  " if rows else ""
        typer.echo(f"{entry['name']:<{width}}  {counted}{entry['title']}")


def _count_rows(name: str) -> dict[str, str | int]:
    from wsss_ray.studies import build_study

    study = build_study(name)
    runnable = sum(row.recipe is not None for row in study.rows)
    return {"title": study.title, "rows": len(study.rows), "runnable": runnable}


@app.command()
def run(
    name: Name,
    scale: OptionalScale = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds per row.", min=1, max=MAX_SEEDS)] = 1,
    data: Data = None,
    out: Out = "results",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field in every row.", metavar="KEY=VALUE")
    ] = None,
    profile: Annotated[
        Profile, typer.Option(help="Follow the paper or the authors' code where they differ.")
    ] = "paper",
    rows: Annotated[str, typer.Option(help="Only these rows: names or numbers from 1, separated by commas.")] = "",
    max_concurrent: Annotated[
        int | None,
        typer.Option(
            help="Rows at the same time; default: as many as get two cores or a GPU.", min=1, max=MAX_CONCURRENT
        ),
    ] = None,
    address: Address = None,
) -> None:
    """Run every row that is not finished; failed rows are reported and do not stop the others."""
    from wsss_ray.experiments.study_plan import StudyOptions
    from wsss_ray.experiments.study_run import run_study
    from wsss_ray.reports.study_table import summarize_study
    from wsss_ray.reports.study_text import describe_study
    from wsss_ray.studies import build_study

    wanted = tuple(row.strip() for row in rows.split(",") if row.strip())
    chosen = find_scale(scale, name, data, profile)
    study = build_study(name, chosen.scale, profile)
    say_scale(chosen)
    options = StudyOptions(chosen.scale, profile, seeds, find_data(data, out, address), tuple(set_ or ()), wanted)
    table = summarize_study(run_study(study, options, out, address, max_concurrent))
    print_parts(describe_study(table))
    if table.has_failed:
        raise typer.Exit(1)


@app.command()
def report(
    name: Name,
    scale: Annotated[Scale | None, typer.Option(help="Scale; default: the only one found.")] = None,
    out: Out = "results",
    to: Annotated[
        str | None, typer.Option(help="Also write the table to a file.md, or its figure to a .png, .svg or .pdf.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare with published numbers and ranking."""
    from wsss_ray import storage
    from wsss_ray.reports.study_results import find_results
    from wsss_ray.reports.study_table import summarize_study
    from wsss_ray.reports.study_text import describe_study, encode_table

    with keep_stdout_clean(json):
        table = summarize_study(find_results(name, out, scale))
    if json:
        print_json(table)
    else:
        print_parts(describe_study(table))
    if to is not None:
        storage.write_bytes(to, encode_table(table, to))
