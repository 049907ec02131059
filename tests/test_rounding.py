"""What float32 leaves of numbers that are near 1, and of sums of very many rows: no more is lost than one rounding."""

import functools

import numpy as np
import pytest

import fastmlp

NEAR_ONE = {
    "Adam, beta2": fastmlp.Adam(1e-3, beta2=1 - 1e-7),
    "Adam, beta1": fastmlp.Adam(1e-3, beta1=1 - 1e-6),
    "AdamW": fastmlp.AdamW(1e-3, beta2=1 - 1e-7),
    "RMSprop": fastmlp.RMSprop(1e-5, rho=1 - 1e-7),
}
RATE = 1e-3


def weights_after(backend, dtype, **options):
    """Return all parameters of a small network after some steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4))
    y = x @ rng.normal(size=(4, 1)) + 0.1 * rng.normal(size=(64, 1))
    model = fastmlp.MLP((4, 1), loss="mse", backend=backend, dtype=dtype, seed=0)
    model.fit(x, y, epochs=20, batch_size=16, verbose=0, shuffle=False, **options)
    return np.concatenate([a.ravel() for a in model.get_weights()])


@pytest.mark.parametrize("name", NEAR_ONE)
def test_a_decay_near_1_leaves_the_share_that_it_has(backend, name):
    wanted = weights_after("numpy", "float64", optimizer=NEAR_ONE[name])
    np.testing.assert_allclose(weights_after(backend, "float32", optimizer=NEAR_ONE[name]), wanted, atol=1e-5, rtol=0)


@functools.cache
def weight_after(on, dtype, momentum, l2):
    """Return the weight, first 1, of a line through points that lie around another one, after many small steps."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 1)) * 0.003
    y = x + rng.normal(size=(2000, 1)) * 0.01
    model = fastmlp.MLP((1, 1), loss="mse", backend=on, dtype=dtype, seed=0, l2=l2)
    model.set_weights([np.ones((1, 1)), np.zeros(1)])
    model.fit(x, y, epochs=40, batch_size=4, optimizer=fastmlp.SGD(RATE, momentum=momentum), verbose=0)
    return float(model.get_weights()[0][0, 0])


@pytest.mark.parametrize("where", ["numpy", "numba"])  # on the double of CuPy it takes minutes
@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("share", [0.25, 2.5])
def test_a_small_penalty_shrinks_weights_by_what_it_is(where, momentum, share):
    """By less than half a rounding of 1 in each step, and by a few; the gradients of the data move both ways."""
    l2 = share * 2.0**-24 / RATE
    wanted, got = (
        weight_after(on, dtype, momentum, l2) - weight_after(on, dtype, momentum, 0.0)
        for on, dtype in (("numpy", "float64"), (where, "float32"))
    )
    assert wanted < 0 and got == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize("where", ["numpy", "numba"])  # on the double of CuPy it takes minutes
@pytest.mark.parametrize("outputs", [1, 3])
def test_gradients_of_biases_are_right_for_very_many_rows(where, outputs):
    """One sum of so many terms of one size, as an absolute error has, is half a percent too small in float32."""
    rows = 600_000
    x = np.zeros((rows, 1), np.float32)
    model = fastmlp.MLP((1, outputs), loss="mae", backend=where, dtype="float32", seed=0)
    _, (_, bias) = model.loss_and_gradients(x, np.full((rows, outputs), 5, np.float32))
    np.testing.assert_allclose(bias, -1 / outputs, rtol=2e-4)


@pytest.mark.parametrize("rows", [1, 1023, 1024, 1025, 2048, 2500])
def test_biases_are_summed_over_every_row_of_every_block(backend, rows):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 2))
    given, wanted = (
        fastmlp.MLP((3, 2), loss="mse", backend=on, dtype="float64", seed=0).loss_and_gradients(x, y)[1][1]
        for on in (backend, "numpy")
    )
    model = fastmlp.MLP((3, 2), loss="mse", backend="numpy", dtype="float64", seed=0)
    by_hand = (model.predict(x) - y).sum(axis=0) * (2 / y.size)
    options = {"activation": "tanh", "loss": "mse", "dtype": "float64", "seed": 0}
    deep = [fastmlp.MLP((3, 4, 2), backend=on, **options) for on in (backend, "numpy")]
    w1, b1, w2, b2 = deep[1].get_weights()
    hidden = np.tanh(x @ w1 + b1)
    below = (2 / y.size * (hidden @ w2 + b2 - y)) @ w2.T * (1 - hidden**2)
    for network in deep:
        np.testing.assert_allclose(network.loss_and_gradients(x, y)[1][1], below.sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(given, by_hand, rtol=1e-10)
    np.testing.assert_allclose(wanted, by_hand, rtol=1e-10)
    took = fastmlp.MLP((3, 2), loss="mse", backend=backend, dtype="float64", seed=0)
    took.fit(x, y, epochs=1, batch_size=rows, optimizer=fastmlp.SGD(0.1), verbose=0)
    np.testing.assert_allclose(took.get_weights()[1], -0.1 * by_hand, rtol=1e-8)
