"""`preprocess`: raw rows in, scaled and one-hot by what the training rows tell, as scikit-learn does it."""

import pickle
import warnings

import numpy as np
import pytest
from compare import assert_same_bits
from estimator_checks import hold_the_checks
from raw_rows import KINDS, MIXED, NUMBERS, QUICK, ROWS, WORDS, Y
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, RobustScaler, StandardScaler

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.errors import DataError
from fastmlp.preprocessing.fitting import MOST_CATEGORIES, fit_preprocessing
from fastmlp.preprocessing.record import Preprocessing


def scaler(kind, rows=ROWS):
    quantile = QuantileTransformer(n_quantiles=rows, output_distribution="normal", random_state=0)
    return {"standard": StandardScaler(), "robust": RobustScaler(), "quantile": quantile}[kind]


def explicit(kind, network):
    """Return the pipeline of scikit-learn's transformers that does what `preprocess` does for the columns of MIXED."""
    numbers = [0, 2, 3]
    flags = MissingIndicator(features="missing-only", error_on_new=False)
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(strategy="median"), scaler(kind)), numbers),
            ("flags", flags, numbers),
            ("words", OneHotEncoder(handle_unknown="ignore", sparse_output=False), WORDS),
        ]
    )
    return make_pipeline(columns, network)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_are_scaled_as_by_a_pipeline(kind, dtype):
    raw = MLPClassifier(preprocess=kind, dtype=dtype, **QUICK).fit(NUMBERS, Y)
    same = make_pipeline(scaler(kind), MLPClassifier(dtype=dtype, **QUICK)).fit(NUMBERS, Y)
    np.testing.assert_allclose(raw.predict_proba(NUMBERS), same.predict_proba(NUMBERS), atol=1e-6)
    np.testing.assert_allclose(raw.predict_proba(NUMBERS[:1]), same.predict_proba(NUMBERS[:1]), atol=1e-6)
    np.testing.assert_allclose(raw.loss_curve_, same[-1].loss_curve_, atol=1e-6)
    assert raw.coefs_[0].dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("exact", [True, False])
