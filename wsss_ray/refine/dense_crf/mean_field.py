# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 of Kraehenbuehl and Koltun 2011 with both kernels on their lattices, on one thread of a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsss_ray.refine.dense_crf import UnfitError
from wsss_ray.refine.dense_crf.field_kernels import keep_lanes, pack_factors, run_steps, unpack_marginals
from wsss_ray.refine.dense_crf.lattice import Lattice

IN_CACHE = 4096
"""Floats of the labels of the pixels that one chunk holds."""
CACHE_LINE = 64
LARGEST = 80.0
"""Of e^x in float32."""
LEAST = 1e-37
"""Of a factor: even e^``LARGEST`` times this is below 1, the best label's own, so that such a label never wins."""


@dataclass
class _Field:
    """The labels that still compete, and their numbers: (n * size,) factors, and both lattices' tables."""

    labels: np.ndarray
    size: int
    """Floats of a span: the number of labels, rounded up to 1, 2 or a multiple of 4."""
    factors: np.ndarray
    blurred: tuple[np.ndarray, np.ndarray]
    fresh: tuple[np.ndarray, np.ndarray]


def infer_field(
    bilateral: Lattice, spatial: Lattice, factors: np.ndarray, iterations: int, drop: float = 0.0, least: float = LEAST
) -> np.ndarray:
    """(L, n) float32 factors e^-energy, L > 1, clipped to [``least``, 1] -> (L, n) float32 marginals that sum to 1.

    Raises UnfitError where weights are so large that exponentials overflow. A label other than 0 whose marginal is
    below ``drop`` at every pixel is left out from then on. Other threads may run meanwhile.
    """
    num_labels, count = factors.shape
    if float(bilateral.ones.max() + spatial.ones.max()) > LARGEST:
        raise UnfitError("the weights are too large for exponentials in float32")
    lattices = (bilateral, spatial)
    fixed = tuple((one.rows, one.weights, one.before, one.after) for one in lattices)
    reach = bilateral.reach, spatial.reach
    marginals = np.zeros((num_labels, count), np.float32)
    field = _open_field(lattices, factors, least)
    given = np.clip(factors[0], np.float32(least), np.float32(1)), bilateral.ones + spatial.ones
    step = 0
    while step <= iterations:
        stop = step + 1 if drop > 0 else iterations + 1
        chunk = max(16, min(256, IN_CACHE // field.size))
        buffers = _make_table(chunk * field.size), _make_table(chunk)
        peaks = np.zeros(field.size if drop > 0 and step < iterations else 0, np.float32)
        lanes = (0,) * min(field.size, 4)
        steps = np.array([step, stop, iterations])
        swapped = run_steps(
            field.factors, given, field.blurred, field.fresh, fixed, reach, buffers, peaks, steps, field.size, lanes
        )
        pairs = [
            (fresh, blurred) if swap else (blurred, fresh)
            for blurred, fresh, swap in zip(field.blurred, field.fresh, swapped, strict=True)
        ]
        field.blurred, field.fresh = (pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1])
        if len(peaks):
            field = _drop_labels(field, np.flatnonzero(peaks[: len(field.labels)] >= drop))
        step = stop
    unpack_marginals(field.factors, field.labels, field.size, marginals)
    return marginals


def _open_field(lattices: tuple[Lattice, Lattice], factors: np.ndarray, least: float) -> _Field:
    labels = np.arange(1, len(factors))
    size = _round_up(len(labels))
    packed = _make_table(factors.shape[1] * size)
    pack_factors(factors, np.float32(least), packed, size)
    one, two = (tuple(_make_table((lattice.num_vertices + 1) * size, True) for lattice in lattices) for _ in range(2))
    return _Field(labels, size, packed, (one[0], one[1]), (two[0], two[1]))


def _round_up(num_labels: int) -> int:
    """Floats of a span of so many labels."""
    return num_labels if num_labels < 3 else -(-num_labels // 4) * 4


def _make_table(size: int, zero: bool = False) -> np.ndarray:
    """(size,) float32 that starts at a cache line."""
    space = (np.zeros if zero else np.empty)(size + CACHE_LINE // 4, np.float32)
    start = -space.ctypes.data % CACHE_LINE // 4
    return space[start : start + size]


def _drop_labels(field: _Field, kept: np.ndarray) -> _Field:
    """The same field with the ``kept`` lanes alone, where that makes spans shorter."""
    kept = kept if len(kept) else np.zeros(1, np.int64)
    size = _round_up(len(kept))
    if size == field.size:
        return field

    def shorten(table: np.ndarray) -> np.ndarray:
        fewer = _make_table(len(table) // field.size * size, True)
        keep_lanes(table, field.size, kept, fewer, size)
        return fewer

    fresh = shorten(field.fresh[0]), shorten(field.fresh[1])
    blurred = tuple(_make_table(len(table), True) for table in fresh)
    return _Field(field.labels[kept], size, shorten(field.factors), (blurred[0], blurred[1]), fresh)
