# SPDX-License-Identifier: Apache-2.0
"""``wsss compare``: runs side by side, in tables."""

from __future__ import annotations

from typing import Annotated

import typer

from wsss_ray.cli.choices import MAX_SEED, Json, Out, complete_run
from wsss_ray.cli.output import keep_stdout_clean, print_json, print_parts


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Two or more runs: folders, or names below --out/runs.", autocompletion=complete_run),
    ],
    out: Out = "results",
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.", min=1, max=1_000_000)] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of the resamples.", min=0, max=MAX_SEED)] = 0,
    all_classes: Annotated[bool, typer.Option("--all-classes", help="List every class, however many.")] = False,
    json: Json = False,
) -> None:
    """Compare runs: recipe differences, scores, and whether the differences are statistically significant."""
    from wsss_ray.artifacts.record import open_run
    from wsss_ray.reports.compare import compare_runs
    from wsss_ray.reports.compare_tables import build_tables, list_untested

    with keep_stdout_clean(json):
        result = compare_runs([open_run(name, out) for name in runs], resamples, seed)
    if json:
        print_json(result)
    else:
        print_parts([*build_tables(result, all_classes), *list_untested(result)])
