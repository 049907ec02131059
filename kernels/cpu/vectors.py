"""What the host's vectors are, and parts of arrays without a copy; for `products`, `lanes`, `layers` and above."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np.arrayobj import make_array, populate_array

from .compiling import VIEW


def _features() -> set[str]:
    """Return what the processor that is compiled for can do, in LLVM's names.

    As Numba has it: a processor's name alone changes nothing, the host's features are told with it.
    """
    if numba.config.CPU_FEATURES is not None:
        return {name[1:] for name in numba.config.CPU_FEATURES.split(",") if name.startswith("+")}
    return {name for name, there in llvmlite.binding.get_host_cpu_features().items() if there}


FEATURES = _features()
VECTOR_BYTES = 64 if "avx512f" in FEATURES else 32 if "avx2" in FEATURES else 16
_IS_ARM = platform.machine().lower() in ("aarch64", "arm64")
HAS_FMA = _IS_ARM or "avx512f" in FEATURES or {"avx2", "fma"} <= FEATURES
"""Whether multiplications fused with additions are instructions."""
MASKS = VECTOR_BYTES == 64
"""Whether a load or store of a part of a vector costs no more than a whole one, and no register that others need."""
REGISTERS = 32 if _IS_ARM or VECTOR_BYTES == 64 else 16


def lanes(real: types.Float) -> int:
    """Return how many numbers of a type one vector holds."""
    return int(VECTOR_BYTES * 8 // real.bitwidth)


def integer(value: int) -> ir.Constant:
    """Return a 64-bit integer constant."""
    return ir.Constant(ir.IntType(64), value)


def splat(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    """Return a vector whose elements are all `value`."""
    vector = ir.VectorType(value.type, count)
    nothing = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    order = ir.VectorType(ir.IntType(32), count)
    return builder.shuffle_vector(first, nothing, ir.Constant(order, [0] * count))


def shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, order: Sequence[int]) -> ir.Value:
    """Return the elements of `a` followed by those of `b`, taken in the given order."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order)))


def first_element(context, builder, array_type, array, offset, real):
    """Return a pointer to numbers of the type `real`, `offset` of them into an array of any type."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(builder.bitcast(data, context.get_value_type(real).as_pointer()), [offset])


LINE_BYTES = 64
ALL_CACHES, ALL_BUT_THE_FIRST = 3, 2


def prefetch(builder, place, into=ALL_CACHES):
    """Ask for a line of memory, which will be read."""
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    function = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    fetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0i8")
    flags = [ir.Constant(flag, n) for n in (0, into, 1)]  # to read; data
    builder.call(fetch, [builder.bitcast(place, byte), *flags])


@intrinsic
def fetch_rows(typing, b, at, ldb, rows, columns):
    """Ask for rows of a matrix, `ldb` elements apart, which will be read: into all caches but the first."""
    real, whole = b.dtype, types.intp

    def codegen(context, builder, signature, args):
        b, at, ldb, rows, columns = args
        start = first_element(context, builder, signature.args[0], b, at, real)
        line = integer(LINE_BYTES * 8 // real.bitwidth)
        with cgutils.for_range(builder, rows) as row:
            place = builder.gep(start, [builder.mul(row.index, ldb)])
            with cgutils.for_range_slice(builder, integer(0), columns, line) as (column, _):
                prefetch(builder, builder.gep(place, [column]), ALL_BUT_THE_FIRST)
        return context.get_dummy_value()

    return types.void(b, whole, whole, whole, whole), codegen


def keep_rolled(branch):
    """Have the loop that this branch closes not unrolled, where its registers are counted for one pass.

    For some processors (AMD's since Zen 3) LLVM unrolls whatever it can, loads for two passes at once, and keeps sums
    in memory for want of registers: a tile of 24 then takes twice as long.
    """
    module = branch.module
    rule = module.add_metadata(["llvm.loop.unroll.disable"])
    loop = ir.values.MDValue(module, [], name=str(len(module.metadata)))
    loop.operands = loop, rule  # itself first: what makes it this loop's and no other's
    branch.set_metadata("llvm.loop", loop)


@intrinsic
def _seen_as(typing, array, kind):
    real = kind.dtype
    result = types.Array(real, 1, "C")

    def codegen(context, builder, signature, args):
        source = make_array(array)(context, builder, args[0])
        size = integer(context.get_abi_sizeof(context.get_data_type(real)))
        count = builder.sdiv(builder.mul(source.nitems, source.itemsize), size)
        out = make_array(result)(context, builder)
        populate_array(
            out,
            data=builder.bitcast(source.data, out.data.type),
            shape=[count],
            strides=[size],
            itemsize=size,
            meminfo=None,  # the caller holds the array
            parent=source.parent,
        )
        return out._getvalue()

    return result(array, kind), codegen


def seen_as(array, kind):
    """Return the memory of a flat array as an array of another type; it must not outlive the call."""
    return array.view(kind)


@overload(seen_as, jit_options=VIEW)
def _compiled_seen_as(array, kind):
    return lambda array, kind: _seen_as(array, kind)


@intrinsic
def _run(typing, array, start, count):
    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        source, out = make_array(kind)(context, builder, args[0]), make_array(kind)(context, builder)
        populate_array(
            out,
            data=builder.gep(source.data, [args[1]]),
            shape=[args[2]],
            strides=[source.itemsize],
            itemsize=source.itemsize,
            meminfo=None,
            parent=source.parent,
        )
        return out._getvalue()

    return array(array, types.intp, types.intp), codegen


def run(array, start, count):
    """Return `count` elements of a flat array, from `start` on, without a look at its size; not to outlive the call."""
    return array[start : start + count]


@overload(run, jit_options=VIEW)
def _compiled_run(array, start, count):
    return lambda array, start, count: _run(array, start, count)