def test_mixed_columns_are_those_of_a_pipeline(kind, exact):
    raw = MLPClassifier(preprocess=kind, exact=exact, dtype="float64", **QUICK).fit(MIXED, Y)
    same = explicit(kind, MLPClassifier(exact=exact, dtype="float64", **QUICK)).fit(MIXED, Y)
    np.testing.assert_allclose(raw.predict_proba(MIXED), same.predict_proba(MIXED), atol=1e-6)
    np.testing.assert_allclose(raw.preprocessing_.transform(MIXED), same[0].transform(MIXED), atol=1e-12)
    assert raw.n_features_in_ == 5
    theirs = [name.partition("__")[2] for name in same[0].get_feature_names_out()]
    ours = raw.preprocessing_.get_feature_names_out()
    assert [name.removesuffix("nan") for name in ours] == [name.removesuffix("None") for name in theirs]
    unseen = MIXED[:3].copy()
    unseen[0, 1], unseen[1, 0], unseen[2, 2] = "violet", np.nan, np.nan
    np.testing.assert_allclose(raw.predict_proba(unseen), same.predict_proba(unseen), atol=1e-6)
    np.testing.assert_array_equal(raw.preprocessing_.transform(unseen)[0, -6:-2], 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_values_are_learned_from_raw_rows(kind, solver):
    options = {**QUICK, "solver": solver, "dtype": "float64"}
    options |= {"epochs": None, "max_iter": 5} if solver == "lbfgs" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        raw = MLPRegressor(preprocess=kind, **options).fit(MIXED, NUMBERS[:, :2])
        same = explicit(kind, MLPRegressor(**options)).fit(MIXED, NUMBERS[:, :2])
    np.testing.assert_allclose(raw.predict(MIXED), same.predict(MIXED), rtol=1e-6)


# --- which rows it learns of ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_held_out_tell_it_nothing(kind):
    estimator = MLPClassifier(preprocess=kind, early_stopping=True, **QUICK).fit(NUMBERS, Y)
    drawn = np.random.RandomState(0)
    train, held_out = train_test_split(np.arange(ROWS), random_state=drawn, test_size=0.1, stratify=Y)
    expected = scaler(kind, len(train)).fit(NUMBERS[train]).transform(NUMBERS)
    np.testing.assert_allclose(estimator.preprocessing_.transform(NUMBERS), expected, atol=1e-9)
    assert estimator.best_validation_score_ == estimator.score(NUMBERS[held_out], Y[held_out])


def test_rows_to_validate_with_tell_it_nothing():
    there = MIXED[:40].copy()
    there[:, 0], there[:, 1] = 1e3, "violet"
    plain = MLPClassifier(preprocess="standard", **QUICK).fit(MIXED, Y)
    judged = MLPClassifier(preprocess="standard", **QUICK).fit(MIXED, Y, X_val=there, y_val=Y[:40])
    assert_same_bits(judged.coefs_[0], plain.coefs_[0])
    last = fastmlp.MLP.evaluate(judged.model_, there, Y[:40].astype(np.float32))
    assert judged.validation_loss_curve_[-1] == pytest.approx(last["loss"], rel=1e-5)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("held_out", ["drawn", "given"])
def test_rows_are_made_ready_once_not_after_each_epoch(kind, held_out, monkeypatch):
    counts, transform = [], Preprocessing.transform

    def counted(self, x, *more, **options):
        counts.append(len(x))
        return transform(self, x, *more, **options)

    monkeypatch.setattr(Preprocessing, "transform", counted)
    given = {"X_val": MIXED[:40], "y_val": Y[:40]} if held_out == "given" else {}
    estimator = kind(preprocess="standard", early_stopping=True, **QUICK).fit(MIXED, Y, **given)
    assert counts == ([ROWS, 40] if given else [ROWS])
    if given:
        assert estimator.best_validation_score_ == pytest.approx(estimator.score(MIXED[:40], Y[:40]), abs=1e-6)


def test_scorers_are_given_raw_rows():
    seen = []

    def shape(estimator, x, y):
        seen.append(x)
        return estimator.score(x, y)

    MLPClassifier(preprocess="standard", early_stopping=True, scoring=shape, **QUICK).fit(MIXED, Y)
    assert seen[0].dtype == object and seen[0].shape[1] == 5


def test_training_that_goes_on_keeps_what_was_learned():
    estimator = MLPClassifier(preprocess="standard", warm_start=True, **QUICK).fit(MIXED, Y)
    learned = estimator.preprocessing_
    shifted = MIXED.copy()
    shifted[:, 0] += 100.0
    estimator.fit(shifted, Y)
    assert estimator.preprocessing_ is learned
    estimator.partial_fit(shifted, Y)
    assert estimator.preprocessing_ is learned
    with pytest.raises(ValueError, match=r"preprocess='robust'.*was trained with preprocess='standard'; set that, or"):
        estimator.set_params(preprocess="robust").fit(MIXED, Y)
    with pytest.raises(ValueError, match="preprocess='standard' is learned of many rows at once"):
        MLPClassifier(preprocess="standard", **QUICK).partial_fit(MIXED, Y, classes=[0, 1])
    plain = MLPClassifier(warm_start=True, **QUICK).fit(NUMBERS, Y)
    with pytest.raises(ValueError, match="was trained with preprocess=None"):
        plain.set_params(preprocess="standard").fit(NUMBERS, Y)


# --- columns that tell little ---


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_constant_in_training_means_nothing_later(kind):
    x = np.column_stack([NUMBERS, np.full(ROWS, 7.0)])
    estimator = MLPClassifier(preprocess=kind, **QUICK).fit(x, Y)
    before = estimator.predict_proba(x)
    x[:, 3] = 1e5
    assert_same_bits(estimator.predict_proba(x), before)


def test_a_column_that_is_missing_in_all_rows_is_told_and_left_out():
    x = np.column_stack([NUMBERS, np.full(ROWS, np.nan)])
    with pytest.warns(UserWarning, match="X: column 3 holds no value in the training rows, and is left out"):
        estimator = MLPClassifier(preprocess="standard", **QUICK).fit(x, Y)
    same = MLPClassifier(preprocess="standard", **QUICK).fit(NUMBERS, Y)
    assert_same_bits(estimator.predict_proba(x), same.predict_proba(NUMBERS))
    x[:, 3] = 1e5
    assert_same_bits(estimator.predict_proba(x), same.predict_proba(NUMBERS))
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="must hold a value in some column"),
    ):
        MLPClassifier(preprocess="standard", **QUICK).fit(np.full((ROWS, 1), np.nan), Y)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e-290, 1e-12, 1e12, 1e290])
