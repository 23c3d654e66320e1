"""``wsss weights``: published weights, listed, fetched and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsss_ray.cli.choices import Json, complete_weights, print_json

app = typer.Typer(no_args_is_help=True, help="List, fetch and check published weights.")
Folder = Annotated[Path | None, typer.Option(help="Where the file is kept; default: WSSS_WEIGHTS, else the cache.")]


@app.command("list")
def list_weights(json: Json = False) -> None:
    """List the known weights, whether they are here, and where."""
    from wsss_ray.nets.weight_registry import WEIGHTS
    from wsss_ray.nets.weight_store import check_weights

    if json:
        states = {name: check_weights(name) for name in WEIGHTS}
        print_json(
            [{**vars(entry), **vars(states[name]), "path": str(states[name].path)} for name, entry in WEIGHTS.items()]
        )
        return
    for entry in WEIGHTS.values():
        state = check_weights(entry.name)
        typer.echo(f"{entry.name:<28} {state.verdict:<11} {state.place}")
        typer.echo(f"{'':<28} {', '.join(entry.backbones) or 'saliency'}; {entry.source}; licence: {entry.licence}")


@app.command()
def fetch(name: Annotated[str, typer.Argument(autocompletion=complete_weights)], folder: Folder = None) -> None:
    """Download weights and verify them; run the same command to resume."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from wsss_ray.nets.weight_store import fetch_weights

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
    from wsss_ray.nets.weight_store import check_weights

    state = check_weights(source)
    if state.verdict in ("absent", "damaged"):
        raise UserError(state.message)
    typer.echo(state.message)
