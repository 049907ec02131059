"""Weights that overflow: no run ends with them, no file holds them, and the model is as it was before."""

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits

import fastmlp

HUGE = {"l2": {}, "rate": {"optimizer": fastmlp.SGD(1e30)}, "ema": {"optimizer": fastmlp.SGD(1e30, ema=0.9)}}


def trained(backend, kind, **options):
    """Train with something that makes the weights overflow in the first step, which no loss tells."""
    x, y = blobs()
    model = small(backend, l2=1e38 if kind == "l2" else 0.0)
    given = {"epochs": 1, "batch_size": 200, "verbose": 0, **HUGE[kind], **options}
    if kind == "l2":
        given["optimizer"] = fastmlp.SGD(1e30)
    return model, lambda: model.fit(x.astype(np.float32) * 1e9, y, **given)


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("kind", HUGE)
def test_a_run_that_spoils_the_weights_ends_with_an_error_and_the_weights_of_before(backend, kind, epochs):
    model, fit = trained(backend, kind, epochs=epochs)
    before = model.get_weights()
    with pytest.raises(
        fastmlp.NonFiniteLossError, match=r"the (weights|biases) of layer [01].* are not finite"
    ) as caught:
        fit()
    error = caught.value
    assert "has the weights again that it had before this call" in str(error)
    assert error.step == 1 and error.row == -1 and error.where.startswith("the ")
    assert error.epoch == min(epochs, 2)
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)
    assert model.steps == 0 and model._learner.state.optimizer is None and model._learner.state.average is None
    if kind != "l2":  # with which nothing trains
        model.fit(*blobs(), epochs=1, verbose=0)


def test_what_was_learned_before_the_call_is_kept(backend, tmp_path):
    x, y = blobs()
    model = small(backend)
    good = fastmlp.SGD(0.1, momentum=0.9, ema=0.9)
    model.fit(x, y, epochs=2, batch_size=128, optimizer=good, verbose=0)
    before, raw = model.get_weights(), backend.to_numpy(model._learner.state.params).copy()
    with pytest.raises(fastmlp.NonFiniteLossError):
        model.fit(x * 1e9, y, epochs=1, batch_size=200, optimizer=fastmlp.SGD(1e30), verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)
    assert_same_bits(backend.to_numpy(model._learner.state.params), raw)
    assert model.steps == 4
    model.save(tmp_path / "m.safetensors")


def test_a_checkpoint_is_never_written_with_weights_that_are_not_finite(backend, tmp_path):
    path = tmp_path / "c.safetensors"
    model, fit = trained(backend, "rate", callbacks=[fastmlp.Checkpoint(path)])
    with pytest.raises(fastmlp.NonFiniteLossError, match="are not finite in epoch 1, after step 1"):
        fit()
    assert not path.exists()
    assert np.isfinite(model.get_weights()[0]).all()


def test_weights_of_a_better_epoch_that_are_restored_end_a_run_well(backend):
    class Spoil(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            if run.epoch == 2:
                run.learner.state.params[...] = np.nan

    x, y = blobs()
    model = small(backend)
    stopping = fastmlp.EarlyStopping("loss", patience=5)
    model.fit(x, y, epochs=2, optimizer=fastmlp.SGD(1e-12), callbacks=[stopping, Spoil()], verbose=0)
    assert np.isfinite(model.get_weights()[0]).all()


@pytest.mark.parametrize("array", ["weights", "biases"])
def test_save_looks_at_the_weights_and_names_the_array(backend, tmp_path, array):
    model = small(backend)
    w, b = model._learner.state.layout.views(model._learner.state.params)[1]
    (w if array == "weights" else b)[0] = np.inf
    with pytest.raises(ValueError, match=f"save: the {array} of layer 1 hold NaN or infinity"):
        model.save(tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_set_weights_refuses_what_the_type_cannot_hold(backend):
    model = small(backend)
    before = model.get_weights()
    given = [w.astype(np.float64) for w in before]
    given[3][1] = -1e39
    with pytest.raises(ValueError, match=r"weights: b2 must hold numbers up to 3.4e\+38, as float32 does; got 1e\+39"):
        model.set_weights(given)
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)


def test_an_initializer_whose_weights_cannot_be_held_is_refused(backend):
    initializer = fastmlp.formulas.initializers.Normal(1e300)
    with pytest.raises(ValueError, match=r"initializer: Normal\(std=1e\+300\) draws weights that float32 cannot hold"):
        small(backend, initializer=initializer)
    small(backend, initializer=initializer, dtype="float64")


def test_squared_gradients_that_overflow_are_told(backend):
    x, y = blobs()
    model = small(backend)
    with pytest.warns(
        UserWarning, match="squares overflowed float32: some of the weights of layer 0 .* no longer train"
    ):
        model.fit(x * np.float32(1e25), y, epochs=1, verbose=0)
    small(backend, dtype="float64").fit(x.astype(np.float64) * 1e25, y, epochs=1, verbose=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_is_clipped_whose_squares_overflow(backend, momentum):
    """Its numbers are finite, and so is the loss."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(64, 8)) * 1e6).astype("float32")
    y = (rng.normal(size=(64, 1)) * 1e15).astype("float32")
    model = fastmlp.MLP((8, 1), loss="mean_squared_error", backend=backend, dtype="float32", seed=0)
    before = model.get_weights()
    optimizer = fastmlp.SGD(0.01, momentum, clip_norm=1.0)
    history = model.fit(x, y, epochs=1, batch_size=64, optimizer=optimizer, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    moved = np.concatenate([(a - b).ravel() for a, b in zip(model.get_weights(), before, strict=True)])
    assert np.linalg.norm(moved) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("outputs", [[1e12, 1e12, 0.0], [5e7, 1.0, 5e7], [4e6, 1.0, -4e6]])
def test_a_hinge_keeps_its_margin_between_outputs_that_are_large_and_alike(backend, outputs):
    model = fastmlp.MLP((1, 3), loss="categorical_hinge", backend=backend, dtype="float32", seed=0)
    model.set_weights([np.array([outputs]), np.zeros(3)])
    label = 0
    others = [z for k, z in enumerate(outputs) if k != label]
    assert model.evaluate(np.ones((1, 1)), [label])["loss"] == max(0.0, 1.0 + max(others) - outputs[label])
