# SPDX-License-Identifier: Apache-2.0
"""A user's own images: a table of labels, a Hugging Face ``metadata`` file, or a folder per class.

The layouts are tried in this order: ``labels.csv`` (columns image, labels joined by ``;``, optional split),
``metadata.csv`` or ``metadata.jsonl`` (at the top or in one folder per split), and folders named after classes (at the
top or in one folder per split). Optional beside them: ``classes.txt``, ``masks/``, ``saliency/``, ``labelmap.txt``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.data.checks import FileLoader
from wsss_ray.data.files import (
    SALIENCY_TAILS,
    TAILS,
    Census,
    Companions,
    FileTable,
    count_unreadable,
    is_image,
    is_system,
    make_ids,
    short_list,
    split_companion,
)
from wsss_ray.data.names import (
    BACKGROUND,
    ClassNames,
    contain_path,
    gather_classes,
    list_classes,
    name_key,
    path_key,
    show_path,
)
from wsss_ray.data.options import NO_FOLDER, FilePath, describe_reading, make_reading, read_options
from wsss_ray.data.source import Item, Source
from wsss_ray.data.splits import SplitOptions, order_splits, split_items
from wsss_ray.data.tables import SPLIT_FOLDERS, Line, read_csv, read_jsonl, read_split
from wsss_ray.data.text import read_text

_MASKS = ("masks", "mask", "segmentationclass")
_SALIENCY = ("saliency",)
_BESIDES = frozenset({*_MASKS, *_SALIENCY, "images"})
_METADATA: dict[str, Callable[[Path, str | None], tuple[list[Line], list[str]]]] = {
    "metadata.jsonl": read_jsonl,
    "metadata.csv": lambda path, encoding: read_csv(path, True, encoding),
}


class FolderOptions(SplitOptions):
    """Options of the source ``folder``."""

    labels: FilePath | None = None
    """A table of images and labels that lies elsewhere than labels.csv in the folder."""
    masks: FilePath | None = None
    """Folder of masks named like the images; none: there are none."""


@dataclass(frozen=True)
class Entry:
    """One image of the folder."""

    image: Path
    name: str
    """Relative to the place of the images, with the split in front where splits are folders."""
    line: Line
    base: Path
    """Where names of masks and saliency maps in the line start."""


@dataclass
class Found:
    """What a layout holds."""

    layout: str
    entries: list[Entry]
    census: Census = field(default_factory=Census)
    notes: list[str] = field(default_factory=list)
    beside: dict[Path, Path] = field(default_factory=dict)
    """Image -> its mask, where masks lie among the images."""


def open_folder(root: str | Path | None, **options: Any) -> Source:
    """The images below ``root``, with ``FolderOptions``.

    Where no splits are given, a label-stratified draw makes ``train`` and ``val``.
    """
    chosen = read_options("folder", FolderOptions, options)
    if root is None or not Path(root).is_dir():
        raise UserError(f"{root}: no such folder; give the folder that holds the images")
    folder = Path(root)
    found = _read_layout(folder, chosen)
    if not found.entries:
        raise UserError(_ask_for_labels(folder, found))
    _refuse_outer_folder(folder, found)
    classes, listed = _read_classes(folder, chosen, found)
    without = chosen.masks == NO_FOLDER
    masks = _open_companions(folder, _MASKS, "mask", chosen.masks, TAILS)
    saliency = _open_companions(folder, _SALIENCY, "saliency map", chosen.saliency, SALIENCY_TAILS)
    ordered = listed or len(classes.names) == 1
    folders = (masks.folder if masks else None, folder)
    reading = make_reading(chosen, len(classes.names), classes.find, folders, ordered)
    items = _make_items(found, classes, listed, (masks, saliency))
    items = [replace(item, mask=None) for item in items] if without else items
    if any(item.mask for item in items) and not ordered and not reading.masks.colours and not reading.masks.values:
        raise UserError(_ask_for_order(folder, classes.names))
    notes = [*found.notes, *classes.notes, *found.census.notes(len(items))]
    for companions in (masks, saliency):
        notes += companions.notes(len(items)) if companions is not None else []
    described: dict[str, Any] = {"layout": found.layout, "labels_from": found.layout}
    if not any(item.splits for item in items):
        items, drawn = split_items(items, chosen)
        described |= drawn
    described |= describe_reading(chosen)
    return Source(
        name="folder",
        classes=list(classes.names),
        items=sorted(items, key=lambda item: item.image_id),
        load=FileLoader(reading),
        splits=order_splits(items),
        options=described,
        notes=notes,
    )


def _refuse_outer_folder(folder: Path, found: Found) -> None:
    """UserError where all images lie in one folder that holds further ones: it is no class, but what holds them."""
    names = {name for entry in found.entries for name in entry.line.labels or ()}
    if found.layout != "folders" or len(names) > 1:
        return
    (name,) = names
    inner = sorted({"/".join(entry.name.split("/")[:-1]) for entry in found.entries if entry.name.count("/") > 1})
    if len(inner) > 1:
        raise UserError(
            f"{folder}: all images lie below {name}, so all would be of one class; give the folder that holds one "
            f"folder per class ({short_list(inner)})"
        )


def _ask_for_labels(folder: Path, found: Found) -> str:
    """That nothing says the labels of the images there, or that there are none."""
    fix = "add labels.csv (columns image, labels), metadata.jsonl or one folder per class"
    there = sum(_is_photograph(path, folder) for path in FileTable(folder).images)
    if there:
        return f"{folder}: holds {there} images, but nothing says their labels; {fix}"
    left = "; ".join(found.census.notes(0))
    return f"{folder}: no images found; {fix}" + (f" ({left})" if left else "")


def _ask_for_order(folder: Path, names: Sequence[str]) -> str:
    return (
        f"{folder}: there are masks but no list of classes, and nothing says which index is which class; write "
        f"classes.txt with one class a line in the order of the indices from 1 (labels name {short_list(names)}), give "
        f"--classes {','.join(names[:3])}{',...' if len(names) > 3 else ''} in that order, or --set masks=none"
    )


def _read_layout(folder: Path, options: FolderOptions) -> Found:
    if options.labels is not None and not Path(options.labels).is_file():
        raise UserError(f"{options.labels}: no such file; give the table of images and labels")
    table = Path(options.labels) if options.labels is not None else folder / "labels.csv"
    if table.is_file():
        listed = bool(options.classes) or (folder / "classes.txt").is_file()
        lines, notes = read_csv(table, listed, options.encoding)
        return _find_listed(folder, folder, table.name, lines, notes)
    for name, read in _METADATA.items():
        if (folder / name).is_file():
            lines, notes = read(folder / name, options.encoding)
            return _find_listed(folder, folder, name, [_untested(line) for line in lines], notes)
        inner = [place for place in _split_folders(folder) if (place / name).is_file()]
        if inner:
            return _read_split_tables(inner, name, options.encoding)
    return _read_tagged(folder, options)


def _split_folders(folder: Path) -> list[Path]:
    found = [place for place in folder.iterdir() if place.is_dir() and place.name.lower() in SPLIT_FOLDERS]
    return sorted(found, key=lambda place: SPLIT_FOLDERS.index(place.name.lower()))


def _untested(line: Line, split: str | None = None) -> Line:
    """A line with the split of its folder; a test image without labels has unknown ones."""
    own = line.split or split
    labels = None if not line.labels and own == "test" else line.labels
    return Line(line.name, labels, own, line.where, line.mask, line.saliency)


def _read_split_tables(places: list[Path], name: str, encoding: str | None) -> Found:
    whole, read = Found(name, []), _METADATA[name]
    for place in places:
        split = read_split(place.name)
        lines, notes = read(place / name, encoding)
        part = _find_listed(place, place, name, [_untested(line, split) for line in lines], notes, f"{split}/")
        whole.entries += part.entries
        whole.notes += part.notes
        whole.census.reasons.update(part.census.reasons)
    return whole


def _find_listed(folder: Path, base: Path, layout: str, lines: list[Line], notes: list[str], prefix: str = "") -> Found:
    """The images that a table names, and those that lie there and are not named."""
    table = FileTable(base)
    below = ("images", "") if (base / "images").is_dir() else ("",)
    entries = []
    for line in lines:
        image = table.find(line.name, below) or base / below[0] / line.name
        entries.append(Entry(image, prefix + _name_below(image, base, line.name), line, base))
    found = Found(layout, entries, notes=notes)
    named = [entry.image for entry in entries]
    named += [base / value for line in lines for value in (line.mask, line.saliency) if value]
    others = [path for path in table.images if _is_photograph(path, base)]
    found.beside = _split_off_masks([path for path in others if path not in set(named)], named, base)
    taken = {str(path) for path in (*named, *found.beside.values())}
    unlisted = [path for path in others if str(path) not in taken]
    found.census.leave_out(f"not listed in {layout}", len(unlisted))
    found.notes = [*found.notes, *_find_other_masks(unlisted, entries, base)]
    count_unreadable(table.files, found.census)
    return found


def _find_other_masks(unlisted: Iterable[Path], entries: Iterable[Entry], base: Path) -> list[str]:
    """A note for each folder in which most files are named like the images, though it is not called ``masks``."""
    stems = {path_key(Path(entry.name).stem) for entry in entries}
    tops: dict[Path, list[bool]] = {}
    for path in unlisted:
        if path.parent != base:
            key, _ = split_companion(path_key(path.name), TAILS)
            tops.setdefault(base / path.relative_to(base).parts[0], []).append(key in stems)
    return [
        f"{top}: {sum(fits)} files there are named like images; if they are masks, give --set masks={top}"
        for top, fits in sorted(tops.items())
        if sum(fits) > len(fits) / 2 and sum(fits) > len(stems) / 2
    ]


def _name_below(image: Path, base: Path, written: str) -> str:
    """The image's path below ``base`` or ``base``/images; elsewhere the one written, without what leads up."""
    plain = Path(os.path.abspath(image))
    for place in (base / "images", base):
        if plain.is_relative_to(os.path.abspath(place)):
            return plain.relative_to(os.path.abspath(place)).as_posix()
    return contain_path(written)


