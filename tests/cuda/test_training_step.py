"""Training steps on the double of CuPy: graphs, what they own, what a step costs, and the way back to the host."""

import gc
import types
from dataclasses import replace

import cupy_double
import numpy as np
import pytest
from compare import DTYPES, assert_close, assert_same_bits
from emulator import needs_emulator
from scenarios import SCENARIOS, Scenario, train

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import memory as cupy_memory
from fastmlp.backends.cuda.memory import Arena
from fastmlp.backends.cuda.products import OwnProducts
from fastmlp.backends.cuda.step import GRAPH_STEPS, TrainingStep
from fastmlp.formulas.optimizers import SGD, Adam

pytestmark = [needs_emulator, pytest.mark.cuda_host]
dtypes = pytest.mark.parametrize("dtype", DTYPES)

# 41 rows in batches of 2: one long graph, single ones, and a short last batch
LONG = Scenario("long", (5, 7, 3), {"activation": "tanh", "dropout": 0.2}, Adam(clip_norm=0.5), rows=41, batch=2)


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cupy_double)
    cupy_double.launches.clear()


def backend(way="captured", **options):
    return cupy_backend.CupyBackend(way=way, **options)


def launches():
    """Return the names of the kernels launched, without their template arguments, and forget them."""
    names = [name.split("<")[0] for name, _ in cupy_double.launches]
    cupy_double.launches.clear()
    return names


def arrays(state):
    kept = [state.params, *state.moments, *([] if state.average is None else [state.average])]
    return [a.get() for a in kept]


def uncaptured(scenario, dtype):
    """Train with the kernels that captured steps use, launched one by one."""
    own, state = backend(), scenario.state(backend(), dtype)
    data = scenario.device_data(own, dtype)
    step = TrainingStep(own, OwnProducts(own, 4), scenario.plan(dtype), state, data, captured=False)
    for epoch in range(scenario.epochs):
        table = scenario.table(epoch, state.optimizer_step, dtype)
        done, finite, _ = step.run(own.asarray(scenario.order(epoch)), table, 0, state.step)
        assert (done, finite) == (scenario.steps, True)
        state.step += done
        state.optimizer_step += done
    return state


@dtypes
@pytest.mark.parametrize("scenario", [*SCENARIOS, LONG], ids=str)
def test_graphs_give_the_bits_of_the_same_kernels_launched_one_by_one(scenario, dtype):
    captured, _, _ = train(scenario, backend(), dtype)
    for a, b in zip(arrays(captured), arrays(uncaptured(scenario, dtype)), strict=True):
        assert_same_bits(a, b)


@dtypes
@pytest.mark.parametrize("scenario", [*SCENARIOS, LONG], ids=str)
def test_eager_steps_agree_with_numpy(scenario, dtype):
    if not scenario.smooth:
        scenario = replace(scenario, epochs=1)  # a rectifier may flip by rounding
    found, sums, _ = train(scenario, backend("eager"), dtype)
    expected, expected_sums, _ = train(scenario, fastmlp.get_backend("numpy"), dtype)
    k = max(scenario.batch, *scenario.units) * scenario.steps * scenario.epochs
    assert_close(found.params.get(), expected.params, k=k, scale=np.maximum(1, np.abs(expected.params)), c=16)
    assert_close(sums, expected_sums, dtype=dtype, k=k, scale=np.maximum(1, np.abs(expected_sums)), c=16)


@pytest.mark.parametrize("start", [2**16 - 3, 2**32 - 3])
@pytest.mark.parametrize("way", ["captured", "eager"])
def test_dropout_goes_on_where_the_number_of_a_step_outgrows_its_bits(way, start, monkeypatch):
    scenario, made = replace(LONG, epochs=1, rows=13), Scenario.state
    found = []
    for first in (start, start + 1):
        monkeypatch.setattr(Scenario, "state", lambda *a, first=first: replace(made(*a), step=first))
        own, expected = (train(scenario, b, "float32")[0] for b in (backend(way), fastmlp.get_backend("numpy")))
        assert_close(own.params.get(), expected.params, k=7 * scenario.steps, scale=1, c=16)
        found.append(expected.params)
    assert np.abs(found[0] - found[1]).max() > 1e-3  # other masks would be seen


@dtypes
def test_long_graphs_single_ones_and_a_short_batch_share_an_epoch(dtype):
    own = backend()
    _, _, session = train(replace(LONG, epochs=1), own, dtype)
    assert LONG.steps == 21
    assert set(session._training._graphs) == {(16, 2), (1, 2), (1, 1)}  # as the README says
    expected, _, _ = train(replace(LONG, epochs=1), backend("eager"), dtype)
    found, _, _ = train(replace(LONG, epochs=1), own, dtype)
    assert_close(found.params.get(), expected.params.get(), k=7 * 21, scale=1, c=16)


