# SPDX-License-Identifier: Apache-2.0
"""Bytes to pixels and back: images to RGB, masks to class indices, saliency to grey, whatever the file holds.

An image's size is the one a viewer shows, that is after its EXIF rotation. All functions raise ``UserError`` naming
the file.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageOps

from wsss_ray.config import UserError
from wsss_ray.data.deep import Bytes, has_deep_channels, is_deep
from wsss_ray.data.grey import PLAIN, FileError, Grey, scale_deep

IGNORE = 255
MAX_PIXELS = 100_000_000
"""Of an image that comes from outside, unless somebody states another limit; its pixels take 300 MB then."""
_lifted_limit = threading.Lock()
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
NEEDS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "need pip install 'wsss-ray[heic]'"),
    ".jxl": "need pillow-jxl-plugin",
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), "are camera raw; save as JPEG"),
    **dict.fromkeys((".svg", ".psd", ".pdf", ".eps"), "cannot be read; save as PNG"),
}
"""Endings of images that cannot be read here -> why."""
_GREY_STEP = {"L;2": 85, "L;4": 17}
"""PIL stretches grey PNGs of 2 and 4 bits to 0..255: what to divide by to get the stored indices back."""


def list_values(mask: np.ndarray) -> list[int]:
    """The values of an array of integers, in order; counted where they are small, which sorting takes ten times."""
    small = mask.dtype.kind == "u" and mask.dtype.itemsize <= 2
    found: list[int] = (np.flatnonzero(np.bincount(mask.reshape(-1))) if small else np.unique(mask)).tolist()
    return found


@lru_cache
def voc_palette(num_colours: int = 256) -> np.ndarray:
    """(num_colours, 3) uint8, read only: the PASCAL VOC colours; bits (0, 1, 2) of each octal digit of the index go to
    R, G, B from the top.
    """
    index = np.arange(num_colours)
    palette = np.zeros((num_colours, 3), np.int64)
    for digit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * digit + channel)) & 1) << (7 - digit)
    colours = palette.astype(np.uint8)
    colours.setflags(write=False)
    return colours


@lru_cache
def register_plugins() -> None:
    """Let PIL read HEIC where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()


def open_image(data: Bytes, name: str = "image", max_pixels: int | None = None) -> Image.Image:
    """The image with its header read and its pixels not yet; UserError for one of more than ``max_pixels``.

    Without a limit, which images have that were let in before, PIL's own is lifted, too.
    """
    register_plugins()
    try:
        with _lifted_limit:
            before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                image = Image.open(io.BytesIO(data))
            finally:
                Image.MAX_IMAGE_PIXELS = before
    except Exception as error:
        reason = NEEDS.get(os.path.splitext(name)[1].lower())
        what = f"files of its kind {reason}" if reason else "save it again as JPEG or PNG, or remove it"
        raise FileError(f"{name}: cannot decode image; {what}", "unreadable") from error
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        what = f"{width} x {height} pixels, and {max_pixels} are the limit; scale it down or raise --max-pixels"
        raise FileError(f"{name}: {what}", "too many pixels")
    return image


def load_image(data: Bytes, name: str, max_pixels: int | None = None) -> Image.Image:
    """The image with its pixels; UserError for a damaged one, and for one of more than ``max_pixels``."""
    image = open_image(data, name, max_pixels)
    try:
        image.load()
    except Exception as error:
        raise FileError(f"{name}: damaged or cut short ({error}); copy it again or remove it", "damaged") from error
    return image


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none or it makes no sense."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) after EXIF rotation, from the header alone."""
    width, height = image.size
    return (width, height) if orientation(image) in _SWAPS_SIDES else (height, width)


