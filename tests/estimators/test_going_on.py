"""Training that goes on by `warm_start` and `partial_fit`: every parameter is followed or refused, none ignored."""

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_iris

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor

X, Y = load_iris(return_X_y=True)
X = ((X - X.mean(axis=0)) / X.std(axis=0))[::2]
Y = Y[::2]
START = {"hidden_layer_sizes": (5,), "random_state": 0, "backend": "numpy", "dtype": "float64", "batch_size": 25}
START |= {"max_iter": 3, "tol": 0.0, "warm_start": True}
SGD = {"solver": "sgd"}
HELD_OUT = {"early_stopping": True}


class Seen(fastmlp.Callback):
    """Counts epochs."""

    epochs = 0

    def on_epoch_end(self, run, figures):
        Seen.epochs += 1


class Fails(fastmlp.Callback):
    """Ends a run before its first step."""

    def on_train_begin(self, run):
        raise RuntimeError("before it began")


FOLLOWED = {
    # parameter: (its other value, what the estimators that show a difference begin with)
    "activation": ("tanh", {}),
    "solver": ("sgd", {}),
    "alpha": (1.0, {}),
    "batch_size": (10, {}),
    "learning_rate": ("invscaling", {**SGD, "power_t": 0.1}),
    "learning_rate_init": (0.1, {}),
    "power_t": (0.9, {**SGD, "learning_rate": "invscaling"}),
    "shuffle": (False, {}),
    "random_state": (1, {}),
    "momentum": (0.5, SGD),
    "nesterovs_momentum": (False, SGD),
    "beta_1": (0.5, {}),
    "beta_2": (0.5, {}),
    "epsilon": (0.1, {}),
    "loss": ("categorical_hinge", {}),
    "class_weight": ({0: 3.0}, {}),
    "label_smoothing": (0.5, {}),
    "quantiles": (0.9, {"loss": "quantile"}),
    "dropout": (0.5, {}),
    "weight_decay": (0.5, {}),
    "clip_norm": (0.01, {}),
    "max_norm": (0.1, {}),
    "ema": (0.9, {}),
    "schedule": (fastmlp.Constant(0.1), {}),
}
FOLLOWED_BY_FIT = {
    "max_iter": (5, {}),
    "tol": (10.0, {"n_iter_no_change": 1, "max_iter": 8}),
    "n_iter_no_change": (1, {"tol": 10.0, "max_iter": 8}),
    "max_fun": (1, {"solver": "lbfgs"}),
    "early_stopping": (True, {}),
    "validation_fraction": (0.4, HELD_OUT),
    "calibrate": (True, {}),
    "epochs": (1, {}),
}
SEEN_OTHERWISE = {  # below
    "backend": "numba",
    "n_jobs": 2,
    "exact": True,
    "verbose": True,
    "callbacks": [Seen()],
    "time_limit": 1e-9,
    "scoring": "balanced_accuracy",
    "warm_start": False,
}
REFUSED = {
    "hidden_layer_sizes": ((6,), "hidden_layer_sizes: the network that training goes on with has the units"),
    "dtype": ("float32", "dtype='float32', and the network that training goes on with is of float64"),
    "initializer": ("he_normal", "initializer='he_normal' would do nothing: the network .* has weights"),
    "preprocess": ("standard", "preprocess='standard', and the network that training goes on with was trained with"),
}
OF_FIT_ALONE = {
    # why partial_fit does not go by it
    "max_iter": "it is one epoch",
    "epochs": "it is one epoch",
    "max_fun": "it refuses solver='lbfgs', of which these are",
    "tol": "it stops nothing; an adaptive rate goes by it, below",
    "n_iter_no_change": "it stops nothing; an adaptive rate goes by it, below",
    "validation_fraction": "it refuses to hold rows out",
    "scoring": "it has no rows to validate with",
    "warm_start": "it goes on in any case",
}


