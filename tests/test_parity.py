"""``fastmlp.parity``: a healthy build differs by rounding alone; a bug is named by its layer and its step."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from compare import targets_for

pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
import fastmlp
from fastmlp.backends import registry
from fastmlp.backends.cpu import session as cpu_session
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.doctor.random_networks import random_network
from fastmlp.formulas.losses import LOSSES

UNITS = (20, 30, 25, 18, 5)
OFF = 1e-3
"""By which planted bugs are off, as a part of what is right."""


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, UNITS[0])), rng.integers(0, UNITS[-1], 300)


def network(**options):
    return fastmlp.MLP(UNITS, **{"backend": "numpy", "dropout": 0.2, "l2": 1e-3, "seed": 0, **options})


# --- a healthy build --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_random_networks_differ_by_rounding_alone(seed):
    drawn = random_network(seed)
    found = fastmlp.parity(*drawn[:4], backends=["numpy", "numba"], steps=3, optimizer=drawn.optimizer)
    assert found.agree, f"{drawn.optimizer}:\n{found}"
    assert all(found.largest(name) < 0.5 for name in found.backends)  # what rounding allows is no close call


def test_cupy_differs_by_rounding_alone(cupy_or_its_double):
    rng = np.random.default_rng(0)
    model = fastmlp.MLP((4, 6, 3), activation="tanh", backend="numpy", seed=0)
    found = fastmlp.parity(model, rng.normal(size=(8, 4)), rng.integers(0, 3, 8), backends=["numpy", "cupy"], steps=1)
    assert found.backends == ("numpy", "cupy")
    assert found.agree, found


@pytest.mark.parametrize("loss", LOSSES.names())
def test_networks_trained_until_nothing_is_left_to_learn(loss):
    rng = np.random.default_rng(1)
    model = fastmlp.MLP((3, 16, 2), loss=loss, backend="numpy", seed=0)
    x, y = rng.normal(size=(60, 3)), targets_for(model.spec.loss, 60, 2, rng)
    model.fit(x, y, epochs=60, verbose=0, optimizer=fastmlp.Adam(1e-2, ema=0.9))
    found = fastmlp.parity(model, x, y, backends=["numpy", "numba"])
    assert found.agree, found


@pytest.mark.parametrize("factor", [1e-3, 100.0])
def test_weights_far_from_one(rows, factor):
    model = network()
    model.set_weights([w * factor for w in model.get_weights()])
    found = fastmlp.parity(model, *rows, backends=["numpy", "numba"], steps=2)
    assert found.agree, found


def test_pixels_rows_that_weigh_nothing_frozen_layers_and_double_precision():
    rng = np.random.default_rng(2)
    model = network(dtype="float64")
    model.freeze(0, 2)
    x, y = rng.integers(0, 256, (90, UNITS[0])).astype(np.uint8), rng.integers(0, UNITS[-1], 90)
    weights = np.where(np.arange(90) < 8, 0.0, rng.uniform(size=90))  # the whole first batch
    found = fastmlp.parity(model, x, y, weights, backends=["numpy", "numba"])
    assert found.agree, found
    assert not any(row.off["numba"] for row in found.rows if row.step == 1)
    assert [row.layer for row in found.rows if row.what == "activations"] == [0, 1, 2, 3]


def test_the_model_is_as_it_was(rows):
    model = network()
    model.fit(*rows, epochs=1, verbose=0)
    before, steps, moments = model.get_weights(), model.steps, [m.copy() for m in model._learner.state.moments]
    fastmlp.parity(model, *rows, backends=["numpy", "numba"])
    for a, b in zip([*before, *moments], [*model.get_weights(), *model._learner.state.moments], strict=True):
        assert a.tobytes() == b.tobytes()
    assert model.steps == steps


# --- a bug ------------------------------------------------------------------------------------------------------------


def hold(bad, rows, what, layer, step, **options):
    """Assert that a backend's bug is named by what it is, its layer and its step, and that NumPy has none."""
    found = fastmlp.parity(network(**options), *rows, backends=["numpy", bad])
    first = found.first(found.backends[1])
    assert first is not None, found
    assert (first.what, first.layer, first.step) == (what, layer, step), found
    assert found.first("numpy") is None
    assert not found.agree
    verdict = found.verdict(found.backends[1])
    assert verdict.startswith(f"a bug: {first} ")
    assert "Please report all of this with the output of fastmlp doctor --markdown" in verdict
    assert verdict in str(found)


class Forward(NumpyBackend):
    name = "mine"

    def dense_forward(self, x, w, b, out):
        super().dense_forward(x, w, b, out)
        if w.shape[1] == 25:
            out *= 1 + OFF


class Slope(NumpyBackend):
    name = "mine"

    def activation_backward(self, activation, a, slope, d, scratch):
        super().activation_backward(activation, a, slope, d, scratch)
        if d.shape[1] == 25:
            d *= 1 + OFF


class BiasGradient(NumpyBackend):
    name = "mine"

    def dense_backward(self, x, dz, w, dw, db, dx):
        super().dense_backward(x, dz, w, dw, db, dx)
        if w.shape[1] == 18 and db is not None:
            db *= 1 + OFF


