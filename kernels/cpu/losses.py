"""The loss of a row, its gradient and whether it is a hit; `forward` calls them, on `elementary` and `lanes`."""

from __future__ import annotations

from . import elementary as el
from . import lanes
from .codes import (
    CATEGORICAL_HINGE,
    HUBER,
    MEAN_ABSOLUTE_ERROR,
    MEAN_SQUARED_ERROR,
    POISSON,
    QUANTILE,
    SIGMOID_CROSS_ENTROPY,
    SOFTMAX_CROSS_ENTROPY,
)
from .compiling import part
from .lanes import LANES
from .vectors import run


@part
def _largest(values):
    """Return the position of the first largest value; of the first NaN, if there is one, as NumPy does."""
    best = 0
    for q in range(1, values.size):
        if values[q] > values[best] or (values[q] != values[q] and values[best] == values[best]):
            best = q
    return best


@part
def _to_lanes(source, at, rows, k, out):
    """``out[c, i] = source[i, c]``, (k, LANES) flat; lanes beyond the last row repeat it."""
    for i in range(LANES):
        start = at + min(i, rows - 1) * k
        row, lane = run(source, start, k), run(out, i, k * LANES - i)
        for c in range(k):
            lane[c * LANES] = row[c]


@part
def softmax_cross_entropy(z, at, rows, k, labels, order, targets, parameters, scales, d, d_at, losses, hits, work):
    """Write loss, gradient and hit of up to `LANES` rows: fused and stable, from logits.

    Parameters
    ----------
    z : (...) float
        Logits, flat, (rows, k) from `at` on.
    labels : (n,) int64, or empty
        The classes of all examples.
    order : (rows,) int64
        Which of them these are.
    targets : (rows * k,) float
        Looked at where there are no labels.
    parameters : (1,) float, or empty
        The label smoothing.
    scales : (LANES,) float
        Weight of each row over the total weight.
    d : (...) float
        Flat; (rows, k) from `d_at` on is overwritten.
    losses, hits : (rows,) float
        Overwritten.
    work : ((6 + 2 * k) * LANES,) float
        Overwritten.
    """
    dtype = z.dtype.type
    smoothing = parameters[0] if parameters.size else dtype(0)
    kept, share = dtype(1) - smoothing, smoothing / dtype(k)
    top, best, total = run(work, 0, LANES), run(work, LANES, LANES), run(work, 2 * LANES, LANES)
    mass, match, right = run(work, 3 * LANES, LANES), run(work, 4 * LANES, LANES), run(work, 5 * LANES, LANES)
    values, wanted = run(work, 6 * LANES, k * LANES), run(work, (6 + k) * LANES, k * LANES)
    soft = labels.size == 0
    _to_lanes(z, at, rows, k, values)
    if soft:
        _to_lanes(targets, 0, rows, k, wanted)
        lanes.largest(wanted, k, top, right)
        for q in range(k * LANES):
            wanted[q] = kept * wanted[q] + share
    lanes.largest(values, k, top, best)
    lanes.subtract(values, k, top)
    for i in range(LANES):
        mass[i] = 0 if soft else 1
        match[i] = 0
    if soft:
        for c in range(k):
            row, weight = run(values, c * LANES, LANES), run(wanted, c * LANES, LANES)
            for i in range(LANES):
                mass[i] += weight[i]
                match[i] += weight[i] * row[i]
    else:
        if smoothing > 0:
            lanes.add_up(values, k, match)
        for i in range(LANES):
            label = labels[order[min(i, rows - 1)]]
            right[i] = label
            match[i] = share * match[i] + kept * values[label * LANES + i]
    for q in range(k * LANES):
        values[q] = el.exp(values[q])
    lanes.add_up(values, k, total)
    for i in range(LANES):
        # the largest term of the sum is 1, so that the logarithm is one of 1 + something
        row_loss = el.log1p(total[i] - dtype(1)) * mass[i] - match[i]
        match[i] = row_loss
        total[i] = scales[i] * mass[i] / total[i]
    if soft:
        for c in range(k):
            row, weight = run(values, c * LANES, LANES), run(wanted, c * LANES, LANES)
            for i in range(LANES):
                row[i] = row[i] * total[i] - weight[i] * scales[i]
    else:
        for i in range(LANES):
            mass[i] = share * scales[i]
        lanes.scale(values, k, total, mass)
    for i in range(rows):
        start = d_at + i * k
        gradient, lane = run(d, start, k), run(values, i, k * LANES - i)
        for c in range(k):
            gradient[c] = lane[c * LANES]
        if not soft:
            gradient[labels[order[i]]] -= kept * scales[i]
        losses[i] = match[i]
        hits[i] = dtype(1) if best[i] == right[i] else dtype(0)
        if losses[i] != losses[i]:
            hits[i] = dtype(1) if _largest(run(z, at + i * k, k)) == right[i] else dtype(0)


def work_size(k: int) -> int:
    """Return how many numbers the losses of k outputs are worked out in."""
    return (7 + 3 * k) * LANES


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
    loss = (z[strongest] - z[label]) + dtype(1)  # of large outputs, 1 would be lost in the first of them
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
def _quantile(z, targets, quantiles, d, scale):
    dtype = z.dtype.type
    loss = dtype(0)
    factor = scale / dtype(z.size)
    for k in range(z.size):
        q = quantiles[k % quantiles.size]
        e = z[k] - targets[k]
        slope = dtype(1) - q if e > dtype(0) else (-q if e < dtype(0) else dtype(0) * e)
        loss += e * slope
        d[k] = slope * factor
    return loss / dtype(z.size)


@part
def row_loss(loss, parameters, z, label, targets, d, scale):
    """Return the loss of a row, of any loss but the first, and write its gradient times `scale`.

    Parameters
    ----------
    loss : int
        A position in `codes.LOSSES`.
    parameters : (P,) float
        Huber's delta, or the quantiles.
    z : (K,) float
        Outputs.
    label : int
        The class, for categorical hinge.
    targets : (K,) float
        For the others.
    d : (K,) float
        Overwritten.
    scale : float
        Weight of the row over the total weight.
    """
    if loss == SIGMOID_CROSS_ENTROPY:
        return _sigmoid_cross_entropy(z, targets, d, scale)
    if loss == MEAN_SQUARED_ERROR:
        return _mean_squared_error(z, targets, d, scale)
    if loss == MEAN_ABSOLUTE_ERROR:
        return _mean_absolute_error(z, targets, d, scale)
    if loss == HUBER:
        return _huber(z, targets, parameters[0], d, scale)
    if loss == POISSON:
        return _poisson(z, targets, d, scale)
    if loss == CATEGORICAL_HINGE:
        return _categorical_hinge(z, label, d, scale)
    if loss == QUANTILE:
        return _quantile(z, targets, parameters, d, scale)
    return _mean_squared_logarithmic_error(z, targets, d, scale)


@part
def row_hit(loss, z, label, targets):
    """Return 1 where the row is predicted rightly and 0 where not; for several binary outputs the fraction right."""
    dtype = z.dtype.type
    if loss == SOFTMAX_CROSS_ENTROPY or loss == CATEGORICAL_HINGE:
        right = label if label >= 0 else _largest(targets)
        return dtype(1) if _largest(z) == right else dtype(0)
    if loss == SIGMOID_CROSS_ENTROPY:
        right = 0
        for q in range(z.size):
            right += (z[q] > dtype(0)) == (targets[q] > dtype(0.5))
        return dtype(right) / dtype(z.size)
    return dtype(0)
