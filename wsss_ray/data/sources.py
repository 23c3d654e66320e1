"""The sources by name."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.data.source import Source

SOURCES: dict[str, str] = {
    "voc": "wsss_ray.data.voc:open_voc",
    "coco": "wsss_ray.data.coco:open_coco",
    "folder": "wsss_ray.data.folder:open_folder",
    "toy": "wsss_ray.data.toy:open_toy",
}
"""Name -> "module:function", imported when asked for; the function takes (root, **options)."""


def open_source(name: str, root: str | Path | None = None, **options: Any) -> Source:
    """The source with this name over the data at ``root`` (None where it needs none); UserError lists the known
    names and options."""
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}; known: {', '.join(SOURCES)}")
    module, function = SOURCES[name].split(":")
    opener = getattr(importlib.import_module(module), function)
    known = opener.__kwdefaults__ or {}
    unknown = sorted(set(options) - set(known))
    if unknown and "config" not in known:
        raise UserError(f"source {name!r} has no option {unknown[0]!r}; known: {', '.join(sorted(known))}")
    opened: Source = opener(root, **options)
    return opened
