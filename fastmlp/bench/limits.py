"""What a machine can do at best, measured in the run that it is held against: products, copies, launches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from fastmlp.bench.costs import Cost
from fastmlp.bench.measures import Effort, take_samples

SIDE = {"cpu": 2048, "cuda": 4096}
"""Rows and columns of the matrices whose product is timed."""
COPIED = {"cpu": (1 << 18, 1 << 21, 1 << 24, 1 << 27), "cuda": (1 << 22, 1 << 29)}
"""Bytes that copies read and write: in caches of the first and second level, in the last one, in memory."""
WORK = 1 << 26
"""Bytes that a thread reads and writes in one call of NumPy's, at least: a millisecond, beside which it is nothing that
threads take turns in Python's own code, and wait for each other."""
LINE = 64
"""Bytes of a line of a cache."""


class Limits(NamedTuple):
    """The best that was measured on a device.

    Attributes
    ----------
    product : float
        Floating-point operations a second, of a product of two large square matrices by the library of the machine.
    copies : tuple of (float, float)
        Bytes that a copy reads and writes, and how many it does a second.
    launch : float
        Seconds until a kernel that does nothing has been launched; 0 on a CPU.
    """

    product: float
    copies: tuple[tuple[float, float], ...]
    launch: float

    @property
    def memory(self) -> float:
        """Bytes a second where no cache helps."""
        return self.copies[-1][1]

    def bandwidth(self, size: float) -> float:
        """Return bytes a second for arrays of so many bytes together, between those measured, by their logarithms."""
        import numpy as np

        sizes, rates = (np.log([copy[i] for copy in self.copies]) for i in (0, 1))
        return float(np.exp(np.interp(np.log(size), sizes, rates)))

    def least_seconds(self, cost: Cost) -> tuple[float, str]:
        """Return the seconds that the machine needs at the least, and for what: products, memory or a launch."""
        parts = {
            "products": cost.operations / self.product,
            "memory": cost.bytes / self.bandwidth(cost.bytes),
            "launch": self.launch,
        }
        what = max(parts, key=lambda name: parts[name])
        return parts[what], what


def best_of(found: Sequence[Mapping[str, Any]]) -> Limits:
    """Return the best of what `measure` has found several times: a limit is what was reached once."""
    product = max(max(f["product"]) for f in found)
    sizes = [size for size, _ in found[0]["copies"]]
    copies = tuple((float(s), max(max(f["copies"][i][1]) for f in found)) for i, s in enumerate(sizes))
    return Limits(product, copies, min(min(f["launch"]) for f in found))


def measure(device: str, dtype: str, effort: Effort) -> dict[str, Any]:
    """Return samples of each limit: ``product`` in operations a second, ``copies``, ``launch`` in seconds.

    Those of a GPU are measured with CuPy; ImportError where it is not installed.
    """
    found = _of_cpu(dtype, effort) if device == "cpu" else _of_gpu(dtype, effort)
    side = SIDE[device]
    return {
        "product": [2 * side**3 / s for s in found[0]],
        "copies": [(size, [size / s for s in seconds]) for size, seconds in found[1]],
        "launch": found[2],
    }


_Found = tuple[list[float], list[tuple[int, list[float]]], list[float]]


def _samples(work: Callable[[], Any], effort: Effort) -> list[float]:
    work()
    return take_samples(work, effort.samples, effort.seconds / 2)


def _of_cpu(dtype: str, effort: Effort) -> _Found:
    import numpy as np

    from fastmlp.backends.cpu.limits import default_threads

    side, threads = SIDE["cpu"], default_threads()
    a, b, c = (np.ones((side, side), dtype) for _ in range(3))
    products = _samples(lambda: np.matmul(a, b, out=c), effort)
    return products, [(size, _copy_seconds(size, threads, effort)) for size in COPIED["cpu"]], [0.0]


def _copy_seconds(size: int, threads: int, effort: Effort) -> list[float]:
    """Return samples of the seconds of a copy of so many bytes, by one thread and by all: a small one gains by none."""
    found = []
    for count in sorted({1, threads}):
        part = size // 2 // count
        times = -(-WORK // (2 * part))
        calls = [_copying(part, times) for _ in range(count)]
        with ThreadPoolExecutor(count) as pool:

            def copy_all(calls: Any = calls, pool: Any = pool) -> None:
                list(pool.map(lambda call: call(), calls))

            work = calls[0] if count == 1 else copy_all
            found += [s * size / (2 * part * count * times) for s in _samples(work, effort)]
    return found


def _copying(part: int, times: int) -> Callable[[], None]:
    """Return a call that copies so many bytes so many times, each time to where a line of the cache further begins."""
    import numpy as np

    source, target = np.ones(part, np.uint8), np.zeros(part + LINE * (times - 1), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(target, part, writeable=True)[::LINE]
    return lambda: np.copyto(windows, source)


def _of_gpu(dtype: str, effort: Effort) -> _Found:
    import cupy

    side = SIDE["cuda"]
    a, b, c = (cupy.ones((side, side), dtype) for _ in range(3))

    def seconds(work: Callable[[], Any], times: int = 1) -> list[float]:
        def run() -> None:
            for _ in range(times):
                work()
            cupy.cuda.Device().synchronize()

        return [s / times for s in _samples(run, effort)]

    copies = []
    for size in COPIED["cuda"]:
        source, target = cupy.ones(size // 2, "u1"), cupy.empty(size // 2, "u1")
        copies.append((size, seconds(partial(cupy.copyto, target, source), (1 << 29) // size)))
    return seconds(lambda: cupy.matmul(a, b, out=c)), copies, seconds(launching(cupy), 1000)


def launching(cupy: Any) -> Callable[[], None]:
    """Return a call that launches a kernel that does nothing, compiled here: CuPy's own functions take longer."""
    from fastmlp.backends.cuda.sources import OPTIONS

    module = cupy.RawModule(code="__global__ void nothing() {}", options=OPTIONS, name_expressions=("nothing",))
    return partial(module.get_function("nothing"), (1,), (1,), ())


def pinned_threads(threads: int | None) -> dict[str, str]:
    """Return the variables that keep all libraries to so many threads; none where there is no wish."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {} if threads is None else dict.fromkeys(names, str(threads))


def pin(threads: int | None) -> None:
    """Keep this process to so many processors, for libraries that no variable tells, where the system can."""
    if threads is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
