"""Exact mode: scikit-learn's own weights, losses and scores, step by step."""

import inspect
import warnings

import numpy as np
import pytest
from sklearn import neural_network as reference

import fastmlp

ROWS = 157  # the last batch of an epoch is a short one

CLASSIFIER, REGRESSOR = "MLPClassifier", "MLPRegressor"


def problem(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 6))
    z = x @ rng.normal(size=(6, 4))
    if kind == "classes":
        return CLASSIFIER, x, np.array(["d", "a", "c", "b"])[z.argmax(axis=1)], {}
    if kind == "two classes":
        return CLASSIFIER, x, z[:, 0] > 0, {}
    if kind == "labels":
        return CLASSIFIER, x, (z[:, :3] > 0).astype(int), {}
    if kind == "value":
        return REGRESSOR, x, z[:, 0], {}
    if kind == "values":
        return REGRESSOR, x, z[:, :2], {}
    counts = rng.poisson(np.exp(0.3 * z[:, : 2 if kind == "two counts" else 1])).astype(float)
    return REGRESSOR, x, counts.squeeze(), {"loss": "poisson", "learning_rate_init": 0.005}


KINDS = ("classes", "two classes", "labels", "value", "values", "counts", "two counts")
ACTIVATIONS = ("relu", "logistic", "tanh", "identity")


HAS_POISSON = "loss" in inspect.signature(reference.MLPRegressor).parameters
HAS_WEIGHTS = "sample_weight" in inspect.signature(reference.MLPRegressor.fit).parameters


def pair(kind, **options):
    """Return scikit-learn's estimator and fastmlp's, not fitted, and the data."""
    if "count" in kind and not HAS_POISSON:
        pytest.skip("this scikit-learn has no Poisson loss; 1.7 has")
    name, x, y, more = problem(kind)
    options = {"hidden_layer_sizes": (9, 5), "max_iter": 20, "random_state": 3, "batch_size": 32, **more, **options}
    return getattr(reference, name)(**options), getattr(fastmlp, name)(exact=True, **options), x, y


def check_same(theirs, ours, tolerance=1e-9):
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(theirs, name), getattr(ours, name), strict=True):
            np.testing.assert_allclose(b, a, rtol=0, atol=tolerance)
    for name in ("n_iter_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_", "t_"):
        assert getattr(theirs, name) == getattr(ours, name), name
    for name in ("loss_", "best_loss_", "loss_curve_", "validation_scores_", "best_validation_score_"):
        if hasattr(theirs, name):
            a, b = getattr(theirs, name), getattr(ours, name)
            assert (a is None) == (b is None), name
            if a is not None:
                np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance, err_msg=name)


ignored = pytest.mark.filterwarnings("ignore:Stochastic Optimizer", "ignore:lbfgs failed to converge")


@ignored
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.parametrize(
    ("kind", "activation"),  # each kind with two activations, by default with one
    [
        pytest.param(kind, ACTIVATIONS[i % 4], marks=[] if i < len(KINDS) else pytest.mark.thorough)
        for i, kind in enumerate(KINDS * 2)
    ],
)
def test_weights_and_losses(kind, activation, solver):
    theirs, ours, x, y = pair(kind, activation=activation, solver=solver, alpha=0.1)
    # line searches blow rounding up, nowhere as much as there: 3e-7 after twenty of them
    far = solver == "lbfgs" and (kind, activation) == ("labels", "logistic")
    check_same(theirs.fit(x, y), ours.fit(x, y), 1e-5 if far else 1e-9)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(theirs, method):
            a, b = getattr(theirs, method)(x), getattr(ours, method)(x)
            assert a.shape == b.shape
            np.testing.assert_array_equal(a, b) if a.dtype.kind in "UbiO" else np.testing.assert_allclose(b, a, 1e-6)
    assert ours.score(x, y) == pytest.approx(theirs.score(x, y), abs=1e-9)


