"""What a batch and a step come to in double precision, and how far rounding in a coarser type may take each number.

The numbers are those of NumPy's backend.  Beside each goes a bound: what rounding does to it where it is computed (one
formula, `fastmlp.floating.rounding`), and what the errors of the numbers that it is made of do to it, which have either
sign, so that their squares add up.  A kink within reach of an error may be crossed or not, and an optimizer that blows
up a small gradient blows up its error: the bound of such a number is wide, that of its neighbours is not.
"""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.data import DeviceData
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.backends.session import BatchViews, Session
from fastmlp.floating import negligible, rounding
from fastmlp.formulas.activations import get_activation
from fastmlp.formulas.optimizers import Optimizer, StepScalars
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import NetworkSpec
from fastmlp.network.state import TrainState

Floats = NDArray[np.float64]

ROUNDINGS = 16.0
"""That a number takes on its way, about: an operation of a kernel is a few."""
_DRAWS = 4
"""Ways in which errors are tried together: all up, all down, and of random signs."""
UNSURE = 0.1
"""An error of an output from which on it matters to a loss which outputs are up while others are down."""
DOUBLE = Precision.of(np.dtype(np.float64))


@dataclass(frozen=True)
class Bounded:
    """Numbers, and how far from them rounding may take those of a backend."""

    value: Floats
    allowed: Floats


@dataclass(frozen=True)
class BatchResults:
    """What a batch comes to.

    Attributes
    ----------
    activations : list of Bounded
        Of each layer.
    loss : Bounded
        With L2, (1,).
    weights, biases : dict from int to Bounded
        Their gradients, of the layers that have some.
    """

    activations: list[Bounded]
    loss: Bounded
    weights: dict[int, Bounded]
    biases: dict[int, Bounded]


