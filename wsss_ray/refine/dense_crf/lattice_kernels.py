# SPDX-License-Identifier: Apache-2.0
"""Compiled parts of the permutohedral lattice: vertices by hashing, neighbours by merging, one plane through it."""

from __future__ import annotations

import numpy as np

from wsss_ray.refine.dense_crf.compiling import compile_kernel, inline_kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FULL = (1, 2)
"""The share of a table's places that may be taken."""


@compile_kernel()
def elevate_points(features, start, count, scale, low, strides, values, rounded, ranks, first):  # type: ignore[no-untyped-def]
    """Place ``count`` points in the hyperplane and in a simplex, with pydensecrf's float32 steps in their order.

    features (d, n), of which those from ``start`` on, scale (d,) float32; low (d,) smallest coordinates, strides
    (d + 1,) int64. Written: values (d + 1, c) float32, positions within the simplex over d + 1; ranks (d + 1, c) int32
    of those, largest first; first (c,) int64 packed keys of the vertices of remainder 0. rounded (d + 1, c) float32 is
    room to work in. Another rounding would choose other vertices: no fast arithmetic here.
    """
    corners = values.shape[0]
    dim = corners - 1
    down = np.float32(1) / np.float32(corners)
    up = np.float32(corners)
    for t in range(count):
        values[0, t] = np.float32(0)
        first[t] = 0
    for j in range(dim, 0, -1):
        for t in range(count):
            scaled = features[j - 1, start + t] * scale[j - 1]
            values[j, t] = values[0, t] - np.float32(j) * scaled
            values[0, t] += scaled
    for k in range(corners):
        for t in range(count):
            nearest = np.rint(down * values[k, t])
            rounded[k, t] = nearest * up
            values[k, t] -= rounded[k, t]
            first[t] += np.int64(nearest)
            ranks[k, t] = 0
    for k in range(dim):
        for j in range(k + 1, corners):
            for t in range(count):
                less = np.int32(values[k, t] < values[j, t])
                ranks[k, t] += less
                ranks[j, t] += np.int32(1) - less
    for k in range(corners):
        for t in range(count):
            rank = np.int32(ranks[k, t] + first[t])
            turn = up if rank < 0 else (-up if rank > dim else np.float32(0))
            ranks[k, t] = rank + np.int32(turn)
            rounded[k, t] += turn
    for t in range(count):
        first[t] = 0
        values[0, t] = np.float32(0)
    for j in range(dim, 0, -1):
        for t in range(count):
            scaled = features[j - 1, start + t] * scale[j - 1]
            values[j, t] = ((values[0, t] - np.float32(j) * scaled) - rounded[j, t]) * down
            values[0, t] += scaled
    for t in range(count):
        values[0, t] = (values[0, t] - rounded[0, t]) * down
    for k in range(dim):
        for t in range(count):
            first[t] += (np.int64(rounded[k, t]) - low[k]) * strides[k]


@compile_kernel()
def find_vertices(values, ranks, first, start, count, strides, table, places, rows, weights, state):  # type: ignore[no-untyped-def]
    """Find the vertices around the points of one block in the table, and write their barycentric weights.

    values (d + 1, c) float32 and ranks (d + 1, c) of the block's elevated positions, first (c,) int64 packed keys
    of the vertices of remainder 0, strides (d + 1,) with 0 at the end; table (size,) int64, size a power of two, holds
    keys, -1 where free; places (size,) where each vertex lies in it, in the order they are found. rows (n, d + 1) get
    places, weights (n, d + 1) what they say. state holds the number of vertices found so far, then the bits to shift a
    hash by.
    """
    corners = values.shape[0]
    dim = corners - 1
    total = np.int64(0)
    for k in range(dim):
        total += strides[k]
    shift = np.uint64(state[1])
    mask = np.int64(table.size - 1)
    found = state[0]
    axis = np.zeros(corners, np.int64)
    for t in range(count):
        for k in range(corners):
            axis[ranks[k, t]] = k
        weights[start + t, 0] = values[axis[dim], t] + (np.float32(1) - values[axis[0], t])
        for r in range(1, corners):
            weights[start + t, r] = values[axis[dim - r], t] - values[axis[corners - r], t]
        key = first[t]
        for r in range(corners):
            if r > 0:
                key += total - corners * strides[axis[corners - r]]
            place = np.int64((np.uint64(key) * GOLDEN) >> shift)
            while table[place] != key:
                if table[place] == -1:
                    table[place] = key
                    places[found] = place
                    found += 1
                    break
                place = (place + 1) & mask
            rows[start + t, r] = place
    state[0] = found


