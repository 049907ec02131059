"""Which backend a long run on "auto" takes: the same steps on each that is a candidate, timed, and the faster one kept.

Only where another backend than the first choice could win is anything timed: on a GPU whose self-test has passed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.choosing import BackendChoice, get_backend
from fastmlp.backends.contest import MOST_ROWS, Contender, NoStepsError, fastest, steps_on
from fastmlp.backends.decisions import steps_key
from fastmlp.backends.registry import available_backends, first_choice, rivals
from fastmlp.backends.session import Ahead
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
_took: dict[tuple[str, str], float] = {}
"""Seconds of a step, by its name and the backend's, where the run was short: so many short ones, such as of
`partial_fit`, take steps once."""
BACKENDS = "backends"
"""The first part of the name of the file that keeps what was decided."""


def settle(learner: Learner, data: HostData, optimizer: Optimizer, batch: int, ahead: Ahead) -> float:
    """Move a learner on "auto" to the backend on which the steps ahead are the fastest, if that is another one.

    Returns the seconds that went into it.  What a device needs before its first steps is not among them: its driver,
    kernels and graphs are loaded once in a process, and a run on it waits for them as well.

    Parameters
    ----------
    learner : Learner
        Its weights are those that it had; ``learner.choice`` tells what was chosen, and why.
    data : HostData
    optimizer : Optimizer
    batch : int
        Rows of a step.
    ahead : Ahead
        The run that is about to begin.
    """
    if not learner.choice.left_open or not isinstance(data.x, np.ndarray):
        return 0.0
    names, why_not = rivals()
    if not names:
        learner.choice = _noted(learner.choice, why_not)
        return 0.0
    first, plan, devices = first_choice()[0], learner.plan(batch, optimizer), names
    names = list(dict.fromkeys((first, learner.backend.name, *names)))  # whichever of them it is on by now
    key = f"{steps_key(plan)}: {' or '.join(_with_machine(name) for name in names)}"
    made, took = get_backend(first).decisions(BACKENDS, learner.dtype), 0.0
    chosen = _of_kept(made.all().get(key, {}), names)
    if chosen is None:
        if ahead.expected(_took.get((key, learner.backend.name), math.inf)) < SHORT_RUN:
            return 0.0
        chosen, took = _tried(learner, names, devices, data, optimizer, plan, ahead, key)
        if chosen is None:
            return took
        stands = made.keep(key, {"backend": chosen.name, "seconds": dict(chosen.seconds)})
        chosen = _of_kept(stands, names) or chosen
    if chosen.name == learner.backend.name:
        learner.choice = chosen
    else:
        learner.move(get_backend(chosen.name), chosen)
    _log.info("backend 'auto' is %s", chosen)
    return took


def _with_machine(name: str) -> str:
    """Return the name of a backend with what it runs on, where that is not the processor."""
    runs_on = available_backends()[name].reason
    return f"{name} on {runs_on}" if runs_on else name


def _of_kept(kept: dict[str, object], names: Collection[str]) -> BackendChoice | None:
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
    learner: Learner,
    names: list[str],
    devices: list[str],
    data: HostData,
    optimizer: Optimizer,
    plan: Plan,
    ahead: Ahead,
    key: str,
) -> tuple[BackendChoice | None, float]:
    """Time steps of a run on each backend; return what is to be taken, if anything can be said, and the seconds."""
    rows, inverse = data.window(slice(0, MOST_ROWS)), np.array([1.0 / plan.batch])
    table = optimizer.table(np.array([1.0]), 0, inverse, learner.spec.l2_share(inverse))
    began, current = time.perf_counter(), learner.backend.name
    given = rows, optimizer, plan, table
    all_of_them = [_contender(learner, name, *given, starts=name in devices) for name in names]
    here = next(c for c in all_of_them if c.way == current)
    found = None
    with contextlib.suppress(NoStepsError):
        here.sample(1, counts=False)
        step = _took[key, current] = here.sample(1, counts=False)
        if ahead.expected(step) >= SHORT_RUN:
            found = fastest(here, (c for c in all_of_them if c is not here), ahead)
    took = time.perf_counter() - began - sum(c.started for c in all_of_them)
    if found is None:
        return None, took
    return _of_seconds(found.way, {c.way: c.best for c in all_of_them if math.isfinite(c.best)}), took


def _contender(
    learner: Learner,
    name: str,
    data: HostData,
    optimizer: Optimizer,
    plan: Plan,
    table: NDArray[np.float64],
    *,
    starts: bool,
) -> Contender[str]:
    """Return steps of this run on copies of what they change, on some backend, which is not asked for before."""
    is_here = name == learner.backend.name

    @functools.cache
    def made() -> tuple[Backend, Callable[[int], float]]:
        backend = learner.backend if is_here else get_backend(name)
        host = learner.state.copied(learner.backend.to_numpy)
        with backend.working():
            state = host.copied(backend.copy)
            state.begin(optimizer, backend.zeros, backend.copy)
            return backend, steps_on(backend, backend.open(plan), state, data.on(backend.asarray), table)

    def take(steps: int) -> float:
        try:
            backend, take_steps = made()
            with backend.working():
                return take_steps(steps)
        except (BackendUnavailable, KernelError, MemoryError) as e:
            if not is_here:  # the run goes on without it, and another one may try it again
                _log.warning("backend 'auto' stays with %s this time: %s", learner.backend.name, e)
            raise NoStepsError from e

    return Contender(name, take, starts=starts and not is_here)
