# SPDX-License-Identifier: Apache-2.0
"""Mask files as people save them: stored values, palettes and colours to class indices, by one stated table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from wsss_ray.config import UserError
from wsss_ray.data.grey import FileError
from wsss_ray.data.image import IGNORE, grey_step, list_values, load_image, voc_palette
from wsss_ray.data.names import BACKGROUND, VOID, name_key
from wsss_ray.data.text import read_text

Colour = tuple[int, int, int]
_COLOUR_LISTS = ("labelmap.txt", "label_colors.txt")
_SHOWN_COLOURS = 3
_BLACK: Colour = (0, 0, 0)


@dataclass(frozen=True)
class MaskTable:
    """What the stored values and colours of the masks of one data set mean."""

    num_classes: int
    ignore: int = IGNORE
    values: Mapping[int, int] = field(default_factory=dict)
    """Stored value -> index, where somebody stated them; then no other value is taken, but for 0 and 255."""
    colours: Mapping[Colour, int] = field(default_factory=dict)
    """Colour -> index, where somebody stated them; else the colours of PASCAL VOC count."""
    by_index: bool = False
    """Stored values are indices, whatever a palette says."""
    ordered: bool = True
    """The order of the classes is known, so that an index means a class."""

    def known_colours(self) -> dict[Colour, int]:
        """Every colour that means an index here; black is the background where a stated table names no other."""
        if self.colours:
            return {**({} if 0 in self.colours.values() else {_BLACK: 0}), **self.colours}
        if self.values:
            return {}
        palette = voc_palette()
        indices = [*range(self.num_classes + 1), self.ignore]
        return {_colour(palette[index]): index for index in indices}

    def lists_greys(self) -> bool:
        """Whether the stated colours are all greys, so that stored greys mean colours and no indices."""
        return bool(self.colours) and all(red == green == blue for red, green, blue in self.colours)


@dataclass(frozen=True)
class MaskRead:
    """A mask that was read."""

    mask: np.ndarray
    """(H, W) uint8 class indices; where ``beyond`` is not empty, stored values."""
    raw: tuple[int, ...]
    """The stored values, ascending."""
    keep: bool
    """The file's own bytes say the same to every reader of indices."""
    palette: tuple[tuple[int, Colour], ...] = ()
    """Colours of the stored values where they are in no table and the indices were taken."""
    beyond: tuple[int, ...] = ()
    """Stored values that mean nothing here."""


def read_mask(data: bytes, name: str, table: MaskTable) -> MaskRead:
    """The class indices of a mask file; FileError where its colours are in no table."""
    image = load_image(data, name)
    if image.format == "JPEG":
        raise FileError(f"{name}: JPEG compression changes class indices; save the mask as a palette PNG", "mask JPEG")
    if image.mode in ("RGB", "RGBA", "RGBX", "LA", "PA", "CMYK", "YCbCr"):
        return _read_colours(image, name, table)
    values = _stored_values(image, data, name)
    raw = list_values(values)
    if table.lists_greys() and not table.by_index and image.mode in ("1", "L", "P"):
        return _read_colours(image, name, table)
    palette: dict[int, Colour] = {}
    if image.mode == "P" and not table.by_index and not table.values:
        palette = _used_palette(image, raw, bool(table.colours))
        decided = _by_palette(palette, table, name)
        if decided is not None:
            return MaskRead(_look_up(values, decided), tuple(raw), False)
    return _by_value(values, raw, table, name, image.format == "PNG", palette)


def _stored_values(image: Image.Image, data: bytes, name: str) -> np.ndarray:
    if image.mode == "P":
        return np.array(image)
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode == "L":
        return np.array(image) // grey_step(data, image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        top = values.max(initial=0)
        if not np.isfinite(values).all() or values.min(initial=0) < 0 or top > 255 or (values != np.rint(values)).any():
            raise FileError(
                f"{name}: value {top:g} is no class index of 8 bits; save indices 0..254 and 255 for unknown",
                "mask depth",
            )
        return values.astype(np.uint8)
    raise FileError(f"{name}: a mask of mode {image.mode}; save it as a palette or grey PNG of indices", "mask mode")


