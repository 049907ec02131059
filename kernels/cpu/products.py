"""The matrix products of a layer, by tiles or by `blas`; for `forward` and `train`, which are told which (a form).

- `BLAS` copies its operands into blocks first, and checks a dozen arguments.  For large matrices nothing is faster.
- `DIRECT` reads all operands where they lie, by `tiles`: for a few rows a copy of B costs more than it gains.
- `PACKED` copies blocks of B, and of A' where many columns share them, to where a tile reads them one after the other.
  A row of B is as far from the next as the matrix is wide: without a copy each is a page and a set of the cache.

Rows of A are found by an index, so that tiles multiply a batch where it lies in the user's data, without its being
gathered; and what is added to the result is scaled first, so that a weight gradient and the step of gradient descent
are one product.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload

from . import tiles, vectors
from .blas import gemm
from .codes import BLAS, DIRECT, PACKED
from .compiling import OPTIONS, part
from .packing import pack, pack_columns, transpose
from .tiles import ROWS, readable, share_of
from .vectors import run

DEPTH = max(128, 16 * 1024 // (tiles.VECTORS * vectors.VECTOR_BYTES) // 8 * 8)
"""Rows of a batch that a weight gradient is summed over at a time: a panel of B takes half of the smallest first-level
cache there is, 32 KiB, so that rows of A pass by it; and a tile's sums are written once for at least 128 products."""
DEEPEST_ROWS = 1024
"""Of a packed block where rows of A are read along k: longer panels of B, which the second-level cache holds."""
PANELS = 8
"""Panels of B that are packed at once: a copy of whole rows would be spread over the cache, one of single panels over
the pages."""
MANY_ROWS = 384
"""Rows of A, or of A', that pass by a packed block of B: as far as they go, they stay in the second-level cache."""
ROWS_OF_ZEROS = 64
"""Columns from which on the rows of B that a single row's zeros ask for are left out: shorter ones are read sooner than
it is found out."""
SHARED_PANELS = 6
"""Panels of B from which on a copy of A' is made for them."""


def available_forms() -> tuple[int, ...]:
    """Return the ways in which products can be computed here."""
    return (BLAS, DIRECT, PACKED) if tiles.AVAILABLE else (BLAS,)


