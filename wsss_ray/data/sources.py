"""The sources by name: where images and their labels can come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsss_ray.data.coco import open_coco
from wsss_ray.data.datumaro import open_datumaro
from wsss_ray.data.folder import open_folder
from wsss_ray.data.label_studio import open_label_studio
from wsss_ray.data.options import convert_options
from wsss_ray.data.source import Source
from wsss_ray.data.toy import open_toy
from wsss_ray.data.voc import open_voc
from wsss_ray.data.yolo import open_yolo
from wsss_ray.registry import Registry

SOURCES: Registry[Callable[..., Source]] = Registry(
    "wsss_ray.sources",
    "source",
    {
        "voc": open_voc,
        "coco": open_coco,
        "folder": open_folder,
        "yolo": open_yolo,
        "label_studio": open_label_studio,
        "datumaro": open_datumaro,
        "toy": open_toy,
    },
)
"""Each takes (root, **options): the folder of the data, or None where it needs none, and keyword-only options."""


def open_source(name: str, root: str | Path | None = None, **options: Any) -> Source:
    """The source with this name over the data at ``root`` (None where it needs none); UserError lists the known
    names and options.
    """
    opener = SOURCES[name]
    return opener(root, **convert_options(name, opener, options))