@compile_kernel()
def place_blocks(features, start, scale, low, strides, room, table, places, rows, weights, state):  # type: ignore[no-untyped-def]
    """Place points from ``start`` on, block by block, until all are placed or the table may become too full.

    features (d, n); room: what ``elevate_points`` writes, for one block; the rest as in ``find_vertices``. Returns how
    many points are placed.
    """
    count, corners = rows.shape
    values, rounded, ranks, first = room
    block = first.size
    while start < count and (state[0] + corners * block) * FULL[1] <= table.size * FULL[0]:
        size = min(count - start, block)
        elevate_points(features, start, size, scale, low, strides, values, rounded, ranks, first)
        find_vertices(values, ranks, first, start, size, strides, table, places, rows, weights, state)
        start += size
    return start


@compile_kernel()
def move_keys(table, places, count, larger, shift, moved):  # type: ignore[no-untyped-def]
    """Move ``count`` keys into an empty, larger table; ``moved`` (size,) gets the new place at each old one."""
    mask = np.int64(larger.size - 1)
    for number in range(count):
        key = table[places[number]]
        place = np.int64((np.uint64(key) * GOLDEN) >> np.uint64(shift))
        while larger[place] != -1:
            place = (place + 1) & mask
        larger[place] = key
        moved[places[number]] = place
        places[number] = place


@compile_kernel()
def renumber(rows, numbers):  # type: ignore[no-untyped-def]
    """Put numbers[row] in the place of every row, (n, d + 1)."""
    count, corners = rows.shape
    for i in range(count):
        for r in range(corners):
            rows[i, r] = numbers[rows[i, r]]


@inline_kernel
def _advance(ordered, numbers, step, before, after, a, b):  # type: ignore[no-untyped-def]
    """One look of a merge along one axis: where it goes on, and how many rows lie between a pair that it found.

    Nothing branches on keys, which no processor can guess: each pair that is looked at is written, and the last look at
    a row holds.
    """
    wanted, there = ordered[a] + step, ordered[b]
    one, other = np.int64(numbers[a]), np.int64(numbers[b])
    equal = np.int64(there == wanted)
    before[one - 1] = equal * other
    after[other - 1] = equal * one
    return a + np.int64(there >= wanted), b + np.int64(there <= wanted), equal * abs(one - other)


@compile_kernel()
def join_neighbours(ordered, numbers, steps, before, after):  # type: ignore[no-untyped-def]
    """Rows of both neighbours along every axis, by merging the sorted keys with themselves, moved by a step.

    ordered (m,) sorted keys, numbers (m,) their rows, steps (d + 1,), a multiple of 3; before and after (d + 1, m) hold
    zeros, and at [j, row - 1] get the row of the neighbour, 0 for none. Returns the farthest neighbour in rows. Three
    axes take turns: a look waits for the one before it along its own axis alone.
    """
    count = ordered.size
    reach = np.int64(0)
    for j in range(0, steps.size, 3):
        a = b = c = d = e = f = np.int64(0)
        while max(a, b, c, d, e, f) < count:
            a, b, far = _advance(ordered, numbers, steps[j], before[j], after[j], a, b)
            reach = max(reach, far)
            c, d, far = _advance(ordered, numbers, steps[j + 1], before[j + 1], after[j + 1], c, d)
            reach = max(reach, far)
            e, f, far = _advance(ordered, numbers, steps[j + 2], before[j + 2], after[j + 2], e, f)
            reach = max(reach, far)
        for k, one, two in ((j, a, b), (j + 1, c, d), (j + 2, e, f)):
            while one < count and two < count:
                one, two, far = _advance(ordered, numbers, steps[k], before[k], after[k], one, two)
                reach = max(reach, far)
    return reach


@compile_kernel()
def splat_ones(rows, weights, factors, table):  # type: ignore[no-untyped-def]
    """Multiply each point's weights (n, d + 1) by its factor (n,) and add them to the vertices (m + 1,) around it."""
    count, corners = rows.shape
    for i in range(count):
        for r in range(corners):
            weights[i, r] *= factors[i]
            table[rows[i, r]] += weights[i, r]


@compile_kernel()
def slice_plane(table, rows, weights, values):  # type: ignore[no-untyped-def]
    """Read a plane (n,) of values from the vertices around its pixels."""
    count, corners = rows.shape
    for i in range(count):
        total = np.float32(0)
        for r in range(corners):
            total += weights[i, r] * table[rows[i, r]]
        values[i] = total
