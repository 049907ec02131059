"""What is NaN or infinite: refused where it enters, never taken for an answer, never the best of anything."""

import functools
import math

import numpy as np
import pytest
from blobs import blobs, small
from compare import assert_same_bits, loss_records, targets_for

import fastmlp
from fastmlp.engine import checks
from fastmlp.engine.batches import split_rows
from fastmlp.errors import DataError

BAD = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


def with_one(value, rows=30):
    """Return blobs with one input that is not finite."""
    x, y = blobs()
    x, y = x[:rows].copy(), y[:rows]
    x[17, 4] = value
    return x, y


CALLS = {
    "fit": lambda m, x, y: m.fit(x, y, epochs=1, verbose=0),
    "validation": lambda m, x, y: m.fit(*blobs(), epochs=1, validation_data=(x, y), verbose=0),
    "evaluate": lambda m, x, y: m.evaluate(x, y),
    "predict": lambda m, x, y: m.predict(x),
    "predict_proba": lambda m, x, y: m.predict_proba(x),
    "loss_and_gradients": lambda m, x, y: m.loss_and_gradients(x, y),
}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_inputs_that_are_not_finite_are_refused_by_row_and_column(backend, dtype, call, value):
    x, y = with_one(BAD[value])
    model = small(backend)
    name = "x of validation_data" if call == "validation" else "x"
    with pytest.raises(fastmlp.DataError, match=rf"^{name} must be finite, got {value} in row 17, column 4; remove"):
        CALLS[call](model, x.astype(dtype), y)
    assert model.steps == 0


@pytest.mark.parametrize("value", BAD)
def test_a_predictor_refuses_them_too(backend, value):
    x, _ = with_one(BAD[value])
    predictor = small(backend).predictor()
    for row in (x[17].astype("float32"), x[17], list(x[17])):
        with pytest.raises(fastmlp.DataError, match=f"x must be finite, got {value} in row 0, column 4"):
            predictor(row)
    assert predictor(x[0]) in (0, 1, 2)


@pytest.mark.parametrize("largest", ["float16", "float32"])
def test_sums_that_overflow_are_no_reason_to_refuse_finite_inputs(backend, largest):
    x, _ = blobs()
    x = np.full_like(x, 1.0, dtype=largest)
    x[:, 0] = np.finfo(largest).max
    network = small(backend, dtype="float64")
    assert np.isfinite(network.predict_proba(x)).all()
    assert network.predictor()(x[0]) == network.predict(x[:1])[0]


def test_outputs_that_are_not_finite_are_no_class(backend):
    x, y = blobs()
    x[5] = np.finfo("float32").max
    x = x.astype("float32")
    model = small(backend)
    for ask in (model.predict, model.predict_proba, lambda x: model.predictor()(x[5])):
        with pytest.raises(fastmlp.DataError, match=r"output \d of the network is .* for row \d.*dtype='float64'"):
            ask(x)
    figures = model.evaluate(x, y, metrics=["balanced_accuracy_score"])
    assert not any(np.isfinite(value) for value in figures.values()), figures


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_many_inputs_are_looked_at_once_a_result_is_not_finite(backend, activation, value, monkeypatch):
    """To look at all of them first takes as long as to predict; and activations make something finite of infinity."""
    monkeypatch.setattr(checks, "SOON", 1 << 14)  # what is many
    x, y = np.ones((64, 600), np.float32), np.zeros(64, int)
    assert x[:8].size < checks.SOON < x.size
    of_many = {"activation": activation, "backend": backend, "dtype": "float32", "seed": 0}
    model = fastmlp.MLP((600, 4, 2), **of_many)
    x[53, 3] = value
    told = rf"x must be finite, got {value} in row 53, column 3"
    for call in (model.predict, model.predict_proba, lambda rows: model.evaluate(rows, y)):
        with pytest.raises(DataError, match=told):
            call(x)
    before = model.get_weights()
    # infinity passes through a tangent as a one, and makes NaN of the weights: then no row is known
    passes = activation == "tanh" and math.isinf(value)
    told_by_fit = "inputs of the training data are NaN or inf" if passes else "row 53 of the training data: the input"
    with pytest.raises(fastmlp.NonFiniteLossError, match=f"{told_by_fit}.*Remove or fill in"):
        model.fit(x, y, epochs=1, batch_size=64, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        assert_same_bits(a, b)
    with pytest.raises(DataError, match=told.replace("x must", "x of validation_data must")):
        model.fit(x[:8], y[:8], epochs=1, validation_data=(x, y), verbose=0)
    for hidden in (1, 4):
        values = fastmlp.MLP((600, hidden, 1), loss="mean_squared_error", **of_many)
        for call in (values.predict, functools.partial(values.evaluate, y=np.ones((64, 1)))):
            with pytest.raises(DataError, match=told):
                call(x)


@pytest.mark.parametrize("loss", loss_records(), ids=str)
def test_no_loss_is_finite_where_inputs_are_not(backend, loss, monkeypatch):
    """An activation may have made a number like any other of them."""
    monkeypatch.setattr(checks, "SOON", 1 << 10)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 3)), targets_for(loss, 600, 3, rng)
    model = fastmlp.MLP((3, 1, 3), activation="tanh", loss=loss, backend=backend, seed=0)
    assert np.isfinite(model.evaluate(x, y)["loss"])
    x[401, 2] = np.inf
    with pytest.raises(DataError, match="x must be finite, got inf in row 401, column 2"):
        model.evaluate(x, y)


def test_many_rows_held_out_are_looked_at_before_the_first_step(backend):
    x, y = np.ones((2048, 600), np.float32), np.arange(2048) % 2
    model = fastmlp.MLP((600, 4, 2), backend=backend, dtype="float32", seed=0)
    row = split_rows(2048, 0.1, model.seed, y).held_out[7]
    x[row, 3:5] = np.inf, -np.inf
    with pytest.raises(DataError, match=f"x must be finite, got inf in row {row}, column 3"):
        model.fit(x, y, epochs=1, validation_split=0.1, verbose=0)
    assert model.steps == 0


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_many_inputs_of_layers_that_rest_are_looked_at_first(backend, value, monkeypatch):
    """Nothing that a step computes tells of an infinity that a tangent bounds, where its layer does not train."""
    monkeypatch.setattr(checks, "SOON", 1 << 10)
    x, y = np.ones((64, 60), np.float32), np.zeros(64, int)
    x[53, 3] = value
    model = fastmlp.MLP((60, 4, 2), activation="tanh", backend=backend, seed=0)
    model.freeze(0)
    for call in (lambda: model.fit(x, y, epochs=1, verbose=0), lambda: model.loss_and_gradients(x, y)):
        with pytest.raises(DataError, match=f"x must be finite, got {value} in row 53, column 3"):
            call()
    assert model.steps == 0
