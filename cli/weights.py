# SPDX-License-Identifier: Apache-2.0
"""``wsss weights``: published weights, listed, fetched and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsss_ray.cli.choices import Json, complete_weights
from wsss_ray.cli.output import print_json

app = typer.Typer(no_args_is_help=True, help="List, fetch and check published weights.")
Folder = Annotated[Path | None, typer.Option(help="Where the file is kept; default: WSSS_WEIGHTS, else the cache.")]


@app.command("list")
def list_weights(json: Json = False) -> None:
    """List the known weights, whether they are here, and where."""
    from wsss_ray.nets.weight_registry import WEIGHTS
    from wsss_ray.nets.weight_store import check_weights, list_hub_weights

    fetched = list_hub_weights()
    if json:
        known = {name: vars(entry) for name, entry in WEIGHTS.items()} | {name: {"name": name} for name in fetched}
        states = {name: check_weights(name) for name in known}
        print_json([{**entry, **vars(states[name]), "path": str(states[name].path)} for name, entry in known.items()])
        return
    for entry in WEIGHTS.values():
        state = check_weights(entry.name)
        typer.echo(f"{entry.name:<28} {state.verdict:<11} {state.place}")
        typer.echo(f"{'':<28} {', '.join(entry.backbones) or 'saliency'}; {entry.source}; licence: {entry.licence}")
    for name in fetched:
        state = check_weights(name)
        typer.echo(f"{name:<28} {state.verdict:<11} {state.place}")


@app.command()
def fetch(
    name: Annotated[
        str,
        typer.Argument(
            help="A name of 'wsss weights list', or hf://OWNER/REPO/FILE[@REVISION] of the Hugging Face Hub.",
            autocompletion=complete_weights,
        ),
    ],
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Download weights and verify their checksum; run the same command to resume."""
    from wsss_ray.cluster.progress import Bar
    from wsss_ray.nets.weight_store import check_weights, fetch_weights

    with Bar(name, 0, "bytes") as bar:

        def advance(done: int, total: int | None) -> None:
            if total is not None and bar.total != total:
                bar.set_total(total)
            bar.at(done)

        path = fetch_weights(name, folder, advance)
    if json:
        print_json({"name": name, **vars(check_weights(name, folder)), "path": str(path)})
    else:
        typer.echo(path)


@app.command()
def check(
    source: Annotated[
        str,
        typer.Argument(
            help="A name of 'wsss weights list', an hf:// name that was fetched, or a file.",
            autocompletion=complete_weights,
        ),
    ],
    json: Json = False,
) -> None:
    """Verify a weights file."""
    from wsss_ray.config import UserError
    from wsss_ray.nets.weight_store import check_weights

    state = check_weights(source)
    if state.verdict in ("absent", "damaged"):
        raise UserError(state.message)
    if json:
        print_json({"name": source, **vars(state), "path": str(state.path)})
    else:
        typer.echo(state.message)