def _is_photograph(path: Path, base: Path) -> bool:
    """Whether an image lies in no folder of masks or saliency maps."""
    top = path.relative_to(base).parts[0].lower()
    return top not in _BESIDES or top == "images" or path.parent == base


def _read_tagged(folder: Path, options: FolderOptions) -> Found:
    """One folder per class, at the top or below one folder per split.

    Folders of masks and saliency maps are no classes, unless these lie elsewhere or are ruled out.
    """
    beside = {"images", *(() if options.masks else _MASKS), *(() if options.saliency else _SALIENCY)}
    elsewhere = [Path(os.path.normpath(given)) for given in (options.masks, options.saliency) if given]
    splits = _split_folders(folder)
    found = Found("folders", [])
    for base in splits or [folder]:
        split = read_split(base.name) if splits else None
        for inner in sorted(path for path in base.iterdir() if path.is_dir() and not is_system(path.name)):
            if inner.name.lower() in beside or Path(os.path.normpath(inner)) in elsewhere:
                continue
            table = FileTable(inner)
            paired = _split_off_masks(table.images, table.images, inner)
            masks = set(paired.values())
            for image in (path for path in table.images if path not in masks):
                name = (f"{split}/" if split else "") + image.relative_to(base).as_posix()
                found.entries.append(Entry(image, name, Line(name, (inner.name,), split, str(inner)), base))
            found.beside |= paired
            count_unreadable(table.files, found.census)
        loose = [path for path in base.iterdir() if path.is_file() and is_image(path.name) and not is_system(path.name)]
        found.census.leave_out("in no class folder", len(loose))
    return found


