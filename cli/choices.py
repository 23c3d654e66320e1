"""What several commands choose alike: options, the data and the scale of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

Out = Annotated[str, typer.Option("--out", help="Folder or URI of artifacts and runs.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]


def print_json(value: Any) -> None:
    """A value as JSON on stdout; dataclasses as their fields."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=dataclasses.asdict))


@contextlib.contextmanager
def keep_stdout_clean(wanted: bool) -> Iterator[None]:
    """What is printed goes to stderr, so that JSON is all there is on stdout."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def complete_recipe(incomplete: str) -> list[str]:
    """Names of recipes, for the shell."""
    from wsss_ray.studies import names

    return [name for name in names() if name.startswith(incomplete)]


def complete_study(incomplete: str) -> list[str]:
    """Names of studies, for the shell."""
    from wsss_ray.studies import study_names

    return [name for name in study_names() if name.startswith(incomplete)]


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of finished runs below --out, for the shell."""
    from wsss_ray import storage
    from wsss_ray.artifacts.record import list_finished

    runs = storage.join(storage.make_absolute(str(ctx.params.get("out") or "results")), "runs")
    return [name for name in list_finished(runs) if name.startswith(incomplete)]


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


def find_data(data: str | None, out: str, address: str | None) -> str | None:
    """Prepared data as it is; a folder of images, a devkit or an export is prepared below ``out`` once."""
    if data is None or "://" in data:
        return data
    from wsss_ray.stages.prepare import prepare_images

    return prepare_images(data, out, address=address)


def find_scale(scale: str | None, name: str, data: str | None, profile: str | None) -> str:
    """The scale that is given, or the one that fits; says which and why."""
    from wsss_ray.studies import settle_scale

    chosen = settle_scale(scale, name, data, profile)
    if chosen.reason:
        typer.echo(f"scale: {chosen.scale} ({chosen.reason})")
    return str(chosen.scale)
