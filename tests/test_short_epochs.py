"""Short epochs are trained several at once: to the bit what they are one by one, whatever ends the run, and when."""

import numpy as np
import pytest

import fastmlp
from fastmlp import MLP, Callback
from fastmlp.backends.cpu.backend import NumbaBackend
from fastmlp.engine import callbacks, loop
from fastmlp.engine.batches import Orders
from fastmlp.errors import NonFiniteLossError, TrainingInterrupted

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 6))
Y = RNG.integers(0, 3, 50)
WEIGHTS = RNG.random(50)
WEIGHTS[:20] = 0  # in the order of the data, the whole first batch of 16


class Blind(Callback):
    """Goes by figures alone; does something at the end of an epoch."""

    sees_model = False

    def __init__(self, at=0, act=lambda run: None):
        self.at, self.act, self.told = at, act, []

    def on_epoch_begin(self, run):
        self.told.append(("begin", run.epoch))

    def on_steps(self, run):
        self.told.append(("steps", run.steps_done))

    def on_epoch_end(self, run, figures):
        self.told.append((run.epoch, figures["loss"], figures["accuracy"], figures["learning_rate"]))
        if run.epoch == self.at:
            self.act(run)


@pytest.fixture
def calls(monkeypatch):
    """How many epochs each call has taken; calls may take long, so that the number follows from no clock."""
    found = []
    original = NumbaBackend.train_epochs

    def noted(self, session, state, data, orders, *rest):
        found.append(len(orders))
        return original(self, session, state, data, orders, *rest)

    monkeypatch.setattr(NumbaBackend, "train_epochs", noted)
    monkeypatch.setattr(loop, "AT_ONCE_SECONDS", 1e6)
    return found


def one_by_one(monkeypatch):
    monkeypatch.setattr(loop, "SHORT_EPOCH", 0)


def model_of(**given):
    return MLP((6, 8, 3), seed=3, backend="numba", **given)


def left(model):
    """Return all that a model has learned, and the figures of its history but for the seconds."""
    state = model._learner.state
    arrays = [state.params, *state.moments, *([] if state.average is None else [state.average])]
    return [a.tobytes() for a in arrays], state.step, state.optimizer_step


def figures_of(history):
    return {name: values for name, values in history.history.items() if name != "epoch_seconds"}


FITS = {
    "plain": ({}, {"optimizer": fastmlp.SGD(0.1)}),
    "adam": ({}, {}),
    "a whole number of batches": ({}, {"batch_size": 10}),
    "one batch": ({}, {"batch_size": 50}),
    "all that changes by the step": (
        {"dropout": 0.3, "max_norm": 1.0, "l2": 1e-3, "dtype": "float64"},
        {"optimizer": fastmlp.Adam(fastmlp.Cosine(0.1), clip_norm=1.0, ema=0.9)},
    ),
    "weights": ({}, {"sample_weight": WEIGHTS, "shuffle": False, "optimizer": fastmlp.SGD(0.1, momentum=0.9)}),
}


@pytest.mark.parametrize("kind", FITS)
@pytest.mark.parametrize("threads", [1, 2])
def test_epochs_at_once_train_as_one_by_one(calls, monkeypatch, kind, threads):
    network, asked = FITS[kind]
    asked = {"epochs": 12, "batch_size": 16, "verbose": 0, **asked}
    backend = fastmlp.get_backend("numba", threads=threads)
    found = []
    for way in ("several", "one by one"):
        if way == "one by one":
            assert sorted(calls) == [1, 11]  # how long a step takes is not known before the first
            one_by_one(monkeypatch)
        model = MLP((6, 8, 3), seed=3, backend=backend, **network)
        blind = Blind()
        history = model.fit(X, Y, callbacks=[blind], **asked)
        told = [t for t in blind.told if t[0] != "steps"]
        found.append((left(model), figures_of(history), told))
    assert found[0] == found[1]
    assert sorted(calls) == [1, 11]


