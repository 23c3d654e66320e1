"""``wsss study``: the tables and figures of the papers, run and compared with the published numbers."""

from __future__ import annotations

from typing import Annotated

import typer

from wsss_ray.cli.choices import Json, Out, complete_study, find_data, find_scale, keep_stdout_clean, print_json

app = typer.Typer(no_args_is_help=True, help="Run the tables and figures of the papers.")
Name = Annotated[
    str, typer.Argument(help="A name from 'wsss study list', e.g. cam.baseline.", autocompletion=complete_study)
]


@app.command("list")
def list_studies() -> None:
    """List available studies: name, rows, title."""
    from wsss_ray.studies import build_study, study_names

    known = study_names()
    width = max(map(len, known), default=0)
    for name in known:
        study = build_study(name)
        runnable = sum(row.recipe is not None for row in study.rows)
        typer.echo(f"{name:<{width}}  {runnable:>2} of {len(study.rows):>2} rows runnable  {study.title}")


@app.command()
def run(
    name: Name,
    scale: Annotated[
        str | None,
        typer.Option(help="toy, small or paper; default: toy for synthetic images, else what fits the machine."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds per row.", min=1)] = 1,
    data: Annotated[
        str | None,
        typer.Option(help="Folder of images, VOC devkit, COCO export or prepared shards; default: synthetic images."),
    ] = None,
    out: Out = "results",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field in every row.", metavar="KEY=VALUE")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="paper or released: follow the paper or the authors' code where they differ.")
    ] = "paper",
    rows: Annotated[str, typer.Option(help="Only these rows: names or numbers from 1, separated by commas.")] = "",
    max_concurrent: Annotated[
        int | None, typer.Option(help="Rows at the same time; default: as many as get two cores or a GPU.", min=1)
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: a local one.")] = None,
) -> None:
    """Run every row that is not finished; failed rows are reported and do not stop the others."""
    from wsss_ray.experiments.study_plan import StudyOptions
    from wsss_ray.experiments.study_run import run_study
    from wsss_ray.reports.study_table import summarize_study
    from wsss_ray.reports.study_text import print_study
    from wsss_ray.studies import build_study

    wanted = tuple(row.strip() for row in rows.split(",") if row.strip())
    scale = find_scale(scale, name, data, profile)
    options = StudyOptions(scale, profile, seeds, find_data(data, out, address), tuple(set_ or ()), wanted)
    table = summarize_study(run_study(build_study(name, scale, profile), options, out, address, max_concurrent))
    print_study(table)
    if table.has_failed:
        raise typer.Exit(1)


@app.command()
def report(
    name: Name,
    scale: Annotated[str | None, typer.Option(help="Scale; default: the only one found.")] = None,
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
    from wsss_ray.reports.study_text import encode_table, print_study

    with keep_stdout_clean(json):
        table = summarize_study(find_results(name, out, scale))
        print_study(table)
    if json:
        print_json(table)
    if to is not None:
        storage.write_bytes(to, encode_table(table, to))
