# SPDX-License-Identifier: Apache-2.0
"""Otsu's measure of how well a threshold parts values."""

from __future__ import annotations

import numpy as np


def measure_separation(counts: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """(n,) counts of the values in n bins and the bins' ``middles`` -> (n - 1,): the variance between the two sides of
    each edge between bins (Otsu 1979, Eq. 18); 0 where a side is empty.
    """
    weights = counts / max(1, counts.sum())
    below, mean_below = np.cumsum(weights)[:-1], np.cumsum(weights * middles)[:-1]
    spread, gap = below * (1 - below), (weights * middles).sum() * below - mean_below
    measured: np.ndarray = np.divide(gap**2, spread, out=np.zeros_like(spread), where=spread > 1e-12)
    return measured
