"""The loss of quantiles: several at once on every backend, its kink, its targets, and what it learns."""

import math
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
from compare import DTYPES, assert_close, assert_same_bits, normal, on, pair, unset
from sklearn.datasets import load_diabetes
from sklearn.linear_model import QuantileRegressor
from sklearn.metrics import mean_pinball_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

import fastmlp
from fastmlp import MLP, DataError, Quantile
from fastmlp.convert import keras_models
from fastmlp.formulas.differences import agree

LEVELS = (0.1, 0.5, 0.95)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


# --- formula ---


def computed(backend, loss, z, t, dtype):
    """Return row losses and gradients of a backend, NumPy's arrays."""
    d, rows = unset(backend, z.shape, dtype), unset(backend, (len(z),), dtype)
    backend.loss(loss, on(backend, z), on(backend, t), None, 1.0, d, rows, pair(backend, d))
    return backend.to_numpy(rows), backend.to_numpy(d)


@dtypes
@pytest.mark.parametrize("levels", [(0.2, 0.7), LEVELS, (0.01, 0.25, 0.5, 0.75, 0.9, 0.99)], ids=len)
@pytest.mark.parametrize("targets", [1, 2, 7])
def test_several_quantiles_of_several_targets_are_the_slow_forms(backend, dtype, levels, targets):
    loss, k = Quantile(levels), len(levels) * targets
    z, t = normal((9, k), dtype, 1), normal((9, k), dtype, 2)
    t[4] = z[4]  # where both are equal there is no slope
    rows, d = computed(backend, loss, z, t, dtype)
    expected = [oracle.quantile(loss, *row) for row in zip(z.tolist(), t.tolist(), strict=True)]
    assert_close(rows, [e[0] for e in expected], k=k, scale=1 + np.abs(t - z).max(), c=4)
    assert_close(d, [e[1] for e in expected], scale=1 / k, c=4)
    assert not d[4].any() and rows[4] == 0


@pytest.mark.parametrize("outputs", [600, 1100])
def test_quantiles_of_rows_as_wide_as_a_block(backend, outputs):
    loss, rng = Quantile((0.1, 0.9)), np.random.default_rng(0)
    z, t = rng.normal(size=(2, 3, outputs))
    rows, d = computed(backend, loss, z, t, "float64")
    expected = [oracle.quantile(loss, *row) for row in zip(z.tolist(), t.tolist(), strict=True)]
    assert_close(rows, [e[0] for e in expected], k=outputs, scale=5)
    assert_close(d, [e[1] for e in expected], scale=1 / outputs)


@dtypes
def test_each_side_of_the_kink_has_its_slope(backend, dtype):
    z = np.array([[-1.0], [0.0], [-0.0], [1.0], [np.inf], [-np.inf], [np.nan]], dtype)
    rows, d = computed(backend, Quantile(0.75), z, np.zeros((7, 1), dtype), dtype)
    assert rows.tolist()[:6] == [0.75, 0, 0, 0.25, math.inf, math.inf]
    assert d[:6, 0].tolist() == [-0.75, 0, 0, 0.25, 0.25, -0.75]
    assert np.isnan(rows[6])


def test_the_median_is_half_the_absolute_error(backend):
    z, t = normal((8, 5), "float64", 1), normal((8, 5), "float64", 2)
    half = computed(backend, Quantile(), z, t, "float64")
    whole = computed(backend, fastmlp.MeanAbsoluteError(), z, t, "float64")
    for a, b in zip(half, whole, strict=True):
        assert_close(2 * a, b)


def test_the_loss_is_scikit_learns_mean_pinball_loss(backend):
    x, y = np.random.default_rng(0).normal(size=(2, 40, 3))
    weights = np.random.default_rng(1).uniform(0, 2, 40)
    model = MLP((3, 5, 9), loss=Quantile(LEVELS), activation="tanh", backend=backend, dtype="float64", seed=0)
    found = model.evaluate(x, y, sample_weight=weights)["loss"]
    outputs = model.predict(x).reshape(40, 3, 3)
    theirs = [mean_pinball_loss(y, outputs[:, :, i], sample_weight=weights, alpha=q) for i, q in enumerate(LEVELS)]
    np.testing.assert_allclose(found, np.mean(theirs), rtol=1e-12)


