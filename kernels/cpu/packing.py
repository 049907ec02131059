"""Copies of a matrix in the order in which tiles read it, and transposed ones; `products` calls them.

A block of B becomes panels, one after the other, each (depth, WIDTH) for `VECTORS` vectors side by side; one of A'
panels (depth, ROWS).  Rows are read in the order in which they lie, since a page and a cache line each are the dearest
part of a copy.  What a tile multiplies beyond the last row or column is 0, or a number that is there: subnormal ones,
such as old memory holds, take twenty times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from . import vectors
from .compiling import OPTIONS, part
from .tiles import ROWS, VECTORS, share_of
from .vectors import run

BLOCK = 8


def _transposed(builder, rows):
    """Return the numbers of some vectors (2, 4, 8 ...) in the order of their transpose, by interleaving vectors."""
    long, half = rows[0].type.count, len(rows) // 2
    low = [x for q in range(long // 2) for x in (q, q + long)]
    high = [x + long // 2 for x in low]
    for _ in range(len(rows).bit_length() - 1):
        pairs = [(rows[r], rows[r + half]) for r in range(half)]
        rows = [vectors.shuffle(builder, a, b, order) for a, b in pairs for order in (low, high)]
    return rows


def _transposed_block(size: int):
    """Return the intrinsic that writes the transpose of so many rows of as many numbers."""

    @intrinsic
    def block(typing, source, at, lds, out, out_at, ldo):
        real, whole = out.dtype, types.intp

        def codegen(context, builder, signature, args):
            source, at, lds, out, out_at, ldo = args
            vector = ir.VectorType(context.get_value_type(real), size)

            def places(position, value, offset, stride):
                start = vectors.first_element(context, builder, signature.args[position], value, offset, real)
                rows = [builder.gep(start, [builder.mul(vectors.integer(r), stride)]) for r in range(size)]
                return [builder.bitcast(row, vector.as_pointer()) for row in rows]

            rows = [builder.load(place, align=real.bitwidth // 8) for place in places(0, source, at, lds)]
            for place, row in zip(places(3, out, out_at, ldo), _transposed(builder, rows), strict=True):
                builder.store(row, place, align=real.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(source, whole, whole, out, whole, whole), codegen

    return block


def _of_few_columns(count: int):
    """Return the functions that transpose a matrix of so many columns, and into one.

    Without gaps: else a compiler does not see that what it writes to does not overlap, and takes no vectors.
    """

    @part
    def to_rows(source, at, rows, out, out_at):
        numbers, there = run(source, at, count * rows), run(out, out_at, count * rows)
        for q in range(rows):
            there[q], there[rows + q] = numbers[count * q], numbers[count * q + 1]
            if count > 2:
                there[2 * rows + q] = numbers[count * q + 2]
            if count > 3:
                there[3 * rows + q] = numbers[count * q + 3]

    @part
    def to_columns(source, at, rows, out, out_at):
        numbers, there = run(source, at, count * rows), run(out, out_at, count * rows)
        for q in range(rows):
            there[count * q], there[count * q + 1] = numbers[q], numbers[rows + q]
            if count > 2:
                there[count * q + 2] = numbers[2 * rows + q]
            if count > 3:
                there[count * q + 3] = numbers[3 * rows + q]

    return to_rows, to_columns


def transpose(source, at, lds, rows, columns, out, out_at, ldo):
    """``out[c, r] = source[r, c]``, from `at` and from `out_at` on."""


@overload(transpose, jit_options=OPTIONS)
def _compiled_transpose(source, at, lds, rows, columns, out, out_at, ldo):
    long = max(BLOCK, vectors.lanes(out.dtype))
    block, small = _transposed_block(long), _transposed_block(BLOCK)
    (rows2, columns2), (rows3, columns3), (rows4, columns4) = (_of_few_columns(count) for count in (2, 3, 4))

    def transpose(source, at, lds, rows, columns, out, out_at, ldo):
        if columns == lds and rows == ldo:
            if columns == 2:
                return rows2(source, at, rows, out, out_at)
            if columns == 3:
                return rows3(source, at, rows, out, out_at)
            if columns == 4:
                return rows4(source, at, rows, out, out_at)
            if rows == 2:
                return columns2(source, at, columns, out, out_at)
            if rows == 3:
                return columns3(source, at, columns, out, out_at)
            if rows == 4:
                return columns4(source, at, columns, out, out_at)
        c = 0
        while c < columns:
            size = long if columns - c >= long else BLOCK
            if columns < BLOCK:
                size = columns
            c = min(c, columns - size)  # the last block ends where the columns do, and the last of the rows likewise
            r = 0
            while size == long and r + long <= rows:
                block(source, at + r * lds + c, lds, out, out_at + c * ldo + r, ldo)
                r += long
            while size >= BLOCK and rows >= BLOCK and r < rows:
                r = min(r, rows - BLOCK)
                for q in range(c, c + size, BLOCK):
                    small(source, at + r * lds + q, lds, out, out_at + q * ldo + r, ldo)
                r += BLOCK
            while r < rows:
                for q in range(c, c + size):
                    out[out_at + q * ldo + r] = source[at + r * lds + q]
                r += 1
            c += size

    return transpose


def _run_of(count: int):
    """Return the intrinsic that copies `count` numbers."""

    @intrinsic
    def copy(typing, source, at, out, out_at):
        real, whole = out.dtype, types.intp

        def codegen(context, builder, signature, args):
            source, at, out, out_at = args
            starts = [
                vectors.first_element(context, builder, signature.args[p], array, offset, real)
                for p, array, offset in ((0, source, at), (2, out, out_at))
            ]
            done, moves = 0, []
            while done < count:  # vectors as long as there are, then a half, a quarter ...
                n = vectors.lanes(real)
                while n > count - done:
                    n //= 2
                pointer = ir.VectorType(context.get_value_type(real), n).as_pointer()
                places = [builder.bitcast(builder.gep(s, [vectors.integer(done)]), pointer) for s in starts]
                moves.append((builder.load(places[0], align=real.bitwidth // 8), places[1]))
                done += n
            for value, place in moves:
                builder.store(value, place, align=real.bitwidth // 8)
            return context.get_dummy_value()

        return types.void(source, whole, out, whole), codegen

    return copy


def panel_width(dtype: np.dtype[Any]) -> int:
    """Return how many columns a panel of B has."""
    return VECTORS * vectors.VECTOR_BYTES // dtype.itemsize


def pack(b, at, ldb, depth, columns, out, out_at, room):
    """Write `depth` rows of `columns` numbers of b, from `at` on, as panels with room for `room` rows each."""


@overload(pack, jit_options=OPTIONS)
def _compiled_pack(b, at, ldb, depth, columns, out, out_at, room):
    lanes = vectors.lanes(out.dtype)
    width = VECTORS * lanes
    copy = _run_of(width)

    def pack(b, at, ldb, depth, columns, out, out_at, room):
        whole = 0
        while share_of(columns - whole * width, width, lanes) == width:
            whole += 1
        for k in range(depth):
            start = at + k * ldb
            for p in range(whole):
                copy(b, start + p * width, out, out_at + (p * room + k) * width)
            c = whole * width
            place = out_at + (whole * room + k) * width
            while c < columns:
                valid = share_of(columns - c, width, lanes)
                if start + c + width <= b.size:
                    copy(b, start + c, out, place)
                else:
                    for q in range(valid):
                        out[place + q] = b[start + c + q]
                    for q in range(valid, width):
                        out[place + q] = 0
                c += valid
                place += room * width

    return pack


_copy_rows = _run_of(ROWS)


@part
def pack_columns(a, at, index, index_at, lda, depth, columns, out, out_at, room):
    """Write `columns` columns of the rows ``index[index_at:][:depth]`` of a, from `at` on, as panels of ROWS.

    Each has room for `room` rows.  What the last one has beyond the columns is what follows them in a, or 0.
    """
    whole = columns // ROWS
    for k in range(depth):
        start = at + index[index_at + k] * lda
        for p in range(whole):
            _copy_rows(a, start + p * ROWS, out, out_at + (p * room + k) * ROWS)
        place = out_at + (whole * room + k) * ROWS
        rest, start = columns - whole * ROWS, start + whole * ROWS
        if rest and start + ROWS <= a.size:
            _copy_rows(a, start, out, place)
        elif rest:
            for q in range(rest):
                out[place + q] = a[start + q]
            for q in range(rest, ROWS):
                out[place + q] = 0


def _panel_of(lanes: int):
    """Return the intrinsic that copies up to ROWS rows as one panel: (depth, ROWS), a transpose.

    Rows are found by an index, and the last one is repeated.  Where `ahead` is not negative, the rows that start there
    in the index are fetched into the caches meanwhile.
    """
    long = max(BLOCK, lanes) if ROWS == BLOCK else BLOCK

    @intrinsic
    def panel(typing, a, at, index, index_at, ahead, lda, count, depth, out, out_at):
        real, whole = out.dtype, types.intp

        def codegen(context, builder, signature, args):
            a, at, index, index_at, ahead, lda, count, depth, out, out_at = args
            integer, align = vectors.integer, real.bitwidth // 8
            vector = ir.VectorType(context.get_value_type(real), long)
            start = vectors.first_element(context, builder, signature.args[0], a, at, real)
            target = vectors.first_element(context, builder, signature.args[8], out, out_at, real)
            indices = cgutils.create_struct_proxy(signature.args[2])(context, builder, index).data

            def rows_from(place):
                found = []
                for r in range(ROWS):
                    last = builder.sub(count, integer(1))
                    own = builder.select(builder.icmp_signed("<", integer(r), last), integer(r), last)
                    row = builder.load(builder.gep(indices, [builder.add(place, own)]))
                    found.append(builder.gep(start, [builder.mul(row, lda)]))
                return found

            rows = rows_from(index_at)
            is_ahead = builder.icmp_signed(">=", ahead, integer(0))
            later = rows_from(builder.select(is_ahead, ahead, index_at))
            blocks = builder.sdiv(depth, integer(long))
            with cgutils.for_range(builder, blocks) as loop:
                k = builder.mul(loop.index, integer(long))
                with builder.if_then(is_ahead):
                    for row in later:
                        vectors.prefetch(builder, builder.gep(row, [k]))
                read = [builder.bitcast(builder.gep(row, [k]), vector.as_pointer()) for row in rows]
                read += read[-1:] * (BLOCK - ROWS)
                found = _transposed(builder, [builder.load(place, align=align) for place in read])
                step = long if ROWS == BLOCK else ROWS  # each writes over what is too much in the one before
                first = builder.mul(k, integer(ROWS))
                for j, value in enumerate(found):
                    place = builder.gep(target, [builder.add(first, integer(j * step))])
                    builder.store(value, builder.bitcast(place, vector.as_pointer()), align=align)
            with cgutils.for_range_slice(builder, builder.mul(blocks, integer(long)), depth, integer(1)) as (k, _):
                for r, row in enumerate(rows):
                    place = builder.gep(target, [builder.add(builder.mul(k, integer(ROWS)), integer(r))])
                    builder.store(builder.load(builder.gep(row, [k])), place)
            return context.get_dummy_value()

        return types.void(a, whole, index, whole, whole, whole, whole, whole, out, whole), codegen

    return panel


def pack_rows(a, at, index, index_at, after, lda, depth, rows, out, out_at, room):
    """Write ``a[index[index_at:][:rows]]``, `depth` numbers of each from `at` on, as panels of ROWS.

    Each has room for `room` of its rows, and there is room for a few numbers more after the last one.
    """


@overload(pack_rows, jit_options=OPTIONS)
def _compiled_pack_rows(a, at, index, index_at, after, lda, depth, rows, out, out_at, room):
    panel = _panel_of(vectors.lanes(out.dtype))

    def pack_rows(a, at, index, index_at, after, lda, depth, rows, out, out_at, room):
        for r in range(0, rows, ROWS):
            n = min(ROWS, rows - r)
            ahead = index_at + r + n if r + n < rows else after
            if ahead + n > index.size:
                ahead = -1
            panel(a, at, index, index_at + r, ahead, lda, n, depth, out, out_at + r * room)

    return pack_rows
