"""What can be wrong with images, found before a run and not in the middle of it; every line names the file and the
fix.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.data import image as pic
from wsss_ray.data.image import IGNORE
from wsss_ray.data.source import Item, Row, Source, blank_row, read_file


@dataclass(frozen=True)
class Problem:
    """One finding: an ``error`` stops the preparation, a ``warning`` does not."""

    where: str
    """File, image id or split."""
    what: str
    """What is wrong and how to mend it, in one line."""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


def load_item(item: Item, num_classes: int, ignore: int = pic.IGNORE) -> Row:
    """The row of an image that lies in files; UserError with its first error.

    A mask, or a saliency map, must have the size of the image as shown, after EXIF rotation. One that has the size
    before rotation instead was drawn on the unrotated pixels and is turned with them; where both sizes are equal it is
    taken as shown.
    """
    problems, row = inspect(item, num_classes, ignore, fast=False)
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        raise UserError(str(errors[0]))
    return row


def inspect(item: Item, num_classes: int, ignore: int = pic.IGNORE, fast: bool = False) -> tuple[list[Problem], Row]:
    """Everything wrong with one image and its row; ``fast`` reads headers only and leaves pixels and indices
    unchecked.
    """
    row, problems = blank_row(item.image_id), _label_problems(item, num_classes)
    row["labels"] = None if item.labels is None else sorted(set(item.labels))
    if item.image is None:
        return [*problems, Problem(item.image_id, "has no image; add the file or take it off the list")], row
    name = _name(item, item.image)
    try:
        row["image"] = read_file(item.image, "image")
        header = pic.open_image(row["image"], name)
        turn, size = pic.orientation(header), pic.shown_size(header)
        if not fast:
            size = pic.decode_image(row["image"], name).shape[:2]
    except UserError as error:
        return [*problems, Problem("", str(error))], row
    row["height"], row["width"] = (int(side) for side in size)
    try:
        if item.mask is not None:
            row["mask"] = _mask(item, size, turn, num_classes, ignore, fast)
    except UserError as error:
        problems.append(Problem("", str(error)))
    try:
        if item.saliency is not None:
            row["saliency"] = _saliency(item, size, turn, fast)
    except UserError as error:
        problems.append(Problem("", str(error)))
    return problems, row


def validate(row: Row, num_classes: int, ignore: int = pic.IGNORE) -> list[Problem]:
    """Everything wrong with a row that is already made: pixels, sizes, indices, labels."""
    item = Item(
        row["image_id"],
        _bytes(row["image"]),
        _labels(row["labels"]),
        _bytes(row.get("mask")),
        _bytes(row.get("saliency")),
    )
    problems, made = inspect(item, num_classes, ignore)
    if made["height"] is not None and (made["height"], made["width"]) != (row["height"], row["width"]):
        stated, real = f"{row['height']}x{row['width']}", f"{made['height']}x{made['width']}"
        problems.append(Problem(item.image_id, f"row says {stated}, image is {real}; prepare the data again"))
    return problems


def find_problems(source: Source, fast: bool = False, on_item: Callable[[Item], None] | None = None) -> list[Problem]:
    """A dry pass over a source: every image, then what only the whole shows (ids used twice, empty splits, unused
    classes).

    ``fast`` opens headers only; ``on_item`` is called after each image (progress bars).
    """
    problems: list[Problem] = []
    seen: set[str] = set()
    splits: Counter[str] = Counter()
    used: set[int] = set()
    for item in source.items:
        if item.image_id in seen:
            problems.append(
                Problem(item.image_id, "id is used twice; rename one of the two images or remove the second line")
            )
        seen.add(item.image_id)
        splits.update(item.splits)
        used.update(item.labels or ())
        if item.image is None and item.labels is not None:
            problems += validate(source.load(item), len(source.classes), source.ignore) if not fast else []
        else:
            problems += inspect(item, len(source.classes), source.ignore, fast)[0]
        if not item.splits:
            problems.append(Problem(item.image_id, "is in no split and will not be used; give it one", "warning"))
        if on_item is not None:
            on_item(item)
    for split in source.splits:
        if not splits[split]:
            problems.append(Problem(f"split {split!r}", "has no images; add some or remove the split"))
    if not seen:
        problems.append(Problem(source.name, "has no images; check the folder"))
    elif used and len(used) < len(source.classes):
        missing = [name for index, name in enumerate(source.classes) if index not in used]
        problems.append(
            Problem(source.name, f"no image has class {', '.join(missing[:5])}; fewer classes may do", "warning")
        )
    return problems


def _label_problems(item: Item, num_classes: int) -> list[Problem]:
    where = _name(item, item.extra.get("labels_file", item.image_id))
    problems = [
        Problem(where, f"unknown class {name!r} of image {item.image_id}; correct the name or add it to the classes")
        for name in item.extra.get("unknown_classes", ())
    ]
    problems += [
        Problem(where, f"label {label} of image {item.image_id} is outside 0..{num_classes - 1}; correct it")
        for label in item.labels or ()
        if not 0 <= label < num_classes
    ]
    if not item.labels and "test" not in item.splits:
        what = "has no label: a method that learns from labels sees only background in it; label it or remove it"
        problems.append(Problem(item.image_id, what, "warning"))
    return problems


def _mask(item: Item, size: tuple[int, ...], turn: int, num_classes: int, ignore: int, fast: bool) -> bytes:
    assert item.mask is not None
    name, data = _name(item, item.mask), read_file(item.mask, "mask")
    turned = _fits(pic.shown_size(pic.open_image(data, name)), size, turn, name)
    if fast:
        return data
    mask = pic.decode_mask(data, name)
    wrong = np.setdiff1d(np.unique(mask), [*range(num_classes + 1), ignore])
    if wrong.size:
        allowed = f"0 (background)..{num_classes} and {ignore}"
        raise UserError(f"{name}: index {wrong[0]} but there are {num_classes} classes; use {allowed}")
    if turned:
        return pic.encode_mask(pic.rotate(mask, turn))
    return data if pic.open_image(data, name).format == "PNG" else pic.encode_mask(mask)


def _saliency(item: Item, size: tuple[int, ...], turn: int, fast: bool) -> bytes:
    assert item.saliency is not None
    name, data = _name(item, item.saliency), read_file(item.saliency, "saliency map")
    turned = _fits(pic.shown_size(pic.open_image(data, name)), size, turn, name)
    if fast:
        return data
    saliency = pic.decode_saliency(data, name)
    if turned:
        return pic.encode_grey(pic.rotate(saliency, turn))
    return data if pic.open_image(data, name).format == "PNG" else pic.encode_grey(saliency)


def _fits(found: tuple[int, int], size: tuple[int, ...], turn: int, name: str) -> bool:
    """Whether the file must be turned to lie on the image; UserError when it fits neither way."""
    if found == tuple(size):
        return False
    if turn in (5, 6, 7, 8) and found == (size[1], size[0]):
        return True
    shown, wanted = f"{found[0]}x{found[1]}", f"{size[0]}x{size[1]}"
    raise UserError(f"{name}: {shown} (height x width) but its image is {wanted}; make the two the same size")


def _name(item: Item, where: str | bytes) -> str:
    return where if isinstance(where, str) else item.image_id


def _bytes(value: bytes | memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)


def _labels(value: list[int] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value)


def file_loader(num_classes: int, ignore: int = IGNORE) -> Callable[[Item], Row]:
    """The ``load`` of sources whose images are files: reads, decodes once to be sure, and checks every size and
    index.
    """
    return partial(load_item, num_classes=num_classes, ignore=ignore)
