"""The loss of a row and its gradient, in one pass."""

from __future__ import annotations

import numpy as np

from . import elementary as el
from .compiling import part

VECTOR = 16
"""Elements of the widest vector: short rows are padded to it, so that their exponentials are one instruction each."""


@part
def _softmax_cross_entropy(z, label, targets, smoothing, d, scale, padded):
    k = z.size
    dtype = z.dtype.type
    size = (k + VECTOR - 1) // VECTOR * VECTOR
    top = z[0]
    for q in range(1, k):
        top = max(top, z[q])
    for q in range(k):
        padded[q] = z[q] - top
    padded[k:size] = dtype(-np.inf)
    for q in range(size):
        padded[q] = el.exp(padded[q])
    total = dtype(0)
    for q in range(k):
        total += padded[q]
    log_total = np.log(total)
    if label >= 0:
        share = smoothing / dtype(k)
        loss = log_total - (dtype(1) - smoothing) * (z[label] - top)
        if smoothing > dtype(0):
            rest = dtype(0)
            for q in range(k):
                rest += z[q] - top
            loss -= share * rest
        factor = scale / total
        for q in range(k):
            d[q] = padded[q] * factor - scale * share
        d[label] -= scale * (dtype(1) - smoothing)
        return loss
    mass = dtype(0)
    match = dtype(0)
    for q in range(k):
        target = (dtype(1) - smoothing) * targets[q] + smoothing / dtype(k)
        mass += target
        match += target * (z[q] - top)
    for q in range(k):
        target = (dtype(1) - smoothing) * targets[q] + smoothing / dtype(k)
        d[q] = (padded[q] / total * mass - target) * scale
    return log_total * mass - match


@part
def _sigmoid_cross_entropy(z, targets, d, scale):
    dtype = z.dtype.type
    loss = dtype(0)
    factor = scale / dtype(z.size)
    for q in range(z.size):
        loss += el.softplus(z[q]) - z[q] * targets[q]
        d[q] = (el.sigmoid(z[q]) - targets[q]) * factor
    return loss / dtype(z.size)


@part
def _mean_squared_error(z, targets, d, scale):
    dtype = z.dtype.type
    loss = dtype(0)
    factor = dtype(2) * scale / dtype(z.size)
    for q in range(z.size):
        e = z[q] - targets[q]
        loss += e * e
        d[q] = e * factor
    return loss / dtype(z.size)


@part
def _mean_absolute_error(z, targets, d, scale):
    dtype = z.dtype.type
    loss = dtype(0)
    factor = scale / dtype(z.size)
    for q in range(z.size):
        e = z[q] - targets[q]
        loss += abs(e)
        d[q] = factor if e > dtype(0) else (-factor if e < dtype(0) else dtype(0) * e)
    return loss / dtype(z.size)


@part
def _huber(z, targets, delta, d, scale):
    dtype = z.dtype.type
    loss = dtype(0)
    factor = scale / dtype(z.size)
    for q in range(z.size):
        e = z[q] - targets[q]
        c = -delta if e < -delta else (delta if e > delta else e)
        loss += c * (e - dtype(0.5) * c)
        d[q] = c * factor
    return loss / dtype(z.size)


@part
def _poisson(z, targets, d, scale):
    dtype = z.dtype.type
    loss = dtype(0)
    factor = scale / dtype(z.size)
    for q in range(z.size):
        rate = el.exp(z[q])
        loss += rate - z[q] * targets[q]
        d[q] = (rate - targets[q]) * factor
    return loss / dtype(z.size)


@part
def _categorical_hinge(z, label, d, scale):
    dtype = z.dtype.type
    strongest = 1 if label == 0 else 0
    for q in range(z.size):
        d[q] = dtype(0)
        if q != label and z[q] > z[strongest]:
            strongest = q
    loss = dtype(1) + z[strongest] - z[label]
    if loss > dtype(0):
        d[strongest] = scale
        d[label] = -scale
    elif loss <= dtype(0):
        loss = dtype(0)
    return loss


@part
def _mean_squared_logarithmic_error(z, targets, d, scale):
    dtype = z.dtype.type
    loss = dtype(0)
    factor = dtype(2) * scale / dtype(z.size)
    for q in range(z.size):
        positive = dtype(0) if z[q] <= dtype(0) else z[q]
        e = el.log1p(positive) - el.log1p(targets[q])
        loss += e * e
        d[q] = e / (dtype(1) + positive) * factor if z[q] > dtype(0) else dtype(0)
    return loss / dtype(z.size)


@part
def row_loss(loss, parameter, z, label, targets, d, scale, padded):
    """Return the loss of a row, and write its gradient times `scale`.

    Parameters
    ----------
    loss : int
        A position in `records.LOSSES`.
    parameter : float
        Label smoothing, or Huber's delta.
    z : (K,) float
        Outputs.
    label : int
        The class; -1 where there are targets instead.
    targets : (K,) float
        Looked at where there is no label.
    d : (K,) float
        Overwritten.
    scale : float
        Weight of the row over the total weight.
    padded : (>= K + VECTOR,) float
        Overwritten.
    """
    if loss == 0:
        return _softmax_cross_entropy(z, label, targets, parameter, d, scale, padded)
    if loss == 1:
        return _sigmoid_cross_entropy(z, targets, d, scale)
    if loss == 2:
        return _mean_squared_error(z, targets, d, scale)
    if loss == 3:
        return _mean_absolute_error(z, targets, d, scale)
    if loss == 4:
        return _huber(z, targets, parameter, d, scale)
    if loss == 5:
        return _poisson(z, targets, d, scale)
    if loss == 6:
        return _categorical_hinge(z, label, d, scale)
    return _mean_squared_logarithmic_error(z, targets, d, scale)


@part
def _largest(values):
    """Return the position of the first largest value; of the first NaN, if there is one, as NumPy does."""
    best = 0
    for q in range(1, values.size):
        if values[q] > values[best] or (values[q] != values[q] and values[best] == values[best]):
            best = q
    return best


@part
def row_hit(loss, z, label, targets):
    """Return 1 where the row is predicted rightly and 0 where not; for several binary outputs the fraction right."""
    dtype = z.dtype.type
    if loss == 0 or loss == 6:
        right = label if label >= 0 else _largest(targets)
        return dtype(1) if _largest(z) == right else dtype(0)
    if loss == 1:
        right = 0
        for q in range(z.size):
            right += (z[q] > dtype(0)) == (targets[q] > dtype(0.5))
        return dtype(right) / dtype(z.size)
    return dtype(0)
