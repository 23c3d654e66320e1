# SPDX-License-Identifier: Apache-2.0
"""The permutohedral lattice (Adams, Baek and Davis 2010) as pydensecrf has it: same float32 steps, same vertices."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from wsss_ray.refine.dense_crf import UnfitError
from wsss_ray.refine.dense_crf.field_kernels import NARROW, blur_spans
from wsss_ray.refine.dense_crf.lattice_kernels import (
    join_neighbours,
    move_keys,
    place_blocks,
    renumber,
    slice_plane,
    splat_ones,
)

AT_ONCE = 4
"""Points that pydensecrf places at a time."""
BLOCK = 1024
"""Pixels that are placed on the lattice at a time, so that the steps between stay in the cache."""
FIRST_BITS = 17
"""The table of vertices begins with two to this power of places, and grows fourfold."""
LARGE = 100_000
"""From so many vertices on they are numbered in the order of their keys, which the blur reads in streams."""
MAX_SPATIAL = 8
"""Spatial lattices that are kept; images of one size share theirs."""


@dataclass(frozen=True)
class Lattice:
    """A Gaussian filter over n points, normalised on both sides, times its weight. Row 0 is always zero."""

    rows: np.ndarray
    """(n, d + 1) uint32: the vertices around each point, counted from 1."""
    weights: np.ndarray
    """(n, d + 1) float32: barycentric weights times the square root of weight and normalisation."""
    before: np.ndarray
    """(d + 1, m) uint32: the row of each vertex's neighbour along an axis, 0 for none."""
    after: np.ndarray
    reach: int
    """No neighbour is more than so many rows away."""
    ones: np.ndarray
    """(n,) float32: the filter's answer where every value is 1."""

    @property
    def num_vertices(self) -> int:
        """Vertices that some point touches, m."""
        return int(self.before.shape[1])


def build_lattice(features: np.ndarray, weight: float) -> Lattice:
    """(d, n) float32 features, in units of the kernel's widths -> its filter, times ``weight``."""
    dim, count = features.shape
    corners = dim + 1
    # pydensecrf places four points at a time and fills the last four up with zeros: their vertices carry nothing, but
    # the blur passes through them, which dark images of few colours feel.
    filled = features if count % AT_ONCE == 0 else np.pad(features, ((0, 0), (0, 1)))
    rows, weights, table, places, strides = _place_points(filled)
    rows, weights = rows[:count], weights[:count]
    num_vertices = len(places)
    keys, order = _sort_keys(table[places])
    numbers = np.arange(1, num_vertices + 1, dtype=np.uint32)
    by_place = np.empty(len(table), np.uint32)
    if num_vertices >= LARGE:
        by_place[places[order]] = numbers
    else:
        by_place[places] = numbers
        numbers = (order + 1).astype(np.uint32)
    renumber(rows, by_place)
    before, after = (np.zeros((corners, num_vertices), np.uint32) for _ in range(2))
    steps = corners * strides - strides.sum()
    reach = max(1, int(join_neighbours(keys, numbers, steps, before, after)))
    lattice = Lattice(rows, weights, before, after, reach, np.ones(count, np.float32))
    norm = np.float32(1) / np.sqrt(_answer_ones(lattice, lattice.ones) + np.float32(1e-20))
    ones = _answer_ones(lattice, norm * np.float32(np.sqrt(weight)))
    return replace(lattice, ones=ones)


def _sort_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys (m,), none below 0, in order, and their order; where there is room, both are sorted as one number."""
    bits = len(keys).bit_length()
    if int(keys.max()) >> (63 - bits):
        order = np.argsort(keys)
        return keys[order], order
    packed = np.sort((keys << bits) | np.arange(len(keys)))
    return packed >> bits, packed & ((1 << bits) - 1)


def _place_points(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(d, n) features -> rows and weights (n, d + 1), a table of packed keys, places (m,) in it, and the keys' strides.

    A key holds the first d coordinates of a vertex as one number, so that a neighbour is a constant away. Rows are
    places in the table, too; ``places`` has each once, in the order they were found.
    """
    dim, count = features.shape
    corners = dim + 1
    inverse = np.float32(np.sqrt(2.0 / 3.0) * corners)
    scale = np.array([1.0 / np.sqrt((i + 2) * (i + 1)) * inverse for i in range(dim)]).astype(np.float32)
    low, strides = _measure_keys(features, scale)
    rows = np.empty((count, corners), np.uint32)
    weights = np.empty((count, corners), np.float32)
    room = (
        np.empty((corners, BLOCK), np.float32),
        np.empty((corners, BLOCK), np.float32),
        np.empty((corners, BLOCK), np.int32),
        np.empty(BLOCK, np.int64),
    )
    bits, done = FIRST_BITS, 0
    table, places = np.full(1 << bits, -1, np.int64), np.empty(1 << bits, np.int64)
    state = np.array([0, 64 - bits], np.int64)
    while (
        done := place_blocks(features, done, scale, low, strides, room, table, places, rows, weights, state)
    ) < count:
        bits += 2
        smaller, fewer = table, places
        table, places = np.full(1 << bits, -1, np.int64), np.empty(1 << bits, np.int64)
        places[: state[0]] = fewer[: state[0]]
        moved = np.empty(len(smaller), np.uint32)
        move_keys(smaller, places, state[0], table, 64 - bits, moved)
        renumber(rows[:done], moved)
        state[1] = 64 - bits
    return rows, weights, table, places[: state[0]], strides


