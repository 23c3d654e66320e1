# SPDX-License-Identifier: Apache-2.0
"""Label Studio's JSON export: choices give labels, polygons give labels and masks, boxes and brushes labels only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from wsss_ray.config import UserError
from wsss_ray.data.checks import FileLoader
from wsss_ray.data.files import Census, FileTable, is_image, make_ids
from wsss_ray.data.names import ClassNames, gather_classes, list_classes
from wsss_ray.data.options import describe_reading, make_reading, read_options
from wsss_ray.data.shapes import ShapeLoader, describe_shapes
from wsss_ray.data.source import Item, Source, read_file
from wsss_ray.data.splits import SplitOptions, order_splits, split_items
from wsss_ray.data.text import parse_xml, read_text

_LABEL_KEYS = (
    *("polygonlabels", "choices", "rectanglelabels", "brushlabels", "ellipselabels", "keypointlabels", "labels"),
)


@dataclass(frozen=True)
class Task:
    """What somebody marked in one image."""

    image: str
    """As the export writes it."""
    labels: tuple[str, ...]
    polygons: tuple[tuple[str, tuple[float, ...]], ...]
    """(label, x and y in turn in pixels)."""
    size: tuple[int, int] | None
    """(height, width) of the image; None where no mask can be drawn."""


def find_export(folder: Path) -> Path | None:
    """The JSON file of a Label Studio export in a folder."""
    for path in (place for place in sorted(folder.glob("*.json")) if place.is_file()):
        with path.open("rb") as stream:
            head = stream.read(65536)
        listed = head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
        if listed and b'"data"' in head and (b'"annotations"' in head or b'"predictions"' in head):
            return path
    return None


def open_label_studio(root: str | Path | None, **options: Any) -> Source:
    """The images of an export, with ``SplitOptions``; UserError names the file and the task."""
    chosen = read_options("label_studio", SplitOptions, options)
    export = find_export(Path(root)) if root is not None and Path(root).is_dir() else None
    if root is None or export is None:
        raise UserError(f"{root}: no JSON export of Label Studio there; give the folder that holds it and the images")
    folder = Path(root)
    table, census = FileTable(folder), Census()
    tasks = []
    for number, value in enumerate(read_text(export, chosen.encoding).json(), start=1):
        task = _read_task(value, f"{export}: task {number}")
        if task is None:
            census.leave_out("not annotated")
        else:
            tasks.append(task)
    if not tasks:
        raise UserError(f"{export}: no task is annotated; annotate some and export again")
    classes = _find_classes(folder, chosen, tasks)
    places = {task.image: _find_image(task.image, table) for task in tasks}
    names = {image: _relative(path, folder) for image, path in places.items()}
    ids = make_ids(names.values())
    items = [_make_item(task, classes, places[task.image], ids[names[task.image]], names[task.image]) for task in tasks]
    table.count_unused(places.values(), census, f"not in {export.name}")
    bare = sum(task.size is None for task in tasks)
    notes = [*classes.notes, *census.notes(len(items))]
    if 0 < bare < len(tasks):
        what = f"{bare} of {len(tasks)} images have choices, boxes or brushes, not polygons alone"
        notes.append(f"{what}: there is no mask for them")
    items, drawn = split_items(items, chosen)
    return Source(
        name="label_studio",
        classes=list(classes.names),
        items=items,
        load=ShapeLoader(FileLoader(make_reading(chosen, len(classes.names), classes.find))),
        splits=order_splits(items),
        options={"labels_from": export.name, **drawn, **describe_reading(chosen)},
        notes=notes,
    )


def _read_task(value: Any, where: str) -> Task | None:
    """One task; None where nobody has annotated it."""
    try:
        image = next(str(text) for text in value["data"].values() if isinstance(text, str) and is_image(_plain(text)))
        done = [one for one in value.get("annotations") or () if not one.get("was_cancelled")]
        results = (done or value.get("predictions") or [{}])[-1].get("result")
        if results is None or (not results and not done):
            return None
        return _gather(image, results)
    except StopIteration:
        raise UserError(f"{where}: its data names no image; export the task with its image") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"not a task of Label Studio ({type(error).__name__}: {error})"
        raise UserError(f"{where}: {what}; export it again") from error


def _gather(image: str, results: list[Mapping[str, Any]]) -> Task:
    labels: list[str] = []
    polygons: list[tuple[str, tuple[float, ...]]] = []
    size: tuple[int, int] | None = None
    drawable = True
    for result in results:
        value = result["value"]
        found = [str(name) for key in _LABEL_KEYS for name in value.get(key, ())]
        labels += found
        if "points" in value and result.get("type") == "polygonlabels" and not result.get("image_rotation"):
            width, height = int(result["original_width"]), int(result["original_height"])
            size = (height, width)
            pairs = [(float(x) * width / 100, float(y) * height / 100) for x, y in value["points"]]
            ring = tuple(round(part, 6) for pair in pairs for part in pair)
            polygons += [(name, ring) for name in found]
        elif result.get("type") != "choices":
            drawable = False
    return Task(image, tuple(dict.fromkeys(labels)), tuple(polygons), size if drawable else None)


def _plain(text: str) -> str:
    """The file name in a URL or path of an export."""
    return unquote(text.partition("?d=")[2] or text.partition("?")[0]).replace("\\", "/")


def _find_image(text: str, table: FileTable) -> Path:
    name = re.sub(r"^[a-z0-9+]+://[^/]*/", "", _plain(text)).lstrip("/")
    base = name.rpartition("/")[2]
    for candidate in (name, base, re.sub(r"^[0-9a-f]{8}-", "", base)):
        found = table.find(candidate, ("", "images"))
        if found is not None:
            return found
    return table.folder / name


def _relative(path: Path, folder: Path) -> str:
    for place in (folder / "images", folder):
        if path.is_relative_to(place):
            return path.relative_to(place).as_posix()
    return path.name


def _find_classes(folder: Path, options: SplitOptions, tasks: list[Task]) -> ClassNames:
    """Those that are given, those of the labelling interface in their order, else those of the labels."""
    if options.classes:
        return list_classes(options.classes, "--classes")
    for path in sorted(folder.glob("*.xml")):
        tree = parse_xml(read_file(str(path)), str(path))
        names = [found.get("value", "") for found in tree.iter() if found.tag in ("Label", "Choice")]
        if names:
            return list_classes(list(dict.fromkeys(names)), str(path))
    names = [label for task in tasks for label in task.labels]
    if not names:
        raise UserError(f"{folder}: no task has a label; label some and export again")
    return gather_classes(names)


def _make_item(task: Task, classes: ClassNames, image: Path, image_id: str, name: str) -> Item:
    found = {label: classes.find(label) for label in task.labels}
    unknown = tuple(label for label, index in found.items() if index is None)
    shapes = [((found[label] or 0) + 1, [list(ring)]) for label, ring in task.polygons if found[label] is not None]
    extra: dict[str, Any] = {"unknown_classes": classes.guess(unknown)} if unknown else {}
    if task.size is not None:
        extra |= describe_shapes(shapes, task.size)
    labels = tuple(sorted({index for index in found.values() if index is not None}))
    return Item(image_id, str(image), labels, file=name, extra=extra)
