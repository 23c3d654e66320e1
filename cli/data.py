# SPDX-License-Identifier: Apache-2.0
"""``wsss data``: prepare images, look at them, make saliency maps, verify what was prepared."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from wsss_ray.cli.choices import Address, complete_detector, complete_source
from wsss_ray.config import LabelSource, MaskView

log = logging.getLogger(__name__)
app = typer.Typer(no_args_is_help=True, help="Prepare, show and check images.")

Source = Annotated[
    str,
    typer.Argument(
        help="voc, coco, folder or toy; yolo, label_studio or datumaro for exports; auto recognises the layout.",
        autocompletion=complete_source,
    ),
]
Root = Annotated[Path | None, typer.Argument(help="Folder of the images.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--set", help="Source option, e.g. val_fraction=0.1. Values are taken as typed.", metavar="KEY=VALUE"),
]
DetectorOptions = Annotated[
    list[str] | None,
    typer.Option("--set", help="Source option, or detector option: detector.network=u2net.", metavar="KEY=VALUE"),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out images that cannot be used.")]


@app.command()
def prepare(
    source: Source,
    root: Root = None,
    out: Annotated[str, typer.Option(help="Folder or URI for the shards.")] = "data",
    labels: Annotated[str | None, typer.Option(help="labels.csv of a folder, where it lies elsewhere.")] = None,
    labels_from: Annotated[LabelSource | None, typer.Option(help="voc: where image labels come from.")] = None,
    saliency: Annotated[str | None, typer.Option(help="Folder of saliency maps named like the images.")] = None,
    classes: Annotated[str | None, typer.Option(help="Classes in the order of the mask indices: cat,dog.")] = None,
    masks_as: Annotated[MaskView | None, typer.Option(help="How masks lie on images that EXIF turns.")] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Images of more pixels are refused; default: 100 million.", min=1, max=10**9)
    ] = None,
    set_: Options = None,
    skip_bad: SkipBad = False,
    address: Address = None,
) -> None:
    """Check images and write them as Parquet shards with a manifest."""
    from wsss_ray.data.options import parse_settings
    from wsss_ray.stages.prepare import prepare_source

    given = {
        "labels": labels,
        "labels_from": labels_from,
        "saliency": saliency,
        "classes": classes,
        "masks_as": masks_as,
        "max_pixels": max_pixels,
    }
    options = {**parse_settings(set_ or []), **{key: value for key, value in given.items() if value is not None}}
    name, detected = _detect(source, root)
    prepare_source(name, root, {**detected, **options}, out, skip_bad, address)


def _detect(source: str, root: Path | None) -> tuple[str, dict[str, object]]:
    """The source and the options of a folder whose layout is asked for."""
    from wsss_ray.config import UserError
    from wsss_ray.data.layouts import detect_layout

    if source != "auto":
        return source, {}
    if root is None:
        raise UserError("auto: give the folder of the images")
    layout = detect_layout(root)
    log.info(layout.found)
    return layout.source, dict(layout.options)


@app.command()
def show(
    uri: Annotated[str, typer.Argument(help="Prepared data.", metavar="DATA")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("data.html"),
    images: Annotated[int, typer.Option(help="Images to draw.", min=0, max=10_000)] = 24,
) -> None:
    """Write one HTML page that shows prepared data: counts, classes, notes, images with labels and masks."""
    from wsss_ray.reports.data_page import write_data_page

    typer.echo(write_data_page(uri, out, images))


@app.command()
def saliency(
    source: Source,
    root: Root = None,
    out: Annotated[str, typer.Option(help="Folder for the maps, <id>.png.")] = "saliency",
    detector: Annotated[
        str,
        typer.Option(
            help="border_cut, fine_grained, spectral_residual, or onnx: a trained network.",
            autocompletion=complete_detector,
        ),
    ] = "border_cut",
    set_: DetectorOptions = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Pass over images that cannot be read.")] = False,
    address: Address = None,
) -> None:
    """Make saliency maps, by a classical detector or a trained network, for images that come without any."""
    from wsss_ray.data.options import parse_settings, take_part
    from wsss_ray.data.sources import open_source
    from wsss_ray.stages.saliency import make_saliency

    name, detected = _detect(source, root)
    chosen, options = take_part(parse_settings(set_ or []), "detector")
    opened = open_source(name, root, **{**detected, **options})
    make_saliency(opened, out, detector, chosen, skip_bad, address)


@app.command()
def check(uri: Annotated[str, typer.Argument(help="Prepared data.", metavar="DATA")]) -> None:
    """Verify digests, counts and every image of prepared data."""
    from wsss_ray.stages.prepare import check_shards

    check_shards(uri)
