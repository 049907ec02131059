"""Where a training step's time goes: by operation and layer, on any backend, beside the step as it trains."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastmlp.arguments import check_count
from fastmlp.backends.base import Backend
from fastmlp.backends.operations import Operations
from fastmlp.backends.timing import Clock, Span, layers_of_arrays, timed_backend
from fastmlp.engine.batches import Orders, batch_of, check_batch_size, inverse_totals
from fastmlp.engine.feed import feed_of
from fastmlp.engine.sessions import SessionPool
from fastmlp.errors import DataError
from fastmlp.files.chrome_trace import Event, write_trace
from fastmlp.floating import quiet
from fastmlp.formulas.optimizers import Optimizer, choose_optimizer
from fastmlp.model import MLP
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.summary import describe

if TYPE_CHECKING:
    from fastmlp.backends.data import HostData
    from fastmlp.backends.session import Session, StepReport
    from fastmlp.engine.learner import Learner

__all__ = ["OperationTime", "StepProfile", "profile"]

ROUNDS = 5
"""Odd, so that one of them is the median."""
STEP, TRAINED = "step", "train_steps"
"""The spans of a step by single operations, and of a round of steps as they train."""


class OperationTime(NamedTuple):
    """What an operation takes in a layer.

    Attributes
    ----------
    operation : str
        Of `fastmlp.backends.operations.Operations`.
    layer : int or None
        Counted from 0; None for what is of no single layer, such as the loss, or one update of all parameters.
    calls : float
        In a step.
    seconds : float
        Of a step.
    """

    operation: str
    layer: int | None
    calls: float
    seconds: float


@dataclass(frozen=True)
class StepProfile:
    """What `profile` found; ``print`` it.

    Attributes
    ----------
    network : str
    backend : str
    batch, steps : int
        Rows of a step, and steps of a round.
    step_seconds : float
        Of a step as it trains: the median of the rounds.
    composed_seconds : float
        Of the same step as single operations, in the round of median length: the sum of these.
    between_seconds : float
        What such a step takes beside: Python, from one operation to the next, and the clock.
    is_composed : bool
        Whether the step that trains is made of these very operations.
    threads : int
        That the step as it trains may take, where its single operations take one; 1 where both are alike.
    waits : bool
        Whether each operation was waited for, where the backend would only queue it.
    operations : list of OperationTime
        In the order in which they come first in a step; they sum up to `composed_seconds`.
    spans : list of Span
        Of all rounds, of steps as they train too.
    """

    network: str
    backend: str
    batch: int
    steps: int
    step_seconds: float
    composed_seconds: float
    between_seconds: float
    is_composed: bool
    threads: int
    waits: bool
    operations: list[OperationTime]
    spans: list[Span]

    @property
    def layers(self) -> dict[int | None, float]:
        """The seconds of a step by layer, those of no single layer last."""
        found: dict[int | None, float] = {}
        for row in sorted(self.operations, key=lambda row: (row.layer is None, row.layer or 0)):
            found[row.layer] = found.get(row.layer, 0.0) + row.seconds
        return found

    def share(self, seconds: float) -> float:
        """Return a time as a part of that of all operations."""
        return seconds / self.composed_seconds if self.composed_seconds else 0.0

    def notes(self) -> list[str]:
        """Return in words which time is which."""
        own, single, between = (
            f"{s * 1e6:.1f} us" for s in (self.step_seconds, self.composed_seconds, self.between_seconds)
        )
        rounds = f"median of {ROUNDS} rounds of {self.steps} steps"
        beside = f"{single}, and {between} beside for Python and the clock"
        lines = [f"a step of {self.batch} rows as {self.backend} trains: {own} ({rounds})"]
        if self.is_composed:
            lines.append(f"it is made of these very operations: {beside}")
        else:
            lines.append(
                f"no clock can look into it. The operations are those of the same step composed one by one: {beside}. "
                "Their sum is not the step that trains, and their shares need not be its shares"
            )
        if self.threads > 1:
            lines.append(f"the operations take one thread each, the step as it trains up to {self.threads}")
        if self.waits:
            lines.append("each operation is waited for, so that its launch and the wait count as its time")
        return lines

    def table(self) -> list[tuple[str, ...]]:
        """Return the operations as text: operation, layer, calls, microseconds, share."""
        return [
            (
                row.operation,
                "" if row.layer is None else str(row.layer),
                f"{row.calls:g}",
                f"{row.seconds * 1e6:.1f}",
                f"{self.share(row.seconds):.1%}",
            )
            for row in self.operations
        ]

    def __str__(self) -> str:
        cells = [("operation", "layer", "calls", "us", "share"), *self.table()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [f"{self.network}: a training step by single operations"]
        for name, *figures in cells:
            rest = (c.rjust(w) for c, w in zip(figures, widths[1:], strict=True))
            lines.append("  ".join([name.ljust(widths[0]), *rest]))
        return "\n".join([*lines, *self.notes()])

    def to_trace(self, path: str | PathLike[str]) -> None:
        """Write the rounds as a Chrome trace, which chrome://tracing and ui.perfetto.dev show.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        trains, single = f"as {self.backend} trains, {self.steps} steps a bar", "the same steps by single operations"
        events = [
            Event(
                span.name,
                trains if span.name == TRAINED else single,
                span.start,
                span.seconds,
                {} if span.layer is None else {"layer": span.layer},
            )
            for span in self.spans
        ]
        write_trace(path, f"fastmlp, {self.network}", events)