def _by_value(
    values: np.ndarray, raw: list[int], table: MaskTable, name: str, is_png: bool, palette: dict[int, Colour]
) -> MaskRead:
    if table.values:
        meaning = {0: 0, table.ignore: table.ignore, **table.values}
        beyond = tuple(value for value in raw if value not in meaning)
        if beyond:
            return MaskRead(values, tuple(raw), False, beyond=beyond)
        return MaskRead(_look_up(values, {value: meaning[value] for value in raw}), tuple(raw), False)
    if not table.ordered and not set(raw) <= {0, table.ignore}:
        raise FileError(
            f"{name}: holds indices, and nothing says which class each one is; "
            "give the classes in the order of the indices: --classes NAME,NAME,...",
            "mask order",
        )
    beyond = tuple(value for value in raw if value > table.num_classes and value != table.ignore)
    foreign = tuple(palette.items())
    return MaskRead(values, tuple(raw), is_png and not foreign, palette=foreign, beyond=beyond)


def _used_palette(image: Image.Image, raw: list[int], stated: bool) -> dict[int, Colour]:
    """Colours of the stored values; empty where the palette is a ramp of greys, or that of VOC, index by index, and
    nobody stated what colours mean.
    """
    flat = image.getpalette("RGB") or []
    colours = np.zeros((256, 3), np.uint8)
    given = np.array(flat, np.uint8).reshape(-1, 3)[:256]
    colours[: len(given)] = given
    expected = voc_palette()
    if not stated and all((colours[value] == expected[value]).all() for value in raw):
        return {}
    if all((colours[value] == value).all() for value in raw):
        return {}
    return {value: _colour(colours[value]) for value in raw}


def _by_palette(palette: dict[int, Colour], table: MaskTable, name: str) -> dict[int, int] | None:
    """Stored value -> index by the colours of a palette; None where indices decide."""
    if table.colours and not palette:
        return None
    known = table.known_colours()
    if palette and all(colour in known for colour in palette.values()):
        return {value: known[colour] for value, colour in palette.items()}
    if palette and table.colours:
        missing = [colour for colour in palette.values() if colour not in known]
        raise FileError(_unknown_colours(name, missing), "mask colours")
    return None


def _read_colours(image: Image.Image, name: str, table: MaskTable) -> MaskRead:
    """Colours of an RGB mask by the table; what is fully transparent is background."""
    pixels = np.array(image.convert("RGBA")).astype(np.uint32)
    clear = pixels[..., 3] == 0
    packed = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    packed[clear] = 0
    found, inverse = np.unique(packed, return_inverse=True)
    colours: list[Colour] = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in found.tolist()]
    known = {**({(0, 0, 0): 0} if clear.any() else {}), **table.known_colours()}
    if all(colour in known for colour in colours) and not table.by_index:
        if not table.colours and not table.ordered and any(known[colour] for colour in colours):
            raise FileError(f"{name}: colours of VOC, and nothing says their classes; give labelmap.txt", "mask order")
        lookup = np.array([known[colour] for colour in colours], np.uint8)
        return MaskRead(lookup[inverse].reshape(packed.shape), tuple(range(len(colours))), False)
    if all(red == green == blue for red, green, blue in colours) and (not table.colours or table.by_index):
        values = np.array([red for red, _, _ in colours], np.uint8)[inverse].reshape(packed.shape)
        read = _by_value(values, list_values(values), table, name, False, {})
        return MaskRead(read.mask, read.raw, False, beyond=read.beyond)
    if table.by_index:
        raise FileError(
            f"{name}: a colour image holds no indices; leave masks_by=index out, or save a grey PNG",
            "mask colours",
        )
    raise FileError(_unknown_colours(name, [colour for colour in colours if colour not in known]), "mask colours")


