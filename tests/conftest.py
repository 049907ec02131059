"""Fixtures that all tests share."""

import functools
import gc
import importlib.util
import os
import signal
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from one_at_a_time import compiling_alone, is_worker

import fastmlp
from fastmlp.backends import registry
from fastmlp.backends.choosing import get_backend
from fastmlp.backends.cpu import choices
from fastmlp.backends.cpu.forms import Forms
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import operations as cupy_operations
from fastmlp.formulas.activations import ACTIVATIONS
from fastmlp.formulas.losses import LOSSES

# a machine that has other work to do is slow, which is no fault of what is tested
hypothesis.settings.register_profile("fastmlp", deadline=None)
hypothesis.settings.load_profile("fastmlp")


def pytest_addoption(parser):
    parser.addoption("--whole-ladder", action="store_true", help="run the long part of the CUDA tests too")
    parser.addoption(
        "--cuda-host", action="store_true", help="run the tests of the host code of CUDA on CuPy's double too"
    )
    parser.addoption(
        "--other-processors", action="store_true", help="compile the CPU kernels for other processors than this one too"
    )
    parser.addoption(
        "--thorough", action="store_true", help="run other kinds of what runs by default, and long tests too"
    )
    parser.addoption(
        "--fuzz", type=float, default=2.0, metavar="SECONDS", help="feed the readers damaged files so long"
    )
    parser.addoption("--mpi", action="store_true", help="start several processes by mpiexec, which takes a minute")
    parser.addoption("--planted-bugs", action="store_true", help="plant a bug in each fused stage of the CPU kernels")


