"""One optimizer step on a run of parameters, all stages in one pass, and what surrounds it; `train` calls it last."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .codes import ADAM, ADAMW, SGD
from .compiling import OPTIONS, part


@part
def update(rule, p, g, mean, square, rate, correction1, correction2, kept, l2, clip):
    """Take one step.

    Parameters
    ----------
    rule : structures.Rule
    p, g : (n,) float
        Parameters, overwritten; and gradients.
    mean : (n,) float, or empty
        The mean of gradients (Adam), or the momentum; overwritten.
    square : (n,) float, or empty
        The mean of squares of gradients; overwritten.
    rate, correction1, correction2 : float
        Of this step.
    kept : float
        What parameters are multiplied by before the update.
    l2 : float
        ``l2 * p`` is added to the gradient.
    clip : float
        The gradient is multiplied by it.
    """
    dtype = p.dtype.type
    zero = dtype(0)
    mean_decay, square_decay, epsilon = rule.mean_decay, rule.square_decay, rule.epsilon
    mean_share, square_share = rule.mean_share, rule.square_share
    # where a gradient stays 0 (the border of an image), means of it shrink until they are subnormal numbers, with which
    # processors are slow; long before that they move no parameter
    smallest = rule.smallest
    if rule.optimizer == SGD:
        if mean_decay == zero:
            for i in range(p.size):
                p[i] = p[i] * kept - rate * ((g[i] + l2 * p[i]) * clip)
        elif rule.nesterov:
            for i in range(p.size):
                old = p[i]
                d = (g[i] + l2 * old) * clip
                m = mean_decay * mean[i] + d
                m = zero if abs(m) < smallest else m
                mean[i] = m
                p[i] = old * kept - rate * (d + mean_decay * m)
        else:
            for i in range(p.size):
                old = p[i]
                m = mean_decay * mean[i] + (g[i] + l2 * old) * clip
                m = zero if abs(m) < smallest else m
                mean[i] = m
                p[i] = old * kept - rate * m
    elif rule.optimizer == ADAM or rule.optimizer == ADAMW:
        step = rate * correction1
        for i in range(p.size):
            old = p[i]
            d = (g[i] + l2 * old) * clip
            m = mean_decay * mean[i] + mean_share * d
            m = zero if abs(m) < smallest else m
            v = square_decay * square[i] + square_share * (d * d)
            mean[i] = m
            square[i] = v
            p[i] = old * kept - step * (m / (math.sqrt(v) * correction2 + epsilon))
    else:
        for i in range(p.size):
            d = (g[i] + l2 * p[i]) * clip
            square[i] = square_decay * square[i] + square_share * (d * d)
            d = d / (math.sqrt(square[i]) + epsilon)
            if mean_decay > zero:
                mean[i] = mean_decay * mean[i] + d
                d = mean[i]
            p[i] = p[i] * kept - rate * d


@part
def average(mean, p, share):
    """``mean = (1 - share) mean + share p``; flat arrays."""
    for i in range(mean.size):
        mean[i] += share * (p[i] - mean[i])


@part
def limit_columns(w, inputs, outputs, first, stop, limit, norms):
    """Scale the columns first <= q < stop of w (inputs, outputs), flat, down to the 2-norm `limit`.

    norms (>= outputs,) float is overwritten.
    """
    zero = w.dtype.type(0)
    for q in range(first, stop):
        norms[q] = zero
    for i in range(inputs):
        for q in range(first, stop):
            norms[q] += w[i * outputs + q] * w[i * outputs + q]
    exceeds = False
    for q in range(first, stop):
        norm = math.sqrt(norms[q])
        exceeds |= norm > limit
        norms[q] = limit / norm if norm > limit else w.dtype.type(1)
    if exceeds:
        for i in range(inputs):
            for q in range(first, stop):
                w[i * outputs + q] *= norms[q]


@njit(**{**OPTIONS, "fastmath": {*OPTIONS["fastmath"], "reassoc"}})  # so that the sum can be vectorised
def add_l2_squared_norm(g, p, l2):
    """``g += l2 * p``; return the sum of squares of g, in float64."""
    total = 0.0
    for start in range(0, g.size, 4096):
        part = g.dtype.type(0)
        for i in range(start, min(start + 4096, g.size)):
            g[i] += l2 * p[i]
            part += g[i] * g[i]
        if part < g.dtype.type(np.inf):  # where sums may be reassociated, isfinite takes their difference to be 0
            total += float(part)
        else:  # squares may overflow where no gradient does
            for i in range(start, min(start + 4096, g.size)):
                total += np.float64(g[i]) * np.float64(g[i])
    return total


@njit(**{**OPTIONS, "fastmath": {"nsz"}})  # no multiply-adds, which round once where NumPy does twice
def squared_norm(p):
    """Return the sum of squares of p, of whole vectors of 4, in float64: the bits that `RunView.squared_norm` has."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for i in range(0, p.size, 4):
        a += np.float64(p[i]) * np.float64(p[i])
        b += np.float64(p[i + 1]) * np.float64(p[i + 1])
        c += np.float64(p[i + 2]) * np.float64(p[i + 2])
        d += np.float64(p[i + 3]) * np.float64(p[i + 3])
    return (a + b) + (c + d)
