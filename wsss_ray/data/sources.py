# SPDX-License-Identifier: Apache-2.0
"""The sources by name: where images and their labels can come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsss_ray import storage
from wsss_ray.data.options import convert_options
from wsss_ray.data.source import Source
from wsss_ray.registry import Lazy, Registry

SOURCES: Registry[Callable[..., Source]] = Registry(
    "wsss_ray.sources",
    "source",
    {
        "voc": Lazy("wsss_ray.data.voc:open_voc"),
        "coco": Lazy("wsss_ray.data.coco:open_coco"),
        "folder": Lazy("wsss_ray.data.folder:open_folder"),
        "yolo": Lazy("wsss_ray.data.yolo:open_yolo"),
        "label_studio": Lazy("wsss_ray.data.label_studio:open_label_studio"),
        "datumaro": Lazy("wsss_ray.data.datumaro:open_datumaro"),
        "toy": Lazy("wsss_ray.data.toy:open_toy"),
    },
)
"""Each takes (root, **options): the folder of the data, or None where it needs none, and keyword-only options."""


def open_source(name: str, root: str | Path | None = None, **options: Any) -> Source:
    """The source with this name over the data at ``root`` (None where it needs none); UserError lists the known
    names and options.
    """
    opener = SOURCES[name]
    if root is not None:
        root = storage.make_absolute(str(root))  # workers have another working folder
    return opener(root, **convert_options(name, opener, options))
