"""Operations and training steps on every backend, with pytest-benchmark: `pytest benchmarks/test_speed.py`.

One group for each operation and size, one line for each backend.  Timed assertions are nowhere: compare the lines, or
runs with `--benchmark-autosave` and `--benchmark-compare`.
"""

import numpy as np
import pytest

import fastmlp

pytest.importorskip("pytest_benchmark")

BACKENDS = [name for name, found in fastmlp.available_backends().items() if found.available]
SIZES = [(32, 784, 64), (600, 784, 32), (128, 784, 512)]
"""Rows, inputs, outputs."""


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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(("units", "batch"), [((784, 64, 32, 10), 32), ((784, 100, 10), 200)])
def test_training_step(benchmark, backend, units, batch, optimizer):
    rng = np.random.default_rng(0)
    x, y = rng.random((batch * 50, units[0]), np.float32), rng.integers(0, 10, batch * 50)
    rule = fastmlp.SGD(0.01) if optimizer == "sgd" else fastmlp.Adam(1e-3)
    model = fastmlp.MLP(units, backend=backend, seed=0)
    group = f"50 training steps {units} batch {batch} {optimizer}"
    run(benchmark, backend, group, lambda: model.fit(x, y, epochs=1, batch_size=batch, optimizer=rule, verbose=0))
