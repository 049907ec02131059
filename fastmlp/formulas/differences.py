"""Checking gradients against central differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastmlp._typing import Array

STEP = 1e-6
"""Step of the differences, for values of the order of 1: the error of the formula, O(step^2), and that of rounding,
O(eps / step), are then both far below `TOLERANCE`."""
TOLERANCE = 1e-6
"""Of the difference relative to the larger value (or to 1e-3 where both are small), see `agree`."""


def agree(a: NDArray[Any], b: NDArray[Any], norm: float = 1.0) -> NDArray[np.bool_]:
    """Return where ``|a - b| <= TOLERANCE * max(|a|, |b|, 1e-3 * norm)``."""
    scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), 1e-3 * norm)
    result: NDArray[np.bool_] = np.abs(a - b) <= TOLERANCE * scale
    return result


def _pair(what: str, function: Callable[..., Any], *arguments: Array) -> tuple[Array, Array]:
    """Return the two arrays that a user's function gives; ValueError where it does not."""
    shapes = ", ".join(str(a.shape) for a in arguments)
    try:
        first, second = function(*arguments)
    except Exception as e:
        raise ValueError(f"{what}: the function must return two arrays, but for {shapes} it fails: {e}") from e
    return first, second


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
    a, slope = _pair(f"activation {name!r}", function, z)
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
    rows, gradient = _pair(f"loss {name!r}", function, outputs, targets)
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
