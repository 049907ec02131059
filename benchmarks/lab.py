"""The kernel lab: operations by themselves, checked against NumPy and then timed; and how much of a step is products.

    python benchmarks/lab.py products      # the products of layers, by tiles and by the BLAS, one thread
    python benchmarks/lab.py step          # a training step beside its products alone, all threads
    python benchmarks/lab.py update        # what optimizers read and write, beside a copy of as many bytes, one thread

With --write the tables become sections of RESULTS.md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from fastmlp.kernels.cpu import products
from fastmlp.kernels.cpu.codes import BACKWARD, FORMS, FORWARD
from fastmlp.kernels.cpu.compiling import entry
from fastmlp.kernels.cpu.forward import multiply_features, reads_in_place
from fastmlp.kernels.cpu.operations import optimize, product
from fastmlp.kernels.cpu.products import multiply, multiply_by_transposed
from fastmlp.kernels.cpu.structures import Batch
from fastmlp.kernels.cpu.threads import barrier
from fastmlp.kernels.cpu.train import layer_gradient
from fastmlp.kernels.cpu.vectors import seen_as
from race import AVX2, data
from results import unpinned, write_section

import fastmlp
from fastmlp.backends.cpu.scratch import scratch_size
from fastmlp.backends.cpu.session import network_rule
from fastmlp.backends.cpu.threads import on_threads
from fastmlp.backends.data import HostData
from fastmlp.bench.tables import markdown_table as table
from fastmlp.bench.workloads import FIRST, WORKLOADS

SHAPES = [
    *((1, 784, 64), (16, 784, 64), (16, 64, 32), (16, 32, 10), (300, 784, 32), (300, 32, 128), (300, 128, 10)),
    *((300, 128, 16), (100, 784, 100), (100, 100, 10), (100, 100, 4), (64, 784, 512), (64, 512, 256), (64, 256, 10)),
    *((128, 784, 512), (128, 512, 512), (256, 768, 768), (512, 784, 1024), (512, 1024, 1024), (64, 2048, 2048)),
]
"""Rows, inputs, outputs: what one of two threads has to do with the layers of the race; and other classes than ten."""
SIZES = (1 << 16, 1 << 20, 1 << 22, 1 << 24)
OPTIMIZERS = [("SGD with momentum", fastmlp.SGD(momentum=0.9), 1), ("Adam", fastmlp.Adam(), 2)]


@entry
def products_of_steps(t, threads, net, data, buffers, memory, order, batch, steps):
    """Compute the products of training steps and nothing else, as `train_thread` does with a part for each thread."""
    dtype = buffers.params.dtype.type
    # with an alpha of 0 a BLAS computes nothing
    tiny, one = dtype(1e-30), dtype(1)
    passed = 0
    in_place, shared = reads_in_place(net, data, buffers.params, True), memory.parts.size > 0
    r0, r1 = batch * t // threads, batch * (t + 1) // threads
    n = r1 - r0
    layers = net.units.size - 1
    for s in range(steps):
        now = Batch(memory.x, memory.counting, 0, -1, batch, batch, 0, 0)
        if in_place:
            begin = s * batch
            now = Batch(seen_as(data.x, dtype), order, begin, begin + batch + (0 if shared else r0), batch, batch, 0, 0)
        if shared:
            multiply_features(net, buffers.params, now, memory, t, t, threads)
            passed += 1
            barrier(memory.arrivals, threads, passed)
        below, at, index, first, after = now.x, 0, now.index, now.first + r0, now.after
        for layer in range(layers):
            i, o = net.units[layer], net.units[layer + 1]
            start = net.z_at[layer] * batch + r0 * o
            w = net.weight_at[layer]
            if layer > 0 or not shared:
                multiply(
                    *(net.forms[layer, FORWARD], below, at, index, first, after, i, n, i, buffers.params, w, o),
                    *(memory.z, start, memory.panels[t]),
                )
            below, at, index, first, after = memory.z, start, memory.counting, 0, -1
        for layer in range(layers - 1, 0, -1):
            i, o = net.units[layer], net.units[layer + 1]
            start, lower = net.z_at[layer] * batch + r0 * o, net.z_at[layer - 1] * batch + r0 * i
            w = net.weight_at[layer]
            multiply_by_transposed(
                *(net.forms[layer, BACKWARD], memory.dz, start, memory.counting, n, o, buffers.params, w, i),
                *(memory.dz, lower, memory.panels[t]),
            )
        passed += 1
        barrier(memory.arrivals, threads, passed)
        for layer in range(layers):
            i, o = net.units[layer], net.units[layer + 1]
            first, stop = i * t // threads, i * (t + 1) // threads
            place = net.weight_at[layer] + first * o
            layer_gradient(*(net, now, memory, layer, first, stop, tiny, one, buffers.params, place, memory.panels[t]))
        passed += 1
        barrier(memory.arrivals, threads, passed)


def best(work: Callable[[], Any], rounds: int = 7) -> float:
    """Return the least seconds of some calls."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def rates(shape: tuple[int, int, int], which: int, dtype: np.dtype[Any], rounds: int = 7) -> dict[str, float]:
    """Check one of the three products of a layer in every form, time them in turn, and return their GFLOP/s."""
    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    x, w, d = (placed(rng.random(s).astype(dtype)) for s in ((rows, inputs), (inputs, outputs), (rows, outputs)))
    wanted = (lambda: x @ w, lambda: d @ w.T, lambda: x.T @ d)[which]()
    work = 2 * rows * inputs * outputs
    repeats = max(1, int(1e8 / work))
    calls = {}
    for form in products.available_forms():
        out, scratch = placed(np.zeros(wanted.shape, dtype)), placed(np.zeros(scratch_size(form, *shape, dtype), dtype))
        flat = (x.ravel(), w.ravel(), d.ravel(), *shape, np.arange(rows), out.ravel(), scratch)
        product(form, which, 1, *flat)
        np.testing.assert_allclose(out, wanted, rtol=1e-4)
        calls[FORMS[form]] = partial(product, form, which, repeats, *flat)
    seconds = {name: min(found) for name, found in in_turn(calls, rounds).items()}
    return {name: work * repeats / s / 1e9 for name, s in seconds.items()}


