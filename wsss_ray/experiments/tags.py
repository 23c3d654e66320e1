# SPDX-License-Identifier: Apache-2.0
"""What runs are searched by in MLflow."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from wsss_ray.recipe import Recipe


def tag_run(recipe: Recipe) -> dict[str, str]:
    """The tags of a run."""
    return {
        "kind": "run",
        "method": recipe.method.name,
        "network": recipe.net.backbone,
        "refiner": recipe.refine.name if recipe.refine is not None else "none",
        "profile": recipe.method.profile,
        "scale": recipe.scale,
        "data": name_data(recipe.data.uri),
        "seed": str(recipe.seed),
        "git_commit": read_commit(),
        **({"masks_in_training": "val seeds of every epoch"} if recipe.train.validate_seeds else {}),
        **recipe.tags,
    }


def name_data(uri: str | None) -> str:
    """What data is searched by: the last part of its place, ``toy`` for generated images."""
    return (uri or "toy").rstrip("/").rsplit("/", 1)[-1]


@cache
def read_commit() -> str:
    """The commit of this package's checkout as this process began, marked where it has changes; "unknown" elsewhere."""
    here = str(Path(__file__).resolve().parent)
    show = ["git", "-C", here, "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        shown = subprocess.run(show, capture_output=True, text=True, timeout=10, env=os.environ)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return shown.stdout.strip() or "unknown"
