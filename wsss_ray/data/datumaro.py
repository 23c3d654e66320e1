# SPDX-License-Identifier: Apache-2.0
"""Datumaro's layout (CVAT exports it): ``annotations/<subset>.json`` and the images in ``images/``.

Its JSON is read here, not by the package ``datumaro``: version 1.13 asks for pillow 12 and pandas 2, older than what is
installed here, and what pip finds instead (0.5) brings a second OpenCV. The fields are those of its documentation
("Datumaro format"): categories.label.labels, items[].id, image.path, image.size, annotations[].type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.data.checks import FileLoader
from wsss_ray.data.coco_masks import DrawRules, pycocotools_mask
from wsss_ray.data.files import Census, FileTable, is_image, make_ids
from wsss_ray.data.names import BACKGROUND, contain_path, list_classes, name_key
from wsss_ray.data.options import describe_reading, make_reading, read_options
from wsss_ray.data.shapes import ShapeLoader, describe_shapes
from wsss_ray.data.source import Item, Source
from wsss_ray.data.splits import SplitOptions, order_splits, split_items
from wsss_ray.data.tables import SPLIT_FOLDERS, read_split
from wsss_ray.data.text import read_text

_DRAWN = ("polygon", "mask")


@dataclass(frozen=True)
class Entry:
    """One item of a subset."""

    path: str
    """Of the image, as the file writes it."""
    subset: str
    labels: tuple[int, ...]
    """Numbers in the file's list of labels."""
    shapes: tuple[tuple[int, Any], ...] | None
    """(label, polygons or RLE) from the lowest to the highest; None where there is more than shapes can draw."""
    size: tuple[int, int] | None


def find_subsets(root: Path) -> list[Path]:
    """The annotation files in Datumaro's format."""
    found = []
    for path in sorted((root / "annotations").glob("*.json")):
        if path.is_file():
            with path.open("rb") as stream:
                head = stream.read(1 << 20).replace(b"\0", b"")
            if b'"categories"' in head and (b'"items"' in head or b'"dm_format_version"' in head):
                found.append(path)
    return found


def open_datumaro(root: str | Path | None, **options: Any) -> Source:
    """The images of a data set in Datumaro's layout, with ``SplitOptions``; UserError names the file."""
    chosen = read_options("datumaro", SplitOptions, options)
    files = find_subsets(Path(root)) if root is not None and Path(root).is_dir() else []
    if root is None or not files:
        raise UserError(
            f"{root}: no annotations in Datumaro's format there; give the folder of annotations/ and images/"
        )
    folder = Path(root)
    table, census = FileTable(folder), Census()
    values = {path: _read_subset(path, chosen.encoding) for path in files}
    names = _read_names(values, chosen)
    classes = list_classes([name for name in names if name_key(name) not in BACKGROUND], str(files[0]))
    entries = [_read_entry(item, path, len(names)) for path, value in values.items() for item in value["items"]]
    if any(entry.shapes for entry in entries):
        pycocotools_mask()
    items = _make_items(entries, table, [classes.find(name) for name in names])
    table.count_unused([Path(str(item.image)) for item in items], census, "not listed in the annotations")
    notes = census.notes(len(items))
    bare = sum(entry.shapes is None for entry in entries)
    if bare and bare < len(entries):
        what = f"{bare} of {len(entries)} images have boxes, lines or points, not shapes alone"
        notes.append(f"{what}: there is no mask for them")
    described: dict[str, Any] = {"labels_from": ", ".join(path.name for path in files)}
    if not any(item.splits for item in items):
        items, drawn = split_items(items, chosen)
        described |= drawn
    return Source(
        name="datumaro",
        classes=list(classes.names),
        items=items,
        load=ShapeLoader(FileLoader(make_reading(chosen, len(classes.names), classes.find)), DrawRules(overlap="last")),
        splits=order_splits(items),
        options=described | describe_reading(chosen),
        notes=notes,
    )


def _read_subset(path: Path, encoding: str | None) -> Mapping[str, Any]:
    value = read_text(path, encoding).json()
    if not isinstance(value, dict) or not isinstance(value.get("items"), list):
        raise UserError(f"{path}: has no list of items; export it again in Datumaro's format")
    return value


def _read_names(values: Mapping[Path, Mapping[str, Any]], options: SplitOptions) -> list[str]:
    """The labels in the order of their numbers, the same in every subset."""
    found: dict[Path, list[str]] = {}
    for path, value in values.items():
        try:
            found[path] = [str(label["name"]) for label in value["categories"]["label"]["labels"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: names no labels (categories.label.labels); export it again") from error
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise UserError(f"{first} and {other} list other labels, so their numbers differ; export them together")
    names = list(options.classes) or found[first]
    if not names or len(names) != len(found[first]):
        raise UserError(f"{first}: lists {len(found[first])} labels; give --classes as many, or export it again")
    return names


def _read_entry(value: Any, path: Path, num_labels: int) -> Entry:
    where = f"{path}: item {value.get('id') if isinstance(value, dict) else value!r}"
    try:
        image = value.get("image") or value.get("media") or {}
        size = image.get("size")
        labels, shapes, drawable = [], [], True
        for one in sorted(value.get("annotations") or (), key=lambda one: one.get("z_order") or 0):
            label = one.get("label_id")
            if label is None:
                continue
            if not 0 <= int(label) < num_labels:
                raise UserError(f"{where}: label {label} but there are {num_labels} from 0; export it again")
            labels.append(int(label))
            if one["type"] in _DRAWN:
                shapes.append((int(label), [one["points"]] if one["type"] == "polygon" else one["rle"]))
            elif one["type"] != "label":
                drawable = False
        return Entry(
            str(image.get("path") or value["id"]),
            path.stem,
            tuple(labels),
            tuple(shapes) if drawable and shapes else None,
            (int(size[0]), int(size[1])) if size else None,
        )
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        what = f"not an item in Datumaro's format ({type(error).__name__}: {error})"
        raise UserError(f"{where}: {what}; export it again") from error


def _make_items(entries: list[Entry], table: FileTable, indices: list[int | None]) -> list[Item]:
    """``indices``: label number -> class from 0, None for the background."""
    images = [_find_image(entry, table) for entry in entries]
    files = [_name_file(entry, image) for entry, image in zip(entries, images, strict=True)]
    names = [f"{entry.subset}/{file}" for entry, file in zip(entries, files, strict=True)]
    several = len(set(files)) < len(set(names))
    ids = make_ids(names if several else files)
    items = []
    for entry, image, file, name in zip(entries, images, files, names, strict=True):
        labels = {indices[label] for label in entry.labels}
        split = read_split(entry.subset) if entry.subset.lower() in SPLIT_FOLDERS else None
        shapes = [(index + 1, shape) for label, shape in entry.shapes or () if (index := indices[label]) is not None]
        items.append(
            Item(
                ids[name if several else file],
                str(image or table.folder / "images" / entry.path),
                tuple(sorted(label for label in labels if label is not None)),
                splits=(split,) if split else (),
                file=file,
                extra=describe_shapes(shapes, entry.size) if entry.shapes is not None else {},
            )
        )
    return sorted(items, key=lambda item: item.image_id)


def _find_image(entry: Entry, table: FileTable) -> Path | None:
    below = (f"images/{entry.subset}", "images", "")
    return table.find(entry.path, tuple(place for place in below if (table.folder / place).is_dir()))


def _name_file(entry: Entry, image: Path | None) -> str:
    """The path of an image, with the ending that an item's id alone lacks."""
    file = contain_path(entry.path)
    return file if image is None or is_image(file) else file + image.suffix
