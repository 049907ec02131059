"""A strict double of the few names of CuPy that fastmlp uses: arrays in host memory, kernels run by the emulator.

What is put on a stream is done at once, but the double keeps account of what *orders* it: every stream, event and the
host has a vector clock (Lamport 1978; Mattern 1989), every allocation knows who touched it last, and an access that
nothing orders after the one before it is an error, whether or not it would have gone wrong this time.  A graph holds
nothing alive, as in CuPy: replaying one whose arrays are gone is an error.  Whatever CUDA forbids while a stream is
captured is an error that also spoils the capture.

Names that are not here raise AttributeError; `test_double.py` checks that all that are here exist in the installed
CuPy.
"""

from __future__ import annotations

import functools
import re
import threading
import types
import weakref
from collections import Counter

import emulator
import numpy as np


class CudaError(RuntimeError):
    """What CUDA or CuPy would refuse, or would let go wrong in silence."""


# --- order ----------------------------------------------------------------------------------------------------------


class _Clock(Counter):
    """For each stream the number of the last of its operations that is known to be done."""

    def join(self, other):
        for stream, count in other.items():
            self[stream] = max(self[stream], count)


_host = _Clock()
_memories = weakref.WeakValueDictionary()


class _Memory:
    """One allocation, aligned to 512 bytes like CuPy's; new memory is NaN."""

    def __init__(self, size):
        raw = np.full(size + 512, 0xFF, np.uint8)
        start = -raw.ctypes.data % 512
        self.bytes = raw[start : start + size]
        self.start = self.bytes.ctypes.data
        self.written = None  # (stream, count)
        self.read = {}  # stream: count
        _memories[self.start] = self


def _memory_at(pointer):
    for start, memory in list(_memories.items()):
        if start <= pointer < start + max(memory.bytes.size, 1):
            return memory
    raise CudaError(f"the address {pointer:#x} belongs to no array (or to one that has been freed)")


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._clock = None

    def record(self, stream=None):
        (stream or get_current_stream()).record(self)

    def synchronize(self):
        _refuse_in_capture("waiting for an event")
        _host.join(self._clock or {})


class Stream:
    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self._clock, self._non_blocking, self._graph, self._spoiled = _Clock(), non_blocking, None, None
        self.ptr = 0 if null else id(self)

    def __enter__(self):
        _stack().append(self)
        return self

    def __exit__(self, *_):
        assert _stack().pop() is self

    def _do(self, reads, writes, action):
        with _lock:
            self._do_alone(reads, writes, action)

    def _do_alone(self, reads, writes, action):
        """Put an operation on the stream: check what orders it, then do it (or keep it, while captured)."""
        if self._graph is not None:
            self._graph._operations.append((tuple(map(weakref.ref, reads)), tuple(map(weakref.ref, writes)), action))
            return
        if any(s._graph is not None for s in _capturing) and self.ptr == 0:
            _refuse_in_capture("work on the legacy default stream")
        self._clock.join(_host)
        self._clock[id(self)] += 1
        now = self._clock[id(self)]
        for memory, writes_it in (*((m, False) for m in reads), *((m, True) for m in writes)):
            earlier = [] if memory.written is None else [memory.written]
            if writes_it:
                earlier += memory.read.items()
            for stream, count in earlier:
                if self._clock[stream] < count:
                    raise CudaError("an array is used on two streams that nothing orders: wait for an event first")
        for memory in reads:
            memory.read[id(self)] = now
        for memory in writes:
            memory.written = (id(self), now)
        with np.errstate(all="ignore"):  # a GPU warns of nothing
            action()

    def synchronize(self):
        _refuse_in_capture("synchronisation")
        _host.join(self._clock)

    def record(self, event=None):
        event = event or Event()
        event._clock = _Clock(self._clock)
        event._clock.join(_host)
        event._captured = self._graph
        return event

    def wait_event(self, event):
        if getattr(event, "_captured", None) is not self._graph:
            _refuse_in_capture("waiting for an event of another capture, or of none")
        self._clock.join(event._clock)

    def is_capturing(self):
        return self._graph is not None

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise CudaError("the legacy default stream cannot be captured")
        if not self._non_blocking:
            raise CudaError("double: capture on a non-blocking stream, or work on the default stream is drawn in")
        if self._graph is not None:
            raise CudaError("the stream is being captured already")
        self._graph, self._spoiled = Graph(), None
        _capturing.append(self)

    def end_capture(self):
        if self._graph is None:
            raise CudaError("the stream is not being captured")
        graph, self._graph = self._graph, None
        _capturing.remove(self)
        if self._spoiled:
            raise CudaError(f"cudaErrorStreamCaptureInvalidated: {self._spoiled}")
        return graph


