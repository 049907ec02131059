"""Whether compiled kernels compute on this processor what NumPy does: seen once, before they are trusted, and kept.

A compiler may be wrong about a processor that is newer than it, or that a virtual machine describes wrongly.  Small
networks take two steps, or answer, by every form of products; that is a few milliseconds, and in later processes one
small file is read instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cpu.calibration import kept_path, machine
from fastmlp.backends.data import DeviceData
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.floating import in_units_of, rounding
from fastmlp.formulas.optimizers import Adam, StepScalars
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import make_spec
from fastmlp.network.state import TrainState, initial_parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmlp.backends.base import Backend

UNITS, ROWS = (37, 43, 21, 5), 33
"""No multiples of any vector's width, so that whole vectors and the ends of rows are met."""
OPTIMIZER = Adam(epsilon=0.1, clip_norm=0.5, weight_decay=0.01, ema=0.9)
ROUNDINGS = 64.0


def prove(training: bool, precision: Precision, make: Callable[[str], Backend]) -> bool:
    """Return whether compiled calls may be trusted: they were before on this machine, or compute rightly now.

    Parameters
    ----------
    training : bool
        Whether the calls that train are meant, or those that predict.
    precision : Precision
    make : callable
        Returns a backend that runs on one thread and computes products by one form.

    Warns
    -----
    RuntimeWarning
        They compute something wrong.
    """
    from fastmlp.kernels.cpu import codes
    from fastmlp.kernels.cpu.products import available_forms

    here = machine()
    path = kept_path("proven-train" if training else "proven-predict", precision.products)
    if path is not None:
        with contextlib.suppress(Exception):  # whatever is wrong with it, it is proven again
            if json.loads(path.read_text()) == here:
                return True
    spec = make_spec(UNITS, "tanh", dropout=0.2 if training else 0.0, l2=1e-3)
    plan = Plan(spec, ROWS, precision, training, OPTIMIZER.without_schedule() if training else None)
    params = initial_parameters(spec, plan.layout, precision.weights, 0)
    expected = _computed(NumpyBackend(), plan, params)
    for form in available_forms():
        name = codes.FORMS[form]
        found = _computed(make(name), plan, params)
        for (what, a), (_, b) in zip(found.items(), expected.items(), strict=True):
            unit = ROUNDINGS * float(np.finfo(precision.products).eps)
            allowed = rounding(unit, max(ROWS, *UNITS), np.maximum(1.0, np.abs(b)))
            off = float(in_units_of(allowed, a, b).max())
            if not off <= 1:
                warnings.warn(
                    f"compiled kernels compute wrongly on this processor ({here['processor']}): {what} in "
                    f"{precision.products} with products by {name} are off by {off:.3g} times what rounding allows. "
                    "numba goes on by NumPy; please report this with the output of fastmlp doctor --markdown",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return False
    if path is not None:
        with contextlib.suppress(OSError):  # who cannot keep it proves it again the next time
            os.makedirs(path.parent, exist_ok=True)
            path.write_text(json.dumps(here))  # half of it would count for nothing
    return True


def _computed(backend: Backend, plan: Plan, params: NDArray[Any]) -> dict[str, Any]:
    """Return what a small network comes to on a backend."""
    rng, dtype = np.random.default_rng(0), plan.precision.products
    x, y = rng.normal(size=(2 * ROWS, UNITS[0])).astype(dtype), rng.integers(0, UNITS[-1], 2 * ROWS)
    session, data = backend.open(plan), DeviceData(x, y, None)
    if plan.optimizer is None:
        out = np.empty((len(x), UNITS[-1]), dtype)
        backend.predict(session, params, x, out)
        return {"the outputs": out, "the losses": np.array(backend.evaluate(session, params, data))}
    state, totals = TrainState(plan.layout, params.copy(), 0), np.zeros(3)
    state.begin(OPTIMIZER, np.zeros, np.copy)
    table = np.array([StepScalars(0.1, 2.0, 1.5, 0.5, 1 / ROWS), StepScalars(0.1, 1.5, 1.2, 0.7, 1 / ROWS)], np.float64)
    backend.train_steps(session, state, data, np.arange(len(x)), table, 0, totals)
    return {
        "the weights": state.params,
        "the moments": np.concatenate(state.moments),
        "the averages": np.asarray(state.average),
        "the losses": totals,
    }
