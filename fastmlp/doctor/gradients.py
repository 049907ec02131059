"""Checking the gradient of a whole network against central differences, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_count
from fastmlp.floating import quiet
from fastmlp.formulas.differences import STEP, TOLERANCE
from fastmlp.model import MLP

__all__ = ["TOLERANCE", "gradcheck"]

STEPS = (1e-5, STEP, 1e-7)
"""Steps that are tried."""


@quiet
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
    wrong formula gives errors of 1e-3 and more; what is right stays below `fastmlp.doctor.gradients.TOLERANCE`, 1e-6.

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
    if not isinstance(model, MLP):
        raise TypeError(f"gradcheck: model must be a fastmlp.MLP, got {model!r}")
    directions, spec = check_count("directions", directions), model.spec
    seed = check_count("seed", seed, 0)
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

    learner = double._learner
    learner.spec = replace(learner.spec, l2_over_rows=spec.l2_over_rows)
    learner.rules = model._learner.rules._replace(dtype=double.dtype)  # columns, their scale, what is made of them

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
