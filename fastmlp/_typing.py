"""Names for types that several modules share."""

from __future__ import annotations

from typing import Any, TypeAlias

# An array of whichever backend is at work (numpy.ndarray, cupy.ndarray, ...).  Their common protocol (slices,
# reshape, shape, dtype) has no type of its own in NumPy, so it stays Any; host arrays are written NDArray.
Array: TypeAlias = Any

# Two arrays that may be overwritten, to work in.
Pair: TypeAlias = tuple[Array, Array]