def _split_off_masks(candidates: Iterable[Path], images: Iterable[Path], base: Path) -> dict[Path, Path]:
    """Image -> mask for files such as ``a_mask.png`` beside ``a.jpg``."""
    by_key: dict[str, Path] = {}
    for path in images:
        if path.is_relative_to(base):
            by_key.setdefault(path_key(path.relative_to(base).as_posix()).rpartition(".")[0], path)
    found = {}
    for path in candidates:
        relative = path_key(path.relative_to(base).as_posix())
        key, _ = split_companion(relative, TAILS)
        if key != relative.rpartition(".")[0] and key in by_key and by_key[key] != path:
            found[by_key[key]] = path
    return found


def _read_classes(folder: Path, options: FolderOptions, found: Found) -> tuple[ClassNames, bool]:
    """Class names, and whether somebody listed them (so that others are mistakes)."""
    path = folder / "classes.txt"
    if options.classes:
        return list_classes(options.classes, "--classes"), True
    if path.is_file():
        file = read_text(path, options.encoding)
        names = [line.strip() for _, line in file.lines()]
        if names and name_key(names[0]) in BACKGROUND:
            raise UserError(f"{path}: lists foreground classes only; delete the line {names[0]!r}")
        if not names:
            raise UserError(f"{path}: is empty; name one class a line or delete the file")
        found.notes += [file.note] if file.note else []
        return list_classes(names, str(path)), True
    names = [name for entry in found.entries for name in entry.line.labels or ()]
    if names and all(name.isdigit() for name in names):
        raise UserError(f"{folder}: labels are numbers; add classes.txt with one class name a line, the first for 0")
    if not names:
        raise UserError(f"{folder}: no image has a label; fill in the labels")
    return gather_classes(names), False


