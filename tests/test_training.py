"""The training loop: callbacks, interruption, limits, and the stop at a loss that is not finite."""

import csv
import math
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits

import fastmlp
from fastmlp.backends import session
from fastmlp.engine import loop
from fastmlp.engine.batches import Orders
from fastmlp.formulas.random_bits import epoch_order


class Recorder(fastmlp.Callback):
    """Notes every call that it gets."""

    def __init__(self, every=None):
        self.every, self.calls, self.steps = every, [], []

    def on_train_begin(self, run):
        self.calls.append("begin")

    def on_epoch_begin(self, run):
        self.calls.append(f"epoch {run.epoch} begins")

    def on_steps(self, run):
        self.steps.append(run.steps_done)

    def on_epoch_end(self, run, figures):
        self.calls.append(f"epoch {run.epoch} ended")

    def on_train_end(self, run):
        self.calls.append("end, failed" if run.failed else "end")

    def next_step(self, run):
        return None if self.every is None else (run.steps_done // self.every + 1) * self.every


def test_callbacks_are_called_in_order(backend):
    recorder = Recorder()
    small(backend).fit(*blobs(), epochs=2, callbacks=[recorder], verbose=0)
    assert recorder.calls == [
        *("begin", "epoch 0 begins", "epoch 1 ended", "epoch 1 begins", "epoch 2 ended", "end"),
    ]


class Refuses(fastmlp.Callback):
    """Raises an error before the first step."""

    def on_train_begin(self, run):
        raise ZeroDivisionError


def test_an_error_as_a_callback_begins_ends_those_that_began(backend):
    before, timer, after, last = Recorder(), fastmlp.EpochTimer(), Recorder(), Recorder()
    for callbacks in ([before, Refuses(), last], [before, timer, after, Refuses(), last]):
        with pytest.raises(ZeroDivisionError):
            small(backend).fit(*blobs(), epochs=2, callbacks=callbacks, verbose=0)
    assert before.calls == ["begin", "end, failed"] * 2 and after.calls == ["begin", "end, failed"]
    assert last.calls == []
    assert [row.epoch for row in timer.times] == [None]  # its clock was taken away


def test_a_run_that_is_refused_gives_the_terminal_its_cursor_back(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, standard output is a terminal then
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ZeroDivisionError):
        small("numpy").fit(*blobs(), epochs=2, callbacks=[fastmlp.ProgressBar(), Refuses()])
    out = capsys.readouterr().out
    hides, shows = "\x1b[?25l", "\x1b[?25h"
    assert out.count(hides) == out.count(shows) == 1 and out.index(hides) < out.index(shows)


def test_a_callback_is_called_at_exactly_the_steps_it_asks_for(backend):
    recorder = Recorder(every=5)
    small(backend).fit(*blobs(), epochs=3, batch_size=16, callbacks=[recorder], verbose=0)
    assert set(range(5, 40, 5)) <= set(recorder.steps)
    assert recorder.steps[-1] == 39


def test_each_row_is_taken_once_an_epoch_and_the_last_batch_is_shorter(backend):
    x, y = blobs(50)
    seen = []
    original = type(backend).gather_rows

    def spy(self, source, order, out, scratch=None):
        if source is x_here:
            seen.append(np.array(backend.to_numpy(order)))
        original(self, source, order, out, scratch)

    x_here = x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backend), "gather_rows", spy)
        model = small(backend)
        model.fit(x, y, epochs=2, batch_size=16, verbose=0)
    if not seen:
        pytest.skip(f"{backend.name} gathers inside a compiled call")
    assert [len(rows) for rows in seen] == [16, 16, 16, 2] * 2
    for epoch in (0, 1):
        rows = np.concatenate(seen[4 * epoch : 4 * epoch + 4])
        np.testing.assert_array_equal(rows, epoch_order(1, 4 * epoch, 50))
    assert sorted(np.concatenate(seen[:4])) == list(range(50))


def test_without_shuffle_rows_keep_their_order(backend):
    x, y = blobs(64)
    a, b = small(backend, dtype="float64"), small(backend, dtype="float64")
    a.fit(x, y, epochs=1, batch_size=32, optimizer=fastmlp.SGD(0.1), shuffle=False, verbose=0)
    for part in (slice(0, 32), slice(32, 64)):
        b.fit(x[part], y[part], epochs=1, batch_size=32, optimizer=fastmlp.SGD(0.1), shuffle=False, verbose=0)
    np.testing.assert_allclose(a.get_weights()[0], b.get_weights()[0], rtol=1e-12)


