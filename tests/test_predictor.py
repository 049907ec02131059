"""Predictions for one example at a time."""

import copy
import pickle

import numpy as np
import pytest
from compare import assert_close

import fastmlp


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "sigmoid_cross_entropy", "mean_squared_error", "poisson"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_predictor_predicts_as_the_model_does(backend, loss, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 9))
    model = fastmlp.MLP((9, 7, 3), loss=loss, backend=backend, dtype=dtype, seed=1)
    predictor = model.predictor()
    for given in (x.astype(dtype), x.astype("float16"), (x * 20).astype(np.int16), np.asfortranarray(x)):
        expected = model.predict(given)
        for row, wanted in zip(given, expected, strict=True):
            # rounding acts on the terms of the outputs; of rates, their exponentials, in proportion
            scale = np.maximum(np.abs(wanted), 1) * max(1, np.abs(row).max())
            assert_close(predictor(row), wanted, dtype=dtype, k=9, c=16, scale=scale)
    np.testing.assert_array_equal(predictor(x[0]), predictor(list(x[0])))
    pixels = (rng.random((5, 9)) * 255).astype(np.uint8)
    for row, wanted in zip(pixels, model.predict(pixels), strict=True):
        assert_close(predictor(row), wanted, dtype=dtype, k=9, c=16, scale=np.maximum(np.abs(wanted), 1))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_a_copy_of_a_predictor_has_memory_of_its_own(backend, copied):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 9)).astype("float32")
    model = fastmlp.MLP((9, 7, 3), backend=backend, seed=1)
    predictor = model.predictor()
    first = predictor.outputs(x[0])
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])  # copies are of the predictor
    other = copied(predictor)
    for row in x:
        np.testing.assert_array_equal(other.outputs(row), predictor.outputs(row))
    assert np.ptp(first) > 0 and (predictor.outputs(x[0]) == first).all()
    assert not np.shares_memory(other._out, predictor._out) and not np.shares_memory(other._x, predictor._x)


def test_a_predictor_keeps_the_weights_it_was_made_with(backend):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
    model = fastmlp.MLP((6, 8, 3), backend=backend, seed=0)
    predictor = model.predictor()
    before = predictor.outputs(x[0])
    kept = before.copy()
    model.fit(x, y, epochs=2, verbose=0)
    np.testing.assert_array_equal(predictor.outputs(x[0]), kept)
    predictor.outputs(x[1])
    np.testing.assert_array_equal(before, kept, err_msg="what was returned is the caller's")
    assert not np.array_equal(model.predictor().outputs(x[0]), kept)


def test_a_predictor_uses_the_moving_average_as_the_model_does(backend):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
    model = fastmlp.MLP((6, 8, 3), backend=backend, seed=0)
    model.fit(x, y, epochs=2, optimizer=fastmlp.Adam(1e-2, ema=0.9), verbose=0)
    predictor = model.predictor()
    np.testing.assert_array_equal([predictor(row) for row in x], model.predict(x))


@pytest.mark.parametrize("x", [np.zeros(5), np.zeros((1, 6)), np.zeros((6, 1)), 3.0, ["a"] * 6])
def test_a_predictor_says_what_it_needs(backend, x):
    predictor = fastmlp.MLP((6, 8, 3), backend=backend, seed=0).predictor()
    with pytest.raises(fastmlp.DataError, match=r"x must"):
        predictor(x)