def test_a_second_epoch_captures_nothing_anew():
    own = backend()
    scenario = replace(LONG, epochs=1)
    session, state = own.open(scenario.plan("float32")), scenario.state(own, "float32")
    data, graphs = scenario.device_data(own, "float32"), []
    for epoch in range(2):
        order = own.asarray(scenario.order(epoch))
        own.train_steps(session, state, data, order, scenario.table(epoch, 0, "float32"), 0, np.zeros(3))
        graphs.append(dict(session._training._graphs))
    assert graphs[0] == graphs[1]


def test_what_a_step_was_made_for_is_looked_at_at_every_call():
    own = backend()
    session, state = own.open(LONG.plan("float32")), LONG.state(own, "float32")
    data = LONG.device_data(own, "float32")
    first = session.training(state, data)
    assert session.training(state, data) is first
    others = [
        (LONG.state(own, "float32"), data),
        (state, LONG.device_data(own, "float32")),
        (replace(state, key=state.key + 1), data),
        (replace(state, average=own.copy(state.params)), data),
        (replace(state, moments=[own.copy(m) for m in state.moments]), data),
        (replace(state, params=own.copy(state.params)), data),
    ]
    for other in others:
        assert not session.training(state, data).fits(*other)
        made = session.training(*other)
        assert made.fits(*other)


def test_a_captured_step_keeps_all_that_it_touches_alive():
    own = backend()
    state, data = LONG.state(own, "float32"), LONG.device_data(own, "float32")
    step = TrainingStep(own, OwnProducts(own, 4), LONG.plan("float32"), state, data, captured=True)
    order, table = own.asarray(LONG.order(0)), LONG.table(0, 0, "float32")
    step.run(order, table, 0, 0)
    del state, data, order, own
    gc.collect()
    done, finite, _ = step.run(cupy_double.asarray(LONG.order(1)), table, 0, LONG.steps)
    assert (done, finite) == (LONG.steps, True)


@pytest.mark.parametrize("name", ["x", "y", "weights"])
def test_each_array_of_the_data_is_part_of_what_a_step_was_made_for(name):
    own, scenario = backend(), replace(LONG, weighted=True)
    session, state = own.open(scenario.plan("float32")), scenario.state(own, "float32")
    data = scenario.device_data(own, "float32")
    step = session.training(state, data)
    assert step.fits(state, data)
    kept = getattr(data, name)
    other = own.empty(kept.shape, kept.dtype)
    other[...] = kept
    parts = {part: getattr(data, part) for part in ("x", "y", "weights")} | {name: other}
    assert not step.fits(state, types.SimpleNamespace(**parts))


# --- losses that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["captured", "eager"])
@pytest.mark.parametrize("bad", [0, 1, GRAPH_STEPS - 1, GRAPH_STEPS, 20])
def test_the_first_step_that_is_not_finite_freezes_all_that_follow(way, bad):
    own = backend(way)
    scenario = replace(LONG, epochs=1)
    state, data = scenario.state(own, "float32"), scenario.device_data(own, "float32")
    order, table = scenario.order(0), scenario.table(0, 0, "float32")
    expected, _ = scenario.state(own, "float32"), None
    device_order = own.asarray(order)
    own.train_steps(own.open(scenario.plan("float32")), expected, data, device_order, table[:bad], 0, np.zeros(3))
    data.x[int(order[2 * bad]), 1] = np.nan
    totals = np.zeros(3)
    report = own.train_steps(own.open(scenario.plan("float32")), state, data, device_order, table, 0, totals)
    assert report == (bad, False)
    assert np.isfinite(totals).all()
    assert (state.step, state.optimizer_step) == (expected.step, expected.optimizer_step)
    for a, b in zip(arrays(state), arrays(expected), strict=True):
        assert_same_bits(a, b)


def test_training_goes_on_after_a_step_that_was_not_finite():
    own = backend()
    scenario = replace(LONG, epochs=1)
    session, state = own.open(scenario.plan("float32")), scenario.state(own, "float32")
    data = replace(scenario.device_data(own, "float32"), changes=True)
    order, table = own.asarray(scenario.order(0)), scenario.table(0, 0, "float32")
    row = int(scenario.order(0)[0])
    kept = float(data.x[row, 1].get())
    data.x[row, 1] = np.nan
    assert own.train_steps(session, state, data, order, table, 0, np.zeros(3)) == (0, False)
    data.x[row, 1] = kept
    assert own.train_steps(session, state, data, order, table, 0, np.zeros(3)) == (scenario.steps, True)


# --- captures that fail ---------------------------------------------------------------------------------------------


