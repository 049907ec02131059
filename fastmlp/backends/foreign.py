"""Arrays of other libraries: whether they lie on a GPU, and how NumPy reads those that do not.

Two protocols tell: DLPack (``__dlpack__``, ``__dlpack_device__``) and ``__cuda_array_interface__``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# dlpack.h: DLDeviceType
_CUDA, _CUDA_MANAGED = 2, 13


def lies_on_gpu(array: Any) -> bool:
    """Return whether an array of any library is in the memory of a CUDA device."""
    if isinstance(array, (np.ndarray, list, tuple)):
        return False
    if speaks_dlpack(array):
        return int(array.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def speaks_dlpack(array: Any) -> bool:
    """Return whether an array can be handed over by DLPack."""
    return hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__")


def host_array(array: Any) -> NDArray[Any]:
    """Return what is in host memory as a NumPy array, without a copy where that can be."""
    if not isinstance(array, np.ndarray) and not hasattr(array, "__array__") and speaks_dlpack(array):
        return np.from_dlpack(array)
    return np.asarray(array)
