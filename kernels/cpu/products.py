"""The matrix products of a layer, by tiles or by `blas`; for `forward` and `train`, which are told which (a form).

- `BLAS` copies its operands into blocks first, and checks a dozen arguments.
- `DIRECT` reads all operands where they lie, by `tiles`: for a few rows a copy of B costs more than it gains.
- `PACKED` copies blocks of both to where a tile reads their numbers one after the other (Goto & van de Geijn 2008,
  "Anatomy of high-performance matrix multiplication").  A row of B is as far from the next as the matrix is wide:
  without a copy each is a page and a set of the cache.

A product with W's transpose needs a copy of W in any case, and gains nothing by one of A: it is the same in both.  So
are products forward of a few outputs, see `dots`.

Rows of A are found by an index, so that tiles multiply a batch where it lies in the user's data, without its being
gathered; and what is added to the result is scaled first, so that a weight gradient and the step of gradient descent
are one product.
"""

from __future__ import annotations

import numpy as np
from numba.extending import overload, register_jitable

from . import tiles, vectors
from .blas import gemm
from .blocks import DEPTH, rows_at_once
from .codes import BLAS, DIRECT, PACKED
from .compiling import OPTIONS, shared
from .dots import MOST, are_dots, dots
from .few import MOST_IN_ROWS, are_few, are_in_rows, few_in_rows, few_outputs, few_scratch, most_outputs
from .packing import pack, pack_columns, pack_rows, transpose
from .single import add_outer_product, multiply_sparse_row, notes_size
from .tiles import ROWS, readable, share_of
from .vectors import run

