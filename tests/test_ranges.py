"""Numbers that the type of a network cannot hold: refused by argument, row and column, before anything changes."""

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits

import fastmlp
from fastmlp.engine.ranges import check_held

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")


def regressor(backend, **options):
    return fastmlp.MLP((6, 8, 1), loss="mean_squared_error", backend=backend, seed=1, **options)


@pytest.mark.parametrize("value", [3.5e38, -1e39, 1e200])
def test_an_input_that_is_too_large_is_refused_wherever_it_enters(backend, value):
    x, y = blobs()
    good, x = x, x.astype(np.float64)
    x[37, 2] = value
    model = small(backend)
    before = model.get_weights()
    place = rf"row 37 of column 2 holds .*{abs(value):.6g}, and float32 .*use dtype='float64'".replace("+", r"\+")
    asked = {
        "x: ": [
            lambda: model.fit(x, y, epochs=1, verbose=0),
            lambda: model.evaluate(x, y),
            lambda: model.predict(x),
            lambda: model.predict_proba(x),
            lambda: model.loss_and_gradients(x, y),
        ],
        "x of validation_data: ": [lambda: model.fit(good, y, epochs=1, validation_data=(x, y), verbose=0)],
    }
    for argument, calls in asked.items():
        for call in calls:
            with pytest.raises(fastmlp.DataError, match=f"^{argument}{place}"):
                call()
    with pytest.raises(fastmlp.DataError, match="row 0 of column 2 holds"):
        model.predictor()(x[37])
    assert model.steps == 0
    assert_same_bits(model.get_weights()[0], before[0])
    assert small(backend, dtype="float64").predict(x[:37]).shape == (37,)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_column_that_would_be_lost_is_refused_for_training_alone(backend, sign):
    x, y = blobs()
    x = x.astype(np.float64)
    x[:, 3] = sign * np.abs(x[:, 3]) * 1e-46
    model = small(backend)
    with pytest.raises(fastmlp.DataError, match=r"x: column 3 holds nothing above .*e-4\d \(in row \d+\), and float32"):
        model.fit(x, y, epochs=1, verbose=0)
    model.predict(x)
    x[0, 3] = 1.0  # a number beside which the others are nothing, as rounding has it
    model.fit(x, y, epochs=1, verbose=0)
    x[:, 3] = 0.0
    model.fit(x, y, epochs=1, verbose=0)


@pytest.mark.parametrize(
    ("size", "message"), [(1e39, "y: row .* holds .*e\\+39"), (1e-46, "y: column 0 holds nothing")]
)
def test_targets_that_cannot_be_held_are_refused(backend, size, message):
    x, _ = blobs()
    y = x[:, 0].astype(np.float64) * size
    model = regressor(backend)
    with pytest.raises(fastmlp.DataError, match=message):
        model.fit(x, y, epochs=1, verbose=0)
    assert model.steps == 0


def test_a_loss_that_overflows_is_told_to_scale_the_targets():
    x, _ = blobs()
    with pytest.raises(fastmlp.NonFiniteLossError, match="scale the inputs and targets"):
        regressor("numpy").fit(x, x[:, 0] * 1e30, epochs=1, verbose=0)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_place_is_the_one_of_the_largest_number_however_many_rows_there_are(order):
    x = np.zeros((70_000, 3), order=order)
    x[69_999, 1] = -1e40
    with pytest.raises(fastmlp.DataError, match="x: row 69999 of column 'b' holds -1e\\+40"):
        check_held(x, FLOAT32, "x", names=("a", "b", "c"))
    check_held(x, FLOAT64, "x")
    check_held(np.zeros((0, 3)), FLOAT32, "x", training=True)
    check_held(np.array([[np.nan, np.inf]]), FLOAT32, "x", training=True)  # what is not finite is said elsewhere


def test_wider_than_float64_is_looked_at_too():
    wide = np.full((2, 1), np.longdouble(1e300) ** 2 if np.finfo(np.longdouble).max > 1e308 else 0)
    if wide[0, 0] == 0:
        pytest.skip("long double is no wider here")
    with pytest.raises(
        fastmlp.DataError,
        match=r"holds 1.0.*e\+600, and float64 numbers up to 1.8e\+308 only; take another unit for it$",
    ):
        check_held(wide, FLOAT64, "x")


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_random_features_of_inputs_whose_variance_cannot_be_held_are_refused(size):
    pytest.importorskip("sklearn")
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match="gamma: 'scale' needs the variance of X, which float64 does not hold"):
        fastmlp.features.RandomFourierFeatures(10).fit(x * size)
    assert fastmlp.features.RandomFourierFeatures(10).fit(x * 1e100).gamma_ == pytest.approx(
        1 / (3 * x.var() * 1e200), rel=1e-12
    )
