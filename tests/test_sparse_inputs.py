"""`MLP` takes SciPy's sparse matrices for x: it trains to the bits of dense x, never made dense as a whole."""

import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import sparse

import fastmlp

ROWS, COLUMNS = 210, 12
RNG = np.random.default_rng(0)
X = np.where(RNG.random((ROWS, COLUMNS)) < 0.3, RNG.normal(size=(ROWS, COLUMNS)), 0)
Y = (X[:, 0] > 0) + (X[:, 1] + X[:, 2] > 0).astype(int)
WEIGHTS = RNG.uniform(0.5, 2, ROWS)
FORMATS = ["csr_matrix", "csr_array", "csc_matrix", "coo_array", "lil_matrix", "dok_array", "bsr_matrix"]


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """Two batches of 32 rows at once, in float32."""
    monkeypatch.setattr("fastmlp.backends.sparse.WINDOW_BYTES", 64 * COLUMNS * 4)


def mlp(backend="numpy", **options):
    return fastmlp.MLP((COLUMNS, 6, 3), **{"seed": 0, "backend": backend, **options})


def hold_the_same(thin, dense, x):
    for ours, theirs in zip(thin.get_weights(), dense.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert thin.input_divisor == dense.input_divisor
    given = sparse.csr_array(x)
    np.testing.assert_allclose(thin.predict_proba(given), dense.predict_proba(x), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(thin.predict(given, batch_size=7), dense.predict(x, batch_size=7))
    ours, theirs = thin.evaluate(given, Y, WEIGHTS, metrics=["f1_macro"]), dense.evaluate(x, Y, WEIGHTS)
    assert ours.pop("f1_macro") == dense.evaluate(x, Y, metrics=["f1_macro"])["f1_macro"]
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("held", [{"validation_split": 0.2}, {"validation_data": True}], ids=repr)
def test_training_has_the_bits_of_dense_inputs(backend, dtype, held):
    models = []
    for x in (sparse.csr_matrix(X), X):
        model = mlp(backend, dtype=dtype, dropout=0.2)
        more = {"validation_data": (x[:50], Y[:50], WEIGHTS[:50])} if "validation_data" in held else held
        options = {"sample_weight": WEIGHTS, "class_weight": "balanced", "metrics": ["f1_macro"], "verbose": 0}
        history = model.fit(x, Y, epochs=3, batch_size=32, **options, **more)
        models.append((model, history.history))
    (thin, ours), (dense, theirs) = models
    hold_the_same(thin, dense, X)
    assert ours["loss"] == theirs["loss"]
    assert ours["val_loss"] == pytest.approx(theirs["val_loss"], rel=1e-5)
    assert ours["val_f1_macro"] == theirs["val_f1_macro"]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_taken(kind):
    thin, dense = mlp(), mlp()
    given = getattr(sparse, kind)(X)
    thin.fit(given, Y, epochs=1, verbose=0)
    dense.fit(X, Y, epochs=1, verbose=0)
    hold_the_same(thin, dense, X)
    assert type(given) is getattr(sparse, kind)
    np.testing.assert_array_equal(given.toarray(), X)


of_any_type = pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "uint16", "int64", "float32", "longdouble"])
in_units = pytest.mark.parametrize("unit", [1, 100])


@of_any_type
@in_units
def test_numbers_of_any_type_mean_what_they_do_in_dense_inputs(backend, kind, unit):
    hold_the_meaning_of_dense_inputs(backend, kind, unit, None)


@of_any_type
@in_units
@pytest.mark.parametrize("first", ["float32", "uint8"])
def test_they_mean_what_the_first_fit_has_settled(kind, unit, first):
    hold_the_meaning_of_dense_inputs("numpy", kind, unit, first)


