"""Sparse inputs: trained on and answered as the dense ones are, to the bit, and never made dense as a whole."""

import contextlib
import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.backends.sparse import SparseRows

ROWS, COLUMNS = 330, 12
RNG = np.random.default_rng(0)
X = np.where(RNG.random((ROWS, COLUMNS)) < 0.3, RNG.normal(size=(ROWS, COLUMNS)), 0)
Y = (X[:, 0] > 0) + (X[:, 1] + X[:, 2] > 0).astype(int)
WEIGHTS = RNG.uniform(0.5, 2, ROWS)
QUICK = {"epochs": 3, "random_state": 0, "batch_size": 32}
KINDS = [sparse.csr_matrix, sparse.csc_array]


@pytest.fixture
def small_windows(monkeypatch):
    """Two batches of 32 rows at once, in float32."""
    monkeypatch.setattr("fastmlp.backends.sparse.WINDOW_BYTES", 64 * COLUMNS * 4)


def hold_the_same_bits(a, b):
    for ours, theirs in zip([*a.coefs_, *a.intercepts_], [*b.coefs_, *b.intercepts_], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert a.loss_curve_ == b.loss_curve_


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_has_the_bits_of_dense_inputs(backend, dtype):
    options = {**QUICK, "backend": backend, "dtype": dtype, "dropout": 0.2, "ema": 0.9}
    dense = MLPClassifier(**options).fit(X, Y, sample_weight=WEIGHTS)
    thin = MLPClassifier(**options).fit(sparse.csr_matrix(X), Y, sample_weight=WEIGHTS)
    hold_the_same_bits(thin, dense)
    np.testing.assert_allclose(thin.predict_proba(sparse.csr_matrix(X)), dense.predict_proba(X), rtol=1e-5, atol=1e-7)
    hold_the_same_bits(thin.partial_fit(sparse.csr_matrix(X), Y), dense.partial_fit(X, Y))


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": True},
        {"shuffle": False},
        {"exact": True},
        {"solver": "sgd", "clip_norm": 0.5},
        {"calibrate": True},
        {"batch_size": 1000},
        {"class_weight": "balanced"},
    ],
    ids=str,
)
def test_every_way_to_train_has_the_bits_of_dense_inputs(kind, options):
    options = {**QUICK, "backend": "numpy", **options}
    with pytest.warns(UserWarning, match="batch_size") if options["batch_size"] == 1000 else contextlib.nullcontext():
        a, b = MLPClassifier(**options).fit(kind(X), Y), MLPClassifier(**options).fit(X, Y)
    hold_the_same_bits(a, b)
    assert a.validation_scores_ == b.validation_scores_
    assert a.temperature_ == b.temperature_
    np.testing.assert_allclose(a.validation_loss_curve_ or 0, b.validation_loss_curve_ or 0, rtol=1e-6)


