"""The backward products of a few outputs, ten classes above all; `products` calls them.

In the gradient of the weights their vectors would be half empty: the transpose is summed, whose vectors lie along the
inputs, and turned in the end.  And in the gradient of the inputs of up to four of them, a tile would be begun and
ended for as many sums: rows are computed one after the other.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from . import tiles, vectors
from .blocks import rows_at_once
from .compiling import OPTIONS, part
from .packing import transpose
from .tiles import share_of
from .vectors import run

INPUTS_BESIDE = {1: (8, 4), 2: (8, 4), 4: (6, 4), 5: (4, 2)} if vectors.MASKS else {4: (2, 1), 5: (2, 1)}
"""Outputs that are summed at once where there is no more than a vector of them, and vectors of inputs beside each: what
registers hold, and without masks two at most, of which the last ends where the row does; and fewer, for what is left.
Ten outputs are two times five, and would be three times four."""
LATENCY = 8
"""Multiply-adds that can begin until the first is ready, at most."""
VECTORS_OF_INPUTS = 768 // vectors.VECTOR_BYTES
"""Those that are summed before they are turned: with ten outputs, they and their transpose take half of a first-level
cache of 32 KiB."""
MANY_SUMMED = 32 if vectors.MASKS else 16
"""Rows of a batch from which on sums are worth the transpose, whose cost is the same for any number of them."""


def most_outputs(lanes: int) -> int:
    """Return how many outputs are few, at most: a vector of them, and two where vectors are short; else none."""
    if vectors.MASKS:
        return lanes
    return 2 * lanes if vectors.REGISTERS == 16 else 0


def few_scratch(rows: int, columns: int, lanes: int) -> int:
    """Return how many numbers of scratch `few_outputs` needs: a block and its transpose."""
    return 2 * min(rows, VECTORS_OF_INPUTS * lanes) * min(columns, most_outputs(lanes))


@part
def are_few(columns, rows, k, lanes):
    """Tell whether so many columns, `most_outputs` at most, leave vectors so empty that a transpose is worth its cost.

    Without masks a fifth of their numbers, about what it costs; and there must be a vector of rows, for the last one
    to end where they do.
    """
    if k < MANY_SUMMED:
        return False
    if vectors.MASKS:
        return True
    vectors_of_them = (columns + lanes - 1) // lanes
    return rows >= lanes and 5 * columns <= 4 * vectors_of_them * lanes


def few_outputs(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch):
    """Compute `products.multiply_transposed` for columns that `are_few`; scratch holds `few_scratch` numbers."""


def _transposed_sums(outputs: int, lanes: int):
    """Return the function that leaves the transpose of the product in scratch, `outputs` of its rows at a time."""
    long, short = INPUTS_BESIDE[outputs]
    wide, half = long * lanes, short * lanes
    single = outputs * short > LATENCY  # else a tile of one vector takes as long as the short one
    tile1, tile_half, tile_long = (tiles.tile(outputs, n, lanes, tiles.ROWS_OF_B) for n in (1, short, long))

    @part
    def sums(a, at, index, index_at, lda, rows, k, b, b_at, columns, one, zero, scratch):
        deep = rows_at_once(lda, columns, scratch.itemsize)
        c = 0
        while c < rows:
            valid = share_of(rows - c, wide, lanes)
            if wide + lanes < rows - c <= 2 * half:  # two short ones are less than a long one and another
                valid = half
            for start in range(0, k, deep):
                i, depth, onward, x_at = index_at + start, min(deep, k - start), start > 0, at + c
                for q in range(0, columns, outputs):
                    d_at, n, o = b_at + start * columns + q, min(outputs, columns - q), q * rows + c
                    if valid > half:
                        tile_long(
                            *(b, d_at, index, i, -1, columns, n, depth, a, x_at, lda, valid),
                            *(one, zero, onward, scratch, o, rows),
                        )
                    elif single and valid <= lanes:
                        tile1(
                            *(b, d_at, index, i, -1, columns, n, depth, a, x_at, lda, valid),
                            *(one, zero, onward, scratch, o, rows),
                        )
                    else:
                        tile_half(
                            *(b, d_at, index, i, -1, columns, n, depth, a, x_at, lda, valid),
                            *(one, zero, onward, scratch, o, rows),
                        )
            c += valid

    return sums


@overload(few_outputs, jit_options=OPTIONS)
def _compiled_few_outputs(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch):
    if not most_outputs(vectors.lanes(out.dtype)):
        return lambda a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch: None
    lanes = vectors.lanes(out.dtype)
    most = VECTORS_OF_INPUTS * lanes
    has_small = 1 in INPUTS_BESIDE  # else the fewest are four, some of which are missing
    four, five = 4, 5
    by_one, by_two, by_four, by_five = (
        _transposed_sums(outputs, lanes) for outputs in ((1, 2, four, five) if has_small else (four, four, four, five))
    )
    one, zero = (getattr(np, str(out.dtype))(n) for n in (1, 0))

    def few_outputs(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch):
        # a tile of which outputs are missing takes as long as a whole one; no sum depends on it
        by_fives = (columns + five - 1) // five * five < (columns + four - 1) // four * four
        c = 0
        while c < rows:
            several = share_of(rows - c, most, lanes)
            count = several * columns
            if has_small and columns == 1:
                by_one(a, at + c, index, index_at, lda, several, k, b, b_at, columns, one, zero, scratch)
            elif has_small and columns == 2:
                by_two(a, at + c, index, index_at, lda, several, k, b, b_at, columns, one, zero, scratch)
            elif by_fives:
                by_five(a, at + c, index, index_at, lda, several, k, b, b_at, columns, one, zero, scratch)
            else:
                by_four(a, at + c, index, index_at, lda, several, k, b, b_at, columns, one, zero, scratch)
            turned = 0
            if columns > 1:
                turned = count
                transpose(scratch, 0, several, columns, several, scratch, turned, columns)
            target, sums = run(out, out_at + c * columns, count), run(scratch, turned, count)
            if beta == zero:  # what is there may be NaN
                for q in range(count):
                    target[q] = alpha * sums[q]
            else:
                for q in range(count):
                    target[q] = beta * target[q] + alpha * sums[q]
            c += several

    return few_outputs


MOST_IN_ROWS = 4
"""Outputs whose numbers stay in registers while a row of their inputs is computed."""
ROWS_BYTES = 16 * 1024
"""Of the rows of W' that pass by for each row: half of a first-level cache."""


