# SPDX-License-Identifier: Apache-2.0
"""Where the results of studies lie, and what their entries are called."""

from __future__ import annotations

from typing import Any

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.recipe import SCALES

RESULTS = "results.json"
STALE = "stale"
"""State of a seed that was finished with another recipe, data or version."""


def locate_study(out: str, name: str, scale: str) -> str:
    """Where a study keeps its results."""
    return storage.join(storage.make_absolute(out), "studies", f"{name}-{scale}")


def find_results(name: str, out: str, scale: str | None = None) -> dict[str, Any]:
    """The kept results of a study by name, or of the folder ``name``; UserError where there is not exactly one."""
    found: dict[str, Any]
    direct = storage.join(storage.make_absolute(name), RESULTS)
    if storage.exists(direct):
        found = storage.read_json(direct)
        return found
    scales = (scale,) if scale else SCALES
    places = [storage.join(locate_study(out, name, one), RESULTS) for one in scales]
    there = [place for place in places if storage.exists(place)]
    if not there:
        raise UserError(f"no results of study {name!r} below {out}: run it with 'wsss study run {name}'")
    if len(there) > 1:
        raise UserError(f"study {name!r} was run at several scales below {out}: choose one with --scale")
    found = storage.read_json(there[0])
    return found
