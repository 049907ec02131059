"""How often training waits for the device and copies to it: once an epoch, apart from looks at 50 ms of work."""

import itertools
from collections import Counter

import cupy_double
import numpy as np
import pytest
from emulator import needs_emulator

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import step as cupy_step
from fastmlp.engine import loop as training

pytestmark = [needs_emulator, pytest.mark.cuda_host]


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cupy_double)
    ticks = itertools.count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: 1e-6 * next(ticks))  # a step takes next to nothing


@pytest.fixture(params=["captured", pytest.param("eager", marks=pytest.mark.whole_ladder)])
def model(request):
    backend = cupy_backend.CupyBackend(way=request.param)
    return fastmlp.MLP((4, 5, 3), backend=backend, seed=0, dropout=0.2)


def rows(n=24):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4)).astype("f4"), rng.integers(0, 3, n)


class Counting(fastmlp.Callback):
    """Keeps what the double has counted in each epoch."""

    def __init__(self):
        self.epochs, self.calls = [], []

    def on_epoch_begin(self, run):
        cupy_double.counts.clear()
        self.calls.append(0)

    def on_steps(self, run):
        self.calls[-1] += 1

    def on_epoch_end(self, run, figures):
        self.epochs.append(Counter(cupy_double.counts))


def fit(model, **changes):
    counting = Counting()
    x, y = rows()
    options = {"epochs": 4, "batch_size": 3, "verbose": 0, "callbacks": [counting]} | changes
    options["callbacks"] = [*dict.fromkeys([counting, *options["callbacks"]])]
    counting.history = model.fit(x, y, **options).history
    return counting


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_waits_for_the_device_once_and_its_order_was_there_before(model, shuffle):
    counting = fit(model, shuffle=shuffle)
    assert counting.calls == [1, 1, 1, 1]
    # the scalars and the position of the call; the order of the next epoch, where there is one
    order = int(shuffle)
    assert [c["uploads"] for c in counting.epochs[1:]] == [2 + order, 2 + order, 2]
    assert [c["synchronisations"] for c in counting.epochs[1:]] == [1, 1, 1]


def test_validation_data_is_uploaded_once_a_run(model, monkeypatch):
    validation = rows(9)
    figures = {}
    for room in (2**30, 200):
        monkeypatch.setattr(model.backend, "rows_at_once", lambda width, room=room: max(room // width, 1))
        monkeypatch.setattr(fastmlp.engine.inference, "SMALL_BYTES", 0)
        fresh = fastmlp.MLP((4, 5, 3), backend=model.backend, seed=0)
        metric = {"right": lambda y, p: float((y == p).mean())}
        counting = fit(fresh, validation_data=validation, metrics=metric, epochs=3)
        figures[room] = {name: values for name, values in counting.history.items() if name != "epoch_seconds"}
        uploads = [c["uploads"] for c in counting.epochs[1:]]
        if room > 200:
            # the scalars, the position, the next order; the training data for the metric
            assert uploads == [4, 3]
        else:
            assert min(uploads) > 4  # in parts, each epoch
    assert figures[2**30].keys() >= {"val_loss", "val_accuracy", "val_right"}
    for name, values in figures[2**30].items():
        assert values == pytest.approx(figures[200][name], rel=1e-6), name


def test_the_order_of_the_next_epoch_is_uploaded_while_the_device_works(model, monkeypatch):
    events, asarray, get, queue = [], cupy_double.asarray, cupy_double.ndarray.get, cupy_step.TrainingStep._queue
    backend = type(model.backend)
    streams = []

    def upload(self, array):
        if len(array) == 24:  # and no scalars of a call
            events.append("order")
            streams.append(cupy_double.cuda.get_current_stream())
        return asarray(array)

    monkeypatch.setattr(backend, "asarray", upload)
    monkeypatch.setattr(cupy_double.ndarray, "get", lambda self, *a, **k: events.append("wait") or get(self, *a, **k))
    monkeypatch.setattr(cupy_step.TrainingStep, "_queue", lambda self, *a: events.append("steps") or queue(self, *a))
    fit(model, epochs=1)  # whatever is done once is done
    events.clear()
    fit(model, epochs=3)
    # the weights, kept in case that a step spoils them; x, y, and the first order, which nobody made ahead
    assert events[:5] == ["wait", "order", "order", "order", "steps"]
    # once the run is over, one look at the weights and the moments
    assert events[5:] == ["order", "wait", "steps", "order", "wait", "steps", "wait", "wait"]
    assert len(set(map(id, streams))) == 1  # not the stream on which the steps are queued


def test_orders_made_ahead_are_those_of_other_backends(model):
    other = fastmlp.MLP((4, 5, 3), backend="numpy", seed=0, dropout=0.2)
    fit(model)
    fit(other)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_an_order_made_ahead_is_not_taken_by_another_run(model):
    other = fastmlp.MLP((4, 5, 3), backend="numpy", seed=0, dropout=0.2)

    class StopsEarly(fastmlp.Callback):
        def on_steps(self, run):
            if run.epoch == 1:
                run.stop("planted")

        def next_step(self, run):
            return 11

    for m in (model, other):
        fit(m, callbacks=[StopsEarly()])
        assert m.steps == 11
        fit(m)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_look_waits_for_at_most_50_ms_of_work(model, monkeypatch):
    clock, asked = [0.0], []
    steps = type(model.backend).train_steps

    def slow(self, session, state, data, order, table, first, totals):
        asked.append(len(table))
        clock[0] += 0.02 * len(table)  # a step takes 20 ms
        return steps(self, session, state, data, order, table, first, totals)

    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(type(model.backend), "train_steps", slow)
    counting = fit(model, epochs=2)
    assert asked == [8, 2, 2, 2, 2]  # 8 before anything is known
    assert [c["synchronisations"] for c in counting.epochs[1:]] == [4]
    assert [c["uploads"] for c in counting.epochs[1:]] == [4 * 2]


def test_the_memory_of_steps_and_data_is_free_when_a_run_has_ended(model, monkeypatch):
    monkeypatch.setattr("fastmlp.backends.cuda.memory.KEPT", 0)
    fit(model)
    used = [model.backend.memory_info()["used"]]
    x, y = rows(120)
    for _ in range(2):
        model.fit(x, y, epochs=1, batch_size=40, verbose=0)
        used.append(model.backend.memory_info()["used"])
    assert used[0] == used[1] == used[2]
    with pytest.raises(fastmlp.NonFiniteLossError):
        model.fit(np.full_like(x, np.finfo(x.dtype).max), y, epochs=1, batch_size=3, verbose=0)
    model.close()
    parameters = 3 * model._learner.state.params.nbytes  # Adam's moments too
    assert model.backend.memory_info()["used"] <= used[0] + parameters
