"""How far apart rows of weights may lie for a forward product to read them in place: timed once on a machine.

A tile that reads weights in place finds each row on a page of its own, and in a set of a cache where others are too; a
copy in its order costs what it saves elsewhere.  Which of the two is faster depends on how fast a processor loads and
how fast it multiplies, and no processor says that of itself.  The bits are the same in either way.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from fastmlp.backends.contest import TINY, steps_on
from fastmlp.backends.cpu.calibration import NEAR
from fastmlp.backends.data import DeviceData
from fastmlp.formulas.optimizers import SGD, StepScalars
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import make_spec
from fastmlp.network.state import TrainState, initial_parameters

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.cpu.session import NumbaSession

APART = 2048, 4096
"""Bytes that are tried: powers of two, which are the worst and the commonest.  With the second each row is a page of
its own and all are in the same sets; more make nothing worse."""
ROWS, INPUTS = 128, 784
"""Of the products that are timed: a batch for which a copy may pay, and more rows of weights than pages are at hand."""
ROUNDS = 11
NOTICED = 1.03
"""How many times as long as with copies a call has to take to be slower: so few rounds tell no smaller difference, and
where weights lie further apart than is tried, copies gain less."""
LONG = 0.02
"""Seconds of a call after which nothing is tried: so slow a processor, an emulated one, would try for long."""


def reach_of_direct(training: bool, precision: Precision, backend: Backend) -> float:
    """Return up to how many bytes between rows of weights a forward product is not slower in place than from copies.

    Parameters
    ----------
    training : bool
        Whether calls that train are compiled, and timed, or those that predict.
    precision : Precision
    backend : Backend
        Runs on one thread, and looks at no table.
    """
    from fastmlp.kernels.cpu.codes import DIRECT, PACKED
    from fastmlp.kernels.cpu.products import available_forms

    reached = NEAR
    if DIRECT not in available_forms():
        return reached
    for apart in APART:
        units = INPUTS, apart // precision.products.itemsize
        direct, packed = (_call(training, precision, units, form, backend) for form in (DIRECT, PACKED))
        if max(min(call(), call()) for call in (direct, packed)) > LONG:
            return reached
        # in turns: a machine that slows down slows both; and each at its best, where it slows now and then
        pairs = [(direct(), packed()) for _ in range(ROUNDS)]
        bests = [min(seconds) for seconds in zip(*pairs, strict=True)]
        if min(statistics.median(a / b for a, b in pairs), bests[0] / bests[1]) > NOTICED:
            return reached
        reached = float(apart)
    return math.inf


def _call(
    training: bool, precision: Precision, units: tuple[int, int], form: int, backend: Backend
) -> Callable[[], float]:
    """Return what calls the kernels for one layer, its forward product in that form, and returns the seconds."""
    from fastmlp.kernels.cpu.codes import FORWARD, PACKED, PRODUCTS

    spec, dtype = make_spec(units), precision.products
    optimizer = SGD(TINY).without_schedule() if training else None
    plan = Plan(spec, ROWS, precision, training, optimizer)
    forms = np.full((1, len(PRODUCTS)), PACKED, np.int64)
    forms[0, FORWARD] = form
    session = cast("NumbaSession", backend.open(plan))
    session.chosen.fix(forms, 1)
    rng = np.random.default_rng(0)
    x = rng.random((4 * ROWS, INPUTS), np.float32).astype(dtype)
    params = initial_parameters(spec, plan.layout, precision.weights, 0)
    if optimizer is not None:
        state = TrainState(plan.layout, params, 0)
        state.begin(optimizer, np.zeros, np.copy)
        table = np.array([StepScalars(TINY, 1.0, 1.0, 0.0, 1 / ROWS)], np.float64)
        steps = steps_on(backend, session, state, DeviceData(x, np.zeros(len(x), np.int64), None), table)
        return lambda: steps(1)
    out = np.empty((ROWS, units[1]), dtype)

    def predict() -> float:
        began = time.perf_counter()
        backend.predict(session, params, x[:ROWS], out)
        return time.perf_counter() - began

    return predict
