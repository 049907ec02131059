"""Part 2 of `gpu_day`, how fast it is."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
import time
from typing import Any
from unittest import mock

import numpy as np
from gpu_measure import NETWORKS, Found, blobs, cupy, failing, graph_us, own_alone
from gpu_right import noted

import fastmlp
from fastmlp.backends.cuda import products as own_products
from fastmlp.backends.cuda import step as cuda_step
from fastmlp.backends.cuda.memory import WORKSPACE
from fastmlp.bench.tables import markdown_table as table

WAYS: dict[str, tuple[dict[str, Any], Any]] = {
    "captured": ({"way": "captured"}, contextlib.nullcontext),
    "own kernels alone": ({"way": "captured"}, own_alone),
    "eager": ({"way": "eager"}, contextlib.nullcontext),
    "eager, TF32": ({"tf32": True}, contextlib.nullcontext),
}
"""Options of the backend, and what else is arranged."""


def microseconds_a_step(where: Any, units: Any, batch: int, x: Any, y: Any, epochs: int, dtype: str) -> float:
    """Return what a step takes: the difference of a long `fit` and a short one, so that what each does once is out."""
    model = fastmlp.MLP(units, backend=where, seed=0, dtype=dtype)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        model.fit(x, y, epochs=count, batch_size=batch, optimizer=fastmlp.Adam(), verbose=0)
        return time.perf_counter() - began

    seconds(1)
    short, long = (min(seconds(count) for _ in range(2)) for count in (1, 1 + epochs))
    model.close()
    return (long - short) / (epochs * -(-len(x) // batch)) * 1e6


def steps(dry: bool) -> Found:
    """Time a step of four networks at batches of 32 to 4096, in each of the ways that it can run."""
    networks = [(784, 64, 32, 10), (784, 512, 256, 10), (784, 1024, 1024, 10), (784, 2048, 10)]
    cases: list[tuple[tuple[int, ...], int, str]] = [((12, 8, 3), 8, "float32")]
    if not dry:
        cases = [(*case, "float32") for case in itertools.product(networks, (32, 128, 512, 1024, 4096))]
        cases += [((784, 512, 256, 10), 128, "float64"), ((784, 1024, 1024, 10), 1024, "float64")]
    rows, found = [], []
    for units, batch, dtype in cases:
        count = 1 if dry else 2 + 200 // max(1, min(64, 60000 // batch))  # epochs that take 200 steps or more
        x, y = blobs(units, 20 if dry else min(64 * batch, 60000) // batch * batch)
        x, y = cupy().asarray(x), cupy().asarray(y)
        times = {}
        for name, (options, around) in WAYS.items():
            with around():
                where = fastmlp.get_backend("cupy", **options)
                times[name] = microseconds_a_step(where, units, batch, x, y, count, dtype)
        found.append({"units": units, "batch": batch, "dtype": dtype, **times})
        flops = 6.0 * batch * sum(i * o for i, o in itertools.pairwise(units))
        figures = [f"{t:.1f}" for t in times.values()]
        rate = f"{flops / min(times.values()) / 1e6:.1f}"
        rows.append(["-".join(map(str, units)), batch, dtype, f"{flops:.2g}", *figures, rate])
    text = table(["units", "batch", "type", "operations", *(f"{w}, us" for w in WAYS), "TFLOP/s"], rows)
    return {"steps": found, "text": text}


SHAPES = [
    (32, 784, 64), (32, 64, 32), (128, 784, 512), (128, 512, 256), (512, 784, 512), (512, 512, 512), (512, 512, 10),
    (1024, 784, 1024), (1024, 1024, 1024), (1024, 2048, 2048), (4096, 784, 128), (4096, 1024, 1024),
]  # fmt: skip
"""Rows, inputs, outputs."""


class Layer:
    """A layer whose three products are timed, with what follows each: by own kernels or by cuBLAS."""

    def __init__(self, n: int, i: int, o: int, dtype: str) -> None:
        cp, rng = cupy(), np.random.default_rng(0)
        self.sizes = {"x w": (n, o, i), "d w'": (n, i, o), "x' d": (i, o, n)}
        shapes = (n, i), (i, o), (n, o), (o,), (n, o), (n, i)
        self._arrays = [cp.asarray(rng.normal(size=shape).astype(dtype)) for shape in shapes]
        self._gradients = cp.empty((own_products.SLABS * (i + 1) * o,), np.dtype(dtype))
        self._cursor = cp.asarray(np.zeros(3, np.int64))

    def multiply(self, products: Any, kind: str) -> None:
        """Queue one of the products."""
        x, w, dz, b, z, dx = self._arrays
        n, i, o = *x.shape, len(b)
        if kind == "x w":
            products.forward(x, w, b, z, None, "relu", None, self._cursor, 0)
        elif kind == "d w'":
            products.input_gradient(dz, w, dx, "relu", x, None)
        else:
            dw, db = self._gradients, self._gradients[i * o :]
            products.weight_gradient(x, dz, dw, db, (i + 1) * o, products.slabs(n, i, o))

    def times(self, own: Any, blas: Any, kind: str, stream: Any, launches: int) -> dict[Any, float]:
        """Return microseconds at each tile and by cuBLAS."""
        found = {}
        for tile in own_products._EFFICIENCY:
            with mock.patch.object(own_products, "choose_tile", lambda *_, tile=tile, **__: tile):
                found[tile] = graph_us(lambda: self.multiply(own, kind), launches, stream)
        return found | {"cuBLAS": graph_us(lambda: self.multiply(blas, kind), launches, stream)}


def products(dry: bool) -> Found:
    """Time each product of a layer at each tile, beside cuBLAS and what follows it, all in graphs."""
    cp, rows, found = cupy(), [], []
    where: Any = fastmlp.get_backend("cupy", way="captured")
    multiprocessors = where.multiprocessors
    own = own_products.OwnProducts(where, multiprocessors)
    blas = own_products.BlasProducts(where, multiprocessors, where.graph_blas)
    stream = cp.cuda.Stream(non_blocking=True)
    memory = cp.empty((WORKSPACE,), np.dtype("u1"))
    for dtype, (n, i, o) in itertools.product(("float32", "float64"), [(20, 12, 8)] if dry else SHAPES):
        layer = Layer(n, i, o, dtype)
        for kind, sizes in layer.sizes.items():
            where.graph_blas.bind([(stream, memory)])
            times = layer.times(own, blas, kind, stream, 2 if dry else 20)
            chosen = own_products.choose_tile(*sizes, multiprocessors, slabs=kind == "x' d")
            found.append({"dtype": dtype, "sizes": (n, i, o), "kind": kind, "us": times, "chosen": chosen})
            least = min(times[tile] for tile in own_products._EFFICIENCY)
            ratios = f"{times[chosen] / least:.2f}", f"{times['cuBLAS'] / times[chosen]:.2f}"
            rate, each = f"{2e-6 * n * i * o / min(times.values()):.1f}", f"{n * i * o / multiprocessors:.2g}"
            figures = [f"{t:.1f}" for t in times.values()]
            rows.append([dtype, f"{n} x {i} x {o}", each, kind, *figures, chosen, *ratios, rate])
    tiles = [f"tile {tile}, us" for tile in own_products._EFFICIENCY]
    head = ["type", "batch x in x out", "each SM", "product", *tiles, "cuBLAS", "chosen", "lost", "own is x cuBLAS"]
    return {"products": found, "text": table([*head, "TFLOP/s"], rows)}


def kernels(dry: bool) -> Found:
    """Time each launch of a step by itself, in graphs."""
    cp, rows, found = cupy(), [], []
    for name, (units, batch, network) in list(NETWORKS.items())[: 1 if dry else None]:
        if dry:
            units, batch = (12, 8, 5, 3), 8
        x, y = blobs(units, batch * 6)
        model = fastmlp.MLP(units, backend=fastmlp.get_backend("cupy", way="captured"), seed=0, **network)
        made: list[Any] = []
        capture = cuda_step.TrainingStep._graph

        def kept(self: Any, *args: Any, made: Any = made, capture: Any = capture) -> Any:
            made.append(self)
            return capture(self, *args)

        with mock.patch.object(cuda_step.TrainingStep, "_graph", kept):
            options = {"epochs": 1, "batch_size": batch, "optimizer": fastmlp.Adam(), "verbose": 0}
            model.fit(cp.asarray(x), cp.asarray(y), **options)
        step, times = made[-1], []
        with step._own_stream():
            step.memory["cursor"][...] = 0
            for call in step._calls(batch):

                def launch(call: Any = call) -> None:
                    call.start(call.args)

                times.append((call.kernel, graph_us(launch, 2 if dry else 20, step._stream)))
        found.append({"network": name, "kernels": times})
        rows += [[name, kernel, f"{us:.1f}"] for kernel, us in times]
        rows.append([name, "all of them", f"{sum(us for _, us in times):.1f}"])
        model.close()
    return {"kernels": found, "text": table(["network, batch", "kernel", "us"], rows)}


def race(dry: bool) -> Found:
    """Let fastmlp, PyTorch and JAX train beside each other, as `gpu_race.py` does."""
    import gpu_race

    if dry:
        return {"text": "not in a dry run: PyTorch and JAX need the device"}
    workloads = ["viblo", "keras", "hundred", "mid", "big"]
    contenders = [name for name in gpu_race.CONTENDERS if name not in ("fastmlp-captured", "fastmlp-eager")]
    raced, silent = gpu_race.race(workloads, contenders, 1, 2)
    return failing({"figures": raced, "text": gpu_race.as_table(raced)}, silent)


def limits(dry: bool) -> Found:
    """Look at a first fit 8,192 wide, at memory, at a row at a time, and at eight threads that predict."""
    pool, found = cupy().get_default_memory_pool(), {}
    units, batch = ((12, 16, 3), 8) if dry else ((784, 8192, 8192, 10), 1024)
    x, y = blobs(units, batch * 4)
    began = time.perf_counter()
    model = fastmlp.MLP(units, backend=fastmlp.get_backend("cupy", way="eager" if dry else "auto"), seed=0)
    with noted() as lines:
        model.fit(x, y, epochs=1, batch_size=batch, verbose=0)
    found |= {"first fit, s": time.perf_counter() - began, "said": lines}
    found["pool after it, MB"] = (pool.used_bytes() + pool.free_bytes()) / 1e6
    model.close()
    small = fastmlp.MLP((784, 64, 32, 10), backend=fastmlp.get_backend("cupy", way="captured"), seed=0)
    rows = blobs((784, 10), 100 if dry else 60000)[0]
    for count, repeats in ((len(rows), 3), (100, 200), (1, 200)):
        small.predict(rows[:count])
        seconds = []
        for _ in range(2 if dry else repeats):
            began = time.perf_counter()
            small.predict(rows[:count])
            seconds.append(time.perf_counter() - began)
        found[f"{count:,} rows, us"] = statistics.median(seconds) * 1e6
    expected, wrong = small.predict_proba(rows[:50]), []

    def predict() -> None:
        for _ in range(2 if dry else 50):
            if not np.array_equal(small.predict_proba(rows[:50]), expected):
                wrong.append(1)

    threads = [threading.Thread(target=predict) for _ in range(8)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found |= {"eight threads, s": time.perf_counter() - began, "eight threads, wrong": len(wrong)}
    found["text"] = "; ".join(f"{k}: {v}" for k, v in found.items())
    return failing(found, "threads predict wrong numbers" if wrong else "")


AUTO_SHAPES, AUTO_SECONDS = ("tiny", "viblo", "mid", "w2048", "w4096"), 110.0
"""Shapes on "auto", and the seconds after which none is begun: the self-test before takes half of what is left."""


def auto(dry: bool) -> Found:
    """Look what ``backend="auto"`` takes and gives away, as `auto.py` does: a round of few shapes."""
    import auto as script

    if dry:
        return {"text": "not in a dry run: its processes have no double of CuPy"}
    found, said = script.race(AUTO_SHAPES, 1, 1.0, AUTO_SECONDS)
    text, too_much = script.table(AUTO_SHAPES, found, said)
    return failing({"runs": found, "text": text}, "more is given away than was asked for" if too_much else "")


def bench(dry: bool) -> Found:
    """Run ``fastmlp bench --quick --peers``."""
    if dry:
        return {"text": "not in a dry run: its processes have no double of CuPy"}
    from fastmlp.bench.contenders import entrants
    from fastmlp.bench.measures import QUICK
    from fastmlp.bench.running import affordable, run
    from fastmlp.bench.tables import command_line, markdown
    from fastmlp.bench.workloads import QUICK_FIRST, WORKLOADS

    who = entrants(None, True, gpu=True)
    workloads, notes = affordable([WORKLOADS[name] for name in QUICK_FIRST], who, QUICK)
    results = run(workloads, who, QUICK, seed=0, command=command_line(["--quick", "--peers"]))
    results.notes += notes
    return {"results": results.to_dict(), "text": markdown(results)}
