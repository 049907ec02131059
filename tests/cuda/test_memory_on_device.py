"""Device memory is known before it is taken, refused with what would fit, given back, and flat over many calls."""

import gc
import os
import re
import types
from dataclasses import replace
from pathlib import Path

import cupy_double as cp
import numpy as np
import pytest
from emulator import needs_emulator
from scenarios import Scenario

import fastmlp
from fastmlp import SGD, Adam
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import memory as cuda_memory
from fastmlp.backends.cuda.memory import Arena, Gradients, chunk_table, gradients_of, step_arena
from fastmlp.backends.cuda.products import BlasProducts, OwnProducts
from fastmlp.network.plan import Plan, Precision

pytestmark = [needs_emulator, pytest.mark.cuda_host]

OPTIMIZERS = {"sgd": SGD(), "adam": Adam(ema=0.9, clip_norm=1.0)}


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cp)
    kept = cp.capacity[0]
    gc.collect()  # what earlier tests have left would count
    yield
    cp.capacity[0] = kept


def make(way="captured"):
    return cupy_backend.CupyBackend(way=way)


def model_on(backend, units=(6, 40, 3), **changes):
    return fastmlp.MLP(units, **({"activation": "tanh", "dropout": 0.2, "seed": 0, "backend": backend} | changes))


def rows(n=60, dtype="f4"):
    rng = np.random.default_rng(0)
    return (rng.uniform(size=(n, 6)) * 100).astype(dtype), rng.integers(0, 3, n)


def limit(backend, free):
    """Leave so many bytes of the device free."""
    cp.capacity[0] = backend.memory_info()["used"] + free


class Peak(fastmlp.Callback):
    """Notes how much memory is in use after each call of steps."""

    def __init__(self, backend):
        self.backend, self.used = backend, []

    def on_steps(self, run):
        self.used.append(self.backend.memory_info()["used"])


# --- the estimate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["captured", pytest.param("eager", marks=pytest.mark.whole_ladder)])
@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.whole_ladder), "adam"])
@pytest.mark.parametrize(
    "dtype", ["u1", "i4", *(pytest.param(t, marks=pytest.mark.whole_ladder) for t in ("f4", "f8"))]
)
def test_the_estimate_is_what_a_fit_takes(way, optimizer, dtype):
    backend = make(way)
    model = model_on(backend, dtype="float64")
    x, y = rows(dtype=dtype)
    weights = np.ones(len(x))
    before = backend.memory_info()["used"] - model._learner.state.params.nbytes
    options = {"batch_size": 20, "optimizer": OPTIMIZERS[optimizer]}
    estimate = model.memory_estimate(x, y, sample_weight=weights, **options)
    assert backend.memory_info()["used"] - model._learner.state.params.nbytes == before  # nothing is allocated
    assert estimate["total"] == sum(v for k, v in estimate.items() if k != "total")
    peak = Peak(backend)
    model.fit(x, y, sample_weight=weights, epochs=3, verbose=0, callbacks=[peak], **options)
    # what is converted is let go once captured steps have their copy of it
    gone = 60 * 6 * 8 if (way, dtype) == ("captured", "i4") else 0
    assert max(peak.used) - before == estimate["total"] - gone


def test_arrays_of_more_than_2_gib_are_counted_and_cut():
    arena = Arena({"large": ((50_000, 50_000), np.uint8), "small": ((3,), np.int64)})
    assert arena.nbytes == 50_000**2 + 256
    arrays = arena.allocate(np)  # of which nothing is written
    assert {name: a.shape for name, a in arrays.items()} == {"large": (50_000, 50_000), "small": (3,)}


def test_what_lies_on_the_gpu_already_is_not_counted():
    backend = make()
    model = model_on(backend)
    x, y = rows()
    there = model.memory_estimate(cp.asarray(x), cp.asarray(y))
    here = model.memory_estimate(x, y)
    assert (there["data"], here["data"]) == (0, x.nbytes + y.nbytes)
    assert there["workspace"] == here["workspace"]


