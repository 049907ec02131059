"""Operations, steps, epochs and predictions on every backend, with pytest-benchmark.

    pytest -n0 --dist=no benchmarks/test_speed.py    # it measures nothing beside other workers

One group for each operation, or network, and size, one line for each backend; `--benchmark-group-by=param:backend`
turns that round.  Steps and epochs are those of `fastmlp bench`: its workloads, by its contenders.  Timed assertions
are nowhere: compare the lines, or runs with `--benchmark-autosave` and `--benchmark-compare`.
"""

from dataclasses import replace

import numpy as np
import pytest

import fastmlp
from fastmlp.bench.contenders import contender
from fastmlp.bench.measures import QUICK
from fastmlp.bench.workloads import WORKLOADS, rows_of

pytest.importorskip("pytest_benchmark")

BACKENDS = [name for name, found in fastmlp.available_backends().items() if found.available]
SIZES = [(32, 784, 64), (600, 784, 32), (128, 784, 512)]
"""Rows, inputs, outputs."""
NETWORKS = ("viblo", "hundred", "mid")


@pytest.fixture(params=BACKENDS)
def backend(request):
    return fastmlp.get_backend(request.param)


@pytest.fixture(params=SIZES, ids=lambda size: "x".join(map(str, size)))
def layer(request, backend):
    rows, inputs, outputs = request.param
    rng = np.random.default_rng(0)
    shapes = {"x": (rows, inputs), "w": (inputs, outputs), "b": (outputs,), "z": (rows, outputs)}
    arrays = {name: backend.asarray(rng.random(shape, np.float32)) for name, shape in shapes.items()}
    arrays["dx"], arrays["dw"], arrays["db"] = (backend.copy(arrays[name]) for name in ("x", "w", "b"))
    return arrays


def run(benchmark, backend, group, work):
    benchmark.group = group

    def done():
        work()
        backend.synchronize()

    done()
    benchmark(done)


def test_dense_forward(benchmark, backend, layer):
    x, w, b, z = (layer[name] for name in "xwbz")
    run(benchmark, backend, f"dense_forward {x.shape} {w.shape}", lambda: backend.dense_forward(x, w, b, z))


def test_dense_backward(benchmark, backend, layer):
    x, w, z = (layer[name] for name in "xwz")
    dw, db, dx = (layer[name] for name in ("dw", "db", "dx"))
    group = f"dense_backward {x.shape} {w.shape}"
    run(benchmark, backend, group, lambda: backend.dense_backward(x, z, w, dw, db, dx))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_activate(benchmark, backend, activation):
    z, slope, *scratch = (backend.asarray(np.random.default_rng(0).random((600, 128), np.float32)) for _ in range(4))
    run(benchmark, backend, f"activate {activation}", lambda: backend.activate(activation, z, slope, tuple(scratch)))


def test_softmax_cross_entropy(benchmark, backend):
    rng = np.random.default_rng(0)
    z, d, *scratch = (backend.asarray(rng.random((600, 10), np.float32)) for _ in range(4))
    labels = backend.asarray(rng.integers(0, 10, 600))
    losses = backend.asarray(np.empty(600, np.float32))
    work = (fastmlp.SoftmaxCrossEntropy(), z, labels, None, 1 / 600, d, losses, tuple(scratch))
    run(benchmark, backend, "softmax_cross_entropy (600, 10)", lambda: backend.loss(*work))


@pytest.fixture(params=[f"{name} {optimizer}" for name in NETWORKS for optimizer in ("sgd", "adam")])
def workload(request):
    name, optimizer = request.param.split()
    return replace(WORKLOADS[name], optimizer=optimizer)


@pytest.fixture
def running(backend, workload):
    """Return what trains and predicts rows of so many steps, ready to be timed, and the rows."""

    def make(steps=None):
        spec = workload.spec()
        rows = rows_of(workload, spec, QUICK.operations, 0)
        if steps is not None:
            few = steps * workload.batch
            rows = rows._replace(x=rows.x[:few], y=rows.y[:few], steps=steps)
        return contender(backend.name).make(workload, spec, rows, 0), rows

    return make


def test_step(benchmark, backend, workload, running):
    """A call of `fit` that takes one step: what it costs beside the step is in it."""
    made, _ = running(steps=1)
    run(benchmark, backend, f"fit of one step, {workload.describe()}", lambda: made.train(1))


def test_epoch(benchmark, backend, workload, running):
    made, rows = running()
    benchmark.extra_info["steps"] = rows.steps
    run(benchmark, backend, f"epoch of {rows.steps} steps, {workload.describe()}", lambda: made.train(1))


@pytest.mark.parametrize("workload", [f"{name} adam" for name in NETWORKS], indirect=True)
def test_predict(benchmark, backend, workload, running):
    made, rows = running(steps=1)
    run(benchmark, backend, f"predict {len(rows.many)} rows, {'-'.join(map(str, workload.units))}", made.predict)


@pytest.mark.parametrize("workload", [f"{name} adam" for name in NETWORKS], indirect=True)
def test_predict_one_row(benchmark, backend, workload, running):
    made, _ = running(steps=1)
    run(benchmark, backend, f"predict one row, {'-'.join(map(str, workload.units))}", made.row)
