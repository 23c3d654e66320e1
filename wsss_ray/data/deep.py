# SPDX-License-Identifier: Apache-2.0
"""Images of more than 8 bits a channel: what their files say, and their values, which Pillow keeps of grey alone."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

Bytes = bytes | bytearray | memoryview
_SAMPLE_LIMITS, _PLAIN_LIMITS = ("SMinSampleValue", "SMaxSampleValue"), ("MinSampleValue", "MaxSampleValue")
_SIGNED, _FLOAT = 2, 3
"""Of TIFF's tag SampleFormat."""
_SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte orders of Pillow's raw modes -> the other one."""
_PNG_COLOURS = (2, 4, 6)
"""Colour types of PNG with more than one channel, palettes aside."""


@dataclass(frozen=True)
class TiffTags:
    """What the first page of a TIFF states."""

    bits: int
    """BitsPerSample, the largest of all samples."""
    samples: int
    limits: tuple[float, float] | None
    """The smallest and the largest value, as stated by sample limits or else by the bits; None for floats without."""
    white_is_zero: bool
    premultiplied: bool
    """Colours are already multiplied with their alpha."""
    nodata: str


def read_tags(data: Bytes) -> TiffTags | None:
    """The tags of a TIFF as tifffile reads them; None of a file that it does not take for one."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            stated = {tag.name: tag.value for tag in page.tags.values()}
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError):
        return None
    bits = int(max(_list(stated.get("BitsPerSample", 1))))
    return TiffTags(
        bits=bits,
        samples=int(stated.get("SamplesPerPixel", 1)),
        limits=_find_limits(stated) or _limits_of(bits, int(max(_list(stated.get("SampleFormat", 1))))),
        white_is_zero=int(stated.get("PhotometricInterpretation", 1)) == 0,
        premultiplied=1 in _list(stated.get("ExtraSamples", 0)),
        nodata=str(stated.get("GDAL_NODATA", "")).strip("\0 "),
    )


def _find_limits(stated: dict[str, Any]) -> tuple[float, float] | None:
    for low, high in (_SAMPLE_LIMITS, _PLAIN_LIMITS):
        if high in stated:
            bottom, top = float(min(_list(stated.get(low, 0)))), float(max(_list(stated[high])))
            if np.isfinite((bottom, top)).all() and top > bottom:
                return bottom, top
    return None


def _limits_of(bits: int, form: int) -> tuple[float, float] | None:
    if form == _FLOAT or not 8 < bits <= 16:
        return None
    return 0.0, float(2 ** (bits - (form == _SIGNED)) - 1)


def _list(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list, np.ndarray)) else (value,)


def is_deep(image: Image.Image) -> bool:
    """Whether a pixel holds more than 8 bits of grey."""
    return image.mode.startswith(("I", "F"))


def has_deep_channels(image: Image.Image, data: Bytes) -> bool:
    """Whether an image of several channels, of which Pillow keeps 8 bits each, holds more in its file.

    ``data`` is the file, empty where there is none: then what Pillow kept is all there is.
    """
    if not data or image.mode not in ("RGB", "RGBA", "RGBX", "LA") or "transparency" in image.info:
        return False
    if image.format == "PNG":
        depth, colour = bytes(data[24:26])
        return depth == 16 and colour in _PNG_COLOURS
    tags = read_tags(data) if image.format == "TIFF" else None
    # Pillow divides colours by their alpha itself, of 8 bits.
    return tags is not None and tags.bits > 8 and not tags.premultiplied


def read_values(image: Image.Image, data: Bytes) -> np.ndarray:
    """The values of a deep image as stored: (H, W), or (H, W, C) of several channels.

    ``image`` is loaded. ValueError where nothing here reads the file's compression.
    """
    if is_deep(image):
        return np.asarray(image)
    if image.format == "TIFF":
        import tifffile

        try:
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                page: Any = file.pages[0]
                values = np.asarray(page.asarray())
                if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
                    values = np.moveaxis(values, 0, -1)
                return values[..., : len(image.getbands())]
        except ValueError:  # a compression for which it needs another library, but Pillow does not
            pass
    return _join_bytes(image, data)


def _join_bytes(image: Image.Image, data: Bytes) -> np.ndarray:
    """Channels of 16 bits: Pillow keeps the upper bytes, and the lower ones of values whose bytes are swapped."""
    again: Any = Image.open(io.BytesIO(data))
    modes = [str(tile.args if isinstance(tile.args, str) else tile.args[0]) for tile in again.tile]
    if set(modes) == {"LA;16B"}:
        # No swapped form of it, but its four bytes a pixel are also those of four channels.
        four = _load_as(again, "RGBA").astype(np.uint16)
        joined: np.ndarray = four[..., ::2] * 256 + four[..., 1::2]
        return joined
    form, deep, order = modes[0].partition(";16")
    if not deep or order not in _SWAPPED or len(set(modes)) > 1:
        raise ValueError(f"its pixels are stored as {modes[0]}")
    lower = _load_as(again, f"{form};16{_SWAPPED[order]}")
    return np.asarray(np.asarray(image).astype(np.uint16) * 256 + lower)


def _load_as(image: Any, mode: str) -> np.ndarray:
    """The pixels of an opened image whose raw bytes are taken as ``mode``."""
    image.tile = [
        tile._replace(args=mode if isinstance(tile.args, str) else (mode, *tile.args[1:])) for tile in image.tile
    ]
    image.load()
    return np.asarray(image)
