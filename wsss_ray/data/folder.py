"""A user's own images: a table of labels, a Hugging Face ``metadata.jsonl``, or a folder per class.

The layouts are tried in this order: ``labels.csv`` (columns image, labels joined by ``;``, optional split),
``metadata.jsonl`` (at the top or in one folder per split), and folders named after classes (at the top or in one folder
per split). Optional beside them: ``classes.txt``, ``masks/<stem>.png``, ``saliency/<stem>.png``.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.data.checks import file_loader
from wsss_ray.data.source import Item, Source

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
_BESIDES = frozenset({"masks", "saliency", "images"})
_SPLIT_NAMES = ("train", "val", "validation", "valid", "test")


@dataclass(frozen=True)
class Entry:
    """One line of whatever table there is."""

    image: Path
    names: tuple[str, ...] | None
    """None where the table says nothing."""
    split: str | None
    image_id: str
    file: str
    """Where the labels were read, for messages."""
    mask: Path | None = None
    saliency: Path | None = None


def open_folder(
    root: str | Path | None,
    *,
    val_fraction: float = 0.2,
    seed: int = 0,
    saliency: str | Path | None = None,
    masks: str | Path | None = None,
    labels: str | Path | None = None,
) -> Source:
    """The images below ``root``; where no splits are given, a label-stratified draw makes ``train`` and ``val``.

    ``labels`` is a table that lies elsewhere than ``root``/labels.csv.
    """
    if root is None or not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds the images")
    folder = Path(root)
    if not 0 <= val_fraction < 1:
        raise UserError(f"folder: val_fraction {val_fraction}; give a part from 0 up to, not including, 1")
    layout, entries = _read(folder, None if labels is None else Path(labels))
    if not entries:
        raise UserError(f"{folder}: no images found; add labels.csv, metadata.jsonl or one folder per class")
    classes, listed = _classes(folder, entries)
    mask_folder = _beside(folder, "masks", masks)
    saliency_folder = _beside(folder, "saliency", saliency)
    items = [_item(entry, classes, listed, mask_folder, saliency_folder) for entry in entries]
    options: dict[str, Any] = {"layout": layout, "labels_from": layout}
    if not any(item.splits for item in items):
        items = draw_splits(items, val_fraction, seed)
        options["splits"] = {"drawn": True, "val_fraction": val_fraction, "seed": seed}
    used = {split for item in items for split in item.splits}
    order = sorted(used, key=lambda name: (_SPLIT_NAMES.index(name) if name in _SPLIT_NAMES else 9, name))
    return Source(
        name="folder",
        classes=classes,
        items=sorted(items, key=lambda item: item.image_id),
        load=file_loader(len(classes)),
        splits=tuple(order),
        options=options,
    )


def draw_splits(items: list[Item], val_fraction: float, seed: int) -> list[Item]:
    """Items with split ``train`` or ``val``: classes from the rarest on, each gives about ``val_fraction`` of its
    images to ``val``.

    A class with one image keeps it in ``train``. The draw depends on ids, labels and seed, not on the order of the
    items.
    """
    rng = np.random.default_rng(seed)
    ordered = sorted(items, key=lambda item: item.image_id)
    counts = Counter(label for item in ordered for label in item.labels or ())
    side: dict[str, str] = {}
    for label in [*sorted(counts, key=lambda label: (counts[label], label)), None]:
        has = [item for item in ordered if (label in (item.labels or ()) if label is not None else not item.labels)]
        free = [item for item in has if item.image_id not in side]
        target = min(int(val_fraction * len(has) + 0.5), max(len(has) - 1, 0))
        missing = max(0, target - sum(side.get(item.image_id) == "val" for item in has))
        chosen = {free[place].image_id for place in rng.permutation(len(free))[:missing].tolist()}
        side.update({item.image_id: "val" if item.image_id in chosen else "train" for item in free})
    return [replace(item, splits=(side[item.image_id],)) for item in ordered]


def _read(folder: Path, labels: Path | None) -> tuple[str, list[Entry]]:
    if labels is not None and not labels.is_file():
        raise UserError(f"{labels}: no such file; give the table of images and labels")
    if labels is not None or (folder / "labels.csv").is_file():
        return "labels.csv", _read_csv(folder, labels or folder / "labels.csv")
    if (folder / "metadata.jsonl").is_file():
        return "metadata.jsonl", _read_jsonl(folder, None)
    inner = [name for name in _SPLIT_NAMES if (folder / name / "metadata.jsonl").is_file()]
    if inner:
        return "metadata.jsonl", [entry for name in inner for entry in _read_jsonl(folder / name, _split_name(name))]
    named = [name for name in _SPLIT_NAMES if (folder / name).is_dir()]
    if named:
        return "folders", [entry for name in named for entry in _read_folders(folder / name, _split_name(name))]
    return "folders", _read_folders(folder, None)


def _split_name(name: str) -> str:
    return "val" if name in ("validation", "valid") else name


def _read_csv(folder: Path, path: Path) -> list[Entry]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = reader.fieldnames or []
            if "image" not in columns or "labels" not in columns:
                hint = "; separate columns by commas and labels by ;" if len(columns) == 1 else ""
                raise UserError(
                    f"{path}: columns {', '.join(columns) or 'none'}; the first line must name image and labels{hint}"
                )
            lines = list(reader)
        if not lines:
            raise UserError(f"{path}: no images found below its first line; add a line for each")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a UTF-8 CSV file ({error}); save it as CSV UTF-8") from error
    entries = []
    for number, line in enumerate(lines, start=2):
        name = (line["image"] or "").strip()
        if not name:
            raise UserError(f"{path}: line {number} names no image; fill it in or delete the line")
        names = tuple(part.strip() for part in (line["labels"] or "").split(";") if part.strip())
        _refuse_separators(f"{path}: line {number}", folder, names, line)
        split = (line.get("split") or "").strip() or None
        known = None if not names and split == "test" else names
        image = _image(folder, name)
        entries.append(Entry(image, known, _split_name(split) if split else None, _id(name), f"{path}:{number}"))
    return entries


def _refuse_separators(where: str, folder: Path, names: tuple[str, ...], line: dict[Any, Any]) -> None:
    """Labels joined by something else than ``;``, which would lose some or make a class of two."""
    if any(part.strip() for part in line.get(None, ())):
        raise UserError(f"{where} has more fields than the first line names; join several labels by ;")
    joined = next((name for name in names if any(mark in name for mark in "|,\t")), None)
    if joined is not None and not (folder / "classes.txt").is_file():
        raise UserError(f"{where}: label {joined!r}; join several labels by ;, or list that class in classes.txt")


def _image(folder: Path, name: str) -> Path:
    inner = folder / "images" / name
    return inner if inner.is_file() or (folder / "images").is_dir() and not (folder / name).is_file() else folder / name


def _id(name: str) -> str:
    return "__".join(Path(name).with_suffix("").parts)


def _read_jsonl(folder: Path, split: str | None) -> list[Entry]:
    path = folder / "metadata.jsonl"
    entries = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{path}:{number}"
        try:
            line = json.loads(text)
            name = line["file_name"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{where}: expected a JSON object with file_name ({error}); correct the line") from error
        own = line.get("split") or split
        names = _json_names(line, where)
        mask, saliency = (folder / line[key] if line.get(key) else None for key in ("mask", "saliency"))
        known = None if not names and own == "test" else names
        prefix = f"{split}__" if split else ""
        entries.append(
            Entry(folder / name, known, _split_name(own) if own else None, prefix + _id(name), where, mask, saliency)
        )
    return entries


def _json_names(line: dict[str, Any], where: str) -> tuple[str, ...]:
    value = next((line[key] for key in ("labels", "label", "objects") if key in line), ())
    if isinstance(value, dict):
        value = next((value[key] for key in ("categories", "category", "label") if key in value), ())
    if isinstance(value, str):
        value = [part.strip() for part in value.split(";") if part.strip()]
    elif isinstance(value, int):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, (str, int)) for part in value):
        raise UserError(f"{where}: labels must be a list of class names or numbers; correct the line")
    return tuple(str(part) for part in value)


def _read_folders(folder: Path, split: str | None) -> list[Entry]:
    entries = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inner.name in _BESIDES or inner.name.startswith("."):
            continue
        for image in sorted(path for path in inner.rglob("*") if path.suffix.lower() in _IMAGES):
            prefix = f"{split}__" if split else ""
            name = str(image.relative_to(folder))
            entries.append(Entry(image, (inner.name,), split, prefix + _id(name), str(inner)))
    return entries


def _classes(folder: Path, entries: Iterable[Entry]) -> tuple[list[str], bool]:
    """Class names, and whether ``classes.txt`` lists them (so that others are mistakes)."""
    path = folder / "classes.txt"
    if path.is_file():
        classes = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if classes and classes[0].strip("_").lower() == "background":
            raise UserError(f"{path}: lists foreground classes only; delete the line {classes[0]!r}")
        if not classes:
            raise UserError(f"{path}: is empty; name one class a line or delete the file")
        return classes, True
    names = sorted({name for entry in entries for name in entry.names or ()})
    if names and all(name.isdigit() for name in names):
        raise UserError(f"{folder}: labels are numbers; add classes.txt with one class name a line, the first for 0")
    if not names:
        raise UserError(f"{folder}: no image has a label; fill in the labels")
    return names, False


def _beside(folder: Path, name: str, given: str | Path | None) -> Path | None:
    if given is None:
        return folder / name if (folder / name).is_dir() else None
    if not Path(given).is_dir():
        raise UserError(f"{given}: no such folder; {name} is a folder of <image>.png")
    return Path(given)


def _item(entry: Entry, classes: list[str], listed: bool, masks: Path | None, saliency: Path | None) -> Item:
    lookup = {name: index for index, name in enumerate(classes)}
    labels: set[int] = set()
    unknown = []
    for name in entry.names or ():
        if name in lookup:
            labels.add(lookup[name])
        elif listed and name.isdigit() and int(name) < len(classes):
            labels.add(int(name))
        else:
            unknown.append(name)
    extra = {"unknown_classes": tuple(unknown), "labels_file": entry.file} if unknown else {}
    return Item(
        entry.image_id,
        str(entry.image),
        None if entry.names is None else tuple(sorted(labels)),
        mask=_png(entry.mask, masks, entry),
        saliency=_png(entry.saliency, saliency, entry),
        splits=(entry.split,) if entry.split else (),
        extra=extra,
    )


def _png(given: Path | None, folder: Path | None, entry: Entry) -> str | None:
    """The file named in the table, else ``folder/<id>.png`` (images of one name in two folders), else
    ``folder/<stem>.png``, where they are there.
    """
    if given is not None:
        return str(given)
    if folder is None:
        return None
    names = (entry.image_id, entry.image.stem)
    return next((str(path) for name in names if (path := folder / f"{name}.png").is_file()), None)
