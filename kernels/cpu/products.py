"""The matrix products of a layer, by tiles where the matrix fits the cache, else by `blas`; for `forward` and `train`.

A BLAS copies its operands into blocks first, and checks a dozen arguments; for the sizes of most layers that costs more
than it gains.  A tile here is R rows of vectors of the result, summed in registers: for each k, a few vectors of B are
loaded once and multiplied by a number of each of R rows of A.  Rows of A are found by an index, so that a batch is
multiplied where it lies in the user's data, without being gathered; and what is added to the result is scaled first,
so that a weight gradient and the step of gradient descent are one product.

Without 32 registers and masked loads (AVX-512), all products are the BLAS's.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from . import vectors
from .blas import gemm
from .compiling import INLINE, OPTIONS, part

TILES = vectors.HAS_MASKS and vectors.REGISTERS == 32
"""Whether products are computed by tiles at all.  With the 16 registers of AVX2 a tile is half as large, and its masks
take registers of their own: the BLAS was faster there in every shape of `benchmarks/lab.py` that has to fit a cache."""
WIDE = 8 if vectors.REGISTERS == 32 else 4
"""Rows of a tile: with three vectors a row, all registers but the few that hold B and a number of A."""
VECTORS = 3
DEEPEST = 256
"""Rows of a batch that a weight gradient is summed over at a time: they stay in the second-level cache."""
LARGEST = 1200 * 1024
"""Elements of B up to which tiles are used.  With 2048 x 2048 floats a BLAS, which copies blocks, is ahead."""


def _tile(rows: int, width: int, lanes: int, columns: bool):
    """Return the intrinsic that adds a tile of a product: `rows` rows of `width` vectors of `lanes` numbers.

    With `columns`, the tile's rows are columns of A, and k runs over its indexed rows: a product with the transpose.
    """

    @intrinsic
    def tile(typing, a, at, index, index_at, ahead, lda, count, k, b, b_at, ldb, valid, alpha, beta, out, out_at, ldo):
        real, whole = out.dtype, types.intp
        signature = types.void(
            *(a, whole, index, whole, whole, whole, whole, whole),
            *(b, whole, whole, whole, real, real, out, whole, whole),
        )

        def codegen(context, builder, signature, args):
            a, at, index, index_at, ahead, lda, count, k, b, b_at, ldb, valid, alpha, beta, out, out_at, ldo = args
            number, integer = context.get_value_type(real), vectors.integer
            vector = ir.VectorType(number, lanes)
            whole_vector = ir.VectorType(integer(0).type, lanes)
            zeros = ir.Constant(vector, [0.0] * lanes)
            alignment = ir.Constant(ir.IntType(32), real.bitwidth // 8)
            kind = f"v{lanes}f{real.bitwidth}"
            bits = ir.VectorType(ir.IntType(1), lanes)
            pointer = vector.as_pointer()

            def function(result, arguments, name):
                return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)

            load_masked = function(vector, [pointer, alignment.type, bits, vector], f"llvm.masked.load.{kind}.p0{kind}")
            store = function(
                *(ir.VoidType(), [vector, pointer, alignment.type, bits], f"llvm.masked.store.{kind}.p0{kind}")
            )
            fma = function(vector, [vector] * 3, f"llvm.fma.{kind}")

            def load(start, j, mask):
                place = builder.bitcast(builder.gep(start, [integer(j * lanes)]), pointer)
                return builder.call(load_masked, [place, alignment, mask, zeros])

            def from_array(position, value, offset):
                return vectors.first_element(context, builder, signature.args[position], value, offset, real)

            a_start, b_start, out_start = from_array(0, a, at), from_array(8, b, b_at), from_array(14, out, out_at)
            first_index = cgutils.create_struct_proxy(signature.args[2])(context, builder, index).data
            indices = builder.gep(first_index, [index_at])
            positions = ir.Constant(whole_vector, list(range(lanes)))
            masks = [
                builder.icmp_signed(
                    "<", positions, vectors.splat(builder, builder.sub(valid, integer(j * lanes)), lanes)
                )
                for j in range(width)
            ]
            # rows beyond the last repeat it, and are not stored
            last = builder.sub(count, integer(1))
            own = [builder.select(builder.icmp_signed("<", integer(r), last), integer(r), last) for r in range(rows)]

            def row_of_a(i):
                return builder.gep(a_start, [builder.mul(builder.load(builder.gep(indices, [i])), lda)])

            byte = ir.IntType(8).as_pointer()
            fetch = function(ir.VoidType(), [byte, *[ir.IntType(32)] * 3], "llvm.prefetch.p0i8")

            def prefetch(place):
                flags = [ir.Constant(ir.IntType(32), n) for n in (0, 3, 1)]  # to read, into all caches, data
                builder.call(fetch, [builder.bitcast(place, byte), *flags])

            starts = [] if columns else [row_of_a(i) for i in own]
            is_ahead = builder.icmp_signed(">=", ahead, integer(0))
            before = builder.basic_block
            head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
            builder.branch(head)
            builder.position_at_end(head)
            i, b_row = builder.phi(k.type), builder.phi(b_start.type)
            sums = [[builder.phi(vector) for _ in range(width)] for _ in range(rows)]
            for phi, initial in [(i, integer(0)), (b_row, b_start), *((s, zeros) for row in sums for s in row)]:
                phi.add_incoming(initial, before)
            builder.cbranch(builder.icmp_signed("<", i, k), body, done)

            builder.position_at_end(body)
            line = integer(64 * 8 // real.bitwidth - 1)
            due = builder.icmp_signed("==", builder.and_(i, line), builder.select(is_ahead, integer(0), integer(-1)))
            if not columns:
                with builder.if_then(due, likely=False):
                    for r in range(rows):
                        there = builder.gep(first_index, [builder.add(ahead, own[r])])
                        row = builder.gep(a_start, [builder.mul(builder.load(there), lda)])
                        prefetch(builder.gep(row, [i]))
            inside = builder.basic_block
            b_vectors = [load(b_row, j, masks[j]) for j in range(width)]
            a_row = row_of_a(i) if columns else None
            for r in range(rows):
                place = builder.gep(a_row, [own[r]]) if columns else builder.gep(starts[r], [i])
                element = vectors.splat(builder, builder.load(place), lanes)
                for j in range(width):
                    sums[r][j].add_incoming(builder.call(fma, [element, b_vectors[j], sums[r][j]]), inside)
            i.add_incoming(builder.add(i, integer(1)), inside)
            b_row.add_incoming(builder.gep(b_row, [ldb]), inside)
            builder.branch(head)

            builder.position_at_end(done)
            alpha, scale = vectors.splat(builder, alpha, lanes), vectors.splat(builder, beta, lanes)
            nothing = ir.Constant(bits, [0] * lanes)
            keeps = builder.fcmp_unordered("!=", beta, ir.Constant(number, 0.0))  # else what is there may be NaN
            for r in range(rows):
                there = builder.icmp_signed("<", integer(r), count)
                row = builder.gep(out_start, [builder.mul(integer(r), ldo)])
                for j in range(width):
                    mask = builder.select(there, masks[j], nothing)
                    old = load(row, j, builder.select(keeps, mask, nothing))
                    new = builder.call(fma, [scale, old, builder.fmul(alpha, sums[r][j])])
                    place = builder.bitcast(builder.gep(row, [integer(j * lanes)]), pointer)
                    builder.call(store, [new, place, alignment, mask])
            return context.get_dummy_value()

        return signature, codegen

    return tile


@functools.cache
def _panel(columns: bool, lanes: int):
    """Return the function that computes up to `VECTORS` vectors of all rows of a product, tile by tile."""
    wide1, wide2, wide3 = (_tile(WIDE, width, lanes, columns) for width in (1, 2, 3))
    single1, single2, single3 = (_tile(1, width, lanes, columns) for width in (1, 2, 3))
    few = lanes // 4
    narrow = _tile(WIDE, 1, few, columns)  # a quarter of a vector, for the last columns

    @part
    def panel(a, at, index, index_at, after, lda, rows, k, b, b_at, ldb, valid, alpha, beta, out, out_at, ldo):
        for r in range(0, rows, WIDE):
            n = min(WIDE, rows - r)
            a_at, i = (at + r, index_at) if columns else (at, index_at + r)
            ahead = after
            if after >= 0 and r + WIDE < rows:
                ahead = i + WIDE
            if ahead + n > index.size:
                ahead = -1
            o = out_at + r * ldo
            if n > 1:
                if valid > 2 * lanes:
                    wide3(a, a_at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, out, o, ldo)
                elif valid > lanes:
                    wide2(a, a_at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, out, o, ldo)
                elif valid > few:
                    wide1(a, a_at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, out, o, ldo)
                else:
                    narrow(a, a_at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, out, o, ldo)
            elif valid > 2 * lanes:
                single3(a, a_at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, out, o, ldo)
            elif valid > lanes:
                single2(a, a_at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, out, o, ldo)
            else:
                single1(a, a_at, index, i, ahead, lda, n, k, b, b_at, ldb, valid, alpha, beta, out, o, ldo)

    return panel


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
def _transpose(source, at, lds, rows, columns, out, ldo):
    """``out[c, r] = source[r, c]``, from the start of `out` on."""
    full = rows // BLOCK * BLOCK
    for c in range(0, columns, BLOCK):
        done = 0
        if columns - c >= BLOCK:
            done = full
            for r in range(0, full, BLOCK):
                _transpose_block(source, at + r * lds + c, lds, out, c * ldo + r, ldo)
        for r in range(done, rows):
            start = at + r * lds
            for q in range(c, min(c + BLOCK, columns)):
                out[q * ldo + r] = source[start + q]


def tiled(inputs: int, outputs: int) -> bool:
    """Tell whether a layer's products are computed by tiles where kernels are compiled."""
    return TILES and inputs * outputs <= LARGEST


