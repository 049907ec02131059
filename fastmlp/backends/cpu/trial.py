"""Which forms the products of a training step take: tried on the run's own steps, once for each shape, and kept.

Products timed by themselves find their operands in a cache, a whole step often does not, and forms that win alone lose
beside each other: so steps are timed, on a copy of the state and on the data that is about to be trained on.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cpu.choices import named
from fastmlp.backends.cpu.decisions import Decision, can_be_kept, keep, key_of

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.cpu.session import NumbaSession
    from fastmlp.backends.data import DeviceData
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState

_log = logging.getLogger("fastmlp")

MOST_SECONDS, LONG_SHARE, SHARE = 0.5, 0.02, 0.2
"""How long a trial lasts at most: so many seconds, or that part of what a long run is expected to take; but no more
than that part of what a short one is."""
MOST_ROWS = 1 << 16
"""Of the data that a trial reads."""
SAMPLE_SECONDS = 2e-3
"""How long a sample lasts at least: twenty times what it takes to start a thread."""
ROUNDS, LONG_STEP = 3, 1e-2
"""Samples of each of two contenders in turn, after one that warms caches; of steps of so many seconds one less."""
HOPELESS = 1.3
"""Who takes so many times as long as the best in the first sample has no other."""
GAIN = 1.03
"""How much faster than the best so far another has to be, and in each pair of samples it has to be the faster one."""
SLOWEST, LONGEST_OVERHEAD = 5e9, 2e-5
"""Operations a second and seconds beside them, with which no processor takes longer for a step."""
UNSTEADY = 1.3
"""Where the samples of one way differ by so much, other programs want the cores: then nothing is decided."""
MOST_TRIALS = 3
"""Of one shape in a process, where they were all unsteady."""
TINY = 1e-9
"""The learning rate of a trial: at 0 a BLAS has nothing to compute."""


_tried: dict[str, int] = {}
"""How often nothing could be said of steps, since the machine was busy."""


def may_be_worth_it(plan: Plan, expected_steps: int) -> bool:
    """Tell, in no time, whether a run may be long enough for a trial of its steps."""
    operations = 6.0 * plan.batch * sum(i * o for i, o in itertools.pairwise(plan.spec.units))
    step = operations / SLOWEST + LONGEST_OVERHEAD
    return SHARE * expected_steps * step > 2 * (1 + 2 * ROUNDS) * SAMPLE_SECONDS


class Contender:
    """One way to take a step, ready to be timed.

    Parameters
    ----------
    forms, parts : array and int
        See `Choices`.
    take : callable
        Takes so many steps, and returns their seconds.
    """

    def __init__(self, forms: NDArray[np.int64], parts: int, take: Callable[[int], float]) -> None:
        self.forms, self.parts = forms, parts
        self._take: Callable[[int], float] | None = take
        self.seconds: list[float] = []
        """Of a step, in the samples that count."""

    @property
    def best(self) -> float:
        """The least seconds of a step."""
        return min(self.seconds, default=math.inf)

    @property
    def steady(self) -> bool:
        """Whether the samples are alike."""
        return max(self.seconds) < UNSTEADY * min(self.seconds)

    def sample(self, steps: int, *, counts: bool = True) -> float:
        """Take steps; return the seconds of one."""
        assert self._take is not None
        seconds = self._take(steps) / steps
        if counts:
            self.seconds.append(seconds)
        return seconds

    def release(self) -> None:
        """Let go of the memory that steps were taken in."""
        self._take = None


def fastest(
    ruled: Contender, others: Iterator[Contender], expected_steps: int, clock: Callable[[], float] = time.perf_counter
) -> Contender | None:
    """Time contenders in turn and return the fastest; None where nothing can be said.

    The run may be too short for it, or the machine busy.

    Parameters
    ----------
    ruled : Contender
        What is taken where nothing else is faster.
    others : iterator of Contender
        Those that are worth a trial, told one after the other, since what was found meanwhile may say so.
    expected_steps : int
        Of the run.
    clock : callable, optional
        Seconds.
    """
    began = clock()
    ruled.sample(1, counts=False)
    step = ruled.sample(1, counts=False)
    expected = expected_steps * step
    limit = min(max(MOST_SECONDS, LONG_SHARE * expected), SHARE * expected)
    steps = max(1, math.ceil(SAMPLE_SECONDS / step))
    rounds = ROUNDS if step < LONG_STEP else ROUNDS - 1
    each = steps * step * (1 + 2 * rounds)  # of a contender, and of the best so far in turn with it
    if clock() - began + 2 * each > limit:
        return None
    best = ruled
    best.sample(steps)
    for other in others:
        if clock() - began + each > limit:
            break
        if other.sample(steps, counts=False) < HOPELESS * best.best:
            # in turns: a machine that slows down slows both
            pairs = [(other.sample(steps), best.sample(steps)) for _ in range(rounds)]
            if all(a < b for a, b in pairs) and other.best * GAIN < best.best:
                best, other = other, best
        other.release()
    return best if best.steady and ruled.steady else None


def decide(
    backend: Backend,
    session: NumbaSession,
    state: TrainState,
    data: DeviceData,
    table: NDArray[np.float64],
    expected_steps: int,
) -> Decision | None:
    """Try forms of products on steps like those of this run; return what stands, None where it is left to the rule.

    Parameters
    ----------
    backend : Backend
    session : NumbaSession
        Which asks.
    state : TrainState
        Copied, not changed.
    data : DeviceData
    table : (steps, 6) float64
        Of the steps that come next.
    expected_steps : int
        Of the whole run.
    """
    plan = session.plan
    if not may_be_worth_it(plan, expected_steps):
        return None
    dtype, key = plan.precision.products, key_of(plan, session.chosen.most)
    scalars = table[np.argmax(table[:, _column("inverse_total")])]
    if not can_be_kept(dtype) or scalars[_column("inverse_total")] == 0 or _tried.get(key, 0) == MOST_TRIALS:
        return None
    with contextlib.suppress(_NoTrialError, MemoryError):  # of a contender's memory, which a run has once
        make = functools.partial(_contender, backend, plan, state.copied(backend.copy), data, scalars)
        ruled = make(session.chosen.forms, session.chosen.parts)
        found = fastest(ruled, _others(ruled, make, session), expected_steps)
        if found is None:
            _tried[key] = _tried.get(key, 0) + (len(ruled.seconds) > 0)
            return None
        decision = keep(key, Decision(named(found.forms), found.parts), dtype)
        _log.info(
            "numba: a step takes %.4g ms by the rule and %.4g ms as steps are taken now: %s, in %d parts",
            *(1e3 * ruled.best, 1e3 * found.best, decision.products, decision.parts),
        )
        return decision
    return None


class _NoTrialError(Exception):
    """Steps cannot be timed: they do not go on."""


def _contender(
    backend: Backend,
    plan: Plan,
    state: TrainState,
    data: DeviceData,
    scalars: NDArray[np.float64],
    forms: NDArray[np.int64],
    parts: int,
) -> Contender:
    """Return a contender in a session of its own; what it trains is the state that it is given."""
    session = cast("NumbaSession", backend.open(plan))
    session.chosen.fix(forms, parts)
    # rows from all over the data, always others: in a run they are far from the caches too
    rows = np.random.default_rng(0).integers(0, len(data.x), max(plan.batch, MOST_ROWS // plan.batch * plan.batch))
    batches = len(rows) // plan.batch
    place = 0

    def take(steps: int) -> float:
        nonlocal place
        taken = 0.0
        while steps:
            count = min(steps, batches - place)
            order = rows[place * plan.batch : (place + count) * plan.batch]
            began = time.perf_counter()
            report = backend.train_steps(session, state, data, order, _steps(scalars, count), 0, np.zeros(3))
            taken += time.perf_counter() - began
            if not report.finite:
                raise _NoTrialError
            place = (place + count) % batches
            steps -= count
        return taken

    return Contender(forms, parts, take)


def _others(
    ruled: Contender, make: Callable[[NDArray[np.int64], int], Contender], session: NumbaSession
) -> Iterator[Contender]:
    """Yield what may be faster than the rule: one form for all products, then others for one layer, or other parts."""
    from fastmlp.kernels.cpu.products import available_forms

    tried: list[Contender] = [ruled]

    def trial(forms: NDArray[np.int64], parts: int) -> Iterator[Contender]:
        if not any(parts == c.parts and (forms == c.forms).all() for c in tried):
            tried.append(make(forms, parts))
            yield tried[-1]

    def best() -> Contender:
        return min(tried, key=lambda c: c.best)

    for form in available_forms():
        yield from trial(np.full_like(ruled.forms, form), ruled.parts)
    for parts in {1, session.chosen.most} - {ruled.parts}:
        yield from trial(best().forms, parts)
    units = session.plan.spec.units
    for layer in sorted(range(len(ruled.forms)), key=lambda k: -units[k] * units[k + 1]):
        for form in available_forms():
            forms = best().forms.copy()
            forms[layer] = form
            yield from trial(forms, best().parts)


def _steps(scalars: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return a table of steps that hardly move the weights, which would otherwise leave those of a run."""
    table = np.repeat(scalars[None], count, axis=0)
    table[:, _column("rate")] = TINY
    return table


def _column(name: str) -> int:
    from fastmlp.kernels.cpu import codes

    return int(codes.STEP_SCALARS.index(name))
