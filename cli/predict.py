"""``wsss predict``: masks of any images from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    images: Annotated[list[str], typer.Argument(help="Images, folders, URIs or prepared shards.")],
    model: Annotated[str, typer.Option(help="Folder of a run (below --out/runs) or of a train artifact.")],
    out: Annotated[str, typer.Option(help="Folder or URI for masks, overlays and answers.csv.")] = "answers",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the run's test protocol, e.g. crf=null.", metavar="KEY=VALUE"),
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="Class names, one a line, where no run tells them.")] = None,
    overlays: Annotated[bool, typer.Option(help="Also write the mask over the image.")] = True,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: a local one.")] = None,
) -> None:
    """Answer any number of images: palette PNGs, overlays, one table; the same command goes on where it stopped."""
    from wsss_ray.serve.predict import predict as answer

    done = answer(model, images, out, set_ or [], classes, overlays, address)
    typer.echo(
        f"{done['answered']} answered, {done['kept']} were answered before, {done['skipped']} skipped: "
        f"{out}/answers.csv, {out}/masks"
    )
