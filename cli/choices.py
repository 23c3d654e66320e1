"""What several commands choose alike: the data and the scale of a run."""

from __future__ import annotations

import typer


def find_data(data: str | None, out: str, address: str | None) -> str | None:
    """Prepared data as it is; a folder of images, a devkit or an export is prepared below ``out`` once."""
    if data is None or "://" in data:
        return data
    from wsss_ray.stages.prepare import prepare_images

    return prepare_images(data, out, address=address)


def find_scale(scale: str | None, name: str, data: str | None, profile: str | None) -> str:
    """The scale that is given, or the one that fits; says which and why."""
    from wsss_ray.studies import choose_scale, is_file

    if scale is not None or is_file(name):
        return scale or "toy"
    chosen = choose_scale(name, data, profile)
    typer.echo(f"scale: {chosen.scale} ({chosen.reason})")
    return str(chosen.scale)
