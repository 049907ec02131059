"""What the rule of forms and threads goes by on this machine: measured once, kept with the compiled kernels."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmlp.backends.cpu import blas
from fastmlp.backends.cpu.threads import on_threads
from fastmlp.files.atomic import atomic_writer

MEASURED = "measured"
"""The first part of the name of the file that keeps it."""
START, RATE = 60e-6, 1e10
"""Seconds that another thread takes to begin and to end, and operations a second, where nothing was measured."""
NEAR = 1024.0
"""Bytes from one row of weights to the next, up to which a tile finds several of them on a page and in other sets
anywhere."""
WAKES, TRIES, MEETINGS, APART = 25, 4, 20, 1e-3
"""How often two threads wake up and wait for each other, to be timed: short tries, of which one finds both of them
running even where other programs want the cores; and seconds from one awakening to the next, since who has a core keeps
it for milliseconds."""
LONGEST = 0.5
"""Seconds after which the last awakening begins, where each takes long, or what was found so far is long."""
MEETING, LONGEST_MEETING = 1e-7, 2e-7
"""Seconds that it is taken to take where that was not measured, and at most: what takes longer than the second, about
three times what was seen of two threads of one processor, is to wait for a core.  A step that is divided wrongly for it
is one thread's again as soon as it runs (`crew`); one that is not divided would never be."""
SMALL = 16, 256, 64
"""Rows, inputs and outputs of a product of which one might ask whether another thread is worth it."""


class Measured(NamedTuple):
    """What was measured for one type on one machine."""

    start: float
    """Seconds until another thread has begun and ended."""
    meeting: float
    """Seconds that two threads take to wait for each other."""
    rate: float
    """Floating-point operations a second of a small product, on one thread."""
    near: float
    """Bytes between rows of weights up to which a forward product reads them in place; infinity for all, see `near`."""


_tables: dict[np.dtype[Any], Measured | None] = {}
"""Of this process: what another one writes meanwhile changes nothing for it."""
_settled: set[np.dtype[Any]] = set()
"""Types of which nothing more will be known."""


def known(dtype: np.dtype[Any]) -> Measured | None:
    """Return the table of a type, read when it is first asked for; None where nothing was measured."""
    if dtype not in _tables:
        path = table_path(dtype)
        table = _tables[dtype] = None if path is None else _read(path)
        if path is None or table is not None:
            _settled.add(dtype)
    return _tables[dtype]


def forget(whats: Iterable[str], dtype: np.dtype[Any]) -> None:
    """Delete what was measured for a type on this machine, and other files of what holds for it, see `kept_path`.

    Raises
    ------
    OSError
        A file is there and cannot be deleted.
    """
    for what in (MEASURED, *whats):
        path = kept_path(what, dtype)
        if path is not None:
            path.unlink(missing_ok=True)
    _tables.pop(dtype, None)
    _settled.discard(dtype)


def is_settled(dtype: np.dtype[Any]) -> bool:
    """Tell whether all is known that will be: nothing, where no folder can be written."""
    known(dtype)
    return dtype in _settled


def calibrate(dtype: np.dtype[Any], reach: Callable[[], float], check: Callable[[], None]) -> None:
    """Measure, and keep it.

    Parameters
    ----------
    dtype : numpy.dtype
    reach : callable
        Measures `Measured.near`.
    check : callable
        Is called meanwhile, and what it raises ends the measurement.
    """
    from fastmlp.kernels.cpu.compiling import compile_aside

    found: list[Measured] = []
    compile_aside(lambda: found.append(measure(dtype, reach)), check)
    path = table_path(dtype)
    table = None if path is None else _read(path)  # another process may have been faster: all go on with one table
    if table is None:
        table = found[0]
        if path is not None:
            _write(path, table, dtype)
    _tables[dtype] = table
    _settled.add(dtype)


