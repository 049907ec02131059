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


counts = Counter()
"""How often the host waited for the device ("synchronisations") and copied to it ("uploads")."""

faults = {}
"""Kernels, by name without template arguments, that go wrong when they run: a function of the arrays that they get, or
None for an illegal access, after which the process can do nothing more on the device; tests fill and clear it."""

poison = []
"""What has poisoned the process; tests clear it."""

milliseconds = {"launch": 5e-3, "replay": 1e-3, "product": 5e-3}
"""What a kernel takes by itself, within a graph, and a product by cuBLAS, on the clock that events read."""


def _refuse_when_poisoned():
    if poison:
        raise CudaError(f"cudaErrorIllegalAddress: an illegal memory access was encountered ({poison[0]})")


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
        self.device = _current_device()
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
        self._clock, self._timed, self._time = None, not disable_timing, None

    def record(self, stream=None):
        (stream or get_current_stream()).record(self)

    def synchronize(self):
        _refuse_in_capture("waiting for an event")
        _refuse_when_poisoned()
        counts["synchronisations"] += 1
        _host.join(self._clock or {})


def _elapsed_time(start_event, end_event):
    for event in (start_event, end_event):
        if not event._timed or event._time is None:
            raise CudaError("cudaErrorInvalidResourceHandle: an event without a time, or never recorded")
        if any(_host[stream] < count for stream, count in event._clock.items()):
            raise CudaError("cudaErrorNotReady: nobody has waited for the event")
    return end_event._time - start_event._time


class Stream:
    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self._clock, self._non_blocking, self._graph, self._spoiled = _Clock(), non_blocking, None, None
        self.ptr, self._time, self._device = 0 if null else id(self), 0.0, None if null else _current_device()
        _streams[self.ptr] = self

    def __enter__(self):
        if self._device not in (None, _current_device()):
            raise RuntimeError(f"This stream was not created on device {_current_device()}")
        _stack().append(self)
        return self

    def __exit__(self, *_):
        assert _stack().pop() is self

    def _do(self, reads, writes, action, kind=""):
        with _lock:
            self._do_alone(reads, writes, action, kind)

    def _do_alone(self, reads, writes, action, kind):
        """Put an operation on the stream: check what orders it, then do it (or keep it, while captured)."""
        _refuse_when_poisoned()
        here = _current_device() if self._device is None else self._device
        if any(memory.device != here for memory in (*reads, *writes)):
            raise CudaError(f"an array of another device is used on device {here}, which CuPy would let pass unchecked")
        if self._graph is not None:
            self._graph._operations.append((tuple(map(weakref.ref, reads)), tuple(map(weakref.ref, writes)), action))
            return
        self._time += milliseconds.get(kind, 0.0)
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
        _refuse_when_poisoned()
        counts["synchronisations"] += 1
        _host.join(self._clock)

    def record(self, event=None):
        event = event or Event()
        event._clock = _Clock(self._clock)
        event._clock.join(_host)
        event._captured, event._time = self._graph, self._time
        return event

    def wait_event(self, event):
        if getattr(event, "_captured", None) is not self._graph:
            _refuse_in_capture("waiting for an event of another capture, or of none")
        self._clock.join(event._clock)
        self._time = max(self._time, event._time)

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
            stream._do(*memories, action, "replay")

    def upload(self, stream=None):
        pass


_capturing = []
_lock = threading.RLock()
_threads = threading.local()  # the current device is each thread's own, and so is each device's current stream
_streams = weakref.WeakValueDictionary()
DEVICES = 2


def _current_device():
    return getattr(_threads, "devices", [0])[-1]


def get_current_stream(device_id=None):
    return _stack()[-1]


def _stack():
    if not hasattr(_threads, "streams"):
        _threads.streams = {device: [_null] for device in range(DEVICES)}
    return _threads.streams[_current_device()]


_null = Stream(null=True)
Stream.null = _null


def _refuse_in_capture(what):
    """Refuse what CUDA does not let happen while any stream of the process is captured."""
    for stream in _capturing:
        stream._spoiled = stream._spoiled or what
    if _capturing:
        raise CudaError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream is being captured")


# --- arrays ---------------------------------------------------------------------------------------------------------


