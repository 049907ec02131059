"""What a layer's products take on this machine in each form, and what threads do: measured once, kept with kernels."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmlp.backends.cpu.threads import on_threads
from fastmlp.files.atomic import atomic_writer

SECONDS = 1.0
"""How long a measurement of one type goes on at most; shapes far from what was reached by then go by the rule."""
ROWS, INPUTS, OUTPUTS = (1, 16, 64, 256), (64, 256, 1024), (10, 64, 256, 1024)
FARTHEST = 6.0
"""How many times in all a shape's sizes may differ by a factor of two from those of one that was measured."""
LARGEST = 3e8
"""Floating-point operations of the largest product that is timed."""
SHORTEST = 60e-6
"""Seconds that a timed call lasts at least: a thousand times the clock's step."""
ROUNDS = 3
TRIES, MEETINGS = 30, 20
"""How often two threads wait for each other, to be timed: short tries, of which one finds both of them running even
where other programs want the cores."""
MEETING, LONGEST_MEETING = 1e-7, 1e-5
"""Seconds that it is taken to take where that was not measured: what takes longer than the second is to wait for a
core, not for a thread."""


class Measured(NamedTuple):
    """One product of one shape, and the seconds that it takes in each form, by the forms' numbers."""

    product: int
    rows: int
    inputs: int
    outputs: int
    seconds: tuple[float, ...]


class Table:
    """What was measured for one type on one machine."""

    def __init__(self, measured: list[Measured], start: float, meeting: float) -> None:
        self.measured = measured
        self.start = start
        """Seconds until another thread has begun and ended."""
        self.meeting = meeting
        """Seconds that two threads take to wait for each other."""

    def nearest(self, product: int, rows: int, inputs: int, outputs: int) -> Measured | None:
        """Return what was measured for the shape that is the nearest in size; None where none is near."""
        wanted = max(1, rows), inputs, outputs  # a call may be for no rows

        def distance(m: Measured) -> float:
            there = m.rows, m.inputs, m.outputs
            return sum(abs(math.log2(a / b)) for a, b in zip(wanted, there, strict=True))

        found = min((m for m in self.measured if m.product == product), key=distance)
        return found if distance(found) <= FARTHEST else None


_tables: dict[np.dtype[Any], Table | None] = {}
"""Of this process: what another one writes meanwhile changes nothing for it."""
_settled: set[np.dtype[Any]] = set()
"""Types of which nothing more will be known."""


def known(dtype: np.dtype[Any]) -> Table | None:
    """Return the table of a type, read when it is first asked for; None where nothing was measured."""
    if dtype not in _tables:
        path = table_path(dtype)
        table = _tables[dtype] = None if path is None else _read(path)
        if path is None or table is not None:
            _settled.add(dtype)
    return _tables[dtype]


def is_settled(dtype: np.dtype[Any]) -> bool:
    """Tell whether all is known that will be: nothing, where no folder can be written."""
    known(dtype)
    return dtype in _settled


def calibrate(dtype: np.dtype[Any], check: Callable[[], None]) -> None:
    """Measure, and keep it; `check` is called meanwhile, and what it raises ends the measurement."""
    from fastmlp.kernels.cpu.compiling import compile_aside

    found: list[Table] = []
    compile_aside(lambda: found.append(measure(dtype)), check)
    path = table_path(dtype)
    table = None if path is None else _read(path)  # another process may have been faster: all go on with one table
    if table is None:
        table = found[0]
        if path is not None:
            _write(path, table, dtype)
    _tables[dtype] = table
    _settled.add(dtype)