def test_training_figures_are_those_of_the_rows_as_they_were_trained_on(backend):
    x, y = blobs(96)
    model = small(backend, dtype="float64")
    before = small(backend, dtype="float64")
    history = model.fit(x, y, epochs=1, batch_size=96, verbose=0).history
    expected = before.evaluate(x, y)
    assert history["loss"][0] == pytest.approx(expected["loss"], rel=1e-12)
    assert history["accuracy"][0] == expected["accuracy"]


def test_early_stopping_stops_and_goes_back_to_the_best_epoch(backend):
    x, y = blobs(60)
    rng = np.random.default_rng(1)  # another than that of the blobs
    model = small(backend)
    snapshots = []

    class Keep(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            snapshots.append((figures["val_loss"], run.model.get_weights()[0]))

    stopping = fastmlp.EarlyStopping(patience=3)
    history = model.fit(
        *(x, rng.integers(0, 3, 60)),  # noise, so that validation soon gets worse
        epochs=200,
        optimizer=fastmlp.Adam(0.05),
        validation_data=(x, y),
        callbacks=[Keep(), stopping],
        verbose=0,
    )
    losses = [loss for loss, _ in snapshots]
    best = int(np.argmin(losses))
    assert history.epochs == best + 1 + 3 == len(losses) < 200
    assert stopping.best_epoch == best + 1 and stopping.best == losses[best]
    assert "val_loss has not improved since epoch" in history.stop_reason
    assert_same_bits(model.get_weights()[0], snapshots[best][1])


def test_a_trial_of_steps_knows_of_a_time_limit(backend, monkeypatch):
    """A million epochs with one are as long as it is."""
    ahead = []
    monkeypatch.setattr(loop, "Ahead", lambda *given: ahead.append(given) or session.Ahead(0))
    x, y = blobs(60)
    for callbacks, seconds in (([], math.inf), ([fastmlp.TimeLimit(9.0), fastmlp.TimeLimit(3.0)], 3.0)):
        small(backend).fit(x, y, epochs=2, batch_size=30, callbacks=callbacks, verbose=0)
        assert ahead.pop() == (4, 0.0, seconds)


def test_a_time_limit_does_not_count_what_comes_before_the_first_step(backend, monkeypatch):
    prepare = type(backend).prepare

    def slow(self, *given):
        time.sleep(0.3)
        prepare(self, *given)

    monkeypatch.setattr(type(backend), "prepare", slow)
    model, limit = small(backend), fastmlp.TimeLimit(0.25)
    for _ in range(2):  # as often as it is used
        began = time.perf_counter()
        history = model.fit(*blobs(), epochs=10**6, callbacks=[limit], verbose=0)
        assert time.perf_counter() - began > 0.5 and model.steps > 0  # an epoch takes the double of CuPy as long
        assert history.stop_reason == "the time limit of 0.25 s was reached"


def test_early_stopping_with_an_average_restores_both(backend):
    x, y = blobs(60)
    model = small(backend)
    kept = []

    class Keep(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            kept.append((figures["loss"], run.model.snapshot()))

    model.fit(
        *(x, y),
        epochs=4,
        optimizer=fastmlp.SGD(fastmlp.StepDecay(0.1, every=2, factor=100.0), ema=0.9),
        batch_size=30,
        callbacks=[Keep(), fastmlp.EarlyStopping("loss")],
        verbose=0,
    )
    best = min(kept, key=lambda k: k[0])[1]
    for name, array in model.snapshot().items():
        assert_same_bits(array, best[name], name)


@pytest.mark.parametrize("epochs", [100, 6], ids=["early stopping ends it", "its last epoch ends it"])
def test_a_run_that_has_ended_goes_back_to_its_best_epoch_when_it_is_resumed(backend, tmp_path, epochs):
    (x, y), path = blobs(60), tmp_path / "checkpoint"
    noise = np.random.default_rng(1).integers(0, 3, 60)

    def callbacks(patience=4, **options):
        return [fastmlp.EarlyStopping(patience=patience, **options), fastmlp.Checkpoint(path)]

    whole = small(backend)
    asked = {"epochs": epochs, "optimizer": fastmlp.Adam(0.05), "validation_data": (x, y), "verbose": 0}
    expected = whole.fit(x, noise, callbacks=callbacks(), **asked)
    assert bool(expected.stop_reason) == (epochs == 100)
    model = fastmlp.load(path, backend)  # the file is that of a run killed between its last epoch and its end
    assert not np.array_equal(model.get_weights()[0], whole.get_weights()[0])
    found = model.resume(x, noise, validation_data=(x, y), callbacks=callbacks(), verbose=0)
    assert (found.history, found.stop_reason) == (expected.history, expected.stop_reason)
    for a, b in zip(model.get_weights(), whole.get_weights(), strict=True):
        assert_same_bits(a, b)
    if epochs == 100:
        model = fastmlp.load(path, backend)
        longer = model.resume(x, noise, validation_data=(x, y), callbacks=callbacks(6), verbose=0)
        assert longer.epochs >= expected.epochs + 2


@pytest.mark.parametrize("patience", [0, 1])
def test_early_stopping_that_keeps_no_weights_ends_a_resumed_run_where_it_ended_the_whole_one(tmp_path, patience):
    x, y = blobs()

    def callbacks():
        stopping = fastmlp.EarlyStopping("loss", patience=patience, min_delta=9, restore_best=False)
        return [stopping, fastmlp.Checkpoint(tmp_path / "{epoch}")]

    whole = small("numpy")
    expected = whole.fit(x, y, epochs=9, callbacks=callbacks(), verbose=0)
    assert expected.epochs == 2
    for epoch in "12":
        model = fastmlp.load(tmp_path / epoch, "numpy")
        found = model.resume(x, y, callbacks=callbacks(), verbose=0)
        assert (found.history["loss"], found.stop_reason) == (expected.history["loss"], expected.stop_reason)
        assert_same_bits(model.get_weights()[0], whole.get_weights()[0])


def test_a_time_limit_ends_the_run_after_a_whole_step(backend):
    started = time.perf_counter()
    history = small(backend).fit(*blobs(), epochs=10**6, callbacks=[fastmlp.TimeLimit(0.3)], verbose=0)
    assert "time limit of 0.3 s" in history.stop_reason
    assert time.perf_counter() - started < 5


def test_the_csv_log_holds_the_history(backend, tmp_path):
    history = small(backend).fit(
        *blobs(), epochs=3, validation_split=0.5, callbacks=[fastmlp.CSVLog(tmp_path / "log.csv")], verbose=0
    )
    history.to_csv(tmp_path / "history.csv")
    for name in ("log.csv", "history.csv"):
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["epoch", *history.history]
        assert [[float(v) for v in row[1:]] for row in rows[1:]] == [
            list(v) for v in zip(*history.history.values(), strict=True)
        ]


def test_the_csv_log_of_another_run_is_there_until_an_epoch_has_ended(backend, tmp_path):
    log = tmp_path / "log.csv"
    small(backend).fit(*blobs(), epochs=2, callbacks=[fastmlp.CSVLog(log)], verbose=0)
    before = log.read_text()
    with pytest.raises(ValueError, match="there is no such figure"):
        small(backend).fit(*blobs(), callbacks=[fastmlp.CSVLog(log), fastmlp.EarlyStopping()], epochs=1, verbose=0)
    assert log.read_text() == before
    small(backend).fit(*blobs(), epochs=1, callbacks=[fastmlp.CSVLog(log)], verbose=0)
    assert len(log.read_text().splitlines()) == 2


def test_a_resumed_run_that_fails_in_its_first_epoch_leaves_the_csv_log_as_it_was(backend, tmp_path, monkeypatch):
    log, path = tmp_path / "log.csv", tmp_path / "checkpoint"
    callbacks = [fastmlp.CSVLog(log), fastmlp.Checkpoint(path, every_epochs=2)]
    small(backend).fit(*blobs(), epochs=3, callbacks=callbacks, verbose=0)
    before = log.read_text()  # of three epochs, of which the checkpoint has two

    def no_space(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(os, "fsync", no_space)
        fastmlp.load(path, backend).resume(*blobs(), callbacks=callbacks, verbose=0)
    assert log.read_text() == before
    fastmlp.load(path, backend).resume(*blobs(), callbacks=callbacks, verbose=0)
    assert [line.rsplit(",", 1)[0] for line in log.read_text().splitlines()] == [
        line.rsplit(",", 1)[0] for line in before.splitlines()
    ]


@pytest.mark.parametrize(("name", "error"), [("none/log.csv", FileNotFoundError), (".", OSError)])
def test_a_csv_log_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, name, error):
    model = small("numpy")
    with pytest.raises(error):
        model.fit(*blobs(), epochs=1, callbacks=[fastmlp.CSVLog(tmp_path / name)], verbose=0)
    assert model.steps == 0


def test_verbose_writes_a_line_an_epoch(backend, capsys):
    small(backend).fit(*blobs(), epochs=2, verbose=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("epoch 2/2  loss ") and "accuracy" in lines[1]
    small(backend).fit(*blobs(), epochs=2, verbose=0)
    assert capsys.readouterr() == ("", "")


def test_reduce_on_plateau_lowers_the_rate(backend):
    x, y = blobs()
    schedule = fastmlp.ReduceOnPlateau(1e-2, factor=0.5, patience=0, monitor="loss", min_delta=1e9)
    rates = small(backend).fit(x, y, epochs=4, optimizer=fastmlp.SGD(schedule), verbose=0).history["learning_rate"]
    np.testing.assert_allclose(rates, [1e-2, 1e-2, 5e-3, 2.5e-3])


def test_a_row_whose_loss_is_not_finite_stops_training_and_is_named(backend):
    x, y = blobs()
    x[37] = np.finfo("float32").max
    model = small(backend, dropout=(0.1, 0.2))
    recorder = Recorder()
    with pytest.raises(
        fastmlp.NonFiniteLossError, match=r"epoch 1, step \d+, row 37 .* the pre-activations of layer \d went wrong"
    ) as caught:
        model.fit(x, y, epochs=1, batch_size=16, callbacks=[recorder], verbose=0)
    error = caught.value
    assert (error.epoch, error.row, error.where) == (1, 37, "the pre-activations of layer 0")
    assert error.step == model.steps == list(epoch_order(1, 0, 200)).index(37) // 16
    assert recorder.calls[-1] == "end, failed"
    twin = small(backend, dropout=(0.1, 0.2))
    x[37] = 0

    class Stop(fastmlp.Callback):
        def next_step(self, run):
            return error.step

        def on_steps(self, run):
            if run.steps_done == error.step:
                run.stop("here")

    if error.step:
        twin.fit(x, y, epochs=1, batch_size=16, callbacks=[Stop()], verbose=0)
    for a, b in zip(model.get_weights(), twin.get_weights(), strict=True):
        assert_same_bits(a, b, "the model is as it was before the step")


def test_a_run_that_explodes_names_the_layer_it_began_in(backend):
    x, y = blobs()
    with pytest.raises(fastmlp.NonFiniteLossError, match="Lower the learning rate") as caught:
        small(backend).fit(x * 1e3, y, epochs=50, optimizer=fastmlp.SGD(1e30), verbose=0)
    assert "layer" in caught.value.where
    x[:] = 3e38
    with pytest.raises(fastmlp.NonFiniteLossError) as caught:
        small(backend).fit(x, y, epochs=1, verbose=0)
    assert caught.value.where == "the pre-activations of layer 0" and caught.value.step == 0


def test_layers_that_a_callback_freezes_before_the_first_step_do_not_train(backend):
    class Freeze(fastmlp.Callback):
        def on_train_begin(self, run):
            run.model.freeze(0)

    x, y = blobs()
    model = small(backend)
    before = model.get_weights()
    model.fit(x, y, epochs=1, callbacks=[Freeze()], verbose=0)
    after = model.get_weights()
    assert_same_bits(after[0], before[0])
    assert not np.array_equal(after[-1], before[-1])


def test_an_error_before_the_first_step_leaves_no_new_optimizer(backend):
    x, y = blobs()
    x[:] = np.finfo("float32").max
    model = small(backend)
    with pytest.raises(fastmlp.NonFiniteLossError):
        model.fit(x, y, epochs=1, verbose=0)
    assert model._learner.state.optimizer is None and model._learner.state.moments == []


INTERRUPTED = """
    import warnings, numpy as np, fastmlp, signal, sys
    x = np.random.default_rng(0).normal(size=(5000, 50)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    model = fastmlp.MLP((50, 64, 2), backend=sys.argv[1], seed=0)

    class Ready(fastmlp.Callback):
        def on_epoch_begin(self, run):
            print("ready", flush=True)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(x, y, epochs=10**6, callbacks=[Ready()], verbose=0)
    assert [w.category for w in caught] == [fastmlp.TrainingInterrupted], caught
    assert caught[0].filename == "<string>"  # it names the call of fit
    assert history.stop_reason == "interrupted"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert all(np.isfinite(w).all() for w in model.get_weights())
    before = model.steps
    model.fit(x, y, epochs=1, verbose=0)
    assert model.steps == before + 40
    print("stopped:", caught[0].message)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_ends_after_a_whole_step_and_says_so(process_backend, default_signals):
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(INTERRUPTED), process_backend.name],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    started = time.perf_counter()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "training was interrupted in epoch" in out.splitlines()[-1] and "fit goes on from here" in out
    assert time.perf_counter() - started < 20


def test_two_orders_of_rows_are_alive_at_most_while_the_next_is_made():
    alive, most = set(), []

    class There:
        def __init__(self):
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self):
            alive.discard(id(self))

    orders = Orders(0, 100, True, lambda host: There())
    order = orders.of_epoch(0)
    for epoch in range(1, 6):
        ahead = orders.of_epoch(10 * epoch)
        assert orders.of_epoch(order.begins) is order and ahead.begins == 10 * epoch
        del ahead
        order = orders.of_epoch(10 * epoch)
    assert max(most) == 2
    still = Orders(0, 100, False, lambda host: There())
    assert still.of_epoch(0) is still.of_epoch(10)