class Reference:
    """Computes in double precision, with bounds for a coarser type.

    Parameters
    ----------
    dtype : numpy.dtype
        That backends compute in.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.backend = NumpyBackend()
        self.eps = float(np.finfo(dtype).eps)
        self.unit = ROUNDINGS * self.eps
        # a GPU takes subnormal numbers for 0, and what follows from them
        self.least = 2 * negligible(dtype)
        self._rng = np.random.default_rng(0)

    def batch(
        self, spec: NetworkSpec, params: Floats, data: DeviceData, scalars: StepScalars, key: int = 0, step: int = 0
    ) -> BatchResults:
        """Return what all rows of some data come to as one batch.

        Parameters
        ----------
        spec : NetworkSpec
            With its dropout, where a step of training is meant.
        params : (size,) float64
            Flat parameters.
        data : DeviceData
        scalars : StepScalars
            Of which `inverse_total` and `l2_share` count.
        key, step : int
            Of the dropout.
        """
        n, unit = len(data.x), self.unit
        session = Session(self.backend, Plan(spec, n, DOUBLE, True))
        share, inverse = scalars.l2_share, scalars.inverse_total
        self.backend._gradients(session, params, data, slice(0, n), inverse, share, key=key, step=step)
        views, layers = session.views(n), session.layers_of("params", params)
        inputs, errors = [views.x], [unit * np.abs(views.x)]
        activations: list[Bounded] = []
        slopes: list[Bounded] = []
        for layer, (w, b) in enumerate(layers):
            value, slope = self._layer(spec, layer, inputs[-1], errors[-1], w, b)
            activations.append(value)
            mask = np.ones_like(value.value)
            if layer + 1 < spec.layers and spec.dropout[layer + 1]:
                self.backend.dropout(mask, None, spec.dropout[layer + 1], key, step, layer + 1, np.empty_like(mask))
            inputs.append(value.value * mask)
            errors.append(value.allowed * mask)
            slopes.append(Bounded(slope.value * mask, slope.allowed * mask))
        rows, dz = self._loss(session, views, data, scalars, activations[-1])
        norms = sum(float(np.vdot(w, w)) for w, _ in layers)
        penalty = 0.5 * spec.l2 * share * norms
        loss = Bounded(rows.value + penalty, rows.allowed + unit * (np.abs(rows.value) + penalty) + self.least)
        weights: dict[int, Bounded] = {}
        biases: dict[int, Bounded] = {}
        grads = session.layers_of("grads", session.grads)
        for layer in range(spec.layers - 1, spec.lowest_trainable - 1, -1):
            w, slope = layers[layer][0], slopes[layer]
            d, error = dz.value * slope.value, dz.allowed * (np.abs(slope.value) + slope.allowed)
            error = error + np.abs(dz.value) * slope.allowed + unit * np.abs(d) + self.least
            if not spec.frozen[layer]:
                a, below = inputs[layer], errors[layer]
                size = np.sqrt(np.square(a).T @ np.square(d))
                spread = np.sqrt(np.square(a).T @ np.square(error) + np.square(below).T @ np.square(np.abs(d) + error))
                dw, db = grads[layer]
                own = rounding(unit, n, np.maximum(np.abs(dw), size)) + unit * spec.l2 * share * np.abs(w)
                weights[layer] = Bounded(dw.copy(), spread + own + self.least)
                size = np.maximum(np.abs(db), np.sqrt(np.square(d).sum(axis=0)))
                spread = np.sqrt(np.square(error).sum(axis=0))
                biases[layer] = Bounded(db.copy(), spread + rounding(unit, n, size) + self.least)
            if layer:
                value = d @ w.T
                size = np.maximum(np.abs(value), np.sqrt(np.square(d) @ np.square(w).T))
                spread = np.sqrt(np.square(error) @ np.square(w).T)
                dz = Bounded(value, spread + rounding(unit, w.shape[1], size))
        return BatchResults(activations, loss, weights, biases)

    def _layer(
        self, spec: NetworkSpec, layer: int, a: Floats, error: Floats, w: Floats, b: Floats
    ) -> tuple[Bounded, Bounded]:
        """Return the activations of a layer and their slopes, before dropout."""
        z = np.empty((len(a), w.shape[1]))
        self.backend.dense_forward(a, w, b, z)
        size = np.maximum(np.abs(z), np.sqrt(np.square(a) @ np.square(w) + np.square(b)))
        reach = rounding(self.unit, len(w), size) + np.sqrt(np.square(error) @ np.square(w)) + self.least
        name = spec.activations[layer]
        if get_activation(name).is_identity:
            return Bounded(z, reach), Bounded(np.ones_like(z), np.zeros_like(z))
        (f, slope), *near = (self._activated(name, z + part * reach) for part in (0.0, -1.0, -0.5, 0.5, 1.0))
        steepest = functools.reduce(np.maximum, (np.abs(s) for _, s in near), np.abs(slope))
        # their kernels take differences of numbers up to 1, such as 1 - f**2
        value = steepest * reach + self.unit * np.maximum(np.abs(f), np.minimum(np.abs(z), 1.0)) + self.least
        bent = _farthest(slope, *(s for _, s in near)) + self.unit * np.maximum(np.abs(slope), 1.0)
        return Bounded(f, value), Bounded(slope, bent)

    def _activated(self, name: str, z: Floats) -> tuple[Floats, Floats]:
        slope = np.empty_like(z)
        self.backend.activate(name, z, slope, (np.empty_like(z), np.empty_like(z)))
        return z, slope

    def _loss(
        self, session: Session, views: BatchViews, data: DeviceData, scalars: StepScalars, outputs: Bounded
    ) -> tuple[Bounded, Bounded]:
        """Return the mean loss without L2, (1,), and the gradient of the outputs."""
        inverse, loss = scalars.inverse_total, session.plan.spec.loss
        targets, n = session.targets(data.y)[: len(data.x)], len(data.x)
        weights = None if data.weights is None else views.row_weights
        weighing = (np.ones(n) if weights is None else weights) * inverse
        found = []
        tried = self._signs(outputs.value.shape)
        if outputs.allowed.max(initial=0.0) > UNSURE:  # any class may be the likeliest
            tried += list(2 * np.eye(outputs.value.shape[1]) - 1)
        for signs in (0.0, *tried):
            d, losses, z = np.empty_like(outputs.value), np.empty(n), outputs.value + signs * outputs.allowed
            scratch = np.empty_like(z), np.empty_like(z)
            self.backend.loss(loss, z, targets, weights, inverse, d, losses, scratch)
            found.append((d, losses))
        (d, losses), others = found[0], found[1:]
        error = _farthest(d, *(o[0] for o in others)) + self.unit * (np.abs(d) + weighing[:, None])
        spread = _farthest(losses, *(o[1] for o in others)) + self.unit * np.maximum(np.abs(losses), 1.0)
        mean, allowed = float(losses @ weighing), float(spread @ weighing)
        return Bounded(np.array([mean]), np.array([allowed])), Bounded(d, error + self.least)

    def _signs(self, shape: tuple[int, ...]) -> list[Any]:
        return [1.0, -1.0, *(self._rng.choice((-1.0, 1.0), shape) for _ in range(_DRAWS - 2))]

    def step(
        self, spec: NetworkSpec, optimizer: Optimizer, before: TrainState, data: DeviceData, scalars: StepScalars
    ) -> tuple[TrainState, list[Floats]]:
        """Take a step on all rows of some data.

        Returns
        -------
        (after, allowed)
            The state, and for each of its `buffers` what rounding may do to it.
        """
        if scalars.inverse_total == 0:  # rows that weigh nothing are no step
            after = before.copied(np.copy)
            return _counted(after), [self.unit * np.abs(b) for b in buffers(after)]
        results = self.batch(spec, before.params, data, scalars, before.key, before.step)
        flat, errors = (np.zeros_like(before.params) for _ in range(2))
        for value, which in ((flat, "value"), (errors, "allowed")):
            for layer, (w, b) in enumerate(before.layout.views(value)):
                if layer in results.weights:
                    w[...] = getattr(results.weights[layer], which)
                    b[...] = getattr(results.biases[layer], which)
        moved = [flat + signs * errors for signs in self._signs(flat.shape)]
        tried = [(optimizer, g) for g in (flat, *moved)] + [(rule, flat) for rule in self._rounded(optimizer)]
        if (
            optimizer.clip_norm is not None
        ):  # all errors at once make a norm that hides what each does to its own number
            factor = min(1.0, optimizer.clip_norm / max(float(np.linalg.norm(flat)), self.least))
            tried += [(replace(cast("Any", optimizer), clip_norm=None), factor * g) for g in moved]
        found = []
        for rule, gradient in tried:
            after = before.copied(np.copy)
            session = Session(self.backend, Plan(spec, len(data.x), DOUBLE, True, rule.without_schedule()))
            session.grads[...] = gradient
            self.backend.apply_gradients(session, after, scalars)
            found.append(after)
        after, others = found[0], found[1:]
        allowed = []
        for was, now, *there in zip(buffers(before), buffers(after), *map(buffers, others), strict=True):
            allowed.append(_farthest(now, *there) + self.unit * (np.abs(now) + np.abs(was)) + self.least)
        return _counted(after), allowed

    def _rounded(self, optimizer: Optimizer) -> list[Optimizer]:
        """Return the optimizer with its constants a rounding away: of 1 - 0.999 that is a large part."""
        found = []
        for factor in (1 + self.eps, 1 - self.eps):
            values = {f.name: getattr(optimizer, f.name) for f in fields(cast("Any", optimizer)) if f.init}
            moved = {n: v * factor for n, v in values.items() if type(v) is float and n != "learning_rate"}
            with contextlib.suppress(ValueError):  # at the end of what it may be
                found.append(replace(cast("Any", optimizer), **moved))
        return found


def buffers(state: TrainState) -> list[Any]:
    """Return the flat buffers of a state: parameters, moments, and the average where there is one."""
    return [state.params, *state.moments, *([] if state.average is None else [state.average])]


def _counted(state: TrainState) -> TrainState:
    state.step += 1
    state.optimizer_step += 1
    return state


def _farthest(value: Floats, *others: Floats) -> Floats:
    """Return twice how far the farthest of others is, since those tried need not be the worst; inf for no number."""
    far = np.zeros_like(value)
    for other in others:
        far = np.maximum(far, np.abs(other - value))
    return np.nan_to_num(2 * far, nan=np.inf)
