"""The gradient of the weights of a few outputs, ten classes above all; `products` calls it.

Their vectors would be half empty: the transpose is summed, whose vectors lie along the inputs, and turned in the end.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from . import tiles, vectors
from .compiling import OPTIONS, part
from .packing import transpose
from .tiles import DEPTH, share_of
from .vectors import run

FEW_OUTPUTS = ((4, 6), (5, 4)) if vectors.MASKS else ((4, 2), (5, 2))
"""Outputs that are summed at once where there is no more than a vector of them, and vectors of inputs beside each: what
registers hold, and without masks two at most, of which the last ends where the row does.  Ten outputs are two times
five, and would be three times four."""


def most_outputs(lanes: int) -> int:
    """Return how many outputs are few, at most: a vector of them, and two where vectors are short; else none."""
    if vectors.MASKS:
        return lanes
    return 2 * lanes if vectors.REGISTERS == 16 else 0


@part
def are_few(columns, rows, lanes):
    """Tell whether so many columns would leave vectors so empty that the transpose is worth its cost.

    Without masks that is a fifth of their numbers, about what it costs; and there must be a vector of rows, for the
    last one to end where they do.
    """
    if vectors.MASKS:
        return columns <= lanes
    vectors_of_them = (columns + lanes - 1) // lanes
    return rows >= lanes and 5 * columns <= 4 * vectors_of_them * lanes and columns <= 2 * lanes


def few_outputs(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch):
    """Compute `products.multiply_transposed` for columns that `are_few`; scratch holds two transposes."""


def _transposed_sums(outputs: int, long: int, lanes: int):
    """Return the function that leaves the transpose of the product in scratch, `outputs` of its rows at a time."""
    wide, half = long * lanes, long // 2 * lanes
    tile1, tile_half, tile_long = (tiles.tile(outputs, n, lanes, tiles.ROWS_OF_B) for n in (1, long // 2, long))

    @part
    def sums(a, at, index, index_at, lda, rows, k, b, b_at, columns, one, zero, scratch):
        c = 0
        while c < rows:
            valid = share_of(rows - c, wide, lanes)
            for start in range(0, k, DEPTH):
                i, depth, onward, x_at = index_at + start, min(DEPTH, k - start), start > 0, at + c
                for q in range(0, columns, outputs):
                    d_at, n, o = b_at + start * columns + q, min(outputs, columns - q), q * rows + c
                    if valid > half:
                        tile_long(
                            *(b, d_at, index, i, -1, columns, n, depth, a, x_at, lda, valid),
                            *(one, zero, onward, scratch, o, rows),
                        )
                    elif valid > lanes:
                        tile_half(
                            *(b, d_at, index, i, -1, columns, n, depth, a, x_at, lda, valid),
                            *(one, zero, onward, scratch, o, rows),
                        )
                    else:
                        tile1(
                            *(b, d_at, index, i, -1, columns, n, depth, a, x_at, lda, valid),
                            *(one, zero, onward, scratch, o, rows),
                        )
            c += valid

    return sums


@overload(few_outputs, jit_options=OPTIONS)
def _compiled_few_outputs(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch):
    if not most_outputs(vectors.lanes(out.dtype)):
        return lambda a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch: None
    by_four, by_five = (_transposed_sums(*sizes, vectors.lanes(out.dtype)) for sizes in FEW_OUTPUTS)
    four, five = (outputs for outputs, _ in FEW_OUTPUTS)
    one, zero = (getattr(np, str(out.dtype))(n) for n in (1, 0))

    def few_outputs(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch):
        # a tile of which outputs are missing takes as long as a whole one; no sum depends on it
        if (columns + five - 1) // five * five < (columns + four - 1) // four * four:
            by_five(a, at, index, index_at, lda, rows, k, b, b_at, columns, one, zero, scratch)
        else:
            by_four(a, at, index, index_at, lda, rows, k, b, b_at, columns, one, zero, scratch)
        count = rows * columns
        transpose(scratch, 0, rows, columns, rows, scratch, count, columns)
        target, sums = run(out, out_at, count), run(scratch, count, count)
        if beta == zero:  # what is there may be NaN
            for q in range(count):
                target[q] = alpha * sums[q]
        else:
            for q in range(count):
                target[q] = beta * target[q] + alpha * sums[q]

    return few_outputs
