"""Tiles of a product, summed in registers; `products` puts them together.

A tile is a few rows of vectors of the result.  For each k, `VECTORS` vectors of B are loaded once, and multiplied by a
number of each row of A: with `ROWS` rows all registers but those for B and for one number of A hold sums, and each load
serves several multiplications.  How many that are follows from the registers alone.
"""

from __future__ import annotations

import functools

import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import vectors
from .compiling import part
from .edges import Vectors

AVAILABLE = vectors.HAS_FMA and not numba.config.DISABLE_JIT
"""Whether there are tiles at all: without fused multiply-adds a BLAS, which is tuned for such processors, is faster."""
ROWS, VECTORS = (8, 3) if vectors.REGISTERS == 32 else (6, 2)
FEW_ROWS = 4 if vectors.REGISTERS == 16 else 1
"""What is left of the rows is computed by tiles of so many, where it fits them."""
ROW_VECTORS = 4 if vectors.REGISTERS == 32 and vectors.MASKS else 8
"""Vectors of a tile of one row: a sum is ready for the next product after four cycles, in each of which two begin."""


@part
def share_of(left, width, lanes):
    """Return how many of the columns that are left are computed next, at most `width`.

    Without masks the last share has at least a vector of them, where there are so many at all.
    """
    if left <= width:
        return left
    if not vectors.MASKS and left < width + lanes:
        return left - lanes
    return width


@part
def readable(valid, lanes):
    """Tell whether B may be read where it lies: without masks a vector that is not whole goes beyond it."""
    return vectors.MASKS or valid >= lanes


ROWS_OF_A, COLUMNS_OF_A, COPY_OF_A, ROWS_OF_B = range(4)
"""How a tile finds the numbers of A for its rows: each row by an index; all of them in a row of A that is found by an
index, for a product with the transpose; or those of each k after the other in a copy, see `packing`.  With the last,
they are in rows of A that follow each other, and it is B's rows that are found by the index."""


