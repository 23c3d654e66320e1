# SPDX-License-Identifier: Apache-2.0
"""``wsss predict``: masks of any images from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsss_ray.cli.choices import MAX_PIXELS, Address, MaxPixels, complete_run_folder


def predict(
    images: Annotated[list[str], typer.Argument(help="Images, folders, URIs or prepared shards.")],
    model: Annotated[
        str,
        typer.Option(
            help="Folder of a run (results/runs/NAME) or of a train artifact.", autocompletion=complete_run_folder
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or URI for masks, overlays and predictions.csv.")] = "predictions",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the run's test protocol, e.g. crf=null.", metavar="KEY=VALUE"),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one per line, for a model whose run does not name them.")
    ] = None,
    overlays: Annotated[bool, typer.Option(help="Also write each mask over its image.")] = True,
    max_pixels: MaxPixels = MAX_PIXELS,
    address: Address = None,
) -> None:
    """Segment images with a trained model. Resumable."""
    from wsss_ray.serve.predict import PredictOptions, predict_images

    options = PredictOptions(tuple(set_ or ()), classes, overlays, address, max_pixels=max_pixels)
    counts = predict_images(model, images, out, options)
    typer.echo(
        f"{counts.predicted} segmented, {counts.reused} reused, {counts.skipped} skipped: "
        f"{out}/predictions.csv, {out}/masks"
    )
