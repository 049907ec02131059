"""`preprocess` takes data frames of pandas and polars of any columns, and means the same by them as by objects."""

import warnings

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp import MLPClassifier, MLPRegressor
from fastmlp.errors import DataError
from fastmlp.preprocessing.fitting import fit_preprocessing

QUICK = {"epochs": 3, "random_state": 0, "backend": "numpy", "hidden_layer_sizes": 6}
DRAW = np.random.default_rng(0)
ROWS = 60
COLUMNS = {
    "size": np.where(np.arange(ROWS) % 7 == 0, np.nan, DRAW.normal(3, 2, ROWS)).tolist(),
    "colour": [None if i % 11 == 0 else ("red", "green", "blue")[i % 3] for i in range(ROWS)],
    "count": DRAW.integers(0, 9, ROWS).tolist(),
    "new": (DRAW.normal(size=ROWS) > 0).tolist(),
}
OBJECTS = np.array(list(zip(*COLUMNS.values(), strict=True)), dtype=object)
Y = DRAW.integers(0, 2, ROWS)


def pandas_frame():
    pd = pytest.importorskip("pandas", reason="pandas is not installed; it is no dependency of fastmlp")
    return pd.DataFrame(COLUMNS)


def polars_frame():
    pl = pytest.importorskip("polars", reason="polars is not installed; it is no dependency of fastmlp")
    return pl.DataFrame(COLUMNS)


def turned(frame, kind):
    """Return the frame with columns of other types that mean the same."""
    if kind == "categories":
        return frame.astype({"colour": "category"})
    if kind == "nullable":
        return frame.astype({"colour": "string", "count": "Int16", "new": "boolean", "size": "Float64"})
    return frame.convert_dtypes()


FRAMES = {
    "pandas": pandas_frame,
    "pandas categories": lambda: turned(pandas_frame(), "categories"),
    "pandas nullable": lambda: turned(pandas_frame(), "nullable"),
    "pandas converted": lambda: turned(pandas_frame(), "converted"),
    "polars": polars_frame,
    "polars categories": lambda: polars_frame().cast({"colour": __import__("polars").Categorical}),
    "polars enum": lambda: polars_frame().cast({"colour": __import__("polars").Enum(["red", "green", "blue"])}),
    "polars of 32 bits": lambda: polars_frame().cast({"count": __import__("polars").UInt8}),
}


