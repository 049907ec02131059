"""Models that take raw rows: one file answers them, damaged ones are refused, other libraries get what they can do."""

import contextlib
import copy
import pickle

import numpy as np
import pytest
from compare import assert_same_bits
from raw_rows import KINDS, MIXED, NUMBERS, QUICK, ROWS, Y

import fastmlp
from fastmlp import MLPClassifier
from fastmlp.convert import to_sklearn
from fastmlp.errors import FileFormatError
from fastmlp.files import safetensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_file_answers_raw_rows(kind, dtype, tmp_path, backend):
    estimator = MLPClassifier(preprocess=kind, dtype=dtype, **{**QUICK, "backend": backend}).fit(MIXED, Y)
    estimator.model_.save(tmp_path / "m")
    model = fastmlp.load(tmp_path / "m", backend)
    expected = estimator.predict_proba(MIXED)[:, 1:]
    assert_same_bits(model.predict_proba(MIXED), expected)
    assert_same_bits(estimator.model_.predict_proba(MIXED), expected)
    assert_same_bits(pickle.loads(pickle.dumps(model)).predict_proba(MIXED), expected)
    unseen = MIXED[:2].copy()
    unseen[0, 1] = "violet"
    unseen[1] = [None, None, None, None, None]
    assert_same_bits(model.predict_proba(unseen), estimator.predict_proba(unseen)[:, 1:])
    predictor = model.predictor()
    np.testing.assert_allclose(
        [predictor.outputs(row)[0] for row in MIXED[:4]], estimator.decision_function(MIXED[:4]), 1e-5
    )
    assert predictor(list(MIXED[0])) == model.predict(MIXED[:1])[0]
    labels = Y.astype(np.float32)
    assert model.evaluate(MIXED, labels)["accuracy"] == pytest.approx(estimator.score(MIXED, Y))
    model.fit(MIXED, labels, epochs=1, verbose=0)
    assert model.preprocessing.to_file()[0] == estimator.preprocessing_.to_file()[0]
    assert "5 columns of any kind become 10 inputs" in summary_of(model)


def summary_of(model):
    lines = []
    model.summary(lines.append)
    return " ".join(lines)


