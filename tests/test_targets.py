"""Targets that do not suit a loss: the message names the cure that helps."""

import numpy as np
import pytest

import fastmlp

nan, inf = np.nan, np.inf
X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
MULTI_HOT = np.array([[0, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])


class NAType:
    """What pandas marks a missing value with, by its name."""

    def __eq__(self, other):
        raise TypeError("boolean value of NA is ambiguous")

    def __hash__(self):
        return 0

    def __repr__(self):
        return "<NA>"


def fit(loss, units, y, **options):
    model = fastmlp.MLP((4, 5, units), loss=loss, backend="numpy", seed=0)
    model.fit(X, y, epochs=1, verbose=0, **options)
    return model


MISSING = {
    "nan in row 2": [0.0, 1.0, nan, 1.0, 0.0, 1.0],
    "inf in row 2": [0.0, 1.0, inf, 1.0, 0.0, 1.0],
    "None in row 1": [True, None, True, True, False, True],
    "None in row 5": ["a", "b", "b", "a", "a", None],
    "nan in row 0": np.array([nan, "b", "b", "a", "a", "b"], object),
    "<NA> in row 3": np.array([0, 1, 0, NAType(), 0, 1], object),
    "NaT in row 1": np.array(["2020-01-01", "NaT"] * 3, "M8[D]"),
}


@pytest.mark.parametrize("message", MISSING)
@pytest.mark.parametrize(
    ("loss", "units"),
    [("softmax_cross_entropy", 2), ("categorical_hinge", 2), ("sigmoid_cross_entropy", 1), ("mean_squared_error", 1)],
)
def test_a_missing_target_is_named_as_that(loss, units, message):
    with pytest.raises(fastmlp.DataError, match=f"^y: targets must be finite, got {message}.*leave out the rows"):
        fit(loss, units, MISSING[message])


LABELS = {
    r"they are True and False: pass y.astype\(int\)": np.array([True, False] * 3),
    r"they are whole numbers: pass y.astype\(int\)": np.array([0.0, 1.0] * 3),
    r"dtype object; they are whole numbers: pass y.astype\(int\)": np.array([0, 1, np.int64(1)] * 2, object),
    r"class probabilities are passed as \(n, K\)": np.array([0.2, 0.8] * 3),
    "dtype <U1; number them first": np.array(["a", "b"] * 3),
    r"dtype datetime64\[D\]; number them first": np.array(["2020-01-01", "2020-01-02"] * 3, "M8[D]"),
}


@pytest.mark.parametrize("message", LABELS)
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "categorical_hinge"])
def test_labels_of_another_type_are_refused_with_the_cure_that_helps(loss, message):
    y = LABELS[message]
    with pytest.raises(fastmlp.DataError, match=message):
        fit(loss, 2, y)
    if "astype" in message:
        fit(loss, 2, y.astype(int))
    elif "number" in message:
        fit(loss, 2, np.unique(y, return_inverse=True)[1])


@pytest.mark.parametrize("dtype", [bool, "u1", int, float])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("softmax_cross_entropy", "got row 1 with minimum 0 and sum 2; for several labels a row use loss='sigmoid_cro"),
        ("categorical_hinge", "row 1 is neither; for several labels a row use loss='sigmoid_cross_entropy'"),
    ],
)
def test_several_labels_a_row_are_sent_to_the_loss_for_them(dtype, loss, message):
    with pytest.raises(fastmlp.DataError, match=message):
        fit(loss, 3, MULTI_HOT.astype(dtype))
    fit("sigmoid_cross_entropy", 3, MULTI_HOT.astype(dtype))


@pytest.mark.parametrize("loss", fastmlp.loss_names())
def test_true_and_false_are_one_and_zero_in_rows_of_targets(loss):
    y = np.eye(3, dtype=bool)[[0, 1, 2, 2, 1, 0]]
    a, b = fit(loss, 3, y).get_weights(), fit(loss, 3, y.astype(int)).get_weights()
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


VALUES = {
    r"dtype object; pass y.astype\(float\)": np.array([1, 2.5, 3] * 2, object),
    r"dtype <U3; pass y.astype\(float\)": np.array(["1.5", "2"] * 3),
    "dtype <U1; if they are classes, number them": np.array(["a", "b"] * 3),
    "dtype complex128; if they are classes": np.array([1j] * 6),
}


@pytest.mark.parametrize("message", VALUES)
def test_values_of_another_type_are_refused_with_a_cure(message):
    with pytest.raises(fastmlp.DataError, match=f"mean_squared_error needs real numbers, got {message}"):
        fit("mean_squared_error", 1, VALUES[message])
    if "astype" in message:
        fit("mean_squared_error", 1, VALUES[message].astype(float))


@pytest.mark.parametrize("dtype", [bool, int])
def test_labels_for_several_outputs_are_sent_to_the_losses_of_classes(dtype):
    for loss in ("sigmoid_cross_entropy", "mean_squared_error"):
        with pytest.raises(fastmlp.DataError, match=r"got \(6,\); labels .* are for loss='softmax_cross_entropy'"):
            fit(loss, 3, np.array([0, 1] * 3, dtype))


@pytest.mark.parametrize(
    ("loss", "units", "y", "wrong"),
    [
        ("softmax_cross_entropy", 2, [0, 1, 0, 1, 0, 1], [0, 1, 5, 1, 0, 1]),
        ("mean_squared_error", 1, np.arange(6.0), [0, 1, nan, 1, 0, 1]),
        ("poisson", 1, np.arange(6.0), [0, 1, -2, 1, 0, 1]),
    ],
)
def test_targets_of_validation_data_are_called_that(loss, units, y, wrong):
    with pytest.raises(fastmlp.DataError, match=r"^y of validation_data: .* in row 2"):
        fit(loss, units, np.array(y), validation_data=(X, np.array(wrong)))
