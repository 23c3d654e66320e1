# SPDX-License-Identifier: Apache-2.0
"""Compiled parts of the mean field: one pass over the pixels, the lattices' blur, and the layout of labels."""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from wsss_ray.refine.dense_crf.compiling import compile_kernel, inline_kernel
from wsss_ray.refine.dense_crf.spans import ONES_AT_ONCE, blur_ones, blur_span, slice_span, splat_span

NARROW = (0,)
"""``lanes`` of spans of one float."""
LOWEST = np.float32(-60)
"""Below, an exponential is 0: denormal numbers are slow."""
HIGHEST = np.float32(80)
"""An exponential of more could overflow."""


@intrinsic
def _read_bits(typingctx, bits):  # type: ignore[no-untyped-def]
    """int32 bits as a float32."""

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@inline_kernel
def _exponentiate(x):  # type: ignore[no-untyped-def]
    """e^x for x <= 88 in float32, relative error 2e-7 (the polynomial is Cephes' expf); 0 below ``LOWEST``."""
    bounded = max(x, LOWEST)
    whole = np.floor(bounded * np.float32(1.44269504) + np.float32(0.5))
    rest = (bounded - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * rest + np.float32(1.3981999507e-3)
    p = p * rest + np.float32(8.3334519073e-3)
    p = p * rest + np.float32(4.1665795894e-2)
    p = p * rest + np.float32(1.6666665459e-1)
    p = p * rest + np.float32(5.0000001201e-1)
    p = p * rest * rest + rest + np.float32(1.0)
    p = p * _read_bits(numba.int32((numba.int32(whole) + numba.int32(127)) << numba.int32(23)))
    return p if x > LOWEST else np.float32(0)


@compile_kernel(fast=True)
def blur_spans(one, two, before, after, reach, size, lanes):  # type: ignore[no-untyped-def]
    """Blur the vertices (m + 1) * size along every axis in turn; 0 where the result is in ``one``, else 1.

    The table without the result is cleared. Each axis follows the one before it two pieces behind, so that a piece is
    still in the cache: no neighbour is farther away than the ``reach`` rows of a piece.
    """
    axes, count = before.shape
    piece = max(reach, 64)
    pieces = (count + piece - 1) // piece
    for step in range(pieces + 2 * axes):
        for j in range(axes):
            at = step - 2 * j
            if at < 0 or at >= pieces:
                continue
            source, target = (one, two) if j % 2 == 0 else (two, one)
            start, end = at * piece, min(count, at * piece + piece)
            while size == 1 and start + ONES_AT_ONCE <= end:
                blur_ones(target, source, before, after, j, start)
                start += ONES_AT_ONCE
            for i in range(start, end):
                blur_span(target, source, i + 1, np.int64(before[j, i]), np.int64(after[j, i]), size, lanes)
        at = step - 2 * axes
        if at >= 0:
            done = one if axes % 2 == 1 else two
            for k in range((at * piece + 1) * size, (min(count, at * piece + piece) + 1) * size):
                done[k] = np.float32(0)
    return axes % 2


@compile_kernel(fast=True)
def update_marginals(factors, own, ones, blurred, fresh, rows, weights, buffers, peaks, kind, size, lanes):  # type: ignore[no-untyped-def]
    """One mean-field update of all pixels: slice both lattices, softmax, splat, by chunks that stay in the cache.

    factors (n * size,): e to the negative energies of the labels 1 and up; own (n,): that of label 0; ones (n,): both
    filters' answer to all ones. blurred and fresh: tables of both lattices, read and added to. buffers: (chunk * size,)
    and (chunk,). kind 0: there is nothing to slice yet; 2: the last update, which writes marginals over the factors
    instead of splatting. peaks (size,) get each label's largest marginal.
    """
    values, scales = buffers
    chunk = scales.size
    for start in range(0, own.size, chunk):
        count = min(chunk, own.size - start)
        # Loops of one kind of operation each: those become vectors.
        if kind == 0:
            for t in range(count):
                scales[t] = own[start + t]
            for t in range(count * size):
                values[t] = factors[start * size + t]
        else:
            for t in range(count):
                answer = slice_span(values, t * size, blurred, rows, weights, start + t, size, lanes)
                scales[t] = ones[start + t] - answer
            if size == 1:
                for t in range(count):
                    scales[t] = own[start + t] * _exponentiate(min(scales[t] - values[t], HIGHEST))
                for t in range(count):
                    values[t] = factors[start + t]
            else:
                for t in range(count):
                    scales[t] = own[start + t] * _exponentiate(scales[t])
                for t in range(count * size):
                    values[t] = factors[start * size + t] * _exponentiate(values[t])
        if size == 1:
            for t in range(count):
                scales[t] += values[t]
        else:
            for t in range(count):
                for k in range(size):
                    scales[t] += values[t * size + k]
        for t in range(count):
            scales[t] = np.float32(1) / scales[t]
        if kind == 2:
            for t in range(count):
                for k in range(size):
                    factors[(start + t) * size + k] = values[t * size + k] * scales[t]
            continue
        for t in range(count):
            splat_span(values, t * size, scales[t], fresh, rows, weights, start + t, size, lanes)
        if peaks.size:
            for t in range(count):
                for k in range(size):
                    peaks[k] = max(peaks[k], values[t * size + k] * scales[t])


@compile_kernel(fast=True)
def run_steps(factors, given, blurred, fresh, lattices, reach, buffers, peaks, steps, size, lanes):  # type: ignore[no-untyped-def]
    """Updates from number steps[0] to before steps[1], each but number 0 behind a blur; number steps[2] is the last.

    given: ``own`` and ``ones`` of ``update_marginals``; lattices: (rows, weights, before, after) of both, reach of
    both. Returns for both lattices whether ``blurred`` and ``fresh`` have changed places.
    """
    own, ones = given
    rows, weights = (lattices[0][0], lattices[1][0]), (lattices[0][1], lattices[1][1])
    one, two = blurred
    other, more = fresh
    swapped, swapped_too = False, False
    for step in range(steps[0], steps[1]):
        if step > 0:
            if blur_spans(other, one, lattices[0][2], lattices[0][3], reach[0], size, lanes) == 0:
                one, other, swapped = other, one, not swapped
            if blur_spans(more, two, lattices[1][2], lattices[1][3], reach[1], size, lanes) == 0:
                two, more, swapped_too = more, two, not swapped_too
        kind = 0 if step == 0 else 2 if step == steps[2] else 1
        update_marginals(
            factors, own, ones, (one, two), (other, more), rows, weights, buffers, peaks, kind, size, lanes
        )
    return swapped, swapped_too


@compile_kernel()
def pack_factors(factors, least, packed, size):  # type: ignore[no-untyped-def]
    """Factors (L, n), clipped to [least, 1] -> packed (n * size,): those of the labels 1 and up, 0 beyond them."""
    others, count = factors.shape[0] - 1, factors.shape[1]
    for start in range(0, count, 64):
        end = min(count, start + 64)
        for k in range(others):
            for i in range(start, end):
                packed[i * size + k] = min(max(factors[k + 1, i], least), np.float32(1))
        for k in range(others, size):
            for i in range(start, end):
                packed[i * size + k] = np.float32(0)


@compile_kernel()
def unpack_marginals(packed, labels, size, marginals):  # type: ignore[no-untyped-def]
    """Packed (n * size,) marginals of ``labels`` -> (L, n); label 0 gets the rest, the labels left out stay 0."""
    count = marginals.shape[1]
    for start in range(0, count, 64):
        end = min(count, start + 64)
        for i in range(start, end):
            marginals[0, i] = np.float32(1)
        for k in range(labels.size):
            for i in range(start, end):
                marginals[labels[k], i] = packed[i * size + k]
                marginals[0, i] -= packed[i * size + k]
        for i in range(start, end):
            marginals[0, i] = max(marginals[0, i], np.float32(0))


@compile_kernel()
def keep_lanes(given, size, kept, fewer, kept_size):  # type: ignore[no-untyped-def]
    """Spans of ``size`` -> spans of ``kept_size``, whose first lanes are the ``kept`` ones; beyond, as they are."""
    for i in range(given.size // size):
        for k in range(kept.size):
            fewer[i * kept_size + k] = given[i * size + kept[k]]