def scratch_size(form: int, width: int, rows: int, inputs: int, outputs: int, block_rows: int) -> int:
    """Return how many numbers of scratch the three products of a layer need at most.

    Parameters
    ----------
    form : int
        A position in `codes.FORMS`.
    width : int
        `packing.panel_width`.
    rows, inputs, outputs : int
    block_rows : int
        How many columns of inputs (rows of A') are packed at once.
    """
    if form == BLAS:
        return 0
    panels = min(PANELS, -(-max(inputs, outputs) // width))
    if form == DIRECT:
        return max(inputs, outputs, DEPTH) * width + DEPTH * ROWS
    shared = (min(block_rows, inputs) // ROWS + 1) * ROWS
    return max(DEEPEST_ROWS * panels * width, DEPTH * (panels * width + shared))


@part
def _equal_parts(k, most):
    """Return the depth of equal blocks of at most `most`."""
    blocks = (k + most - 1) // most
    return min(most, ((k + blocks - 1) // blocks + 7) // 8 * 8)


def multiply(form, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
    """``out[i] = a[index[i], :k] @ b``, for i below `rows`.

    Parameters
    ----------
    form : int
        A position in `codes.FORMS`.
    a : (...) float
        Flat, from `at` on; the rows of A, `lda` elements from one to the next.
    index : (rows,) int64
        From `index_at` on.  Looked at by tiles alone: for a BLAS the rows wanted must be the first ones.
    after : int
        Where in the index the rows start that will be wanted next, which are fetched meanwhile; -1 for none.
    b : (...) float
        Flat, from `b_at` on (k, columns).
    out : (...) float
        Flat; from `out_at` on (rows, columns) is overwritten.
    scratch : (`scratch_size`,) float
        Overwritten.
    """
    gemm(False, False, rows, columns, k, 1, a, at, lda, b, b_at, columns, 0, out, out_at, columns)


def multiply_by_transposed(form, a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
    """``out = a @ w.T``, for a (rows, k) from `at` on and w (columns, k) from `w_at` on; out (rows, columns).

    index (rows,) int64 counts from 0; the rest is as for `multiply`.
    """
    gemm(False, True, rows, columns, k, 1, a, at, k, w, w_at, k, 0, out, out_at, columns)


def multiply_transposed(
    form, a, at, index, index_at, counting, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
):
    """``out = beta out + alpha a[index[:k]][:, :rows].T @ b``.

    Parameters
    ----------
    form : int
        A position in `codes.FORMS`.
    a : (...) float
        Flat, from `at` on; its rows are `lda` elements apart.
    index : (k,) int64
        As for `multiply`.
    counting : (k,) int64
        Counts from 0.
    b : (...) float
        Flat, from `b_at` on (k, columns).
    alpha, beta : float
        Of the arrays' type; with a `beta` of 0, what `out` holds is not looked at.
    out : (...) float
        Flat; from `out_at` on (rows, columns) is overwritten.
    scratch : (`scratch_size`,) float
        Overwritten.
    """
    gemm(True, False, rows, columns, k, alpha, a, at, lda, b, b_at, columns, beta, out, out_at, columns)


@part
def _is_sparse(row, columns):
    """Whether so much of a row is 0, as of pixels and one-hot columns, that to pass over it pays."""
    if columns < ROWS_OF_ZEROS:
        return False
    found = 0
    for i in range(row.size):
        found += row[i] != 0
    return 2 * found <= row.size


@part
def _multiply_sparse_row(row, b, b_at, columns, out, out_at):
    """``out = row @ b``, without the rows of B that a 0 asks for: they are neither read nor looked at."""
    sums = run(out, out_at, columns)
    for q in range(columns):
        sums[q] = 0
    for i in range(row.size):
        if row[i] != 0:
            factors = run(b, b_at + i * columns, columns)
            for q in range(columns):
                sums[q] += row[i] * factors[q]


@part
def _add_outer_product(u, v, alpha, beta, out, out_at):
    """``out = beta out + alpha u v.T``: the gradient of a single row, which no tile has to sum."""
    is_sparse = beta == 1 and _is_sparse(u, v.size)
    for i in range(u.size):
        if is_sparse and u[i] == 0:
            continue
        row, factor = run(out, out_at + i * v.size, v.size), alpha * u[i]
        if beta == 0:
            for q in range(v.size):
                row[q] = factor * v[q]
        else:
            for q in range(v.size):
                row[q] = beta * row[q] + factor * v[q]


@overload(multiply, jit_options=OPTIONS)
def _compiled_multiply(form, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
    real = getattr(np, str(out.dtype))
    lanes = vectors.lanes(out.dtype)
    panel, width = tiles.panel_of_rows(lanes), tiles.VECTORS * lanes
    long_row, long = tiles.tile(1, tiles.ROW_VECTORS, lanes, False), tiles.ROW_VECTORS * lanes

    def multiply(form, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
        if form == BLAS:
            gemm(False, False, rows, columns, k, real(1), a, at, lda, b, b_at, columns, real(0), out, out_at, columns)
            return
        if rows == 1 and form == DIRECT:
            row = run(a, at + index[index_at] * lda, k)
            if _is_sparse(row, columns):
                _multiply_sparse_row(row, b, b_at, columns, out, out_at)
                return
        deep, many, group = max(1, k), max(1, rows), columns
        if form == PACKED:
            deep, many, group = _equal_parts(k, DEEPEST_ROWS), MANY_ROWS, PANELS * width
        for start in range(0, k, deep):
            depth, kept = min(deep, k - start), real(0 if start == 0 else 1)
            for r in range(0, rows, many):
                n = min(many, rows - r)
                ahead = after if r + n == rows else -1
                g = 0
                while g < columns:
                    grouped = share_of(columns - g, group, lanes)
                    first = b_at + start * columns + g
                    if form == PACKED and (r == 0 or columns > group):
                        pack(b, first, columns, depth, grouped, scratch)
                    c, packed_at = 0, 0
                    if rows == 1 and form == DIRECT:
                        place = out_at + g
                        while share_of(grouped - c, long, lanes) == long:
                            long_row(
                                *(a, at + start, index, index_at, ahead, lda, 1, depth, b, first + c, columns, long),
                                *(real(1), kept, out, place + c, columns),
                            )
                            c += long
                    while c < grouped:
                        valid = share_of(grouped - c, width, lanes)
                        panels, panel_at, step = b, first + c, columns
                        if form == PACKED:
                            panels, panel_at, step = scratch, packed_at, width
                        elif not readable(valid, lanes):
                            pack(b, first + c, columns, depth, valid, scratch)
                            panels, panel_at, step = scratch, 0, width
                        panel(
                            *(a, at + start, index, index_at + r, ahead, lda, n, depth),
                            *(panels, panel_at, step, valid, real(1), kept, out, out_at + r * columns + g + c, columns),
                        )
                        ahead = -1  # the rows are here now
                        c += valid
                        packed_at += depth * width
                    g += grouped

    return multiply


@overload(multiply_by_transposed, jit_options=OPTIONS)
def _compiled_multiply_by_transposed(form, a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
    real = getattr(np, str(out.dtype))
    lanes = vectors.lanes(out.dtype)
    panel, width = tiles.panel_of_rows(lanes), tiles.VECTORS * lanes

    def multiply_by_transposed(form, a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
        if form == BLAS:
            gemm(False, True, rows, columns, k, real(1), a, at, k, w, w_at, k, real(0), out, out_at, columns)
            return
        deep, many = max(1, k), max(1, rows)
        if form == PACKED:
            deep, many = _equal_parts(k, DEEPEST_ROWS), MANY_ROWS
        for start in range(0, k, deep):
            depth, kept = min(deep, k - start), real(0 if start == 0 else 1)
            for r in range(0, rows, many):
                n = min(many, rows - r)
                c = 0
                while c < columns:
                    valid = share_of(columns - c, width, lanes)
                    transpose(w, w_at + c * k + start, k, valid, depth, scratch, 0, width)
                    panel(
                        *(a, at + start, index, r, -1, k, n, depth),
                        *(scratch, 0, width, valid, real(1), kept, out, out_at + r * columns + c, columns),
                    )
                    c += valid

    return multiply_by_transposed


@overload(multiply_transposed, jit_options=OPTIONS)
def _compiled_multiply_transposed(
    form, a, at, index, index_at, counting, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
):
    lanes = vectors.lanes(out.dtype)
    panel, width = tiles.panel_of_columns(lanes), tiles.VECTORS * lanes
    one = getattr(np, str(out.dtype))(1)

    def multiply_transposed(
        form, a, at, index, index_at, counting, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
    ):
        if form == BLAS:
            gemm(True, False, rows, columns, k, alpha, a, at, lda, b, b_at, columns, beta, out, out_at, columns)
            return
        if k == 1:
            _add_outer_product(
                run(a, at + index[index_at] * lda, rows), run(b, b_at, columns), alpha, beta, out, out_at
            )
            return
        deep, many, group, copies = _equal_parts(k, DEPTH), max(1, rows), columns, False
        copy_at = deep * width
        if form == PACKED:
            group = PANELS * width
            copy_at = deep * min(group, (columns + width - 1) // width * width)
            copies = columns > (SHARED_PANELS - 1) * width
            if copies:
                many = min(MANY_ROWS, max(1, (scratch.size - copy_at) // (ROWS * deep)) * ROWS)
        for start in range(0, k, deep):
            depth, kept = min(deep, k - start), beta if start == 0 else one
            for r in range(0, rows, many):
                n = min(many, rows - r)
                whole = 0 if copies else n // ROWS * ROWS
                # the last columns of A' are copied in any case: a tile reads ROWS of them
                pack_columns(a, at + r + whole, index, index_at + start, lda, depth, n - whole, scratch, copy_at)
                g = 0
                while g < columns:
                    grouped = share_of(columns - g, group, lanes)
                    first = b_at + start * columns + g
                    if form == PACKED and (r == 0 or columns > group):
                        pack(b, first, columns, depth, grouped, scratch)
                    c, packed_at = 0, 0
                    while c < grouped:
                        valid = share_of(grouped - c, width, lanes)
                        panels, panel_at, step = b, first + c, columns
                        if form == PACKED:
                            panels, panel_at, step = scratch, packed_at, width
                        elif not readable(valid, lanes):
                            pack(b, first + c, columns, depth, valid, scratch)
                            panels, panel_at, step = scratch, 0, width
                        place = out_at + r * columns + g + c
                        panel(
                            *(a, at + r, index, index_at + start, ROWS, lda, whole, depth),
                            *(panels, panel_at, step, valid, alpha, kept, out, place, columns),
                        )
                        panel(
                            *(scratch, copy_at, counting, 0, ROWS * depth, ROWS, n - whole, depth),
                            *(panels, panel_at, step, valid, alpha, kept, out, place + whole * columns, columns),
                        )
                        c += valid
                        packed_at += depth * width
                    g += grouped

    return multiply_transposed
