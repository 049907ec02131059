"""The double of CuPy, its devices: what they are, their memory, and memory of the host that is pinned for them."""

from __future__ import annotations

import weakref

import numpy as np
from cupy_late import Clock
from cupy_streams import (
    DEVICES,
    CudaError,
    _alive,
    _capturing,
    _current_device,
    _gone,
    _host_waits,
    _refuse_for_ever,
    _refuse_in_capture,
    _refuse_of_captured,
    _refuse_when_poisoned,
    _streams,
    _threads,
    counts,
    pinned,
)

# --- pinned memory ----------------------------------------------------------------------------------------------------


class PinnedMemory:
    """Memory of the host that the system does not move, given back when nobody holds it."""

    def __init__(self, size, flags=0):
        _refuse_in_capture("pinning memory")
        self.size, self._bytes = size, np.full(size, 0xFF, np.uint8)
        pinned["used"] += size
        pinned["peak"] = max(pinned["peak"], pinned["used"])
        weakref.finalize(self._bytes, pinned.subtract, {"used": size})


class PinnedMemoryPointer(np.ndarray):
    """An array, since an object of Python's own has no buffer before Python 3.12."""

    def __new__(cls, mem, offset):
        return mem._bytes[offset:].view(cls)


# --- devices ----------------------------------------------------------------------------------------------------------


class Device:
    compute_capability = "90"

    def __init__(self, device=None):
        self.id = _current_device() if device is None else int(device)
        self.attributes = {"MultiProcessorCount": multiprocessors[0]}

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

multiprocessors = [4]
"""How many it has: few, so that small products too are cut into slabs; tests change it."""


visible = [DEVICES]
"""How many devices programs are told of; tests change it."""


def _device_properties(device):
    return {"name": b"the double of a GPU", "uuid": bytes([device] * 16)}


def _device_synchronize():
    if captured := [s for s in list(_capturing) if s._device == _current_device()]:  # in any mode, by any thread
        _refuse_of_captured("synchronisation", captured)
    _refuse_when_poisoned()
    counts["synchronisations"] += 1
    for stream in list(_streams.values()):
        if stream._device == _current_device():
            _refuse_for_ever(stream._stuck)
        _host_waits(stream._clock)
    _host_waits(Clock(_gone))


class _MemoryPool:
    def used_bytes(self):
        return sum(m.bytes.size for m in _alive())

    def free_bytes(self):
        return 0


def get_default_memory_pool():
    return _MemoryPool()