@functools.cache
def machine() -> dict[str, Any]:
    """Return what a table holds for: processor, instruction set, versions and the text of the kernels."""
    import llvmlite.binding
    import numba

    from fastmlp.kernels.cpu import kept, vectors

    features = hashlib.sha256(",".join(sorted(vectors.FEATURES)).encode()).hexdigest()[:16]
    return {
        "processor": getattr(numba.config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name(),
        "features": features,
        "vector_bytes": vectors.VECTOR_BYTES,
        "numba": numba.__version__,
        "blas": blas.version(),
        "kernels": kept.STAMP[:16],
    }


def table_path(dtype: np.dtype[Any]) -> Path | None:
    """Return where the table of a type is kept, or None where no folder can be written."""
    return kept_path(MEASURED, dtype)


def kept_path(what: str, dtype: np.dtype[Any]) -> Path | None:
    """Return where what holds for a type on this `machine` is kept, or None where no folder can be written."""
    import numba

    folder = _folder(getattr(numba.config, "CACHE_DIR", ""))
    return None if folder is None else folder / f"{what}-{_machine_name()}-{dtype}.json"


@functools.lru_cache(maxsize=2)
def _folder(asked: str) -> Path | None:
    """Return the folder of compiled kernels, where so much was asked for; whether it can be written is tried once."""
    from fastmlp.kernels.cpu.kept import cache_folder

    folder = cache_folder()
    return None if folder is None else Path(folder)


@functools.cache
def _machine_name() -> str:
    return hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()[:16]


def _read(path: Path) -> Measured | None:
    """Return the table in a file; None where there is none, or it is damaged."""
    with contextlib.suppress(Exception):  # whatever is wrong with it, it is measured again
        kept = json.loads(path.read_text())
        table = Measured(**{name: float(kept["measured"][name]) for name in Measured._fields})
        if kept["machine"] == machine() and all(n > 0 for n in table) and all(n < math.inf for n in table[:-1]):
            return table
    return None


def _write(path: Path, table: Measured, dtype: np.dtype[Any]) -> None:
    # who cannot keep it measures again the next time
    with contextlib.suppress(OSError):
        os.makedirs(path.parent, exist_ok=True)
        with atomic_writer(path, lasting=False) as file:
            kept = {"machine": machine(), "dtype": str(dtype), "measured": table._asdict()}
            file.write(json.dumps(kept).encode())


def measure(dtype: np.dtype[Any], reach: Callable[[], float]) -> Measured:
    """Measure all of it.

    It takes a third of a second, up to half a second more where others want the cores, and what the compiler needs for
    the meeting.
    """
    return Measured(time_start(), time_meeting(), small_product_rate(dtype), reach())


def time_start() -> float:
    """Return the seconds that it mostly takes to start a thread that does nothing, and to wait for its end."""
    seconds = []
    for _ in range(21):
        begin = time.perf_counter()
        on_threads(2, _nothing)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _nothing(t: int) -> None:
    return


def time_meeting() -> float:
    """Return the seconds that two threads take to wait for each other at a barrier."""
    from fastmlp.kernels.cpu.operations import meet
    from fastmlp.kernels.cpu.threads import SIZE

    best, arrivals = [math.inf, math.inf], np.zeros(SIZE, np.int64)
    meet(1, 1, arrivals, 0)  # compiles
    until, goes_on = time.perf_counter() + LONGEST, [True]

    def work(t: int) -> None:
        passed = 0
        for wake in itertools.count(1):
            time.sleep(APART)
            if t == 0:
                goes_on[0] = time.perf_counter() < until and (wake < WAKES or max(best) > LONGEST_MEETING)
            meet(2, MEETINGS, arrivals, passed)  # both are awake
            passed, last = passed + MEETINGS, not goes_on[0]  # before the first can change it
            for _ in range(TRIES):
                begin = time.perf_counter()
                meet(2, MEETINGS, arrivals, passed)
                best[t] = min(best[t], (time.perf_counter() - begin) / MEETINGS)
                passed += MEETINGS
            if last:
                break

    on_threads(2, work)
    return min(max(best), LONGEST_MEETING)


def small_product_rate(dtype: np.dtype[Any]) -> float:
    """Return the floating-point operations a second of one thread in a small product, by the BLAS."""
    rows, inputs, outputs = SMALL
    address, number = blas.addresses()[dtype == np.float64], (ctypes.c_float, ctypes.c_double)[dtype == np.float64]
    gemm = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 13)(address)
    x, w, out = (np.full(size, 0.5, dtype) for size in ((rows, inputs), (inputs, outputs), (rows, outputs)))
    plain, one, zero = ctypes.c_char(b"N"), number(1), number(0)
    m, n, k = (ctypes.c_int32(size) for size in (outputs, rows, inputs))
    # in Fortran's order, what lies in ours is transposed: out' = w' x'
    scalars = [ctypes.addressof(a) for a in (plain, plain, m, n, k, one, m, k, zero, m)]
    given = [*scalars[:6], w.ctypes.data, scalars[6], x.ctypes.data, *scalars[7:9], out.ctypes.data, scalars[9]]
    best = math.inf
    for _ in range(20):
        begin = time.perf_counter()
        gemm(*given)
        best = min(best, time.perf_counter() - begin)
    return 2.0 * rows * inputs * outputs / best