def test_a_capture_that_fails_is_ended_and_the_next_one_works(monkeypatch):
    own = backend()
    state, data = LONG.state(own, "float32"), LONG.device_data(own, "float32")
    step = TrainingStep(own, OwnProducts(own, 4), LONG.plan("float32"), state, data, captured=True)
    order, table = own.asarray(LONG.order(0)), LONG.table(0, 0, "float32")
    whole, calls = TrainingStep._apply_gradients, []

    def failing(self, index, layers):
        calls.append(index)
        if len(calls) == 2:  # the first is the warm-up
            raise RuntimeError("planted")
        whole(self, index, layers)

    monkeypatch.setattr(TrainingStep, "_apply_gradients", failing)
    with pytest.raises(RuntimeError, match="planted"):
        step.run(order, table, 0, 0)
    assert not step._stream.is_capturing()
    monkeypatch.setattr(TrainingStep, "_apply_gradients", whole)
    assert step.run(order, table, 0, 0)[:2] == (LONG.steps, True)


def test_products_by_cublas_cannot_be_captured():
    own = backend()
    state, data = LONG.state(own, "float32"), LONG.device_data(own, "float32")
    from fastmlp.backends.cuda.products import BlasProducts

    step = TrainingStep(own, BlasProducts(own, 4), LONG.plan("float32"), state, data, captured=True)
    with pytest.raises(NotImplementedError, match="cuBLAS API during stream capture"):  # CuPy's ban, not CUDA's
        step.run(own.asarray(LONG.order(0)), LONG.table(0, 0, "float32"), 0, 0)


# --- waiting --------------------------------------------------------------------------------------------------------


def test_an_epoch_waits_for_the_device_once_a_call(monkeypatch):
    own = backend()
    scenario = replace(LONG, epochs=1)
    session, state = own.open(scenario.plan("float32")), scenario.state(own, "float32")
    data = scenario.device_data(own, "float32")
    run = [own.asarray(scenario.order(0)), scenario.table(0, 0, "float32"), 0, np.zeros(3)]
    own.train_steps(session, state, data, *run)
    reads, get = [], cupy_double.ndarray.get
    monkeypatch.setattr(
        cupy_double.ndarray, "get", lambda self, *a, **k: reads.append(self.shape) or get(self, *a, **k)
    )
    own.train_steps(session, state, data, *run)
    assert reads == [(scenario.steps, 3)]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"way": "fast"}, ValueError, "way must be one of auto, captured, eager; got 'fast'"),
        ({"tf32": 2}, TypeError, "tf32 must be True or False, got 2"),
        (
            {"tf32": True, "way": "captured"},
            ValueError,
            "in captured ones all products are in full precision; choose way='eager'",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        cupy_backend.CupyBackend(**options)


@pytest.mark.parametrize(("tf32", "dtype", "compute"), [(False, "f4", 68), (True, "f4", 77), (True, "f8", 70)])
def test_precision_is_asked_for_with_each_product(tf32, dtype, compute):
    own = backend("eager", tf32=tf32)
    cupy_double.products.clear()
    train(replace(LONG, epochs=1), own, dtype)
    assert set(cupy_double.products) == {compute}


# --- memory ---------------------------------------------------------------------------------------------------------


def test_an_arena_cuts_one_allocation_into_aligned_arrays():
    arena = Arena({"a": ((3, 5), np.float32), "b": ((1,), np.float64), "c": ((0,), np.int32), "d": ((7,), np.int64)})
    arrays = arena.allocate(cupy_double)
    assert arena.nbytes == 3 * 256
    assert {n: (a.shape, a.dtype) for n, a in arrays.items()} == {
        "a": ((3, 5), np.float32),
        "b": ((1,), np.float64),
        "c": ((0,), np.int32),
        "d": ((7,), np.int64),
    }
    starts = [a.data.ptr for a in arrays.values()]
    assert all(s % 256 == 0 for s in starts)
    assert starts[3] - starts[0] == 512


def test_what_a_step_takes_is_known_before_and_refused_with_what_would_fit(monkeypatch):
    own = backend()
    wide = replace(LONG, units=(5, 400, 3))
    state, data = wide.state(own, "float32"), wide.device_data(own, "float32")
    before = own.memory_info()["used"]
    step = TrainingStep(own, OwnProducts(own, 4), wide.plan("float32"), state, data, captured=True)
    assert own.memory_info()["used"] - before == step.nbytes
    big = replace(wide.plan("float32"), batch=20)
    small = cupy_memory.step_arena(replace(big, batch=7), OwnProducts(own, 4), len(data.x), data.y).nbytes
    room = {"free": small - 10, "kept": 10}
    monkeypatch.setattr(type(own), "memory_info", lambda self: room)
    with pytest.raises(
        MemoryError, match=rf"batches of 20 rows needs .* {small:,} are free; the largest .* is \d+"
    ) as e:
        TrainingStep(own, OwnProducts(own, 4), big, state, data, captured=True)
    largest = int(str(e.value).split()[-1])
    assert largest >= 7
    assert cupy_memory.step_arena(replace(big, batch=largest), OwnProducts(own, 4), len(data.x), data.y).nbytes <= small
    room["free"] = 100
    with pytest.raises(MemoryError, match="not even a batch of one row fits"):
        TrainingStep(own, OwnProducts(own, 4), big, state, data, captured=True)


def test_the_order_of_an_epoch_is_uploaded_once(monkeypatch):
    own = backend()
    session, state, data = own.open(LONG.plan("float32")), LONG.state(own, "float32"), LONG.device_data(own, "float32")
    order, table, copies = own.asarray(LONG.order(0)), LONG.table(0, 0, "float32"), []
    copy = cupy_double.ndarray.__setitem__

    def count(self, index, value):
        copies.append(value is order)
        copy(self, index, value)

    monkeypatch.setattr(cupy_double.ndarray, "__setitem__", count)
    for first in range(3):
        own.train_steps(session, state, data, order, table[first : first + 1], first, np.zeros(3))
    assert sum(copies) == 1


def test_functions_of_a_users_own_run_on_the_host_with_the_same_result(caplog):
    class Own(SGD):
        def update(self, p, g, moments, scalars, scratch):
            np.multiply(g, scalars.rate, out=scratch)
            p -= scratch

    fastmlp.register_activation("cube", lambda z: (z**3, 3 * z**2))
    fastmlp.register_loss("fourth", lambda z, t: (((z - t) ** 4).mean(1), 4 * (z - t) ** 3 / z.shape[1]))
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(20, 4)) / 4, rng.normal(size=(20, 3)), rng.uniform(size=20)
    found = []
    for where in ("numpy", backend()):
        model = fastmlp.MLP(
            (4, 5, 3), activation="cube", loss="fourth", dropout=0.3, backend=where, dtype="float64", seed=0
        )
        model.fit(x, y, sample_weight=w, epochs=2, optimizer=Own(0.1, weight_decay=0.1), batch_size=8, verbose=0)
        found.append([*model.get_weights(), model.predict(x)])
    for a, b in zip(*found, strict=True):
        assert_close(b, a, k=40, scale=1)
    assert "cube: a function of your own cannot be compiled" in caplog.text


