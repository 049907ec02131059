"""cuBLAS within captured steps: by handles of fastmlp's own, with memory to work in, chosen by size alone."""

import gc
import logging
import os
import sys
import threading
import types
from dataclasses import replace

import cupy_double as cp
import numpy as np
import pytest
from compare import DTYPES, assert_close, assert_same_bits
from emulator import needs_emulator
from scenarios import SCENARIOS, Scenario, train

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import blas
from fastmlp.backends.cuda import memory as cupy_memory
from fastmlp.backends.cuda import operations as cupy_operations
from fastmlp.backends.cuda import products as cupy_products
from fastmlp.backends.cuda.products import CapturedProducts
from fastmlp.formulas.optimizers import SGD, Adam

pytestmark = [needs_emulator, pytest.mark.cuda_host]
dtypes = pytest.mark.parametrize("dtype", DTYPES)

# 41 rows in batches of 2: a long graph, single steps, and a short batch
LONG = Scenario("long", (5, 7, 3), {"activation": "tanh", "dropout": 0.2}, Adam(clip_norm=0.5), rows=41, batch=2)


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cp)
    monkeypatch.setattr(cupy_memory, "WORKSPACE", 512)
    cp.launches.clear()
    cp.cublas_library.calls.clear()


def from_cublas_on(monkeypatch, multiply_adds):
    """Let cuBLAS multiply in layers of more multiply-adds than this, whatever the device."""
    monkeypatch.setattr(
        cupy_products, "WORTH", dict.fromkeys(DTYPES, multiply_adds / 4)
    )  # multiprocessors of the double


def results(scenario, dtype, way):
    state, sums, _ = train(scenario, cupy_backend.CupyBackend(way=way), dtype)
    return state.params.get(), sums


@dtypes
@pytest.mark.parametrize("above", [0, 2 * 6 * 5, 10**9], ids=["all", "some", "none"])
def test_steps_with_cublas_in_their_graphs_are_those_without(dtype, above, monkeypatch):
    from_cublas_on(monkeypatch, above)
    found, sums = results(LONG, dtype, "captured")
    assert (cp.cublas_library.calls["captured"] > 0) == (above < 10**9)
    assert any(name.startswith("product_") for name, _ in cp.launches) == (above > 0)
    from_cublas_on(monkeypatch, 10**9)
    expected, expected_sums = results(LONG, dtype, "captured")
    assert_close(found, expected, k=500)
    for a, b in zip(sums, expected_sums, strict=True):
        assert_close(a, b, dtype=dtype, k=500)


@pytest.mark.parametrize(("dtype", "compute"), [("float32", 68), ("float64", 70)])
def test_cublas_rounds_alike_in_captured_and_in_eager_steps(dtype, compute, monkeypatch):
    from_cublas_on(monkeypatch, 0)
    asked = {}
    for way in ("captured", "eager"):
        cp.products.clear()
        results(LONG, dtype, way)
        asked[way] = set(cp.products)
    assert asked == {"captured": {compute}, "eager": {compute}}  # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_64F


@pytest.mark.parametrize("way", ["auto", "eager"])
def test_steps_that_round_to_tf32_are_never_captured(way, monkeypatch):
    from_cublas_on(monkeypatch, 0)
    backend = cupy_backend.CupyBackend(tf32=True, way=way)
    session = backend.open(LONG.plan("float32"))
    session.adopt({"backend": "cupy", "tf32": False, "way": "captured"})  # a checkpoint of a run in full precision
    cp.products.clear()
    state, data = LONG.state(backend, "float32"), LONG.device_data(backend, "float32")
    order, table = backend.asarray(LONG.order(0)), LONG.table(0, 0, "float32")
    backend.train_steps(session, state, data, order, table, 0, np.zeros(3))
    assert set(cp.products) == {77}  # CUBLAS_COMPUTE_32F_FAST_TF32
    assert session.way == "eager" and not cp.cublas_library.calls


@pytest.mark.whole_ladder
@dtypes
@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
def test_every_scenario_trains_with_cublas_in_its_graphs(scenario, dtype, monkeypatch):
    from_cublas_on(monkeypatch, 0)
    found, _ = results(scenario, dtype, "captured")
    expected, _ = results(scenario, dtype, "eager")
    assert_close(found, expected, k=2000)