@pytest.mark.parametrize("name", ["numpy", "numba"])
@pytest.mark.parametrize("network", [{}, {"dropout": (0.1, 0.2), "l2": 0.1, "activation": "relu"}])
def test_on_other_backends_the_estimate_is_what_their_sessions_allocate(name, network, monkeypatch):
    backend = fastmlp.get_backend(name)
    # a first fit measures the machine, and what is taken from then on may be more than was foretold before it
    model_on(backend).fit(*rows(), epochs=1, verbose=0)
    model = model_on(backend, **network)
    for dtype in ("u1", "f4"):
        x, y = rows(dtype=dtype)
        estimate = model.memory_estimate(x, y, batch_size=20, optimizer=Adam(clip_norm=1.0))
        sizes, empty = [], type(backend).empty

        def noting(self, shape, dtype, sizes=sizes, empty=empty):
            made = empty(self, shape, dtype)
            sizes.append(made.nbytes)
            return made

        with monkeypatch.context() as patch:
            patch.setattr(type(backend), "empty", noting)
            model.fit(x, y, epochs=1, batch_size=20, optimizer=Adam(clip_norm=1.0), verbose=0)
        taken = sum(sizes) - 2 * model._learner.state.params.nbytes  # the moments, which are counted apart
        assert estimate["workspace"] == pytest.approx(taken, rel=0.02)
        assert (estimate["data"], estimate["order"]) == (0, 8 * len(x))
        model = model_on(backend, **network)


# --- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["captured", "eager", "auto"])
def test_a_batch_that_does_not_fit_is_refused_with_the_largest_that_does(way):
    backend = make(way)
    model = model_on(backend)
    x, y = rows()
    small = model.memory_estimate(x, y, batch_size=15)
    limit(backend, small["total"] - model._learner.state.params.nbytes)
    before = backend.memory_info()["used"]
    with pytest.raises(MemoryError, match=r"fit needs [\d,]+ bytes on the GPU: .* for 60 rows of data") as e:
        model.fit(x, y, epochs=1, batch_size=60, verbose=0)
    assert model._learner.state.optimizer is None  # nothing has changed
    assert backend.memory_info()["used"] == before
    largest = int(re.search(r"the largest batch that fits is (\d+)", str(e.value))[1])
    assert 15 <= largest < 60
    with pytest.raises(MemoryError, match=r"^fit needs"):
        model.fit(x, y, epochs=1, batch_size=largest + 1, verbose=0)
    model.fit(x, y, epochs=1, batch_size=largest, verbose=0)


def test_data_that_does_not_fit_is_refused_with_how_many_rows_would():
    backend = make()
    model = model_on(backend)
    x, y = rows(6000)
    small = model.memory_estimate(x[:2000], y[:2000], batch_size=8)
    limit(backend, small["total"])
    with pytest.raises(MemoryError, match=r"of the data, about [\d,]+ rows would") as e:
        model.fit(x, y, epochs=1, batch_size=8, verbose=0)
    fitting = int(re.search(r"about ([\d,]+) rows", str(e.value))[1].replace(",", ""))
    assert 500 < fitting < 6000
    model.memory_estimate(x[:fitting], y[:fitting], batch_size=8)
    backend.check_memory(model._learner.sessions and _plan(model), model._learner.data(x[:fitting], y[:fitting]), 0)


def _plan(model):
    return Plan(model.spec, 8, Precision.of(model.dtype), True, Adam().without_schedule())


def test_what_fits_one_way_alone_is_not_refused():
    backend, (x, y) = make("auto"), rows()
    model = model_on(backend)
    plan, data = _plan(model), model._learner.data(x, y)
    arenas = [step_arena(plan, p, len(x), np.empty((0,), np.int64)).nbytes for p in backend._ways_of(plan)]
    less, most = sorted(arenas)
    assert less < most
    besides = x.nbytes + y.nbytes + 16 * len(x)
    limit(backend, besides + less)
    backend.check_memory(plan, data, 0)
    limit(backend, besides + less - 1)
    with pytest.raises(MemoryError, match=rf"^fit needs {besides + less:,} bytes"):
        backend.check_memory(plan, data, 0)


@pytest.mark.whole_ladder
def test_steps_that_fit_one_way_alone_run_that_way(monkeypatch):
    monkeypatch.setattr(cupy_backend.CupyBackend, "multiprocessors", 132)
    x, y = rows(2048)
    needed, units = {}, (6, 200, 3)
    for way in ("captured", "eager"):
        needed[way] = model_on(make(way), units).memory_estimate(x, y, batch_size=len(x))["total"]
    backend = make("auto")
    model = model_on(backend, units)
    free = needed["eager"] + 3 * model._learner.state.params.nbytes + 8 * len(x)  # copies that both are measured on
    assert free < needed["captured"]  # which leaves gradients of weights in slabs, and would be the faster
    limit(backend, free)
    model.fit(x, y, epochs=1, batch_size=len(x), verbose=0)
    assert list(backend._ways.values()) == ["eager"]


# --- prediction -----------------------------------------------------------------------------------------------------


