"""Checking gradients against central differences, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.model import MLP

STEP = 1e-6
"""Step of the differences, for values of the order of 1: the error of the formula, O(step^2), and that of rounding,
O(eps / step), are then both far below `TOLERANCE`."""
STEPS = (1e-5, STEP, 1e-7)
"""Steps that `gradcheck` tries."""
TOLERANCE = 1e-6
"""Of the difference relative to the larger value (or to 1e-3 where both are small), see `agree`."""


def agree(a: NDArray[Any], b: NDArray[Any], norm: float = 1.0) -> NDArray[np.bool_]:
    """Return where ``|a - b| <= TOLERANCE * max(|a|, |b|, 1e-3 * norm)``."""
    scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-3 * norm)
    result: NDArray[np.bool_] = np.abs(a - b) <= TOLERANCE * scale
    return result


def check_slope(name: str, function: Callable[[Array], tuple[Array, Array]], kinks: tuple[float, ...] = ()) -> None:
    """Raise ValueError where an activation's slope is not its derivative, or where it breaks the rules.

    Parameters
    ----------
    name : str
        For the message.
    function : callable
        ``function(z) -> (a, slope)``.
    kinks : tuple of float
        Points to keep away from.
    """
    z = np.random.default_rng(0).normal(scale=2.0, size=(16, 25))
    for kink in kinks:
        near = np.abs(z - kink) < 1e-3
        z[near] += 2e-3
    before = z.copy()
    a, slope = function(z)
    if not np.array_equal(z, before):
        raise ValueError(f"activation {name!r}: the function changed its argument z; it must return new arrays")
    if np.shape(a) != z.shape or np.shape(slope) != z.shape:
        raise ValueError(
            f"activation {name!r}: the function must return (a, slope), both of the shape of z {z.shape}; "
            f"got {np.shape(a)} and {np.shape(slope)}"
        )
    expected = (function(z + STEP)[0] - function(z - STEP)[0]) / (2 * STEP)
    right = agree(np.asarray(slope), expected)
    if not right.all():
        i = int(np.argmin(right))
        raise ValueError(
            f"activation {name!r}: the slope is not the derivative: at z = {z.flat[i]:.6g} it is "
            f"{np.asarray(slope).flat[i]:.6g}, central differences give {expected.flat[i]:.6g}"
        )


def check_loss_gradient(name: str, function: Callable[[Array, Array], tuple[Array, Array]], takes_labels: bool) -> None:
    """Raise ValueError where a loss's gradient is wrong, or where it breaks the rules.

    Parameters
    ----------
    name : str
        For the message.
    function : callable
        ``function(outputs, targets) -> (row_losses, d_outputs)``.
    takes_labels : bool
    """
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(12, 5))
    targets = rng.integers(0, 5, 12) if takes_labels else rng.uniform(0.1, 1.0, size=(12, 5))
    before = outputs.copy(), targets.copy()
    rows, gradient = function(outputs, targets)
    if not (np.array_equal(outputs, before[0]) and np.array_equal(targets, before[1])):
        raise ValueError(f"loss {name!r}: the function changed its arguments; it must return new arrays")
    if np.shape(rows) != (12,) or np.shape(gradient) != (12, 5):
        raise ValueError(
            f"loss {name!r}: for outputs (12, 5) the function must return row losses (12,) and a gradient (12, 5); "
            f"got {np.shape(rows)} and {np.shape(gradient)}"
        )
    # losses of rows are independent, so one pair of calls gives the derivatives by one output of all rows
    for k in range(5):
        step = np.zeros(5)
        step[k] = STEP
        expected = (function(outputs + step, targets)[0] - function(outputs - step, targets)[0]) / (2 * STEP)
        right = agree(np.asarray(gradient)[:, k], expected)
        if not right.all():
            i = int(np.argmin(right))
            raise ValueError(
                f"loss {name!r}: the gradient is wrong: for output {k} of row {i} it is "
                f"{np.asarray(gradient)[i, k]:.6g}, central differences give {expected[i]:.6g}"
            )


def gradcheck(
    model: MLP,
    x: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    directions: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """Return the relative error of the model's gradient for each parameter array, against central differences.

    The loss, L2 included, is differenced in float64, on the model's backend, whatever type the model computes in.  A
    wrong formula gives errors of 1e-3 and more; what is right stays below `fastmlp.differences.TOLERANCE`, 1e-6.

    Parameters
    ----------
    model : MLP
        Not changed.  Its loss and its activations may be your own.
    x, y, sample_weight : array_like
        As for `MLP.loss_and_gradients`; a few rows are enough.
    directions : int
        Random directions along which each array is tried; every one meets all its elements, so that large arrays cost
        no more than small ones.
    seed : int
        Of the directions.

    Returns
    -------
    dict of str to float
        ``{"W1": ..., "b1": ..., "W2": ..., ...}``: the largest ``|a - d| / max(|a|, |d|, 1e-3 |loss|, 1e-3 norm)``, a
        the derivative along a direction by the gradient, d by differences, norm that of the whole gradient.

    Notes
    -----
    Each direction is tried with three steps and the best counts: a smaller one may miss a kink that a larger one
    crosses, while no step excuses a wrong formula.  A rectifier whose input is exactly 0, as with a row of zeros and
    biases of zeros, has no derivative, and shows as a large error: give other rows or biases.

    Examples
    --------
    >>> import numpy as np, fastmlp
    >>> model = fastmlp.MLP((3, 5, 2), activation="tanh", seed=0)
    >>> max(fastmlp.gradcheck(model, np.eye(3), [0, 1, 1]).values()) < 1e-6
    True
    """
    from fastmlp.arguments import check_count
    from fastmlp.model import MLP

    if not isinstance(model, MLP):
        raise TypeError(f"gradcheck: model must be a fastmlp.MLP, got {model!r}")
    directions, spec = check_count("directions", directions), model.spec
    double = MLP(
        spec.units,
        activation=spec.activations,
        loss=spec.loss,
        l2=spec.l2,
        backend=model.backend,
        dtype="float64",
        seed=0,
    )
    weights = [np.asarray(w, np.float64) for w in model.get_weights()]

    def loss_of(array: int, moved: NDArray[np.float64]) -> float:
        double.set_weights([*weights[:array], moved, *weights[array + 1 :]])
        return double.loss_and_gradients(x, y, sample_weight)[0]

    double.set_weights(weights)
    loss, gradients = double.loss_and_gradients(x, y, sample_weight)
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients))
    floor = max(1e-3 * abs(loss), 1e-3 * norm, np.finfo(np.float64).tiny)
    rng, errors = np.random.default_rng(seed), {}
    for i, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        worst = 0.0
        for _ in range(directions):
            direction = rng.normal(size=w.shape)
            direction /= np.linalg.norm(direction)
            a, found = float(np.vdot(g, direction)), []
            for step in STEPS:
                d = (loss_of(i, w + step * direction) - loss_of(i, w - step * direction)) / (2 * step)
                found.append(abs(a - d) / max(abs(a), abs(d), floor))
            # a NaN compares false, so it must not be lost in a minimum
            worst = max(worst, min(found) if all(map(math.isfinite, found)) else math.inf)
        errors[f"{'Wb'[i % 2]}{i // 2 + 1}"] = worst
    double.close()
    return errors