@dtypes
def test_a_short_batch_is_multiplied_as_the_whole_ones_are(dtype, monkeypatch):
    """Its own rows would say otherwise, and leave the sums of the biases in fewer slabs than are read."""
    scenario = Scenario("short", (6, 5, 3), {"activation": "tanh"}, SGD(), rows=700, batch=600, epochs=1)
    from_cublas_on(monkeypatch, 600 * 6 * 5 - 1)  # 100 rows are fewer
    found, _ = results(scenario, dtype, "captured")
    assert cp.cublas_library.calls["captured"] > 0
    expected, _ = results(scenario, dtype, "eager")
    assert_close(found, expected, k=2000)


def test_the_choice_depends_on_sizes_type_and_device_alone(monkeypatch):
    own = cupy_backend.CupyBackend(way="captured")
    plan = LONG.plan("float32")
    products = CapturedProducts(own, 4, plan)
    limit = cupy_products.WORTH["float32"] * 4
    monkeypatch.setitem(cupy_products.WORTH, "float32", 2 * 5 * 7 / 4)
    assert limit > 2 * 5 * 7
    assert products._of(5, 7) is products._own
    monkeypatch.setitem(cupy_products.WORTH, "float32", (2 * 5 * 7 - 1) / 4)
    assert products._of(5, 7) is products._blas
    assert CapturedProducts(own, 5, plan)._of(5, 7).__class__ is not products._blas.__class__


def test_without_the_library_own_kernels_multiply_everything(monkeypatch):
    from_cublas_on(monkeypatch, 0)
    monkeypatch.setattr(cupy_operations, "load_cublas", lambda: None)
    results(LONG, "float32", "captured")
    assert not cp.cublas_library.calls


def test_memory_to_work_in_is_part_of_what_a_fit_is_said_to_take(monkeypatch):
    own, plan = cupy_backend.CupyBackend(way="captured"), LONG.plan("float32")
    from_cublas_on(monkeypatch, 10**9)
    without = cupy_memory.step_arena(plan, own._ways_of(plan)[0], 41, np.empty((0,), np.int64)).nbytes
    from_cublas_on(monkeypatch, 0)
    products = own._ways_of(plan)[0]
    arena = cupy_memory.step_arena(plan, products, 41, np.empty((0,), np.int64))
    assert {"workspace0", "workspace1"} <= set(arena.parts)
    assert products.workspaces(plan) == 2
    assert arena.nbytes >= without


@pytest.mark.parametrize("refuses", ["cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2"])
def test_a_library_that_refuses_its_handles_leads_to_eager_steps(refuses, monkeypatch):
    from_cublas_on(monkeypatch, 0)
    monkeypatch.setattr(blas, "_handles", blas._Handles())
    monkeypatch.setattr(type(cp.cublas_library), refuses, lambda *_: 3)
    x, y = np.random.default_rng(0).normal(size=(21, 5)).astype("f4"), np.arange(21) % 3
    model = fastmlp.MLP((5, 7, 3), backend=cupy_backend.CupyBackend(way="captured"), seed=0)
    with pytest.warns(RuntimeWarning, match=r"cannot be used on this GPU: cuBLAS cannot be made ready for captured"):
        model.fit(x, y, epochs=1, batch_size=4, verbose=0)


