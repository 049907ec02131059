"""Train one network on a GPU in fastmlp, PyTorch and JAX in turn, and print medians and spreads.

    python benchmarks/gpu_race.py                                  # five workloads, whoever is installed
    python benchmarks/gpu_race.py --workloads viblo,w8192 --rounds 7
    python benchmarks/gpu_race.py --floor w8192    # a step beside its products and the optimizer's bytes

The race is even: the data set lies on the device before the clock starts, every contender gathers each batch there by a
new order of rows, in float32 without TF32, with Adam.  PyTorch runs step by step, and as a CUDA graph with
``Adam(fused=True, capturable=True)`` whose steps find their rows by a counter on the device, one step a graph and
sixteen; JAX compiles an epoch as one scan.  Each contender of each round is a process of its own, over all workloads.
A figure is the difference of a long training and a short one, so that what each does once (memory, graphs, checks) is
left out, in microseconds a step; the table gives the median of all such differences, the least and the largest.

Where there is no GPU it says so, and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from race import data, raced

from fastmlp.bench import peers
from fastmlp.bench.contenders import Contender, own, peer
from fastmlp.bench.workloads import FIRST, MOST_STEPS, WORKLOADS, Rows, Workload

MORE = 3
"""Epochs that the long training of a difference has more than the short one."""

CONTENDERS: dict[str, Contender] = {
    "torch": peer("PyTorch", "torch", "cuda", peers.torch_eager),
    "torch-graph": peer("PyTorch CUDA graph", "torch", "cuda", peers.torch_graph(1)),
    "torch-graph-16": peer("PyTorch CUDA graph", "torch", "cuda", peers.torch_graph(16)),
    "jax": peer("JAX", "jax", "cuda", peers.jax_scan),
    "fastmlp-captured": own("cupy", way="captured"),
    "fastmlp-eager": own("cupy", way="eager"),
    "fastmlp": own("cupy"),
}


def whole_batches(workload: Workload) -> Rows:
    """Return the rows of whole batches alone, which every contender trains alike."""
    x, y = data(workload)
    steps = min(len(x) // workload.batch, MOST_STEPS)
    return Rows(x[: steps * workload.batch], y[: steps * workload.batch], x, steps)


def measure(workloads: list[str], contender: str, repeats: int) -> dict[str, list[float]]:
    """Return for each workload the seconds of a step of Adam, `repeats` times, measured in this process."""
    found = {}
    for name in workloads:
        workload = WORKLOADS[name]
        rows = whole_batches(workload)
        train = CONTENDERS[contender].make(workload, workload.spec(), rows, 0).train

        def seconds(epochs: int, train: Callable[[int], Any] = train) -> float:
            start = time.perf_counter()
            train(epochs)
            return time.perf_counter() - start

        seconds(2)
        found[name] = [(seconds(1 + MORE) - seconds(1)) / (MORE * rows.steps) for _ in range(repeats)]
    return found


def floor(workload: str, repeats: int) -> str:
    """Return what a step takes, beside its products alone by cuBLAS and the optimizer's bytes at copy bandwidth."""
    import cupy

    from fastmlp.backends.cuda.blas import CuBlas

    chosen = WORKLOADS[workload]
    batch, blas = chosen.batch, CuBlas(cupy)

    def seconds(work: Callable[[], Any], count: int) -> float:
        work()
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        found = []
        for _ in range(repeats):
            begin.record()
            for _ in range(count):
                work()
            end.record()
            end.synchronize()
            found.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3 / count)
        return statistics.median(found)

    sizes = list(itertools.pairwise(chosen.units))
    arrays = [
        (cupy.ones((batch, i), "f4"), cupy.ones((i, o), "f4"), cupy.ones((batch, o), "f4"), k)
        for k, (i, o) in enumerate(sizes)
    ]
    gradients = [cupy.empty((i, o), "f4") for i, o in sizes]

    def products() -> None:
        for x, w, dz, layer in arrays:
            blas.forward(x, w, dz)
            blas.weight_gradient(x, dz, gradients[layer])
            if layer:
                blas.input_gradient(dz, w, x)

    a, b = cupy.ones(1 << 28, "u1"), cupy.empty(1 << 28, "u1")
    bandwidth = 2 * a.nbytes / seconds(lambda: b.__setitem__(Ellipsis, a), 5)
    parameters = sum(i * o + o for i, o in sizes)
    alone, update = seconds(products, 5), 28 * parameters / bandwidth  # Adam reads p, g, m, v and writes p, m, v
    step = statistics.median(measure([workload], "fastmlp-eager", repeats)[workload])
    return (
        f"{workload}: a step {step * 1e6:.0f} us; its products alone by cuBLAS {alone * 1e6:.0f} us, the optimizer's "
        f"{28 * parameters:,} bytes at {bandwidth / 1e9:.0f} GB/s {update * 1e6:.0f} us: "
        f"{step / (alone + update):.2f} times their sum"
    )


