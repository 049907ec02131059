"""What a user waits for and pays besides the steps: the first fit, one prediction, memory.

python benchmarks/limits.py            # --write makes it a section of RESULTS.md
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import tempfile
import time
import tracemalloc
from typing import Any

import numpy as np
from results import unpinned, write_section

import fastmlp
from fastmlp.bench.measures import peak_memory
from fastmlp.bench.tables import markdown_table as table
from fastmlp.doctor.fresh import in_fresh_process


def first_fit() -> float:
    """Return the seconds of the first fit of this process, all that it needs imported."""
    for needed in ("numba", "sklearn.base"):
        importlib.import_module(needed)
    x, y = np.random.default_rng(0).random((6400, 784), np.float32), np.arange(6400) % 10
    start = time.perf_counter()
    fastmlp.MLP((784, 64, 32, 10), backend="numba", seed=0).fit(x, y, epochs=1, batch_size=32, verbose=0)
    return time.perf_counter() - start


def one_row() -> dict[str, tuple[float, float]]:
    """Return the least and the median seconds of a prediction of one row, by two ways."""
    model = fastmlp.MLP((784, 64, 32, 10), backend="numba", seed=0)
    x = np.random.default_rng(0).random((64, 784), np.float32)
    model.fit(x, np.arange(64) % 10, epochs=1, verbose=0)  # nobody asks one that was not trained
    x = x[:1]
    row, predictor, found = x[0], model.predictor(), {}
    for name, call in {"predictor": lambda: predictor(row), "predict": lambda: model.predict(x)}.items():
        seconds = []
        for _ in range(20000):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        found[name] = min(seconds), float(np.median(seconds))
    return found


def memory(backend: str) -> tuple[int, int | None]:
    """Return the most bytes that a fit allocates at a time beyond its data, and that this process has held."""
    from fastmlp.datasets import load_mnist

    (x, y), _ = load_mnist()
    fit: dict[str, Any] = {"epochs": 1, "batch_size": 128, "optimizer": fastmlp.Adam(1e-3), "verbose": 0}
    fastmlp.MLP((784, 512, 256, 10), backend=backend, seed=0).fit(x[:1280], y[:1280], **fit)
    model = fastmlp.MLP((784, 512, 256, 10), backend=backend, seed=0)
    tracemalloc.start()
    model.fit(x, y, **fit)
    return tracemalloc.get_traced_memory()[1], peak_memory()


def measured(function: str, cache: str | None = None, **arguments: str) -> Any:
    """Return what a function of this file finds in a fresh process."""
    environment = {} if cache is None else {"NUMBA_CACHE_DIR": cache}
    return in_fresh_process(f"limits:{function}", arguments, timeout=600.0, environment=environment)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    options = parser.parse_args()
    unpinned()
    empty, warm = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            empty.append(measured("first_fit", cache))
            warm.append(measured("first_fit", cache))
    measured("one_row")
    rows = [measured("one_row") for _ in range(options.rounds)]
    lines = [
        ["first fit, nothing compiled yet, s", f"{min(empty):.1f}", f"{statistics.median(empty):.1f}"],
        ["first fit of a process, compiled code on disk, s", f"{min(warm):.2f}", f"{statistics.median(warm):.2f}"],
    ]
    for name, call in {"predictor": "`model.predictor()`", "predict": "`predict`"}.items():
        best, middle = min(r[name][0] for r in rows), statistics.median(r[name][1] for r in rows)
        lines.append([f"one row of 784-64-32-10 by {call}, us", f"{best * 1e6:.1f}", f"{middle * 1e6:.1f}"])
    (numpy_bytes, numpy_resident), (own, resident) = (measured("memory", backend=name) for name in ("numpy", "numba"))
    text = (
        table(["what", "best", "median"], lines)
        + "\n\n784-512-256-10 with Adam, batches of 128, on 60,000 float32 rows: a fit on NumPy allocates at most "
        + f"{numpy_bytes / 2**20:.1f} MiB beyond the data at a time, on Numba {own / 2**20:.1f} MiB "
        + f"({own / numpy_bytes:.2f} times as much). The process, its data (180 MiB) and the compiler included, takes "
        + f"up to {numpy_resident / 2**20:.0f} MiB on NumPy and {resident / 2**20:.0f} MiB on Numba."
    )
    print(text)
    if options.write:
        write_section("Limits: the first fit, one row, memory", text)


if __name__ == "__main__":
    main()
