"""How many threads a call takes where nobody says: the physical cores, or fewer where anything asks for fewer."""

from __future__ import annotations

import functools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_BLAS_MOST = 64
"""Threads for which NumPy's own BLAS is built: on a machine with more cores its number is no wish of anybody."""

_here = threading.local()
"""Of this thread: among how many processes it shares out the cores."""


@contextmanager
def shared_out(processes: int) -> Iterator[None]:
    """Take a part of the cores alone, meanwhile, in this thread: so many processes want as much."""
    before = getattr(_here, "processes", 1)
    _here.processes = processes
    try:
        yield
    finally:
        _here.processes = before


def own_cores() -> tuple[str, tuple[int, ...]]:
    """Return a name for the cores that this process may use; others that have them too say the same."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return socket.gethostname(), tuple(sorted(affinity))


@functools.cache
def physical_cores() -> int:
    """Return how many physical cores this process may use."""
    from joblib import cpu_count  # knows affinity, container limits and LOKY_MAX_CPU_COUNT

    return int(cpu_count(only_physical_cores=True))


def default_threads() -> int:
    """Return the smallest of the physical cores and all limits of this process, as they are now.

    They are ``OMP_NUM_THREADS``, ``NUMBA_NUM_THREADS``, `numba.set_num_threads` of this thread, and what
    `threadpoolctl.threadpool_limits` has made of NumPy's BLAS and of OpenMP.  The workers of joblib have them
    all from it.
    """
    cores = physical_cores()
    part = cores // getattr(_here, "processes", 1)
    asked = [ask() or cores for ask in _of_libraries(cores, len(sys.modules))]
    return max(1, min(part, _environment(), _numba(), *asked))


def _environment() -> int:
    """Return the first number of ``OMP_NUM_THREADS``, which may be a list, one a level of nesting."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else sys.maxsize


def _numba() -> int:
    """Return Numba's limit, without a start of its threads where none was asked for."""
    import numba

    parallel = sys.modules.get("numba.np.ufunc.parallel")
    if parallel is not None and parallel._is_initialized:
        return int(parallel.get_num_threads())
    return int(getattr(numba.config, "NUMBA_NUM_THREADS", sys.maxsize))


@functools.lru_cache(maxsize=1)
def _of_libraries(cores: int, modules: int) -> tuple[Callable[[], int | None], ...]:
    """Return what tells the threads of OpenMP, and of each BLAS but fastmlp's own.

    Looked up anew only after an import, which may have loaded one (`modules` are there), since that takes milliseconds.
    """
    from threadpoolctl import ThreadpoolController

    from fastmlp.backends.cpu.blas import file

    kinds = {"openmp", "blas"} if cores < _BLAS_MOST else {"openmp"}
    found = [c for c in ThreadpoolController().lib_controllers if c.user_api in kinds]
    return tuple(c.get_num_threads for c in found if os.path.realpath(c.filepath) != os.path.realpath(file()))
