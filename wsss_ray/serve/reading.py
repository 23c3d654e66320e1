# SPDX-License-Identifier: Apache-2.0
"""An image as a caller has it (a file, its bytes, a PIL image, an array), read as training read its images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from wsss_ray.config import UserError
from wsss_ray.data.grey import Grey
from wsss_ray.data.image import MAX_PIXELS, convert_image, decode_image
from wsss_ray.data.source import read_file

AnyImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""A path or URI, the bytes of a file, a PIL image, or (H, W, 3) or (H, W) uint8."""


def is_image(value: Any) -> TypeGuard[AnyImage]:
    """Whether a value is one image, and not several."""
    return isinstance(value, (str, os.PathLike, bytes, Image.Image, np.ndarray))


def read_image(value: Any, name: str, grey: Grey) -> np.ndarray:
    """(H, W, 3) uint8 of one image; ``name`` stands in errors where the image has no file.

    Raises UserError for a file that cannot be read, and for an array of another shape or type.
    """
    if isinstance(value, (str, os.PathLike)):
        where = os.fspath(value)
        if "://" not in where and Path(where).is_dir():
            raise UserError(f"{where}: a folder; give its files, for example sorted(Path({where!r}).glob('*.jpg'))")
        return decode_image(read_file(where, "image"), where, grey, MAX_PIXELS)
    if isinstance(value, bytes):
        return decode_image(value, name, grey, MAX_PIXELS)
    if isinstance(value, Image.Image):
        return convert_image(value, b"", name, grey)
    if not isinstance(value, np.ndarray):
        kind = type(value).__name__
        raise UserError(f"{name}: a {kind} is no image; give a path, bytes, a PIL image or an array")
    if value.ndim == 4:
        raise UserError(f"{name}: {len(value)} images in one array; give list(array)")
    if value.dtype != np.uint8 or not (value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3)) or not value.size:
        shape = " x ".join(map(str, value.shape))
        raise UserError(f"{name}: an array of {shape} {value.dtype}; give (H, W, 3) or (H, W) uint8 of 0 to 255")
    return np.ascontiguousarray(value if value.ndim == 3 else np.repeat(value[..., None], 3, axis=2))
