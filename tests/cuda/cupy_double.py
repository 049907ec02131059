"""A strict double of the few names of CuPy that fastmlp uses: arrays in host memory, kernels run by the emulator.

`cupy_streams` keeps account of the order of all that is put on streams, `cupy_arrays` has the arrays; here are kernels,
cuBLAS, and the names as CuPy has them.

Names that are not here raise AttributeError; `test_double.py` checks that all that are here exist in the installed
CuPy.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import re
import threading
import types
import weakref
from collections import Counter

import emulator
import numpy as np
from cupy_arrays import arange, asarray, ascontiguousarray, empty, from_dlpack, ndarray, where
from cupy_devices import (
    Device,
    PinnedMemory,
    PinnedMemoryPointer,
    _device_properties,
    _device_synchronize,
    capacity,
    get_default_memory_pool,
    multiprocessors,
    visible,
)
from cupy_late import late
from cupy_streams import (
    DEVICES,
    CudaError,
    Event,
    Graph,
    Stream,
    Use,
    _current_device,
    _elapsed_time,
    _memory_at,
    _refuse_in_capture,
    _stream_at,
    counts,
    get_current_stream,
    milliseconds,
    pinned,
    poison,
    pooled,
)

__all__ = [
    "DEVICES",
    "CudaError",
    "arange",
    "asarray",
    "ascontiguousarray",
    "capacity",
    "counts",
    "cublas_library",
    "cuda",
    "empty",
    "faults",
    "from_dlpack",
    "get_default_memory_pool",
    "late",
    "launches",
    "milliseconds",
    "multiprocessors",
    "ndarray",
    "orders",
    "pinned",
    "poison",
    "pooled",
    "products",
    "ranges",
    "visible",
    "where",
]

__version__ = "14.2.0"

faults = {}
"""Kernels, by name without template arguments, that go wrong when they run: a function of the arrays that they get, or
None for an illegal access, after which the process can do nothing more on the device; tests fill and clear it."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """A log of the compiler's."""

    def __init__(self, msg, source, name, options, backend="nvrtc"):
        super().__init__()
        self._msg = msg

    def __str__(self):
        return self._msg


class NVRTCError(RuntimeError):
    """What the run-time compiler refuses before it compiles."""


# --- kernels --------------------------------------------------------------------------------------------------------


@functools.cache
def _compiled(code, names):
    label = re.match(r'#line 1 "(\w+)', code)
    return emulator.Module(code, names, label[1] if label else "kernels")


@functools.cache
def _launch_bounds(code):
    """Return the most threads of a block that each kernel of a source allows."""
    constants = {n: int(v) for n, v in re.findall(r"\b([A-Z_]+) = (\d+)\b", code)}
    pattern = r"__launch_bounds__\(([^,)]+)[^)]*\)\s*(\w+)\("
    return {name: eval(bound, {}, constants) for bound, name in re.findall(pattern, code)}


launches = []
"""(kernel, `emulator.Traffic`) of every launch so far, those of graphs included; tests clear and read it."""

orders = [0]
"""Seeds of the order of threads, taken in turn."""


class RawModule:
    def __init__(self, code=None, *, path=None, options=(), backend="nvrtc", name_expressions=None):
        assert "#include" not in code, "CuPy's cache does not see the content of included files"
        self._code, self._names, self._loaded = code, tuple(name_expressions), False

    def get_function(self, name):
        if not self._loaded:
            _refuse_in_capture("loading a module")
            self._loaded = True
        return _Function(self._code, self._names, name)


