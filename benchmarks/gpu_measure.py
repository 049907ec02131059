"""What the stages of `gpu_day` have in common: CuPy or its double, networks and data, and how a GPU is timed."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import products as own_products

HERE = Path(__file__).resolve().parent
Found = dict[str, Any]
"""What a stage has found: its figures, under ``text`` what a reader wants to see first, ``failed`` where it did."""

NETWORKS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "784-64-32-10, 32": ((784, 64, 32, 10), 32, {}),
    "784-512-256-10, 128": ((784, 512, 256, 10), 128, {"activation": "gelu"}),
    "37-130-600, 77": ((37, 130, 600), 77, {"activation": "tanh"}),
    "784-1024-1024-10, 1024": ((784, 1024, 1024, 10), 1024, {}),
}
"""Units, rows of a batch and the rest: small, middling, wider than a warp can look at, and large."""


def failing(found: Found, reason: str) -> Found:
    """Return what a stage has found, with the reason for which it failed, where there is one."""
    return found | ({"failed": f"{reason}\n\n{found['text']}"} if reason else {})


def use_the_double() -> None:
    """Put the double of CuPy that the tests have in CuPy's place."""
    global MOST_CALLS
    MOST_CALLS = 2
    tests = HERE.parent / "tests"
    sys.path += [str(tests), str(tests / "cuda")]
    import cupy_double
    import cupy_nccl

    from fastmlp.backends.cuda import nccl, operations
    from fastmlp.backends.registry import Availability

    cupy_backend.kept_path = lambda what, here: None  # its time means nothing
    operations.load_cublas = lambda: cupy_double.cublas_library
    cupy_backend.import_cupy = lambda: cupy_double
    nccl.import_nccl = lambda: cupy_nccl
    cupy_backend.probe = lambda: Availability(True, "the double of CuPy")


def cupy() -> Any:
    """Return CuPy, or its double."""
    return cupy_backend.import_cupy()


MOST_CALLS = 4096
"""Of what is timed, between two events."""


def median_ms(work: Callable[[], Any], least_ms: float = 20.0, samples: int = 5) -> float:
    """Return the milliseconds of a call, by events on the device: the median of some samples of `least_ms` or more."""
    cuda = cupy().cuda
    begin, end, count, found = cuda.Event(), cuda.Event(), 1, []
    stream = cuda.get_current_stream()
    work()
    while len(found) < samples:
        begin.record(stream)
        for _ in range(count):
            work()
        end.record(stream)
        end.synchronize()
        milliseconds = float(cuda.get_elapsed_time(begin, end))
        if milliseconds < least_ms and count < MOST_CALLS:
            wanted = 2 * count if milliseconds <= 0 else int(count * 1.3 * least_ms / milliseconds) + 1
            count = min(wanted, MOST_CALLS)
            continue
        found.append(milliseconds / count)
    return max(statistics.median(found), 1e-6)  # the double's copies take no time


def graph_us(work: Callable[[], Any], launches: int, stream: Any) -> float:
    """Return the microseconds of a launch within a graph of some: no host is in the way, and nothing runs beside it."""
    stream.wait_event(cupy().cuda.get_current_stream().record())
    with stream:
        work()
        stream.synchronize()
        stream.begin_capture()
        for _ in range(launches):
            work()
        graph = stream.end_capture()
        return median_ms(lambda: graph.launch(stream), 2.0, 3) / launches * 1e3


def blobs(units: tuple[int, ...], rows: int) -> tuple[Any, Any]:
    """Return inputs and labels that can be told apart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, units[0])).astype("f4")
    return x, np.abs(x[:, : units[-1]] if units[0] >= units[-1] else x @ rng.normal(size=(units[0], units[-1]))).argmax(
        1
    )


@contextlib.contextmanager
def own_alone() -> Iterator[None]:
    """Let captured steps do without cuBLAS."""
    with mock.patch.object(own_products, "WORTH", dict.fromkeys(own_products.WORTH, float("inf"))):
        yield
