"""How kernels are compiled: one set of options, and a cache that notices an edit in any kernel file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile, NullCache

# Products may become fused multiply-adds and zeros may lose their sign; nothing else is loosened: infinities and NaN
# keep their meaning, and compensated arithmetic is not reassociated away.
FASTMATH = {"nsz", "contract"}
OPTIONS: dict[str, Any] = {"fastmath": FASTMATH, "error_model": "numpy", "nogil": True}
INLINE: dict[str, Any] = {**OPTIONS, "forceinline": True}
"""For what is called in inner loops: only what is inlined can be vectorised."""


def folder_stamp() -> str:
    """Return a hash of every kernel source and of the compiler's version.

    Numba stamps a cached function with the file it is in, and would go on using it after an edit in another file.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _KernelCache(FunctionCache):
    """Numba's cache on disk, stamped with all kernel files."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._source_stamp = _STAMP
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path, filename_base=self._impl.filename_base, source_stamp=_STAMP
        )


_STAMP = folder_stamp()


def entry(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls, when it is first called, and keep the code on disk where that can be."""
    compiled = njit(**OPTIONS)(function)
    if compiled is function:  # the JIT is off
        return function
    try:
        compiled._cache = _KernelCache(function)
    except (RuntimeError, OSError):  # no folder that can be written: compile in each process
        compiled._cache = NullCache()
    return compiled


def cache_folder() -> str | None:
    """Return where compiled code is kept, or None where no folder can be written."""
    try:
        path = FunctionCache(folder_stamp).cache_path
    except (RuntimeError, OSError):
        return None
    return os.fspath(path)
