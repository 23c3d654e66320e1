# SPDX-License-Identifier: Apache-2.0
"""``wsss sweep``: one recipe over a space of settings."""

from __future__ import annotations

from typing import Annotated

import typer

from wsss_ray.cli.choices import (
    MAX_CONCURRENT,
    MAX_POINTS,
    MAX_SEEDS,
    Address,
    Data,
    OptionalProfile,
    OptionalScale,
    Out,
    RecipeName,
    Sets,
    complete_setting,
    find_data,
    find_scale,
    say_scale,
)
from wsss_ray.cli.output import print_parts
from wsss_ray.config import Search
from wsss_ray.score.names import describe_metrics


def sweep(
    recipe: RecipeName,
    over: Annotated[
        list[str],
        typer.Option(
            help="What varies, once per key: values (1,2,4), steps (240:400:40) or an interval (1e-5..1e-2:log).",
            metavar="KEY=VALUES",
            autocompletion=complete_setting,
        ),
    ],
    data: Data = None,
    out: Out = "results",
    scale: OptionalScale = None,
    profile: OptionalProfile = None,
    set_: Sets = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds per point.", min=1, max=MAX_SEEDS)] = 1,
    search: Annotated[Search, typer.Option(help="How points are chosen; tpe needs the extra 'sweep'.")] = "grid",
    trials: Annotated[
        int | None, typer.Option(help="Number of points for random and tpe; default: 20.", min=1, max=MAX_POINTS)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help=f"What the best point is chosen by: {describe_metrics()}. Later steps are skipped. Default: the last "
            "step, or the first that what varies changes."
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option(
            help="Trials at the same time; default: as many as get two cores or a GPU.", min=1, max=MAX_CONCURRENT
        ),
    ] = None,
    asha: Annotated[
        bool,
        typer.Option(
            "--asha",
            help="Stop trials early whose CAM seeds on validation images are worse than the others'. Reads masks of "
            "val while training.",
        ),
    ] = False,
    address: Address = None,
) -> None:
    """Run a recipe at many settings. Shared steps are computed once; resumes after interruption."""
    from wsss_ray.experiments.sweep import SweepOptions, plan_sweep
    from wsss_ray.experiments.sweep_space import parse_space
    from wsss_ray.studies import resolve

    axes = parse_space(over)
    chosen = find_scale(scale, recipe, data, profile)
    found = find_data(data, out, address)
    base = resolve(recipe, scale=chosen.scale, profile=profile, data=found, settings=set_ or [])
    plan = plan_sweep(base, axes, SweepOptions(seeds, search, trials, metric, asha))
    say_scale(chosen)

    from wsss_ray.experiments.sweep_run import locate_sweep, run_sweep
    from wsss_ray.experiments.sweep_table import describe_sweep

    outcomes = run_sweep(plan, out, address, max_concurrent)
    print_parts(describe_sweep(plan, outcomes, locate_sweep(plan, out)))
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(1)
