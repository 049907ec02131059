"""Fixtures of the CUDA tests."""

import types

import cupy_double as cp
import cupy_nccl
import cupy_streams
import pytest

from fastmlp.backends import contest, decisions, registry
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import kept, nccl
from fastmlp.backends.cuda import operations as cupy_operations
from fastmlp.parallel.threads import Threads


@pytest.fixture(autouse=True)
def cublas_is_its_double(monkeypatch):
    """Let what is made on the double multiply on it, where a library of a GPU is installed too."""
    monkeypatch.setattr(cupy_operations, "load_cublas", lambda: cp.cublas_library)


@pytest.fixture(autouse=True)
def memory_of_its_own():
    """Let no test be given what another has freed, while its streams may still be at work on it."""
    cupy_streams.forget_freed()


@pytest.fixture
def cupy_is_its_double(monkeypatch):
    """Make ``"cupy"`` the backend of the double, in this test."""
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cp)
    monkeypatch.setattr(cupy_backend, "probe", lambda: registry.Availability(True, "the double of CuPy"))
    monkeypatch.delitem(registry._made, "cupy", raising=False)
    yield
    registry._made.pop("cupy", None)


@pytest.fixture
def gpu_each(monkeypatch):
    """Let each thread of `in_threads` stand for a process, which has a GPU of its own."""
    monkeypatch.setattr(Threads, "gpu_each", True)
    monkeypatch.setattr(nccl, "import_nccl", lambda: cupy_nccl)
    cupy_nccl.forget()
    yield
    cupy_nccl.forget()
    cp.visible[0] = cp.DEVICES


@pytest.fixture
def ways_are_tried(monkeypatch, tmp_path):
    """Let ways of steps be tried in however short a run, by the double's clock; return the folder that keeps them."""
    monkeypatch.setattr(decisions, "_known", {})
    monkeypatch.setattr(contest, "_tried", {})
    monkeypatch.setattr(cupy_backend, "kept_path", kept.kept_path)
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kernels"))
    # whoever waits for steps has their time on its own stream
    clock = types.SimpleNamespace(perf_counter=lambda: 1e-3 * cp.cuda.get_current_stream()._time)
    monkeypatch.setattr(contest, "time", clock)
    for name, value in {"SAMPLE_SECONDS": 0.0, "MOST_SECONDS": 60.0, "SHARE": 1e9}.items():
        monkeypatch.setattr(contest, name, value)
    return tmp_path / "kernels"


@pytest.fixture
def timed_events(monkeypatch):
    """Whether each event that is made from now on keeps the time, which makes the device write it down."""
    timed, init = [], cp.cuda.Event.__init__

    def noted(self, *args, **options):
        init(self, *args, **options)
        timed.append(self._timed)

    monkeypatch.setattr(cp.cuda.Event, "__init__", noted)
    return timed