class _Function:
    def __init__(self, code, names, name):
        self._module, self._name = _compiled(code, names), name
        self._signature = self._module.signature(name)
        self._bound, self._device = _launch_bounds(code).get(name.split("<")[0], 1024), _current_device()

    def __call__(self, grid, block, args, *, shared_mem=0):
        name = self._name
        if self._device != _current_device():
            raise CudaError(f"cudaErrorInvalidResourceHandle: {name} was loaded on another device")
        if math.prod(block) > self._bound:
            raise CudaError(f"{name}: blocks of {block} threads, launch bounds {self._bound}")
        if len(args) != len(self._signature):
            raise TypeError(f"{name} takes {len(self._signature)} arguments, got {len(args)}")
        reads, writes, kept = [], [], []
        for i, (value, wanted) in enumerate(zip(args, self._signature, strict=True)):
            if isinstance(value, np.ndarray):
                raise TypeError(f"{name}, argument {i}: a NumPy array")
            if isinstance(value, ndarray):
                (reads if wanted.startswith("const") else writes).append(Use.of(value))
                view = value._view
                emulator.packed(view, wanted, f"{name}, argument {i}")
                # where the array is, not the array: a graph keeps nothing alive
                where = weakref.ref(value._memory), view.ctypes.data - value._memory.start, view.shape, view.dtype
                kept.append(where)
            else:
                emulator.packed(value, wanted, f"{name}, argument {i}")
                kept.append(value)

        def found():
            arrays = []
            for item in kept:
                if isinstance(item, tuple):
                    memory, offset, shape, dtype = item
                    size = math.prod(shape) * dtype.itemsize
                    item = memory().bytes[offset : offset + size].view(dtype).reshape(shape)
                arrays.append(item)
            return arrays

        def run(arrays):
            plain = name.split("<")[0]
            if plain in faults and faults[plain] is None:
                poison.append(plain)
                return
            orders.append(orders.pop(0))
            launches.append((name, self._module.launch(name, grid, block, arrays, seed=orders[-1])))
            if plain in faults:
                faults[plain](arrays)

        get_current_stream()._do(reads, writes, _Launch(found, run), "launch")


class _Launch:
    """A kernel with places in memory; what is there when it is queued it reads, whoever has the memory by then."""

    def __init__(self, found, run):
        self._found, self._run = found, run

    def held(self):
        return functools.partial(self._run, self._found())


# --- cuBLAS ---------------------------------------------------------------------------------------------------------


class CUBLASError(RuntimeError):
    """What cuBLAS refuses, which is none of CUDA's own errors."""


_TYPES = {0: np.float32, 1: np.float64}  # cudaDataType
_COMPUTE = {np.float32: (68, 77), np.float64: (70,)}  # cublasComputeType_t
products = []
"""The compute type of every product so far."""


def _tf32(matrix):
    """Return float32 numbers rounded to 11 significant bits, as tensor cores take them."""
    bits = np.ascontiguousarray(matrix).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def _gemm_ex(handle, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc, compute, algo):
    """C = alpha op(A) op(B) + beta C, all matrices stored by columns with their leading dimensions."""
    if handle != _cublas_handle():
        raise CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED: the handle of another thread, or of another device")
    if get_current_stream().is_capturing():  # CuPy's own ban, in its cublas.setStream
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    _gemm(
        get_current_stream(),
        [],
        transa,
        transb,
        m,
        n,
        k,
        alpha,
        a,
        atype,
        lda,
        b,
        btype,
        ldb,
        beta,
        c,
        ctype,
        ldc,
        compute,
    )


def _gemm(stream, works_in, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc, compute):
    dtype = _TYPES[atype]
    if not atype == btype == ctype or compute not in _COMPUTE[dtype]:
        raise CudaError(f"cublasGemmEx: types {atype}, {btype}, {ctype} with compute type {compute}")

    def matrix(pointer, rows, columns, ld):
        if min(rows, columns) < 1 or ld < rows:
            raise CudaError(f"cublasGemmEx: a matrix of {rows} rows, {columns} columns, leading dimension {ld}")
        memory = _memory_at(pointer)
        offset, size = pointer - memory.start, (ld * (columns - 1) + rows) * np.dtype(dtype).itemsize
        if offset + size > memory.bytes.size:
            raise CudaError("cublasGemmEx: a matrix reaches beyond its array")
        flat = memory.bytes[offset : offset + size].view(dtype)
        strides = (flat.itemsize, ld * flat.itemsize)
        return Use(memory, offset, offset + size), np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)

    owner_a, ma = matrix(a, *((k, m) if transa else (m, k)), lda)
    owner_b, mb = matrix(b, *((n, k) if transb else (k, n)), ldb)
    owner_c, mc = matrix(c, m, n, ldc)
    scalar = np.ctypeslib.as_ctypes_type(dtype)
    factors = scalar.from_address(alpha).value, scalar.from_address(beta).value

    def run():
        rounded = {"0": False, "1": dtype is np.float32}.get(os.environ.get("NVIDIA_TF32_OVERRIDE"), compute == 77)
        x, y = (_tf32(ma), _tf32(mb)) if rounded else (ma, mb)
        product = (x.T if transa else x) @ (y.T if transb else y)
        mc[...] = factors[0] * product + (factors[1] * mc if factors[1] else 0)

    products.append(compute)
    stream._do([owner_a, owner_b], [owner_c, *works_in], run, "product")