def placed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a copy that begins where a session's arrays do: elsewhere each vector may lie across two lines."""
    found = fastmlp.get_backend("numba").empty(array.shape, array.dtype)
    found[...] = array
    return found


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time calls in turn, round after round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(best(call, 1))
    return seconds


def compare_products(dtype: np.dtype[Any]) -> str:
    """Time the three products of a layer in every form."""
    lines = []
    backend = fastmlp.get_backend("numba")  # binds the BLAS
    for shape in SHAPES:
        for which, name in enumerate(("x w", "d w'", "x' d")):
            found = rates(shape, which, dtype)
            chosen = FORMS[backend.forms.of(which, *shape, dtype)]
            ratio = f"{found[chosen] / found['blas']:.2f}"
            lines.append(["{} x {} x {}".format(*shape), name, *(f"{r:.0f}" for r in found.values()), chosen, ratio])
            print(*lines[-1], flush=True)
    return table(["rows x inputs x outputs", "product", *(f"{n}, GFLOP/s" for n in found), "chosen", "to BLAS"], lines)


def multiply_on_threads(session: Any, shared: tuple[Any, ...], steps: int) -> None:
    """Compute the products of some steps on the threads of a session."""
    session.memory.arrivals[:] = 0
    on_threads(session.chosen.threads, lambda t: products_of_steps(t, session.chosen.threads, *shared, steps))


