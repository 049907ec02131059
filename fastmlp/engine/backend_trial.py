"""Which backend a long run on "auto" takes: the same steps on each that is a candidate, timed, and the faster one kept.

Only where another backend than the first choice could win is anything timed: on a GPU whose self-test has passed.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.choosing import BackendChoice, get_backend
from fastmlp.backends.contest import MOST_ROWS, Contender, NoStepsError, fastest, steps_on
from fastmlp.backends.decisions import steps_key
from fastmlp.backends.registry import available_backends, rivals
from fastmlp.errors import BackendUnavailable, KernelError

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.data import HostData
    from fastmlp.engine.learner import Learner
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.network.plan import Plan

_log = logging.getLogger("fastmlp")

SHORT_RUN = 2.0
"""Seconds that a run has to be expected to take at least, that a GPU is started at all."""
_took: dict[str, float] = {}
"""Seconds of a step where the run was short, so that many short ones, such as of `partial_fit`, take steps once."""
BACKENDS = "backends"
"""The first part of the name of the file that keeps what was decided."""


def settle(learner: Learner, data: HostData, optimizer: Optimizer, batch: int, steps: int) -> None:
    """Move a learner on "auto" to the backend on which so many steps are the fastest, if that is another one.

    Parameters
    ----------
    learner : Learner
        Its weights are those that it had; ``learner.choice`` tells what was chosen, and why.
    data : HostData
    optimizer : Optimizer
    batch : int
        Rows of a step.
    steps : int
        Of the run that is about to begin.
    """
    if not learner.choice.left_open or not isinstance(data.x, np.ndarray):
        return
    names, why_not = rivals()
    if not names:
        learner.choice = _noted(learner.choice, why_not)
        return
    plan, dtype = learner.plan(batch, optimizer), learner.dtype
    machines = [f"{n} on {available_backends()[n].reason}" for n in names]
    key = f"{steps_key(plan)}: {learner.choice.name} or {', '.join(machines)}"
    made, candidates = learner.backend.decisions(BACKENDS, dtype), {learner.choice.name, *names}
    chosen = _of_kept(made.all().get(key, {}), candidates)
    if chosen is None:
        if steps * _took.get(key, math.inf) < SHORT_RUN:
            return
        chosen = _tried(learner, names, data, optimizer, plan, steps, key)
        if chosen is None:
            return
        stands = made.keep(key, {"backend": chosen.name, "seconds": dict(chosen.seconds)})
        chosen = _of_kept(stands, candidates) or chosen
    if chosen.name == learner.backend.name:
        learner.choice = chosen
    else:
        learner.move(get_backend(chosen.name), chosen)
    _log.info("backend 'auto' is %s", chosen)


def _of_kept(kept: dict[str, object], names: set[str]) -> BackendChoice | None:
    """Return a choice as it was written down; None where it makes no sense here."""
    seconds = kept.get("seconds")
    if kept.get("backend") not in names or not isinstance(seconds, dict) or not seconds:
        return None
    if not all(isinstance(s, float) and math.isfinite(s) for s in seconds.values()):
        return None
    return _of_seconds(str(kept["backend"]), {str(n): float(s) for n, s in seconds.items()})


def _of_seconds(name: str, seconds: dict[str, float]) -> BackendChoice:
    figures = ", ".join(f"{1e3 * s:.4g} ms on {n}" for n, s in seconds.items())
    return BackendChoice(name, f"a step takes {figures}", left_open=True, seconds=seconds)


def _noted(choice: BackendChoice, why_not: str) -> BackendChoice:
    if not why_not or why_not in choice.why:
        return choice
    return BackendChoice(choice.name, f"{choice.why}; {why_not}", left_open=True)


def _tried(
    learner: Learner, names: list[str], data: HostData, optimizer: Optimizer, plan: Plan, steps: int, key: str
) -> BackendChoice | None:
    """Time steps of a run on each backend; None where nothing can be said."""
    rows, inverse = data.window(slice(0, MOST_ROWS)), np.array([1.0 / plan.batch])
    table = optimizer.table(np.array([1.0]), 0, inverse, learner.spec.l2_share(inverse))
    reached: list[Contender[Backend]] = []

    def others() -> Iterator[Contender[Backend]]:
        for name in names:
            reached.append(_contender(learner, get_backend(name), rows, optimizer, plan, table))
            yield reached[-1]

    try:
        here = _contender(learner, learner.backend, rows, optimizer, plan, table)
        here.sample(1, counts=False)
        _took[key] = here.sample(1, counts=False)
        if _took[key] * steps < SHORT_RUN:
            return None
        found = fastest(here, others(), steps)
    except NoStepsError:
        return None
    if found is None:
        return None
    return _of_seconds(found.way.name, {c.way.name: c.best for c in [here, *reached] if math.isfinite(c.best)})


def _contender(
    learner: Learner,
    backend: Backend,
    data: HostData,
    optimizer: Optimizer,
    plan: Plan,
    table: NDArray[np.float64],
) -> Contender[Backend]:
    """Return steps of this run on copies of what they change, on some backend."""
    host = learner.state.copied(learner.backend.to_numpy)
    with _telling(learner, backend), backend.working():
        state = host.copied(backend.copy)
        state.begin(optimizer, backend.zeros, backend.copy)
        take_steps = steps_on(backend, backend.open(plan), state, data.on(backend.asarray), table)

    def take(steps: int) -> float:
        with _telling(learner, backend), backend.working():
            return take_steps(steps)

    return Contender(backend, take)


@contextlib.contextmanager
def _telling(learner: Learner, backend: Backend) -> Iterator[None]:
    """Tell of a candidate that fails; the run goes on without it, and another one may try it again."""
    try:
        yield
    except (BackendUnavailable, KernelError, MemoryError) as e:
        if backend is not learner.backend:
            _log.warning("backend 'auto' stays with %s this time: %s", learner.backend.name, e)
        raise NoStepsError from e