@pytest.mark.parametrize("at", [1, 2, 5, 11, 12])
def test_a_run_that_is_stopped_has_trained_no_further(calls, at):
    stopped, plain = model_of(), model_of()
    history = stopped.fit(X, Y, epochs=12, verbose=0, callbacks=[Blind(at, lambda run: run.stop("enough"))])
    assert calls == ([1] if at == 1 else [1, 11] if at >= 12 else [1, 11, at - 1])
    plain.fit(X, Y, epochs=at, verbose=0)
    assert len(history.history["loss"]) == at
    assert history.stop_reason == "enough"
    assert left(stopped) == left(plain)
    stopped.fit(X, Y, epochs=3, verbose=0)
    plain.fit(X, Y, epochs=3, verbose=0)
    assert left(stopped) == left(plain)


def test_an_error_of_a_callback_leaves_the_model_after_its_epoch(calls):
    def fail(run):
        raise RuntimeError("the disk is full")

    failed, plain = model_of(), model_of()
    with pytest.raises(RuntimeError, match="disk"):
        failed.fit(X, Y, epochs=12, verbose=0, callbacks=[Blind(4, fail)])
    plain.fit(X, Y, epochs=4, verbose=0)
    assert left(failed) == left(plain)


def test_a_loss_that_is_not_finite_is_reported_as_one_by_one(calls, monkeypatch):
    found = []
    for way in ("several", "one by one"):
        if way == "one by one":
            one_by_one(monkeypatch)
        model, blind = MLP((6, 8, 1), loss="mean_squared_error", seed=3, backend="numba"), Blind()
        blind.on_epoch_end = lambda run, figures, told=blind.told: told.append(figures["loss"])
        with pytest.raises(NonFiniteLossError) as caught:
            model.fit(X, Y, epochs=60, batch_size=16, optimizer=fastmlp.SGD(0.7), verbose=0, callbacks=[blind])
        error = caught.value
        assert error.epoch > 2
        found.append((str(error), error.epoch, error.step, error.row, error.where, blind.told, left(model)))
    assert found[0] == found[1]


def test_a_run_that_is_stopped_before_a_loss_that_is_not_finite_has_not_met_it(calls):
    def fit(rate, epochs, callbacks=()):
        model = MLP((6, 8, 1), loss="mean_squared_error", seed=3, backend="numba")
        asked = {"batch_size": 16, "optimizer": fastmlp.SGD(rate), "verbose": 0}
        model.fit(X, Y, epochs=epochs, callbacks=callbacks, **asked)
        return left(model)

    def failure(rate):
        try:
            fit(rate, 60)
        except NonFiniteLossError as error:
            return error.epoch, error.step % 4
        return 0, 0

    found = ((rate, *failure(rate)) for rate in np.linspace(0.58, 0.8, 40))
    rate, epoch, _ = next(f for f in found if f[1] > 2 and f[2])  # after some steps of an epoch that does not end
    last = epoch - 1
    blind = Blind()
    blind.on_epoch_end = lambda run, figures: run.epoch == last and run.stop("just in time")
    assert fit(rate, 60, [blind]) == fit(rate, last)


def test_ctrl_c_ends_the_run_after_the_call_at_hand(calls, monkeypatch):
    class Pressed(loop.CtrlC):
        pressed = False

        def __init__(self):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    original = NumbaBackend.train_epochs

    def press(self, *given):
        Pressed.pressed = len(calls) == 1
        return original(self, *given)

    monkeypatch.setattr(loop, "CtrlC", Pressed)
    monkeypatch.setattr(loop, "MOST_AT_ONCE", 5)
    monkeypatch.setattr(NumbaBackend, "train_epochs", press)
    model, plain = model_of(), model_of()
    with pytest.warns(TrainingInterrupted, match="in epoch 7 of 12, after 12 whole steps"):
        history = model.fit(X, Y, epochs=12, batch_size=32, verbose=0)
    Pressed.pressed = False
    assert len(history.history["loss"]) == 6
    plain.fit(X, Y, epochs=6, batch_size=32, verbose=0)
    assert left(model)[0] == left(plain)[0]


class Watch(Callback):
    def __init__(self):
        self.weights = []

    def on_epoch_end(self, run, figures):
        self.weights.append(run.model.get_weights()[0])


