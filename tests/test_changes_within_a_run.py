"""What a callback changes of a network while it trains: from the next step on, also where a run is gone on with."""

import numpy as np
import pytest

import fastmlp
from fastmlp.parallel import in_threads

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 4)), RNG.integers(0, 3, 64)


class Freezes(fastmlp.Callback):
    """Freeze layer 0 after some steps and let it train again after others; note what it was, and what was told."""

    def __init__(self, freezes, trains, path=None):
        self.freezes, self.trains, self.path = freezes, trains, path
        self.begun, self.weights = [], {}

    def next_step(self, run):
        return min((s for s in (self.freezes, self.trains) if s > run.steps_done), default=None)

    def on_epoch_begin(self, run):
        self.begun.append(run.epoch)

    def on_steps(self, run):
        self.weights[run.steps_done] = run.model.get_weights()[0]
        if run.steps_done == self.freezes:
            run.model.freeze(0)
            if self.path is not None:
                run.save_checkpoint(self.path)
        if run.steps_done == self.trains:
            run.model.unfreeze(0)


def trained(backend, callbacks, **options):
    model = fastmlp.MLP((4, 5, 3), backend=backend, seed=0)
    model.fit(X, Y, epochs=5, batch_size=8, callbacks=callbacks, verbose=0, **options)
    return model


@pytest.mark.parametrize(("freezes", "trains"), [(16, 32), (19, 29), (1, 2)])  # at ends of epochs, and within
def test_layers_that_a_callback_freezes_rest_from_the_next_step_on(backend, tmp_path, freezes, trains):
    rests = Freezes(freezes, trains, tmp_path / "checkpoint")
    model = trained(backend, [rests])
    assert (rests.weights[freezes] == rests.weights[trains]).all()
    assert model.spec.frozen == (False, False) and rests.begun == list(range(5))
    assert (model.get_weights()[0] != rests.weights[trains]).any()
    assert model.steps == 40
    whole = trained(backend, [])
    assert (whole.get_weights()[1] != model.get_weights()[1]).any()


@pytest.mark.parametrize("freezes", [16, 19])
def test_a_run_that_goes_on_from_a_checkpoint_has_the_layers_frozen_that_were(backend, tmp_path, freezes):
    rests = Freezes(freezes, 10**9, tmp_path / "checkpoint")
    model = trained(backend, [rests])
    again = fastmlp.load(tmp_path / "checkpoint", backend=backend)
    again.resume(X, Y, verbose=0)
    assert again.spec.frozen == model.spec.frozen == (True, False)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ranks_that_train_together_freeze_together(tmp_path):
    def train(group):
        model = fastmlp.MLP((4, 5, 3), backend="numpy", seed=0)
        rests = Freezes(19, 29)
        model.fit(X, Y, epochs=5, batch_size=8, callbacks=[rests], verbose=0, parallel=group)
        return model.get_weights(), rests

    found = in_threads(train, 2)
    (alone, once) = in_threads(train, 1)[0]
    for weights, rests in found:
        assert (rests.weights[19] == rests.weights[29]).all() and rests.begun == once.begun
        for one, other in zip(weights, alone, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


class Asks(fastmlp.Callback):
    """Ask for every third step, and look at no model."""

    sees_model = False

    def __init__(self):
        self.told = []

    def next_step(self, run):
        return (run.steps_done // 3 + 1) * 3

    def on_steps(self, run):
        self.told.append(run.steps_done)


def test_a_step_that_a_callback_asks_for_is_told_in_short_epochs_too(backend):
    asks = Asks()
    trained(backend, [asks])
    assert set(range(3, 41, 3)) <= set(asks.told)


def test_a_csv_log_of_a_run_that_is_refused_leaves_no_file(backend, tmp_path):
    log = tmp_path / "log.csv"
    with pytest.raises(ValueError, match="there is no such figure"):
        trained(backend, [fastmlp.CSVLog(log), fastmlp.EarlyStopping()])
    assert not log.exists()
