"""Fixtures of the CUDA tests."""

import cupy_double as cp
import cupy_nccl
import cupy_streams
import pytest

from fastmlp.backends import registry
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import nccl
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
    cupy_nccl.calls.clear()
    cupy_nccl.groups.clear()
    cupy_nccl.alive.clear()
    yield
    cupy_nccl.calls.clear()
    cupy_nccl.faults.clear()
    cupy_nccl.patience[0] = 20.0
    cp.visible[0] = cp.DEVICES