def test_predictions_and_figures_of_more_rows_than_fit_are_made_in_chunks(monkeypatch):
    backend = make()
    model, whole = model_on(backend), model_on("numpy")
    x, y = rows(3000)
    monkeypatch.setattr(fastmlp.engine.inference, "SMALL_BYTES", 10_000)
    monkeypatch.setattr(backend, "memory_info", lambda: {"free": 80_000, "kept": 0})
    uploads, asarray = [], cp.asarray
    monkeypatch.setattr(cp, "asarray", lambda a, *r, **k: uploads.append(a.nbytes) or asarray(a, *r, **k))
    found = model.predict_proba(x)
    assert len(found) == len(x)
    assert max(uploads) <= 20_000 < x.nbytes
    np.testing.assert_allclose(found, whole.predict_proba(x), atol=1e-5)
    uploads.clear()
    weights = np.linspace(0, 1, len(x)).astype("f4")
    figures, expected = model.evaluate(x, y, weights), whole.evaluate(x, y, weights)
    assert max(uploads) <= 20_000
    assert figures == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("there", [False, True])
def test_a_loop_of_fits_and_predictions_keeps_memory_flat(there):
    backend = make()
    model = model_on(backend)
    x, y = rows()
    if there:
        x, y = cp.asarray(x), cp.asarray(y)
    used = []
    gc.disable()  # nothing waits to be found
    try:
        for i in range(12):
            if i % 4 == 0:
                model.fit(x, y, epochs=1, batch_size=30, verbose=0)
            model.predict(x[: (60, 1, 17)[i % 3]])
            model.evaluate(x, y)
            used.append(backend.memory_info()["used"])
    finally:
        gc.enable()
    assert len(set(used[3:])) == 1
    before = used[-1]
    model.close()
    assert backend.memory_info()["used"] < before


# --- precision ------------------------------------------------------------------------------------------------------


def test_tf32_is_refused_with_the_reason_where_the_gpu_cannot_do_it(monkeypatch):
    monkeypatch.setattr(cp.Device, "compute_capability", "75")
    with pytest.raises(
        ValueError, match=r"tf32=True needs .* compute capability 8.0 .* this one has 7.5: leave tf32 out"
    ):
        cupy_backend.CupyBackend(tf32=True)
    cupy_backend.CupyBackend()
    monkeypatch.setattr(cp.Device, "compute_capability", "80")
    cupy_backend.CupyBackend(tf32=True)


def test_tf32_is_each_calls_own_beside_full_precision(monkeypatch):
    monkeypatch.setenv("CUPY_TF32", "0")
    x, _ = rows()
    exact, rounded = make("eager"), cupy_backend.CupyBackend(tf32=True)
    first = model_on(exact).predict_proba(x)
    coarse = model_on(rounded).predict_proba(x)
    cp.products.clear()
    again = model_on(exact).predict_proba(x)
    assert set(cp.products) == {68}  # CUBLAS_COMPUTE_32F
    assert again.tobytes() == first.tobytes() != coarse.tobytes()
    np.testing.assert_allclose(coarse, first, atol=0.02)
    model_on(rounded, dtype="float64").predict(x)
    assert cp.products[-1] == 70  # of float64 nothing is taken away

    assert os.environ["CUPY_TF32"] == "0"


def test_no_switch_of_the_process_is_in_the_code():

    files = list(Path(cupy_backend.__file__).parent.glob("*.py"))
    assert len(files) > 5
    for file in files:
        code = file.read_text()
        for switch in ("setMathMode", "CUPY_TF32", "environ[", "set_allocator", "putenv"):
            assert switch not in code, f"{file.name}: {switch}"


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("products", [BlasProducts, OwnProducts])
@pytest.mark.parametrize("multiprocessors", [4, 46, 132])
def test_gradients_take_hardly_more_than_parameters(products, multiprocessors):
    plan = Scenario("", (8192, 8192, 10), {"activation": "relu"}, Adam(), batch=1024).plan("float32")
    arena = step_arena(plan, products(make(), multiprocessors), 4096, np.empty((0,), np.int64))
    parameters = 4 * plan.layout.size
    activations = 4 * 1024 * (3 * 8192 + 2 * 10)  # x, z and dz
    activations += 4 * 1024 * 8192 if products.capturable else 0  # the next x
    assert parameters < arena.nbytes - activations < 1.02 * parameters


@pytest.mark.parametrize("slabs", [(1, 1), (1, 8), (8, 8), (3, 1)])
@pytest.mark.parametrize("sizes", [(35, 5), (64, 64), (1, 1)])
def test_no_slab_of_gradients_lies_on_another(slabs, sizes):
    place = Gradients.after(192, sizes, slabs)
    taken = np.zeros(place.stop, int)
    for start, size, count in zip((place.weights, place.biases), sizes, slabs, strict=True):
        assert start % 64 == place.stride % 64 == 0
        for s in range(count):
            taken[start + s * place.stride :][:size] += 1
    assert taken.max() == 1
    assert not taken[:192].any()
    assert place.stop % 64 == 0