DEEPEST = min(384, 36 * 1024 // (tiles.VECTORS * vectors.VECTOR_BYTES) // 8 * 8)
"""Of packed blocks along k: a panel of B stays in a first-level cache of 48 KiB while rows of A pass by it."""
PANELS = 8
"""Panels of B that are packed at once: a copy of whole rows would be spread over the cache, one of single panels over
the pages."""
KEPT = 4 * 1024 * 1024
"""Numbers of B at most of which copies are kept for several blocks of A's rows: all of it, where that is possible, so
that the sums of a block of rows go on in the second-level cache from one block along k to the next."""
MANY_ROWS = 144
"""Rows of a packed block of A, a multiple of every tile's: with their sums it fits a second-level cache."""
FEWEST_ROWS, FEWEST_ROWS_OF_COPY = 48, 512
"""Rows of a block of A that is read in place, at least: all of W passes by it; and of one for which W is copied
transposed, which takes as long as the products of several rows."""


# What is shared between kernels has to be a function of its module, and what is compiled for a type is made within an
# `overload`: so each of the products is a function that calls one of the same name and `_here`.


def available_forms() -> tuple[int, ...]:
    """Return the ways in which products can be computed here."""
    return (BLAS, DIRECT, PACKED) if tiles.AVAILABLE else (BLAS,)


def scratch_size(form: int, width: int, rows: int, inputs: int, outputs: int) -> int:
    """Return how many numbers of scratch the three products of a layer need at most.

    Parameters
    ----------
    form : int
        A position in `codes.FORMS`.
    width : int
        `packing.panel_width`.
    rows, inputs, outputs : int
    """
    if form == BLAS:
        return 0
    copy = max(MOST, MOST_IN_ROWS) * inputs  # of the W of a few outputs, transposed
    if form == DIRECT:
        panels = max(inputs, outputs, DEPTH) * width + DEPTH * ROWS
        return max(panels, few_scratch(inputs, outputs, width // tiles.VECTORS), copy)
    # a product with W' copies panels that are as deep as W is wide, in either form
    shapes = (rows, inputs, outputs), (inputs, rows, outputs)
    notes = notes_size(inputs, vectors.VECTOR_BYTES * tiles.VECTORS // width)
    return max(outputs * width, copy, notes, *(_packed_size(width, *shape) for shape in shapes))


@register_jitable(**OPTIONS)
def _equal_parts(count, most, unit):
    """Return the size of equal parts of at most `most`, a multiple of `unit` as that is; of nothing too."""
    parts = max(1, (count + most - 1) // most)
    return max(unit, min(most, ((count + parts - 1) // parts + unit - 1) // unit * unit))


@register_jitable(**OPTIONS)
def _rows_in_place(rows, k, fewest):
    """Return how many rows of A are multiplied by all panels of B before the next ones are.

    Every panel reads them again: they stay in the second-level cache with as many numbers as a packed block has.
    """
    return _equal_parts(rows, max(MANY_ROWS * DEEPEST // k, fewest) // ROWS * ROWS, ROWS)


@register_jitable(**OPTIONS)
def _blocks(width, rows, k, columns):
    """Return how `_packed` divides a product, for A (rows, k), B (k, columns).

    Returns
    -------
    deep, many : int
        Along k, and rows of A, of a block.
    room : int
        What there is for `deep` in a panel: those at powers of two from each other would lie in the same few sets of
        the cache.
    panels, layers : int
        Of B that are kept: beside each other, and blocks along k.
    """
    deep, many = _equal_parts(k, DEEPEST, 8), _equal_parts(rows, MANY_ROWS, ROWS)
    room, panels = deep | 8, (columns + width - 1) // width
    if rows <= many:  # each is read once
        return deep, many, room, min(panels, PANELS), 1
    panels = min(panels, max(PANELS, KEPT // (room * width)))
    return deep, many, room, panels, min((k + deep - 1) // deep, max(1, KEPT // (panels * room * width)))


def _packed_size(width: int, rows: int, k: int, columns: int) -> int:
    """Return how many numbers of scratch `_packed` needs at most, for A (rows, k), B (k, columns).

    And for any smaller product, such as of a short batch or of a thread's rows, whose blocks may be the larger ones.
    """
    many, room = min(MANY_ROWS, -(-rows // ROWS) * ROWS), min(DEEPEST, -(-k // 8) * 8) | 8
    panels, layers = -(-columns // width), -(-k // DEEPEST)
    if rows <= MANY_ROWS:
        panels, layers = min(panels, PANELS), 1
    return min(KEPT, layers * panels * room * width) + room * many + vectors.VECTOR_BYTES


@shared
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
    _multiply_here(form, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch)


def _multiply_here(form, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
    gemm(False, False, rows, columns, k, 1, a, at, lda, b, b_at, columns, 0, out, out_at, columns)


@shared
def multiply_by_transposed(form, a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
    """``out = a @ w.T``, for a (rows, k) from `at` on and w (columns, k) from `w_at` on; out (rows, columns).

    index (rows,) int64 counts from 0; the rest is as for `multiply`.
    """
    _multiply_by_transposed_here(form, a, at, index, rows, k, w, w_at, columns, out, out_at, scratch)


def _multiply_by_transposed_here(form, a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
    gemm(False, True, rows, columns, k, 1, a, at, k, w, w_at, k, 0, out, out_at, columns)


@shared
def multiply_transposed(
    form, a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
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
    b : (...) float
        Flat, from `b_at` on (k, columns).
    alpha, beta : float
        Of the arrays' type; with a `beta` of 0, what `out` holds is not looked at.
    out : (...) float
        Flat; from `out_at` on (rows, columns) is overwritten.
    scratch : (`scratch_size`,) float
        Overwritten.
    """
    _multiply_transposed_here(
        form, a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
    )


def _multiply_transposed_here(
    form, a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
):
    gemm(True, False, rows, columns, k, alpha, a, at, lda, b, b_at, columns, beta, out, out_at, columns)


@shared
def packed(
    by_columns, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
):
    """Compute `multiply`, or with `by_columns` `multiply_transposed`, from copies of blocks of both operands.

    A copy of a block of B is a row of panels, one of A as many panels as there are tiles below each other, and in both
    of them the numbers lie in the order in which tiles read them.  A block of A and the sums of its rows stay in the
    second-level cache, a panel of B in the first-level one while A passes by; what is read next is fetched meanwhile: a
    panel that was copied for a block of A before this one, or the numbers of one that is going to be copied.
    """
    _packed_here(
        by_columns, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
    )


def _packed_here(
    by_columns, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
):
    """Do nothing: with the JIT off there are no tiles."""


@overload(_packed_here, jit_options=OPTIONS)
def _compiled_packed(
    by_columns, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
):
    lanes = vectors.lanes(out.dtype)
    panel, width = tiles.panel_of_columns(lanes, tiles.COPY_OF_A), tiles.VECTORS * lanes
    one = getattr(np, str(out.dtype))(1)

    def packed(
        by_columns, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
    ):
        deep, many, room, panels, layers = _blocks(width, rows, k, columns)
        size = room * width
        copy_at = layers * panels * size
        most = columns if rows <= many else panels * width
        g = 0
        while g < columns:
            grouped = share_of(columns - g, most, lanes)
            for first in range(0, k, layers * deep):
                for r in range(0, rows, many):
                    n = min(many, rows - r)
                    for start in range(first, min(k, first + layers * deep), deep):
                        depth = min(deep, k - start)
                        onward = start > 0 and not by_columns
                        kept = one if start > 0 and by_columns else beta
                        if by_columns:
                            pack_columns(a, at + r, index, index_at + start, lda, depth, n, scratch, copy_at, room)
                        else:
                            ahead = after if r + n == rows else index_at + r + n
                            pack_rows(a, at + start, index, index_at + r, ahead, lda, depth, n, scratch, copy_at, room)
                        layer_at = (start - first) // deep * panels * size
                        c, p = 0, 0
                        while c < grouped:
                            valid = share_of(grouped - c, width, lanes)
                            place = layer_at + p % panels * size
                            if r == 0 and p % PANELS == 0:
                                several = share_of(grouped - c, PANELS * width, lanes)
                                pack(b, b_at + start * columns + g + c, columns, depth, several, scratch, place, room)
                            soon = scratch, place + size, width
                            if r == 0:  # the panels after this one are copied, and those after these are not yet
                                layer, column = start, c + PANELS * width
                                if column + width > grouped:
                                    layer, column = start + deep, p % PANELS * width
                                there = b_at + layer * columns + g + column
                                soon = b, there if layer < min(k, first + layers * deep) else -1, columns
                            panel(
                                *(scratch, copy_at, index, 0, ROWS * room, ROWS, n, depth),
                                *(scratch, place, width, valid, alpha, kept, onward),
                                *(out, out_at + r * columns + g + c, columns, soon),
                            )
                            c += valid
                            p += 1
            g += grouped

    return packed


@overload(_multiply_here, jit_options=OPTIONS)
def _compiled_multiply(form, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
    real = getattr(np, str(out.dtype))
    lanes = vectors.lanes(out.dtype)
    panel, width = tiles.panel_of_rows(lanes), tiles.VECTORS * lanes
    long_row, long = tiles.tile(1, tiles.ROW_VECTORS, lanes, tiles.ROWS_OF_A), tiles.ROW_VECTORS * lanes

    def multiply(form, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
        one, zero = real(1), real(0)
        if form == BLAS:
            gemm(False, False, rows, columns, k, one, a, at, lda, b, b_at, columns, zero, out, out_at, columns)
            return
        if are_dots(k, columns, lanes):
            dots(a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch)
            return
        if form == PACKED:
            packed(
                *(False, a, at, index, index_at, after, lda, rows, k, b, b_at, columns, one, zero),
                *(out, out_at, scratch),
            )
            return
        c = 0
        if rows == 1:
            if multiply_sparse_row(run(a, at + index[index_at] * lda, k), b, b_at, columns, out, out_at, scratch):
                return
            while share_of(columns - c, long, lanes) == long:
                long_row(
                    *(a, at, index, index_at, after, lda, 1, k, b, b_at + c, columns, long),
                    *(one, zero, False, out, out_at + c, columns),
                )
                c += long
        rest, many = c, _rows_in_place(rows, k, FEWEST_ROWS)
        for r in range(0, rows, many):
            n = min(many, rows - r)
            ahead = after
            if r + n < rows:
                ahead = index_at + r + n
            c = rest
            while c < columns:
                valid = share_of(columns - c, width, lanes)
                panels, panel_at, step = b, b_at + c, columns
                if not readable(valid, lanes):
                    pack(b, b_at + c, columns, k, valid, scratch, 0, k)
                    panels, panel_at, step = scratch, 0, width
                panel(
                    *(a, at, index, index_at + r, ahead, lda, n, k, panels, panel_at, step, valid),
                    *(one, zero, out, out_at + r * columns + c, columns),
                )
                ahead = -1  # the rows are here now
                c += valid

    return multiply


@overload(_multiply_by_transposed_here, jit_options=OPTIONS)
def _compiled_multiply_by_transposed(form, a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
    real = getattr(np, str(out.dtype))
    lanes = vectors.lanes(out.dtype)
    panel, width = tiles.panel_of_rows(lanes), tiles.VECTORS * lanes

    def multiply_by_transposed(form, a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
        one, zero = real(1), real(0)
        if form == BLAS:
            gemm(False, True, rows, columns, k, one, a, at, k, w, w_at, k, zero, out, out_at, columns)
            return
        if are_in_rows(k, columns, lanes):
            few_in_rows(a, at, rows, k, w, w_at, columns, out, out_at, scratch)
            return
        many = _rows_in_place(rows, k, FEWEST_ROWS_OF_COPY)
        for r in range(0, rows, many):
            n = min(many, rows - r)
            ahead = r + n if r + n < rows else -1
            c = 0
            while c < columns:
                valid = share_of(columns - c, width, lanes)
                if not readable(valid, lanes):
                    for q in range(k * width):
                        scratch[q] = 0
                transpose(w, w_at + c * k, k, valid, k, scratch, 0, width)
                panel(
                    *(a, at, index, r, ahead, k, n, k, scratch, 0, width, valid),
                    *(one, zero, out, out_at + r * columns + c, columns),
                )
                ahead = -1  # the rows are here now
                c += valid

    return multiply_by_transposed


@overload(_multiply_transposed_here, jit_options=OPTIONS)
def _compiled_multiply_transposed(
    form, a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
):
    lanes = vectors.lanes(out.dtype)
    panel, width = tiles.panel_of_columns(lanes, tiles.COLUMNS_OF_A), tiles.VECTORS * lanes
    rest = tiles.panel_of_columns(lanes, tiles.COPY_OF_A)
    one = getattr(np, str(out.dtype))(1)
    most = most_outputs(lanes)

    def multiply_transposed(
        form, a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch
    ):
        if form == BLAS:
            gemm(True, False, rows, columns, k, alpha, a, at, lda, b, b_at, columns, beta, out, out_at, columns)
            return
        if k == 1:
            row = run(a, at + index[index_at] * lda, rows)
            add_outer_product(row, run(b, b_at, columns), alpha, beta, out, out_at, scratch)
            return
        if form == PACKED:
            packed(
                *(True, a, at, index, index_at, -1, lda, rows, k, b, b_at, columns, alpha, beta),
                *(out, out_at, scratch),
            )
            return
        if columns <= most and are_few(columns, rows, k, lanes):
            few_outputs(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at, scratch)
            return
        deep, whole = _equal_parts(k, rows_at_once(lda, columns, out.itemsize), 8), rows // ROWS * ROWS
        copy_at = deep * width
        for start in range(0, k, deep):
            depth, kept = min(deep, k - start), beta if start == 0 else one
            # the last columns of A' are copied: a tile reads ROWS of them
            pack_columns(a, at + whole, index, index_at + start, lda, depth, rows - whole, scratch, copy_at, depth)
            c = 0
            while c < columns:
                valid = share_of(columns - c, width, lanes)
                panels, panel_at, step = b, b_at + start * columns + c, columns
                if not readable(valid, lanes):
                    pack(b, panel_at, columns, depth, valid, scratch, 0, depth)
                    panels, panel_at, step = scratch, 0, width
                panel(
                    *(a, at, index, index_at + start, ROWS, lda, whole, depth, panels, panel_at, step, valid),
                    *(alpha, kept, False, out, out_at + c, columns, (b, -1, 0)),
                )
                rest(
                    *(scratch, copy_at, index, 0, 0, ROWS, rows - whole, depth, panels, panel_at, step, valid),
                    *(alpha, kept, False, out, out_at + whole * columns + c, columns, (b, -1, 0)),
                )
                c += valid

    return multiply_transposed
