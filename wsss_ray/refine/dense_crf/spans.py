# SPDX-License-Identifier: Apache-2.0
"""Operations on spans of R floats as explicit LLVM vectors: numba does not vectorise loops over several arrays.

A span holds the values of R labels at one pixel or lattice vertex. R is 1 or 2, or a multiple of 4 that is taken in
steps of 16, then 8, then 4 lanes. ``lanes`` is a tuple whose length names the case: 1, 2 or 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FLOAT, INT, INDEX = ir.FloatType(), ir.IntType(32), ir.IntType(64)
WIDE = 4
"""The length of ``lanes`` that stands for any multiple of 4."""
Emit = Callable[[ir.Value, int], None]


def _vector(width: int) -> ir.VectorType:
    return ir.VectorType(FLOAT, width)


def _read_pointers(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> list[ir.Value]:
    """Data pointers of arrays, other arguments as they are."""
    return [
        context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
        for kind, value in zip(signature.args, args, strict=True)
    ]


def _point(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, width: int) -> ir.Value:
    return builder.bitcast(builder.gep(base, [index]), _vector(width).as_pointer())


def _load(builder: ir.IRBuilder, base: ir.Value, index: ir.Value, width: int) -> ir.Value:
    loaded = builder.load(_point(builder, base, index, width))
    loaded.align = 4
    return loaded


def _store(builder: ir.IRBuilder, value: ir.Value, base: ir.Value, index: ir.Value, width: int) -> None:
    builder.store(value, _point(builder, base, index, width)).align = 4


def _spread(builder: ir.IRBuilder, value: ir.Value, width: int) -> ir.Value:
    """One float in every lane."""
    single = builder.insert_element(ir.Constant(_vector(width), ir.Undefined), value, ir.Constant(INT, 0))
    zeros = ir.Constant(ir.VectorType(INT, width), [0] * width)
    return builder.shuffle_vector(single, single, zeros)


def _multiply_add(builder: ir.IRBuilder, one: ir.Value, two: ir.Value, more: ir.Value) -> ir.Value:
    return builder.fadd(builder.fmul(one, two, flags=("contract",)), more, flags=("contract",))


def _sum_lanes(builder: ir.IRBuilder, value: ir.Value, width: int) -> ir.Value:
    """The sum over the lanes, by halves."""
    while width > 1:
        width //= 2
        low, high = (
            builder.shuffle_vector(
                value, value, ir.Constant(ir.VectorType(INT, width), list(range(start, start + width)))
            )
            for start in (0, width)
        )
        value = builder.fadd(low, high)
    return builder.extract_element(value, ir.Constant(INT, 0))


def _walk_span(builder: ir.IRBuilder, size: ir.Value, lanes: int, emit: Emit) -> None:
    """``emit(offset, width)`` over a span of ``size`` floats."""
    zero = ir.Constant(INDEX, 0)
    if lanes < WIDE:
        emit(zero, lanes)
        return
    with cgutils.for_range(builder, builder.lshr(size, ir.Constant(INDEX, 4))) as loop:
        emit(builder.shl(loop.index, ir.Constant(INDEX, 4)), 16)
    for width, covered in ((8, ~15), (4, ~7)):
        bit = builder.and_(size, ir.Constant(INDEX, width))
        with builder.if_then(builder.icmp_unsigned("!=", bit, zero)):
            emit(builder.and_(size, ir.Constant(INDEX, covered)), width)


def _iterate_corners(
    builder: ir.IRBuilder, rows: ir.Value, weights: ir.Value, pixel: ir.Value, corners: int
) -> Iterator[tuple[ir.Value, ir.Value]]:
    """(row, weight) of a pixel's vertices."""
    first = builder.mul(pixel, ir.Constant(INDEX, corners))
    for corner in range(corners):
        place = builder.add(first, ir.Constant(INDEX, corner))
        row = builder.zext(builder.load(builder.gep(rows, [place])), INDEX)
        yield row, builder.load(builder.gep(weights, [place]))


@intrinsic
def slice_span(typingctx, out, place, tables, rows, weights, pixel, size, lanes):  # type: ignore[no-untyped-def]
    """out[place:] = both lattices' values at ``pixel``; returns the sum of those values."""
    width_of_lanes = len(lanes)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        kinds = signature.args
        out_, place_, *_, pixel_, size_, _ = _read_pointers(context, builder, signature, args)
        pairs = [
            [
                context.make_array(kinds[at].types[k])(context, builder, builder.extract_value(args[at], k)).data
                for at in (2, 3, 4)
            ]
            for k in range(2)
        ]
        total = cgutils.alloca_once_value(builder, ir.Constant(FLOAT, 0))

        def emit(offset: ir.Value, width: int) -> None:
            found = None
            for (table, rows_, weights_), corners in zip(pairs, CORNERS, strict=True):
                for row, weight in _iterate_corners(builder, rows_, weights_, pixel_, corners):
                    value = _load(builder, table, builder.add(builder.mul(row, size_), offset), width)
                    spread = _spread(builder, weight, width)
                    found = (
                        builder.fmul(spread, value) if found is None else _multiply_add(builder, spread, value, found)
                    )
            _store(builder, found, out_, builder.add(place_, offset), width)
            builder.store(builder.fadd(builder.load(total), _sum_lanes(builder, found, width)), total)

        _walk_span(builder, size_, width_of_lanes, emit)
        return builder.load(total)

    given = (out, place, tables, rows, weights, pixel, size, lanes)
    return types.float32(*given), generate