def named(*tables):
    return [(name, *values) for table in tables for name, values in table.items()]


def estimator(name, **options):
    kind = MLPRegressor if name == "quantiles" else MLPClassifier
    return kind(**{**START, **options})


def trained(call, found):
    getattr(found, call)(X, Y)
    figures = [float(found.loss_), float(found.n_iter_), getattr(found, "temperature_", 1.0)]
    return np.concatenate([*(w.ravel() for w in found.coefs_), *found.intercepts_, figures])


def test_no_parameter_is_left_out():
    for kind in (MLPClassifier, MLPRegressor):
        names = set(kind().get_params())
        assert not names - {*FOLLOWED, *FOLLOWED_BY_FIT, *SEEN_OTHERWISE, *REFUSED}
        by_partial_fit = {*FOLLOWED, *REFUSED, "backend", "n_jobs", "exact", "verbose", "callbacks", "time_limit"}
        assert not names - by_partial_fit - {*OF_FIT_ALONE, "early_stopping", "calibrate"}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("call", "name", "value", "start"),
    [("fit", *each) for each in named(FOLLOWED, FOLLOWED_BY_FIT)]
    + [("partial_fit", *each) for each in named(FOLLOWED)],
)
def test_a_changed_parameter_is_followed(call, name, value, start):
    a, b = (estimator(name, **start).fit(X, Y) for _ in range(2))
    for found in (a, b):
        found.partial_fit(X, Y) if call == "partial_fit" else None
    before, after = trained(call, a), trained(call, b.set_params(**{name: value}))
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after), f"{name}={value!r} changed nothing"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_changed_parameter_that_comes_too_late_is_refused(call, name):
    value, words = REFUSED[name]
    found = estimator(name).fit(X, Y)
    before = found.coefs_[0]
    with pytest.raises(ValueError, match=words):
        getattr(found.set_params(**{name: value}), call)(X, Y)
    np.testing.assert_array_equal(found.coefs_[0], before)
    had = {"hidden_layer_sizes": (5,), "dtype": "float64"}.get(name)
    getattr(found.set_params(**{name: had}), call)(X, Y)
    found.set_params(**{name: value}, warm_start=False).fit(X, Y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_what_is_seen_otherwise(call, capsys):
    found = estimator("").fit(X, Y)
    for name in ("backend", "n_jobs"):
        getattr(found.set_params(**{name: SEEN_OTHERWISE[name]}), call)(X, Y)
        assert found.model_.backend.name == "numba"
    assert found.model_.backend.options == {"threads": 2}
    assert not capsys.readouterr().out
    getattr(found.set_params(verbose=True), call)(X, Y)
    assert "Iteration 1" in capsys.readouterr().out
    Seen.epochs = 0
    getattr(found.set_params(verbose=False, callbacks=SEEN_OTHERWISE["callbacks"]), call)(X, Y)
    assert Seen.epochs == found.n_iter_
    getattr(found.set_params(time_limit=1e-9), call)(X, Y)
    assert found.n_iter_ <= 1
    found.set_params(time_limit=None, early_stopping=True).fit(X, Y)
    before, weights = found.validation_scores_[-1], np.where(Y == 0, 0.1, 1.0)
    with pytest.raises(ValueError, match="scoring"):
        found.set_params(scoring="none such").fit(X, Y, sample_weight=weights)
    assert found.set_params(scoring="neg_log_loss").fit(X, Y).validation_scores_[-1] <= 0 <= before
    began = found.set_params(scoring=None, early_stopping=False, warm_start=False).fit(X, Y).coefs_[0]
    np.testing.assert_array_equal(began, found.fit(X, Y).coefs_[0])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_exact_mode_goes_on_where_it_can(call):
    """Its epochs have the order that scikit-learn draws, on NumPy; fast weights of float32 are not its own."""
    found = estimator("", backend="auto", dtype=None).fit(X, Y)
    with pytest.raises(ValueError, match=r"exact=True computes in float64, and the network .* is of float32"):
        getattr(found.set_params(exact=True), call)(X, Y)
    found = estimator("", backend="auto").fit(X, Y)
    other = pickle.loads(pickle.dumps(found.set_params(exact=True)))
    getattr(found, call)(X, Y)
    assert found.model_.backend.name == "numpy"
    assert found.model_.backend.name != getattr(other.set_params(exact=False), call)(X, Y).model_.backend.name
    assert not np.array_equal(found.coefs_[0], other.coefs_[0])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_nothing_changes_where_no_parameter_has():
    """The moments and the rate of a stream go on, whether parameters were set to what they are or not."""
    for start in (SGD, {}, {**SGD, "learning_rate": "invscaling"}, {"solver": fastmlp.RMSprop(0.01)}):
        a, b = (estimator("", **start).fit(X, Y) for _ in range(2))
        for _ in range(3):
            a.partial_fit(X, Y)
            b.set_params(**pickle.loads(pickle.dumps(b.get_params()))).partial_fit(X, Y)
        np.testing.assert_array_equal(a.coefs_[0], b.coefs_[0])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_adaptive_rate_goes_by_the_tolerance_as_it_is_now():
    found = estimator("", **SGD, learning_rate="adaptive").partial_fit(X, Y, classes=np.unique(Y))
    for _ in range(4):
        found.set_params(tol=10.0, n_iter_no_change=1).partial_fit(X, Y)
    assert found._curves.rate < 0.001
    assert found.set_params(learning_rate_init=0.1).partial_fit(X, Y)._curves.rate == 0.1
    cut = found.set_params(learning_rate="constant").partial_fit(X, Y)
    assert cut._curves.rate == 0.1


class FailsLate(fastmlp.Callback):
    """Ends a run after an epoch of steps."""

    def on_epoch_end(self, run, figures):
        raise RuntimeError("in the midst of it")


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"solver": "sgd", "learning_rate_init": 1e300}, ValueError),
        ({"callbacks": [FailsLate()], "learning_rate_init": 0.1}, RuntimeError),
    ],
    ids=["numbers", "callback"],
)
def test_training_that_goes_on_and_fails_leaves_the_network_that_was_there(elsewhere, wrong, error):
    found, same = (estimator("").fit(X, Y) for _ in range(2))
    right = {name: found.get_params()[name] for name in wrong}
    with pytest.raises(error):
        found.set_params(**wrong, backend="numba" if elsewhere else "numpy").fit(X, Y)
    found.set_params(**right, backend="numpy")
    assert (found.t_, found.loss_, found._curves) == (same.t_, same.loss_, same._curves)
    assert found.model_.steps == same.model_.steps
    for _ in range(2):  # as it was, and as it goes on from there, with the moments that it had
        for a, b in zip(found.coefs_, same.coefs_, strict=True):
            np.testing.assert_array_equal(a, b)
        for each in (found, same):
            each.fit(X, Y)


