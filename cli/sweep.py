"""``wsss sweep``: one recipe over a space of settings."""

from __future__ import annotations

from typing import Annotated

import typer

from wsss_ray.cli.choices import find_data, find_scale
from wsss_ray.score.names import describe_metrics


def sweep(
    recipe: Annotated[str, typer.Argument(help="A name from 'wsss list' or a recipe file.", metavar="RECIPE")],
    over: Annotated[
        list[str],
        typer.Option(
            help="What varies, once per key: values (1,2,4), steps (240:400:40) or an interval (1e-5..1e-2:log).",
            metavar="KEY=VALUES",
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Folder of images, VOC devkit, COCO export or prepared shards; default: synthetic images."),
    ] = None,
    out: Annotated[str, typer.Option("--out", help="Folder or URI of artifacts and runs.")] = "results",
    scale: Annotated[
        str | None,
        typer.Option(help="toy, small or paper; default: toy for synthetic images, else what fits the machine."),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="paper or released: follow the paper or the authors' code where they differ.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a field in every trial.", metavar="KEY=VALUE")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds per point.", min=1)] = 1,
    search: Annotated[str, typer.Option(help="grid, random or tpe (needs the extra 'sweep').")] = "grid",
    trials: Annotated[int | None, typer.Option(help="Number of points for random and tpe; default: 20.", min=1)] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help=f"What the best point is chosen by: {describe_metrics()}; 'seeds' are the CAM seeds. Later steps are "
            "skipped. Default: the last step, or the first that what varies changes."
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(help="Trials at the same time; default: as many as get two cores or a GPU.", min=1)
    ] = None,
    asha: Annotated[
        bool,
        typer.Option(
            "--asha",
            help="Stop trials early whose CAM seeds on validation images are worse than the others'. Reads masks of "
            "val while training.",
        ),
    ] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: a local one.")] = None,
) -> None:
    """Run a recipe at many settings. Shared steps are computed once; resumes after interruption."""
    from wsss_ray.experiments.sweep import SweepOptions, plan_sweep
    from wsss_ray.experiments.sweep_space import parse_space
    from wsss_ray.studies import resolve

    axes = parse_space(over)
    scale = find_scale(scale, recipe, data, profile)
    found = find_data(data, out, address)
    base = resolve(recipe, scale=scale, profile=profile, data=found, settings=set_ or [])
    plan = plan_sweep(base, axes, SweepOptions(seeds, search, trials, metric, asha))

    from wsss_ray.experiments.sweep_run import run_sweep

    outcomes = run_sweep(plan, out, address, max_concurrent)
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)