class Graph:
    """Operations to be replayed; of the arrays it knows nothing but where they were."""

    def __init__(self):
        self._operations = []

    def launch(self, stream=None):
        stream = stream or get_current_stream()
        if stream.is_capturing():
            raise CudaError("double: a graph launched while a stream is captured")
        for reads, writes, action in self._operations:
            memories = [[r() for r in part] for part in (reads, writes)]
            if any(m is None for part in memories for m in part):
                raise CudaError("a graph uses an array that has been freed")
            stream._do(*memories, action)

    def upload(self, stream=None):
        pass


_null = Stream(null=True)
Stream.null = _null
_capturing = []
_lock = threading.RLock()
_threads = threading.local()  # the current stream is each thread's own


def get_current_stream(device_id=None):
    return _stack()[-1]


def _stack():
    if not hasattr(_threads, "streams"):
        _threads.streams = [_null]
    return _threads.streams


def _refuse_in_capture(what):
    """Refuse what CUDA does not let happen while any stream of the process is captured."""
    for stream in _capturing:
        stream._spoiled = stream._spoiled or what
    if _capturing:
        raise CudaError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream is being captured")


# --- arrays ---------------------------------------------------------------------------------------------------------


class ndarray:  # noqa: N801 - CuPy's name
    __array_ufunc__ = None  # so that NumPy's operators refuse it, as CuPy's arrays refuse theirs

    def __init__(self, memory, view):
        self._memory, self._view = memory, view

    shape = property(lambda self: self._view.shape)
    strides = property(lambda self: self._view.strides)
    dtype = property(lambda self: self._view.dtype)
    size = property(lambda self: self._view.size)
    ndim = property(lambda self: self._view.ndim)
    nbytes = property(lambda self: self._view.nbytes)
    flags = property(lambda self: self._view.flags)
    data = property(lambda self: types.SimpleNamespace(ptr=self._view.ctypes.data))

    @property
    def __cuda_array_interface__(self):
        return {"version": 3, "shape": self.shape, "typestr": self.dtype.str, "data": (self.data.ptr, False)}

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __len__(self):
        return len(self._view)

    def __getitem__(self, index):
        return ndarray(self._memory, self._view[_only_basic(index)])

    def __setitem__(self, index, value):
        target = self._view[_only_basic(index)]
        if isinstance(value, np.ndarray) and value.ndim:
            raise TypeError("double: NumPy arrays are put on the device by asarray or set")
        if isinstance(value, ndarray):
            source = value._view
            get_current_stream()._do([value._memory], [self._memory], lambda: np.copyto(target, source, "same_kind"))
        else:
            get_current_stream()._do([], [self._memory], lambda: np.copyto(target, value, "unsafe"))

    def __imul__(self, factor):
        if not np.isscalar(factor):
            raise TypeError("double: only scalars")
        get_current_stream()._do([self._memory], [self._memory], lambda: np.multiply(self._view, factor, self._view))
        return self

    def reshape(self, *shape, order="C"):
        view = self._view.reshape(*shape)
        if not np.shares_memory(view, self._view) and view.size:
            raise CudaError("double: a reshape that copies")
        return ndarray(self._memory, view)

    def view(self, dtype=None):
        return ndarray(self._memory, self._view.view(dtype))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        result = empty(self.shape, dtype)
        target, source = result._view, self._view
        get_current_stream()._do([self._memory], [result._memory], lambda: np.copyto(target, source, "unsafe"))
        return result

    def set(self, arr, stream=None):
        _refuse_in_capture("a copy from the host")
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype or arr.shape != self.shape:
            raise TypeError(f"{arr.dtype}{arr.shape} cannot be set to {self.dtype}{self.shape}")
        (stream or get_current_stream())._do([], [self._memory], lambda: np.copyto(self._view, arr))

    def get(self, stream=None, order="C", out=None, blocking=True):
        _refuse_in_capture("a copy to the host")
        stream = stream or get_current_stream()
        stream._do([self._memory], [], lambda: None)
        if blocking:
            stream.synchronize()
        if out is not None:
            np.copyto(out, self._view)
            return out
        return self._view.copy(order)


def _only_basic(index):
    """Return an index that gives a view, even of a single element."""
    index = index if isinstance(index, tuple) else (index,)
    for part in index:
        if not (part is Ellipsis or isinstance(part, (int, np.integer, slice))):
            raise TypeError(f"double: only views, no index of type {type(part).__name__}")
    return index if Ellipsis in index else (*index, ...)