def pytest_collection_finish(session):
    """Keep what stays until the end, ten thousand tests among it, out of every later search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    if not registry.available_backends()["cupy"].available:
        # what the double and the emulator compute in either type is the same source, compiled for it
        for item in items:
            given = item.callspec.params if hasattr(item, "callspec") else {}
            on_it = given.get("backend") == "cupy" or item.path.parent.name == "cuda"
            if on_it and given.get("dtype") == "float64":
                item.add_marker(pytest.mark.cuda_host)
    reasons = {
        "whole_ladder": "the long part of the CUDA tests; pytest --whole-ladder runs it",
        "cuda_host": "the host code of CUDA, on CuPy's double; pytest --cuda-host or --whole-ladder runs it",
        "other_processors": "this processor is another one; pytest --other-processors runs it",
        "mpi": "starts several processes; pytest --mpi runs it",
        "thorough": "another kind of what runs by default, or long; pytest --thorough runs it",
        "planted_bugs": "takes minutes; pytest --planted-bugs runs it",
    }
    for marker, reason in reasons.items():
        whole = marker == "cuda_host" and config.getoption("--whole-ladder")
        if not (whole or config.getoption(f"--{marker.replace('_', '-')}")):
            for item in items:
                if marker in item.keywords:
                    item.add_marker(pytest.mark.skip(reason=reason))


ON_THE_DOUBLE = {"test_operations", "test_operations_training", "test_composition", "test_gradients", "test_optimizers"}
"""Where CuPy's double is held to the same numbers in every run, in float32; what is made of these, and float64, takes
its time there."""


def pytest_generate_tests(metafunc):
    if "backend" not in metafunc.fixturenames:
        return
    # what CuPy does eagerly is part of the long run: of single operations it is the same
    whole = metafunc.config.getoption("--whole-ladder")
    eager = [pytest.param("cupy-eager", marks=pytest.mark.whole_ladder)] if whole else []
    always = registry.available_backends()["cupy"].available or Path(metafunc.module.__file__).stem in ON_THE_DOUBLE
    marks = {"cupy": [] if always else [pytest.mark.cuda_host]}
    names = [pytest.param(name, marks=marks.get(name, ())) for name in registry.backend_names()]
    metafunc.parametrize("backend", [*names, *eager], indirect=True)


@pytest.fixture
def backend(request, monkeypatch):
    """Every backend there is; one that cannot run here shows as skipped, with its reason.

    CuPy's runs without a GPU too: its kernels on an emulator, its host code on a double of CuPy.
    """
    name, _, way = request.param.partition("-")
    found = registry.available_backends()[name]
    if not found.available and name == "cupy":
        found = use_the_double(monkeypatch, found.reason)
    if not found.available:
        pytest.skip(f"backend {request.param}: {found.reason}")
    if name == "cupy":
        monkeypatch.setitem(registry._made, "cupy", cupy_backend_that_runs(way or "captured"))
    return get_backend(name)


@pytest.fixture
def cupy_or_its_double(monkeypatch):
    """Make ``"cupy"`` a backend that can run."""
    found = registry.available_backends()["cupy"]
    if not found.available:
        found = use_the_double(monkeypatch, found.reason)
        monkeypatch.delitem(registry._made, "cupy", raising=False)
    if not found.available:
        pytest.skip(f"backend cupy: {found.reason}")


def use_the_double(monkeypatch, reason):
    """Put the double in the place of CuPy, for one test."""
    import cupy_double
    import emulator

    if emulator.missing():
        return registry.Availability(False, f"{reason}; nor on the double: {emulator.missing()}")
    monkeypatch.setattr(cupy_backend, "probe", lambda: registry.Availability(True, "the double of CuPy"))
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cupy_double)
    monkeypatch.setattr(cupy_operations, "load_cublas", lambda: cupy_double.cublas_library)
    return cupy_backend.probe()


@functools.cache
def cupy_backend_that_runs(way):
    return cupy_backend.CupyBackend(way=way)


@pytest.fixture
def process_backend(backend):
    """A backend that a process of its own would have too."""
    if cupy_backend.probe().reason == "the double of CuPy":
        pytest.skip("the double of CuPy is in this process alone")
    return backend


@pytest.fixture
def default_signals():
    """Let SIGINT and SIGTERM do what they do by default, for tests that send them or have something that does.

    A shell starts what runs in its background with SIGINT ignored, and processes inherit what is ignored: Python then
    raises no KeyboardInterrupt, and pools of processes never end.  What a test starts inherits these defaults instead.
    """
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def each_kernel_is_compiled_once():
    """Do not compile in each worker what all of them need."""
    if is_worker() and registry.available_backends()["numba"].available:
        with compiling_alone():
            yield
    else:
        yield


@pytest.fixture(scope="session")
def kernels_in_the_cache(each_kernel_is_compiled_once):
    """Have what trains and asks in float32 compiled, for processes that a test starts: they take it from the cache."""
    if registry.available_backends()["numba"].available:
        model = fastmlp.MLP((2, 2, 2), backend="numba", seed=0)
        model.fit(np.eye(2), [0, 1], epochs=1, verbose=0)
        model.evaluate(np.eye(2), [0, 1])


@pytest.fixture(autouse=True)
def threads_however_small_the_step(monkeypatch):
    """Share out steps that one thread would do faster: the networks of tests are small."""
    monkeypatch.setattr(Forms, "parts_for", lambda self, batch, most, *_: most)


@pytest.fixture(autouse=True)
def no_trials(monkeypatch):
    """Take the rule's forms, and its way of steps: a trial between two runs that are compared would change bits."""
    monkeypatch.setattr(choices, "kept_path", lambda what, dtype: None)
    monkeypatch.setattr(cupy_backend, "kept_path", lambda what, here: None)


@pytest.fixture(autouse=True)
def registries_as_they_were():
    """Forget what a test registers."""
    kept = [(d, dict(d)) for d in (ACTIVATIONS, LOSSES.types, registry._BACKENDS)]
    yield
    for known, before in kept:
        known.clear()
        known.update(before)
    for name in set(registry._made) - set(registry._BACKENDS):
        del registry._made[name]
    if registry._made.get("cupy") is not None and not cupy_backend.probe().available:
        del registry._made["cupy"]  # it was made on the double


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


@pytest.fixture(scope="session")
def keras():
    """Keras, on a backend that is installed; else the tests show as skipped."""
    if "KERAS_BACKEND" not in os.environ and importlib.util.find_spec("tensorflow") is None:
        os.environ["KERAS_BACKEND"] = "jax"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the libraries, on import
        return pytest.importorskip("keras", reason="Keras, or a backend of it, is not installed", exc_type=ImportError)
