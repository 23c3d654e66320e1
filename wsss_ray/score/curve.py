# SPDX-License-Identifier: Apache-2.0
"""Scores at every background threshold from one pass over the maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.contracts import IGNORE
from wsss_ray.score.confusion import Absent, Counts, compute_mean_iou
from wsss_ray.score.otsu import measure_separation

CELLS = 4096
"""Cells of [0, 1] that ``find_bins`` looks values up by; a power of two, so that a float's cell is exact."""


def find_bins(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many of the ascending ``thresholds`` lie below each value: a faster ``searchsorted``.

    A table has the count at each cell's lower edge, and one comparison settles the cell, where it holds no second
    threshold. Any shape -> the same shape, int32.
    """
    edges = np.arange(CELLS + 1, dtype=thresholds.dtype) / CELLS
    below = np.searchsorted(thresholds, edges, side="left").astype(np.int32)
    if (np.diff(below) > 1).any() or thresholds[0] < 0:
        return np.searchsorted(thresholds, values, side="left").astype(np.int32)
    found: np.ndarray = below[np.clip(values * CELLS, 0, CELLS).astype(np.int32)]
    found += np.append(thresholds, np.asarray(np.inf, thresholds.dtype))[found] < values
    return found


class ThresholdCurve:
    """A histogram of truth, strongest class and the bin of its value; counts of parts of a set add up.

    At threshold t a pixel is its strongest present class where that is above t, else background: a tie is background,
    as in ``ThresholdSeedsConfig``. Memory: K C (T + 1) int64, 18 MB for 81 labels, 80 classes and 350 thresholds.
    """

    def __init__(self, thresholds: Sequence[float] | np.ndarray, num_labels: int) -> None:
        self.thresholds = np.asarray(thresholds, np.float64)
        if self.thresholds.ndim != 1 or not len(self.thresholds) or (np.diff(self.thresholds) <= 0).any():
            raise UserError("thresholds of the curve must be at least one, each larger than the one before")
        self.num_labels = num_labels
        self.counts = np.zeros((num_labels, num_labels - 1, len(self.thresholds) + 1), np.int64)
        """(K, C, T + 1): truth, strongest class, number of thresholds below its value."""
        self.values = np.zeros(len(self.thresholds) + 1, np.int64)
        """(T + 1,): number of thresholds below the strongest value, of all pixels, unknown ones too."""

    def add(self, truth: np.ndarray, classes: np.ndarray, maps: np.ndarray, name: str = "image") -> None:
        """Count one image: (H, W) truth with 255 unknown, (P,) 0-based present classes, each once, (P, H, W) maps.

        An image without classes is background at every threshold. Raises UserError where sizes or indices do not fit.
        """
        num_classes = self.num_labels - 1
        if len(classes) and maps.shape[1:] != truth.shape:
            raise UserError(f"{name}: maps are {maps.shape[1:]}, the truth {truth.shape}: up-sample the maps first")
        if len(classes) and not (np.min(classes) >= 0 and np.max(classes) < num_classes):
            raise UserError(f"{name}: a map of class {np.max(classes)}, but there are {num_classes} classes")
        present = np.bincount(truth.reshape(-1), minlength=IGNORE + 1)
        if present[self.num_labels : IGNORE].any() or len(present) > IGNORE + 1:
            worst = np.flatnonzero(np.delete(present, IGNORE)).max()
            raise UserError(f"{name}: the truth holds index {worst}, but there are {self.num_labels} labels")
        if not len(classes):
            # Whatever the class: a value below every threshold is background.
            self.counts[:, 0, 0] += present[: self.num_labels]
            self.values[0] += truth.size
            return
        num_bins = len(self.thresholds) + 1
        # One number per pixel, (truth, strongest class, bin); unknown pixels make a row of their own, left out below.
        rows = np.minimum(np.arange(IGNORE + 1), self.num_labels).astype(np.int32) * (len(classes) * num_bins)
        places = rows[truth]
        top, strongest = maps[0], np.zeros(1, np.int32)
        for number in range(1, len(classes)):
            better = maps[number] > top
            top = np.maximum(top, maps[number])
            strongest = np.where(better, np.int32(number * num_bins), strongest)
        # In the precision of the maps, as seeds compare them: 0.1 in float32 is not 0.1 in float64.
        places += strongest + find_bins(top, self.thresholds.astype(maps.dtype))
        shape = (self.num_labels + 1, len(classes), num_bins)
        flat = np.bincount(places.reshape(-1), minlength=int(np.prod(shape)))
        counted = flat.reshape(shape)
        self.counts[:, np.asarray(classes)] += counted[:-1]
        self.values += counted.sum((0, 1))

    def find_otsu(self, candidates: Sequence[float] | np.ndarray) -> float:
        """The one of ``candidates``, thresholds of the curve, that parts the pixels' strongest values best.

        It maximises the variance between the two sides (Otsu 1979, Eq. 18), and reads no truth: every pixel of the
        images counts alike. Values are taken at the middle of their bin; the first of equal ones is returned.
        """
        edges = np.concatenate([self.thresholds[:1], self.thresholds, [max(1.0, self.thresholds[-1])]])
        between = measure_separation(self.values, (edges[:-1] + edges[1:]) / 2)
        between[~np.isin(self.thresholds, candidates)] = -1.0
        return float(self.thresholds[int(np.argmax(between))])

    def matrices(self) -> np.ndarray:
        """(T, K, K + 1) int64: the confusion matrix at each threshold, no pixel unknown."""
        below = self.counts.cumsum(axis=2)[:, :, :-1]
        above = self.counts.sum(axis=2, keepdims=True) - below
        matrices = np.zeros((len(self.thresholds), self.num_labels, self.num_labels + 1), np.int64)
        matrices[:, :, 0] = below.sum(axis=1).T
        matrices[:, :, 1:-1] = np.moveaxis(above, 2, 0)
        return matrices

    def mious(self, absent: Absent = "skip") -> np.ndarray:
        """(T,) mIoU with background at each threshold."""
        return compute_mean_iou(Counts.of(self.matrices()), absent)

    def best(self, absent: Absent = "skip") -> tuple[float, float]:
        """The threshold of the highest mIoU, the lowest one of equals, and that mIoU; NaN where nothing was counted."""
        mious = self.mious(absent)
        if np.isnan(mious).all():
            return float("nan"), float("nan")
        place = int(np.nanargmax(mious))
        return float(self.thresholds[place]), float(mious[place])