def by_tiles(inputs, outputs):
    """Tell whether a layer's products are computed by tiles."""
    return False


def multiply(a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at):
    """``out[i] = a[index[i], :k] @ b``, for i below `rows`.

    Parameters
    ----------
    a : (...) float
        Flat, from `at` on; the rows of A, `lda` elements from one to the next.
    index : (rows,) int64
        Looked at by tiles alone: for a product that is not `by_tiles`, the rows wanted must be the first ones.
    b : (...) float
        Flat, from `b_at` on (k, columns).
    out : (...) float
        Flat; from `out_at` on (rows, columns) is overwritten.
    """
    gemm(False, False, rows, columns, k, 1, a, at, lda, b, b_at, columns, 0, out, out_at, columns)


def multiply_by_transposed(a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
    """``out = a @ w.T``, for a (rows, k) from `at` on and w (columns, k) from `w_at` on; out (rows, columns).

    index (rows,) int64 counts from 0; scratch (k * `scratch_width`,) float is overwritten by tiles.
    """
    gemm(False, True, rows, columns, k, 1, a, at, k, w, w_at, k, 0, out, out_at, columns)


def multiply_transposed(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at):
    """``out = beta out + alpha a[index[:k]][:, :rows].T @ b``.

    Parameters
    ----------
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
    """
    gemm(True, False, rows, columns, k, alpha, a, at, lda, b, b_at, columns, beta, out, out_at, columns)


def scratch_width(array):
    """Return how many columns `multiply_by_transposed` works on at once, for arrays of this one's type."""
    return VECTORS * vectors.VECTOR_BYTES // array.itemsize


@overload(scratch_width, jit_options=INLINE)
def _compiled_scratch_width(array):
    width = VECTORS * vectors.lanes(array.dtype)
    return lambda array: width


@overload(by_tiles, jit_options=INLINE)
def _compiled_by_tiles(inputs, outputs):
    if TILES:
        return lambda inputs, outputs: inputs * outputs <= LARGEST
    return lambda inputs, outputs: False


@overload(multiply, jit_options=OPTIONS)
def _compiled_multiply(a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at):
    real = getattr(np, str(out.dtype))
    lanes = vectors.lanes(out.dtype)
    panel, width = _panel(False, lanes), VECTORS * lanes

    def multiply(a, at, index, index_at, after, lda, rows, k, b, b_at, columns, out, out_at):
        if by_tiles(k, columns):
            for c in range(0, columns, width):
                valid = min(width, columns - c)
                panel(
                    *(a, at, index, index_at, after, lda, rows, k, b, b_at + c, columns, valid),
                    *(real(1), real(0), out, out_at + c, columns),
                )
                after = -1  # the rows are here now
        else:
            gemm(False, False, rows, columns, k, real(1), a, at, lda, b, b_at, columns, real(0), out, out_at, columns)

    return multiply


@overload(multiply_by_transposed, jit_options=OPTIONS)
def _compiled_multiply_by_transposed(a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
    real = getattr(np, str(out.dtype))
    lanes = vectors.lanes(out.dtype)
    panel, width = _panel(False, lanes), VECTORS * lanes

    def multiply_by_transposed(a, at, index, rows, k, w, w_at, columns, out, out_at, scratch):
        if by_tiles(k, columns):
            for c in range(0, columns, width):
                valid = min(width, columns - c)
                _transpose(w, w_at + c * k, k, valid, k, scratch, width)
                panel(
                    *(a, at, index, 0, -1, k, rows, k, scratch, 0, width, valid),
                    *(real(1), real(0), out, out_at + c, columns),
                )
        else:
            gemm(False, True, rows, columns, k, real(1), a, at, k, w, w_at, k, real(0), out, out_at, columns)

    return multiply_by_transposed


@overload(multiply_transposed, jit_options=OPTIONS)
def _compiled_multiply_transposed(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at):
    lanes = vectors.lanes(out.dtype)
    panel, width = _panel(True, lanes), VECTORS * lanes
    one = getattr(np, str(out.dtype))(1)

    def multiply_transposed(a, at, index, index_at, lda, rows, k, b, b_at, columns, alpha, beta, out, out_at):
        if by_tiles(lda, columns):
            kept = beta
            for start in range(0, k, DEEPEST):
                depth = min(DEEPEST, k - start)
                for c in range(0, columns, width):
                    valid = min(width, columns - c)
                    panel(
                        *(a, at, index, index_at + start, -1, lda, rows, depth),
                        *(b, b_at + start * columns + c, columns, valid, alpha, kept, out, out_at + c, columns),
                    )
                kept = one
        else:
            gemm(True, False, rows, columns, k, alpha, a, at, lda, b, b_at, columns, beta, out, out_at, columns)

    return multiply_transposed
