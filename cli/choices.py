# SPDX-License-Identifier: Apache-2.0
"""What several commands choose alike: options, the data and the scale of a run, and what the shell completes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated

import typer

from wsss_ray.config import MOST, Profile, Scale

if TYPE_CHECKING:
    from wsss_ray.studies import ChosenScale

log = logging.getLogger(__name__)
MAX_PIXELS = 100_000_000
"""As ``wsss_ray.data.image`` has it, which would import numpy."""
MAX_SEED = MOST["seed"]
MAX_SEEDS, MAX_POINTS, MAX_CONCURRENT = 1000, 100_000, 10_000
"""Of seeds per row or point, of points of a sweep, of runs at the same time."""


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes, for the shell."""
    from wsss_ray.studies import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_study(incomplete: str) -> list[str]:
    """Names of studies, for the shell."""
    from wsss_ray.studies import study_names

    return [name for name in study_names() if name.startswith(incomplete)]


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of finished runs below --out (of ``wsss report``: --results), for the shell."""
    out = ctx.params.get("results") or ctx.params.get("out") or "results"
    return [name for name in _list_runs(str(out)) if name.startswith(incomplete)]


def complete_run_folder(incomplete: str) -> list[str]:
    """Folders of finished runs below results/, for the shell."""
    return [folder for name in _list_runs("results") if (folder := f"results/runs/{name}").startswith(incomplete)]


def complete_page(ctx: typer.Context, incomplete: str) -> list[str]:
    """What ``wsss report`` can show: runs and studies."""
    return [*complete_run(ctx, incomplete), *complete_study(incomplete)]


def _list_runs(out: str) -> list[str]:
    from wsss_ray import storage
    from wsss_ray.artifacts.record import list_finished

    return list_finished(storage.join(storage.make_absolute(out), "runs"))


def complete_setting(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of the recipe that was named, for the shell."""
    from wsss_ray.config import UserError, list_keys
    from wsss_ray.studies import resolve

    try:
        recipe = resolve(str(ctx.params.get("recipe") or "cam"), scale=str(ctx.params.get("scale") or "toy"))
    except UserError:
        return []
    return [f"{key}=" for key in list_keys(recipe) if key.startswith(incomplete)]


def complete_weights(incomplete: str) -> list[str]:
    """Names of published weights, for the shell."""
    from wsss_ray.nets.weight_registry import WEIGHTS

    return [name for name in WEIGHTS if name.startswith(incomplete)]


def complete_source(incomplete: str) -> list[str]:
    """Names of sources, for the shell."""
    from wsss_ray.data.sources import SOURCES

    return [name for name in ("auto", *SOURCES) if name.startswith(incomplete)]


def complete_detector(incomplete: str) -> list[str]:
    """Names of saliency detectors, for the shell."""
    from wsss_ray.data.saliency import DETECTORS

    return [name for name in DETECTORS if name.startswith(incomplete)]


Out = Annotated[str, typer.Option("--out", help="Folder or URI of artifacts and runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for other programs.")]
RecipeName = Annotated[
    str,
    typer.Argument(help="A name from 'wsss list' or a recipe file.", metavar="RECIPE", autocompletion=complete_recipe),
]
Data = Annotated[
    str | None,
    typer.Option(help="Folder of images, VOC devkit, COCO export or prepared shards; default: synthetic images."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a field, e.g. train.epochs=2.", metavar="KEY=VALUE", autocompletion=complete_setting
    ),
]
OptionalScale = Annotated[
    Scale | None,
    typer.Option(
        help="The same recipe at three scales; default: toy for synthetic images, else what fits the machine."
    ),
]
OptionalProfile = Annotated[
    Profile | None, typer.Option(help="Follow the paper or the authors' code where they differ; default: paper.")
]
MaxPixels = Annotated[
    int, typer.Option(help="Images of more pixels are refused before they are decoded.", min=1, max=10**9)
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join ('auto', HOST:PORT); default: a local one.")]


def find_data(data: str | None, out: str, address: str | None) -> str | None:
    """Prepared data as it is; a folder of images, a devkit or an export is prepared below ``out`` once."""
    if data is None or "://" in data:
        return data
    from wsss_ray.stages.prepare import prepare_images

    return prepare_images(data, out, address=address)


def find_scale(scale: Scale | None, name: str, data: str | None, profile: str | None) -> ChosenScale:
    """The scale that is given, or the one that fits, with the reason."""
    from wsss_ray.studies import settle_scale

    return settle_scale(scale, name, data, profile)


def say_scale(chosen: ChosenScale) -> None:
    """Say which scale was chosen and why, where none was given."""
    if chosen.reason:
        log.info(f"scale: {chosen.scale} ({chosen.reason})")
