"""Networks, data and runs of steps that together use everything that a training step can do."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from compare import targets_for
from oracle_network import Network

from fastmlp.backends.data import DeviceData
from fastmlp.formulas.losses import Huber, Quantile, SoftmaxCrossEntropy
from fastmlp.formulas.optimizers import SGD, Adam, AdamW, RMSprop
from fastmlp.network.layout import Layout
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import make_spec
from fastmlp.network.state import TrainState, initial_parameters

KEY = 0x0123456789ABCDEF
EPSILON = 0.1
"""Of adaptive optimizers: so large that g / (sqrt(v) + epsilon) blows up the rounding of a small g at most tenfold."""


@dataclass(frozen=True)
class Scenario:
    """A network with its optimizer, data of 19 rows and batches of 8: the last of an epoch has 3 rows."""

    name: str
    units: tuple
    network: dict
    optimizer: object
    frozen: tuple = ()
    weighted: bool = False  # some rows weigh 0, the whole second batch too
    bytes: bool = False  # inputs are uint8
    zeros: bool = False  # most inputs are 0
    soft: bool = False
    l2_over_rows: bool = False
    smooth: bool = True  # no kinks: rounding stays rounding over many steps
    rows: int = 19
    batch: int = 8
    epochs: int = 2

    def __str__(self):
        return self.name

    @property
    def spec(self):
        return replace(make_spec(self.units, **self.network), frozen=self.frozen, l2_over_rows=self.l2_over_rows)

    @property
    def steps(self):
        return -(-self.rows // self.batch)

    def data(self):
        """Return x, y, row weights or None, as NumPy arrays in double precision, labels or bytes."""
        rng, spec = np.random.default_rng(7), self.spec
        x = rng.normal(size=(self.rows, self.units[0]))
        if self.zeros:
            x *= rng.random(x.shape) < 0.3
        if self.bytes:
            x = rng.integers(0, 256, x.shape).astype(np.uint8)
        y = targets_for(spec.loss, self.rows, self.units[-1], rng, self.soft)
        weights = None
        if self.weighted:
            weights = rng.uniform(0.5, 2, self.rows)
            weights[3] = 0
            weights[[self.order(0)[i] for i in range(self.batch, 2 * self.batch)]] = 0
        return x, y, weights

    def order(self, epoch):
        return np.random.default_rng(100 + epoch).permutation(self.rows).astype(np.intp)

    def rates(self, epoch):
        return np.linspace(0.05, 0.02, self.steps) / (1 + epoch)

    def device_data(self, backend, dtype):
        x, y, w = self.data()
        x = x if self.bytes else x.astype(dtype)
        y = y if y.ndim == 1 else y.astype(dtype)
        w = None if w is None else backend.copy(w.astype(dtype))
        return DeviceData(backend.copy(x), backend.copy(y), w)

    def state(self, backend, dtype):
        """Return the state before the first step; in single and double precision the same numbers."""
        dtype, spec = np.dtype(dtype), self.spec
        layout = Layout(spec.units, dtype.itemsize)
        flat = np.zeros(layout.size, dtype)
        small = Layout(spec.units, 4)
        pairs = zip(
            layout.views(flat),
            small.views(initial_parameters(spec, small, np.dtype("f4"), KEY)),
            strict=True,
        )
        for (w, b), (w32, _) in pairs:
            w[...] = w32
            b[...] = np.linspace(-0.25, 0.25, len(b)).astype("f4")
        state = TrainState(layout, backend.copy(flat), KEY, optimizer=self.optimizer, step=5)
        state.moments = [backend.zeros(flat.shape, dtype) for _ in range(self.optimizer.moments)]
        state.average = None if self.optimizer.ema is None else backend.copy(flat)
        return state

    def plan(self, dtype, **changes):
        optimizer = self.optimizer.without_schedule()
        return replace(Plan(self.spec, self.batch, Precision.of(np.dtype(dtype)), True, optimizer), **changes)

    def table(self, epoch, optimizer_step, dtype):
        _, _, w = self.data()
        w = [1.0] * self.rows if w is None else w.astype(dtype).tolist()
        order = self.order(epoch).tolist()
        sums = [math.fsum(w[i] for i in order[k : k + self.batch]) for k in range(0, self.rows, self.batch)]
        inverse = np.array([1 / s if s else 0.0 for s in sums])
        shares = inverse if self.l2_over_rows else 1.0
        return self.optimizer.table(self.rates(epoch), optimizer_step, inverse, shares)


def train(scenario, backend, dtype, train_steps=None, calls=None):
    """Train through a backend; return the state, the totals of each epoch, the session.

    `train_steps` replaces the backend's; `calls` is a list of counts of steps that an epoch is cut into.
    """
    train_steps = train_steps or type(backend).train_steps
    session = backend.open(scenario.plan(dtype))
    state, data = scenario.state(backend, dtype), scenario.device_data(backend, dtype)
    sums = []
    for epoch in range(scenario.epochs):
        totals, first = np.zeros(3), 0
        order = backend.asarray(scenario.order(epoch))
        for count in calls or [scenario.steps]:
            table = scenario.table(epoch, state.optimizer_step - first, dtype)[first : first + count]
            report = train_steps(backend, session, state, data, order, table, first, totals)
            assert report == (count, True)
            first += count
        sums.append(totals)
    return state, sums, session


def network_of(scenario, state, to_numpy, dtype):
    """Return the slow network with the numbers of a state."""
    weights = [(w.tolist(), b.tolist()) for w, b in state.layout.views(to_numpy(state.params))]
    network = Network(scenario.spec, weights, scenario.optimizer, KEY)
    network.step = state.step
    return network


def rows_of(scenario, dtype):
    """Return x, y and weights as lists, as a network of that type sees them."""
    x, y, w = scenario.data()
    x = (x / 255 if scenario.bytes else x).astype(dtype).tolist()
    y = y.tolist() if y.ndim == 1 else y.astype(dtype).tolist()
    return x, y, [1.0] * len(x) if w is None else w.astype(dtype).tolist()


def train_slowly(scenario, network, dtype):
    """Train the slow network likewise; return the totals of each epoch."""
    x, y, w = rows_of(scenario, dtype)
    sums, t = [], 0
    for epoch in range(scenario.epochs):
        parts = []
        order = scenario.order(epoch).tolist()
        for step, rate in enumerate(scenario.rates(epoch).tolist()):
            rows, t = order[step * scenario.batch :][: scenario.batch], t + 1
            parts.append(network.train_step([x[i] for i in rows], [y[i] for i in rows], [w[i] for i in rows], rate, t))
        sums.append([math.fsum(part) for part in zip(*parts, strict=True)])
    return sums


SCENARIOS = (
    Scenario(
        "everything",
        (5, 9, 6, 3),
        {
            "activation": ("tanh", "gelu"),
            "loss": SoftmaxCrossEntropy(label_smoothing=0.1),
            "dropout": (0.2, 0.3, 0.1),
            "l2": 0.01,
            "max_norm": 1.2,
        },
        Adam(weight_decay=0.1, clip_norm=0.05, ema=0.9, epsilon=EPSILON),
        frozen=(False, True, False),
        weighted=True,
        bytes=True,
    ),
    Scenario(
        "regression",
        (1, 41, 4),
        {"activation": ("silu", "softplus"), "loss": Huber(delta=0.5), "l2": 0.1, "dropout": (0.0, 0.5)},
        SGD(momentum=0.9, nesterov=True, weight_decay=0.5, clip_norm=0.02),
        frozen=(True, False),
        weighted=True,
        l2_over_rows=True,
    ),
    Scenario(
        "rectifiers",
        (7, 8, 8, 2),
        {"activation": ("relu", "leaky_relu"), "loss": "sigmoid_cross_entropy", "max_norm": 1.0},
        RMSprop(momentum=0.5, ema=0.5, epsilon=EPSILON),
        bytes=True,
        smooth=False,
    ),
    Scenario(
        "dropped rectifiers",
        (6, 7, 7, 3),
        {"activation": "relu", "loss": "mean_squared_error", "dropout": 0.5, "l2": 0.5},
        SGD(),
        smooth=False,
        l2_over_rows=True,
    ),
    Scenario("one layer", (3, 4), {"loss": "categorical_hinge", "dropout": 0.25}, SGD(ema=0.9), smooth=False),
    Scenario(
        "soft targets",
        (4, 5, 3),
        {"activation": "mish", "loss": "softmax_cross_entropy"},
        AdamW(ema=0.99, epsilon=EPSILON),
        soft=True,
        weighted=True,
    ),
    Scenario(
        "several quantiles",
        (4, 6, 6),
        {"activation": "tanh", "loss": Quantile((0.1, 0.3, 0.9)), "dropout": (0.0, 0.25), "l2": 0.1},
        Adam(epsilon=EPSILON),
        weighted=True,
        smooth=False,
    ),
    Scenario("one row a step", (2, 1, 1), {"activation": "sin", "loss": "poisson"}, SGD(), rows=2, batch=1),
)
