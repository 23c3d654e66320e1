# SPDX-License-Identifier: Apache-2.0
"""Whether the code of a run is still what it was: processes that start later import what lies on the disk by then."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from wsss_ray.recipe import Recipe

Stamps = dict[str, tuple[int, int]]
"""File, as it is imported -> when it was written last, in nanoseconds, and its size."""


def stamp_code(recipe: Recipe) -> Stamps:
    """The Python files of this package, and of those that the recipe's own parts come from."""
    segment = recipe.segment
    parts = [*(part.method for part in recipe.chain), recipe.refine, segment.network if segment is not None else None]
    packages = {__name__.partition(".")[0], *(type(part).__module__.partition(".")[0] for part in parts)}
    return dict(stamp for name in sorted(packages) for stamp in _stamp_files(name))


def list_changed(before: Stamps, after: Stamps) -> list[str]:
    """The files that were written, added or removed in between, sorted."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _stamp_files(package: str) -> Iterator[tuple[str, tuple[int, int]]]:
    where = getattr(sys.modules.get(package), "__file__", None)
    if where is None:  # a notebook's own
        return
    file = Path(where)
    top, files = (file.parent.parent, file.parent.rglob("*.py")) if file.stem == "__init__" else (file.parent, [file])
    for path in files:
        try:
            found = path.stat()
        except OSError:
            continue
        yield path.relative_to(top).as_posix(), (found.st_mtime_ns, found.st_size)
