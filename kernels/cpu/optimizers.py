"""One optimizer step on a run of parameters, all stages in one pass while they are in the cache."""

from __future__ import annotations

import math

from numba import njit

from .codes import ADAM, ADAMW, SGD
from .compiling import OPTIONS, part


@part
def update(rule, p, g, m, v, rate, correction1, correction2, decay, l2, clip):
    """Take one step.

    Parameters
    ----------
    rule : structures.Rule
    p, g : (n,) float
        Parameters, overwritten; and gradients.
    m, v : (n,) float, or empty
        Moments, overwritten.
    rate, correction1, correction2 : float
        Of this step.
    decay : float
        What parameters are multiplied by before the update.
    l2 : float
        ``l2 * p`` is added to the gradient.
    clip : float
        The gradient is multiplied by it.
    """
    dtype = p.dtype.type
    one, zero = dtype(1), dtype(0)
    # where a gradient stays 0 (the border of an image), means of it shrink until they are subnormal numbers, with which
    # processors are slow; long before that they move no parameter
    smallest = rule.smallest
    if rule.optimizer == SGD:
        momentum = rule.a
        if momentum == dtype(0):
            for i in range(p.size):
                p[i] = p[i] * decay - rate * ((g[i] + l2 * p[i]) * clip)
        elif rule.nesterov:
            for i in range(p.size):
                old = p[i]
                d = (g[i] + l2 * old) * clip
                first = momentum * m[i] + d
                first = zero if abs(first) < smallest else first
                m[i] = first
                p[i] = old * decay - rate * (d + momentum * first)
        else:
            for i in range(p.size):
                old = p[i]
                first = momentum * m[i] + (g[i] + l2 * old) * clip
                first = zero if abs(first) < smallest else first
                m[i] = first
                p[i] = old * decay - rate * first
    elif rule.optimizer == ADAM or rule.optimizer == ADAMW:
        beta1, beta2, epsilon = rule.a, rule.b, rule.epsilon
        step = rate * correction1
        for i in range(p.size):
            old = p[i]
            d = (g[i] + l2 * old) * clip
            first = beta1 * m[i] + (one - beta1) * d
            first = zero if abs(first) < smallest else first
            second = beta2 * v[i] + (one - beta2) * (d * d)
            m[i] = first
            v[i] = second
            p[i] = old * decay - step * (first / (math.sqrt(second) * correction2 + epsilon))
    else:
        rho, momentum, epsilon = rule.a, rule.b, rule.epsilon
        for i in range(p.size):
            d = (g[i] + l2 * p[i]) * clip
            m[i] = rho * m[i] + (one - rho) * (d * d)
            d = d / (math.sqrt(m[i]) + epsilon)
            if momentum > dtype(0):
                v[i] = momentum * v[i] + d
                d = v[i]
            p[i] = p[i] * decay - rate * d


@part
def average(mean, p, decay):
    """``mean = decay mean + (1 - decay) p``; flat arrays."""
    weight = mean.dtype.type(1) - decay
    for i in range(mean.size):
        mean[i] += weight * (p[i] - mean[i])


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
        total += float(part)
    return total
