"""The double of CuPy, its arrays: in host memory, used on streams, and as strict as CuPy's about NumPy's arrays."""

from __future__ import annotations

import functools
import math
import types

import cupy_late
import numpy as np
from cupy_devices import Device
from cupy_readings import Reading
from cupy_streams import (
    CudaError,
    Use,
    _Memory,
    _memory_at,
    _readings,
    _refuse_in_capture,
    _stream_at,
    counts,
    get_current_stream,
    pooled,
)


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801 - CuPy's name
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
            copy = functools.partial(np.copyto, target, source, "same_kind")
            get_current_stream()._do([_bytes_of(value)], [_bytes_of(self[index])], copy)
        else:
            get_current_stream()._do([], [_bytes_of(self[index])], lambda: np.copyto(target, value, "unsafe"))

    def __imul__(self, other):
        return self._in_place(np.multiply, other)

    def __itruediv__(self, other):
        return self._in_place(np.true_divide, other)

    def _in_place(self, function, other):
        operands = [a._memory for a in (self, other) if isinstance(a, ndarray)]
        given = other._view if isinstance(other, ndarray) else other
        if isinstance(given, np.ndarray) and given is other:
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        target = self._view
        get_current_stream()._do(operands, [self._memory], lambda: function(target, given, target))
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
        stream, reading, target = stream or get_current_stream(), Reading(np.ascontiguousarray(arr)), self._view
        kind, shape = arr.dtype, arr.shape
        stream._do([], [self._memory], lambda: np.copyto(target, reading.now().view(kind).reshape(shape)))
        if cupy_late.complains():
            reading.at = stream._number, stream._clock[stream._number]
            _readings.append(reading)

    def get(self, stream=None, order="C", out=None, blocking=True):
        _refuse_in_capture("a copy to the host")
        stream = stream or get_current_stream()
        source, out = self._view, np.empty(self.shape, self.dtype, order) if out is None else out
        stream._do([self._memory], [], lambda: np.copyto(out, source))
        if blocking:
            stream.synchronize()
        return out


def _bytes_of(array):
    """Return the bytes that an array may read or write: its own where they lie side by side, else the allocation's."""
    return Use.of(array) if array.flags.c_contiguous else array._memory


def _only_basic(index):
    """Return an index that gives a view, even of a single element."""
    index = index if isinstance(index, tuple) else (index,)
    for part in index:
        if not (part is Ellipsis or part is None or isinstance(part, (int, np.integer, slice))):
            raise TypeError(f"double: only views, no index of type {type(part).__name__}")
    return index if Ellipsis in index else (*index, ...)


KINDS = "?bhilqBHILQefdFD"
"""The types of numbers that CuPy has, by NumPy's letters: none wider than float64."""


def _known(dtype):
    dtype = np.dtype(dtype)
    if dtype.char not in KINDS or not dtype.isnative:
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def empty(shape, dtype=float, order="C"):
    _refuse_in_capture("an allocation, whose memory the graph would not keep,")
    dtype = _known(dtype)
    shape = (shape,) if np.isscalar(shape) else tuple(shape)
    memory = _Memory(math.prod(map(int, shape)) * dtype.itemsize)
    return ndarray(memory, memory.bytes.view(dtype).reshape(shape))


def _computed(function, *operands):
    """Return a new array: a function of arrays and scalars, element by element or summed."""
    if any(isinstance(a, np.ndarray) for a in operands):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    given = [a._view if isinstance(a, ndarray) else a for a in operands]
    with np.errstate(all="ignore"):
        like = np.asarray(function(*given))  # what stands there now may be nothing yet
    result = empty(like.shape, like.dtype)
    reads, target = [a._memory for a in operands if isinstance(a, ndarray)], result._view
    get_current_stream()._do(reads, [result._memory], lambda: np.copyto(target, function(*given)))
    return result


def where(condition, x=None, y=None):
    return _computed(np.where, condition, x, y)


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
    return ndarray(memory, flat[: math.prod(described["shape"])].reshape(described["shape"]))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    if hasattr(a, "__cuda_array_interface__"):
        return _from_interface(a.__cuda_array_interface__)
    host = np.ascontiguousarray(a, dtype).reshape(np.shape(a))
    host = host.astype(host.dtype.newbyteorder("="))  # into memory of CuPy's own, at once
    result = empty(host.shape, host.dtype)
    counts["uploads"] += 1
    pooled.add(1 << max(host.nbytes - 1, 0).bit_length())  # of pinned memory that the host is copied into at once
    target = result._view
    get_current_stream()._do([], [result._memory], lambda: np.copyto(target, host))
    return result


def ascontiguousarray(a, dtype=None):
    result = empty(a.shape, a.dtype)
    result[...] = a
    return result


def arange(start, stop=None, step=1, dtype=None):
    result = empty((len(range(start, stop, step)),), dtype)
    target = result._view
    get_current_stream()._do([], [result._memory], lambda: np.copyto(target, np.arange(start, stop, step, dtype=dtype)))
    return result
