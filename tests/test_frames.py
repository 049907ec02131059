"""Data frames and series of pandas mean the same as the arrays that they hold, or are refused by column."""

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp.errors import DataError

pd = pytest.importorskip("pandas", reason="pandas is not installed; it is no dependency of fastmlp")

X = np.random.default_rng(0).normal(size=(60, 3))
Y = (X[:, 0] > 0).astype(int)
X[:, 1] = np.round(4 * X[:, 1])
FRAME, LABELS = pd.DataFrame(X, columns=list("abc")), pd.Series(Y)
TURNED = FRAME[["c", "a", "b"]]


def fitted(x, y, **options):
    loss = options.pop("loss", "softmax_cross_entropy")
    model = fastmlp.MLP((3, 4, 2), loss=loss, backend="numpy", seed=0)
    model.fit(x, y, epochs=2, verbose=0, **options)
    return model


def turn(given):
    """Return the same rows under an index in another order."""
    return given.set_axis(np.random.default_rng(1).permutation(len(given)), axis=0)


SAME = {
    "float64": FRAME,
    "index": turn(FRAME),
    "nullable": FRAME.astype("Float64"),
    "one column nullable": FRAME.assign(a=FRAME.a.astype("Float64")),
    "nullable whole numbers": FRAME.astype({"b": "Int64"}),
    "one column of whole numbers": FRAME.astype({"b": "int8"}),
    "converted": FRAME.convert_dtypes(),
    "numbers as categories": FRAME.astype({"b": "category"}),
    "sparse": FRAME.astype(pd.SparseDtype("float", 0.0)),
    "columns by number": FRAME.set_axis(range(3), axis=1),
}


@pytest.mark.parametrize("kind", SAME)
def test_a_frame_of_numbers_is_the_array_of_them(kind):
    model, expected = fitted(SAME[kind], LABELS), fitted(X, Y)
    assert_same_bits(model.get_weights()[0], expected.get_weights()[0])
    assert_same_bits(model.predict_proba(SAME[kind]), expected.predict_proba(X))
    assert model.feature_names == (None if kind == "columns by number" else ("a", "b", "c"))


@pytest.mark.parametrize("dtype", ["uint8", "UInt8", "bool", "boolean"])
def test_bytes_and_flags_keep_their_meaning(dtype):
    whole = np.abs(np.round(50 * X)).astype(np.uint8)
    whole = whole > 40 if dtype.startswith("bool") else whole
    model, expected = fitted(pd.DataFrame(whole).astype(dtype), Y), fitted(whole, Y)
    assert_same_bits(model.get_weights()[0], expected.get_weights()[0])


def test_flags_beside_numbers_are_0_and_1():
    mixed = FRAME.assign(b=FRAME.b > 0)
    expected = fitted(mixed.astype(float), Y).get_weights()[0]
    assert_same_bits(fitted(mixed, Y).get_weights()[0], expected)
    assert_same_bits(fitted(mixed.astype({"b": "boolean"}), Y).get_weights()[0], expected)


def test_columns_in_another_order_are_taken_by_name_everywhere():
    model = fitted(FRAME, LABELS, validation_data=(TURNED.astype("Float64"), LABELS))
    for given in (TURNED, TURNED.convert_dtypes()):
        assert_same_bits(model.predict_proba(given), model.predict_proba(X))
        assert model.evaluate(given, LABELS) == model.evaluate(X, Y)
        assert model.loss_and_gradients(given, Y)[0] == model.loss_and_gradients(X, Y)[0]


def test_columns_by_number_stand_where_their_numbers_say():
    numbered = pd.DataFrame(X)
    model = fitted(numbered, Y)
    assert_same_bits(model.predict_proba(numbered[[2, 0, 1]]), model.predict_proba(X))


def test_a_row_of_a_frame_is_taken_by_name_by_a_predictor():
    model = fitted(FRAME, LABELS)
    predictor = model.predictor()
    expected = predictor.outputs(X[5])
    assert_same_bits(predictor.outputs(FRAME.iloc[5]), expected)
    assert_same_bits(predictor.outputs(TURNED.iloc[5]), expected)
    assert_same_bits(predictor.outputs(pd.Series(X[5])), expected)
    with pytest.raises(DataError, match=r"x must have the columns of model.feature_names, got no 'c' and 'd' more"):
        predictor(FRAME.rename(columns={"c": "d"}).iloc[5])
    unnamed = fitted(X, Y).predictor()
    assert_same_bits(unnamed.outputs(pd.DataFrame(X)[[2, 0, 1]].iloc[5]), unnamed.outputs(X[5]))


