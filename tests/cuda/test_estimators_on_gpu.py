"""The estimators on arrays of a GPU: they stay there, and what comes of them is there too."""

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import needs_emulator
from gpu_arrays import KINDS, make

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 40)).astype("f4")
LABELS = RNG.integers(0, 3, 120)
SEVERAL = (RNG.random((120, 3)) < 0.4).astype(int)
VALUES = X[:, 0] + X[:, 1]
WEIGHTS = RNG.uniform(0.5, 2, 120)
OPTIONS = {"hidden_layer_sizes": (4,), "epochs": 2, "random_state": 0, "batch_size": 64}


@pytest.fixture
def downloads(monkeypatch):
    """The bytes of each array that comes to the host."""
    seen, get = [], cp.ndarray.get

    def told(self, *args, **kwargs):
        seen.append(self.nbytes)
        return get(self, *args, **kwargs)

    monkeypatch.setattr(cp.ndarray, "get", told)
    return seen


@pytest.mark.parametrize(
    ("kind", "y", "options"),
    [
        (MLPClassifier, LABELS, {"early_stopping": True}),
        (MLPClassifier, LABELS * 2 + 3, {"calibrate": True}),
        (MLPClassifier, LABELS > 0, {}),
        (MLPClassifier, SEVERAL, {}),
        (MLPRegressor, VALUES, {"early_stopping": True}),
        (MLPRegressor, np.column_stack([VALUES, VALUES]), {}),
    ],
    ids=["classes", "other numbers", "two classes", "several labels", "values", "several values"],
)
@pytest.mark.filterwarnings("ignore:calibrate=True:sklearn.exceptions.ConvergenceWarning")
def test_what_lies_on_the_gpu_gives_the_bits_of_the_same_in_host_memory(kind, y, options, downloads):
    backend = make("eager")
    options = {**OPTIONS, "backend": backend, **options}
    x, there = cp.asarray(X), kind(**options)
    there.fit(x, cp.asarray(y), sample_weight=cp.asarray(WEIGHTS), X_val=None)
    assert max(downloads, default=0) < X.nbytes / 2, "X stays where it is"
    here = kind(**options).fit(X, y, sample_weight=WEIGHTS)
    for a, b in zip(there.coefs_, here.coefs_, strict=True):
        assert_same_bits(a, b)
    assert there.loss_curve_ == here.loss_curve_
    assert there.validation_scores_ == here.validation_scores_
    for name in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        if hasattr(there, name):
            found, expected = getattr(there, name)(x), getattr(here, name)(X)
            assert isinstance(found, cp.ndarray)
            np.testing.assert_allclose(found.get(), expected, rtol=1e-5)  # SciPy's sigmoid is for NumPy's arrays
            assert found.dtype == expected.dtype
            assert isinstance(getattr(there, name)(X), np.ndarray)
    assert there.score(x, cp.asarray(y), cp.asarray(WEIGHTS)) == here.score(X, y, WEIGHTS)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_to_validate_with_and_streams_of_every_library(kind):
    wrap, options = KINDS[kind], {**OPTIONS, "backend": make("eager")}
    held = {"X_val": wrap(X[:30]), "y_val": wrap(LABELS[:30]), "sample_weight_val": wrap(WEIGHTS[:30])}
    there = MLPClassifier(**options).fit(wrap(X), wrap(LABELS), **held)
    held = {"X_val": X[:30], "y_val": LABELS[:30], "sample_weight_val": WEIGHTS[:30]}
    here = MLPClassifier(**options).fit(X, LABELS, **held)
    there.partial_fit(wrap(X), wrap(LABELS), wrap(WEIGHTS))
    here.partial_fit(X, LABELS, WEIGHTS)
    assert_same_bits(there.coefs_[0], here.coefs_[0])
    assert there.validation_loss_curve_ == here.validation_loss_curve_
    begun = MLPClassifier(**options).partial_fit(wrap(X), wrap(LABELS), classes=[0, 1, 2])
    assert begun.score(wrap(X), wrap(LABELS)) == begun.score(X, LABELS)


def test_names_of_classes_cannot_lie_on_a_gpu():
    names = np.array(["a", "b", "c"])[LABELS]
    estimator = MLPClassifier(backend=make("eager"), **OPTIONS).fit(cp.asarray(X), names)
    found = estimator.predict(cp.asarray(X))
    assert isinstance(found, np.ndarray)
    assert (found == estimator.predict(X)).all()


@pytest.mark.parametrize("dtype", ["u1", "i8", "?", "f2"])
def test_bytes_and_whole_numbers_are_numbers(dtype):
    x = (np.abs(X) * 3).astype(dtype)
    options = {**OPTIONS, "backend": make("eager")}
    there, here = (MLPClassifier(**options).fit(a, LABELS) for a in (cp.asarray(x), x))
    assert_same_bits(there.coefs_[0], here.coefs_[0])
    assert_same_bits(there.predict_proba(cp.asarray(x)).get(), here.predict_proba(x))


def test_what_cannot_be_taken_is_refused_by_name():
    options = {**OPTIONS, "backend": "numpy"}
    with pytest.raises(fastmlp.DataError, match=r"X lies on a GPU.* runs on the numpy backend; .*give backend='cupy'"):
        MLPClassifier(**options).fit(cp.asarray(X), LABELS)
    with pytest.raises(fastmlp.DataError, match="y lies on a GPU"):
        MLPClassifier(**options).fit(X, cp.asarray(LABELS))
    with pytest.raises(fastmlp.DataError, match="sample_weight lies on a GPU"):
        MLPClassifier(**options).fit(X, LABELS, sample_weight=cp.asarray(WEIGHTS))
    estimator = MLPClassifier(**options).fit(X, LABELS)
    with pytest.raises(fastmlp.DataError, match="X lies on a GPU"):
        estimator.predict(cp.asarray(X))
    estimator = MLPClassifier(**{**options, "backend": make("eager")})
    bad = X.copy()
    bad[7, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite, got nan in row 7, column 3"):
        estimator.fit(cp.asarray(bad), LABELS)
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
        estimator.fit(cp.asarray(X[:, 0].copy()), LABELS)
    estimator.fit(cp.asarray(X), LABELS)
    with pytest.raises(ValueError, match="X has 3 features, but MLPClassifier is expecting 40 features"):
        estimator.predict(cp.asarray(X[:, :3].copy()))


def test_rows_that_a_model_holds_out_are_picked_where_they_lie(downloads):
    model = fastmlp.MLP((40, 4, 3), seed=0, backend=make("eager"))
    model.fit(cp.asarray(X), cp.asarray(LABELS), epochs=1, validation_split=0.25, verbose=0)
    assert max(downloads) < X.nbytes / 2
