"""How much memory kernels need for copies of what they multiply, from the sizes of caches."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

SMALLEST = 256 * 1024
"""Bytes of a second-level cache where nobody tells."""


@functools.cache
def level2_bytes() -> int:
    """Return the size of a core's second-level cache, or of the smallest there is where nobody tells."""
    for cache in sorted(CACHES.glob("index*")):  # as Linux tells on any processor
        with contextlib.suppress(OSError, ValueError):
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
            if level == "2" and kind != "Instruction":
                return int(size.removesuffix("K")) * 1024
    with contextlib.suppress(OSError, AttributeError):  # as macOS does
        found = ctypes.c_int64(0)
        room = ctypes.c_size_t(ctypes.sizeof(found))
        sysctl = ctypes.CDLL(None).sysctlbyname
        if sysctl(b"hw.l2cachesize", ctypes.byref(found), ctypes.byref(room), None, 0) == 0 and found.value > 0:
            return found.value
    return SMALLEST


def scratch_size(form: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]) -> int:
    """Return how many numbers of scratch a layer's products need in this form."""
    from fastmlp.kernels.cpu import products
    from fastmlp.kernels.cpu.packing import panel_width

    return int(products.scratch_size(form, panel_width(dtype), rows, inputs, outputs))
