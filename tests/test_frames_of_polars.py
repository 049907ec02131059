"""Data frames of polars mean the same as the arrays that they hold, or are refused by column."""

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp.errors import DataError

pl = pytest.importorskip("polars", reason="polars is not installed; it is no dependency of fastmlp")

X = np.random.default_rng(0).normal(size=(60, 3))
Y = (X[:, 0] > 0).astype(int)
X[:, 1] = np.round(4 * X[:, 1])
FRAME = pl.DataFrame(X, schema=["a", "b", "c"])


def fitted(x, y):
    model = fastmlp.MLP((3, 4, 2), backend="numpy", seed=0)
    model.fit(x, y, epochs=2, verbose=0)
    return model


@pytest.mark.parametrize("kind", ["plain", "whole numbers"])
def test_a_frame_of_numbers_is_the_array_of_them(kind):
    frame = FRAME if kind == "plain" else FRAME.with_columns(pl.col("b").cast(pl.Int64))
    model, expected = fitted(frame, pl.Series(Y)), fitted(X, Y)
    assert_same_bits(model.get_weights()[0], expected.get_weights()[0])
    assert model.feature_names == ("a", "b", "c")
    assert_same_bits(model.predict_proba(frame[["c", "a", "b"]]), expected.predict_proba(X))


def test_what_holds_no_numbers_is_named():
    model = fitted(FRAME, Y)
    with pytest.raises(DataError, match=r"got no 'c'"):
        model.predict(FRAME[["a", "b"]])
    with pytest.raises(DataError, match=r"x must hold real numbers, and column 'b' holds <U1; encode it"):
        model.predict(FRAME.with_columns(pl.lit("t").alias("b")))
    row = pl.int_range(60) == 7
    with pytest.raises(DataError, match=r"x must be finite, got nan in row 7, column 2"):
        model.predict(FRAME.with_columns(pl.when(row).then(None).otherwise(pl.col("c")).alias("c")))


def test_an_estimator_knows_the_columns_of_a_frame():
    estimator = fastmlp.MLPClassifier(backend="numpy", epochs=2, random_state=0).fit(FRAME, Y)
    assert list(estimator.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(FRAME[["c", "a", "b"]])
