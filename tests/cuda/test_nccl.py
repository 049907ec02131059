"""Ranks on GPUs: gradients go from device to device by NCCL, in order, and add up to the same bits."""

import cupy_nccl
import pytest
from blobs import blobs
from compare import assert_same_bits
from emulator import needs_emulator

import fastmlp
from fastmlp.backends.cuda import nccl
from fastmlp.backends.cuda.backend import CupyBackend
from fastmlp.parallel import in_threads
from fastmlp.parallel.threads import Threads

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]
X, Y = blobs(rows=21)


@pytest.fixture
def by_nccl(monkeypatch):
    """Let each thread of `in_threads` stand for a process, which has a GPU of its own."""
    monkeypatch.setattr(Threads, "gpu_each", True)
    monkeypatch.setattr(nccl, "import_nccl", lambda: cupy_nccl)
    cupy_nccl.calls.clear()
    yield
    cupy_nccl.calls.clear()
    cupy_nccl.faults.clear()
    cupy_nccl.patience[0] = 20.0


def fitted(group, **made):
    options = {"optimizer": fastmlp.Adam(clip_norm=0.3, ema=0.9), "epochs": 2, "batch_size": 8, "verbose": 0}
    made = {"activation": "tanh", "dropout": (0.1, 0.3), "l2": 0.01, "max_norm": 1.5, "seed": 1, **made}
    model = fastmlp.MLP((6, 5, 3), backend=CupyBackend(way="eager"), **made)
    history = model.fit(X, Y, **options, parallel=group).history
    return model.get_weights(), {name: values for name, values in history.items() if name != "epoch_seconds"}


def assert_same_runs(found, expected):
    for got, wanted in zip(found[0], expected[0], strict=True):
        assert_same_bits(got, wanted)
    assert found[1] == expected[1]


@pytest.mark.usefixtures("by_nccl")
def test_any_number_of_gpus_gives_the_same_bits():
    (expected,) = in_threads(fitted, 1)
    for ranks in (2, 3):
        for found in in_threads(fitted, ranks):
            assert_same_runs(found, expected)


def test_threads_on_one_gpu_give_the_same_bits():
    (expected,) = in_threads(fitted, 1)
    for ranks in (2, 3):
        for found in in_threads(fitted, ranks):
            assert_same_runs(found, expected)
