"""Products of a single row, the forward and the gradient of a batch of one; `products` calls them.

Much of such a row is 0 where it holds pixels, one-hot columns or what a rectifier has cut off: then the rows of W that
a 0 asks for are neither read nor updated.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from . import tiles, vectors
from .compiling import OPTIONS, part
from .tiles import readable, share_of
from .vectors import run, seen_as

WIDEST = 4
"""Vectors of a tile of one row, whose sums stay in registers while it goes over what is not 0."""
PLACE_SIZE = 8
"""Bytes of a place in the row."""


def notes_size(inputs: int, number_bytes: int) -> int:
    """Return how many numbers of scratch it takes to note what is not 0 in a row: places and numbers.

    An even number, so that the places of the next thread lie as they should.
    """
    count = inputs * (PLACE_SIZE // number_bytes + 1)
    return count + count % 2


@part
def _is_sparse(row):
    """Whether so much of a row is 0 that to pass over it pays."""
    found = 0
    for i in range(row.size):
        found += row[i] != 0
    return 2 * found <= row.size


@part
def _note(row, places, numbers):
    """Note what is not 0 in a row, and where; return how many.  No branch depends on it: none could be guessed."""
    count = 0
    for i in range(row.size):
        places[count], numbers[count] = i, row[i]
        count += row[i] != 0
    return count


def multiply_sparse_row(row, b, b_at, columns, out, out_at, scratch):
    """``out = row @ b`` without what is 0 in the row; False, and nothing is computed, where that does not pay.

    Scratch (`notes_size`,) is overwritten.
    """


@overload(multiply_sparse_row, jit_options=OPTIONS)
def _compiled_multiply_sparse_row(row, b, b_at, columns, out, out_at, scratch):
    real, lanes = getattr(np, str(out.dtype)), vectors.lanes(out.dtype)
    tile1, tile2, tile3, tile4 = (tiles.tile(1, width, lanes, tiles.ROWS_OF_B) for width in (1, 2, 3, WIDEST))
    widest, per_place = WIDEST * lanes, PLACE_SIZE * 8 // out.dtype.bitwidth

    def multiply_sparse_row(row, b, b_at, columns, out, out_at, scratch):
        if not readable(columns, lanes) or not _is_sparse(row):
            return False
        one, zero = real(1), real(0)
        places, at = seen_as(scratch, np.int64), row.size * per_place
        k = _note(row, places, run(scratch, at, row.size))
        c = 0
        while c < columns:
            valid = share_of(columns - c, widest, lanes)
            if valid > 3 * lanes:
                tile4(
                    *(scratch, at, places, 0, -1, 1, 1, k, b, b_at + c, columns, valid, one, zero, False),
                    *(out, out_at + c, columns),
                )
            elif valid > 2 * lanes:
                tile3(
                    *(scratch, at, places, 0, -1, 1, 1, k, b, b_at + c, columns, valid, one, zero, False),
                    *(out, out_at + c, columns),
                )
            elif valid > lanes:
                tile2(
                    *(scratch, at, places, 0, -1, 1, 1, k, b, b_at + c, columns, valid, one, zero, False),
                    *(out, out_at + c, columns),
                )
            else:
                tile1(
                    *(scratch, at, places, 0, -1, 1, 1, k, b, b_at + c, columns, valid, one, zero, False),
                    *(out, out_at + c, columns),
                )
            c += valid
        return True

    return multiply_sparse_row


@part
def add_outer_product(u, v, alpha, beta, out, out_at, scratch):
    """``out = beta out + alpha u v.T``: the gradient of a single row, which no tile has to sum.

    Scratch (`notes_size`,) is overwritten.
    """
    if beta == 1 and _is_sparse(u):
        places, numbers = seen_as(scratch, np.int64), run(scratch, u.size * (PLACE_SIZE // u.itemsize), u.size)
        for j in range(_note(u, places, numbers)):
            row, factor = run(out, out_at + places[j] * v.size, v.size), alpha * numbers[j]
            for q in range(v.size):
                row[q] = row[q] + factor * v[q]
        return
    for i in range(u.size):
        row, factor = run(out, out_at + i * v.size, v.size), alpha * u[i]
        if beta == 0:
            for q in range(v.size):
                row[q] = factor * v[q]
        else:
            for q in range(v.size):
                row[q] = beta * row[q] + factor * v[q]