class ndarray:  # noqa: N801 - CuPy's name
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
    device = property(lambda self: Device(self._memory.device))
    T = property(lambda self: ndarray(self._memory, self._view.T))

    @property
    def __cuda_array_interface__(self):
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": None if self.flags.c_contiguous else self.strides,
            "stream": get_current_stream().ptr or 1,  # 1 is the legacy default stream
        }

    def __dlpack_device__(self):
        return 2, self._memory.device  # kDLCUDA

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Return what `from_dlpack` takes; the stream of who asks waits for the one that is current here."""
        if stream is not None:
            _stream_at(stream).wait_event(get_current_stream().record())
        return self._memory, self._view

    # as CuPy's arrays do, it takes NumPy's functions of its own arrays and of scalars, and refuses NumPy's arrays

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if method != "__call__" or out is not None or options or any(isinstance(a, np.ndarray) for a in inputs):
            return NotImplemented
        return _computed(ufunc, *inputs)

    def __array_function__(self, function, kinds, args, kwargs):
        if function is not np.where or kwargs:
            return NotImplemented
        return where(*args)

    __add__ = lambda self, other: np.add(self, other)  # noqa: E731
    __radd__ = lambda self, other: np.add(other, self)  # noqa: E731
    __sub__ = lambda self, other: np.subtract(self, other)  # noqa: E731
    __rsub__ = lambda self, other: np.subtract(other, self)  # noqa: E731
    __mul__ = lambda self, other: np.multiply(self, other)  # noqa: E731
    __rmul__ = lambda self, other: np.multiply(other, self)  # noqa: E731
    __truediv__ = lambda self, other: np.true_divide(self, other)  # noqa: E731
    __rtruediv__ = lambda self, other: np.true_divide(other, self)  # noqa: E731
    __neg__ = lambda self: np.negative(self)  # noqa: E731
    __gt__ = lambda self, other: np.greater(self, other)  # noqa: E731
    __eq__ = lambda self, other: np.equal(self, other)  # noqa: E731
    __hash__ = None

    def max(self, axis=None, out=None, keepdims=False):
        return _computed(lambda a: np.max(a, axis=axis, keepdims=keepdims), self)

    def sum(self, axis=None, dtype=None, out=None, keepdims=False):
        return _computed(lambda a: np.sum(a, axis=axis, dtype=dtype, keepdims=keepdims), self)

    def mean(self, axis=None, dtype=None, out=None, keepdims=False):
        return _computed(lambda a: np.mean(a, axis=axis, dtype=dtype, keepdims=keepdims), self)

    def argmax(self, axis=None, out=None, dtype=None, keepdims=False):
        return _computed(lambda a: np.argmax(a, axis=axis, keepdims=keepdims), self)

    def copy(self, order="C"):
        return _computed(np.copy, self)

    def __float__(self):
        return float(self.get())

    def __bool__(self):
        return bool(self.get())

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

    def __imul__(self, other):
        return self._in_place(np.multiply, other)

    def __itruediv__(self, other):
        return self._in_place(np.true_divide, other)

    def _in_place(self, function, other):
        operands = [a._memory for a in (self, other) if isinstance(a, ndarray)]
        given = other._view if isinstance(other, ndarray) else other
        if isinstance(given, np.ndarray) and given is other:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        get_current_stream()._do(operands, [self._memory], lambda: function(self._view, given, self._view))
        return self

    def reshape(self, *shape, order="C"):
        view = self._view.reshape(*shape)
        if not np.shares_memory(view, self._view) and view.size:
            raise CudaError("double: a reshape that copies")
        return ndarray(self._memory, view)

    def view(self, dtype=None):
        return ndarray(self._memory, self._view.view(dtype))

    def astype(self, dtype, order="K", casting=None, subok=None, copy=True):
        if not copy and self.dtype == dtype:
            return self
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
        counts["uploads"] += 1
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
        if not (part is Ellipsis or part is None or isinstance(part, (int, np.integer, slice))):
            raise TypeError(f"double: only views, no index of type {type(part).__name__}")
    return index if Ellipsis in index else (*index, ...)


def empty(shape, dtype=float, order="C"):
    _refuse_in_capture("an allocation, whose memory the graph would not keep,")
    dtype = np.dtype(dtype)
    shape = (shape,) if np.isscalar(shape) else tuple(shape)
    memory = _Memory(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    return ndarray(memory, memory.bytes.view(dtype).reshape(shape))


def _computed(function, *operands):
    """Return a new array: a function of arrays and scalars, element by element or summed."""
    if any(isinstance(a, np.ndarray) for a in operands):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    with np.errstate(all="ignore"):
        value = np.asarray(function(*(a._view if isinstance(a, ndarray) else a for a in operands)))
    result = empty(value.shape, value.dtype)
    reads = [a._memory for a in operands if isinstance(a, ndarray)]
    get_current_stream()._do(reads, [result._memory], lambda: np.copyto(result._view, value))
    return result


def where(condition, x=None, y=None):
    return _computed(np.where, condition, x, y)


def _stream_at(pointer):
    return _null if pointer in (0, 1) else _streams[pointer]


def from_dlpack(array, *, device=None, copy=None):
    kind, number = array.__dlpack_device__()
    if kind != 2:
        raise TypeError("double: only arrays of a device")
    with Device(number):
        return ndarray(*array.__dlpack__(stream=get_current_stream().ptr or 1))


def _from_interface(described):
    memory = _memory_at(described["data"][0])
    if described.get("stream") is not None:
        _stream_at(described["stream"]).synchronize()  # CuPy makes the host wait
    dtype, offset = np.dtype(described["typestr"]), described["data"][0] - memory.start
    flat = memory.bytes[offset : offset + (memory.bytes.size - offset) // dtype.itemsize * dtype.itemsize].view(dtype)
    if described.get("strides"):
        return ndarray(memory, np.lib.stride_tricks.as_strided(flat, described["shape"], described["strides"]))
    return ndarray(memory, flat[: int(np.prod(described["shape"]))].reshape(described["shape"]))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    if hasattr(a, "__cuda_array_interface__"):
        return _from_interface(a.__cuda_array_interface__)
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
            plain = name.split("<")[0]
            if plain in faults and faults[plain] is None:
                poison.append(plain)
                return
            orders.append(orders.pop(0))
            launches.append((name, self._module.launch(name, grid, block, arrays, seed=orders[-1])))
            if plain in faults:
                faults[plain](arrays)

        get_current_stream()._do(reads, writes, run, "launch")


# --- cuBLAS ---------------------------------------------------------------------------------------------------------

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
        x, y = (_tf32(ma), _tf32(mb)) if compute == 77 else (ma, mb)
        product = (x.T if transa else x) @ (y.T if transb else y)
        mc[...] = factors[0] * product + (factors[1] * mc if factors[1] else 0)

    products.append(compute)
    get_current_stream()._do([owner_a, owner_b], [owner_c], run, "product")


__version__ = "14.2.0"


class Device:
    compute_capability = "90"

    def __init__(self, device=None):
        self.id = _current_device() if device is None else int(device)
        self.attributes = {"MultiProcessorCount": 4}  # few, so that small products too are cut into slabs

    @property
    def mem_info(self):
        return capacity[0] - get_default_memory_pool().used_bytes(), capacity[0]

    def __enter__(self):
        if not 0 <= self.id < DEVICES:
            raise CudaError("cudaErrorInvalidDevice: invalid device ordinal")
        _threads.devices = [*getattr(_threads, "devices", [0]), self.id]
        return self

    def __exit__(self, *_):
        _threads.devices.pop()

    def __eq__(self, other):
        return self.id == other.id

    __hash__ = None


capacity = [1 << 30]
"""Bytes of memory that the device has."""


def _device_synchronize():
    _refuse_in_capture("synchronisation")
    _refuse_when_poisoned()
    counts["synchronisations"] += 1
    for stream in list(_streams.values()):
        _host.join(stream._clock)


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
    get_elapsed_time=_elapsed_time,
    driver=types.SimpleNamespace(CUDADriverError=CudaError),
    cublas=types.SimpleNamespace(gemmEx=_gemm_ex),
    device=types.SimpleNamespace(get_cublas_handle=lambda: 1),
    runtime=types.SimpleNamespace(
        CUDA_R_32F=0, CUDA_R_64F=1, CUDARuntimeError=CudaError, deviceSynchronize=_device_synchronize
    ),
)
