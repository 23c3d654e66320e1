# SPDX-License-Identifier: Apache-2.0
"""Which layout a folder of images has, found by what lies in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from wsss_ray.config import UserError
from wsss_ray.data.coco_layout import annotation_files, find_by_content
from wsss_ray.data.datumaro import find_subsets
from wsss_ray.data.files import is_image, is_system, walk_files
from wsss_ray.data.label_studio import find_export
from wsss_ray.data.tables import SPLIT_FOLDERS
from wsss_ray.data.voc import list_devkits
from wsss_ray.data.yolo import find_names_file


class Layout(NamedTuple):
    """What a folder is."""

    source: str
    """Name of the source that reads it."""
    options: dict[str, Any]
    """Options the source needs for it."""
    found: str
    """One line for the user: what was found."""


def detect_layout(path: str | Path) -> Layout:
    """The layout of a folder; UserError where it holds nothing that any source reads."""
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give a folder of images or prepared data")
    for look in _LOOKS:
        found = look(root)
        if found is not None:
            return found
    raise UserError(
        f"{root}: no layout that is known; add labels.csv (columns image, labels), or sort the images into one folder "
        "per class"
    )


def _look_for_voc(root: Path) -> Layout | None:
    found = list_devkits(root)
    if not found:
        return None
    return Layout("voc", {}, f"{root} is a Pascal VOC devkit ({found[0].name}/JPEGImages)")


def _look_for_coco(root: Path) -> Layout | None:
    return _describe_coco(root, annotation_files(root))


def _look_for_datumaro(root: Path) -> Layout | None:
    files = find_subsets(root)
    named = ", ".join(path.relative_to(root).as_posix() for path in files[:3])
    return Layout("datumaro", {}, f"{root} has annotations in Datumaro's format ({named})") if files else None


def _look_for_json(root: Path) -> Layout | None:
    return _describe_coco(root, find_by_content(root))


def _describe_coco(root: Path, files: list[tuple[str, Path]]) -> Layout | None:
    if not files:
        return None
    named = ", ".join(path.relative_to(root).as_posix() for _, path in files[:3])
    return Layout("coco", {}, f"{root} has annotations in COCO's format ({named})")


def _look_for_table(root: Path) -> Layout | None:
    splits = [place for place in root.iterdir() if place.is_dir() and place.name.lower() in SPLIT_FOLDERS]
    for name in ("labels.csv", "metadata.jsonl", "metadata.csv"):
        inner = [place.name for place in splits if (place / name).is_file() and name != "labels.csv"]
        if (root / name).is_file() or inner:
            where = f"{name} in {', '.join(sorted(inner))}" if inner else name
            return Layout("folder", {}, f"{root} is a folder of images with {where}")
    return None


def _look_for_yolo(root: Path) -> Layout | None:
    if find_names_file(root) is None and not ((root / "labels").is_dir() and (root / "classes.txt").is_file()):
        return None
    return Layout("yolo", {}, f"{root} is a YOLO data set: its boxes give labels, there are no masks")


def _look_for_tasks(root: Path) -> Layout | None:
    export = find_export(root)
    return (
        None if export is None else Layout("label_studio", {}, f"{root} is an export of Label Studio ({export.name})")
    )


def _look_for_tags(root: Path) -> Layout | None:
    folders = [place for place in root.iterdir() if place.is_dir() and not is_system(place.name)]
    if not any(is_image(path.name) for place in folders for path in walk_files(place)):
        return None
    splits = any(place.name.lower() in SPLIT_FOLDERS for place in folders)
    return Layout("folder", {}, f"{root} holds one folder of images per class" + (" and split" if splits else ""))


_LOOKS = (
    _look_for_voc,
    _look_for_coco,
    _look_for_datumaro,
    _look_for_table,
    _look_for_yolo,
    _look_for_tasks,
    _look_for_json,
    _look_for_tags,
)
"""In this order: what is told by its names goes first."""