def test_chunks_cover_what_trains_and_nothing_else():
    scenario = Scenario("", (50, 60, 3, 2), {}, SGD(), frozen=(False, True, False))
    plan = scenario.plan("float32")
    after = cupy_memory.Gradients.after
    places = [after(0, (3000, 60), (3, 3)), None, after(10**4, (6, 2), (1, 4))]
    table = cupy_memory.chunk_table(plan, places)
    seen = np.zeros(plan.layout.size, int)
    for start, stop, is_weight, slabs, behind, stride in table.tolist():
        seen[start:stop] += 1
        assert stop - start <= 1024
        assert bool(is_weight) == (stop <= plan.layout.weights_size)
        layer = max(k for k in (0, 2) if plan.layout.offsets[k][1 - is_weight] <= start)
        place = places[layer]
        assert (slabs, stride) == (place.slabs[1 - is_weight], place.stride)
        assert behind + plan.layout.offsets[layer][1 - is_weight] == (place.weights if is_weight else place.biases)
    expected = np.zeros(plan.layout.size, int)
    for layer, (w, b) in enumerate(plan.layout.views(expected)):
        w[...] = b[...] = not plan.spec.frozen[layer]
    assert (seen == expected).all()


# --- real digits ----------------------------------------------------------------------------------------------------


def digits(way, rows, epochs):
    (x, y), _ = fastmlp.datasets.load_mnist()
    losses = []
    for where in ("numpy", backend(way)):
        model = fastmlp.MLP((784, 32, 16, 10), activation="tanh", backend=where, dtype="float64", seed=1)
        history = model.fit(x[:rows], y[:rows], epochs=epochs, batch_size=64, optimizer=Adam(), verbose=0)
        losses.append(history.history["loss"])
    return losses


def test_an_epoch_over_real_digits_gives_numpys_loss():
    expected, found = digits("captured", 512, 2)
    assert_close(found, expected, dtype="float64", k=784 * 16, c=16)


@pytest.mark.whole_ladder
@pytest.mark.parametrize("way", ["captured", "eager"])
def test_three_epochs_over_4096_real_digits_give_numpys_losses(way):
    expected, found = digits(way, 4096, 3)
    assert len(found) == 3
    assert_close(found, expected, dtype="float64", k=784 * 192, c=16)
