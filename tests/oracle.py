"""Slow, obvious forms of everything that fastmlp computes: plain Python loops over floats, written to be read.

Nothing here uses NumPy's arithmetic or fastmlp's; formulas are written as in the papers, so that an error of the
library is not repeated.  Arrays are lists of lists of Python floats, rows first.
"""

from __future__ import annotations

import math

# --- activations: name -> (value, slope) of one number -------------------------------------------------------------

SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z >= 0 else math.exp(z) / (1 + math.exp(z))


def softplus(z):
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def normal_cdf(z):
    return 0.5 * math.erfc(-z / math.sqrt(2))


def normal_pdf(z):
    return math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def sech_squared(z):
    """1 - tanh(z)^2 without cancellation."""
    e = math.exp(-2 * abs(z))
    return 4 * e / (1 + e) ** 2


def mish_slope(z):
    s = softplus(z)
    return math.tanh(s) + z * sech_squared(s) * sigmoid(z)


ACTIVATIONS = {
    "identity": (lambda z: z, lambda z: 1.0),
    "relu": (lambda z: z if z > 0 else 0.0, lambda z: 1.0 if z > 0 else 0.0),
    "leaky_relu": (lambda z: z if z > 0 else 0.01 * z, lambda z: 1.0 if z > 0 else 0.01),
    "elu": (lambda z: z if z > 0 else math.expm1(z), lambda z: 1.0 if z > 0 else math.exp(z)),
    "selu": (
        lambda z: SELU_SCALE * z if z > 0 else SELU_SCALE * SELU_ALPHA * math.expm1(z),
        lambda z: SELU_SCALE if z > 0 else SELU_SCALE * SELU_ALPHA * math.exp(z),
    ),
    "gelu": (lambda z: z * normal_cdf(z), lambda z: normal_cdf(z) + z * normal_pdf(z)),
    "silu": (lambda z: z * sigmoid(z), lambda z: sigmoid(z) + z * sigmoid(z) * sigmoid(-z)),
    "mish": (lambda z: z * math.tanh(softplus(z)), mish_slope),
    "softplus": (softplus, sigmoid),
    "sigmoid": (sigmoid, lambda z: sigmoid(z) * sigmoid(-z)),
    "tanh": (math.tanh, sech_squared),
    "sin": (math.sin, math.cos),
    "cos": (math.cos, lambda z: -math.sin(z)),
}

# --- losses: name -> function of (record, outputs of one row, its label or targets) -> (loss, gradient) -------------


def softmax_cross_entropy(record, z, target):
    k = len(z)
    t = [float(j == target) for j in range(k)] if isinstance(target, int) else list(target)
    t = [(1 - record.label_smoothing) * tj + record.label_smoothing / k for tj in t]
    top = max(z)
    total = math.fsum(math.exp(zj - top) for zj in z)
    loss = math.fsum(tj * (math.log(total) - (zj - top)) for tj, zj in zip(t, z, strict=True))
    mass = math.fsum(t)
    return loss, [mass * math.exp(zj - top) / total - tj for tj, zj in zip(t, z, strict=True)]


def mean_over_outputs(term):
    """The loss of a row as the mean of ``term(record, output, target) -> (loss, slope)`` over its outputs."""

    def loss(record, z, target):
        pairs = [term(record, zj, tj) for zj, tj in zip(z, target, strict=True)]
        return math.fsum(p[0] for p in pairs) / len(z), [p[1] / len(z) for p in pairs]

    return loss


def huber_term(record, z, t):
    e, d = z - t, record.delta
    if abs(e) <= d:
        return 0.5 * e * e, e
    return d * (abs(e) - 0.5 * d), math.copysign(d, e)


def absolute_term(record, z, t):
    return abs(z - t), float(z > t) - float(z < t)


def squared_log_term(record, z, t):
    difference = math.log1p(max(z, 0.0)) - math.log1p(t)
    return difference**2, 2 * difference / (1 + z) if z > 0 else 0.0


def categorical_hinge(record, z, label):
    wrong = max((j for j in range(len(z)) if j != label), key=lambda j: z[j])
    loss = max(0.0, 1 + z[wrong] - z[label])
    active = float(loss > 0)
    return loss, [active * ((j == wrong) - (j == label)) for j in range(len(z))]


def quantile(record, z, target):
    levels, k = list(record.quantiles), len(z)
    assert k % len(levels) == 0
    losses, gradients = [], []
    for j in range(k):
        q, e = levels[j % len(levels)], target[j] - z[j]
        losses.append(q * e if e > 0 else (q - 1) * e)
        gradients.append(-q / k if e > 0 else (1 - q) / k if e < 0 else 0.0)
    return math.fsum(losses) / k, gradients


LOSSES = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": mean_over_outputs(lambda _, z, t: (softplus(z) - t * z, sigmoid(z) - t)),
    "mean_squared_error": mean_over_outputs(lambda _, z, t: ((z - t) ** 2, 2 * (z - t))),
    "mean_absolute_error": mean_over_outputs(absolute_term),
    "huber": mean_over_outputs(huber_term),
    "poisson": mean_over_outputs(lambda _, z, t: (math.exp(z) - t * z, math.exp(z) - t)),
    "categorical_hinge": categorical_hinge,
    "mean_squared_logarithmic_error": mean_over_outputs(squared_log_term),
    "quantile": quantile,
}


