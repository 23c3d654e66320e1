# SPDX-License-Identifier: Apache-2.0
"""What stands between class maps and masks: a background plane, the winner per pixel and its mask value."""

from __future__ import annotations

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE


def add_constant_background(maps: np.ndarray, threshold: float) -> np.ndarray:
    """(P, H, W) -> (1 + P, H, W): a plane of ``threshold`` in front of the maps."""
    plane = np.full((1, *maps.shape[1:]), threshold, maps.dtype)
    return np.concatenate([plane, maps])


def add_power_background(maps: np.ndarray, alpha: float) -> np.ndarray:
    """(P, H, W) in [0, 1] -> (1 + P, H, W): (1 - max over classes)^alpha in front of the maps (PSA Sec. 3.1, Eq. 2)."""
    top = maps.max(axis=0, keepdims=True, initial=0)
    return np.concatenate([np.power(1 - top, alpha).astype(maps.dtype), maps])


def pick_winners(planes: np.ndarray) -> np.ndarray:
    """(n, H, W) -> (H, W) int64: index of the largest plane; ties go to the first one, that is to the background."""
    index: np.ndarray = planes.argmax(axis=0)
    return index


def list_mask_values(classes: np.ndarray) -> np.ndarray:
    """(P,) 0-based classes -> (1 + P,) uint8: the mask value of each plane, background first.

    Raises UserError where a class would collide with 255, the value of unknown pixels.
    """
    if len(classes) and int(classes.max()) + 1 >= IGNORE:
        raise UserError(
            f"class {int(classes.max())} does not fit an 8-bit mask, whose value {IGNORE} means unknown: "
            f"use at most {IGNORE - 1} classes"
        )
    return np.concatenate([[0], np.asarray(classes, np.int64) + 1]).astype(np.uint8)


def make_mask(index: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(H, W) plane numbers (0 background, k + 1 the k-th present class) -> (H, W) uint8 mask."""
    mask: np.ndarray = list_mask_values(classes)[index]
    return mask