def test_without_memory_to_work_in_the_capture_is_refused_and_training_goes_on_eagerly(monkeypatch):
    from_cublas_on(monkeypatch, 0)
    monkeypatch.setattr(type(cp.cublas_library), "cublasSetWorkspace_v2", lambda *_: 0)
    x, y = np.random.default_rng(0).normal(size=(21, 5)).astype("f4"), np.arange(21) % 3
    model = fastmlp.MLP((5, 7, 3), backend=cupy_backend.CupyBackend(way="captured"), seed=0)
    with pytest.warns(RuntimeWarning, match=r"captured steps cannot be used on this GPU: .*fails in cuBLAS"):
        model.fit(x, y, epochs=1, batch_size=4, verbose=0)
    expected = fastmlp.MLP((5, 7, 3), backend=cupy_backend.CupyBackend(way="eager"), seed=0)
    expected.fit(x, y, epochs=1, batch_size=4, verbose=0)
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("way", ["captured", "eager"])
def test_the_memory_of_steps_is_free_when_a_run_has_ended_before_any_garbage_is_collected(way, monkeypatch):
    from_cublas_on(monkeypatch, 0)
    monkeypatch.setattr(cupy_memory, "KEPT", 0)
    x, y = np.random.default_rng(0).normal(size=(42, 5)).astype("f4"), np.arange(42) % 3
    model, used = fastmlp.MLP((5, 7, 3), backend=cupy_backend.CupyBackend(way=way), seed=0), []
    gc.disable()
    try:
        for batch in (4, 4, 20):
            model.fit(x, y, epochs=1, batch_size=batch, verbose=0)
            used.append(model.backend.memory_info()["used"])
    finally:
        gc.enable()
    assert used[0] == used[1] == used[2]


def test_two_fits_one_within_the_other_have_memory_of_their_own(monkeypatch):
    from_cublas_on(monkeypatch, 0)
    x, y = np.random.default_rng(0).normal(size=(42, 5)).astype("f4"), np.arange(42) % 3

    def model():
        return fastmlp.MLP((5, 7, 3), activation="tanh", backend=cupy_backend.CupyBackend(way="captured"), seed=0)

    class Inner(fastmlp.Callback):
        def on_epoch_end(self, *_):
            model().fit(x[:20], y[:20], epochs=1, batch_size=5, verbose=0)

    found, expected = model(), model()
    found.fit(x, y, epochs=3, batch_size=4, verbose=0, callbacks=[Inner()])
    expected.fit(x, y, epochs=3, batch_size=4, verbose=0)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_a_product_on_a_stream_that_is_not_bound_runs_on_no_other(monkeypatch):
    """The handle that a stream had once has another stream by now, on which nobody would wait for it."""
    monkeypatch.setattr(blas, "_handles", blas._Handles())
    products, streams = blas.GraphBlas(cp, cp.cublas_library), [cp.cuda.Stream(non_blocking=True) for _ in range(2)]
    x, w = (cp.asarray(np.ones(shape, np.float32)) for shape in ((2, 3), (3, 4)))
    out, places = cp.asarray(np.zeros((2, 4), np.float32)), [(s, cp.empty((512,), np.uint8)) for s in streams]
    cp.cuda.runtime.deviceSynchronize()
    for place in places:
        products.bind([place])
    with pytest.raises(KeyError), streams[0]:
        products.forward(x, w, out)
    with streams[1]:
        products.forward(x, w, out)
        assert out.get().tolist() == [[3.0] * 4] * 2


def test_handles_are_made_once_a_thread_and_not_where_nothing_needs_them(monkeypatch):
    created = []

    def trainings():
        for above in (10**9, 0, 0):
            from_cublas_on(monkeypatch, above)
            train(replace(LONG, epochs=1), cupy_backend.CupyBackend(way="captured"), "float32")
            created.append(cp.cublas_library.calls["create"])

    thread = threading.Thread(target=trainings)
    thread.start()
    thread.join()
    assert created == [0, 2, 2]  # one for each stream that products run on


def test_the_library_is_the_one_that_is_loaded_and_its_absence_is_told(monkeypatch, caplog):
    found = types.ModuleType("cuda.pathfinder")
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", found)
    asked = []
    found.load_nvidia_dynamic_lib = lambda name: (
        asked.append(name) or types.SimpleNamespace(abs_path=None)
    )  # this process
    assert blas.load_cublas.__wrapped__().getpid() == os.getpid()
    assert asked == ["cublas"]

    def nowhere(name):
        raise RuntimeError("no library")

    found.load_nvidia_dynamic_lib = nowhere
    with caplog.at_level(logging.INFO, "fastmlp"):
        assert blas.load_cublas.__wrapped__() is None
    assert "own kernels alone, since cuBLAS is not found (no library)" in caplog.text
