"""Fixtures of the CUDA tests."""

import cupy_double as cp
import pytest

import fastmlp
from fastmlp.backends import cupy_backend


@pytest.fixture
def cupy_is_its_double(monkeypatch):
    """Make ``"cupy"`` the backend of the double, in this test."""
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cp)
    monkeypatch.setattr(cupy_backend, "probe", lambda: fastmlp.backends.Availability(True, "the double of CuPy"))
    monkeypatch.delitem(fastmlp.backends._made, "cupy", raising=False)
    yield
    fastmlp.backends._made.pop("cupy", None)