def test_a_fit_that_failed_leaves_nothing():
    found, same = (
        estimator("", tol=10.0, n_iter_no_change=1).partial_fit(X, Y, classes=np.unique(Y)) for _ in range(2)
    )
    with pytest.raises(RuntimeError, match="before it began"):
        found.set_params(backend="numba", random_state=5, learning_rate_init=0.5, callbacks=[Fails()]).partial_fit(X, Y)
    found.set_params(backend="numpy", random_state=0, learning_rate_init=0.001, callbacks=())
    assert (found.t_, found._curves) == (same.t_, same._curves)
    for each in (found, same):
        each.partial_fit(X, Y)
        assert each.model_.backend.name == "numpy"
    assert found.model_.seed == same.model_.seed
    np.testing.assert_array_equal(found.coefs_[0], same.coefs_[0])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_partial_fit_with_weights_of_classes_takes_rows_that_lack_some():
    some = Y < 2
    weighted, plain = (MLPClassifier(**START, class_weight=w) for w in ({2: 10.0, 0: 3.0}, None))
    weighted.partial_fit(X[some], Y[some], classes=[0, 1, 2])
    plain.partial_fit(X[some], Y[some], sample_weight=np.where(Y[some] == 0, 3.0, 1.0), classes=[0, 1, 2])
    for found, wanted in zip(weighted.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match=r"The classes, \[0, 1, 2\], are not in class_weight"):
        MLPClassifier(**START, class_weight={3: 2.0}).partial_fit(X[some], Y[some], classes=[0, 1, 2])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_another_kind_of_y_than_at_the_first_fit_is_refused():
    hot = np.eye(3, dtype=int)[Y]
    one = MLPClassifier(**START).fit(X, Y)
    weights = [w.copy() for w in one.coefs_]
    for again in (lambda: one.partial_fit(X, hot), lambda: one.fit(X, hot)):
        with pytest.raises(
            ValueError, match=r"^y has several labels in a row, and this estimator was fitted to a single"
        ):
            again()
    with pytest.raises(ValueError, match=r"y_val.*several labels"):
        MLPClassifier(**START).fit(X, Y, X_val=X, y_val=hot)
    for found, wanted in zip(one.coefs_, weights, strict=True):
        np.testing.assert_array_equal(found, wanted)
    several = MLPClassifier(**START).fit(X, hot)
    for again in (lambda: several.partial_fit(X, Y), lambda: several.fit(X, Y)):
        with pytest.raises(
            ValueError, match=r"^y has a single label in a row, and this estimator was fitted to several"
        ):
            again()
    several.partial_fit(X, hot)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