@pytest.mark.parametrize(
    "asked",
    [
        {"callbacks": [Watch()]},
        {"validation_split": 0.2},
        {"metrics": ["f1_macro"]},
        {"optimizer": fastmlp.SGD(fastmlp.ReduceOnPlateau(0.1, monitor="loss"))},
    ],
    ids=["a callback", "validation", "metrics", "a schedule"],
)
def test_what_looks_at_the_model_after_each_epoch_sees_that_epochs(calls, asked):
    model_of().fit(X, Y, epochs=6, verbose=0, **asked)
    assert calls == []
    for callback in asked.get("callbacks", []):
        expected = model_of()
        for weights in callback.weights:
            expected.fit(X, Y, epochs=1, verbose=0)
            np.testing.assert_array_equal(weights, expected.get_weights()[0])


def test_long_epochs_are_not_taken_together(calls, monkeypatch):
    monkeypatch.setattr(loop, "SHORT_EPOCH", 50 * model_of()._learner.state.layout.size - 1)
    model_of().fit(X, Y, epochs=3, verbose=0)
    assert calls == []
    monkeypatch.setattr(loop, "SHORT_EPOCH", 50 * model_of()._learner.state.layout.size)
    model_of().fit(X, Y, epochs=3, verbose=0)
    assert calls == [1, 2]


@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [1, 1, 1, 1, 1]), (1e6, [1, 4])])
def test_as_many_are_taken_as_last_some_milliseconds(calls, monkeypatch, seconds, expected):
    monkeypatch.setattr(loop, "AT_ONCE_SECONDS", seconds)
    model_of().fit(X, Y, epochs=5, verbose=0)
    assert calls == expected


@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_an_estimator_stops_at_the_same_epoch_with_the_same_curve(calls, monkeypatch, alpha):
    found = []
    for most in (64, 1):
        monkeypatch.setattr(loop, "MOST_AT_ONCE", most)
        estimator = fastmlp.MLPClassifier((8,), alpha=alpha, tol=1e-2, random_state=0, backend="numba")
        estimator.fit(X, Y)
        found.append((estimator.n_iter_, estimator.loss_curve_, [w.tobytes() for w in estimator.coefs_]))
    assert 10 < found[0][0] < 199
    assert found[0] == found[1]


def test_the_penalty_is_that_of_the_weights_after_each_epoch(calls, monkeypatch):
    """scikit-learn's own count is the oracle; before a step, and so a step behind."""
    curves = []
    for backend in ("numba", "numpy"):
        estimator = fastmlp.MLPClassifier((8,), alpha=10.0, max_iter=30, epochs=30, random_state=0, dtype="float64")
        curves.append(estimator.set_params(backend=backend).fit(X, Y).loss_curve_)
    assert max(calls) > 1
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_norm_of_the_weights_has_the_same_bits_wherever_it_is_taken(calls, monkeypatch, dtype):
    class Norms(Blind):
        def on_epoch_end(self, run, figures):
            self.told.append(run.squared_norm())

    found = []
    for way in ("several", "one by one"):
        if way == "one by one":
            one_by_one(monkeypatch)
        norms, model = Norms(), model_of(dtype=dtype)
        model.fit(X, Y, epochs=9, verbose=0, callbacks=[norms])
        found.append([t for t in norms.told if isinstance(t, float)])
    assert found[0] == found[1]
    assert len(set(found[0])) == 9
    assert found[0][-1] == pytest.approx(sum(np.sum(w.astype("f8") ** 2) for w in model.get_weights()[::2]), rel=1e-14)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("training", [None, np.arange(7, 37)])
def test_orders_of_several_epochs_are_those_of_each(shuffle, training):
    orders = Orders(5, 30, shuffle, np.asarray, training)
    begins = range(3, 12, 4)
    np.testing.assert_array_equal(orders.of_epochs(begins), [orders.of_epoch(step).host for step in begins])


def test_a_function_of_ones_own_goes_on_epoch_by_epoch(calls):
    fastmlp.register_activation("cube", lambda z: (z**3, 3 * z**2))
    MLP((6, 8, 3), activation="cube", seed=3, backend="numba").fit(X, Y, epochs=3, verbose=0)
    assert calls == []