OPTIONS = {
    "inverse scaling": {"solver": "sgd", "learning_rate": "invscaling"},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 2, "max_iter": 60},
    "stops": {"tol": 0.1, "n_iter_no_change": 2, "max_iter": 60},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3, "validation_fraction": 0.2, "max_iter": 60},
    "early stopping, sgd": {"early_stopping": True, "n_iter_no_change": 3, "solver": "sgd", "max_iter": 60},
    "classical momentum": {"solver": "sgd", "nesterovs_momentum": False},
    "no momentum": {"solver": "sgd", "momentum": 0.0},
    "not shuffled": {"shuffle": False},
    "all rows a step": {"batch_size": ROWS},
    "batches by itself": {"batch_size": "auto"},
    "never stops": {"n_iter_no_change": np.inf, "tol": 10.0},
}


@ignored
@pytest.mark.parametrize(
    ("option", "kind", "weighted"),  # each option for two kinds, by default for one without weights, one with them
    [
        pytest.param(o, KINDS[(3 * i + j) % 7], weighted, marks=[] if weighted == j else pytest.mark.thorough)
        for i, o in enumerate(OPTIONS)
        for j in (0, 1)
        for weighted in (False, True)
    ],
)
def test_options(option, kind, weighted):
    theirs, ours, x, y = pair(kind, **OPTIONS[option])
    if weighted and not HAS_WEIGHTS:
        pytest.skip("this scikit-learn takes no weights of rows; 1.7 does")
    weights = np.random.default_rng(1).uniform(0.5, 2, ROWS) if weighted else None
    check_same(theirs.fit(x, y, weights) if weighted else theirs.fit(x, y), ours.fit(x, y, weights))


@ignored
@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize("kind", ["classes", "values"])
def test_going_on(kind, solver):
    theirs, ours, x, y = pair(kind, solver=solver)
    more = {"classes": np.unique(y)} if kind == "classes" else {}
    for start in range(0, ROWS, 40):  # batches of several sizes, each call another
        part = slice(start, start + 40)
        for estimator in (theirs, ours):
            estimator.partial_fit(x[part], y[part], **more)
    check_same(theirs, ours)
    theirs, ours, x, y = pair(kind, solver=solver, warm_start=True, max_iter=3)
    for _ in range(3):
        theirs.fit(x, y), ours.fit(x, y)
    check_same(theirs, ours)


@ignored
def test_a_random_state_is_drawn_from_as_there():
    theirs, ours, x, y = pair("value", early_stopping=True)
    for estimator in (theirs, ours):
        estimator.set_params(random_state=np.random.RandomState(5)).fit(x, y)
    check_same(theirs, ours)
    assert theirs.random_state.randint(1 << 30) == ours.random_state.randint(1 << 30)


@pytest.mark.skipif(not HAS_WEIGHTS, reason="this scikit-learn takes no sample weights here")
@pytest.mark.parametrize("largest", [1.0, 2.0**33, 2.0**60, 2.0**-60])
@pytest.mark.parametrize("exact", [False, True])
def test_alpha_counts_beside_weights_of_any_size_as_with_scikit_learn(largest, exact):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    options = {"hidden_layer_sizes": (), "alpha": 50.0 * largest / 50, "solver": "sgd", "momentum": 0.0, "tol": 0}
    options |= {"learning_rate_init": 0.05, "max_iter": 50, "shuffle": False, "batch_size": 50, "random_state": 0}
    weights = np.full(50, largest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # neither has converged
        theirs = reference.MLPRegressor(**options).fit(x, x.sum(axis=1), sample_weight=weights)
        ours = fastmlp.MLPRegressor(**options, exact=exact, backend="numpy").fit(
            x, x.sum(axis=1), sample_weight=weights
        )
    np.testing.assert_allclose(ours.coefs_[0], theirs.coefs_[0], rtol=1e-10 if exact else 1e-4)


def test_alpha_that_could_not_count_beside_the_weights_is_refused():
    model, x = fastmlp.MLPRegressor(backend="numpy"), np.ones((4, 2))
    with pytest.raises(fastmlp.DataError, match=r"sample_weight: the largest weight is 1e\+30, beside which alpha"):
        model.fit(x, x[:, 0], sample_weight=np.full(4, 1e30))
    fastmlp.MLPRegressor(backend="numpy", alpha=0, epochs=1).fit(x, x[:, 0], sample_weight=np.full(4, 1e30))
