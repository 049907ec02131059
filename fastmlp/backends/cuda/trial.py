"""Whether captured or eager steps are the faster: tried on a run's own steps, once for a shape of a GPU, and kept."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.contest import SAMPLE_SECONDS, Contender, decided, is_worth_it, steps_on
from fastmlp.backends.cuda.choice import STEPS, kept_way, other_way, step_operations
from fastmlp.backends.cuda.step import GRAPH_STEPS
from fastmlp.backends.decisions import steps_key

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.data import DeviceData
    from fastmlp.backends.session import Ahead
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState

_log = logging.getLogger("fastmlp")


class SessionOfWays(Protocol):
    """What a session has that takes steps in one of two ways."""

    plan: Plan
    seconds_per_step: float

    @property
    def way(self) -> str:
        """The way that its steps run."""

    def fix(self, way: str) -> None:
        """Let its steps run in this way from now on."""


def decide(
    backend: Backend,
    session: SessionOfWays,
    state: TrainState,
    data: DeviceData,
    table: NDArray[np.float64],
    ahead: Ahead,
) -> str | None:
    """Return the way that is the faster for steps like those of this run; None where nothing is decided.

    Parameters
    ----------
    backend : Backend
    session : SessionOfWays
        Which asks; the way that it has is the rule's.
    state : TrainState
        Copied, not changed.
    data : DeviceData
    table : (steps, 6) float64
        Of the steps that come next.
    ahead : Ahead
        What is left of the run.
    """
    plan, rule = session.plan, session.way
    made = backend.decisions(STEPS, plan.precision.products)
    found = kept_way(made, plan)
    if found is not None:  # by another model, or another process
        return found
    # where nothing is known of a step, it lasts as long as a sample: of longer ones a trial takes as many
    step = session.seconds_per_step or SAMPLE_SECONDS
    if not is_worth_it(ahead.expected(step), step):
        return None
    copied = functools.cache(lambda: state.copied(backend.copy))

    def make(way: str) -> Contender[str]:
        contending = backend.open(plan)
        cast("SessionOfWays", contending).fix(way)
        return Contender(way, steps_on(backend, contending, copied(), data, table))

    def other(_: Contender[str]) -> Iterator[Contender[str]]:
        contender = make(other_way(rule))
        for steps in (1, GRAPH_STEPS):  # captures what is captured once in a run
            contender.sample(steps, counts=False)
        yield contender

    ruling = decided(made, steps_key(plan), lambda: make(rule), other, ahead, lambda way: {"way": way})
    if ruling is None:
        return None
    decision, ruled, best = ruling
    _log.info(
        "cupy: a step of %.3g operations takes %.4g ms by the rule, %s, and %.4g ms as steps are taken now: %s",
        *(step_operations(plan), 1e3 * ruled.best, rule, 1e3 * best.best, decision["way"]),
    )
    return kept_way(made, plan)