def _cublas_handle():
    """Return CuPy's own handle: one for each device in each thread."""
    return 2**32 + 2**16 * _current_device() + threading.get_native_id() % 2**16


class CublasLibrary:
    """cuBLAS itself, as ctypes calls it: handles with a stream and memory to work in.

    While their stream is captured that memory must have been given, for cuBLAS would allocate some; two streams that
    nothing orders must not have the same.
    """

    NOT_INITIALIZED, ALLOC_FAILED = 1, 3  # cublasStatus_t

    def __init__(self):
        self._handles, self._of, self.calls = {}, {}, Counter()

    def _known(self, handle):
        """Return whether a handle was made, on this device; refuse one of another thread, which might be at work."""
        where = self._of.get(handle.value)
        if where is not None and where[1] != threading.get_ident():
            raise CudaError("double: a handle of cuBLAS in two threads")
        return where == (_current_device(), threading.get_ident())

    def cublasCreate_v2(self, reference):  # noqa: N802 - cuBLAS's names
        _refuse_in_capture("making a handle of cuBLAS")
        reference._obj.value = len(self._handles) + 1
        self._handles[reference._obj.value] = [_stream_at(0), None]
        self._of[reference._obj.value] = _current_device(), threading.get_ident()
        self.calls["create"] += 1
        return 0

    def cublasSetStream_v2(self, handle, stream):  # noqa: N802
        if not self._known(handle):
            return self.NOT_INITIALIZED
        self._handles[handle.value] = [_stream_at(stream.value or 0), None]
        return 0

    def cublasSetWorkspace_v2(self, handle, pointer, size):  # noqa: N802
        if not self._known(handle):
            return self.NOT_INITIALIZED
        memory = _memory_at(pointer.value)
        start = pointer.value - memory.start
        if pointer.value % 256 or start + size.value > memory.bytes.size:
            return 7  # CUBLAS_STATUS_INVALID_VALUE
        self._handles[handle.value][1] = Use(memory, start, start + size.value)
        return 0

    def cublasGemmEx(self, handle, *args):  # noqa: N802
        if not self._known(handle):
            return self.NOT_INITIALIZED
        stream, works_in = self._handles[handle.value]
        if works_in is None and stream.is_capturing():
            return self.ALLOC_FAILED
        *args, _algorithm = (a.value if isinstance(a, ctypes.c_void_p) else a for a in args)
        self.calls["captured" if stream.is_capturing() else "eager"] += 1
        _gemm(stream, [] if works_in is None else [works_in], *args)
        return 0


cublas_library = CublasLibrary()


ranges = []
"""What was pushed and popped, in order: ("push", name) and ("pop", name)."""
_open_ranges = []


def _range_push(message, id_color=-1):
    assert isinstance(message, str)
    _open_ranges.append(message)
    ranges.append(("push", message))


def _range_pop():
    if not _open_ranges:
        raise CudaError("double: a range is popped that was not pushed")
    ranges.append(("pop", _open_ranges.pop()))


cuda = types.SimpleNamespace(
    Device=Device,
    Stream=Stream,
    Event=Event,
    Graph=Graph,
    PinnedMemory=PinnedMemory,
    PinnedMemoryPointer=PinnedMemoryPointer,
    get_current_stream=get_current_stream,
    get_elapsed_time=_elapsed_time,
    driver=types.SimpleNamespace(CUDADriverError=CudaError),
    compiler=types.SimpleNamespace(CompileException=CompileException),
    nvrtc=types.SimpleNamespace(NVRTCError=NVRTCError),
    cublas=types.SimpleNamespace(gemmEx=_gemm_ex, CUBLASError=CUBLASError),
    device=types.SimpleNamespace(get_cublas_handle=_cublas_handle),
    nvtx=types.SimpleNamespace(RangePush=_range_push, RangePop=_range_pop),
    runtime=types.SimpleNamespace(
        CUDA_R_32F=0,
        CUDA_R_64F=1,
        CUDARuntimeError=CudaError,
        deviceSynchronize=_device_synchronize,
        getDeviceCount=lambda: visible[0],
        getDeviceProperties=_device_properties,
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
    ),
)