def _measure_keys(features: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest coordinates (d,), and strides (d + 1,) that leave every neighbour of every vertex a key of its own."""
    dim = len(scale)
    top, bottom = (edge.astype(np.float64) * scale for edge in (features.max(axis=1), features.min(axis=1)))
    low = [bottom[j:].sum() - (j * top[j - 1] if j else 0) for j in range(dim)]
    high = [top[j:].sum() - (j * bottom[j - 1] if j else 0) for j in range(dim)]
    pad = 4 * (dim + 1)
    base = np.floor(low).astype(np.int64) - pad
    sizes = np.ceil(high).astype(np.int64) + pad - base
    if np.prod(sizes.astype(np.float64)) >= 2.0**62:
        raise UnfitError("a kernel is too narrow for the packed keys of its lattice")
    strides = np.ones(dim + 1, np.int64)
    strides[dim] = 0
    for k in range(dim - 2, -1, -1):
        strides[k] = strides[k + 1] * sizes[k + 1]
    return base, strides


def _answer_ones(lattice: Lattice, factors: np.ndarray) -> np.ndarray:
    """Multiply the weights of each point by its factor (n,); the filter's answer where every value is 1, then."""
    table, other = (np.zeros(lattice.num_vertices + 1, np.float32) for _ in range(2))
    splat_ones(lattice.rows, lattice.weights, factors, table)
    blurred = blur_spans(table, other, lattice.before, lattice.after, lattice.reach, 1, NARROW)
    found = np.empty(len(factors), np.float32)
    slice_plane(table if blurred == 0 else other, lattice.rows, lattice.weights, found)
    return found


_spatial: OrderedDict[tuple[int, int, float, float], Lattice] = OrderedDict()
_lock = threading.Lock()
_own = threading.local()


def find_spatial_lattice(height: int, width: int, spread: float, weight: float) -> Lattice:
    """The spatial kernel of images of this size: built once, then shared by all of them."""
    key = (height, width, spread, weight)
    with _lock:
        if key in _spatial:
            _spatial.move_to_end(key)
            return _spatial[key]
    lattice = build_lattice(_make_positions(height, width, spread).reshape(2, -1), weight)
    with _lock:
        _spatial[key] = lattice
        while len(_spatial) > MAX_SPATIAL:
            _spatial.popitem(last=False)
    return lattice


def find_bilateral_lattice(guide: np.ndarray, spread: float, colours: float, weight: float) -> Lattice:
    """The colour kernel of an (H, W, 3) uint8 image; a thread keeps the last one, for an image's other label sets."""
    widths = spread, colours, weight
    if getattr(_own, "widths", None) != widths or not np.array_equal(_own.guide, guide):
        features = np.empty((5, *guide.shape[:2]), np.float32)
        features[:2] = _make_positions(guide.shape[0], guide.shape[1], spread)
        features[2:] = guide.transpose(2, 0, 1)
        features[2:] /= np.float32(colours)
        _own.widths = None
        _own.lattice = build_lattice(features.reshape(5, -1), weight)
        _own.widths, _own.guide = widths, guide.copy()
    lattice: Lattice = _own.lattice
    return lattice


def _make_positions(height: int, width: int, spread: float) -> np.ndarray:
    """(2, H, W) float32: x and y over the kernel's width."""
    positions = np.empty((2, height, width), np.float32)
    positions[0] = np.arange(width, dtype=np.float32)[None] / np.float32(spread)
    positions[1] = np.arange(height, dtype=np.float32)[:, None] / np.float32(spread)
    return positions