def test_masked_values_are_refused_and_sparse_targets_too(estimator):
    mask = np.zeros(len(Y), bool)
    y, x = np.ma.array(Y, mask=mask), np.ma.array(X, mask=np.zeros(X.shape, bool))
    model = estimator(**START).fit(x, y, sample_weight=np.ma.array(np.ones(len(Y)), mask=mask))  # none is masked
    y[3], x[2, 1] = np.ma.masked, np.ma.masked
    for name, call in {
        "X": lambda: estimator(**START).fit(x, Y),
        "y": lambda: estimator(**START).fit(X, y),
        "sample_weight": lambda: estimator(**START).fit(X, Y, sample_weight=np.ma.array(np.ones(len(Y)), mask=y.mask)),
        "X ": lambda: model.predict(x),
        "y ": lambda: model.score(X, y),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name.strip()} has masked values, 1 of them"):
            call()
    if estimator is MLPRegressor:
        for target in (sparse.csr_array(X), sparse.coo_array(X[:, 0]), sparse.csr_matrix(X[:, :1])):
            with pytest.raises(ValueError, match=r"^y must be a dense array, got \w+; pass y\.toarray\(\)"):
                estimator(**START).fit(X, target)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_weights_of_classes_of_several_labels_are_a_list_of_dicts():
    hot = np.eye(3, dtype=int)[Y]
    factors = [{0: 1.0, 1: 5.0}, {0: 1.0, 1: 1.0}, {0: 2.0, 1: 1.0}]
    weights = np.where(hot[:, 0] == 1, 5.0, 1.0) * np.where(hot[:, 2] == 0, 2.0, 1.0)
    weighted = MLPClassifier(**START, class_weight=factors).fit(X, hot)
    for found, wanted in zip(weighted.coefs_, MLPClassifier(**START).fit(X, hot, weights).coefs_, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match=r"class_weight should be a list of dicts"):
        MLPClassifier(**START, class_weight=factors[0]).fit(X, hot)
    with pytest.raises(ValueError, match=r"^class_weight must be one dict .* got a list of 3"):
        MLPClassifier(**START, class_weight=factors).fit(X, Y)
