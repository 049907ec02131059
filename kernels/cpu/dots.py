"""Products with a few outputs, such as the one of a regression, forward; `products` calls them.

Vectors of outputs would be nearly empty.  Each sum is taken along the inputs instead, a vector of them at a time, in a
tile of rows and outputs, and what the vectors hold is added up in the end, for many sums at once.
"""

from __future__ import annotations

import functools

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from . import vectors
from .compiling import OPTIONS, part
from .packing import transpose

MOST = 4
"""Outputs, at most; and rows of the transposed copy of W, of which the fourth is 0 where there are three."""
ROWS = {1: 8, 2: 8, 4: 4} if vectors.REGISTERS == 32 else {1: 8, 2: 4, 4: 2}
"""Rows of a tile, by its outputs: sums that registers hold, and rows that pointers are there for."""
CHUNK_BITS = 128
"""Within them a vector's elements change places in one instruction."""


@part
def are_dots(inputs, outputs, lanes):
    """Tell whether so few outputs have enough inputs for sums of vectors of these; three take as long as four."""
    return outputs <= min(MOST, lanes // 2) and inputs >= (2 if outputs == 3 else 1) * lanes


def _added_up(builder, sums):
    """Return the sums of the elements of 2, 4, 8 ... vectors, in their order, as vectors."""
    lanes = sums[0].type.count
    while lanes > len(sums):
        lanes //= 2
        halves = list(range(lanes)), list(range(lanes, 2 * lanes))
        sums = [builder.fadd(*(vectors.shuffle(builder, v, v, half) for half in halves)) for v in sums]
    return [_added_crosswise(builder, sums[first:][:lanes]) for first in range(0, len(sums), lanes)]


def _added_crosswise(builder, sums):
    """Return a vector of the sums of the elements of as many vectors as it has elements, in their order.

    Two vectors at a time become one, in which blocks half as long belong to the one and the other.
    """
    lanes = len(sums)
    chunk = min(lanes, CHUNK_BITS // (64 if isinstance(sums[0].type.element, ir.DoubleType) else 32))
    chunks, block = lanes // chunk, lanes
    parts = [sums[p % chunks * chunk + p // chunks] for p in range(lanes)]  # so that they come out in order
    while len(parts) > 1:
        group = lanes if block > chunk else chunk
        low = [
            source * lanes + start + first + q
            for start in range(0, lanes, group)
            for source in (0, 1)
            for first in range(0, group, block)
            for q in range(block // 2)
        ]
        high = [place + block // 2 for place in low]
        parts = [
            builder.fadd(vectors.shuffle(builder, a, b, low), vectors.shuffle(builder, a, b, high))
            for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
        block //= 2
    return parts[0]


@functools.cache
def _tile(outputs: int, lanes: int):
    """Return the intrinsic that computes `outputs` numbers of `ROWS[outputs]` rows of a product, found by an index.

    Of W there is a transposed copy, (outputs, k), and k is at least `lanes`.  Rows beyond `count` repeat the last one,
    and neither they nor outputs beyond `valid` are stored.  Where `ahead` is not negative, the tile that starts there
    in the index is fetched into the caches meanwhile.
    """
    rows = ROWS[outputs]

    @intrinsic
    def tile(typing, a, at, index, index_at, ahead, lda, count, k, w, w_at, valid, out, out_at):
        real, whole = out.dtype, types.intp
        signature = types.void(a, whole, index, whole, whole, whole, whole, whole, w, whole, whole, out, whole)

        def codegen(context, builder, signature, args):
            a, at, index, index_at, ahead, lda, count, k, w, w_at, valid, out, out_at = args
            integer, align = vectors.integer, real.bitwidth // 8
            number = context.get_value_type(real)
            vector = ir.VectorType(number, lanes)
            zeros = ir.Constant(vector, [0.0] * lanes)
            kind = ir.FunctionType(vector, [vector] * 3)
            fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{lanes}f{real.bitwidth}")

            def from_array(position, value, offset):
                return vectors.first_element(context, builder, signature.args[position], value, offset, real)

            a_start, w_start, out_start = from_array(0, a, at), from_array(8, w, w_at), from_array(11, out, out_at)
            indices = cgutils.create_struct_proxy(signature.args[2])(context, builder, index).data
            last = builder.sub(count, integer(1))

            def rows_from(place):
                found = []
                for r in range(rows):
                    own = builder.select(builder.icmp_signed("<", integer(r), last), integer(r), last)
                    row = builder.load(builder.gep(indices, [builder.add(place, own)]))
                    found.append(builder.gep(a_start, [builder.mul(row, lda)]))
                return found

            own = rows_from(index_at)
            columns = [builder.gep(w_start, [builder.mul(integer(j), k)]) for j in range(outputs)]
            is_ahead = builder.icmp_signed(">=", ahead, integer(0))
            sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(rows * outputs)]

            def load(row, q):
                place = builder.bitcast(builder.gep(row, [q]), vector.as_pointer())
                return builder.load(place, align=align)

            def add(q, chosen):
                ws = [chosen(load(column, q)) for column in columns]
                for r, row in enumerate(own):
                    x = chosen(load(row, q))
                    for j, value in enumerate(ws):
                        total = sums[r * outputs + j]
                        builder.store(builder.call(fma, [x, value, builder.load(total)]), total)

            whole_vectors = builder.mul(builder.sdiv(k, integer(lanes)), integer(lanes))
            with cgutils.for_range_slice(builder, integer(0), whole_vectors, integer(lanes)) as (q, _):
                with builder.if_then(is_ahead, likely=False):
                    for row in rows_from(ahead):
                        vectors.prefetch(builder, builder.gep(row, [q]))
                add(q, lambda value: value)
            # the last vector ends where the row does: of it what is new
            rest = builder.sub(k, whole_vectors)
            with builder.if_then(builder.icmp_signed(">", rest, integer(0))):
                small = ir.IntType(real.bitwidth)
                places = ir.Constant(ir.VectorType(small, lanes), list(range(lanes)))
                old = builder.sub(integer(lanes), rest)
                first = vectors.splat(builder, builder.trunc(old, small) if real.bitwidth < 64 else old, lanes)
                new = builder.icmp_signed(">=", places, first)
                add(builder.sub(k, integer(lanes)), lambda value: builder.select(new, value, zeros))

            totals = _added_up(builder, [builder.load(total) for total in sums])
            full = builder.and_(
                builder.icmp_signed("==", count, integer(rows)), builder.icmp_signed("==", valid, integer(outputs))
            )
            with builder.if_else(full) as (all_, some):
                with all_:
                    for n, total in enumerate(totals):
                        place = builder.gep(out_start, [integer(n * total.type.count)])
                        builder.store(total, builder.bitcast(place, total.type.as_pointer()), align=align)
                with some:
                    for r in range(rows):
                        with builder.if_then(builder.icmp_signed("<", integer(r), count)):
                            row = builder.gep(out_start, [builder.mul(integer(r), valid)])
                            for j in range(outputs):
                                n = r * outputs + j
                                total, place = totals[n // totals[0].type.count], n % totals[0].type.count
                                value = builder.extract_element(total, ir.IntType(32)(place))
                                with builder.if_then(builder.icmp_signed("<", integer(j), valid)):
                                    builder.store(value, builder.gep(row, [integer(j)]))
            return context.get_dummy_value()

        return signature, codegen

    return tile


def dots(a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
    """Compute `products.multiply` for outputs that `are_dots`; scratch holds `MOST` numbers for each input."""


@overload(dots, jit_options=OPTIONS)
def _compiled_dots(a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
    lanes = vectors.lanes(out.dtype)
    # of one output little is computed beside what is loaded: of vectors of 64 bytes nearly each lies across two lines
    tile1 = _tile(1, lanes // 2 if vectors.MASKS else lanes)
    tile2, tile4 = _tile(2, lanes), _tile(4, lanes)
    rows1, rows2, rows4 = (ROWS[outputs] for outputs in (1, 2, 4))

    def dots(a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at, scratch):
        many = rows1
        if columns > 1:
            many = rows2 if columns == 2 else rows4
            transpose(b, b_at, columns, k, columns, scratch, 0, k)
            if columns == 3:
                for q in range(3 * k, 4 * k):
                    scratch[q] = 0
        for r in range(0, rows, many):
            n, i, o = min(many, rows - r), index_at + r, out_at + r * columns
            ahead = after
            if after >= 0 and r + many < rows:
                ahead = i + many
            if ahead + n > index.size:
                ahead = -1
            if columns == 1:
                tile1(a, at, index, i, ahead, lda, n, k, b, b_at, columns, out, o)
            elif columns == 2:
                tile2(a, at, index, i, ahead, lda, n, k, scratch, 0, columns, out, o)
            else:
                tile4(a, at, index, i, ahead, lda, n, k, scratch, 0, columns, out, o)

    return dots
