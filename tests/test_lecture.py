"""The lecture: its network through all points, its random features, its gradient formulas."""

import numpy as np
import pytest
from compare import assert_close

from fastmlp import MLP, DataError, MLPClassifier, register_activation, register_loss
from fastmlp.approximation import relu_interpolant
from fastmlp.doctor.gradients import TOLERANCE, gradcheck
from fastmlp.features import RandomFourierFeatures

# --- the universal approximation theorem, by construction -----------------------------------------------------------

# f, an interval, and the largest |f''| on it
FUNCTIONS = {
    "sin": (np.sin, (0.0, 6.0), 1.0),
    "exp": (np.exp, (-1.0, 2.0), np.exp(2.0)),
    "runge": (lambda t: 1 / (1 + 25 * t**2), (-1.0, 1.0), 50.0),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_interpolant_goes_through_all_points_and_is_linear_between(backend, dtype):
    rng = np.random.default_rng(0)
    x, y = rng.permutation(np.linspace(-2, 3, 40)) + rng.uniform(0, 0.05, 40), rng.normal(size=40)
    model = relu_interpolant(x, y, backend=backend, dtype=dtype)
    t = np.concatenate([x, rng.uniform(-4, 5, 500)])  # beyond the points too
    order = np.argsort(x)
    x = np.sort(x.astype(dtype).astype("f8"))
    # what a unit adds is of the size of a slope times the width
    size = np.abs(np.diff(y[order]) / np.diff(x)).max() * 9
    expected = np.interp(t.astype(dtype), x, y[order])
    assert_close(model.predict(t[:, None]), expected, dtype=dtype, k=40, scale=size)
    assert model.spec.units == (1, 40, 1)
    assert model.dtype == dtype
    with pytest.raises(DataError, match=r"shape \(n, 1\), got \(540,\); examples of one input are x\.reshape\(-1, 1\)"):
        model.predict(t)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_error_keeps_to_its_bound_over_doublings_of_n(backend, name):
    f, (low, high), curvature = FUNCTIONS[name]
    t = np.linspace(low, high, 5003)
    errors, bounds = [], []
    for n in 2 ** np.arange(2, 10):
        x = np.linspace(low, high, n + 1)
        model = relu_interpolant(x, f(x), backend=backend)
        errors.append(np.abs(model.predict(t[:, None]) - f(t)).max())
        bounds.append((x[1] - x[0]) ** 2 / 8 * curvature)
    assert (np.array(errors) <= np.array(bounds)).all()
    # the bound is met, so that it is no empty promise: halving the distances divides the error by four
    assert errors[-1] > 0.9 * bounds[-1]
    assert 3.8 < errors[-2] / errors[-1] < 4.2


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([0, 1, 1], [0, 1, 2], r"must differ in x, got .*1\.0.* twice"),
        ([0, 1], [0, 1, 2], "got 2 x and 3 y"),
        ([0], [0], "at least 2"),
        ([0, np.nan], [0, 1], "x must be finite, got nan"),
        ([0, 1], [0, np.inf], "y must be finite, got inf"),
        ([[0, 1]], [0, 1], r"x must hold real numbers, \(n,\) or \(n, 1\); got int64 \(1, 2\)"),
        (["a", "b"], [0, 1], "x must hold real numbers"),
    ],
)
def test_points_that_no_function_goes_through_are_refused(x, y, message):
    with pytest.raises(DataError, match=message):
        relu_interpolant(x, y)


def test_points_that_are_equal_in_single_precision_are_refused_there():
    x, y = [1.0, 1.0 + 1e-12], [0.0, 1.0]
    with pytest.raises(DataError, match=r"twice \(in float32\)"):
        relu_interpolant(x, y, dtype="float32")
    assert relu_interpolant(x, y).predict([[1.0]]) == 0


# --- random Fourier features ----------------------------------------------------------------------------------------


def disk(rows=300, seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (rows, 2))
    return x, ((x**2).sum(axis=1) < 0.5).astype(int)


def test_random_fourier_features_are_cosines_of_a_fixed_gaussian_projection():
    x, _ = disk()
    features = RandomFourierFeatures(20000, gamma=0.7, random_state=3).fit(x)
    phi = features.transform(x[:50])
    assert_close(phi, np.cos(x[:50] @ features.weights_ + features.offset_))
    assert np.isclose(features.weights_.std(), np.sqrt(2 * 0.7), rtol=0.02)
    assert 0 <= features.offset_.min() < 0.01 and 6.27 < features.offset_.max() < 2 * np.pi
    kernel = np.exp(-0.7 * ((x[:50, None] - x[None, :50]) ** 2).sum(axis=2))
    # the mean of 20000 products of variance below 1: five standard deviations
    np.testing.assert_allclose(2 * phi @ phi.T / 20000, kernel, atol=5 / np.sqrt(20000))