@pytest.mark.parametrize("rate", ["constant", "invscaling", "adaptive"])
def test_an_estimators_rate_that_follows_the_epochs_is_that_of_each(calls, rate):
    asked = {"solver": "sgd", "learning_rate": rate, "max_iter": 4, "epochs": 4, "random_state": 0}
    found = fastmlp.MLPClassifier((8,), backend="numba", **asked).fit(X, Y)
    assert calls == ([1, 3] if rate == "constant" else [])
    same = fastmlp.MLPClassifier((8,), backend="numpy", **asked).fit(X, Y)
    assert found.history_.history["learning_rate"] == same.history_.history["learning_rate"]


# --- checkpoints by the clock -------------------------------------------------------------------------------------


def names_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize("stop", [0, 5, 12])
def test_checkpoints_by_the_clock_leave_epochs_together_and_hold_what_was_trained_until_then(calls, tmp_path, stop):
    asked = {"epochs": 12, "batch_size": 16, "verbose": 0, "optimizer": fastmlp.Adam(fastmlp.Cosine(0.1), ema=0.9)}
    whole = model_of(dropout=0.3)
    figures = figures_of(whole.fit(X, Y, **asked))
    calls.clear()
    saving = [fastmlp.Checkpoint(tmp_path / "{epoch}", every_seconds=0), Blind(stop, lambda run: run.stop("enough"))]
    model_of(dropout=0.3).fit(X, Y, callbacks=saving, **asked)
    assert calls == ([1, 11, 4] if stop == 5 else [1, 11])
    kept = [1, 5] if stop == 5 else [1, 12]  # of epochs in one call the model of the last is there, or of where it ends
    assert names_in(tmp_path) == kept
    for epoch in kept:
        model = fastmlp.load(tmp_path / str(epoch), "numba")
        if epoch < 12:
            assert figures_of(model.resume(X, Y, verbose=0)) == figures
        assert left(model) == left(whole)


class At(Callback):
    """Does something after a step of a run."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def next_step(self, run):
        return self.step

    def on_steps(self, run):
        if run.steps_done == self.step:
            self.act(run)


def test_a_checkpoint_by_the_clock_is_written_where_the_time_is_up_or_training_ends(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])

    def second(run):
        now[0] += 1.0

    asked = {"batch_size": 25, "verbose": 0}
    for folder, seconds, act, written in (
        ("often", 1.0, None, range(1, 8)),
        ("seldom", 3.0, None, [3, 6, 7]),
        ("never", 1e6, None, [7]),
        ("stopped", 1e6, At(6, lambda run: run.stop("enough")), [3]),
        ("stopped within", 1e6, At(5, lambda run: run.stop("enough")), [2]),
    ):
        (tmp_path / folder).mkdir()
        told = [fastmlp.Checkpoint(tmp_path / folder / "{epoch}", every_seconds=seconds), At(99, second)]
        told[1].on_epoch_end = lambda run, figures: second(run)
        model = MLP((6, 3), backend="numpy", seed=3)
        model.fit(X, Y, epochs=7, callbacks=[*told, *([act] if act else [])], **asked)
        assert names_in(tmp_path / folder) == list(written), folder
    within = fastmlp.load(tmp_path / "stopped within" / "2", "numpy")
    assert within.steps == 5
    within.resume(X, Y, verbose=0)
    whole = MLP((6, 3), backend="numpy", seed=3)
    whole.fit(X, Y, epochs=7, **asked)
    assert left(within) == left(whole)


def test_no_checkpoint_by_the_clock_is_written_at_an_error(calls, tmp_path):
    def broken(run):
        raise RuntimeError("a bug")

    saving = fastmlp.Checkpoint(tmp_path / "{epoch}", every_seconds=1e6)
    with pytest.raises(RuntimeError, match="a bug"):
        model_of().fit(X, Y, epochs=12, verbose=0, callbacks=[saving, Blind(12, broken)])
    assert names_in(tmp_path) == []
