# SPDX-License-Identifier: Apache-2.0
"""Algorithm 1 of Kraehenbuehl and Koltun 2011 with both kernels on their lattices, on one thread of a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsss_ray.refine.dense_crf import UnfitError
from wsss_ray.refine.dense_crf.field_kernels import (
    blur_spans,
    keep_lanes,
    pack_energies,
    unpack_marginals,
    update_marginals,
)
from wsss_ray.refine.dense_crf.lattice import Lattice

IN_CACHE = 4096
"""Floats of the labels of the pixels that one chunk holds."""
CACHE_LINE = 64
LARGEST = 80.0
"""Of e^x in float32."""
FIRST, MIDDLE, LAST = 0, 1, 2


@dataclass
class _Field:
    """The labels that still compete, and their numbers: (n * size,) energies, and both lattices' tables."""

    labels: np.ndarray
    size: int
    """Floats of a span: the number of labels, rounded up to 1, 2 or a multiple of 4."""
    energies: np.ndarray
    blurred: tuple[np.ndarray, np.ndarray]
    fresh: tuple[np.ndarray, np.ndarray]


def infer_field(
    bilateral: Lattice, spatial: Lattice, energy: np.ndarray, iterations: int, drop: float = 0.0
) -> np.ndarray:
    """(L, n) float32 energies, L > 1 -> (L, n) float32 marginals that sum to 1.

    Raises UnfitError where weights are so large that exponentials overflow. A label other than 0 whose marginal is
    below ``drop`` at every pixel is left out from then on. Other threads may run meanwhile.
    """
    num_labels, count = energy.shape
    if float(bilateral.ones.max() + spatial.ones.max()) > LARGEST:
        raise UnfitError("the weights are too large for exponentials in float32")
    lattices = (bilateral, spatial)
    rows, weights = tuple(one.rows for one in lattices), tuple(one.weights for one in lattices)
    lowest = energy.min(axis=0)
    marginals = np.zeros((num_labels, count), np.float32)
    labels = np.arange(1, num_labels)
    if drop > 0:
        # No marginal is above e to the lead of its label's energy over the best one's.
        lead = np.array([(lowest - energy[label]).max() for label in labels])
        labels = labels[np.exp(lead) >= drop]
    if not len(labels):
        marginals[0] = 1
        return marginals
    field = _open_field(lattices, energy, lowest, labels)
    own = lowest - energy[0]
    first = own + bilateral.ones + spatial.ones
    for step in range(iterations + 1):
        kind = FIRST if step == 0 else LAST if step == iterations else MIDDLE
        lanes = (0,) * min(field.size, 4)
        chunk = max(16, min(256, IN_CACHE // field.size))
        buffers = _make_table(chunk * field.size), _make_table(chunk)
        peaks = np.zeros(field.size if drop > 0 and kind != LAST else 0, np.float32)
        update_marginals(
            field.energies,
            first if step else own,
            field.blurred,
            field.fresh,
            rows,
            weights,
            buffers,
            peaks,
            kind,
            field.size,
            lanes,
        )
        if kind == LAST:
            break
        if len(peaks):
            field = _drop_labels(field, np.flatnonzero(peaks[: len(field.labels)] >= drop))
        _blur(field, lattices)
    unpack_marginals(field.energies, field.labels, field.size, marginals)
    return marginals


def _open_field(
    lattices: tuple[Lattice, Lattice], energy: np.ndarray, lowest: np.ndarray, labels: np.ndarray
) -> _Field:
    size = _round_up(len(labels))
    packed = _make_table(len(lowest) * size)
    pack_energies(energy, lowest, labels, packed, size)
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


def _blur(field: _Field, lattices: tuple[Lattice, Lattice]) -> None:
    """Blur the fresh tables; they become the blurred ones, and cleared tables the fresh ones."""
    lanes = (0,) * min(field.size, 4)
    pairs = []
    for lattice, fresh, other in zip(lattices, field.fresh, field.blurred, strict=True):
        place = blur_spans(fresh, other, lattice.before, lattice.after, lattice.reach, field.size, lanes)
        pairs.append((fresh, other) if place == 0 else (other, fresh))
    field.blurred = pairs[0][0], pairs[1][0]
    field.fresh = pairs[0][1], pairs[1][1]


def _drop_labels(field: _Field, kept: np.ndarray) -> _Field:
    """The same field with the ``kept`` lanes alone, where that makes spans shorter."""
    kept = kept if len(kept) else np.zeros(1, np.int64)
    size = _round_up(len(kept))
    if size == field.size:
        return field

    def shorten(table: np.ndarray, fill: float) -> np.ndarray:
        fewer = _make_table(len(table) // field.size * size)
        fewer.fill(fill)
        keep_lanes(table, field.size, kept, fewer, size)
        return fewer

    fresh = shorten(field.fresh[0], 0), shorten(field.fresh[1], 0)
    blurred = tuple(_make_table(len(table), True) for table in fresh)
    return _Field(field.labels[kept], size, shorten(field.energies, -1e4), (blurred[0], blurred[1]), fresh)