def empty(shape, dtype=float, order="C"):
    _refuse_in_capture("an allocation, whose memory the graph would not keep,")
    dtype = np.dtype(dtype)
    shape = (shape,) if np.isscalar(shape) else tuple(shape)
    memory = _Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return ndarray(memory, memory.bytes.view(dtype).reshape(shape))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    host = np.ascontiguousarray(a, dtype).reshape(np.shape(a))
    result = empty(host.shape, host.dtype)
    result.set(host)
    return result


def ascontiguousarray(a, dtype=None):
    result = empty(a.shape, a.dtype)
    result[...] = a
    return result


def arange(start, stop=None, step=1, dtype=None):
    result = empty((len(range(start, stop, step)),), dtype)
    get_current_stream()._do(
        [], [result._memory], lambda: np.copyto(result._view, np.arange(start, stop, step, dtype=dtype))
    )
    return result


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
        self._bound = _launch_bounds(code).get(name.split("<")[0], 1024)

    def __call__(self, grid, block, args, *, shared_mem=0):
        name = self._name
        if np.prod(block) > self._bound:
            raise CudaError(f"{name}: blocks of {block} threads, launch bounds {self._bound}")
        if len(args) != len(self._signature):
            raise TypeError(f"{name} takes {len(self._signature)} arguments, got {len(args)}")
        reads, writes, kept = [], [], []
        for i, (value, wanted) in enumerate(zip(args, self._signature, strict=True)):
            if isinstance(value, np.ndarray):
                raise TypeError(f"{name}, argument {i}: a NumPy array")
            if isinstance(value, ndarray):
                (reads if wanted.startswith("const") else writes).append(value._memory)
                view = value._view
                emulator.packed(view, wanted, f"{name}, argument {i}")
                # where the array is, not the array: a graph keeps nothing alive
                where = weakref.ref(value._memory), view.ctypes.data - value._memory.start, view.shape, view.dtype
                kept.append(where)
            else:
                emulator.packed(value, wanted, f"{name}, argument {i}")
                kept.append(value)

        def run():
            arrays = []
            for item in kept:
                if isinstance(item, tuple):
                    memory, offset, shape, dtype = item
                    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
                    item = memory().bytes[offset : offset + size].view(dtype).reshape(shape)
                arrays.append(item)
            orders.append(orders.pop(0))
            launches.append((name, self._module.launch(name, grid, block, arrays, seed=orders[-1])))

        get_current_stream()._do(reads, writes, run)


# --- cuBLAS ---------------------------------------------------------------------------------------------------------

_TYPES = {0: np.float32, 1: np.float64}  # cudaDataType
_COMPUTE = {np.float32: (68, 77), np.float64: (70,)}  # cublasComputeType_t
products = []
"""The compute type of every product so far."""


def _gemm_ex(handle, transa, transb, m, n, k, alpha, a, atype, lda, b, btype, ldb, beta, c, ctype, ldc, compute, algo):
    """C = alpha op(A) op(B) + beta C, all matrices stored by columns with their leading dimensions."""
    if _capturing:
        _refuse_in_capture("cuBLAS")
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
        return memory, np.lib.stride_tricks.as_strided(flat, (rows, columns), strides)

    owner_a, ma = matrix(a, *((k, m) if transa else (m, k)), lda)
    owner_b, mb = matrix(b, *((n, k) if transb else (k, n)), ldb)
    owner_c, mc = matrix(c, m, n, ldc)
    scalar = np.ctypeslib.as_ctypes_type(dtype)
    factors = scalar.from_address(alpha).value, scalar.from_address(beta).value

    def run():
        product = (ma.T if transa else ma) @ (mb.T if transb else mb)
        mc[...] = factors[0] * product + (factors[1] * mc if factors[1] else 0)

    products.append(compute)
    get_current_stream()._do([owner_a, owner_b], [owner_c], run)


__version__ = "14.2.0"


class Device:
    def __init__(self, device=None):
        self.attributes = {"MultiProcessorCount": 4}  # few, so that small products too are cut into slabs
        self.mem_info = (1 << 30) - sum(m.bytes.size for m in list(_memories.values())), 1 << 30


class _MemoryPool:
    def used_bytes(self):
        return sum(m.bytes.size for m in list(_memories.values()))

    def free_bytes(self):
        return 0


def get_default_memory_pool():
    return _MemoryPool()


cuda = types.SimpleNamespace(
    Device=Device,
    Stream=Stream,
    Event=Event,
    Graph=Graph,
    get_current_stream=get_current_stream,
    cublas=types.SimpleNamespace(gemmEx=_gemm_ex),
    device=types.SimpleNamespace(get_cublas_handle=lambda: 1),
    runtime=types.SimpleNamespace(CUDA_R_32F=0, CUDA_R_64F=1),
)
