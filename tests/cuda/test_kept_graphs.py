"""Graphs serve the next fit: nothing is captured anew where only rows have changed, and no number is another."""

import gc
import weakref

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import needs_emulator

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import choice as cupy_choice
from fastmlp.backends.cuda import memory as cupy_memory
from fastmlp.backends.cuda import step as cupy_step

pytestmark = [needs_emulator, pytest.mark.cuda_host]

BATCH = 4


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cp)


@pytest.fixture
def captures(monkeypatch):
    """The (steps, rows) of each graph that is captured, of a run and not of a proof."""
    found, own = [], cupy_step.TrainingStep._captured_steps
    monkeypatch.setattr(cupy_choice, "prove", lambda *_: "")

    def counted(self, steps, rows):
        found.append((steps, rows))
        return own(self, steps, rows)

    monkeypatch.setattr(cupy_step.TrainingStep, "_captured_steps", counted)
    return found


def made(way="captured", **network):
    backend = cupy_backend.CupyBackend(way=way)
    return fastmlp.MLP((5, 7, 3), activation="tanh", dropout=0.2, backend=backend, seed=0, **network)


def rows(n, seed, dtype="f4"):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)) if dtype != "u1" else rng.integers(0, 256, (n, 5))
    return x.astype(dtype), rng.integers(0, 3, n)


def fit(model, x, y, epochs=1, **options):
    model.fit(x, y, epochs=epochs, batch_size=BATCH, optimizer=fastmlp.Adam(), verbose=0, **options)


def trained(way, fits):
    model = made(way)
    for n, seed, options in fits:
        fit(model, *rows(n, seed), **options)
    return model.get_weights()


# 81 rows: long graphs, single steps, a short batch; then fewer, a shorter batch, none, and as many again
FITS = [(81, 0, {}), (42, 1, {}), (40, 2, {}), (81, 3, {})]


def test_fits_on_other_rows_capture_nothing_and_compute_the_same(captures):
    """As those whose steps are made anew each time, to the bit."""
    kept = trained("captured", FITS)
    # 41 rows leave 2 in their short batch, 81 leave 1: each number of rows has a graph of its own, once
    assert len(captures) == len(set(captures))
    captures.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cupy_memory, "KEPT", 0)
        anew = trained("captured", FITS)
    assert len(captures) > len(set(captures))
    for a, b in zip(kept, anew, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize(("less", "again"), [(0, 0), (1, 1)], ids=["as much", "more"])
def test_steps_that_take_more_than_a_bound_end_with_their_run(less, again, captures, monkeypatch):
    x, y = rows(40, 0)
    plan, products = _plan_and_products()
    taken = cupy_memory.steps_bytes(plan, products, fastmlp.backends.data.HostData(x, y, None))
    monkeypatch.setattr(cupy_memory, "KEPT", taken - less)
    model = made()
    gc.collect()  # of what other tests have left
    before = model.backend.memory_info()["used"]
    used = []
    for _ in range(3):
        captures.clear()
        fit(model, x, y)
        used.append(model.backend.memory_info()["used"] - before)
    assert len(captures) == again
    assert used[1] == used[2]
    moments = 2 * model._learner.state.params.nbytes
    assert used[2] == moments + (0 if again else taken)
    model.close()
    assert model.backend.memory_info()["used"] - before == moments


def test_where_there_is_no_room_for_copies_there_are_none(monkeypatch):
    plan, products = _plan_and_products()
    x, y = rows(40, 0)
    taken = cupy_memory.steps_bytes(plan, products, fastmlp.backends.data.HostData(x, y, None))
    model = made()
    state, backend = model._learner.state, model.backend
    state.begin(plan.optimizer, backend.zeros, backend.copy)
    data = fastmlp.backends.data.DeviceData(cp.asarray(x), cp.asarray(y), None)
    for less, copied in ((0, True), (1, False)):
        monkeypatch.setattr(type(backend), "memory_info", lambda self, less=less: {"free": taken - less, "kept": 0})
        step = cupy_step.TrainingStep(backend, products, plan, state, data, captured=True)
        assert bool(step._copies) == step.let_go() == copied
        assert (step.nbytes == taken) == copied


def _plan_and_products():
    backend = cupy_backend.CupyBackend(way="captured")
    plan = made()._learner.plan(BATCH, fastmlp.Adam())
    return plan, backend._ways_of(plan)[0]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((40, "f4", None), (44, "f4", None)),
        ((40, "f4", None), (40, "f8", None)),
        ((40, "f4", None), (40, "f4", 1.5)),
        ((40, "f4", 1.5), (40, "f4", None)),
    ],
    ids=["more rows", "another type", "weights", "no weights"],
)
def test_data_of_another_kind_are_captured_anew(first, second, captures):
    results = []
    for limit in (cupy_memory.KEPT, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cupy_memory, "KEPT", limit)
            model = made()
            for seed, (n, dtype, weight) in enumerate((first, second)):
                x, y = (cp.asarray(a) for a in rows(n, seed, dtype))
                weights = None if weight is None else np.linspace(0.5, weight, n).astype("f4")
                captures.clear()
                fit(model, x, y, sample_weight=weights)
                assert captures, "the graphs of other data were taken"
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        assert_same_bits(a, b)


def test_weights_that_are_set_and_moments_that_begin_anew_are_those_trained(captures):
    """Buffers that are others than those captured are never trained in the place of the model's."""
    model, reference = made(), made("eager")
    for m in (model, reference):
        fit(m, *rows(40, 0))
        m.set_weights([np.full_like(w, 0.01) for w in m.get_weights()])
        fit(m, *rows(40, 1))
        m.fit(*rows(40, 2), epochs=1, batch_size=BATCH, optimizer=fastmlp.SGD(0.1), verbose=0)
        fit(m, *rows(40, 3))
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_arrays_of_the_user_are_let_go_after_a_fit_and_may_change(captures):
    x, y = (cp.asarray(a) for a in rows(40, 0))
    model = made()
    fit(model, x, y)
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None
    other, _ = rows(40, 1)
    x = cp.asarray(other)
    captures.clear()
    fit(model, x, y)
    x[...] = cp.asarray(rows(40, 2)[0])  # the very array of the fit before, with other numbers
    fit(model, x, y)
    assert not captures
    expected = made()
    fit(expected, *rows(40, 0))
    fit(expected, other, y.get())
    fit(expected, x.get(), y.get())
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_a_stream_of_batches_captures_its_first_alone(captures):
    estimator = fastmlp.MLPClassifier((7,), backend=cupy_backend.CupyBackend(way="captured"), batch_size=BATCH)
    for seed in range(5):
        estimator.partial_fit(*rows(20, seed), classes=[0, 1, 2])
    assert len(captures) == 1


def test_copies_are_part_of_what_a_fit_is_said_to_take():
    plan, products = _plan_and_products()
    data = fastmlp.backends.data.HostData(*rows(40, 0), None)
    with pytest.MonkeyPatch.context() as patch:
        taken = cupy_memory.steps_bytes(plan, products, data)
        patch.setattr(cupy_memory, "KEPT", 0)
        assert taken - cupy_memory.steps_bytes(plan, products, data) == 1536  # x and y, each a multiple of 256