def test_a_checkpoint_holds_it_too(tmp_path):
    class Stop(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            run.stop("enough")

    estimator = MLPClassifier(preprocess="robust", **QUICK).fit(MIXED, Y)
    callbacks = [fastmlp.Checkpoint(tmp_path / "c"), Stop()]
    labels = Y.astype(np.float32)
    whole, cut = copy.deepcopy(estimator.model_), estimator.model_
    whole.fit(MIXED, labels, epochs=2, optimizer="adam", verbose=0)
    cut.fit(MIXED, labels, epochs=2, optimizer="adam", verbose=0, callbacks=callbacks)
    resumed = fastmlp.load(tmp_path / "c", "numpy")
    resumed.resume(MIXED, labels, verbose=0)
    assert_same_bits(resumed.predict_proba(MIXED), whole.predict_proba(MIXED))


def test_a_network_is_given_what_makes_its_own_inputs():
    fitted = MLPClassifier(preprocess="standard", **QUICK).fit(NUMBERS, Y).preprocessing_
    model = fastmlp.MLP((3, 2), backend="numpy", seed=0)
    model.feature_names = ("a", "b", "c")
    expected = model.predict_proba(fitted.transform(NUMBERS).astype(np.float32))
    model.preprocessing = fitted
    assert_same_bits(model.predict_proba(NUMBERS), expected)
    assert model.feature_names == ("a", "b", "c")
    with pytest.raises(TypeError, match=r"preprocessing must be None or what an estimator has.*got 'standard'"):
        model.preprocessing = "standard"
    with pytest.raises(ValueError, match="preprocessing must make the 3 inputs of the network, got one of 10"):
        model.preprocessing = MLPClassifier(preprocess="standard", **QUICK).fit(MIXED, Y).preprocessing_
    pixels = fastmlp.MLP((3, 2), backend="numpy", seed=0)
    pixels.fit(np.full((4, 3), 200, np.uint8), [0, 1, 0, 1], epochs=1, verbose=0)
    with pytest.raises(ValueError, match="cannot be that of a network that divides its inputs by 255"):
        pixels.preprocessing = fitted


def test_an_earlier_version_refuses_the_file_rather_than_take_raw_rows_for_inputs(tmp_path):
    MLPClassifier(preprocess="standard", **QUICK).fit(NUMBERS, Y).model_.save(tmp_path / "a")
    MLPClassifier(**QUICK).fit(NUMBERS, Y).model_.save(tmp_path / "b")
    assert safetensors.read(tmp_path / "a")[0]["format"] == 2
    assert safetensors.read(tmp_path / "b")[0]["format"] == 1


def spoil(described, name, value):
    return {**described, name: value}


SPOILT = [
    ("kind", "minmax", "preprocessing must be 'standard', 'robust' or 'quantile'; got 'minmax'"),
    ("columns", 4, "categories must be growing numbers of columns below 4"),
    ("columns", -1, "columns must be at least 1, got -1"),
    ("numbers", [0, 2], "center must be float64|fill must be 2 finite"),
    ("numbers", [0, 2, 9], "numbers must be growing numbers of columns below 5"),
    ("numbers", [3, 2, 0], "numbers must be growing"),
    ("numbers", [0, 1, 2], "a column holds numbers or categories, not both"),
    ("numbers", "abc", "numbers must be an integer, got 'a'"),
    ("flagged", [3], "flagged must be growing numbers of columns below 3"),
    ("flagged", [], "must make the 10 inputs of the network, got one of 9"),
    ("categories", [], "must make the 10 inputs of the network, got one of 4"),
    ("categories", [{"column": 1, "holds": "dates", "known": ["a"], "missing": False}], "holds must be"),
    ("categories", [{"column": 1, "holds": "text", "known": ["a", "a"], "missing": False}], "known must be texts that"),
    ("categories", [{"column": 1, "holds": "text", "known": [1], "missing": False}], "known must be texts that"),
    ("categories", [{"column": 1, "holds": "text", "known": [], "missing": False}], "known must be one category"),
    ("categories", [{"column": 1, "holds": "text", "known": ["a"], "missing": 3}], "missing must be True or False"),
]


@pytest.mark.parametrize(("name", "value", "message"), SPOILT)
def test_a_file_of_which_the_description_was_changed_is_refused(name, value, message, tmp_path):
    MLPClassifier(preprocess="standard", **QUICK).fit(MIXED, Y).model_.save(tmp_path / "m")
    header, tensors = safetensors.read(tmp_path / "m")
    header["preprocessing"] = spoil(header["preprocessing"], name, value)
    safetensors.write(tmp_path / "m", header, tensors)
    with pytest.raises(FileFormatError, match=message):
        fastmlp.load(tmp_path / "m", "numpy")


@pytest.mark.parametrize(
    ("kind", "array", "change"),
    [
        ("standard", "fill", lambda a: np.full_like(a, np.nan)),
        ("standard", "center", lambda a: np.full_like(a, np.inf)),
        ("standard", "scale", np.zeros_like),
        ("standard", "scale", lambda a: a.astype(np.float32)),
        ("standard", "scale", lambda a: a[:2]),
        ("quantile", "quantiles", lambda a: a[::-1]),
        ("quantile", "quantiles", lambda a: a[:0]),
        ("quantile", "quantiles", lambda a: a[0, 0]),
        ("quantile", "quantiles", None),
    ],
)
def test_a_file_of_which_the_arrays_were_changed_is_refused(kind, array, change, tmp_path):
    MLPClassifier(preprocess=kind, **QUICK).fit(MIXED, Y).model_.save(tmp_path / "m")
    header, tensors = safetensors.read(tmp_path / "m")
    spoilt = tensors.pop(f"preprocessing.{array}")
    safetensors.write(
        tmp_path / "m", header, tensors if change is None else {**tensors, f"preprocessing.{array}": change(spoilt)}
    )
    with pytest.raises(FileFormatError, match="its description makes no sense"):
        fastmlp.load(tmp_path / "m", "numpy")


# --- conversion ---


@pytest.mark.parametrize("kind", ["standard", "robust"])
def test_what_only_scales_goes_into_the_weights_of_other_libraries(kind):
    estimator = MLPClassifier(preprocess=kind, dtype="float64", **QUICK).fit(NUMBERS, Y)
    theirs = to_sklearn(estimator.model_)
    np.testing.assert_allclose(theirs.predict_proba(NUMBERS), estimator.predict_proba(NUMBERS), atol=1e-9)


@pytest.mark.parametrize(
    ("start", "span", "dtype", "digits"),
    [
        (1.7e9, 100, "float32", "none"),
        (1e12, 10, "float32", "none"),
        (1e7, 100, "float32", "few"),
        (1e6, 1000, "float32", None),
        (1.7e9, 100, "float64", None),
        (1e16, 1000, "float64", "few"),
    ],
)
def test_other_libraries_get_no_weights_in_which_what_a_column_varies_by_is_lost(start, span, dtype, digits):
    x = np.column_stack([NUMBERS[:, 0], start + span * np.linspace(0, 1, ROWS)])
    estimator = MLPClassifier(preprocess="standard", dtype=dtype, **QUICK).fit(x, Y)
    told = rf"to_sklearn: column 1 varies by a [\d,]+th of its size, .* {digits} of the digits of {dtype}: .*constant"
    told += ".*or fit with dtype='float64'$" if dtype == "float32" else " from the column$"
    if digits == "none":
        with pytest.raises(ValueError, match=told):
            to_sklearn(estimator)
        return
    with pytest.warns(UserWarning, match=told) if digits else contextlib.nullcontext():
        theirs = to_sklearn(estimator)
    np.testing.assert_allclose(theirs.predict_proba(x), estimator.predict_proba(x), atol=1e-2 if digits else 1e-4)
    named = estimator.model_
    named.feature_names = ("weight", "time {s}")
    with pytest.warns(UserWarning, match="column 'time {s}' varies") if digits else contextlib.nullcontext():
        to_sklearn(named)


def test_what_does_more_is_refused_there():
    for x, kind in ((MIXED, "standard"), (NUMBERS, "quantile")):
        model = MLPClassifier(preprocess=kind, **QUICK).fit(x, Y).model_
        with pytest.raises(
            ValueError, match=f"to_sklearn: scikit-learn has no counterpart of what preprocess='{kind}'"
        ):
            to_sklearn(model)