def rotate(array: np.ndarray, exif: int) -> np.ndarray:
    """Turn an (H, W, ...) array as a viewer turns an image with this EXIF orientation."""
    if exif in _SWAPS_SIDES:
        array = np.swapaxes(array, 0, 1)
    if exif in (3, 4, 7, 8):
        array = array[::-1]
    if exif in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def decode_image(data: Bytes, name: str = "image", grey: Grey = PLAIN, max_pixels: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of any image: grey, deeper than 8 bits, CMYK, palette and EXIF-rotated ones.

    Transparency is laid on white; ``grey`` says how values of more than 8 bits are read. UserError for an image of
    more than ``max_pixels``, before its pixels are decoded.
    """
    return convert_image(load_image(data, name, max_pixels), data, name, grey)


def convert_image(image: Image.Image, data: Bytes, name: str, grey: Grey = PLAIN) -> np.ndarray:
    """``decode_image`` of an image that was opened; ``data`` is its file, empty where there is none."""
    try:
        if is_deep(image) or has_deep_channels(image, data):
            eight = Image.fromarray(scale_deep(image, data, grey, name))
            return rotate(np.array(_to_rgb(eight)), orientation(image))
        turned = ImageOps.exif_transpose(image)
        return np.array(_to_rgb(turned if turned is not None else image))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name}: cannot be turned into RGB ({error}); save it again as JPEG or PNG") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def decode_mask(data: Bytes, name: str = "mask") -> np.ndarray:
    """(H, W) uint8 class indices of a palette or grey PNG; a colour image is refused, since its colours are not
    indices.
    """
    image = load_image(data, name)
    if image.mode == "P":
        return np.array(image)
    if image.mode == "1":
        return np.array(image).astype(np.uint8)
    if image.mode == "L":
        if image.format == "JPEG":
            raise UserError(f"{name}: JPEG compression changes class indices; save the mask as a palette PNG")
        return np.array(image) // grey_step(data, image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 255:
            raise UserError(
                f"{name}: index {int(values.max())} does not fit 8 bits; save class indices 0..254 and 255 for unknown"
            )
        return values.astype(np.uint8)
    raise UserError(
        f"{name}: a colour image (mode {image.mode}), not class indices; save it as a palette or grey PNG of indices"
    )


def grey_step(data: Bytes, image: Image.Image) -> int:
    """What PIL multiplied the values of a grey PNG of 2 or 4 bits with."""
    # The tile list is emptied by load(), so the bit depth is read from a second look at the header (PNG byte 24).
    if image.format != "PNG":
        return 1
    return _GREY_STEP.get(f"L;{bytes(data[24:25])[0]}", 1)


def encode_mask(mask: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """(H, W) uint8 indices -> PNG in mode P with ``palette`` (N, 3), by default the VOC colours."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8), mode="L")
    colours = voc_palette() if palette is None else np.asarray(palette, np.uint8)
    full = np.zeros((256, 3), np.uint8)
    full[: len(colours)] = colours[:256]
    image.putpalette(full.tobytes())
    return _png(image)


def decode_saliency(data: Bytes, name: str = "saliency", top: float | None = None) -> np.ndarray:
    """(H, W) uint8, or (H, W, 3) where the file is a colour image (EPS takes the channel mean after resizing).

    ``top`` is the value that means 1 in the files of a data set; by default 255, or the largest of deeper files.
    """
    image = load_image(data, name)
    if image.mode in ("RGB", "RGBA", "P"):
        return np.array(image.convert("RGB"))
    if is_deep(image):
        return scale_deep(image, data, Grey((0.0, top)) if top else PLAIN, name)
    values = np.array(image.convert("L"))
    if top is None or top == 255 or image.mode == "1":
        return values
    scaled: np.ndarray = np.clip(np.rint(values * (255 / top)), 0, 255).astype(np.uint8)
    return scaled


def encode_grey(array: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 -> PNG."""
    return _png(Image.fromarray(np.ascontiguousarray(array, dtype=np.uint8)))


def encode_jpeg(array: np.ndarray, quality: int = 95) -> bytes:
    """(H, W, 3) uint8 -> JPEG without chroma subsampling."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=3)
    return stream.getvalue()


_PNG = b"\x89PNG\r\n\x1a\n"


def is_whole_png(data: bytes) -> bool:
    """Whether the bytes are a PNG from its first to its last part, each with its right checksum."""
    place = len(_PNG)
    if not data.startswith(_PNG):
        return False
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        end = place + 12 + length
        if end > len(data) or zlib.crc32(data[place + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            return False
        if data[place + 4 : place + 8] == b"IEND":
            return bool(end == len(data))
        place = end
    return False
