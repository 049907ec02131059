"""Copies of a matrix in the order in which tiles read it, and transposed ones; `products` calls them.

A block of B becomes panels, one after the other, each (depth, WIDTH) for `VECTORS` vectors side by side; one of A'
panels (depth, ROWS).  Rows are read in the order in which they lie, since a page and a cache line each are the dearest
part of a copy.  What is beyond the columns in the last panels is left as it is; tiles do not look at it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from . import vectors
from .compiling import OPTIONS, part
from .tiles import ROWS, VECTORS, share_of

BLOCK = 8


@intrinsic
def _transpose_block(typing, source, at, lds, out, out_at, ldo):
    """Write the transpose of 8 x 8 numbers, in three rounds of interleaving rows."""
    real, whole = out.dtype, types.intp

    def codegen(context, builder, signature, args):
        source, at, lds, out, out_at, ldo = args
        vector = ir.VectorType(context.get_value_type(real), BLOCK)

        def places(position, value, offset, stride):
            start = vectors.first_element(context, builder, signature.args[position], value, offset, real)
            rows = [builder.gep(start, [builder.mul(vectors.integer(r), stride)]) for r in range(BLOCK)]
            return [builder.bitcast(row, vector.as_pointer()) for row in rows]

        rows = [builder.load(place, align=real.bitwidth // 8) for place in places(0, source, at, lds)]
        low = [x for q in range(BLOCK // 2) for x in (q, q + BLOCK)]
        high = [x + BLOCK // 2 for x in low]
        for _ in range(3):
            pairs = [(rows[r], rows[r + BLOCK // 2]) for r in range(BLOCK // 2)]
            rows = [vectors.shuffle(builder, a, b, order) for a, b in pairs for order in (low, high)]
        for place, row in zip(places(3, out, out_at, ldo), rows, strict=True):
            builder.store(row, place, align=real.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(source, whole, whole, out, whole, whole), codegen


@part
def transpose(source, at, lds, rows, columns, out, out_at, ldo):
    """``out[c, r] = source[r, c]``, from `at` and from `out_at` on."""
    full = rows // BLOCK * BLOCK
    for c in range(0, columns, BLOCK):
        done = 0
        if columns - c >= BLOCK:
            done = full
            for r in range(0, full, BLOCK):
                _transpose_block(source, at + r * lds + c, lds, out, out_at + c * ldo + r, ldo)
        for r in range(done, rows):
            start = at + r * lds
            for q in range(c, min(c + BLOCK, columns)):
                out[out_at + q * ldo + r] = source[start + q]


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


def pack(b, at, ldb, depth, columns, out):
    """Write `depth` rows of `columns` numbers of b, from `at` on, as panels."""


@overload(pack, jit_options=OPTIONS)
def _compiled_pack(b, at, ldb, depth, columns, out):
    lanes = vectors.lanes(out.dtype)
    width = VECTORS * lanes
    copy = _run_of(width)

    def pack(b, at, ldb, depth, columns, out):
        whole = 0
        while share_of(columns - whole * width, width, lanes) == width:
            whole += 1
        for k in range(depth):
            start = at + k * ldb
            for p in range(whole):
                copy(b, start + p * width, out, (p * depth + k) * width)
            c = whole * width
            place = (c // width * depth + k) * width
            while c < columns:
                valid = share_of(columns - c, width, lanes)
                if start + c + width <= b.size:  # what is beyond the columns is not looked at
                    copy(b, start + c, out, place)
                else:
                    for q in range(valid):
                        out[place + q] = b[start + c + q]
                c += valid
                place += depth * width

    return pack


_copy_rows = _run_of(ROWS)


@part
def pack_columns(a, at, index, index_at, lda, depth, columns, out, out_at):
    """Write `columns` columns of the rows ``index[index_at:][:depth]`` of a, from `at` on, as panels of ROWS."""
    whole = columns // ROWS
    for k in range(depth):
        start = at + index[index_at + k] * lda
        for p in range(whole):
            _copy_rows(a, start + p * ROWS, out, out_at + (p * depth + k) * ROWS)
        place = out_at + (whole * depth + k) * ROWS
        for q in range(columns - whole * ROWS):
            out[place + q] = a[start + whole * ROWS + q]