@pytest.mark.parametrize("kind", ["standard", "robust", "quantile"])
@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_means_what_its_objects_mean(name, kind, tmp_path):
    frame = FRAMES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator = MLPClassifier(preprocess=kind, **QUICK).fit(frame, Y)
        same = MLPClassifier(preprocess=kind, **QUICK).fit(OBJECTS, Y)
        assert_same_bits(estimator.predict_proba(frame), same.predict_proba(OBJECTS))
        assert list(estimator.feature_names_in_) == list(COLUMNS)
        estimator.model_.save(tmp_path / "m")
        model = fastmlp.load(tmp_path / "m", "numpy")
        expected = same.predict_proba(OBJECTS)[:, 1:]
        assert model.feature_names == tuple(COLUMNS)
        assert_same_bits(model.predict_proba(frame), expected)
        assert_same_bits(model.predict_proba(frame[["new", "size", "count", "colour"]]), expected)
        assert_same_bits(model.predict_proba(frame[:1]), expected[:1])
    names = estimator.preprocessing_.get_feature_names_out(estimator.feature_names_in_)
    assert list(names) == [
        *("size", "count", "missingindicator_size", "colour_blue", "colour_green", "colour_red", "colour_nan"),
        *("new_False", "new_True"),
    ]


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_held_out_rows_of_a_frame_are_held_out(name):
    frame = FRAMES[name]()
    options = {"preprocess": "standard", "early_stopping": True, **QUICK}
    estimator = MLPRegressor(**options).fit(frame, Y.astype(float), sample_weight=np.ones(ROWS))
    same = MLPRegressor(**options).fit(OBJECTS, Y.astype(float), sample_weight=np.ones(ROWS))
    assert estimator.validation_scores_ == same.validation_scores_
    estimator = MLPRegressor(preprocess="standard", **QUICK).fit(frame, Y.astype(float), X_val=frame, y_val=Y)
    assert len(estimator.validation_scores_) == 3


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_column_is_refused_by_its_name(name):
    frame = FRAMES[name]()
    estimator = MLPClassifier(preprocess="standard", **QUICK).fit(frame, Y)
    text = OBJECTS[:, 1].tolist()
    wrong = type(frame)({**COLUMNS, "size": text})
    with pytest.raises(DataError, match=r"x: column 'size' held numbers in training, got the text 'green' in row 1"):
        estimator.predict(wrong)
    with pytest.raises(DataError, match="x: column 'colour' held text in training, got numbers"):
        estimator.predict(type(frame)({**COLUMNS, "colour": COLUMNS["size"]}))
    with pytest.raises(DataError, match="x: column 'count' holds inf in row 2"):
        estimator.predict(type(frame)({**COLUMNS, "count": [0.0, 1.0, np.inf] + [0.0] * (ROWS - 3)}))
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame[["size", "colour", "new", "count"]])
    with pytest.raises(DataError, match=r"model.feature_names, got no 'new'"):
        estimator.model_.predict(frame[["size", "colour", "count"]])
    with pytest.raises(ValueError, match="0 sample"):
        estimator.predict(frame[:0])


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_dates_are_refused_by_name(name):
    from datetime import date, datetime

    frame = FRAMES[name]()
    for value in (date(2024, 5, 1), datetime(2024, 5, 1)):
        with pytest.raises(DataError, match=r"X: column 'new' holds .*date"):
            MLPClassifier(preprocess="standard", **QUICK).fit(type(frame)({**COLUMNS, "new": [value] * ROWS}), Y)


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_a_column_without_any_value_is_left_out(name):
    frame = FRAMES[name]()
    empty = type(frame)({**COLUMNS, "gone": [None] * ROWS})
    with pytest.warns(UserWarning, match="X: column 'gone' holds no value in the training rows, and is left out"):
        estimator = MLPClassifier(preprocess="standard", **QUICK).fit(empty, Y)
    same = MLPClassifier(preprocess="standard", **QUICK).fit(frame, Y)
    filled = type(frame)({**COLUMNS, "gone": ["x"] * ROWS})
    assert_same_bits(estimator.predict_proba(filled), same.predict_proba(frame))


def test_numbers_that_are_declared_categories_are_categories():
    frame = pandas_frame().astype({"count": "category"})
    found = fit_preprocessing(frame, "standard")
    assert [column.holds for column in found.categories] == ["text", "number", "boolean"]
    plain = pandas_frame()  # the same numbers, of whatever type
    np.testing.assert_array_equal(found.transform(plain), found.transform(frame))
    np.testing.assert_array_equal(found.transform(plain.astype({"count": float})), found.transform(frame))


def test_one_row_as_a_series():
    frame = pandas_frame()
    model = MLPClassifier(preprocess="robust", **QUICK).fit(frame, Y).model_
    predictor = model.predictor()
    for i in range(4):
        assert predictor(frame.iloc[i]) == model.predict(frame.iloc[i : i + 1])[0]
        assert predictor(frame.iloc[i][::-1]) == model.predict(frame.iloc[i : i + 1])[0]


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_frames_of_many_thousand_columns(name):
    wide = {f"c{i}": DRAW.normal(size=20) for i in range(3000)} | {f"w{i}": ["a", "b"] * 10 for i in range(1000)}
    frame = type(FRAMES[name]())(wide)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator = MLPClassifier(preprocess="standard", **QUICK).fit(frame, Y[:20])
    assert estimator.coefs_[0].shape[0] == 5000
    assert estimator.predict(frame[:1]).shape == (1,)
