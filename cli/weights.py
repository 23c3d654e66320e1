"""``wsss weights``: published weights, listed, fetched and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List, fetch and check published weights.")
Folder = Annotated[Path | None, typer.Option(help="Where the file is kept; default: WSSS_WEIGHTS, else the cache.")]


@app.command("list")
def list_weights() -> None:
    """List the known weights, whether they are here, and where."""
    from wsss_ray.nets.weights import WEIGHTS, check

    for entry in WEIGHTS.values():
        state = check(entry.name)
        typer.echo(f"{entry.name:<28} {state.verdict:<11} {state.place}")
        typer.echo(f"{'':<28} {', '.join(entry.backbones)}; {entry.source}; licence: {entry.licence}")


@app.command()
def fetch(name: str, folder: Folder = None) -> None:
    """Download weights and verify them; run the same command to resume."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from wsss_ray.nets.weights import fetch as fetch_weights

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        path = fetch_weights(name, folder, lambda done, total: bar.update(task, completed=done, total=total))
    typer.echo(path)


@app.command()
def check(source: Annotated[str, typer.Argument(help="A name of 'wsss weights list' or a file.")]) -> None:
    """Verify a weights file."""
    from wsss_ray.config import UserError
    from wsss_ray.nets.weights import check as check_weights

    state = check_weights(source)
    if state.verdict in ("absent", "damaged"):
        raise UserError(state.message)
    typer.echo(state.message)