def test_gradients_of_several_quantiles_are_differences(backend):
    x, y = np.random.default_rng(0).normal(size=(2, 12, 2))
    model = MLP((2, 4, 6), loss=Quantile(LEVELS), activation="tanh", backend=backend, dtype="float64", l2=0.1, seed=0)
    weights, (_, gradients) = model.get_weights(), model.loss_and_gradients(x, y)
    norm = math.sqrt(sum((g**2).sum() for g in gradients))
    for i, g in enumerate(gradients):
        for at in np.ndindex(g.shape):
            values = []
            for step in (6e-6, -6e-6):
                moved = [w.copy() for w in weights]
                moved[i][at] += step
                model.set_weights(moved)
                values.append(model.loss_and_gradients(x, y)[0])
            assert agree(g[at], np.array((values[0] - values[1]) / 1.2e-5), norm)
    model.set_weights(weights)
    assert max(fastmlp.gradcheck(model, x, y).values()) < 1e-6


# --- training ---


@dtypes
def test_every_backend_learns_the_same_quantiles(backend, dtype):
    x, y = np.random.default_rng(0).normal(size=(2, 50, 2))
    found = []
    for where in (backend, "numpy"):
        model = MLP((2, 7, 6), loss=Quantile(LEVELS), activation="tanh", backend=where, dtype=dtype, seed=0)
        history = model.fit(x, y, epochs=5, batch_size=16, validation_split=0.2, verbose=0).history
        found.append([history["loss"], history["val_loss"], model.predict(x), *model.get_weights()])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 if dtype == "float64" else 1e-4)


# --- targets and outputs ---


def test_outputs_are_the_quantiles_of_the_first_target_then_of_the_second(backend):
    x = np.zeros((200, 1))
    y = np.random.default_rng(0).permutation(np.arange(200.0))[:, None] / 200 + np.array([0.0, 2.0])
    model = MLP((1, 4), loss=Quantile((0.25, 0.75)), backend=backend, seed=0)
    for rate in (0.1, 0.01):
        model.fit(x, y, epochs=50, batch_size=200, optimizer=fastmlp.Adam(rate), verbose=0)
    np.testing.assert_allclose(model.predict(x[:1])[0], [0.25, 0.75, 2.25, 2.75], atol=0.03)


def test_targets_are_given_once():
    loss, y = Quantile(LEVELS), np.arange(8.0).reshape(4, 2)
    assert loss.prepare_targets(y, 6).tolist()[1] == [2, 2, 2, 3, 3, 3]
    assert_same_bits(loss.prepare_targets(y[:, 0], 3), loss.prepare_targets(y[:, :1], 3))
    assert_same_bits(Quantile().prepare_targets(y, 2), y)


@pytest.mark.parametrize(
    ("outputs", "shape", "message"),
    [
        (3, (4, 3), r"shape \(n,\) or \(n, 1\), one column for every 3 of the 3 outputs; got \(4, 3\)"),
        (6, (4, 6), r"shape \(n, 2\), one column for every 3 of the 6 outputs; got \(4, 6\)"),
        (6, (4,), r"shape \(n, 2\), one column for every 3 of the 6 outputs; got \(4,\)"),
    ],
)
def test_targets_of_another_width_are_refused(outputs, shape, message):
    model = MLP((2, outputs), loss=Quantile(LEVELS), backend="numpy", seed=0)
    with pytest.raises(DataError, match=f"^y: quantile needs targets of {message}"):
        model.fit(np.ones((4, 2)), np.ones(shape), epochs=1, verbose=0)


