"""The gradient of the weights of a few outputs, ten classes above all; `products` calls it.

Their vectors would be half empty: the transpose is summed, whose vectors lie along the inputs, and turned in the end.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from . import tiles, vectors
from .blocks import rows_at_once
from .compiling import OPTIONS, part
from .packing import transpose
from .tiles import share_of
from .vectors import run

FEW_OUTPUTS = ((4, 6), (5, 4)) if vectors.MASKS else ((4, 2), (5, 2))
"""Outputs that are summed at once where there is no more than a vector of them, and vectors of inputs beside each: what
registers hold, and without masks two at most, of which the last ends where the row does.  Ten outputs are two times
five, and would be three times four."""

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


def _transposed_sums(outputs: int, long: int, lanes: int):
    """Return the function that leaves the transpose of the product in scratch, `outputs` of its rows at a time."""
    wide, half = long * lanes, long // 2 * lanes
    tile1, tile_half, tile_long = (tiles.tile(outputs, n, lanes, tiles.ROWS_OF_B) for n in (1, long // 2, long))

    @part
    def sums(a, at, index, index_at, lda, rows, k, b, b_at, columns, one, zero, scratch):
        deep = rows_at_once(lda, columns, scratch.itemsize)
        c = 0
        while c < rows:
            valid = share_of(rows - c, wide, lanes)
            for start in range(0, k, deep):
                i, depth, onward, x_at = index_at + start, min(deep, k - start), start > 0, at + c
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
    lanes = vectors.lanes(out.dtype)
    most = VECTORS_OF_INPUTS * lanes
    by_four, by_five = (_transposed_sums(*sizes, lanes) for sizes in FEW_OUTPUTS)
    four, five = (outputs for outputs, _ in FEW_OUTPUTS)
    one, zero = (getattr(np, str(out.dtype))(n) for n in (1, 0))

    def few_outputs(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch):
        # a tile of which outputs are missing takes as long as a whole one; no sum depends on it
        by_fives = (columns + five - 1) // five * five < (columns + four - 1) // four * four
        c = 0
        while c < rows:
            several = share_of(rows - c, most, lanes)
            count = several * columns
            if by_fives:
                by_five(a, at + c, index, index_at, lda, several, k, b, b_at, columns, one, zero, scratch)
            else:
                by_four(a, at + c, index, index_at, lda, several, k, b, b_at, columns, one, zero, scratch)
            transpose(scratch, 0, several, columns, several, scratch, count, columns)
            target, sums = run(out, out_at + c * columns, count), run(scratch, count, count)
            if beta == zero:  # what is there may be NaN
                for q in range(count):
                    target[q] = alpha * sums[q]
            else:
                for q in range(count):
                    target[q] = beta * target[q] + alpha * sums[q]
            c += several

    return few_outputs