def _unknown_colours(name: str, colours: list[Colour]) -> str:
    shown = ", ".join(_hex(colour) for colour in colours[:_SHOWN_COLOURS]) + (", ..." if len(colours) > 3 else "")
    stated = ",".join(f"{_hex(colour)}:CLASS" for colour in colours[:_SHOWN_COLOURS])
    return (
        f"{name}: a colour image whose {shown} stand in no table; put a labelmap.txt (CLASS:red,green,blue a line) "
        f"beside the masks or give --set mask_values={stated}"
    )


def _look_up(values: np.ndarray, meaning: Mapping[int, int]) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for value, index in meaning.items():
        table[value] = index
    indices: np.ndarray = table[values]
    return indices


def _colour(values: Iterable[int]) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


Find = Callable[[str], int | None]
"""Class name in any spelling -> index from 0, None for an unknown one."""


def name_index(name: str, find: Find, ignore: int, where: str) -> int:
    """The mask index of a name in a list of values or colours: a class, the background, or what is ignored."""
    found = find(name)
    if found is not None:
        return found + 1
    if name_key(name) in BACKGROUND:
        return 0
    if name_key(name) in VOID:
        return ignore
    raise UserError(f"{where}: {name!r} is none of the classes; correct it, or call it background or ignore")


def find_colour_list(*folders: Path | None) -> Path | None:
    """The list of colours that a tool left in one of the folders or beside it."""
    for folder in folders:
        for name in _COLOUR_LISTS if folder is not None else ():
            if folder is not None and (folder / name).is_file():
                return folder / name
    return None


def read_colour_list(path: Path, encoding: str | None = None) -> list[tuple[str, Colour]]:
    """(name, colour) of every line of CVAT's ``labelmap.txt`` or of CamVid's ``label_colors.txt``."""
    found: list[tuple[str, Colour]] = []
    for number, line in read_text(path, encoding).lines():
        if line.lstrip().startswith("#"):
            continue
        made = re.match(r"^(.+?):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(?::.*)?$", line.strip())
        turned = re.match(r"^(\d+)\s+(\d+)\s+(\d+)\s+(.+)$", line.strip())
        if made:
            name, values = made[1], made.group(2, 3, 4)
        elif turned:
            name, values = turned[4], turned.group(1, 2, 3)
        else:
            raise UserError(f"{path}:{number}: expected NAME:red,green,blue; correct the line")
        colour = _colour(map(int, values))
        if max(colour) > 255:
            raise UserError(f"{path}:{number}: colour {colour} leaves 0..255; correct the line")
        found.append((name.strip(), colour))
    twice = {colour for _, colour in found if sum(other == colour for _, other in found) > 1}
    if twice:
        names = [name for name, colour in found if colour in twice][:2]
        raise UserError(f"{path}: {names[0]!r} and {names[1]!r} have one colour; give each its own")
    return found


def parse_values(pairs: Mapping[str, str], find: Find, ignore: int) -> tuple[dict[int, int], dict[Colour, int]]:
    """(stored value -> index, colour -> index) of ``mask_values``, whose keys are numbers or #rrggbb."""
    values: dict[int, int] = {}
    colours: dict[Colour, int] = {}
    for key, name in pairs.items():
        index = name_index(name, find, ignore, "mask_values")
        if re.fullmatch(r"#[0-9a-fA-F]{6}", key):
            colours[(int(key[1:3], 16), int(key[3:5], 16), int(key[5:7], 16))] = index
        elif key.isascii() and key.isdigit() and int(key) <= 255:
            values[int(key)] = index
        else:
            raise UserError(f"mask_values: {key!r} is neither a value 0..255 nor a colour #rrggbb; write 255:CLASS")
    if values and colours:
        raise UserError("mask_values: give values or colours, not both")
    return values, colours