def _open_companions(
    folder: Path, names: Sequence[str], kind: str, given: str | None, tails: tuple[str, ...]
) -> Companions | None:
    if given == NO_FOLDER:
        return None
    if given is not None:
        if not Path(given).is_dir():
            raise UserError(f"{given}: no such folder; {names[0]} is a folder of <image>.png")
        return Companions(Path(given), kind, tails, required=True)
    there = [path for path in folder.iterdir() if path.is_dir() and path.name.lower() in names]
    if len(there) > 1:
        raise UserError(f"{folder}: {there[0].name} and {there[1].name} both hold {kind}s; remove or rename one")
    return Companions(there[0], kind, tails) if there else None


def _make_items(
    found: Found,
    classes: ClassNames,
    listed: bool,
    companions: tuple[Companions | None, Companions | None],
) -> list[Item]:
    ids = make_ids(entry.name for entry in found.entries)
    masks, saliency = companions
    items = []
    for entry in found.entries:
        labels, unknown = _look_up(entry.line.labels, classes, listed)
        image_id = ids[entry.name]
        line = entry.line
        items.append(
            Item(
                image_id,
                str(entry.image),
                labels,
                mask=_match(masks, entry, image_id, line.mask) or _text(found.beside, entry),
                saliency=_match(saliency, entry, image_id, line.saliency),
                splits=(entry.line.split,) if entry.line.split else (),
                file=show_path(entry.name),
                extra={"unknown_classes": classes.guess(unknown), "labels_file": entry.line.where} if unknown else {},
            )
        )
    return items


def _look_up(
    names: tuple[str, ...] | None, classes: ClassNames, listed: bool
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Class indices of labels, and the labels that are no class."""
    if names is None:
        return None, ()
    indices: set[int] = set()
    unknown = []
    for name in names:
        index = classes.find(name)
        if index is None and listed and name.isdigit() and int(name) < len(classes.names):
            index = int(name)
        if index is None:
            unknown.append(name)
        else:
            indices.add(index)
    return tuple(sorted(indices)), tuple(unknown)


def _match(companions: Companions | None, entry: Entry, image_id: str, given: str | None) -> str | None:
    """The file that the table names, else the one whose name fits."""
    if given:
        named = entry.base / given.replace("\\", "/")
        return str(companions.claim(named, entry.name) if companions is not None else named)
    path = companions.find(entry.name, image_id) if companions is not None else None
    return str(path) if path is not None else None


def _text(beside: dict[Path, Path], entry: Entry) -> str | None:
    path = beside.get(entry.image)
    return str(path) if path is not None else None