@quiet
def profile(
    model: MLP,
    x: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    batch_size: int | None = None,
    optimizer: Optimizer | str | None = None,
    steps: int = 20,
) -> StepProfile:
    """Time a training step by operation and layer, on the backend that the model is on.

    The step is composed of the backend's single operations, with a clock around each.  On NumPy that is how it trains.
    Where a step is one compiled call, or a CUDA graph, no clock can look into it: then its own time stands beside that
    of the same step composed of single operations, which is longer and has other shares.

    Parameters
    ----------
    model : MLP
        Not changed.
    x, y, sample_weight : array_like
        As for `MLP.fit`.
    batch_size : int, optional
        Rows a step; as for `MLP.fit`.
    optimizer : Optimizer or str, optional
        None: the model's, or ``Adam()``.
    steps : int
        Of each of five rounds; no more than an epoch has whole batches.

    Returns
    -------
    StepProfile
        A row for each operation and layer, in seconds a step; ``print`` it, or write it with `StepProfile.to_trace`.

    Raises
    ------
    DataError
        The loss of these rows is not finite, so that no step is taken.

    Examples
    --------
    >>> import numpy as np, fastmlp
    >>> model = fastmlp.MLP((3, 5, 2), backend="numpy", seed=0)
    >>> found = fastmlp.profile(model, np.eye(3), [0, 1, 1], steps=1)
    >>> [(row.operation, row.layer) for row in found.operations][:3]
    [('gather_rows', None), ('gather_rows', None), ('dense_forward', 0)]
    """
    if not isinstance(model, MLP):
        raise TypeError(f"profile: model must be a fastmlp.MLP (of an estimator its model_), got {model!r}")
    steps, learner = check_count("steps", steps), model._learner
    data = learner.data(x, y, sample_weight, training=True)
    chosen = choose_optimizer(optimizer, learner.state.optimizer)
    plan = Plan(
        learner.spec,
        batch_of(check_batch_size(batch_size), len(data)),
        Precision.of(learner.dtype),
        True,
        chosen.without_schedule(),
    )
    pool = SessionPool(learner.backend)
    with pool.use(plan) as session:
        found = _Rounds(learner, session, data, chosen, steps).run()
    pool.close()
    return found


