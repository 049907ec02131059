"""What float32 leaves of numbers that are near 1, and of sums of very many rows: no more is lost than one rounding."""

import numpy as np
import pytest

import fastmlp

NEAR_ONE = {
    "Adam, beta2": fastmlp.Adam(1e-3, beta2=1 - 1e-7),
    "Adam, beta1": fastmlp.Adam(1e-3, beta1=1 - 1e-6),
    "AdamW": fastmlp.AdamW(1e-3, beta2=1 - 1e-7),
    "RMSprop": fastmlp.RMSprop(1e-5, rho=1 - 1e-7),
}


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


@pytest.mark.parametrize("momentum", [0.0, 0.5])
@pytest.mark.parametrize("share", [0.25, 2.5])
def test_a_small_penalty_shrinks_weights_by_what_it_is(backend, momentum, share):
    """By less than half a rounding of 1 in each step, and by a few; the gradients of the data move both ways."""
    rng = np.random.default_rng(0)
    x, rate = rng.normal(size=(2000, 1)) * 0.003, 1e-3
    y = x + rng.normal(size=(2000, 1)) * 0.01
    found = {}
    for on, dtype, l2 in (
        *(("numpy", "float64", l2) for l2 in (0.0, share * 2.0**-24 / rate)),
        *((backend, "float32", l2) for l2 in (0.0, share * 2.0**-24 / rate)),
    ):
        model = fastmlp.MLP((1, 1), loss="mse", backend=on, dtype=dtype, seed=0, l2=l2)
        model.set_weights([np.ones((1, 1)), np.zeros(1)])
        model.fit(x, y, epochs=40, batch_size=4, optimizer=fastmlp.SGD(rate, momentum=momentum), verbose=0)
        found[dtype, l2 > 0] = float(model.get_weights()[0][0, 0])
    wanted, got = (found[dtype, True] - found[dtype, False] for dtype in ("float64", "float32"))
    assert wanted < 0 and got == pytest.approx(wanted, rel=0.15)