def main() -> None:
    """Race, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(FIRST))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="differences that a process takes of a workload")
    parser.add_argument("--floor", metavar="WORKLOAD", help="a step beside its products and the optimizer's bytes")
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    options = parser.parse_args()
    import fastmlp

    found = fastmlp.available_backends()["cupy"]
    if not found.available:
        print(f"No GPU race here: {found.reason}")
        return
    if options.floor:
        print(f"{found.reason}\n{floor(options.floor, options.repeats)}")
        return
    figures, silent = race(options.workloads.split(","), options.contenders.split(","), options.rounds, options.repeats)
    text = as_table(figures)
    print(f"{found.reason}\n\n{text}")
    if silent:
        sys.exit(silent)
    if options.write:
        from results import write_section

        write_section("GPU race: training with Adam", f"{found.reason}; {options.rounds} rounds.\n\n{text}")


def race(
    workloads: list[str], contenders: list[str], rounds: int, repeats: int
) -> tuple[dict[str, dict[str, list[float]]], str]:
    """Return for each workload and contender the seconds of a step, as often as they were measured; and who was silent.

    A contender that is installed and measured nothing is told, with the workloads, in words; the others' figures stand.
    """
    names = [c for c in contenders if importlib.util.find_spec(CONTENDERS[c].module.partition(".")[0])]
    found: dict[str, dict[str, list[float]]] = {w: {c: [] for c in names} for w in workloads}
    for _ in range(rounds):
        for name in names:
            measured = raced("gpu_race:measure", workloads=workloads, contender=name, repeats=repeats)
            for workload, seconds in (measured or {}).items():
                found[workload][name] += seconds
    silent = [f"{name} ({workload})" for workload, by in found.items() for name in names if not by[name]]
    if not names:
        silent = ["all: none of them is installed"]
    return found, f"measured nothing: {', '.join(silent)}; the reason was printed above" if silent else ""


def as_table(found: dict[str, dict[str, list[float]]]) -> str:
    """Return the medians and spreads of a race."""
    from fastmlp.bench.tables import markdown_table as table

    rows = []
    for workload, by in found.items():
        medians = {c: statistics.median(s) for c, s in by.items() if s}
        for name, median in medians.items():
            ratios = [f"{medians[peer] / median:.2f}" if peer in medians else "" for peer in ("torch-graph-16", "jax")]
            network = "-".join(map(str, WORKLOADS[workload].units))
            times = [f"{s * 1e6:.1f}" for s in (median, min(by[name]), max(by[name]))]
            rows.append([workload, f"{network}, {WORKLOADS[workload].batch}", name, *times, *ratios])
    head = [
        "workload",
        "units, batch",
        "contender",
        "median, us a step",
        "least",
        "largest",
        "x torch-graph-16",
        "x jax",
    ]
    return table(head, rows)


if __name__ == "__main__":
    main()
