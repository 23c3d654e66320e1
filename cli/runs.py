# SPDX-License-Identifier: Apache-2.0
"""``wsss runs``, ``check``, ``clean`` and ``doctor``: what lies below --out, whether it is whole, what of it no run
needs, and what the machine has.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from wsss_ray.cli.choices import Json, Out, complete_recipe
from wsss_ray.cli.output import print_json, print_parts

SortKey = Literal["finished", "name", "cam", "masks", "segmentation"]
MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


def runs(
    out: Out = "results",
    recipe: Annotated[
        str | None, typer.Option(help="Only runs of this recipe.", autocompletion=complete_recipe)
    ] = None,
    sort: Annotated[SortKey, typer.Option(help="By time, by name, or by a score, the best first.")] = "finished",
    json: Json = False,
) -> None:
    """List finished runs with their scores."""
    from wsss_ray.artifacts.usage import list_runs
    from wsss_ray.reports.run_list import build_run_table, sort_runs

    found = sort_runs([run for run in list_runs(out) if recipe is None or run.recipe == recipe], sort)
    if json:
        print_json(found)
    elif found:
        print_parts([build_run_table(found)])
    else:
        typer.echo(f"no finished run below {out}")


def clean(
    out: Out = "results",
    unused: Annotated[bool, typer.Option("--unused", help="Artifacts that no run needs.")] = False,
    older_than: Annotated[str, typer.Option(help="Only what was written so long ago: 30m, 12h, 7d, 2w.")] = "0m",
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it they are only listed.")] = False,
) -> None:
    """List artifacts that neither a finished run nor one to be resumed needs, and with --yes remove them."""
    from wsss_ray.artifacts.usage import read_age, remove
    from wsss_ray.config import UserError
    from wsss_ray.experiments.clean import list_unused

    if not unused:
        raise UserError("say what to clean: wsss clean --unused lists what no run needs, with --yes it is removed")
    found = list_unused(out, read_age(older_than))
    gone = remove(found) if yes else []
    for one in found:
        typer.echo(f"{one.size / 2**20:9.1f} MB  {one.folder}{'' if one in gone or not yes else '  (in use, kept)'}")
    size = sum(one.size for one in (gone if yes else found)) / 2**20
    if yes:
        typer.echo(f"removed {len(gone)} artifacts, {size:.1f} MB")
    else:
        typer.echo(f"{len(found)} artifacts, {size:.1f} MB; remove them with --yes" if found else "nothing to remove")


def check(out: Annotated[str, typer.Argument(help="The --out of runs.")] = "results") -> None:
    """Verify every file of all artifacts and runs. Exit code 1 where one is damaged."""
    from wsss_ray.experiments.check import check_all

    found = check_all(out)
    for problem in found.problems:
        typer.echo(problem)
    what = f"{found.num_artifacts} artifacts, {found.num_runs} runs"
    if found.problems:
        typer.echo(f"{what}: {len(found.problems)} damaged; 'wsss run' with the same recipes computes them again")
        raise typer.Exit(1)
    typer.echo(f"{what}: OK, every file verified")


def doctor(out: Out = "results") -> None:
    """Check this machine: versions, CRF, GPU, weights, disk, MLflow, Ray. Exit code 1 where a run would fail."""
    from wsss_ray.experiments.doctor import examine

    bad = False
    for check in examine(out):
        bad |= check.verdict == "bad"
        typer.echo(f"{MARKS[check.verdict]} {check.name}: {check.text}{f'; {check.fix}' if check.fix else ''}")
    if bad:
        raise typer.Exit(1)
