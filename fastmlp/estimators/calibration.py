"""Temperature scaling: the one number by which logits are divided so that rows held out are the likeliest.

Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; found as scikit-learn's
``CalibratedClassifierCV(method="temperature")`` finds it, which takes a binary logit z for (-z, z) and so tells half.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

from fastmlp.warned import warn_caller

if TYPE_CHECKING:
    from fastmlp.model import MLP

_BOUNDS = (-10.0, 10.0)
"""Of the logarithm of 1 over the temperature; scikit-learn's."""
_NEAR = 1e-3
"""How near to a bound what is found there lies."""


def folded(model: MLP, temperature: float) -> MLP:
    """Return the model, whose last layer has been divided by a temperature."""
    *below, w, b = model.get_weights()
    model.set_weights([*below, w / temperature, b / temperature])
    return model


def temperature_of(logits: NDArray[Any], y: NDArray[Any], weights: NDArray[Any] | None) -> float:
    """Return T that minimises the mean cross-entropy of the softmax, or of the sigmoids, of ``logits / T``.

    Parameters
    ----------
    logits : (n, K) float
    y : (n,) int or (n, K) float
        Labels of a softmax, or 0 and 1 for each sigmoid.
    weights : (n,) float or None

    Warns
    -----
    ConvergenceWarning
        Every row is predicted rightly: the lower the temperature the better, so none is the best, and 1 is returned.
        Or rows are predicted no better than by chance: the higher the better, and the highest there is is returned.
    """
    from scipy.optimize import minimize_scalar

    z, w = logits.astype(np.float64), None if weights is None else weights.astype(np.float64)
    if w is not None:
        z, y, w = z[w > 0], y[w > 0], w[w > 0]
    if y.ndim == 1:  # how far each other class lies above the right one; the loss is log(1 + sum(exp(above)))
        above = z - np.take_along_axis(z, y[:, None], axis=1)
        np.put_along_axis(above, y[:, None], -np.inf, axis=1)
    else:
        above = ((1 - 2 * y) * z).reshape(-1, 1)
        w = None if w is None else np.repeat(w, z.shape[1])
    if not (above > 0).any():
        warn_caller(
            f"calibrate=True: each of the {len(z)} rows held out is predicted rightly, so no temperature is the best, "
            "and temperature_ is left at 1; hold out more rows (validation_fraction, or X_val and y_val)",
            ConvergenceWarning,
        )
        return 1.0

    def loss(log_inverse: float) -> float:
        exponents = math.exp(log_inverse) * above
        highest = np.maximum(exponents.max(axis=1), 0)
        sums = np.exp(-highest) + np.exp(exponents - highest[:, None]).sum(axis=1)
        return float(np.average(highest + np.log(sums), weights=w))

    found = minimize_scalar(loss, bounds=_BOUNDS, options={"xatol": 64 * np.finfo(np.float64).eps})
    if found.x < _BOUNDS[0] + _NEAR:
        warn_caller(
            f"calibrate=True: the {len(z)} rows held out are predicted no better than by chance, so the higher the "
            f"temperature the better, and temperature_ is {math.exp(-found.x):,.0f}, at which all classes are about "
            "equally likely; train longer, or with another learning rate, and hold out more rows (validation_fraction, "
            "or X_val and y_val)",
            ConvergenceWarning,
        )
    return math.exp(-found.x)
