# SPDX-License-Identifier: Apache-2.0
"""The values of all class maps of a data set, counted: what thresholds that read no ground truth are chosen from."""

from __future__ import annotations

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.contracts import ClassMaps
from wsss_ray.score.otsu import measure_separation

NUM_BINS = 1000
"""Bins of [0, 1]: thresholds have three decimals."""


def count_values(maps: ClassMaps) -> np.ndarray:
    """(NUM_BINS,) int64: the strongest map's value in every cell of the maps' grid; nothing for an image without maps.

    Counts of several images add up, in any order.
    """
    if not len(maps.classes):
        return np.zeros(NUM_BINS, np.int64)
    top = np.asarray(maps.maps, np.float64).max(axis=0)
    places = np.clip(top * NUM_BINS, 0, NUM_BINS - 1).astype(np.int64)
    return np.bincount(places.reshape(-1), minlength=NUM_BINS)


def find_otsu_threshold(counts: np.ndarray) -> float:
    """The threshold between bins with the largest variance between both sides' means (Otsu 1979), in [0, 1].

    Where several are equal, as over bins that hold nothing, the middle one; 0.5 where nothing was counted.
    """
    if not counts.any():
        return 0.5
    variance = measure_separation(counts, np.arange(len(counts)) + 0.5)
    equal = np.flatnonzero(variance >= variance.max() * (1 - 1e-9))
    return float(equal[len(equal) // 2] + 1) / len(counts)


def take_number(threshold: float | str) -> float:
    """The threshold, where it is a number; UserError where it is still to be taken from the maps."""
    if isinstance(threshold, str):
        raise UserError(f"threshold {threshold!r} is taken from all maps: run what the refiner's settle(counts) gives")
    return threshold


def find_quantile(counts: np.ndarray, share: float) -> float:
    """The edge of a bin, in [0, 1], below which ``share`` of the values lie; the nearest such edge."""
    below = np.concatenate([[0], counts.cumsum()])
    return float(np.abs(below - share * below[-1]).argmin()) / len(counts)


def split_by_otsu(counts: np.ndarray, foreground: float, background: float) -> tuple[float, float]:
    """(high, low): above ``high`` lies the share ``foreground`` of the values above Otsu's threshold, below ``low`` the
    share ``background`` of those under it; both are the threshold itself where a share is 1.
    """
    place = round(find_otsu_threshold(counts) * len(counts))
    under, over = counts.copy(), counts.copy()
    under[place:], over[:place] = 0, 0
    middle = place / len(counts)
    high = max(find_quantile(over, 1 - foreground), middle) if over.any() and foreground < 1 else middle
    low = min(find_quantile(under, background), middle) if under.any() and background < 1 else middle
    return high, low