@pytest.mark.parametrize("products", [BlasProducts, OwnProducts])
def test_chunks_of_more_parameters_than_32_bits_count_are_where_they_lie(products, monkeypatch):
    """Of a network that is nowhere made."""
    monkeypatch.setattr(cuda_memory, "_LARGE_CHUNK", 1 << 29)
    plan = Scenario("", (1 << 16, 1 << 15, 3), {"activation": "relu"}, SGD(), batch=1).plan("float32")
    places = gradients_of(plan, products(make(), 4))
    starts = [(place.weights, place.biases) for place in places]
    expected = [(at, at + (1 << 29), 1, starts[0][0]) for at in range(0, 1 << 31, 1 << 29)]
    layers = plan.layout.offsets
    expected += [(layers[1][0], layers[1][0] + 3 * (1 << 15), 1, starts[1][0] - layers[1][0])]
    expected += [(layers[0][1], layers[0][1] + (1 << 15), 0, starts[0][1] - layers[0][1])]
    expected += [(layers[1][1], layers[1][1] + 3, 0, starts[1][1] - layers[1][1])]
    assert layers[1][1] > np.iinfo(np.int32).max
    assert chunk_table(plan, places)[:, [0, 1, 2, 4]].tolist() == [list(row) for row in expected]
    arena = step_arena(plan, products(make(), 4), 1, np.zeros(1, np.int64))
    assert arena.parts["chunks"] == ((len(expected), 6), np.int64)


@pytest.mark.parametrize("still", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("width", [1, 400, 1024, 1025, 3000])
def test_the_chunks_of_a_step_are_counted_as_they_are_made(width, still):
    plan = Scenario("", (6, width, 3), {"activation": "relu"}, Adam(), still).plan("float32")
    products = BlasProducts(make(), 4)
    chunks = chunk_table(plan, gradients_of(plan, products))
    assert step_arena(plan, products, 9, np.zeros(9, np.int64)).parts["chunks"] == (chunks.shape, np.int64)


@pytest.mark.parametrize(("total", "most"), [(8 << 30, 64 << 20), (64 << 30, 256 << 20)])
def test_rows_are_predicted_at_once_as_far_as_memory_of_the_device_allows(total, most, monkeypatch):
    monkeypatch.setattr(type(cp.cuda.Device()), "mem_info", property(lambda self: (total, total)))
    model = fastmlp.MLP((6, 5, 3), backend=make(), seed=0)
    assert model.backend.chunk_bytes == most
    rows = most // (4 * (6 + 5 * 5))
    assert model._learner.inference.plan(model.spec, 10 * rows).batch == rows


@pytest.mark.parametrize("products", [BlasProducts, OwnProducts])
def test_layers_that_do_not_train_leave_no_gradients(products):
    all_train = Scenario("", (6, 400, 3), {"activation": "relu"}, Adam(), (False, False))
    plans = [s.plan("float32") for s in (all_train, replace(all_train, frozen=(True, False)))]
    whole, part = (gradients_of(plan, products(make(), 4)) for plan in plans)
    assert part[0] is None
    assert part[1].weights == 0
    assert part[1].stop == whole[1].stop - whole[0].stop


def test_an_arena_of_more_numbers_than_32_bits_count_is_cut_as_any_other():
    """Of memory that nobody touches, which takes none."""
    large = (1 << 16, (1 << 15) + 1)
    arena = Arena({"large": (large, np.uint8), "after": ((3,), np.float32)})
    assert arena.nbytes == (1 << 16) * ((1 << 15) + 1) + 256
    found = arena.allocate(types.SimpleNamespace(empty=np.empty))
    assert (found["large"].shape, found["after"].shape) == (large, (3,))
    assert found["after"].ctypes.data - found["large"].ctypes.data == (1 << 16) * ((1 << 15) + 1)


def test_the_memory_of_steps_is_free_before_that_of_others_is_taken(monkeypatch):
    """Both beside each other need not fit."""
    own, scenario = make("eager"), Scenario("", (6, 40, 3), {"activation": "tanh"}, SGD(0.1), rows=20, batch=4)
    state, sets = scenario.state(own, "float32"), [scenario.device_data(own, "float32") for _ in range(2)]
    session, used, made = own.open(scenario.plan("float32")), [], cupy_backend.make_step
    monkeypatch.setattr(
        cupy_backend, "make_step", lambda *a, **k: used.append(own.memory_info()["used"]) or made(*a, **k)
    )
    for data in sets:
        assert session.training(state, data).nbytes > 0
    assert used[0] == used[1]