@part
def are_in_rows(k, columns, lanes):
    """Tell whether so many outputs are few enough for `few_in_rows`, and there is a vector of inputs."""
    return k <= MOST_IN_ROWS and columns >= lanes


def _row_of(outputs: int, lanes: int):
    """Return the intrinsic that computes a part of a row, at least a vector, from W' whose rows are `ldw` apart."""

    @intrinsic
    def row(typing, d, d_at, w, w_at, ldw, columns, out, out_at):
        real, whole = out.dtype, types.intp

        def codegen(context, builder, signature, args):
            d, d_at, w, w_at, ldw, columns, out, out_at = args
            integer, align = vectors.integer, real.bitwidth // 8
            vector = ir.VectorType(context.get_value_type(real), lanes)
            kind = ir.FunctionType(vector, [vector] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f{real.bitwidth}")
            starts = [
                vectors.first_element(context, builder, signature.args[p], array, offset, real)
                for p, array, offset in ((0, d, d_at), (2, w, w_at), (6, out, out_at))
            ]
            d_row, w_start, out_row = starts
            factors = [
                vectors.splat(builder, builder.load(builder.gep(d_row, [integer(j)])), lanes) for j in range(outputs)
            ]
            w_rows = [builder.gep(w_start, [builder.mul(integer(j), ldw)]) for j in range(outputs)]

            def place(start, q):
                return builder.bitcast(builder.gep(start, [q]), vector.as_pointer())

            def compute(q):
                ws = [builder.load(place(w_row, q), align=align) for w_row in w_rows]
                total = builder.fmul(factors[0], ws[0])
                for factor, value in zip(factors[1:], ws[1:], strict=True):
                    total = builder.call(fma, [factor, value, total])
                builder.store(total, place(out_row, q), align=align)

            last = builder.sub(columns, integer(lanes))  # the last vector ends where the row does
            with cgutils.for_range_slice(builder, integer(0), last, integer(lanes)) as (q, _):
                compute(q)
            compute(last)
            return context.get_dummy_value()

        return types.void(d, whole, w, whole, whole, whole, out, whole), codegen

    return row


def few_in_rows(a, at, rows, k, w, w_at, columns, out, out_at, scratch):
    """Compute `products.multiply_by_transposed` for outputs that `are_in_rows`; scratch holds a copy of W."""


@overload(few_in_rows, jit_options=OPTIONS)
def _compiled_few_in_rows(a, at, rows, k, w, w_at, columns, out, out_at, scratch):
    lanes = vectors.lanes(out.dtype)
    row1, row2, row3, row4 = (_row_of(outputs, lanes) for outputs in (1, 2, 3, 4))

    def few_in_rows(a, at, rows, k, w, w_at, columns, out, out_at, scratch):
        copy, copy_at = w, w_at
        if k > 1:
            copy, copy_at = scratch, 0
            transpose(w, w_at, k, columns, k, scratch, 0, columns)
        many = min(columns, max(lanes, ROWS_BYTES // (k * out.itemsize)))
        for first in range(0, columns, many):
            c = min(first, columns - many)  # what is computed twice is the same
            for r in range(rows):
                d_at, o = at + r * k, out_at + r * columns + c
                if k == 1:
                    row1(a, d_at, copy, copy_at + c, columns, many, out, o)
                elif k == 2:
                    row2(a, d_at, copy, copy_at + c, columns, many, out, o)
                elif k == 3:
                    row3(a, d_at, copy, copy_at + c, columns, many, out, o)
                else:
                    row4(a, d_at, copy, copy_at + c, columns, many, out, o)

    return few_in_rows