@functools.cache
def tile(rows: int, width: int, lanes: int, source: int):
    """Return the intrinsic that computes a tile of a product: `rows` rows of `width` vectors of `lanes` numbers.

    ``out = beta out + alpha A B`` with A (count, k), B (k, valid).  With `ROWS_OF_A` and `ROWS_OF_B`, rows beyond
    `count` repeat the last one; else each k must have `rows` numbers that may be read.  None of them is stored.
    With `onward`, sums begin with what is in out instead of 0: where alpha is 1 and beta 0, a product that is computed
    in blocks along k so has the bits of one that is not.
    With `ROWS_OF_A`, where `ahead` is not negative, the tile that starts there in the index is fetched into the caches
    meanwhile.
    """
    by_rows, by_columns = source == ROWS_OF_A, source == COLUMNS_OF_A

    @intrinsic
    def tile(
        typing, a, at, index, index_at, ahead, lda, count, k, b, b_at, ldb, valid, alpha, beta, onward, out, out_at, ldo
    ):
        real, whole = out.dtype, types.intp
        signature = types.void(
            *(a, whole, index, whole, whole, whole, whole, whole),
            *(b, whole, whole, whole, real, real, types.boolean, out, whole, whole),
        )

        def codegen(context, builder, signature, args):
            a, at, index, index_at, ahead, lda, count, k, *others = args
            b, b_at, ldb, valid, alpha, beta, onward, out, out_at, ldo = others
            number, integer = context.get_value_type(real), vectors.integer
            side = Vectors(builder, number, lanes, width, valid)

            def from_array(position, value, offset):
                return vectors.first_element(context, builder, signature.args[position], value, offset, real)

            a_start, b_start, out_start = from_array(0, a, at), from_array(8, b, b_at), from_array(15, out, out_at)
            first_index = cgutils.create_struct_proxy(signature.args[2])(context, builder, index).data
            indices = builder.gep(first_index, [index_at])
            last = builder.sub(count, integer(1))
            own = [builder.select(builder.icmp_signed("<", integer(r), last), integer(r), last) for r in range(rows)]

            def row_of_a(i):
                return builder.gep(a_start, [builder.mul(builder.load(builder.gep(indices, [i])), lda)])

            starts = [row_of_a(i) for i in own] if by_rows else []
            is_ahead = builder.icmp_signed(">=", ahead, integer(0))
            for r in range(rows):  # what the sums will be written to
                row = builder.gep(out_start, [builder.mul(own[r], ldo)])
                for place in [row] if by_rows or by_columns else [builder.gep(row, [p]) for p in side.places]:
                    vectors.prefetch(builder, place)
            initial = side.initial_sums(rows, onward, count, out_start, ldo)
            # a loop over lines of A's rows, at each of which those that come next are asked for, and one along a line
            line = integer(vectors.LINE_BYTES * 8 // real.bitwidth if by_rows else 2**62)
            before = builder.basic_block
            outer, ask, head, body, done = (
                builder.append_basic_block(name) for name in ("outer", "ask", "head", "body", "done")
            )
            builder.branch(outer)

            def phis():
                values = [builder.phi(k.type), builder.phi(b_start.type)]
                return values + [builder.phi(side.vector) for _ in range(rows * width)]

            builder.position_at_end(outer)
            at_line = phis()
            for phi, value in zip(at_line, [integer(0), b_start, *initial], strict=True):
                phi.add_incoming(value, before)
            start = at_line[0]
            left = builder.sub(k, start)
            stop = builder.add(start, builder.select(builder.icmp_signed("<", left, line), left, line))
            builder.cbranch(builder.icmp_signed("<", start, k), ask, done)

            builder.position_at_end(ask)
            if by_rows:
                with builder.if_then(is_ahead, likely=False):
                    for r in range(rows):
                        there = builder.gep(first_index, [builder.add(ahead, own[r])])
                        row = builder.gep(a_start, [builder.mul(builder.load(there), lda)])
                        vectors.prefetch(builder, builder.gep(row, [start]))
            entered = builder.basic_block
            builder.branch(head)

            builder.position_at_end(head)
            now = phis()
            for phi, value in zip(now, at_line, strict=True):
                phi.add_incoming(value, entered)
            i, b_row, *sums = now
            builder.cbranch(builder.icmp_signed("<", i, stop), body, outer)
            for phi, value in zip(at_line, now, strict=True):
                phi.add_incoming(value, head)

            builder.position_at_end(body)
            row_of_b = b_row
            if source == ROWS_OF_B:
                row_of_b = builder.gep(b_start, [builder.mul(builder.load(builder.gep(indices, [i])), ldb)])
            b_vectors = [side.load(row_of_b, j) for j in range(width)]
            if by_columns:  # and what the tiles that come next read of this row
                a_row, step = row_of_a(i), vectors.LINE_BYTES * 8 // real.bitwidth
                for far in range(max(rows, step), max(rows, step) + rows, step):
                    vectors.prefetch(builder, builder.gep(a_row, [integer(far)]))
            elif not by_rows:
                a_row = builder.gep(a_start, [builder.mul(i, lda)])
            for r in range(rows):
                in_row = own[r] if source == ROWS_OF_B else integer(r)
                place = builder.gep(starts[r], [i]) if by_rows else builder.gep(a_row, [in_row])
                element = side.splat(builder.load(place))
                for j in range(width):
                    total = sums[r * width + j]
                    total.add_incoming(side.fma(element, b_vectors[j], total), body)
            i.add_incoming(builder.add(i, integer(1)), body)
            b_row.add_incoming(builder.gep(b_row, [ldb]), body)
            vectors.keep_rolled(builder.branch(head))

            builder.position_at_end(done)
            side.store_sums([at_line[2:][r * width :][:width] for r in range(rows)], count, alpha, beta, out_start, ldo)
            return context.get_dummy_value()

        return signature, codegen

    return tile


@functools.cache
def panel_of_rows(lanes: int):
    """Return the function that computes up to `VECTORS` vectors of all rows of a product, tile by tile."""
    all1, all2, all3 = (tile(ROWS, min(width, VECTORS), lanes, ROWS_OF_A) for width in (1, 2, 3))
    few1, few2, few3 = (tile(FEW_ROWS, min(width, VECTORS), lanes, ROWS_OF_A) for width in (1, 2, 3))
    one1, one2, one3 = (tile(1, min(width, VECTORS), lanes, ROWS_OF_A) for width in (1, 2, 3))
    quarter = lanes // 4 if vectors.MASKS else 0
    narrow = tile(ROWS, 1, max(quarter, 1), ROWS_OF_A)  # a quarter of a vector, for the last columns
    # constants are looked at first: what they rule out is not even compiled
    three, has_few, has_narrow = VECTORS > 2, FEW_ROWS > 1, quarter > 0

    @part
    def panel(a, at, index, index_at, after, lda, rows, k, b, b_at, ldb, valid, alpha, beta, out, out_at, ldo):
        for r in range(0, rows, ROWS):
            n = min(ROWS, rows - r)
            i = index_at + r
            ahead = after
            if after >= 0 and r + ROWS < rows:
                ahead = i + ROWS
            if ahead + n > index.size:
                ahead = -1
            o = out_at + r * ldo
            if n > FEW_ROWS:
                if three and valid > 2 * lanes:
                    all3(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
                elif valid > lanes:
                    all2(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
                elif has_narrow and valid <= quarter:
                    narrow(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
                else:
                    all1(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
            elif has_few and n > 1:
                if three and valid > 2 * lanes:
                    few3(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
                elif valid > lanes:
                    few2(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
                else:
                    few1(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
            elif three and valid > 2 * lanes:
                one3(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
            elif valid > lanes:
                one2(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)
            else:
                one1(a, at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, False, out, o, ldo)

    return panel


@functools.cache
def panel_of_columns(lanes: int, source: int):
    """Return the function that computes up to `VECTORS` vectors of all rows of a product with A's transpose or a copy.

    What one tile reads of A is `step` elements from what the next one does; with a copy each k is `ROWS`, the lda, from
    the next, and with a transpose the rows are a multiple of `ROWS`.  `soon` says which rows of a matrix are fetched
    meanwhile, as many as there are of b: the matrix, where in it they start (-1 for none), and how many elements they
    are apart.  A share of them is asked for before each tile: there is room for a few dozen lines on their way.
    """
    all1, all2, all3 = (tile(ROWS, min(width, VECTORS), lanes, source) for width in (1, 2, 3))
    few2, few3 = (tile(FEW_ROWS, min(width, VECTORS), lanes, source) for width in (2, 3))
    quarter = lanes // 4 if vectors.MASKS else 0
    narrow = tile(ROWS, 1, max(quarter, 1), source)
    # where there is one vector of sums for a row, there are registers for those of more rows
    tall = VECTORS * ROWS if source == COLUMNS_OF_A else ROWS
    tall1, tall_narrow = tile(tall, 1, lanes, source), tile(tall, 1, max(quarter, 1), source)
    three, has_tall, has_narrow = VECTORS > 2, tall > ROWS, quarter > 0

    @part
    def panel(
        a, at, index, index_at, step, lda, rows, k, b, b_at, ldb, valid, alpha, beta, onward, out, out_at, ldo, soon
    ):
        r, fetched, share = 0, 0, (k * ROWS + rows - 1) // max(rows, 1)
        matrix, first, stride = soon
        while has_tall and valid <= lanes and rows - r >= tall:
            o = out_at + r * ldo
            if has_narrow and valid <= quarter:
                tall_narrow(
                    *(a, at, index, index_at, -1, lda, tall, k, b, b_at, ldb, valid),
                    *(alpha, beta, onward, out, o, ldo),
                )
            else:
                tall1(a, at, index, index_at, -1, lda, tall, k, b, b_at, ldb, valid, alpha, beta, onward, out, o, ldo)
            r += tall
            at += VECTORS * step
        while r < rows:
            n = min(ROWS, rows - r)
            o = out_at + r * ldo
            if first >= 0:
                count = min(share, k - fetched)
                vectors.fetch_rows(matrix, first + fetched * stride, stride, count, VECTORS * lanes)
                fetched += count
            if three and n <= FEW_ROWS and valid > 2 * lanes:
                few3(a, at, index, index_at, -1, lda, n, k, b, b_at, ldb, valid, alpha, beta, onward, out, o, ldo)
            elif n <= FEW_ROWS and valid > lanes:
                few2(a, at, index, index_at, -1, lda, n, k, b, b_at, ldb, valid, alpha, beta, onward, out, o, ldo)
            elif three and valid > 2 * lanes:
                all3(a, at, index, index_at, -1, lda, n, k, b, b_at, ldb, valid, alpha, beta, onward, out, o, ldo)
            elif valid > lanes:
                all2(a, at, index, index_at, -1, lda, n, k, b, b_at, ldb, valid, alpha, beta, onward, out, o, ldo)
            elif has_narrow and valid <= quarter:
                narrow(a, at, index, index_at, -1, lda, n, k, b, b_at, ldb, valid, alpha, beta, onward, out, o, ldo)
            else:
                all1(a, at, index, index_at, -1, lda, n, k, b, b_at, ldb, valid, alpha, beta, onward, out, o, ldo)
            r += ROWS
            at += step

    return panel
