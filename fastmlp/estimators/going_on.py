"""Training that goes on, by `warm_start` and `partial_fit`: it goes by the parameters as they are now.

What cannot change any more, since the weights are there, is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmlp.arguments import check_dtype
from fastmlp.estimators.parameters import Parameters

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.choosing import BackendChoice
    from fastmlp.engine.learner import Learner
    from fastmlp.estimators.objective import Objective
    from fastmlp.estimators.training import Curves
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.network.spec import NetworkSpec

_ANEW = "use warm_start=False to begin anew"


class Asked(NamedTuple):
    """Parameters that say where a network runs and what it draws, as they were when that was last settled."""

    backend: Any
    n_jobs: int | None
    exact: bool
    random_state: Any


class GoesOn(Parameters):
    """What an estimator does with parameters that have changed since its last training."""

    _learner: Learner
    _curves: Curves
    _optimizer: Optimizer
    _random_state: np.random.RandomState
    _rates: tuple[str, float, float]
    out_activation_: str

    def _objective(self) -> Objective:
        raise NotImplementedError

    def _key(self) -> int:
        """Return a seed of the orders of rows, and of dropout; what is drawn next stays the same."""
        return int(copy.deepcopy(self._random_state).randint(0, 2**62, dtype=np.int64))

    def _asks(self) -> Asked:
        return Asked(self.backend, self.n_jobs, self.exact, self.random_state)

    def _backend_asked(self) -> tuple[Backend, BackendChoice]:
        """Return where a network to come runs, and why, and note what asked for it."""
        self._asked = self._asks()
        return self._chosen_backend()

    def _go_on(self, spec: NetworkSpec) -> None:
        """Train the weights that are there as the parameters now ask, which may have changed."""
        learner, asked, asks = self._learner, self._asked, self._asks()
        self._check_weights_are_theirs(spec)
        if asked[:3] != asks[:3]:
            learner.move(*self._chosen_backend())
        if asked.random_state is not asks.random_state and asked.random_state != asks.random_state:
            learner.state.key = self._key()
        self._asked = asks
        spec = replace(spec, frozen=learner.spec.frozen)
        if spec.loss != learner.spec.loss:
            self.__dict__.pop("_optimizer", None)  # its rates are those for the gradients of another loss
        if spec != learner.spec:
            learner.spec, self.out_activation_ = spec, self._objective().out_activation

    def _check_weights_are_theirs(self, spec: NetworkSpec) -> None:
        """Raise ValueError where parameters ask for other weights than those that training goes on with."""
        learner = self._learner
        if self.dtype is not None and check_dtype(self.dtype) != learner.dtype:
            raise ValueError(
                f"dtype={self.dtype!r}, and the network that training goes on with is of {learner.dtype}; {_ANEW}"
            )
        if self.exact and self._dtype() != learner.dtype:
            raise ValueError(
                f"exact=True computes in {self._dtype()}, and the network that training goes on with is of "
                f"{learner.dtype}; {_ANEW}"
            )
        if spec.initializer != learner.spec.initializer:
            had = learner.spec.initializer
            raise ValueError(
                f"initializer={self.initializer!r} would do nothing: the network that training goes on with has "
                f"weights, which began by {had!r}; {_ANEW}"
            )

    def _settle_optimizer(self, gradient: float, incremental: bool) -> None:
        """Set the optimizer and the rate; its moments are kept by `partial_fit` where it is equal to the last one."""
        curves, rates = self._curves, (self.learning_rate, self.learning_rate_init, self.power_t)
        wanted = self._optimizer_of(curves, gradient)
        goes_on = incremental and getattr(self, "_optimizer", None) == wanted
        if not goes_on:
            self._optimizer = wanted
            self._learner.state.optimizer = None  # its moments begin anew
        if not goes_on or rates != self._rates:
            curves.rate = self._rules(incremental).rate_after(curves.samples if incremental else 0)
        self._rates = rates

    def _undoing(self, incremental: bool) -> Callable[[], None]:
        """Return a function that makes of the estimator what it is now, but for the backend where its network is.

        And but for the steps of `partial_fit`: to copy weights and moments takes longer than a step.
        """
        before, learner = dict(self.__dict__), getattr(self, "_learner", None)
        if not (incremental or self.warm_start):
            learner = None  # it is left alone: training begins with another
        curves: Any = vars(self._curves) if learner is not None else {}
        figures = {name: list(had) if isinstance(had, list) else had for name, had in curves.items()}
        settled = None if learner is None else (learner.spec, learner.rules, learner.state.key, learner.backend)
        kept = None
        if learner is not None and not incremental:
            with learner.backend.working():
                kept = learner.state.copied(learner.backend.copy)

        def undo() -> None:
            if learner is not None and settled is not None:
                learner.spec, learner.rules, learner.state.key, backend = settled
                if kept is not None and learner.backend is backend:
                    learner.state = kept
                elif kept is not None:
                    with backend.working():
                        there = kept.copied(backend.to_numpy)
                    with learner.backend.working():
                        learner.state = there.copied(learner.backend.copy)
                if self._learner is learner:
                    before["_asked"] = self._asked._replace(random_state=before["_asked"].random_state)
            self.__dict__ = before
            curves.update(figures)

        return undo
