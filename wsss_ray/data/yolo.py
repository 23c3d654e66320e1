# SPDX-License-Identifier: Apache-2.0
"""YOLO's layout: ``data.yaml`` with the names, ``images/`` and a text file of boxes for each image in ``labels/``.

Boxes give image-level labels only; there are no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from wsss_ray.config import UserError
from wsss_ray.data.checks import FileLoader
from wsss_ray.data.files import Census, FileTable, count_unreadable, make_ids
from wsss_ray.data.names import list_classes
from wsss_ray.data.options import describe_reading, make_reading, read_options
from wsss_ray.data.source import Item, Source
from wsss_ray.data.splits import SplitOptions, order_splits, split_items
from wsss_ray.data.tables import SPLIT_FOLDERS, read_split
from wsss_ray.data.text import read_text

_LISTS = ("data.yaml", "data.yml", "dataset.yaml")


def open_yolo(root: str | Path | None, **options: Any) -> Source:
    """The images of a YOLO data set, with ``SplitOptions``; UserError names file and line."""
    chosen = read_options("yolo", SplitOptions, options)
    if root is None or not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; give the one that holds data.yaml or classes.txt, images and labels")
    folder = Path(root)
    names, notes = _read_names(folder, chosen)
    classes = list_classes(names, str(folder))
    table = FileTable(folder)
    found = {path.relative_to(folder).as_posix(): path for path in table.images}
    labels = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in table.files
        if path.suffix.lower() == ".txt" and "labels" in path.relative_to(folder).parts
    }
    ids = make_ids(_shorten(name) for name in found)
    census = Census()
    items = []
    for name, image in found.items():
        boxes = labels.get(_label_place(name))
        if boxes is None:
            census.leave_out("without a file of boxes in labels/")
            continue
        split = next((read_split(part) for part in PurePosixPath(name).parts if part.lower() in SPLIT_FOLDERS), None)
        indices = tuple(sorted(set(_read_boxes(boxes, len(classes.names), chosen.encoding))))
        items.append(Item(ids[_shorten(name)], str(image), indices, splits=(split,) if split else (), file=name))
    if not items:
        raise UserError(f"{folder}: no image has a text file of the same name in labels/; check the two folders")
    count_unreadable(table.files, census)
    described: dict[str, Any] = {"labels_from": "boxes"}
    if not any(item.splits for item in items):
        items, drawn = split_items(items, chosen)
        described |= drawn
    return Source(
        name="yolo",
        classes=list(classes.names),
        items=sorted(items, key=lambda item: item.image_id),
        load=FileLoader(make_reading(chosen, len(classes.names), classes.find)),
        splits=order_splits(items),
        options=described | describe_reading(chosen),
        notes=[*notes, *census.notes(len(items)), "boxes give labels only: there are no masks"],
    )


def find_names_file(folder: Path) -> Path | None:
    """The file that lists the classes of a YOLO data set."""
    return next((folder / name for name in _LISTS if (folder / name).is_file()), None)


def _read_names(folder: Path, options: SplitOptions) -> tuple[list[str], list[str]]:
    path = find_names_file(folder)
    if options.classes:
        return list(options.classes), []
    if path is None:
        listed = folder / "classes.txt"
        if not listed.is_file():
            raise UserError(f"{folder}: no data.yaml and no classes.txt; add one that names the classes in order")
        file = read_text(listed, options.encoding)
        return [line.strip() for _, line in file.lines()], [file.note] if file.note else []
    file = read_text(path, options.encoding)
    try:
        names = (yaml.safe_load(file.text) or {}).get("names")
    except (yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct it") from error
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{path}: 'names' must list every class from 0; correct it")
    return [str(name) for name in names], [file.note] if file.note else []


def _shorten(name: str) -> str:
    """A path without its folders ``images``."""
    return "/".join(part for part in PurePosixPath(name).parts if part != "images")


def _label_place(name: str) -> str:
    """Where the boxes of an image lie: ``images`` in its path replaced by ``labels``, else beside it in labels/."""
    parts = list(PurePosixPath(name).with_suffix("").parts)
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        parts[place] = "labels"
        return "/".join(parts)
    return "/".join([*parts[:-1], "labels", parts[-1]])


def _read_boxes(path: Path, num_classes: int, encoding: str | None) -> Iterator[int]:
    """The class of every box; UserError names file and line."""
    for number, line in read_text(path, encoding).lines():
        words = line.split()
        if not words[0].isdigit() or len(words) < 5:
            raise UserError(f"{path}:{number}: expected 'CLASS x y width height'; correct the line")
        if int(words[0]) >= num_classes:
            raise UserError(f"{path}:{number}: class {words[0]} but there are {num_classes} from 0; correct the line")
        yield int(words[0])
