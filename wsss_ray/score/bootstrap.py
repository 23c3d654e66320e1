# SPDX-License-Identifier: Apache-2.0
"""Is one mIoU higher than another, or is it the choice of images? A paired bootstrap over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsss_ray.config import UserError
from wsss_ray.score.confusion import Absent, Counts, compute_mean_iou

ROUNDS_AT_ONCE = 256
"""Resamples drawn together; the drawn numbers do not depend on it."""


@dataclass(frozen=True)
class Difference:
    """mIoU of the second less mIoU of the first over the same images."""

    first: float
    second: float
    difference: float
    low: float
    """Lower end of the confidence interval (percentiles of the resampled differences)."""
    high: float
    p_value: float
    """Two-sided: twice the smaller share of resamples on either side of 0, counting the sample itself."""
    num_images: int
    num_resamples: int


def stack_counts(matrix: np.ndarray) -> np.ndarray:
    """An image's (K, K + 1) matrix -> (3, K) int64: intersection, truth, predicted, to be stacked over images."""
    counts = Counts.of(matrix)
    return np.stack([counts.intersection, counts.truth, counts.predicted])


def compare_counts(
    first: np.ndarray,
    second: np.ndarray,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    absent: Absent = "skip",
) -> Difference:
    """Paired bootstrap of two methods on the same images, (N, 3, K) counts each, in the same order.

    Images are drawn with replacement, the same ones for both, and mIoU is taken of the summed counts, never of an
    image. ``seed`` fixes the draw. Raises UserError where the counts do not pair up.
    """
    shapes = f"{first.shape} and {second.shape}"
    if first.shape != second.shape or first.ndim != 3 or first.shape[1] != 3:
        raise UserError(f"counts of shape {shapes} do not pair up: give (N, 3, K) twice")
    num_images, _, num_labels = first.shape
    if not num_images or num_resamples < 1 or not 0 < confidence < 1:
        raise UserError("a bootstrap needs images, at least one resample and a confidence between 0 and 1")
    if not np.array_equal(first[:, 1], second[:, 1]):
        raise UserError("the two methods were scored on different truths or images: score both on one list")
    # float64 adds integers exactly up to 2^53 pixels.
    stacked = np.stack([first, second], axis=1).reshape(num_images, -1).astype(np.float64)
    shares = np.full(num_images, 1 / num_images)
    generator = np.random.default_rng(seed)
    gaps = []
    for start in range(0, num_resamples, ROUNDS_AT_ONCE):
        times = generator.multinomial(num_images, shares, size=min(ROUNDS_AT_ONCE, num_resamples - start))
        gaps.append(np.subtract(*_compute_mious(times @ stacked, num_labels, absent)[::-1]))
    differences = np.concatenate(gaps)
    before, after = _compute_mious(stacked.sum(axis=0, keepdims=True), num_labels, absent)
    tails = (100 * (1 - confidence) / 2, 100 * (1 + confidence) / 2)
    low, high = np.percentile(differences, tails)
    side = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return Difference(
        first=float(before[0]),
        second=float(after[0]),
        difference=float(after[0] - before[0]),
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * (side + 1) / (num_resamples + 1)),
        num_images=num_images,
        num_resamples=num_resamples,
    )


def _compute_mious(sums: np.ndarray, num_labels: int, absent: Absent) -> tuple[np.ndarray, np.ndarray]:
    """(R, 6 K) summed counts of both methods -> two (R,) mIoUs."""
    counts = sums.reshape(len(sums), 2, 3, num_labels)
    values = compute_mean_iou(Counts(counts[:, :, 0], counts[:, :, 1], counts[:, :, 2]), absent)
    return values[:, 0], values[:, 1]
