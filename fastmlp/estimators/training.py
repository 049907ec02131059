"""A run of training as scikit-learn's estimators have it: rates, curves, when to stop, which weights to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.engine.history import History
from fastmlp.engine.loop import Callback
from fastmlp.formulas.schedules import Constant, Schedule

if TYPE_CHECKING:
    from fastmlp.engine.learner import Learner
    from fastmlp.engine.loop import Training

SMALLEST_RATE = 1e-6
"""Below it an adaptive rate is not cut any more; scikit-learn's."""


@dataclass
class Curves:
    """What an estimator remembers of its training, from one call of `partial_fit` to the next.

    Attributes
    ----------
    rate : float
        The learning rate now.
    samples : int
        Rows trained on so far, `t_`.
    losses, scores, validation_losses : list of float
        One an epoch; `scores` where there is validation.
    best_loss, best_score : float
        The least loss, and the highest score.
    waited : int
        Epochs since the last that was better by the tolerance.
    epochs : int
        Of the last call.
    stopped : bool
        Whether the last call ended because nothing got better.
    """

    rate: float
    samples: int = 0
    losses: list[float] | None = None
    scores: list[float] | None = None
    validation_losses: list[float] | None = None
    best_loss: float = math.inf
    best_score: float = -math.inf
    waited: int = 0
    epochs: int = 0
    stopped: bool = False


@dataclass(frozen=True)
class Follows(Schedule):
    """The rate that the curves of a run have, times a factor.

    Parameters
    ----------
    curves : Curves
    factor : float
    rule : {"constant", "invscaling", "adaptive"}
        What changes that rate from epoch to epoch, if anything.
    """

    curves: Curves | None = None
    factor: float = 1.0
    rule: str = field(default="constant", compare=False)

    name = "follows"

    def in_files(self) -> Schedule:
        assert self.curves is not None
        if self.rule != "constant":  # whatever goes on from the file knows neither curves nor samples
            cure = "InverseScaling(...)" if self.rule == "invscaling" else "ReduceOnPlateau(..., monitor='loss')"
            raise ValueError(
                f"callbacks: a checkpoint cannot hold the rates of learning_rate={self.rule!r}, got a Checkpoint; "
                f"give schedule=fastmlp.{cure} instead, or learning_rate='constant'"
            )
        return Constant(self.factor * self.curves.rate)

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        assert self.curves is not None
        return np.full(len(steps), self.factor * self.curves.rate)


class Rules(NamedTuple):
    """When a run stops and how its rate changes; parameters of the estimator.

    Attributes
    ----------
    learning_rate : {"constant", "invscaling", "adaptive"}
    initial_rate, power : float
    tolerance : float
    patience : float
    keep_best : bool
        Go by the score, and return to the weights of the best one (`early_stopping`).
    verbose : bool
    """

    learning_rate: str
    initial_rate: float
    power: float
    tolerance: float
    patience: float
    keep_best: bool
    verbose: bool

    def rate_after(self, samples: int) -> float:
        """Return the rate after so many rows, of those that do not go by what the losses were."""
        scaling = self.learning_rate == "invscaling"
        return self.initial_rate / (samples + 1) ** self.power if scaling else self.initial_rate


class ScikitLearnRun(Callback):
    """Carry a run through as scikit-learn does; `curves` are changed.

    Parameters
    ----------
    curves : Curves
    rules : Rules
    rows : int
        That train.
    epoch_loss : callable
        Returns the loss of the epoch as scikit-learn counts it, given the run and fastmlp's own.
    score : callable, optional
        Returns the score on the validation data.
    """

    def __init__(
        self,
        curves: Curves,
        rules: Rules,
        rows: int,
        epoch_loss: Callable[[Training, float], float],
        score: Callable[[], float] | None,
    ) -> None:
        self.curves, self._rules, self._rows = curves, rules, rows
        self._epoch_loss, self._score = epoch_loss, score
        # an epoch is scored, or has a rate that what came before it decides
        self.sees_model = score is not None or rules.learning_rate != "constant"
        self._best: dict[str, Any] = {}
        self.history = History()

    def on_train_begin(self, run: Training) -> None:
        self.curves.epochs, self.curves.stopped = 0, False
        self.history = run.history

    def on_epoch_end(self, run: Training, figures: Mapping[str, float]) -> None:
        curves, rules = self.curves, self._rules
        assert curves.losses is not None
        loss = self._epoch_loss(run, figures["loss"])
        curves.losses.append(loss)
        curves.epochs += 1
        curves.samples += self._rows
        if rules.verbose:
            print(f"Iteration {curves.epochs}, loss = {loss:.8f}")
        if "val_loss" in figures and curves.validation_losses is not None:
            curves.validation_losses.append(figures["val_loss"])
        self._judge(run, loss)
        if rules.learning_rate == "invscaling":
            curves.rate = rules.rate_after(curves.samples)
        if curves.waited > rules.patience:
            self._give_up(run)

    def _judge(self, run: Training, loss: float) -> None:
        """Count the epochs without improvement, of the score where that decides, else of the loss."""
        curves, rules = self.curves, self._rules
        if self._score is not None and curves.scores is not None:
            score = self._score()
            curves.scores.append(score)
            if rules.verbose:
                print(f"Validation score: {score:f}")
        if rules.keep_best:
            score = curves.scores[-1] if curves.scores else math.nan
            # as there: a score that is NaN is no improvement, though it is not counted as a lack of one
            curves.waited = curves.waited + 1 if score < curves.best_score + rules.tolerance else 0
            if score > curves.best_score:
                curves.best_score = score
                self._best = run.learner.snapshot()
            return
        if curves.scores:
            curves.best_score = max(curves.best_score, curves.scores[-1])
        curves.waited = curves.waited + 1 if loss > curves.best_loss - rules.tolerance else 0
        curves.best_loss = min(curves.best_loss, loss)

    def _give_up(self, run: Training) -> None:
        """Stop, or cut an adaptive rate to a fifth."""
        curves, rules = self.curves, self._rules
        what = "Validation score" if rules.keep_best else "Training loss"
        said = f"{what} did not improve more than tol={rules.tolerance:f} for {rules.patience} consecutive epochs."
        if rules.learning_rate != "adaptive" or curves.rate <= SMALLEST_RATE:
            small = " Learning rate too small." if rules.learning_rate == "adaptive" else ""
            run.stop(f"{said}{small}")
            curves.stopped = True
            ending = f"{small} Stopping."
        else:
            curves.rate /= 5.0
            curves.waited = 0
            ending = f" Setting learning rate to {curves.rate:f}"
        if rules.verbose:
            print(said + ending)

    def on_train_end(self, run: Training) -> None:
        if self._best and not run.failed:
            run.learner.restore(self._best)

    def recovered(self, learner: Learner) -> bool:
        """Give a learner whose training diverged the weights of the best epoch, where one was kept; return whether."""
        if not self._best:
            return False
        learner.restore(self._best)
        assert self.curves.scores is not None
        self.curves.scores.append(math.nan)
        self.curves.stopped = True
        return True
