"""The BLAS that compiled kernels call: a private OpenBLAS at one thread, whose settings touch nobody else's."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from typing import Any


def file() -> str:
    """Return where the library lies."""
    import scipy_openblas32

    ending = {"darwin": "dylib", "win32": "dll"}.get(sys.platform, "so")
    return os.path.join(scipy_openblas32.get_lib_dir(), f"libscipy_openblas.{ending}")


@functools.cache
def load() -> tuple[ctypes.CDLL, str]:
    """Load the library once in a process and set it to one thread; return it and its prefix of names.

    Raises
    ------
    OSError, ImportError
        It is not installed, or cannot be loaded.
    """
    library = ctypes.CDLL(file())
    # threads are ours: each calls the library for its own part of the work
    library.scipy_openblas_set_num_threads(1)
    return library, "scipy_"


def addresses() -> tuple[int, int]:
    """Return where sgemm and dgemm lie in memory (Fortran interface, 32-bit integers)."""
    library, prefix = load()
    sgemm, dgemm = (_address(getattr(library, f"{prefix}{name}_")) for name in ("sgemm", "dgemm"))
    return sgemm, dgemm


def version() -> str:
    """Return what the library says of itself: its version and the processor it has chosen kernels for."""
    library, prefix = load()
    # it writes to memory of its own, piece by piece: threads that asked at once would read each other's
    config = ctypes.PYFUNCTYPE(ctypes.c_char_p)((f"{prefix}openblas_get_config", library))  # keeps Python's lock
    return str(config().decode())


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