COLUMNS = {
    "text": (np.where(Y, "u", "v"), "encode it, with pandas.get_dummies"),
    "numbers as text": (FRAME.b.astype(str), r"pass x.astype\({'b': float}\)"),
    "categories": (pd.Categorical(np.where(Y, "u", "v")), "holds category; encode it"),
    "objects": (pd.Series([1.5, None, *FRAME.b[2:]], dtype=object), "holds object; encode it"),
    "dates": (pd.date_range("2024-01-01", periods=60), "holds datetime64.*; make numbers of it, of days for example"),
    "dates of a zone": (pd.date_range("2024-01-01", periods=60, tz="UTC"), "UTC.; make numbers of it"),
    "times": (pd.to_timedelta(range(60), unit="D"), "holds timedelta64.*; make numbers of it"),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_that_holds_no_numbers_is_refused_by_name_with_the_cure(kind):
    values, cure = COLUMNS[kind]
    with pytest.raises(DataError, match=f"^x must hold real numbers, and column 'b' .*{cure}"):
        fitted(FRAME.assign(b=values), LABELS)


@pytest.mark.parametrize("dtype", ["float64", "Float64", "Int64", "boolean"])
def test_a_missing_value_is_refused_by_row_and_column(dtype):
    whole = FRAME.assign(b=np.arange(60) % 2)
    missing = whole.astype({"b": dtype}).mask(pd.DataFrame(np.eye(60, 3, -40) > 0, columns=list("abc")))
    with pytest.raises(DataError, match=r"^x must be finite, got nan in row 40, column 0"):
        fitted(missing, LABELS)
    with pytest.raises(DataError, match=r"^x must be finite, got nan in row 41, column 1"):
        fitted(missing.assign(a=0.0), LABELS)
    with pytest.raises(DataError, match=r"^x must be finite, got nan in row 41"):
        fitted(FRAME, LABELS).predict(missing.assign(a=0.0))


@pytest.mark.parametrize("dtype", ["int64", "Int64", "int8", "category", "float64", "Float64"])
def test_labels_of_a_series_are_taken_by_position(dtype):
    given = turn(LABELS.astype(dtype))
    if dtype in ("float64", "Float64"):
        with pytest.raises(DataError, match=r"they are whole numbers: pass y.astype\(int\)"):
            fitted(FRAME, given)
        return
    expected = fitted(X, Y).get_weights()[0]
    assert_same_bits(fitted(FRAME, given).get_weights()[0], expected)
    assert_same_bits(fitted(FRAME, given.to_frame()).get_weights()[0], expected)
    weights = turn(pd.Series(np.arange(60.0)).astype("Float64"))
    weighed = fitted(X, Y, sample_weight=np.arange(60.0)).get_weights()[0]
    assert_same_bits(fitted(FRAME, given, sample_weight=weights).get_weights()[0], weighed)


@pytest.mark.parametrize("dtype", ["float64", "Float64"])
def test_targets_of_a_frame_are_values(dtype):
    targets = FRAME[["a", "c"]].astype(dtype)
    expected = fitted(X, X[:, [0, 2]], loss="mean_squared_error").get_weights()[0]
    assert_same_bits(fitted(FRAME, targets, loss="mean_squared_error").get_weights()[0], expected)
    with pytest.raises(DataError, match="y: targets must be finite, got nan in row 7, column 1"):
        fitted(FRAME, targets.assign(c=targets.c.where(targets.index != 7)), loss="mean_squared_error")


@pytest.mark.parametrize("dtype", ["Int64", "Float64"])
def test_a_missing_target_is_refused_by_row(dtype):
    with pytest.raises(DataError, match=r"y: targets must be finite, got .* in row 3; leave out the rows"):
        fitted(FRAME, LABELS.astype(dtype).where(LABELS.index != 3))


@pytest.mark.parametrize("dtype", ["object", "string", "category"])
def test_labels_of_text_are_refused_with_the_cure(dtype):
    given = LABELS.map({0: "no", 1: "yes"}).astype(dtype)
    with pytest.raises(DataError, match=r"number them first: class_names, y = np.unique\(y, return_inverse=True\)"):
        fitted(FRAME, given)


def test_a_series_as_inputs_is_told_how_to_be_a_frame():
    model = fastmlp.MLP((1, 4, 2), backend="numpy", seed=0)
    with pytest.raises(DataError, match=r"examples of one input are x.to_frame\(\)"):
        model.fit(FRAME.a, LABELS, epochs=1, verbose=0)