class _Rounds:
    """The same steps as they train and by single operations, in turn."""

    def __init__(self, learner: Learner, session: Session, data: HostData, optimizer: Optimizer, steps: int) -> None:
        self.backend, self.session, plan = learner.backend, session, session.plan
        self.network = f"MLP({describe(learner.spec, learner.dtype, learner.backend.name, learner.state.key)})"
        self.state = learner.state.copied(self.backend.copy)
        self.state.begin(optimizer, self.backend.zeros, self.backend.copy)
        feed = feed_of(data, self.backend, plan.batch)
        order = Orders(self.state.key, len(data), True, self.backend.asarray).of_epoch(0)
        self.steps = count = min(steps, len(data) // plan.batch, feed.most_steps)
        self.fed = feed.steps(order, 0, count)
        inverse = inverse_totals(data.weights, order.host, plan.batch, 0, count)
        # a schedule may begin at nothing: all steps take its highest rate
        rates = np.full(count, optimizer.schedule.rates(0, count, count, {}).max())
        self.table = optimizer.table(rates, self.state.optimizer_step, inverse, plan.spec.l2_share(inverse))
        self.clock = Clock(self.backend)
        layers = layers_of_arrays(session, self.state, plan.batch)
        self.twin = timed_backend(self.backend, self.clock, layers)
        self.twin._train_step = self.clock.around(STEP, self.twin._train_step)  # type: ignore[method-assign]

    def run(self) -> StepProfile:
        """Carry the rounds out; the operations are those of the one of median length."""
        backend = self.backend
        backend.prepare(self.session, lambda: None)
        trained: list[Span] = []
        composed: list[list[Span]] = []
        for number in range(1 + ROUNDS):
            # what is done once, such as to load a kernel or to capture a graph, is part of a round before the others
            with self.clock.span(TRAINED):
                self._take(type(backend).train_steps, backend)
                backend.synchronize()
            first = self.clock.taken()
            self._take(Backend.train_steps, self.twin)
            if number:
                trained += first
                composed.append(self.clock.taken())
            self.clock.taken()
        median = sorted(composed, key=lambda spans: sum(s.own for s in spans))[ROUNDS // 2]
        rows = _by_operation(median, self.steps)
        is_composed = _is_composed(backend, self.session.plan)
        return StepProfile(
            network=self.network,
            backend=backend.name,
            batch=self.session.plan.batch,
            steps=self.steps,
            step_seconds=float(np.median([s.seconds for s in trained])) / self.steps,
            composed_seconds=sum(row.seconds for row in rows),
            between_seconds=sum(s.own for s in median if s.name == STEP) / self.steps,
            is_composed=is_composed,
            threads=1 if is_composed else getattr(backend, "threads", 1),
            waits=type(backend).synchronize is not Operations.synchronize,
            operations=rows,
            spans=[*trained, *(span for spans in composed for span in spans)],
        )

    def _take(self, train_steps: Callable[..., StepReport], backend: Backend) -> None:
        fed, totals = self.fed, np.zeros(3)
        given = self.session, self.state, fed.data, fed.order, self.table, fed.first, totals
        if not train_steps(backend, *given).finite:
            raise DataError(
                "profile: the loss of these rows is not finite, so that no step is taken; remove missing values, scale "
                "the rows, or lower the learning rate"
            )


def _is_composed(backend: Backend, plan: Plan) -> bool:
    """Return whether the steps of a backend are made of its single operations."""
    own = inspect.unwrap(type(backend).train_steps) is not Backend.train_steps
    return not (own and plan.compiled)  # a function of a user's own is in no kernel


def _by_operation(spans: Sequence[Span], steps: int) -> list[OperationTime]:
    """Return what each operation takes in each layer, a step."""
    found: dict[tuple[str, int | None], tuple[int, float]] = {}
    for span in spans:
        if span.name != STEP:
            calls, seconds = found.get((span.name, span.layer), (0, 0.0))
            found[span.name, span.layer] = calls + 1, seconds + span.own
    return [OperationTime(*key, calls / steps, seconds / steps) for key, (calls, seconds) in found.items()]
