# SPDX-License-Identifier: Apache-2.0
"""``wsss track``: what waits for MLflow."""

from __future__ import annotations

import typer

from wsss_ray.cli.choices import Out

app = typer.Typer(no_args_is_help=True, help="Send to MLflow what waited while it did not answer.")


@app.callback()
def _begin() -> None:
    """One command so far: without this it would have no name."""


@app.command()
def sync(out: Out = "results") -> None:
    """Send what waits below --out, and mark runs that were cut off as KILLED. Exit code 1 where some still waits."""
    from wsss_ray.tracking import close_dead_runs, sync_outboxes

    sent, left = sync_outboxes(out)
    close_dead_runs(out)
    typer.echo(f"{sent} runs sent to MLflow, {left} still wait")
    if left:
        raise typer.Exit(1)
