"""Fixtures that all tests share."""

import warnings

import pytest

from fastmlp import activations, backends
from fastmlp.losses import LOSSES


def pytest_addoption(parser):
    parser.addoption("--whole-ladder", action="store_true", help="run the long part of the CUDA tests too")


@pytest.fixture(params=backends.backend_names())
def backend(request):
    """Every backend there is; one that cannot run here shows as skipped, with its reason."""
    found = backends.available_backends()[request.param]
    if not found.available:
        pytest.skip(f"backend {request.param}: {found.reason}")
    return backends.get_backend(request.param)


@pytest.fixture(autouse=True)
def registries_as_they_were():
    """Forget what a test registers."""
    kept = [(d, dict(d)) for d in (activations._ACTIVATIONS, LOSSES.types, backends._BACKENDS)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)
    for name in set(backends._made) - set(backends._BACKENDS):
        del backends._made[name]


@pytest.fixture(scope="session")
def torch():
    """PyTorch, where it is installed; else the test shows as skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, on import
        try:
            import torch
        except ImportError:
            pytest.skip("PyTorch is not installed; pip install torch")
    return torch