def compare_steps(workloads: list[str], rounds: int) -> str:
    """Time a step of gradient descent and its products alone, in turn."""
    lines = []
    for name in workloads:
        workload = WORKLOADS[name]
        x, y = data(workload)
        batch = workload.batch
        steps = min(
            len(x) // batch,
            max(1, int(2e11 / (6 * batch * sum(i * o for i, o in itertools.pairwise(workload.units))) / 4)),
        )
        x, y = x[: steps * batch], y[: steps * batch]
        model = fastmlp.MLP(workload.units, backend="numba", seed=0)
        train = partial(model.fit, x, y, epochs=1, batch_size=batch, optimizer=fastmlp.SGD(0.01), verbose=0)
        train()
        # the session that this training used, and its memory
        session = next(s for s in model._learner.sessions._idle if s.plan.optimizer is not None)
        record, buffers = session.data(HostData(x, y, None)), session.buffers(model._learner.state)
        order = np.random.default_rng(0).permutation(len(x))
        shared = (session.network, record, buffers, session.memory, order, batch)
        products_of_steps(0, 1, *shared, 0)
        multiply_all = partial(multiply_on_threads, session, shared, steps)
        pairs = [(best(train, 1) / steps, best(multiply_all, 1) / steps) for _ in range(rounds)]
        step, alone = (min(p[i] for p in pairs) for i in (0, 1))
        middle = statistics.median(b / a for a, b in pairs)
        lines.append([name, f"{step * 1e6:.1f}", f"{alone * 1e6:.1f}", f"{alone / step:.0%}", f"{middle:.0%}"])
    head = ["workload", "best step, us", "best products alone, us", "fraction of the bests", "median fraction"]
    return table(head, lines)


def compare_updates(dtype: np.dtype[Any], rounds: int) -> str:
    """Time optimizers' updates beside copies of as many bytes: what is the fastest that memory, or a cache, allows."""
    fastmlp.get_backend("numba")  # binds the BLAS
    real, lines = dtype.type, []
    for size, (name, optimizer, moments) in itertools.product(SIZES, OPTIMIZERS):
        rng = np.random.default_rng(0)
        p, g, *means = (rng.random(size).astype(dtype) for _ in range(2 + moments))
        buffers = [*means, *[np.zeros(0, dtype)] * (2 - moments)]
        numbers = [real(c) for c in (1e-3, 1.0, 1.0, 1.0)]
        # parameters and moments are read and written, a gradient is read
        moved = (2 * (1 + moments) + 1) * p.nbytes
        source = rng.random(moved // 2 // p.itemsize).astype(dtype)
        target = np.zeros_like(source)
        repeats = max(1, int(1e8 / moved))
        update = partial(_repeat, repeats, optimize, network_rule(optimizer, dtype), p, g, *buffers, *numbers)
        copy = partial(_repeat, repeats, np.copyto, target, source)
        update(), copy()
        seconds = in_turn({"update": update, "copy": copy}, rounds)
        middle = statistics.median(c / u for u, c in zip(seconds["update"], seconds["copy"], strict=True))
        rates = [f"{moved * repeats / min(seconds[what]) / 1e9:.1f}" for what in ("update", "copy")]
        lines.append([name, f"{size:,}", f"{moved // size}", *rates, f"{middle:.2f}"])
        print(*lines[-1], flush=True)
    head = ["optimizer", "parameters", "bytes each", "update, GB/s", "copy, GB/s", "update to copy, median"]
    return table(head, lines)


def _repeat(count: int, work: Callable[..., Any], *arguments: Any) -> None:
    for _ in range(count):
        work(*arguments)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["products", "step", "update"])
    parser.add_argument("--workloads", default=",".join(FIRST))
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--avx2", action="store_true", help="tell kernels and BLAS to use AVX2 at most")
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    options = parser.parse_args()
    unpinned(AVX2 if options.avx2 else {})
    if options.what == "products":
        title = f"Lab: products by tiles and by the BLAS, one thread, {options.dtype}"
        text = compare_products(np.dtype(options.dtype))
    elif options.what == "update":
        title = f"Lab: what optimizers read and write, beside a copy, one thread, {options.dtype}"
        text = compare_updates(np.dtype(options.dtype), options.rounds)
    else:
        title = "Lab: a step of gradient descent and its products alone"
        text = compare_steps(options.workloads.split(","), options.rounds)
    print(text)
    if options.write:
        write_section(title, text)


if __name__ == "__main__":
    main()