def test_the_scale_of_the_data_is_found():
    x, _ = disk()
    assert np.isclose(RandomFourierFeatures().fit(3 * x).gamma_, 1 / (2 * (3 * x).var()))
    assert RandomFourierFeatures().fit(np.ones((3, 2))).gamma_ == 1.0


def test_a_frozen_first_layer_is_the_transformer(backend):
    x, y = disk()
    features = RandomFourierFeatures(64, gamma=2.0, random_state=0).fit(x)
    model = features.network((2,), backend=backend, dtype="float64", seed=0)
    _, _, w, b = model.get_weights()
    size = np.abs(x).max() * np.abs(features.weights_).max() + 2 * np.pi + 1
    logits = features.transform(x) @ w + b
    chances = np.exp(logits - np.logaddexp(*logits.T)[:, None])
    assert_close(model.predict_proba(x), chances, k=64, scale=size)
    model.fit(x, y, epochs=2, batch_size=32, optimizer="adam", verbose=0)
    after = model.get_weights()
    np.testing.assert_array_equal(after[0], features.weights_)
    np.testing.assert_array_equal(after[1], features.offset_)
    assert not np.array_equal(after[2], w)


def test_a_linear_model_of_the_features_learns_what_a_linear_model_cannot(process_backend):
    x, y = disk()
    features = RandomFourierFeatures(64, gamma=2.0, random_state=0).fit(x)
    reached = []
    for model in (
        features.network((2,), backend=process_backend, seed=0),
        MLP((2, 2), backend=process_backend, seed=0),
    ):
        model.fit(x, y, epochs=60, batch_size=32, optimizer="adam", verbose=0)
        reached.append(model.evaluate(*disk(seed=1))["accuracy"])
    assert reached[0] > 0.95 > 0.75 > reached[1]


def test_layers_after_the_features_are_chosen_like_any_others():
    features = RandomFourierFeatures(8, random_state=0).fit(np.eye(3))
    model = features.network((5, 4, 1), activation=("tanh", "relu"), loss="mean_squared_error", seed=0)
    assert model.spec.activations == ("cos", "tanh", "relu", "identity")
    assert model.spec.frozen == (True, False, False, False)
    with pytest.raises(TypeError, match="bckend"):
        features.network((2,), bckend="numpy")
    with pytest.raises(TypeError, match=r"units must be a sequence such as \(10,\), got 10"):
        features.network(10)
    with pytest.raises(ValueError, match="units needs the number of outputs"):
        features.network(())
    model.unfreeze(0)
    assert not any(model.spec.frozen)


def test_random_fourier_features_keep_the_rules_of_scikit_learn():
    from sklearn.utils.estimator_checks import check_estimator

    report = check_estimator(RandomFourierFeatures(5), on_skip=None, on_fail="raise")
    assert len(report) > 30


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_components": 0}, ValueError, "n_components must be at least 1, got 0"),
        ({"n_components": 2.5}, TypeError, "n_components must be an integer, got 2.5"),
        ({"gamma": -1.0}, ValueError, 'gamma must be above 0 and finite, or "scale"; got -1.0'),
        ({"gamma": "auto"}, TypeError, "gamma must be a number, or \"scale\"; got 'auto'"),
    ],
)
def test_random_fourier_features_refuse_what_makes_no_sense(arguments, error, message):
    with pytest.raises(error, match=message):
        RandomFourierFeatures(**arguments).fit(np.eye(2))


# --- gradients ------------------------------------------------------------------------------------------------------

SLOPES = {
    "sigmoid": lambda z: np.exp(-z) / (1 + np.exp(-z)) ** 2,
    "relu": lambda z: z > 0,
    "tanh": lambda z: 1 / np.cosh(z) ** 2,
    "sin": np.cos,
    "cos": lambda z: -np.sin(z),
}
VALUES = {
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
}


@pytest.mark.parametrize("sigma", SLOPES)
def test_the_two_formulas_for_a_two_layer_network_give_the_librarys_gradient(backend, sigma):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(30, 6)), rng.integers(0, 4, 30)
    w1, w2 = rng.normal(size=(6, 9)), rng.normal(size=(9, 4))
    # dW2 = sigma(X W1)^T (S - I_y), dW1 = X^T (sigma'(X W1) * ((S - I_y) W2^T)), of the sum over the rows
    hidden = VALUES[sigma](x @ w1)
    e = np.exp(hidden @ w2)
    residual = e / e.sum(axis=1, keepdims=True) - np.eye(4)[labels]
    expected = x.T @ (SLOPES[sigma](x @ w1) * (residual @ w2.T)), hidden.T @ residual

    model = MLP((6, 9, 4), activation=sigma, backend=backend, dtype="float64", seed=0)
    model.set_weights([w1, np.zeros(9), w2, np.zeros(4)])
    _, (dw1, _, dw2, _) = model.loss_and_gradients(x, labels)
    for got, formula in zip((dw1, dw2), expected, strict=True):
        assert_close(30 * got, formula, k=30 * 9, c=16)