def test_columns_in_any_unit_are_scaled_alike(kind, size):
    found = fit_preprocessing(NUMBERS * size, kind).transform(NUMBERS * size)
    np.testing.assert_allclose(found, fit_preprocessing(NUMBERS, kind).transform(NUMBERS), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_may_be_categories(kind):
    words = MIXED[:, WORDS]
    estimator = MLPClassifier(preprocess=kind, **QUICK).fit(words, Y)
    assert estimator.coefs_[0].shape[0] == 6
    assert estimator.predict(words[:1]).shape == (1,)


# --- what is refused, by column ---


def changed(column, value, row=3):
    x = MIXED.copy()
    x[row, column] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (changed(0, "abc"), "x: column 0 holds values of several kinds, number and text"),
        (
            np.where(np.arange(5) == 0, "abc", MIXED),
            "x: column 0 held numbers in training, got the text 'abc' in row 0",
        ),
        (np.where(np.arange(5) == 1, 2.5, MIXED), "x: column 1 held text in training, got numbers, '2.5' in row 0"),
        (np.where(np.arange(5) == 4, "yes", MIXED), "x: column 4 held booleans in training, got text, 'yes' in row 0"),
        (changed(2, np.inf), "x: column 2 holds inf in row 3; it must be finite"),
        (changed(2, 1e300), "x: column 2 holds 1e.300 in row 3, too far from the training rows.*float32"),
        (changed(1, {}), "x: column 1 holds values of type dict; make text or numbers of them"),
        (MIXED.astype(str), "x must hold numbers, or objects of which each column is text.*pass a data frame, or an"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_column(x, message):
    estimator = MLPClassifier(preprocess="standard", **QUICK).fit(MIXED, Y)
    with pytest.raises(ValueError, match=message):
        estimator.model_.predict(x)
    with pytest.raises(ValueError, match=r"column|numeric"):
        estimator.predict(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (changed(0, "abc"), "X: column 0 holds values of several kinds, number and text; make them all of one kind"),
        (changed(3, -np.inf), "X: column 3 holds -inf in row 3; it must be finite"),
        (changed(3, 10**400), "X: column 3 holds inf in row 3"),
    ],
)
def test_what_cannot_be_learned_of_is_refused_by_column(x, message):
    with pytest.raises(DataError, match=message):
        MLPClassifier(preprocess="standard", **QUICK).fit(x, Y)


def test_a_column_that_names_the_rows_is_refused():
    x = np.array([[f"name {i}"] for i in range(MOST_CATEGORIES + 1)], dtype=object)
    with pytest.raises(DataError, match=r"X: column 0 holds 1,001 categories in 1,001 rows, expected 1,000 at most"):
        MLPClassifier(preprocess="standard", **QUICK).fit(x, np.arange(len(x)) % 2)


def test_sparse_rows_are_refused_with_the_cure():
    from scipy import sparse

    with pytest.raises(TypeError, match=r"X is sparse, and preprocess moves zeros; pass X.toarray\(\), or use"):
        MLPClassifier(preprocess="standard", **QUICK).fit(sparse.csr_matrix(NUMBERS), Y)


def test_booleans_may_come_as_numbers_and_numbers_as_booleans():
    estimator = MLPClassifier(preprocess="standard", **QUICK).fit(MIXED, Y)
    x = MIXED.copy()
    x[:, 4] = x[:, 4].astype(int)
    assert_same_bits(estimator.predict_proba(x), estimator.predict_proba(MIXED))


def test_lists_keep_their_numbers():
    estimator = MLPClassifier(preprocess="standard", **QUICK).fit(MIXED.tolist(), Y.tolist())
    same = MLPClassifier(preprocess="standard", **QUICK).fit(MIXED, Y)
    assert_same_bits(estimator.predict_proba(MIXED.tolist()), same.predict_proba(MIXED))
    assert_same_bits(estimator.model_.predict_proba(MIXED.tolist()), same.predict_proba(MIXED)[:, 1:])


# --- in scikit-learn's tools ---


def test_it_is_a_parameter_like_any_other():
    estimator = MLPClassifier(preprocess="quantile", **QUICK)
    assert clone(estimator).get_params() == estimator.get_params()
    search = GridSearchCV(estimator, {"preprocess": [None, "standard", "robust"]}, cv=2).fit(NUMBERS, Y)
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    fitted = estimator.fit(MIXED, Y, sample_weight=np.ones(ROWS))
    assert_same_bits(pickle.loads(pickle.dumps(fitted)).predict_proba(MIXED), fitted.predict_proba(MIXED))
    with pytest.raises(ValueError, match=r"'preprocess' parameter.*must be a str among"):
        MLPClassifier(preprocess="minmax").fit(NUMBERS, Y)


@pytest.mark.parametrize("name", ["MLPClassifier", pytest.param("MLPRegressor", marks=pytest.mark.thorough)])
def test_any_estimator(name):
    estimator = getattr(fastmlp, name)(backend="numpy", dtype="float64", max_iter=20, preprocess="standard")
    refused = {
        "check_dtype_object": "a column of dicts is refused, which they expect to pass of what takes text",
        "check_sample_weight_equivalence_on_dense_data": "each row tells as much of its columns, whatever its weight",
    }
    # and a first partial_fit, of which they make several
    hold_the_checks(estimator, lambda name, error: name in refused or "partial_fit" in str(error), least=45)
