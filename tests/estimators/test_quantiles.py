"""`MLPRegressor` for quantiles: shapes, score, early stopping, and what is refused."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_regression
from sklearn.linear_model import QuantileRegressor
from sklearn.metrics import d2_pinball_score, mean_pinball_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.preprocessing import scale

import fastmlp
from fastmlp import MLPRegressor

LEVELS = [0.1, 0.5, 0.9]
X, Y = (scale(a) for a in load_diabetes(return_X_y=True))
TWO = np.column_stack([Y, 10 - Y])


def regressor(**options):
    quick = {"hidden_layer_sizes": (8,), "epochs": 5, "learning_rate_init": 0.01, "random_state": 0}
    return MLPRegressor(**{"loss": "quantile", "backend": "numpy", **quick, **options})


SHAPES = [(Y, 0.9, ()), (Y, [0.9], ()), (Y, LEVELS, (3,))]
SHAPES += [(TWO, 0.9, (2,)), (TWO, LEVELS, (2, 3)), (TWO, (0.1, 0.9), (2, 2))]


@pytest.mark.parametrize(("y", "quantiles", "shape"), SHAPES)
def test_answers_have_an_axis_of_quantiles_where_there_are_several(y, quantiles, shape):
    found = regressor(quantiles=quantiles).fit(X, y)
    assert found.predict(X).shape == (len(X), *shape)
    assert found.predict(X[:1]).shape == (1, *shape)
    assert found.n_outputs_ == (1 if y.ndim == 1 else 2)
    assert found.out_activation_ == "identity"
    assert pickle.loads(pickle.dumps(found)).predict(X).tolist() == found.predict(X).tolist()


def test_quantiles_of_each_target_stand_beside_it():
    found = regressor(quantiles=LEVELS, epochs=300).fit(X, TWO).predict(X)
    shares = (TWO[:, :, None] < found).mean(axis=0)
    np.testing.assert_allclose(shares, [LEVELS, LEVELS], atol=0.05)


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_values_are_those_of_the_numpy_backend(backend, solver):
    options = {"solver": solver, "dtype": "float64", "quantiles": LEVELS, "activation": "tanh", "max_iter": 5}
    options |= {"epochs": None} if solver == "lbfgs" else {}
    found, same = (regressor(backend=b, **options).fit(X, TWO) for b in (backend, "numpy"))
    np.testing.assert_allclose(found.predict(X), same.predict(X), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("name", "record"), [("quantile", 0.75), ("PinballLoss", (0.1, 0.9))])
def test_a_record_asks_for_the_same_as_a_name(name, record):
    a = regressor(loss=name, quantiles=record).fit(X, Y)
    b = regressor(loss=fastmlp.Quantile(record)).fit(X, Y)
    np.testing.assert_array_equal(a.predict(X), b.predict(X))


@pytest.mark.parametrize("y", [Y, TWO], ids=["one", "two"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_score_is_the_mean_of_d2_over_quantiles(y, weighted):
    weights = np.linspace(0.1, 1, len(X)) if weighted else None
    found = regressor(quantiles=LEVELS).fit(X, y)
    answers = found.predict(X)
    each = [d2_pinball_score(y, answers[..., i], alpha=q, sample_weight=weights) for i, q in enumerate(LEVELS)]
    assert found.score(X, y, weights) == pytest.approx(np.mean(each), rel=1e-12)
    one = regressor(quantiles=0.9).fit(X, y)
    expected = d2_pinball_score(y, one.predict(X), alpha=0.9, sample_weight=weights)
    assert one.score(X, y, sample_weight=weights) == pytest.approx(expected, rel=1e-12)


def test_early_stopping_goes_by_that_score_and_keeps_its_best_weights():
    x, x_val, y, y_val = train_test_split(X, Y, random_state=0)
    found = regressor(quantiles=LEVELS, early_stopping=True, epochs=None, max_iter=500).fit(x, y, None, x_val, y_val)
    assert len(found.validation_scores_) < 500
    assert found.score(x_val, y_val) == pytest.approx(max(found.validation_scores_), rel=1e-12)
    assert 0.1 < found.best_validation_score_ < 1
    split = regressor(quantiles=LEVELS, early_stopping=True, epochs=None, max_iter=500).fit(X, Y)
    assert 0.1 < split.best_validation_score_ < 1


def test_scikit_learns_tools_take_it():
    assert (cross_val_score(regressor(quantiles=LEVELS, epochs=100), X, Y, cv=3) > 0.1).all()
    search = GridSearchCV(regressor(), {"quantiles": [0.1, 0.5, LEVELS]}, cv=2).fit(X, Y)
    assert clone(search.best_estimator_).get_params()["quantiles"] == search.best_params_["quantiles"]


def test_partial_fit_and_weights_of_rows():
    found = regressor(quantiles=0.9, epochs=None)
    for _ in range(3):
        found.partial_fit(X, Y, sample_weight=np.linspace(0.1, 1, len(X)))
    assert found.predict(X).shape == (len(X),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantiles": [0.9, 0.1]}, "quantiles must be one number at least, or several that rise strictly"),
        ({"quantiles": 1.0}, "quantiles"),
        ({"quantiles": [0.5, 2]}, r"quantiles\[1\] must be above 0 and below 1, got 2"),
        ({"quantiles": 0.9, "loss": "squared_error"}, "quantiles=0.9 would do nothing: it is for loss='quantile'"),
        ({"quantiles": 0.9, "loss": "huber"}, "quantiles=0.9 would do nothing: it is for loss='quantile'"),
        ({"quantiles": [0.1], "loss": fastmlp.Quantile(0.9)}, r"quantiles=\[0.1\] would do nothing.*has its own"),
    ],
)
def test_quantiles_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        regressor(**options).fit(X, Y)


def test_a_linear_network_has_the_loss_of_scikit_learns_quantile_regressor():
    x, y = make_regression(300, 4, noise=20.0, random_state=0)
    y = scale(y)
    found = regressor(
        quantiles=LEVELS, hidden_layer_sizes=(), alpha=0.0, epochs=600, dtype="float64", batch_size=300,
        schedule=fastmlp.Cosine(0.05),
    ).fit(x, y).predict(x)  # fmt: skip
    for i, q in enumerate(LEVELS):
        best = mean_pinball_loss(y, QuantileRegressor(quantile=q, alpha=0.0).fit(x, y).predict(x), alpha=q)
        assert mean_pinball_loss(y, found[:, i], alpha=q) < 1.01 * best


@pytest.mark.parametrize("call", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "changed",
    [
        {"quantiles": [0.2, 0.9]},
        {"loss": "mean_absolute_error", "quantiles": 0.5},
        {"loss": "poisson", "quantiles": 0.5},
        {"alpha": 5.0},
        {"activation": "tanh"},
        {"dropout": 0.5},
        {"max_norm": 0.3},
    ],
    ids=repr,
)
def test_training_that_goes_on_goes_by_the_parameters_as_they_are_now(call, changed):
    y = np.abs(TWO) if "loss" in changed else Y
    start = {"quantiles": 0.5, "loss": "squared_error"} if "loss" in changed else {"quantiles": [0.1, 0.9]}
    start |= {"solver": "sgd", "momentum": 0.0, "warm_start": True, "epochs": 2, "dtype": "float64"}
    changing, made_so = regressor(**start).fit(X, y), regressor(**{**start, **changed}).fit(X, y)
    made_so.model_.set_weights(changing.model_.get_weights())
    assert changing.predict(X).shape == made_so.predict(X).shape
    for estimator in (changing.set_params(**changed), made_so):
        getattr(estimator, call)(X, y)
    np.testing.assert_array_equal(changing.predict(X), made_so.predict(X))
    assert changing.model_.spec == made_so.model_.spec
    assert (changing.out_activation_, changing.loss_) == (made_so.out_activation_, made_so.loss_)


def test_what_is_refused_leaves_the_network_as_it_was():
    found = regressor(quantiles=0.9, warm_start=True).fit(X, Y)
    before = found.predict(X)
    with pytest.raises(ValueError, match="y: poisson needs targets >= 0"):
        found.set_params(loss="poisson", quantiles=0.5).fit(X, Y)
    assert found.model_.spec.loss == fastmlp.Quantile(0.9)
    np.testing.assert_array_equal(found.predict(X), before)