class Loss(NumpyBackend):
    name = "mine"

    def loss(self, loss, outputs, targets, row_weights, inverse_total, d_outputs, row_losses, scratch):
        super().loss(loss, outputs, targets, row_weights, inverse_total, d_outputs, row_losses, scratch)
        row_losses *= 1 + OFF


class Dropout(NumpyBackend):
    name = "mine"

    def dropout(self, a, slope, rate, key, step, layer, scratch, first_row=0):
        super().dropout(a, slope, rate, key, step, layer, scratch, first_row)
        if layer == 2 and slope is not None:
            slope *= 1 + OFF


class Update(NumpyBackend):
    name = "mine"

    def update(self, optimizer, p, g, moments, decay, scalars, scratch):
        super().update(
            dataclasses.replace(optimizer, beta1=optimizer.beta1 * (1 - OFF)), p, g, moments, decay, scalars, scratch
        )


class NotFinite(NumpyBackend):
    name = "mine"

    def max_norm(self, w, limit):
        super().max_norm(w, limit)
        w[0, 0] = np.nan


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("bad", "what", "layer", "step"),
    [
        (Forward, "activations", 1, None),
        (Slope, "gradients of the weights", 1, None),
        (BiasGradient, "gradients of the biases", 2, None),
        (Loss, "loss", None, None),
        (Dropout, "weights and moments", 1, 1),
        (Update, "weights and moments", 3, 1),
    ],
)
def test_a_planted_bug_is_named_with_its_layer(rows, bad, what, layer, step, dtype):
    hold(bad(), rows, what, layer, step, dtype=dtype)


def test_what_is_not_finite_is_a_bug(rows):
    hold(NotFinite(), rows, "weights and moments", 3, 1, max_norm=1.0)


def test_a_constant_of_a_compiled_kernel(rows, monkeypatch):
    network(backend="numba").fit(*rows, epochs=1, verbose=0)  # proven before it is broken
    right = cpu_session.network_rule

    def wrong(optimizer, dtype):
        rule = right(optimizer, dtype)
        return rule._replace(square_share=dtype.type(rule.square_share * 2))

    monkeypatch.setattr(cpu_session, "network_rule", wrong)
    hold("numba", rows, "weights and moments", 3, 1)


def test_what_grows_over_steps_by_themselves_is_no_bug(rows):
    found = fastmlp.parity(network(), *rows, backends=["numpy"], optimizer=fastmlp.SGD(0.5), steps=30)
    assert found.agree
    drifts = [row.drifted["numpy"] for row in found.rows if row.step is not None and row.layer == 0]
    assert drifts[-1] > 4 * drifts[0]
    assert "steps by themselves drift by" in found.verdict("numpy")


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_backends_that_cannot_run_are_told(rows, monkeypatch):
    away = registry.Availability(False, "there is none; get one")
    monkeypatch.setattr(registry, "_probe", lambda name: registry.Availability(True) if name == "numpy" else away)
    found = fastmlp.parity(network(), *rows, steps=0)
    assert found.backends == ("numpy",)
    assert "cupy: not compared, there is none; get one" in str(found)
    with pytest.raises(fastmlp.BackendUnavailable, match="there is none; get one"):
        fastmlp.parity(network(), *rows, backends=["cupy"])


def test_backends_with_options_are_told_apart(rows):
    backends = [fastmlp.get_backend("numba", threads=n) for n in (1, 2)]
    found = fastmlp.parity(network(), *rows, backends=backends, steps=1)
    assert found.backends == ("numba (threads=1)", "numba (threads=2)")


def test_a_backend_that_is_asked_to_round_more_is_not_blamed(rows, monkeypatch):
    class Coarse(NumpyBackend):
        name = "cupy"
        options: ClassVar = {"tf32": True}

    with pytest.raises(ValueError, match="backends: cupy rounds float32 to 11 bits, as tf32=True has it; give the"):
        fastmlp.parity(network(), *rows, backends=[Coarse()], steps=0)
    assert fastmlp.parity(network(dtype="float64"), *rows, backends=[Coarse()], steps=0).agree
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    found = fastmlp.parity(network(backend=Coarse()), *rows, steps=0)
    assert "cupy" not in found.backends
    assert "cupy" in found.skipped


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"steps": -1}, ValueError, "steps must be at least 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        (
            {"backends": "numpy"},
            TypeError,
            r"backends must be a sequence of names or backends, got 'numpy'; write \['num",
        ),
        ({"backends": []}, ValueError, r"backends must name one at least, got \[\]"),
        ({"backends": ["nunpy"]}, ValueError, "did you mean 'numpy'"),
        ({"optimizer": "adma"}, ValueError, "did you mean 'adam'"),
    ],
)
def test_mistakes(rows, options, error, text):
    with pytest.raises(error, match=text):
        fastmlp.parity(network(), *rows, **options)


def test_what_is_no_model_and_what_no_type_holds(rows):
    with pytest.raises(TypeError, match=r"model must be a fastmlp.MLP \(of an estimator its model_\), got 3"):
        fastmlp.parity(3, *rows)
    model = network()
    model.set_weights([w * 1e12 for w in model.get_weights()])
    with pytest.raises(fastmlp.DataError, match="numbers for these rows are larger than float32 holds"):
        fastmlp.parity(model, *rows, backends=["numpy"])
