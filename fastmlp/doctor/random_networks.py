"""Networks of every kind, drawn from a seed, with rows to train on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fastmlp.formulas.activations import activation_names
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS, Optimizer
from fastmlp.model import MLP
from fastmlp.network.spec import NetworkSpec

MOST_UNITS, MOST_ROWS = 70, 200


class RandomNetwork(NamedTuple):
    """A model, rows that suit it, their weights or None, and an optimizer."""

    model: MLP
    x: NDArray[Any]
    y: NDArray[Any]
    sample_weight: NDArray[Any] | None
    optimizer: Optimizer


def random_network(seed: int) -> RandomNetwork:
    """Return the network of a seed: up to four layers of any activations, any loss, optimizer and regularisation."""
    rng = np.random.default_rng(seed)
    layers, rows = int(rng.integers(1, 5)), int(rng.integers(1, MOST_ROWS + 1))
    loss = LOSSES.record(str(rng.choice(LOSSES.names())))
    units = [int(u) for u in rng.integers(1, MOST_UNITS + 1, layers + 1)]
    units[-1] = max(units[-1], 2)  # classes are two at least
    model = MLP(
        units,
        activation=[*(str(name) for name in rng.choice(activation_names(), layers - 1)), "identity"],
        loss=loss,
        dropout=[0.0] + [float(rng.choice((0.0, 0.3)))] * (layers - 1),
        l2=float(rng.choice((0.0, 1e-2))),
        max_norm=1.0 if rng.random() < 0.2 else None,
        dtype=str(rng.choice(("float32", "float64"))),
        seed=seed,
        backend="numpy",
    )
    stages = {
        "clip_norm": float(rng.choice((0.05, 10.0))) if rng.random() < 0.3 else None,
        "ema": 0.9 if rng.random() < 0.3 else None,
        "weight_decay": 0.01 if rng.random() < 0.3 else 0.0,
    }
    optimizer = replace(cast("Any", OPTIMIZERS.record(str(rng.choice(OPTIMIZERS.names())))), **stages)
    pixels = rng.integers(0, 256, (rows, units[0])).astype(np.uint8)
    x = pixels if rng.random() < 0.3 else rng.normal(size=pixels.shape)
    y = random_targets(model.spec, rows, rng)
    return RandomNetwork(model, x, y, rng.uniform(0.1, 2.0, rows) if rng.random() < 0.3 else None, optimizer)


def random_targets(spec: NetworkSpec, rows: int, rng: np.random.Generator) -> NDArray[Any]:
    """Return targets that suit the loss of a network: labels (rows,), or values (rows, K) in [0, 1)."""
    if spec.loss.takes_labels:
        return rng.integers(0, spec.units[-1], rows)
    return rng.uniform(size=(rows, spec.units[-1] // spec.loss.outputs_per_target))
