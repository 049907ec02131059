"""Exact mode: what scikit-learn computes step by step, in the places where fastmlp computes otherwise.

These are its ``_multilayer_perceptron.py`` and ``_stochastic_optimizers.py`` (1.9), in formulas: where Adam's epsilon
stands, that a velocity holds its rates, and that the loss of an epoch is the mean over its batches, each with the
penalty of the weights before its step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.engine.loop import Callback
from fastmlp.formulas.optimizers import SGD, Adam, StepScalars, decay_towards

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.engine.loop import Training


@dataclass(frozen=True)
class ExactAdam(Adam):
    """Adam with the corrections in the rate: ``p -= rate sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon)``.

    That is the form before section 2.1 of Kingma, Ba 2015; epsilon weighs more in the first steps.
    """

    name = "exact_adam"

    def update(self, p: Array, g: Array, moments: Sequence[Array], scalars: StepScalars, scratch: Array) -> None:
        m, v = moments
        decay_towards(m, self.beta1, g, scratch)
        np.multiply(g, g, out=g)
        decay_towards(v, self.beta2, g, scratch)
        np.sqrt(v, out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.multiply(m, scalars.rate * scalars.correction1 / scalars.correction2, out=g)
        np.divide(g, scratch, out=scratch)
        np.subtract(p, scratch, out=p)


@dataclass(frozen=True)
class ExactSGD(SGD):
    """SGD whose velocity holds the rates of its time: ``v = momentum v - rate g``, then ``p += v`` or Nesterov's."""

    name = "exact_sgd"

    def update(self, p: Array, g: Array, moments: Sequence[Array], scalars: StepScalars, scratch: Array) -> None:
        np.multiply(g, scalars.rate, out=g)
        if not self.momentum:
            np.subtract(p, g, out=p)
            return
        (v,) = moments
        np.multiply(v, self.momentum, out=v)
        np.subtract(v, g, out=v)
        if not self.nesterov:
            np.add(p, v, out=p)
            return
        np.multiply(v, self.momentum, out=scratch)
        np.subtract(scratch, g, out=scratch)
        np.add(p, scratch, out=p)


class Rows(NamedTuple):
    """The rows that train, in the order of the data.

    Attributes
    ----------
    weights : (n,) float64
        Of each row.
    offsets : (n,) float64
        What scikit-learn's loss of a row has beside fastmlp's.
    batch_size : int
    """

    weights: NDArray[np.float64]
    offsets: NDArray[np.float64]
    batch_size: int


class Drawn:
    """Orders of the rows as scikit-learn draws them: each shuffles the last."""

    def __init__(self, rows: int, random_state: np.random.RandomState) -> None:
        self.order, self._random_state = np.arange(rows), random_state

    def __call__(self) -> NDArray[np.intp]:
        from sklearn.utils import shuffle

        self.order = shuffle(self.order, random_state=self._random_state)
        return self.order


class StepLosses(Callback):
    """Add up the loss of an epoch as scikit-learn does; read by ``losses(run, ...)`` at its end.

    Parameters
    ----------
    rows : Rows
    order : callable
        Returns the order of the epoch at hand.
    factor : float
        What fastmlp's loss of the data is multiplied by.
    penalty : callable
        Returns ``alpha / 2 ||W||^2`` of the run.
    """

    def __init__(
        self,
        rows: Rows,
        order: Callable[[], NDArray[np.intp]],
        factor: float,
        penalty: Callable[[Training], float],
    ) -> None:
        self._rows, self._order, self._factor, self._penalty_of = rows, order, factor, penalty
        self._sum = self._before = self._done = 0.0
        self._step = 0

    def __call__(self, run: Training, loss: float) -> float:
        return self._sum / len(self._rows.weights)

    def on_epoch_begin(self, run: Training) -> None:
        self._sum = self._done = 0.0
        self._step = 0
        self._before = self._penalty_of(run)

    def next_step(self, run: Training) -> int | None:
        return run.steps_done + 1

    def on_steps(self, run: Training) -> None:
        rows, size = self._rows, self._rows.batch_size
        chosen = self._order()[self._step * size : (self._step + 1) * size]
        seen = rows.weights[self._order()[: (self._step + 1) * size]].sum()
        done = run.running_figures()["loss"] * seen
        total = rows.weights[chosen].sum()
        offset = (rows.weights[chosen] * rows.offsets[chosen]).sum()
        loss = (self._factor * (done - self._done) + offset + self._before) / total
        self._sum += loss * len(chosen)
        self._done, self._before = done, self._penalty_of(run)
        self._step += 1

    def on_epoch_end(self, run: Training, figures: Mapping[str, Any]) -> None:
        self._step = 0
