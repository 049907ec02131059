"""Matrix products by a BLAS that is handed in, on row-major slices of flat buffers; `products` calls them.

`bind` gives LLVM the addresses of a library's sgemm and dgemm (Fortran interface, 32-bit integers); compiled code then
calls them directly.  With the JIT off, NumPy multiplies.
"""

from __future__ import annotations

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from .compiling import OPTIONS

_SYMBOLS = {types.float32: "fastmlp_sgemm", types.float64: "fastmlp_dgemm"}


def bind(sgemm: int, dgemm: int) -> None:
    """Make the routines at these addresses known to compiled code; before any of it runs."""
    llvmlite.binding.add_symbol("fastmlp_sgemm", sgemm)
    llvmlite.binding.add_symbol("fastmlp_dgemm", dgemm)


@intrinsic
def _call(typing, ta, tb, m, n, k, alpha, a, a_at, lda, b, b_at, ldb, beta, c, c_at, ldc):
    """Call gemm, whose arguments are all pointers."""
    flag, integer, real = types.boolean, types.intp, a.dtype
    signature = types.void(
        *(flag, flag, integer, integer, integer, real, a, integer, integer),
        *(b, integer, integer, real, c, integer, integer),
    )
    name = _SYMBOLS[real]

    def codegen(context, builder, signature, args):
        pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [pointer] * 13)
        function = cgutils.get_or_insert_function(builder.module, function_type, name)

        def spilled(value):
            return builder.bitcast(cgutils.alloca_once_value(builder, value), pointer)

        def character(flag):
            return spilled(
                builder.select(flag, ir.Constant(ir.IntType(8), ord("T")), ir.Constant(ir.IntType(8), ord("N")))
            )

        def count(value):
            return spilled(builder.trunc(value, ir.IntType(32)))

        def data(array_type, value, start):
            first = cgutils.create_struct_proxy(array_type)(context, builder, value).data
            return builder.bitcast(builder.gep(first, [start]), pointer)

        def truth(value):
            return builder.trunc(value, ir.IntType(1)) if value.type.width > 1 else value

        ta, tb, m, n, k, alpha, a, a_at, lda, b, b_at, ldb, beta, c, c_at, ldc = args
        types_ = signature.args
        # row-major C = op(A) op(B) is column-major C' = op(B)' op(A)': the operands change places
        builder.call(
            function,
            [
                *(character(truth(tb)), character(truth(ta)), count(n), count(m), count(k), spilled(alpha)),
                *(data(types_[9], b, b_at), count(ldb), data(types_[6], a, a_at), count(lda), spilled(beta)),
                *(data(types_[13], c, c_at), count(ldc)),
            ],
        )
        return context.get_dummy_value()

    return signature, codegen


def gemm(ta, tb, m, n, k, alpha, a, a_at, lda, b, b_at, ldb, beta, c, c_at, ldc):
    """``C = alpha op(A) op(B) + beta C``, row-major, C (m, n), op(A) (m, k), op(B) (k, n).

    Parameters
    ----------
    ta, tb : bool
        Whether op transposes.
    m, n, k : int
    alpha, beta : float
        Of the arrays' type.
    a, b, c : (...) float
        Flat; `c` is overwritten.
    a_at, b_at, c_at : int
        Where the matrix starts in each.
    lda, ldb, ldc : int
        Elements from one row, as stored, to the next.
    """
    left = _matrix(a[a_at:], *((k, m) if ta else (m, k)), lda)
    right = _matrix(b[b_at:], *((n, k) if tb else (k, n)), ldb)
    out = _matrix(c[c_at:], m, n, ldc)
    with np.errstate(all="ignore"):  # compiled code does not warn either
        product = (left.T if ta else left) @ (right.T if tb else right)
        out[...] = alpha * product + (beta * out if beta else 0)


def _matrix(flat, rows, columns, stride):
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (stride * flat.itemsize, flat.itemsize))


@overload(gemm, jit_options=OPTIONS)
def _gemm(ta, tb, m, n, k, alpha, a, a_at, lda, b, b_at, ldb, beta, c, c_at, ldc):
    return lambda ta, tb, m, n, k, alpha, a, a_at, lda, b, b_at, ldb, beta, c, c_at, ldc: _call(
        ta, tb, m, n, k, alpha, a, a_at, lda, b, b_at, ldb, beta, c, c_at, ldc
    )
