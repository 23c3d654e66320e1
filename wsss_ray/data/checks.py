# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with images, found before a run and not in the middle of it; every line names the file and the
fix.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from PIL import Image

from wsss_ray.config import MaskView, UserError
from wsss_ray.data import image as pic
from wsss_ray.data.deep import has_deep_channels, is_deep
from wsss_ray.data.grey import PLAIN, FileError, Grey
from wsss_ray.data.masks import MaskTable, read_mask
from wsss_ray.data.names import find_id_fault
from wsss_ray.data.source import FACTS, Item, Row, Source, blank_row, read_file
from wsss_ray.data.tally import Facts

_ANIMATED = ("GIF", "TIFF", "WEBP", "PNG")


@dataclass(frozen=True)
class Problem:
    """One finding: an ``error`` stops the preparation, a ``warning`` does not."""

    where: str
    """File, image id or split."""
    what: str
    """What is wrong and how to fix it, in one line."""
    level: Literal["error", "warning"] = "error"
    kind: str = ""
    """The same for all findings with the same trouble."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


@dataclass(frozen=True)
class Reading:
    """How the files of one data set are read, the same for all of them."""

    masks: MaskTable
    masks_as: MaskView | None = None
    """None: by size where that tells, else as shown; saliency likewise."""
    saliency_as: MaskView | None = None
    grey: Grey = PLAIN
    saliency_top: float | None = None
    """The value of saliency files that means 1."""
    max_pixels: int | None = pic.MAX_PIXELS
    """Of an image; what is larger is refused by its header."""

    @property
    def num_classes(self) -> int:
        """Foreground classes."""
        return self.masks.num_classes


@dataclass
class Inspection:
    """Everything seen of one image."""

    row: Row
    problems: list[Problem]
    facts: Facts

    def add(self, error: UserError) -> None:
        """One more problem."""
        self.problems.append(Problem("", str(error), kind=getattr(error, "kind", "")))

    @property
    def errors(self) -> list[Problem]:
        """What keeps the image from being used."""
        return [problem for problem in self.problems if problem.level == "error"]


class ItemError(FileError):
    """An image that cannot be used, with what was seen of it all the same."""

    def __init__(self, text: str, kind: str = "", facts: Facts | None = None) -> None:
        super().__init__(text, kind)
        self.facts = facts


@runtime_checkable
class ReadsFiles(Protocol):
    """A ``Source.load`` that reads files, whose ``reading`` can be settled before it starts."""

    @property
    def reading(self) -> Reading:
        """How it reads them."""

    def settle(self, reading: Reading) -> Callable[[Item], Row]:
        """The same with another reading."""


@dataclass(frozen=True)
class FileLoader:
    """The ``load`` of sources whose images are files: reads, decodes once to be sure, and checks size and indices."""

    reading: Reading

    def __call__(self, item: Item) -> Row:
        """The row of an item; ItemError names the file."""
        return load_item(item, self.reading)

    def settle(self, reading: Reading) -> FileLoader:
        """The same with another reading."""
        return FileLoader(reading)


def load_item(item: Item, reading: Reading) -> Row:
    """The row of an image that lies in files, with its ``Facts``; ItemError with its first error.

    A mask, or a saliency map, must have the size of the image as shown, after EXIF rotation. One that has the size
    before rotation instead was drawn on the unrotated pixels and is turned with them.
    """
    seen = inspect_item(item, reading)
    if seen.errors:
        raise ItemError(str(seen.errors[0]), seen.errors[0].kind, seen.facts)
    return {**seen.row, FACTS: seen.facts}


def inspect_item(item: Item, reading: Reading, fast: bool = False) -> Inspection:
    """Everything wrong with one image, its row and facts; ``fast`` reads headers only and leaves pixels unchecked."""
    seen = Inspection(
        blank_row(item.image_id),
        _find_label_problems(item, reading.num_classes),
        Facts(item.image_id, item.splits, None if item.labels is None else tuple(sorted(set(item.labels)))),
    )
    seen.row["labels"] = None if item.labels is None else sorted(set(item.labels))
    if item.image is None:
        seen.problems.append(Problem(item.image_id, "has no image; add the file or remove it from the list"))
        return seen
    try:
        turn, size = _read_image(item, item.image, reading, fast, seen)
    except UserError as error:
        seen.add(error)
        return seen
    seen.row["height"], seen.row["width"] = (int(side) for side in size)
    for kind, add in (("mask", _add_mask), ("saliency", _add_saliency)):
        if getattr(item, kind) is not None:
            try:
                add(item, _Place(size, turn), reading, fast, seen)
            except UserError as error:
                seen.add(error)
    return seen


def _read_image(
    item: Item, where: str | bytes, reading: Reading, fast: bool, seen: Inspection
) -> tuple[int, tuple[int, int]]:
    name = _name(item, where)
    data = read_file(where, "image")
    header = pic.open_image(data, name, reading.max_pixels)
    turn, size = pic.orientation(header), pic.shown_size(header)
    seen.row["image"] = data
    if fast:
        return turn, size
    pixels = pic.decode_image(data, name, reading.grey)
    deep = is_deep(header) or has_deep_channels(header, data)
    if deep or str(header.format) in ("HEIF", "AVIF", "JXL"):
        # Whatever reads the row later needs neither this data set's range nor a plug-in.
        seen.row["image"] = pic.encode_grey(pixels[..., 0] if is_deep(header) else pixels)
    seen.facts = replace(
        seen.facts,
        content=hashlib.sha256(data).hexdigest()[:16],
        brightest=int(pixels.max(initial=0)) if deep else None,
        range_given=reading.grey.given is not None,
        frames=_count_frames(header),
    )
    return turn, (pixels.shape[0], pixels.shape[1])


def _count_frames(header: Image.Image) -> int:
    return int(getattr(header, "n_frames", 1)) if header.format in _ANIMATED else 1


def validate_row(row: Row, reading: Reading) -> list[Problem]:
    """Everything wrong with a row that is already made: pixels, sizes, indices, labels."""
    item = Item(
        row["image_id"],
        _bytes(row["image"]),
        _labels(row["labels"]),
        _bytes(row.get("mask")),
        _bytes(row.get("saliency")),
    )
    made = inspect_item(item, replace(reading, masks=replace(reading.masks, by_index=True), max_pixels=None))
    height, width = made.row["height"], made.row["width"]
    if height is not None and (height, width) != (row["height"], row["width"]):
        stated, real = f"{row['height']}x{row['width']}", f"{height}x{width}"
        made.problems.append(Problem(item.image_id, f"row says {stated}, image is {real}; prepare the data again"))
    return made.problems


@dataclass
class Tally:
    """Ids, splits and classes as the items go by."""

    seen: set[str] = field(default_factory=set)
    splits: Counter[str] = field(default_factory=Counter)
    used: set[int] = field(default_factory=set)

    def count(self, item: Item) -> list[Problem]:
        """Take one item in; what is wrong with it beside the others."""
        problems = []
        if item.image_id in self.seen:
            what = "id is used twice; rename one of the two images or remove the second line"
            problems.append(Problem(item.image_id, what, kind="id twice"))
        fault = find_id_fault(item.image_id)
        if fault is not None:
            what = f"image id {item.image_id[:60]!r} {fault}; rename the image"
            problems.append(Problem(item.file or item.image_id, what, kind="id"))
        if not item.splits:
            what = "is in no split and will not be used; give it one"
            problems.append(Problem(item.image_id, what, "warning", "no split"))
        self.seen.add(item.image_id)
        self.splits.update(item.splits)
        self.used.update(item.labels or ())
        return problems

    def finish(self, source: Source) -> list[Problem]:
        """What only the whole shows."""
        problems = [
            Problem(f"split {split!r}", "has no images; add some or remove the split")
            for split in source.splits
            if not self.splits[split]
        ]
        if not self.seen:
            problems.append(Problem(source.name, "has no images; check the folder"))
        elif self.used and len(self.used) < len(source.classes):
            missing = [name for index, name in enumerate(source.classes) if index not in self.used]
            what = f"no image has class {', '.join(missing[:5])}; fewer classes may do"
            problems.append(Problem(source.name, what, "warning"))
        return problems


def _find_label_problems(item: Item, num_classes: int) -> list[Problem]:
    where = _name(item, item.extra.get("labels_file", item.image_id))
    problems = [
        Problem(
            where,
            f"unknown class {name!r} of image {item.image_id}; {meant}{' ' if meant else ''}correct the name or add it "
            "to the classes",
            kind="unknown class",
        )
        for name, meant in item.extra.get("unknown_classes", {}).items()
    ]
    problems += [
        Problem(
            where, f"label {label} of image {item.image_id} is outside 0..{num_classes - 1}; correct it", kind="label"
        )
        for label in item.labels or ()
        if not 0 <= label < num_classes
    ]
    if not item.labels and "test" not in item.splits:
        what = "has no label: a method that learns from labels sees only background in it; label it or remove it"
        problems.append(Problem(item.image_id, what, "warning", "no label"))
    return problems


@dataclass(frozen=True)
class _Place:
    """Where a mask must lie."""

    size: tuple[int, int]
    turn: int


def _add_mask(item: Item, place: _Place, reading: Reading, fast: bool, seen: Inspection) -> None:
    where = item.mask or ""
    name, data = _name(item, where), read_file(where, "mask")
    turned = must_turn(pic.shown_size(pic.open_image(data, name)), place.size, place.turn, reading.masks_as, name)
    if fast:
        seen.row["mask"] = data
        return
    table = reading.masks
    read = read_mask(data, name, table)
    seen.facts = replace(seen.facts, raw=read.raw, palette=read.palette)
    if read.beyond:
        allowed = (
            f"one of those of mask_values ({', '.join(map(str, table.values))})"
            if table.values
            else f"0 (background)..{table.num_classes} and {table.ignore}"
        )
        what = f"index {read.beyond[0]} but there are {table.num_classes} classes; use {allowed}"
        raise FileError(f"{name}: {what}", "mask index")
    seen.facts = replace(seen.facts, values=tuple(pic.list_values(read.mask)))
    if turned:
        seen.row["mask"] = pic.encode_mask(pic.rotate(read.mask, place.turn))
    else:
        seen.row["mask"] = data if read.keep else pic.encode_mask(read.mask)


def _add_saliency(item: Item, place: _Place, reading: Reading, fast: bool, seen: Inspection) -> None:
    where = item.saliency or ""
    name, data = _name(item, where), read_file(where, "saliency map")
    header = pic.open_image(data, name)
    turned = must_turn(pic.shown_size(header), place.size, place.turn, reading.saliency_as, name)
    if fast:
        seen.row["saliency"] = data
        return
    saliency = pic.decode_saliency(data, name, reading.saliency_top)
    keep = header.format == "PNG" and not is_deep(header) and reading.saliency_top in (None, 255)
    if turned:
        saliency = pic.rotate(saliency, place.turn)
    seen.row["saliency"] = data if keep and not turned else pic.encode_grey(saliency)


def must_turn(found: tuple[int, int], size: tuple[int, int], turn: int, drawn: MaskView | None, name: str) -> bool:
    """Whether a file must be turned to lie on the image as shown; FileError when it fits neither way."""
    stored = (size[1], size[0]) if turn in (5, 6, 7, 8) else size
    if drawn == "stored" and found == stored:
        return turn != 1
    if found == size:
        return False
    if drawn is None and found == stored:
        return True
    shown, wanted = f"{found[0]}x{found[1]}", f"{size[0]}x{size[1]}"
    hint = "" if drawn is None or found not in (size, stored) else f" read as {drawn} (masks_as)"
    what = f"{shown} (height x width) but its image is {wanted}{hint}; make the two the same size"
    raise FileError(f"{name}: {what}", "mask size")


def _name(item: Item, where: str | bytes) -> str:
    return where if isinstance(where, str) else item.image_id


def _bytes(value: bytes | memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)


def _labels(value: list[int] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value)


def plain_reading(num_classes: int, ignore: int = pic.IGNORE) -> Reading:
    """Masks of indices in the order of the classes, nothing stated."""
    return Reading(MaskTable(num_classes, ignore))


def file_loader(num_classes: int, ignore: int = pic.IGNORE) -> FileLoader:
    """A loader with the plain reading."""
    return FileLoader(plain_reading(num_classes, ignore))