@pytest.mark.usefixtures("small_windows")
def test_values_and_several_labels():
    values = np.column_stack([X[:, 0], X[:, 1] * 2])
    thin = sparse.csr_matrix(X)
    a, b = (MLPRegressor(backend="numpy", **QUICK).fit(x, values) for x in (thin, X))
    hold_the_same_bits(a, b)
    np.testing.assert_allclose(a.predict(thin), b.predict(X), rtol=1e-5, atol=1e-6)
    x, y = make_multilabel_classification(100, 12, random_state=0)
    held = {"X_val": sparse.csr_matrix(x), "y_val": y}
    a, b = (MLPClassifier(backend="numpy", **QUICK).fit(given, y, **held) for given in (sparse.csr_array(x), x))
    hold_the_same_bits(a, b)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("kind", "y", "weights"),
    [
        (MLPClassifier, Y, WEIGHTS),
        (MLPClassifier, Y > 0, None),
        (MLPRegressor, X[:, :2], WEIGHTS),
        (MLPClassifier, Y, np.where(np.arange(ROWS) < 100, 0, WEIGHTS)),  # whole parts of them weigh nothing
    ],
)
def test_lbfgs_goes_through_parts_to_the_loss_and_weights_of_dense_inputs(backend, kind, y, weights, exact):
    where = "numpy" if exact else backend
    options = {"solver": "lbfgs", "max_iter": 15, "alpha": 0.5, "random_state": 0, "hidden_layer_sizes": 4}
    options |= {"backend": where, "exact": exact}
    if kind is MLPRegressor and not exact:
        options["loss"] = "huber"
    with pytest.warns(ConvergenceWarning, match="lbfgs failed to converge"):
        dense = kind(**options).fit(X, y, sample_weight=weights)
        thin = kind(**options).fit(sparse.csc_array(X), y, sample_weight=weights)
    assert thin.loss_ == pytest.approx(dense.loss_, rel=1e-9)
    for ours, theirs in zip(thin.coefs_, dense.coefs_, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_lbfgs_leaves_frozen_layers_alone(backend):
    for given in (X, sparse.csr_matrix(X)):
        options = {"solver": "lbfgs", "max_iter": 15, "random_state": 0, "hidden_layer_sizes": 4, "warm_start": True}
        found = MLPClassifier(**options, alpha=5.0, backend=backend).fit(given, Y)
        found.model_.freeze(0)
        kept, trained = found.coefs_
        found.set_params(alpha=4.0).fit(given, Y)
        np.testing.assert_array_equal(found.coefs_[0], kept)
        assert not np.array_equal(found.coefs_[1], trained)
        penalty = 0.5 * 4.0 * sum((w**2).sum() for w in found.coefs_) / ROWS
        assert found.loss_ == pytest.approx(log_loss(Y, found.predict_proba(X)) + penalty, rel=1e-9)


def test_numbers_in_one_place_are_added_before_they_are_rounded():
    values, columns = np.array([1.0, 1e-9, 0.5, -1.0]), np.array([0, 0, 1, 0])
    twice = sparse.csr_matrix((values, columns, [0, 3, 4]), shape=(2, 2))
    assert not twice.has_canonical_format
    np.testing.assert_array_equal(SparseRows(twice).astype(np.dtype("float32"))[:], twice.toarray().astype(np.float32))
    assert twice.nnz == 4, "the user's own is as it was"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("where", "solver"),
    [
        ("numba", "adam"),
        pytest.param("numpy", "lbfgs", marks=pytest.mark.thorough),
        pytest.param("numpy", "adam", marks=pytest.mark.thorough),
        pytest.param("numba", "lbfgs", marks=pytest.mark.thorough),
    ],
)
def test_memory_stays_bounded(where, solver):
    """Dense, these are 160 MB in float64 and 80 in float32."""
    rows, columns = 20_000, 1_000
    x = sparse.random(rows, columns, 0.01, "csr", np.float64, 0)
    y = np.asarray(x[:, :20].sum(axis=1)).ravel() > 0.1
    held = x[:10_000], y[:10_000]
    options = {"solver": "lbfgs", "max_iter": 3} if solver == "lbfgs" else {"epochs": 1}
    estimator = MLPClassifier((8,), backend=where, random_state=0, **options)
    estimator.fit(x[:500], y[:500])  # compiles
    validation = {} if solver == "lbfgs" else {"X_val": held[0], "y_val": held[1]}
    tracemalloc.start()
    estimator.fit(x, y, **validation)
    estimator.predict(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


@pytest.mark.parametrize("scaler", [MaxAbsScaler(), StandardScaler(with_mean=False)])
def test_scalers_that_keep_zeros_go_before_in_the_place_of_preprocess(scaler):
    with pytest.raises(TypeError, match=r"preprocess=None and scale before, with .*MaxAbsScaler or StandardScaler\(wi"):
        MLPClassifier(backend="numpy", preprocess="standard", **QUICK).fit(sparse.csr_matrix(X), Y)
    found = [
        make_pipeline(clone(scaler), MLPClassifier(backend="numpy", **QUICK)).fit(x, Y)
        for x in (sparse.csr_array(X), X)
    ]
    np.testing.assert_allclose(found[0].predict_proba(sparse.csr_array(X)), found[1].predict_proba(X), rtol=1e-4)


@pytest.mark.usefixtures("small_windows")
def test_what_float32_cannot_hold_is_refused_by_row_and_column():
    for value, words in (
        (1e300, r"row 200 of column 7 holds 1e\+300"),
        (1e-300, r"column 7 holds nothing above 1e-300"),
    ):
        x = X.copy()
        x[:, 7] = 0
        x[200, 7] = value
        for given in (x, sparse.csr_matrix(x)):
            with pytest.raises(ValueError, match=words):
                MLPClassifier(backend="numpy", **QUICK).fit(given, Y)


@pytest.mark.usefixtures("small_windows")
def test_the_row_that_training_fails_on_is_the_users():
    x, y = sparse.csr_matrix(X), X[:, 0].copy()
    y[222] = 3e38
    options = {**QUICK, "solver": "sgd", "loss": "mean_squared_error", "shuffle": False, "learning_rate_init": 1e-9}
    with pytest.raises(ValueError, match="row 222 of the training data"):
        MLPRegressor(backend="numpy", **options).fit(x, y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_row_and_column(bad, monkeypatch):
    monkeypatch.setattr("fastmlp.backends.sparse.WINDOW_BYTES", 8 * COLUMNS * 10)
    x = X.copy()
    x[123, 4] = bad
    x = sparse.csr_matrix(x)
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        MLPClassifier(backend="numpy", **QUICK).fit(x, Y)
    learner = MLPClassifier(backend="numpy", **QUICK).fit(X, Y)._learner
    with pytest.raises(fastmlp.DataError, match="in row 123, column 4"):
        learner.data(x, Y)


def test_numbers_of_another_range_are_told():
    x = np.abs(X) / np.abs(X).max()
    estimator = MLPClassifier(backend="numpy", **QUICK).fit(sparse.csr_matrix(x), Y)
    with pytest.warns(UserWarning, match="has values up to"):
        estimator.predict(sparse.csr_matrix(x * 255))
