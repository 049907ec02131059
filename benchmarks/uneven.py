"""What it gives to divide a step into more parts than threads, where cores are equally fast and where one is not.

    python benchmarks/uneven.py            # --write makes it a section of RESULTS.md

A program that takes one core for half of the time, a third of a millisecond at once, makes it a slow one, as those that
processors have for little work, and those that others use.  On Linux, which lets it have that core alone.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from race import data
from results import unpinned, write_section

import fastmlp
from fastmlp.backends.cpu.forms import Forms
from fastmlp.bench.tables import markdown_table as table
from fastmlp.bench.workloads import WORKLOADS, Workload

SHARES = (1, 2, 4)
"""Parts for each thread."""
SECONDS = 0.2
"""Of a call, at least."""
SLOWS_DOWN = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
while True:
    until = time.perf_counter() + 3e-4
    while time.perf_counter() < until:
        pass
    time.sleep(2e-4)  # it is woken up some time later
"""


@contextmanager
def slowed(core: int) -> Iterator[None]:
    """Let another program take a core for half of the time."""
    other = subprocess.Popen([sys.executable, "-c", SLOWS_DOWN, str(core)])
    try:
        time.sleep(0.5)
        yield
    finally:
        other.kill()
        other.wait()


def seconds_of_steps(workload: Workload, threads: int, rounds: int) -> dict[int, list[float]]:
    """Return the seconds of a step by the parts for each thread, measured in turn; forms of products are the rule's."""
    x, y = data(workload)
    steps, calls, found = 1, {}, {}
    backend = fastmlp.get_backend("numba", products="rule", threads=threads)
    for shares in SHARES:
        Forms.parts_for = lambda *_, shares=shares: shares * threads
        model = fastmlp.MLP(workload.units, seed=0, backend=backend)
        calls[shares] = partial(model.fit, epochs=1, batch_size=workload.batch, optimizer=fastmlp.SGD(0.01), verbose=0)
        calls[shares](x[: workload.batch], y[: workload.batch])  # the session of these parts is kept
        found[shares] = []
    most = len(x) // workload.batch
    while 2 * steps <= most and timed(calls[1], x, y, steps * workload.batch) < SECONDS:
        steps *= 2
    for _ in range(rounds):
        for shares, call in calls.items():
            found[shares].append(timed(call, x, y, steps * workload.batch) / steps)
    return found


def timed(call: partial[object], x: np.ndarray, y: np.ndarray, rows: int) -> float:
    """Return the seconds of a call on the first rows."""
    start = time.perf_counter()
    call(x[:rows], y[:rows])
    return time.perf_counter() - start


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="hundred,mid,w512,w2048,batch4096,big")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    options = parser.parse_args()
    unpinned()
    cores = sorted(os.sched_getaffinity(0))
    lines = []
    for name in options.workloads.split(","):
        workload = WORKLOADS[name]
        even = seconds_of_steps(workload, len(cores), options.rounds)
        with slowed(cores[-1]):
            uneven = seconds_of_steps(workload, len(cores), options.rounds)
        for shares in SHARES:
            cells = []
            for found in (even, uneven):
                gain = statistics.median(one / own for one, own in zip(found[1], found[shares], strict=True))
                cells += [f"{1e6 * statistics.median(found[shares]):.0f}", f"{gain:.2f}"]
            lines.append([name, str(shares), *cells])
            print(*lines[-1], flush=True)
    head = ["workload", "parts a thread", "equal cores, us a step", "gain", "one slow core, us a step", "gain"]
    text = f"{options.rounds} rounds in turn, medians; SGD on {len(cores)} threads.\n\n{table(head, lines)}"
    print(text)
    if options.write:
        write_section("Uneven cores: more parts than threads", text)


if __name__ == "__main__":
    main()