def hit(loss_name, z, target):
    """Return whether a row is predicted rightly; for several binary outputs the fraction that is."""
    if loss_name == "sigmoid_cross_entropy":
        return sum((zj > 0) == (tj > 0.5) for zj, tj in zip(z, target, strict=True)) / len(z)
    if loss_name in ("softmax_cross_entropy", "categorical_hinge"):
        label = target if isinstance(target, int) else target.index(max(target))
        return float(z.index(max(z)) == label)
    return 0.0


# --- optimizers: name -> function of (record) -> step(p, g, rate, t) -> p, for one parameter ------------------------


def sgd(record):
    m = 0.0

    def step(p, g, rate, t):
        nonlocal m
        m = record.momentum * m + g
        return p - rate * (g + record.momentum * m if record.nesterov else m)

    return step


def adam(record):
    m = v = 0.0

    def step(p, g, rate, t):
        nonlocal m, v
        m = record.beta1 * m + (1 - record.beta1) * g
        v = record.beta2 * v + (1 - record.beta2) * g**2
        m_hat, v_hat = m / (1 - record.beta1**t), v / (1 - record.beta2**t)
        return p - rate * m_hat / (math.sqrt(v_hat) + record.epsilon)

    return step


def rmsprop(record):
    m = v = 0.0

    def step(p, g, rate, t):
        nonlocal m, v
        v = record.rho * v + (1 - record.rho) * g**2
        m = record.momentum * m + g / (math.sqrt(v) + record.epsilon)
        return p - rate * m

    return step


OPTIMIZERS = {"sgd": sgd, "adam": adam, "adamw": adam, "rmsprop": rmsprop}


def optimizer_step(record):
    """Return ``step(p, g, rate, t, decays) -> p`` of one parameter; `decays` is whether weight decay applies to it."""
    inner = OPTIMIZERS[record.name](record)

    def step(p, g, rate, t, decays):
        return inner(p * (1 - rate * record.weight_decay) if decays else p, g, rate, t)

    return step


def average_decay(ema, t):
    """Decay of the moving average at step t, counted from 1."""
    return min(ema, (1 + t) / (10 + t))


def clip(gradients, limit):
    """Return a list of gradients scaled down to the 2-norm `limit` where theirs exceeds it."""
    norm = math.sqrt(math.fsum(g * g for g in gradients))
    return [g * limit / norm for g in gradients] if norm > limit else list(gradients)


def max_norm(w, limit):
    """Return w with each column scaled down to the 2-norm `limit` where its own exceeds it."""
    result = [list(row) for row in w]
    for j in range(len(w[0])):
        norm = math.sqrt(math.fsum(row[j] ** 2 for row in w))
        for row in result:
            row[j] *= limit / norm if norm > limit else 1
    return result


# --- random bits ----------------------------------------------------------------------------------------------------

INITIAL_WEIGHTS, EPOCH_ORDER, DROPOUT = 1, 2, 3


def philox4x32(counter, key):
    """Philox4x32-10 of Salmon et al. 2011: four counter words and two key words give four random words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (
            (second >> 32) ^ c1 ^ k0,
            second % 2**32,
            (first >> 32) ^ c3 ^ k1,
            first % 2**32,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def word(key, purpose, row, column, step=0, layer=0):
    """Return the random word of one place: counter (column // 4, row, step, purpose << 24 | layer)."""
    counter = (column // 4, row, step % 2**32, purpose * 2**24 + layer)
    return philox4x32(counter, (key % 2**32, key // 2**32))[column % 4]


def dropout_factor(rate, key, step, layer, row, column):
    """Return ``mask / (1 - rate)`` of one unit."""
    kept = word(key, DROPOUT, row, column, step, layer) >= round(rate * 2**32)
    return 1 / (1 - rate) if kept else 0.0


def epoch_order(key, step, rows):
    return sorted(range(rows), key=lambda row: (word(key, EPOCH_ORDER, 0, row, step), row))


# --- schedules: name -> function of (record, step, horizon) -> rate, without warm-up --------------------------------


def half_cosine(start, end, fraction):
    fraction = min(max(fraction, 0.0), 1.0)
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


def one_cycle(record, step, horizon):
    top, start = record.learning_rate, record.learning_rate / record.start_divisor
    peak, last = record.rise * horizon - 1, horizon - 1
    if step < peak:
        return half_cosine(start, top, step / peak)
    return half_cosine(top, start / record.final_divisor, (step - peak) / (last - peak))


SCHEDULES = {
    "constant": lambda r, step, horizon: r.learning_rate,
    "step": lambda r, step, horizon: r.learning_rate * r.factor ** (step // r.every),
    "exponential": lambda r, step, horizon: r.learning_rate * r.final_fraction ** (step / horizon),
    "inverse_scaling": lambda r, step, horizon: r.learning_rate / (step + 1) ** r.power,
    "cosine": lambda r, step, horizon: half_cosine(r.learning_rate, r.final_rate, step / horizon),
    "one_cycle": one_cycle,
    "reduce_on_plateau": lambda r, step, horizon: max(r.learning_rate, r.min_rate),
}


def scheduled_rate(record, step, horizon):
    rate = SCHEDULES[record.name](record, step, horizon)
    return rate * min(1.0, (step + 1) / (record.warmup_steps + 1))