def machine() -> dict[str, Any]:
    """Return what a table holds for: processor, instruction set, versions and the text of the kernels."""
    import llvmlite.binding
    import numba

    from fastmlp.backends.cpu import blas
    from fastmlp.kernels.cpu import compiling, vectors

    features = hashlib.sha256(",".join(sorted(vectors.FEATURES)).encode()).hexdigest()[:16]
    return {
        "processor": getattr(numba.config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name(),
        "features": features,
        "vector_bytes": vectors.VECTOR_BYTES,
        "numba": numba.__version__,
        "blas": blas.version(),
        "kernels": compiling.STAMP[:16],
    }


def table_path(dtype: np.dtype[Any]) -> Path | None:
    """Return where the table of a type is kept, or None where no folder can be written."""
    return kept_path("products", dtype)


def kept_path(what: str, dtype: np.dtype[Any]) -> Path | None:
    """Return where what holds for a type on this `machine` is kept, or None where no folder can be written."""
    from fastmlp.kernels.cpu.compiling import cache_folder

    folder = cache_folder()
    if folder is None:
        return None
    name = hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()[:16]
    return Path(folder) / f"{what}-{name}-{dtype}.json"


def _read(path: Path) -> Table | None:
    """Return the table in a file; None where there is none, or it is damaged."""
    with contextlib.suppress(Exception):  # whatever is wrong with it, it is measured again
        kept = json.loads(path.read_text())
        measured = [Measured(int(p), int(n), int(i), int(o), (*map(float, s),)) for p, n, i, o, s in kept["measured"]]
        start, meeting = float(kept["start"]), float(kept["meeting"])
        forms = {len(m.seconds) for m in measured}
        positive = all(0 < s < math.inf for s in [start, meeting, *(s for m in measured for s in m.seconds)])
        if kept["machine"] == machine() and positive and forms == {3} and {m.product for m in measured} == {0, 1, 2}:
            return Table(measured, start, meeting)
    return None


def _write(path: Path, table: Table, dtype: np.dtype[Any]) -> None:
    # who cannot keep it measures again the next time
    with contextlib.suppress(OSError):
        os.makedirs(path.parent, exist_ok=True)
        with atomic_writer(path) as file:
            threads = {"start": table.start, "meeting": table.meeting}
            kept = {"machine": machine(), "dtype": str(dtype), **threads, "measured": table.measured}
            file.write(json.dumps(kept).encode())


def measure(dtype: np.dtype[Any]) -> Table:
    """Time products of the shapes above in every form, on one thread, the small ones first."""
    shapes = [(n, i, o) for n in ROWS for i in INPUTS for o in OUTPUTS if 2 * n * i * o <= LARGEST]
    shapes.sort(key=math.prod)
    time_product(0, shapes[0], dtype)  # compiles, which takes longer than all that is timed
    end = time.perf_counter() + SECONDS
    found: list[Measured] = []
    for shape in shapes:
        for which in range(3):
            if found and len({m.product for m in found}) == 3 and time.perf_counter() > end:
                break
            found.append(Measured(which, *shape, tuple(time_product(which, shape, dtype))))
    return Table(found, time_start(), time_meeting())


def time_start() -> float:
    """Return the seconds that it takes to start a thread that does nothing, and to wait for its end."""
    best = math.inf
    for _ in range(20):
        begin = time.perf_counter()
        on_threads(2, _nothing)
        best = min(best, time.perf_counter() - begin)
    return best


def _nothing(t: int) -> None:
    return


def time_meeting() -> float:
    """Return the seconds that two threads take to wait for each other at a barrier."""
    from fastmlp.kernels.cpu.operations import meet

    best, arrivals = [math.inf, math.inf], np.zeros(16, np.int64)[:1]

    def work(t: int) -> None:
        for first in range(0, TRIES * MEETINGS, MEETINGS):
            begin = time.perf_counter()
            meet(2, MEETINGS, arrivals, first)
            best[t] = min(best[t], (time.perf_counter() - begin) / MEETINGS)

    meet(1, 1, arrivals, 0)  # compiles
    on_threads(2, work)
    return max(best) if max(best) < LONGEST_MEETING else MEETING


def time_product(which: int, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> list[float]:
    """Return the seconds of one product in each form, the best of some rounds in turn."""
    from fastmlp.backends.cpu.scratch import scratch_size
    from fastmlp.kernels.cpu.operations import product
    from fastmlp.kernels.cpu.products import available_forms

    rows, inputs, outputs = shape
    x, w, d = (np.full(size, 0.5, dtype) for size in (rows * inputs, inputs * outputs, rows * outputs))
    out, index = np.zeros((d.size, x.size, w.size)[which], dtype), np.arange(rows)
    calls = []
    for form in available_forms():
        scratch = np.empty(scratch_size(form, rows, inputs, outputs, dtype), dtype)
        calls.append(functools.partial(_seconds, product, form, which, x, w, d, *shape, index, out, scratch))
    repeats = [max(1, math.ceil(SHORTEST / call(1))) for call in calls]  # the first call warms the caches
    best = [math.inf] * len(calls)
    for _ in range(ROUNDS):
        best = [min(b, call(n)) for b, call, n in zip(best, calls, repeats, strict=True)]
    return best


def _seconds(product: Callable[..., object], form: int, which: int, *arrays_and_repeats: Any) -> float:
    *arrays, repeats = arrays_and_repeats
    start = time.perf_counter()
    product(form, which, repeats, *arrays)
    return (time.perf_counter() - start) / int(repeats)
