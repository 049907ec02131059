"""Callbacks that keep what belongs to a run: part of one fit at a time, free again however it ends."""

import gc
import threading

import numpy as np
import pytest

import fastmlp
from fastmlp.engine.learner import Learner

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 4)), RNG.integers(0, 3, 64)


def made(kind, folder):
    return {
        "EarlyStopping": lambda: fastmlp.EarlyStopping("loss", patience=50),
        "Checkpoint": lambda: fastmlp.Checkpoint(folder / "run.safetensors"),
        "CSVLog": lambda: fastmlp.CSVLog(folder / "log.csv"),
        "TimeLimit": lambda: fastmlp.TimeLimit(100.0),
        "EpochTimer": lambda: fastmlp.EpochTimer(),
    }[kind]()


def fit(*callbacks, seed=0):
    model = fastmlp.MLP((4, 5, 3), seed=seed, backend="numpy")
    model.fit(X, Y, epochs=3, verbose=0, callbacks=callbacks)
    return model.get_weights()


class During(fastmlp.Callback):
    """Does something after the first epoch."""

    def __init__(self, does):
        self.does = does

    def on_epoch_end(self, run, figures):
        if run.epoch == 1:
            self.does()


@pytest.mark.parametrize("kind", ["EarlyStopping", "Checkpoint", "CSVLog", "TimeLimit", "EpochTimer"])
def test_a_second_fit_is_refused_while_the_first_goes_on(kind, tmp_path):
    shared, raised = made(kind, tmp_path), []

    def second():
        with pytest.raises(RuntimeError, match=f"^callbacks: this {kind} is part of another fit") as e:
            fit(shared, seed=1)
        raised.append(e)

    def in_a_thread():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    alone = fit()
    for does in (second, in_a_thread):
        for found, wanted in zip(fit(shared, During(does)), alone, strict=True):
            if kind != "EarlyStopping":  # which goes back to its best epoch
                np.testing.assert_array_equal(found, wanted)
    assert len(raised) == 2
    fit(shared, seed=1)  # one after the other


@pytest.mark.parametrize("kind", ["EarlyStopping", "Checkpoint", "CSVLog", "TimeLimit", "EpochTimer"])
def test_a_fit_that_failed_sets_its_callbacks_free(kind, tmp_path):
    shared = made(kind, tmp_path)

    class Fails(fastmlp.Callback):
        def on_train_begin(self, run):
            raise OSError("full")

    def fails():
        raise OSError("full")

    class FailsToEnd(fastmlp.Callback):
        def on_train_end(self, run):
            raise OSError("full")

    for callbacks in ((shared, Fails()), (shared, During(fails)), (FailsToEnd(), shared)):
        with pytest.raises(OSError, match="full"):
            fit(*callbacks)
    gc.collect()
    fit(shared)


def test_a_callback_is_free_when_its_end_is_done_and_not_before(monkeypatch):
    stopping, restore, asked = fastmlp.EarlyStopping("loss"), Learner.restore, []

    def during(self, weights):
        asked.append(weights)
        with pytest.raises(RuntimeError, match="is part of another fit"):
            fit(stopping, seed=1)
        restore(self, weights)

    monkeypatch.setattr(Learner, "restore", during)
    fit(stopping)
    assert len(asked) == 1


def test_what_refuses_a_run_by_itself_is_free_for_the_next(tmp_path):
    stopping = fastmlp.EarlyStopping("val_loss")
    with pytest.raises(ValueError, match="val_loss"):
        fit(stopping)
    model = fastmlp.MLP((4, 5, 3), seed=0, backend="numpy")
    model.fit(X, Y, epochs=2, verbose=0, validation_data=(X, Y), callbacks=[stopping])
    checkpoint = fastmlp.Checkpoint(tmp_path / "none" / "run.safetensors")
    with pytest.raises(OSError, match="none"):
        fit(checkpoint)
    (tmp_path / "none").mkdir()
    fit(checkpoint)


def test_logs_that_begin_at_once_do_not_take_each_others_trial_for_an_error(tmp_path, monkeypatch):
    path = tmp_path / "log.csv"
    unlink = type(path).unlink

    def first_by_another(self, missing_ok=False):
        unlink(self)
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(type(path), "unlink", first_by_another)
    fit(fastmlp.CSVLog(path))
    assert len(path.read_text().splitlines()) == 4
