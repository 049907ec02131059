"""What is added in one place works everywhere: in training on every backend, in files, by name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from compare import assert_close, assert_same_bits

import fastmlp
from fastmlp.arguments import check_number
from fastmlp.formulas.activations import ACTIVATIONS, get_activation
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS, Optimizer
from fastmlp.formulas.records import settle


@dataclass(frozen=True)
class Lion(Optimizer):
    """Lion (Chen et al. 2023): ``p -= rate sign(b1 m + (1 - b1) g)``, then ``m = b2 m + (1 - b2) g``."""

    learning_rate: float = 1e-3
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None

    name: ClassVar[str] = "lion"
    moment_roles: ClassVar[Sequence[str]] = ("mean",)

    def __post_init__(self):
        super().__post_init__()
        settle(self, b1=check_number("b1", self.b1, 0.0, 1.0), b2=check_number("b2", self.b2, 0.0, 1.0))

    def update(self, p, g, moments, scalars, scratch):
        (m,) = moments
        np.multiply(m, self.b1, out=scratch)
        scratch += (1 - self.b1) * g
        p -= scalars.rate * np.sign(scratch)
        np.multiply(m, self.b2, out=m)
        m += (1 - self.b2) * g


def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(24, 3)), rng.integers(0, 2, 24)


def network(backend):
    return fastmlp.MLP((3, 5, 2), activation="tanh", backend=backend, dtype="float64", seed=1)


def by_hand(model, x, y, optimizer, steps):
    """Take steps on all rows at once with gradients that the model tells, and a scalar loop for the update."""
    moments = [np.zeros(w.shape) for w in model.get_weights()]
    for _ in range(steps):
        _, gradients = model.loss_and_gradients(x, y)
        weights = model.get_weights()
        for i, (p, g, m) in enumerate(zip(weights, gradients, moments, strict=True)):
            for at in np.ndindex(p.shape):
                decayed = p[at] * (1 - optimizer.learning_rate * optimizer.weight_decay * (i % 2 == 0))
                direction = optimizer.b1 * m[at] + (1 - optimizer.b1) * g[at]
                p[at] = decayed - optimizer.learning_rate * np.sign(direction)
                m[at] = optimizer.b2 * m[at] + (1 - optimizer.b2) * g[at]
        model.set_weights(weights)
    return model.get_weights()


@pytest.mark.parametrize("optimizer", [Lion(0.01), Lion(0.02, weight_decay=0.5)], ids=["plain", "decay"])
def test_an_optimizer_that_is_a_record_and_no_more_trains_on_every_backend(backend, optimizer):
    x, y = problem()
    model = network(backend)
    expected = by_hand(network("numpy"), x, y, optimizer, steps=4)
    model.fit(x, y, epochs=4, batch_size=24, optimizer=optimizer, verbose=0)
    for found, slow in zip(model.get_weights(), expected, strict=True):
        assert_close(found, slow, k=24 * 4, scale=1, c=16)


def test_it_is_known_by_its_name_and_kept_in_files_once_it_is_listed(tmp_path, monkeypatch):
    x, y = problem()
    checkpoint = fastmlp.Checkpoint(tmp_path / "c", every_steps=5)
    with pytest.raises(ValueError, match="a file cannot hold one of your own class, Lion"):
        network("numpy").fit(
            x, y, epochs=2, optimizer=Lion(), verbose=0, callbacks=[fastmlp.Checkpoint(tmp_path / "c")]
        )
    monkeypatch.setitem(OPTIMIZERS.types, Lion.name, Lion)
    whole = network("numpy")
    whole.fit(x, y, epochs=4, batch_size=8, optimizer="lion", verbose=0)
    cut = network("numpy")
    cut.fit(x, y, epochs=4, batch_size=8, optimizer="lion", verbose=0, callbacks=[checkpoint])
    resumed = fastmlp.load(tmp_path / "c", "numpy")
    resumed.resume(x, y, verbose=0)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        assert_same_bits(b, a)


def test_records_tell_what_backends_ask_of_them():
    assert {name for name, a in ACTIVATIONS.items() if a.slope_of_output is not None} == {"identity", "relu"}
    assert [name for name, a in ACTIVATIONS.items() if a.is_identity] == ["identity"]
    fields = {"softmax_cross_entropy": "label_smoothing", "huber": "delta", "quantile": "quantiles"}
    for name, kind in LOSSES.types.items():
        assert kind(**({fields[name]: 0.25} if name in fields else {})).parameters == (0.25,) * (name in fields)
    assert fastmlp.Quantile((0.25, 0.5)).parameters == (0.25, 0.5)
    assert fastmlp.SoftmaxCrossEntropy().parameters == ()  # no smoothing is nothing to hand over
    for name, kind in OPTIMIZERS.types.items():
        for options in ({}, {"momentum": 0.5} if hasattr(kind, "momentum") else {}):
            optimizer = kind(**options)
            moments = [object() for _ in range(optimizer.moments)]
            mean, square = optimizer.by_role(moments)
            assert sorted(map(id, moments)) == sorted(id(m) for m in (mean, square) if m is not None), name
            assert (mean is None) == (optimizer.constants.mean_decay == 0)
            assert (square is None) == (optimizer.constants.square_decay == 0)


@pytest.mark.parametrize("name", [n for n, a in ACTIVATIONS.items() if a.slope_of_output is not None])
def test_a_slope_that_the_output_tells_is_the_slope(name):
    z = np.array([[-2.0, -0.0, 0.0, 1e-300, 3.0]])
    a, slope, told, scratch = z.copy(), np.empty_like(z), np.empty_like(z), (np.empty_like(z), np.empty_like(z))
    get_activation(name).function(a, slope, scratch)
    get_activation(name).slope_of_output(a, told)
    assert_same_bits(told, slope)
