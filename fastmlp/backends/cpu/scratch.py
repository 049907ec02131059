"""How much memory kernels need for copies of what they multiply, from the sizes of caches."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


def level2_bytes() -> int:
    """Return the size of a core's second-level cache, or of the smallest there is where nobody tells."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):
        found = 0
    return found if found > 0 else 256 * 1024


def scratch_size(form: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]) -> int:
    """Return how many numbers of scratch a layer's products need in this form."""
    from fastmlp.kernels.cpu import products
    from fastmlp.kernels.cpu.packing import panel_width

    block_rows = level2_bytes() // 2 // (products.DEPTH * dtype.itemsize)
    width = panel_width(dtype)
    return int(products.scratch_size(form, width, rows, inputs, outputs, block_rows))
