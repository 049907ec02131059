"""What a user waits for and pays besides the steps: the first fit, one prediction, memory.

python benchmarks/limits.py            # --write makes it a section of RESULTS.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from typing import Any

from results import unpinned, write_section

from fastmlp.bench.tables import markdown_table as table

FIRST_FIT = """
    import time, numpy as np, fastmlp, numba, sklearn.base
    x, y = np.random.default_rng(0).random((6400, 784), np.float32), np.arange(6400) % 10
    start = time.perf_counter()
    fastmlp.MLP((784, 64, 32, 10), backend="numba", seed=0).fit(x, y, epochs=1, batch_size=32, verbose=0)
    print(time.perf_counter() - start)
"""
ONE_ROW = """
    import json, time, numpy as np, fastmlp
    model = fastmlp.MLP((784, 64, 32, 10), backend="numba", seed=0)
    x = np.random.default_rng(0).random((1, 784), np.float32)
    row, predictor, found = x[0], model.predictor(), {}
    for name, call in {"predictor": lambda: predictor(row), "predict": lambda: model.predict(x)}.items():
        seconds = []
        for _ in range(20000):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        found[name] = [min(seconds), float(np.median(seconds))]
    print(json.dumps(found))
"""
MEMORY = """
    import json, sys, tracemalloc, numpy as np, fastmlp, resource
    from fastmlp.datasets import load_mnist
    (x, y), _ = load_mnist()
    x = x.reshape(len(x), -1).astype(np.float32) / np.float32(255)
    fit = dict(epochs=1, batch_size=128, optimizer=fastmlp.Adam(1e-3), verbose=0)
    fastmlp.MLP((784, 512, 256, 10), backend=sys.argv[1], seed=0).fit(x[:1280], y[:1280], **fit)
    model = fastmlp.MLP((784, 512, 256, 10), backend=sys.argv[1], seed=0)
    tracemalloc.start()
    model.fit(x, y, **fit)
    print(json.dumps([tracemalloc.get_traced_memory()[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def run(code: str, *arguments: str, cache: str | None = None) -> Any:
    """Return what a fresh process prints, read as JSON."""
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    command = [sys.executable, "-P", "-c", textwrap.dedent(code), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


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
            empty.append(run(FIRST_FIT, cache=cache))
            warm.append(run(FIRST_FIT, cache=cache))
    run(ONE_ROW)
    rows = [run(ONE_ROW) for _ in range(options.rounds)]
    lines = [
        ["first fit, nothing compiled yet, s", f"{min(empty):.1f}", f"{statistics.median(empty):.1f}"],
        ["first fit of a process, compiled code on disk, s", f"{min(warm):.2f}", f"{statistics.median(warm):.2f}"],
    ]
    for name, call in {"predictor": "`model.predictor()`", "predict": "`predict`"}.items():
        best, middle = min(r[name][0] for r in rows), statistics.median(r[name][1] for r in rows)
        lines.append([f"one row of 784-64-32-10 by {call}, us", f"{best * 1e6:.1f}", f"{middle * 1e6:.1f}"])
    (numpy_bytes, numpy_resident), (own, resident) = (run(MEMORY, backend) for backend in ("numpy", "numba"))
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
