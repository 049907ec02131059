"""Small networks trained on a backend, and how far their numbers may be from others': what the self-test is made of."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cuda.blas import rounds_to_tf32
from fastmlp.floating import rounding
from fastmlp.formulas.optimizers import Adam, Optimizer
from fastmlp.model import MLP

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend

_log = logging.getLogger("fastmlp")

ROWS = 200


def precisions(backend: str) -> tuple[str, ...]:
    """Return the types to compare in: not float32 where NVIDIA's switch of the process lets cuBLAS round it."""
    if backend == "cupy" and rounds_to_tf32():
        _log.warning(
            "NVIDIA_TF32_OVERRIDE=1 makes cuBLAS round float32 to 11 bits in this process, so the self-test compares "
            "in float64 alone; unset it to test float32 too"
        )
        return ("float64",)
    return "float32", "float64"


class SelfTestError(AssertionError):
    """A backend has computed something wrong."""


def data(outputs: int, rows: int = ROWS, features: int = 37) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return inputs (rows, features) float32 and labels (rows,) below `outputs`, the same at every call."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, features)).astype(np.float32), rng.integers(0, outputs, rows)


def trained(
    backend: Backend | str,
    dtype: str,
    optimizer: Optimizer | None = None,
    units: tuple[int, ...] = (37, 50, 21, 5),
    batch: int = 32,
    **network: Any,
) -> list[NDArray[Any]]:
    """Train a small network for an epoch; return its weights, its outputs and its loss."""
    x, y = data(units[-1], features=units[0])
    model = MLP(units, backend=backend, dtype=dtype, seed=0, **({"activation": "tanh"} | network))
    takes_labels = model.spec.loss.takes_labels
    targets = y if takes_labels else np.abs(np.sin(np.outer(y + 1, np.arange(1, units[-1] + 1))))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "captured steps cannot be used")  # training would go on in another way
        history = model.fit(x, targets, epochs=1, batch_size=batch, optimizer=optimizer or Adam(epsilon=0.1), verbose=0)
    outputs = model.predict_proba(x) if model.spec.loss.name == "softmax_cross_entropy" else model.predict(x)
    return [*model.get_weights(), outputs, np.array(history.history["loss"])]


def compare(found: list[NDArray[Any]], expected: list[NDArray[Any]], dtype: str, what: str) -> float:
    """Return the largest difference in units of what rounding allows; raise where it is above 1."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        scale = np.maximum(1.0, np.abs(b))
        difference = np.abs(a.astype(np.float64) - b) / rounding(64 * float(np.finfo(dtype).eps), 50 * ROWS, scale)
        if not (difference <= 1).all():
            raise SelfTestError(f"{what} in {dtype}: off by {difference.max():.3g} times what rounding allows")
        worst = max(worst, float(difference.max()))
    return worst