def test_gradcheck_reports_a_small_error_for_each_array(backend):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(12, 5)), rng.integers(0, 3, 12)
    model = MLP((5, 7, 6, 3), activation=("relu", "gelu"), l2=0.1, backend=backend, seed=0)
    before = model.get_weights()
    errors = gradcheck(model, x, y, rng.uniform(0.5, 2, 12))
    assert list(errors) == ["W1", "b1", "W2", "b2", "W3", "b3"]
    assert max(errors.values()) < TOLERANCE
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_gradcheck_sees_every_array_that_is_wrong(monkeypatch):
    right = MLP.loss_and_gradients
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(12, 5)), rng.integers(0, 3, 12)
    model = MLP((5, 7, 3), activation="tanh", seed=0)
    for wrong, name in enumerate(("W1", "b1", "W2", "b2")):

        def altered(self, *data, wrong=wrong):
            loss, gradients = right(self, *data)
            gradients[wrong] = gradients[wrong] * 1.01
            return loss, gradients

        monkeypatch.setattr(MLP, "loss_and_gradients", altered)
        errors = gradcheck(model, x, y)
        assert [n for n, e in errors.items() if e > 1e-3] == [name]
        assert sum(e > TOLERANCE for e in errors.values()) == 1


def test_gradcheck_is_of_the_whole_loss_in_double_precision(monkeypatch):
    right, seen = MLP.loss_and_gradients, []
    monkeypatch.setattr(MLP, "loss_and_gradients", lambda self, *data: seen.append(self) or right(self, *data))
    model = MLP((3, 4, 2), activation="tanh", l2=0.5, dropout=0.5, seed=0)
    gradcheck(model, np.eye(3), [0, 1, 0])
    assert {(m.spec.l2, m.dtype.name, m.backend) for m in seen} == {(0.5, "float64", model.backend)}
    assert model not in seen


def test_gradcheck_takes_losses_and_activations_of_ones_own():
    register_activation("cube", lambda z: (z**3, 3 * z**2))
    register_loss("fourth", lambda z, t: (((z - t) ** 4).mean(1), 4 * (z - t) ** 3 / z.shape[1]))
    rng = np.random.default_rng(4)
    model = MLP((3, 4, 2), activation="cube", loss="fourth", seed=0)
    assert max(gradcheck(model, rng.normal(size=(6, 3)), rng.normal(size=(6, 2))).values()) < TOLERANCE


@pytest.mark.parametrize("kind", ["raw rows", "bytes", "columns"])
def test_gradcheck_takes_rows_as_the_network_does(kind, monkeypatch):
    right, losses = MLP.loss_and_gradients, []

    def seen(self, *data):
        losses.append(right(self, *data)[0])
        return losses[-1], right(self, *data)[1]

    rng = np.random.default_rng(5)
    x, y = rng.normal(1e4, 1e3, (20, 3)), rng.integers(0, 3, 20)
    if kind == "raw rows":
        x = np.array([*x.T, np.array(["red", "green"], object)[y % 2]], object).T
        model = MLPClassifier(4, activation="tanh", preprocess="standard", epochs=1, backend="numpy").fit(x, y).model_
    else:
        x = rng.integers(0, 256, (20, 3)).astype(np.uint8)
        model = MLP((3, 4, 3), activation="tanh", backend="numpy", seed=0)
        model.fit(x, y, epochs=1, verbose=0)
    if kind == "columns":
        pd = pytest.importorskip("pandas", reason="pandas is not installed; it is no dependency of fastmlp")
        model.feature_names = ("a", "b", "c")
        x = pd.DataFrame(x, columns=["a", "b", "c"])[["c", "a", "b"]]
    monkeypatch.setattr(MLP, "loss_and_gradients", seen)
    assert max(gradcheck(model, x, y).values()) < TOLERANCE
    assert losses[0] == pytest.approx(right(model, x, y)[0], rel=1e-5)


def test_gradcheck_wants_a_network():
    with pytest.raises(TypeError, match=r"gradcheck: model must be a fastmlp\.MLP, got 3"):
        gradcheck(3, np.eye(2), [0, 1])


def test_gradcheck_shows_a_kink_that_the_data_lie_on():
    model = MLP((2, 3, 1), loss="mean_squared_error", seed=0)
    errors = gradcheck(model, np.zeros((1, 2)), [1.0])  # all rectifiers at 0: the slope there is nobody's to say
    assert errors["b1"] > 1e-3 and errors["b2"] < TOLERANCE


def test_gradcheck_of_a_gradient_of_zeros_is_no_error():
    model = MLP((2, 3, 1), loss="mean_squared_error", seed=0)
    model.set_weights([np.ones((2, 3)), np.full(3, -9.0), np.ones((3, 1)), np.zeros(1)])
    assert gradcheck(model, np.eye(2), [0.0, 0.0]) == dict.fromkeys(("W1", "b1", "W2", "b2"), 0.0)