@pytest.mark.parametrize("outputs", [1, 2, 4, 5])
def test_a_network_without_an_output_for_each_quantile_is_refused(outputs):
    with pytest.raises(ValueError, match=rf"^units: quantile of 3 quantiles needs 3 outputs .*; got {outputs}"):
        MLP((2, outputs), loss=Quantile(LEVELS), backend="numpy")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "quantiles must be above 0 and below 1, got 0"),
        (1.0, ValueError, "quantiles must be above 0 and below 1, got 1.0"),
        ([0.5, np.nan], ValueError, r"quantiles\[1\] must be above 0 and below 1, got nan"),
        ([0.9, 0.1], ValueError, r"quantiles must be one number at least, or several that rise strictly; got \[0.9"),
        ([0.5, 0.5], ValueError, "quantiles must be .* rise strictly"),
        ([], ValueError, "quantiles must be one number at least"),
        ("0.5", TypeError, r"quantiles must be a number in \(0, 1\), or a sequence of such, got '0.5'"),
        ({0.1, 0.9}, TypeError, r"quantiles must be a number in \(0, 1\), or a sequence"),
        ([[0.5]], TypeError, r"quantiles\[0\] must be a number"),
        (None, TypeError, "quantiles must be a number in"),
        (True, TypeError, "quantiles must be a number"),
    ],
)
def test_quantiles_that_make_no_sense_are_refused(value, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Quantile(value)


def test_quantiles_are_one_number_or_any_sequence():
    assert Quantile() == Quantile([0.5]) == Quantile(np.array(0.5)) and Quantile().quantiles == (0.5,)
    assert Quantile(np.array([0.25, 0.5], "f4")) == Quantile((0.25, 0.5)) != Quantile((0.25, 0.75))
    assert len({Quantile([0.1, 0.9]), Quantile((0.1, 0.9))}) == 1


@pytest.mark.parametrize("levels", [0.3, LEVELS], ids=repr)
def test_files_keep_the_quantiles(backend, tmp_path, levels):
    loss = Quantile(levels)
    x, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30.0)
    model = MLP((2, 3, loss.outputs_per_target), loss=loss, backend=backend, seed=0)
    checkpoint = fastmlp.Checkpoint(tmp_path / "checkpoint")
    model.fit(x, y, epochs=1, callbacks=[checkpoint], verbose=0)
    model.save(tmp_path / "model")
    for name in ("model", "checkpoint"):
        again = fastmlp.load(tmp_path / name, backend)
        assert again.spec == model.spec and again.spec.loss == loss
        assert_same_bits(again.predict(x), model.predict(x))
        assert again.evaluate(x, y) == model.evaluate(x, y)


def test_a_keras_model_with_a_pinball_loss_does_not_become_the_median():
    def pinball_loss(y, predicted):
        raise AssertionError("nothing is computed")

    model, stack = SimpleNamespace(loss=pinball_loss), SimpleNamespace(link=lambda: None)
    with pytest.raises(ValueError, match=r"compiled with 'pinball_loss', and nothing tells its quantiles; pass loss="):
        keras_models._told(model, stack)


def test_metrics_are_given_a_column_for_each_output():
    x, y = np.random.default_rng(0).normal(size=(2, 40, 2))
    model = MLP((2, 6), loss=Quantile(LEVELS), backend="numpy", seed=0)
    shapes = []

    def own(targets, answers):
        shapes.append((targets.shape, answers.shape))
        return float(mean_pinball_loss(targets, answers))

    found = model.evaluate(x, y, metrics={"own": own})["own"]
    assert set(shapes) == {((40, 6), (40, 6))}
    assert found == pytest.approx(mean_pinball_loss(y.repeat(3, axis=1), model.predict(x)))


# --- what it learns ---


def linear(x, y, levels):
    """Return a linear network, trained on all rows with ever smaller steps."""
    loss = Quantile(levels)
    model = MLP((x.shape[1], loss.outputs_per_target), loss=loss, backend="numpy", dtype="float64", seed=0)
    for rate in (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003):
        model.fit(x, y, epochs=400, batch_size=len(x), optimizer=fastmlp.Adam(rate), verbose=0)
    return model


def test_a_linear_network_has_the_loss_of_scikit_learns_quantile_regressor():
    x, y = load_diabetes(return_X_y=True)
    x, y = scale(x), scale(y)
    ours = linear(x, y, LEVELS).predict(x)
    for i, q in enumerate(LEVELS):
        theirs = QuantileRegressor(quantile=q, alpha=0.0).fit(x, y).predict(x)
        best = mean_pinball_loss(y, theirs, alpha=q)
        found = mean_pinball_loss(y, ours[:, i], alpha=q)
        assert best <= found * (1 + 1e-9) and found < 1.01 * best


def test_as_many_held_out_targets_lie_below_a_quantile_as_it_says():
    x, y = load_diabetes(return_X_y=True)
    x, y = scale(x), scale(y)
    x, x_test, y, y_test = train_test_split(x, y, test_size=0.5, random_state=0)
    below = (y_test[:, None] < linear(x, y, LEVELS).predict(x_test)).mean(axis=0)
    for q, share in zip(LEVELS, below, strict=True):
        # 11 weights have seen as many rows as there are here: the bounds are those of two samples
        assert abs(share - q) < 3 * math.sqrt(2 * q * (1 - q) / len(y_test))
