"""The double of CuPy, copies from the host, and the error that all of it raises."""

from __future__ import annotations

import ctypes
import weakref

import numpy as np


class CudaError(RuntimeError):
    """What CUDA or CuPy would refuse, or would let go wrong in silence."""


class Reading:
    """A copy from the host that is queued: CUDA may read the array at any time until the stream has passed."""

    def __init__(self, host):
        self._where, self._size = host.ctypes.data, host.nbytes
        self._bytes, self.at = host.tobytes(), None
        while isinstance(host.base, np.ndarray):
            host = host.base  # whose memory it is
        self._owner = weakref.ref(host)

    def now(self):
        """Return what stands there now; of memory that is gone, anything."""
        if self._owner() is None:
            return np.full(self._size, 0xFF, np.uint8)
        return np.frombuffer(ctypes.string_at(self._where, self._size), np.uint8)

    def check(self):
        if self._owner() is None:
            raise CudaError("a host array was freed before the copy from it was done")
        if self.now().tobytes() != self._bytes:
            raise CudaError("a host array was changed before the copy from it was done")
