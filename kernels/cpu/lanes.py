"""Small tables worked on column by column, one column in each lane of a vector; softmax in `losses` is made of them.

A row of ten numbers is too short for a vector, and what is done along it (a largest, a sum) is slow across the lanes of
one.  Sixteen rows side by side, one in each lane, are not: the tables here are (k, LANES), flat, and everything happens
from one of their rows to the next.  LLVM unrolls loops as short as these before it could make vectors of them, so the
vectors are written down.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from . import vectors
from .compiling import INLINE

LANES = 16


def _vector(context, real):
    return ir.VectorType(context.get_value_type(real), LANES)


class _Table:
    """Vectors in the memory of an array of a function that is being generated."""

    def __init__(self, context, builder, array_type, array):
        self.builder, real = builder, array_type.dtype
        self.align = real.bitwidth // 8
        first = vectors.first_element(context, builder, array_type, array, vectors.integer(0), real)
        self.start = builder.bitcast(first, _vector(context, real).as_pointer())

    def load(self, row):
        return self.builder.load(self.builder.gep(self.start, [row]), align=self.align)

    def store(self, value, row):
        self.builder.store(value, self.builder.gep(self.start, [row]), align=self.align)


def _operation(writes):
    """Return the intrinsic of arguments (values, k, *vectors); `writes(builder, real, k, *tables)` generates it."""

    def codegen(context, builder, signature, args):
        values, k, *others = args
        types_ = [signature.args[0], *signature.args[2:]]
        tables = [_Table(context, builder, t, a) for t, a in zip(types_, [values, *others], strict=True)]
        writes(builder, _vector(context, signature.args[0].dtype), k, *tables)
        return context.get_dummy_value()

    return codegen


def _write_largest(builder, vector, k, values, top, best):
    zero = vectors.integer(0)
    largest, place = (
        cgutils.alloca_once_value(builder, v) for v in (values.load(zero), ir.Constant(vector, [0.0] * LANES))
    )
    with cgutils.for_range(builder, k) as loop:
        row, old = values.load(loop.index), builder.load(largest)
        larger = builder.fcmp_ordered(">", row, old)
        builder.store(builder.select(larger, row, old), largest)
        position = vectors.splat(builder, builder.sitofp(loop.index, vector.element), LANES)
        builder.store(builder.select(larger, position, builder.load(place)), place)
    top.store(builder.load(largest), zero)
    best.store(builder.load(place), zero)


def _write_subtract(builder, vector, k, values, shift):
    subtracted = shift.load(vectors.integer(0))
    with cgutils.for_range(builder, k) as loop:
        values.store(builder.fsub(values.load(loop.index), subtracted), loop.index)


def _write_add_up(builder, vector, k, values, total):
    found = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES))
    with cgutils.for_range(builder, k) as loop:
        builder.store(builder.fadd(builder.load(found), values.load(loop.index)), found)
    total.store(builder.load(found), vectors.integer(0))


def _write_scale(builder, vector, k, values, factor, shift):
    multiplied, subtracted = factor.load(vectors.integer(0)), shift.load(vectors.integer(0))
    with cgutils.for_range(builder, k) as loop:
        product = builder.fmul(values.load(loop.index), multiplied)
        values.store(builder.fsub(product, subtracted), loop.index)


@intrinsic
def _largest(typing, values, k, top, best):
    return types.void(values, types.intp, top, best), _operation(_write_largest)


@intrinsic
def _subtract(typing, values, k, shift):
    return types.void(values, types.intp, shift), _operation(_write_subtract)


@intrinsic
def _add_up(typing, values, k, total):
    return types.void(values, types.intp, total), _operation(_write_add_up)


@intrinsic
def _scale(typing, values, k, factor, shift):
    return types.void(values, types.intp, factor, shift), _operation(_write_scale)


def largest(values, k, top, best):
    """Write the largest number of each column, and its first row; where there is no NaN."""
    table = values[: k * LANES].reshape(k, LANES)
    top[:LANES], best[:LANES] = table.max(axis=0), np.argmax(table, axis=0)


def subtract(values, k, shift):
    """Subtract from each column its number in `shift`."""
    values[: k * LANES].reshape(k, LANES)[...] -= shift[:LANES]


def add_up(values, k, total):
    """Write the sum of each column."""
    total[:LANES] = values[: k * LANES].reshape(k, LANES).sum(axis=0)


def scale(values, k, factor, shift):
    """Multiply each column by its number in `factor`, then subtract that in `shift`."""
    table = values[: k * LANES].reshape(k, LANES)
    table[...] = table * factor[:LANES] - shift[:LANES]


@overload(largest, jit_options=INLINE)
def _compiled_largest(values, k, top, best):
    return lambda values, k, top, best: _largest(values, k, top, best)


@overload(subtract, jit_options=INLINE)
def _compiled_subtract(values, k, shift):
    return lambda values, k, shift: _subtract(values, k, shift)


@overload(add_up, jit_options=INLINE)
def _compiled_add_up(values, k, total):
    return lambda values, k, total: _add_up(values, k, total)


@overload(scale, jit_options=INLINE)
def _compiled_scale(values, k, factor, shift):
    return lambda values, k, factor, shift: _scale(values, k, factor, shift)
