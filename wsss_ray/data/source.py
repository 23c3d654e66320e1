# SPDX-License-Identifier: Apache-2.0
"""What every place images can come from promises: a stream of light items, and a function that turns one into a
row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.data.grey import FileError
from wsss_ray.data.image import IGNORE, voc_palette

Row = dict[str, Any]
SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("mask", pa.binary()),
        pa.field("saliency", pa.binary()),
        pa.field("parts", pa.binary()),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
    ]
)
"""``labels`` null: unknown (a test image); ``mask``, ``saliency``, ``parts`` are PNG bytes of exactly height x
width."""
FACTS = "facts"
"""Key of a row under which a loader leaves what it saw; no column."""
MAX_BYTES = 1_000_000_000
"""Of the file of an image, a mask or a saliency map."""
MAX_CLASSES = 254
"""Masks are 8-bit with background 0 and 255 for "unknown", which leaves 1..254."""


@dataclass(frozen=True)
class Item:
    """One image before it is read: light and picklable."""

    image_id: str
    image: str | bytes | None
    """A path or URI, the encoded bytes themselves, or None where ``Source.load`` draws it."""
    labels: tuple[int, ...] | None
    """0-based foreground classes, ascending; None where nobody knows them."""
    mask: str | bytes | None = None
    saliency: str | bytes | None = None
    splits: tuple[str, ...] = ()
    file: str = ""
    """The user's own name of the image, relative to the data."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever ``load`` needs; ``unknown_classes``: label names that are no class -> what was meant."""


@dataclass
class Source:
    """A set of images with image-level labels."""

    name: str
    classes: list[str]
    items: Iterable[Item]
    """Every image once; may be iterated again from the start, and never has to fit in memory."""
    load: Callable[[Item], Row]
    """Item -> row of ``SCHEMA``; picklable, runs on workers; UserError names the file."""
    splits: tuple[str, ...] = ()
    """Names of the splits this source promises; each must get an image."""
    palette: list[list[int]] = field(default_factory=lambda: voc_palette().tolist())
    ignore: int = IGNORE
    options: dict[str, Any] = field(default_factory=dict)
    """JSON-able choices that shaped the data, for the manifest: where the labels and masks came from, seeds, ..."""
    notes: list[str] = field(default_factory=list)
    """What a person should know about the files: what is not used and why, what was guessed."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES:
            raise UserError(
                f"{self.name}: {len(self.classes)} classes; give 1 to {MAX_CLASSES} (8-bit masks, 255 is 'unknown')"
            )
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise UserError(f"{self.name}: class {twice[0]!r} is listed twice; name every class once")


def read_file(where: str | bytes, what: str = "file") -> bytes:
    """The bytes of a path or URI (bytes pass through); UserError when it is not there."""
    if isinstance(where, bytes):
        return where
    try:
        return storage.read_bytes(where) if "://" in where else storage.read_local(where, MAX_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FileError(
            f"{where}: {what} cannot be read ({reason}); put it there or remove it from the list", f"no {what}"
        ) from error


def blank_row(image_id: str) -> Row:
    """A row with every column of ``SCHEMA``, empty."""
    return {**dict.fromkeys(SCHEMA.names), "image_id": image_id}