CORNERS = (6, 3)
"""Vertices around a pixel: of the bilateral lattice, then of the spatial one."""


@intrinsic
def splat_span(typingctx, values, place, scale, tables, rows, weights, pixel, size, lanes):  # type: ignore[no-untyped-def]
    """Adds scale * values[place:] to both lattices at ``pixel``."""
    width_of_lanes = len(lanes)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        kinds = signature.args
        values_, place_, scale_, *_, pixel_, size_, _ = _read_pointers(context, builder, signature, args)
        pairs = [
            [
                context.make_array(kinds[at].types[k])(context, builder, builder.extract_value(args[at], k)).data
                for at in (3, 4, 5)
            ]
            for k in range(2)
        ]

        def emit(offset: ir.Value, width: int) -> None:
            scaled = builder.fmul(
                _load(builder, values_, builder.add(place_, offset), width), _spread(builder, scale_, width)
            )
            for (table, rows_, weights_), corners in zip(pairs, CORNERS, strict=True):
                for row, weight in _iterate_corners(builder, rows_, weights_, pixel_, corners):
                    at = builder.add(builder.mul(row, size_), offset)
                    more = _multiply_add(
                        builder, _spread(builder, weight, width), scaled, _load(builder, table, at, width)
                    )
                    _store(builder, more, table, at, width)

        _walk_span(builder, size_, width_of_lanes, emit)
        return context.get_dummy_value()

    return types.void(values, place, scale, tables, rows, weights, pixel, size, lanes), generate


@intrinsic
def blur_span(typingctx, out, given, row, before, after, size, lanes):  # type: ignore[no-untyped-def]
    """out[row] = given[row] + (given[before] + given[after]) / 2, where numbers count spans."""
    width_of_lanes = len(lanes)

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        out_, given_, row_, before_, after_, size_, _ = _read_pointers(context, builder, signature, args)
        starts = [builder.mul(index, size_) for index in (row_, before_, after_)]

        def emit(offset: ir.Value, width: int) -> None:
            own, one, two = (_load(builder, given_, builder.add(start, offset), width) for start in starts)
            half = ir.Constant(_vector(width), [0.5] * width)
            _store(
                builder,
                _multiply_add(builder, builder.fadd(one, two), half, own),
                out_,
                builder.add(starts[0], offset),
                width,
            )

        _walk_span(builder, size_, width_of_lanes, emit)
        return context.get_dummy_value()

    return types.void(out, given, row, before, after, size, lanes), generate


ONES_AT_ONCE = 8
"""Vertices that ``blur_ones`` takes."""


@intrinsic
def blur_ones(typingctx, out, given, before, after, axis, start):  # type: ignore[no-untyped-def]
    """The same of ``ONES_AT_ONCE`` vertices from number ``start`` on along an axis, in spans of one float."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        out_, given_, *_, start_ = _read_pointers(context, builder, signature, args)
        row = builder.add(start_, ir.Constant(INDEX, 1))
        found = []
        for place in (2, 3):
            table = context.make_array(signature.args[place])(context, builder, args[place])
            stride = builder.extract_value(table.shape, 1)
            first = builder.add(builder.mul(args[4], stride), start_)
            lanes = ir.Constant(_vector(ONES_AT_ONCE), ir.Undefined)
            for lane in range(ONES_AT_ONCE):
                at = builder.load(builder.gep(table.data, [builder.add(first, ir.Constant(INDEX, lane))]))
                value = builder.load(builder.gep(given_, [builder.zext(at, INDEX)]))
                lanes = builder.insert_element(lanes, value, ir.Constant(INT, lane))
            found.append(lanes)
        own = _load(builder, given_, row, ONES_AT_ONCE)
        half = ir.Constant(_vector(ONES_AT_ONCE), [0.5] * ONES_AT_ONCE)
        _store(builder, _multiply_add(builder, builder.fadd(*found), half, own), out_, row, ONES_AT_ONCE)
        return context.get_dummy_value()

    return types.void(out, given, before, after, axis, start), generate