def hold_the_meaning_of_dense_inputs(backend, kind, unit, first):
    """Bytes above 1 are pixels, and so is then what comes later; `first` is what the network was first trained on."""
    x = (np.abs(X) * unit).clip(0, 255).astype(kind)
    thin, dense, said = mlp(backend), mlp(backend), []
    for model, given in ((thin, sparse.csr_array(x)), (dense, x)):
        if first is not None:
            model.fit((np.abs(X) * 60).clip(0, 255).astype(first), Y, epochs=1, verbose=0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(given, Y, epochs=1, verbose=0)
        said.append([str(w.message) for w in caught])
    assert said[0] == said[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the same again, of each prediction
        hold_the_same(thin, dense, x)


def test_a_scale_that_is_another_is_told():
    x = np.abs(X).clip(0, 1)
    model = mlp()
    model.fit(sparse.csr_array(x), Y, epochs=1, verbose=0)
    for given in (x * 255, sparse.csr_array(x * 255)):
        with pytest.warns(UserWarning, match="x has values up to 255, and the model takes them as they are"):
            model.predict(given)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    given, path = sparse.csc_array(X), tmp_path / "run.safetensors"
    whole = mlp()
    whole.fit(given, Y, epochs=4, validation_split=0.2, verbose=0)

    class Stop(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            if run.epoch == 2:
                run.stop("enough")

    broken = mlp()
    broken.fit(given, Y, epochs=4, validation_split=0.2, callbacks=[fastmlp.Checkpoint(path), Stop()], verbose=0)
    resumed = fastmlp.load(path, "numpy")
    with pytest.raises(fastmlp.DataError, match="not those that the checkpoint"):
        resumed.resume(given * 2, Y, verbose=0)
    resumed.resume(given, Y, verbose=0)
    hold_the_same(resumed, whole, X)


def test_loss_and_gradients_are_those_of_dense_inputs(backend):
    model = mlp(backend)
    ours, theirs = (model.loss_and_gradients(x, Y, WEIGHTS) for x in (sparse.csr_matrix(X), X))
    assert ours[0] == theirs[0]
    for a, b in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.memory_estimate(sparse.csr_matrix(X), Y)["total"] > 0


def with_one(value):
    x = X.astype(complex) if isinstance(value, complex) else X.copy()
    x[123, 4] = value
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (with_one(np.nan), "must be finite, got nan in row 123, column 4; remove or fill in missing values"),
        (with_one(-np.inf), "must be finite, got -inf in row 123, column 4"),
        (with_one(1e300), r"row 123 of column 4 holds 1e\+300, and float32 numbers up to"),
        (with_one(1j), "must hold real numbers, got dtype complex128; convert it"),
        (X[:, :5], r"must have shape \(n, 12\), because the network has 12 inputs; got \(210, 5\)"),
        (X[:0], "has no rows; at least one is needed"),
    ],
)
def test_what_is_refused_of_dense_inputs_is_refused_in_the_same_words(x, words):
    for given in (x, sparse.csc_array(x)):
        for suffix, call in (
            ("", lambda g: mlp().fit(g, Y[: g.shape[0]], epochs=1, verbose=0)),
            (" of validation_data", lambda g: mlp().fit(X, Y, epochs=1, validation_data=(g, Y[: g.shape[0]]))),
            ("", lambda g: mlp().evaluate(g, Y[: g.shape[0]])),
        ):
            with pytest.raises(fastmlp.DataError, match=f"x{suffix}:? {words}"):
                call(given)
        if len(x):
            with pytest.raises(fastmlp.DataError, match=f"x:? {words}"):
                mlp().predict_proba(given)
    assert len(mlp().predict(sparse.csr_array((0, 12)))) == 0


def test_what_is_no_sparse_x_is_refused_by_name():
    class Foreign:
        toarray = None

    thin = sparse.csr_array(X)
    with pytest.raises(fastmlp.DataError, match="x must be an array, or a sparse one of SciPy, got Foreign"):
        mlp().predict(Foreign())
    with pytest.raises(fastmlp.DataError, match=r"x must have shape \(n, 12\), .*; got \(12,\)"):
        mlp().predict(sparse.coo_array(X[0]))
    with pytest.raises(fastmlp.DataError, match=r"y must be a dense array, got csr_array; pass y.toarray\(\)"):
        mlp().fit(X, thin, epochs=1)
    with pytest.raises(fastmlp.DataError, match=r"sample_weight must be a dense array, got csr_array; pass sample_w"):
        mlp().fit(X, Y, sample_weight=thin, epochs=1)
    with pytest.raises(fastmlp.DataError, match=r"x must be a dense array, got csr_array; pass x.toarray\(\)"):
        mlp().predictor()(thin[[0]])
    raw = fastmlp.MLPClassifier(preprocess="standard", epochs=1, backend="numpy").fit(X, Y)
    with pytest.raises(fastmlp.DataError, match=r"x must be dense, since preprocess moves zeros.* pass x.toarray\(\)"):
        raw.model_.predict(thin)


# the host's memory is what is counted
@pytest.mark.parametrize("where", [pytest.param("numpy", marks=pytest.mark.thorough), "numba"])
def test_memory_stays_bounded(where):
    """Dense, these are 80 MB in float32."""
    x = sparse.random(20_000, 1_000, 0.01, "csr", np.float32, 0)
    y = np.asarray(x[:, :20].sum(axis=1)).ravel() > 0.1
    y = y.astype(int)
    model = fastmlp.MLP((1_000, 8, 2), backend=where, seed=0)
    model.fit(x[:500], y[:500], epochs=1, verbose=0)  # compiles
    tracemalloc.start()
    model.fit(x, y, epochs=1, validation_split=0.3, verbose=0)
    model.evaluate(x, y)
    model.predict_proba(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
