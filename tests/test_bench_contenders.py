"""Who `fastmlp bench` measures: each contender trains and predicts what it says, or refuses with the reason."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest

import fastmlp
from fastmlp.bench import contenders, peers, workloads
from fastmlp.bench.workloads import Workload

SMALL = Workload("small", (4, 3, 2), 8)


def lines(workload):
    """Return rows of two classes that a line parts, and their classes."""
    x = np.random.default_rng(0).normal(size=(320, 3)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] > 0).astype(np.int64)
    return workloads.Rows(x, y, x, len(x) // workload.batch)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "sklearn"])
@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_a_contender_learns_and_predicts(name, optimizer, request):
    """What is timed is training that learns."""
    who = contenders.contender(name)
    pytest.importorskip(who.module, exc_type=ImportError)
    workload = Workload("own", (3, 16, 2), 16, optimizer=optimizer)
    rows = lines(workload)
    runner = who.make(workload, workload.spec(), rows, 0)
    runner.train(50)
    assert np.mean(np.asarray(runner.predict()) == rows.y) > 0.9
    assert np.ravel(runner.row())[0] == np.ravel(runner.predict())[0]


@pytest.mark.cuda_host
def test_the_contender_on_cupy_learns_from_rows_on_the_device(cupy_or_its_double):
    workload = Workload("own", (3, 8, 2), 16)
    rows = lines(workload)
    runner = contenders.contender("cupy").make(workload, workload.spec(), rows, 0)
    runner.train(20)
    predicted = runner.predict()
    assert not isinstance(predicted, np.ndarray)
    assert np.mean(predicted.get() == rows.y) > 0.8
    assert runner.row() == predicted.get()[0]
    assert runner.device_memory() >= rows.x.nbytes + rows.many.nbytes


def test_memory_of_a_gpu_is_what_the_library_says(monkeypatch):
    cuda = types.SimpleNamespace(max_memory_allocated=lambda: 5)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    device = types.SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 6, "bytes_in_use": 1})
    monkeypatch.setitem(sys.modules, "jax", types.SimpleNamespace(devices=lambda: [device]))
    nothing = None, None, None
    found = [contenders.peer("", name, "cuda", lambda *_: nothing).make() for name in ("torch", "jax")]
    assert [running.device_memory() for running in found] == [5, 6]
    assert contenders.peer("", "torch", "cpu", lambda *_: nothing).make().device_memory is None


@pytest.mark.parametrize(
    ("network", "what"),
    [
        ({"loss": "huber"}, "the loss huber"),
        ({"loss": fastmlp.SoftmaxCrossEntropy(0.1)}, "label smoothing"),
        ({"dropout": 0.5}, "dropout"),
        ({"l2": 0.1}, "l2"),
        ({"max_norm": 1.0}, "max_norm"),
    ],
)
def test_a_peer_refuses_a_network_that_it_would_not_build(network, what):
    spec = fastmlp.MLP((4, 3, 2), backend="numpy", **network).spec
    with pytest.raises(peers.NoCounterpartError, match=f"scikit-learn has no counterpart to {what} of this network"):
        peers.scikit_learn(SMALL, spec, None, 0, "cpu")


def test_a_peer_refuses_activations_and_optimizers_by_name():
    for workload, what in (
        (replace(SMALL, activation="gelu"), "the activation gelu: it has identity, relu, sigmoid, tanh"),
        (replace(SMALL, optimizer="adamw"), "the optimizer adamw: it has sgd, momentum, adam"),
    ):
        with pytest.raises(peers.NoCounterpartError, match=what):
            peers.scikit_learn(workload, workload.spec(), None, 0, "cpu")


def test_who_cannot_run_here_is_told_with_the_reason(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None if name == "jax" else object())
    found = contenders.entrants(["numpy"], True, gpu=False)
    assert list(found) == ["numpy", *contenders.PEERS]
    assert found["numpy"] is None
    assert found["sklearn"] is None
    assert found["jax"] == "not installed: pip install jax"
    assert found["torch-gpu-graph"] == "there is no GPU here: nvidia-smi lists none"
    assert list(contenders.entrants(None, False, gpu=False)) == list(fastmlp.available_backends())
    with pytest.raises(ValueError, match="backends must be of numpy, numba, cupy; got 'torch'"):
        contenders.entrants(["torch"], False, gpu=False)
