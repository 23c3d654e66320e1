# SPDX-License-Identifier: Apache-2.0
"""Values of more than 8 bits: the range a file states, or one that is given, the same for a whole data set."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from wsss_ray.config import UserError
from wsss_ray.data.deep import Bytes, TiffTags, is_deep, read_tags, read_values

Range = tuple[float, float]
"""The values that are black and white."""
GREY = "grey"
"""Key of a manifest's options: how images of more than 8 bits were read."""
COLOURS = "RGB;16"
"""The kind of all images of several channels."""
_DEFAULT: dict[str, Range] = {"I;16": (0.0, 65535.0), COLOURS: (0.0, 65535.0), "F": (0.0, 1.0)}


class FileError(UserError):
    """One file that cannot be used; ``kind`` is the same for all files with the same trouble."""

    def __init__(self, text: str, kind: str = "") -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Grey:
    """How deep images of one data set are read."""

    given: Range | None = None
    """Stated by the user for all of them."""
    found: Mapping[str, Range] = field(default_factory=dict)
    """Kind of image -> what the files of that kind state, all taken together."""
    nodata: tuple[float, ...] = ()
    """Values, NaN and infinity among them, that mark missing pixels; they become black."""


PLAIN = Grey()


def dump_grey(grey: Grey) -> dict[str, Any]:
    """A reading as JSON, so that it travels with data and trained networks; NaN and infinity as words."""
    found = {kind: list(values) for kind, values in grey.found.items()}
    given = None if grey.given is None else list(grey.given)
    return {"given": given, "found": found, "nodata": [str(value) for value in grey.nodata]}


def load_grey(value: Mapping[str, Any]) -> Grey:
    """The reading that ``dump_grey`` described; the plain one of nothing."""
    if not value:
        return PLAIN
    low, high = value["given"] or (0.0, 0.0)
    found = {str(kind): (float(first), float(last)) for kind, (first, last) in value["found"].items()}
    given = (float(low), float(high)) if value["given"] else None
    return Grey(given, found, tuple(float(one) for one in value["nodata"]))


def grey_kind(image: Image.Image) -> str:
    """``I;16`` for all grey modes of 16 bits, ``RGB;16`` for several channels, else PIL's mode."""
    if not is_deep(image):
        return COLOURS
    return "I;16" if image.mode.startswith("I;16") else image.mode


def read_range(image: Image.Image, data: Bytes) -> Range | None:
    """The range that a file states by its sample limits or bits; None where it says nothing."""
    if image.format == "TIFF":
        tags = read_tags(data)
        return None if tags is None else tags.limits
    if image.format == "PNG":
        bits = _png_bits(bytes(data[:4096]))
        return (0.0, float(2**bits - 1)) if bits else _DEFAULT["I;16"]
    if image.format == "PPM":
        return _DEFAULT["I;16"]
    return None


def _png_bits(head: bytes) -> int | None:
    """Significant bits of a PNG's first channel (chunk sBIT); None where it says nothing."""
    place = 8
    while place + 8 <= len(head):
        length, kind = struct.unpack(">I4s", head[place : place + 8])
        if kind == b"sBIT" and length >= 1:
            return int(head[place + 8]) or None
        if kind == b"IDAT":
            return None
        place += length + 12
    return None


def scale_deep(image: Image.Image, data: Bytes, grey: Grey, name: str) -> np.ndarray:
    """(H, W), or (H, W, C) of several channels, uint8 of a loaded deep image.

    FileError names values that the range does not hold.
    """
    tags = read_tags(data) if image.format == "TIFF" else None
    stored = read_values(image, data).astype(np.float64)
    values = stored.reshape(*stored.shape[:2], -1)
    colours = values[..., : 3 if values.shape[2] > 2 else 1]
    missing = _where_missing(colours, (*grey.nodata, *_read_nodata(tags)))
    odd = ~np.isfinite(colours) & ~missing
    if odd.any():
        word = "NaN" if np.isnan(colours[odd]).any() else "infinite values"
        raise FileError(
            f"{name}: holds {word} in {int(odd.any(axis=2).sum())} pixels; if they mark missing pixels, give "
            f"--set nodata={'nan' if word == 'NaN' else 'inf'} (they become black)",
            "grey not finite",
        )
    low, high = _range_of(image, data, grey, name)
    known = colours[~missing]
    if known.size and (known.min() < low or known.max() > high):
        raise FileError(
            f"{name}: values {known.min():g}..{known.max():g} leave the range {low:g}..{high:g}; give "
            f"--set grey_range=LOW:HIGH for all images, or --set nodata=VALUE if one marks missing pixels",
            "grey range",
        )
    colours[missing] = low
    scaled = np.clip(np.rint((values - low) / (high - low) * 255.0), 0, 255)
    if tags is not None and tags.white_is_zero:
        scaled = 255.0 - scaled
    scaled[..., : colours.shape[2]][missing] = 0
    eight: np.ndarray = scaled.astype(np.uint8)
    return eight.reshape(stored.shape)


def _read_nodata(tags: TiffTags | None) -> tuple[float, ...]:
    """The value of missing pixels that a GeoTIFF states."""
    try:
        return (float(tags.nodata),) if tags is not None and tags.nodata else ()
    except ValueError:
        return ()


def _where_missing(values: np.ndarray, nodata: tuple[float, ...]) -> np.ndarray:
    missing = np.zeros(values.shape, bool)
    for value in nodata:
        missing |= np.isnan(values) if np.isnan(value) else values == value
    return missing


def _range_of(image: Image.Image, data: Bytes, grey: Grey, name: str) -> Range:
    kind = grey_kind(image)
    found = grey.given or grey.found.get(kind) or read_range(image, data) or _DEFAULT.get(kind)
    if found is None:
        raise FileError(
            f"{name}: grey values of {kind} and nothing says which are black and white; give --set grey_range=LOW:HIGH",
            "grey unknown",
        )
    return found


def join_ranges(first: Range | None, second: Range | None) -> Range | None:
    """The range that holds both."""
    if first is None or second is None:
        return first or second
    return min(first[0], second[0]), max(first[1], second[1])
