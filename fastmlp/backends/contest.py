"""Which of several ways to take training steps is the fastest: measured on steps, in turn, for a bounded time.

Products by themselves find their operands in a cache, a step often does not; ways that win alone lose beside each
other; and what a processor or a GPU makes of them no constant says.  So whole steps are timed, on a copy of the state
and on the data that is about to be trained on.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.formulas.optimizers import StepScalars

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.data import DeviceData
    from fastmlp.backends.decisions import Decisions
    from fastmlp.backends.session import Ahead, Session
    from fastmlp.network.state import TrainState

Way = TypeVar("Way")

MOST_SECONDS, LONG_SHARE, SHARE = 0.5, 0.02, 0.2
"""How long a trial lasts at most: so many seconds, or that part of what a long run is expected to take; but no more
than that part of what a short one is."""
SAMPLE_SECONDS = 1e-2
"""How long a sample lasts at least: where the second of two processors sleeps, milliseconds go by until it works."""
ROUNDS, LONG_STEP = 3, SAMPLE_SECONDS
"""Samples of each of two contenders in turn, after one that warms caches; of steps of so many seconds one less."""
HOPELESS = 1.3
"""Who takes so many times as long as the best in the first sample has no other."""
FEWER = 8
"""A way is looked at in a sample of so many times fewer steps first: who takes as long for these is very far behind."""
GAIN = 1.03
"""How much faster than the best so far another has to be, and in each pair of samples it has to be the faster one."""
UNSTEADY = 1.3
"""Where the samples of one way differ by so much, other programs want the cores: then nothing is decided."""
FAR = 1.3
"""But for a way whose slowest sample is so many times as fast as the best of the rule: no other program does that."""
MOST_ROWS = 1 << 16
"""Of the data that a trial reads."""
TINY = 1e-9
"""The learning rate of a trial, which hardly moves the weights: at 0 a BLAS has nothing to compute."""
MOST_TRIALS = 3
"""Of one shape in a process, where they were all unsteady."""

_tried: dict[tuple[Path, str], int] = {}
"""How often nothing could be said of steps, since the machine was busy."""


def is_worth_it(expected: float, least: float) -> bool:
    """Tell whether a run of so many seconds may be worth a trial of two ways, of which a step takes `least` seconds."""
    return SHARE * expected > 2 * (1 + 2 * ROUNDS) * max(SAMPLE_SECONDS, least)


class Contender(Generic[Way]):
    """One way to take a step, ready to be timed.

    Parameters
    ----------
    way : object
        What it is.
    take : callable
        Takes so many steps, and returns their seconds.
    starts : bool, optional
        Whether its first steps start what a run on it would start as well, such as a device with its kernels and
        graphs: they are neither counted nor judged.
    """

    def __init__(self, way: Way, take: Callable[[int], float], *, starts: bool = False) -> None:
        self.way, self.starts = way, starts
        self._take: Callable[[int], float] | None = take
        self.seconds: list[float] = []
        """Of a step, in the samples that count."""
        self.started = 0.0
        """Seconds that went into its start."""

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
    ruled: Contender[Way],
    others: Iterator[Contender[Way]],
    ahead: Ahead,
    clock: Callable[[], float] = time.perf_counter,
) -> Contender[Way] | None:
    """Time contenders in turn and return the fastest; None where nothing can be said.

    The run may be too short for it, or the machine busy.

    Parameters
    ----------
    ruled : Contender
        What is taken where nothing else is faster.
    others : iterator of Contender
        Those that are worth a trial, told one after the other, since what was found meanwhile may say so.
    ahead : Ahead
        The run that is about to begin.
    clock : callable, optional
        Seconds.
    """
    began = clock()
    ruled.sample(1, counts=False)
    step, steps = ruled.sample(1, counts=False), 1
    while steps * step < SAMPLE_SECONDS:
        if not is_worth_it(ahead.expected(step), step):
            return None
        steps *= 2
        step = min(step, ruled.sample(steps, counts=False))  # the first steps of a call wait until threads have begun
    expected = ahead.expected(step)
    limit = min(max(MOST_SECONDS, LONG_SHARE * expected), SHARE * expected) - ahead.tried
    rounds = ROUNDS if step < LONG_STEP else ROUNDS - 1
    few = 1 / (FEWER - 1)  # of a sample, by which one finds who is far behind
    each = step + steps * step * (1 + few + 2 * rounds)  # of a contender, and of the best so far in turn with it
    if clock() - began + 2 * each > limit:
        return None
    best = ruled
    best.sample(steps)
    for other in others:
        start = clock()
        if other.starts:
            try:
                _start(other, steps)
            finally:
                other.started = clock() - start
            began += other.started
            start = clock()
        if start - began + each > limit:
            break
        if not _is_hopeless(other, steps, best.best):
            # in turns: a machine that slows down slows both
            pairs = [(other.sample(steps), best.sample(steps)) for _ in range(rounds)]
            if all(a < b for a, b in pairs) and other.best * GAIN < best.best:
                best, other = other, best
        other.release()
        each = max(each, clock() - start)
    if max(best.seconds) * FAR < ruled.best:
        return best
    return best if best.steady and ruled.steady else None


def _start(other: Contender[Way], steps: int) -> None:
    """Take the first steps, whatever they take, and then up to so many at once, unless these take long.

    Meanwhile graphs are captured, and a device that was idle becomes fast.
    """
    other.sample(1, counts=False)
    count, step = 1, other.sample(1, counts=False)
    while count < steps and count * step < SAMPLE_SECONDS:
        count = min(FEWER * count, steps)
        step = min(step, other.sample(count, counts=False))
    other.sample(count, counts=False)


def _is_hopeless(other: Contender[Way], steps: int, best: float) -> bool:
    """Tell whether a way is far from the best so far; found out in few steps where it is very far."""
    other.sample(1, counts=False)  # which touches its memory for the first time
    few = steps
    while few > FEWER:
        few //= FEWER
    while few < steps:
        if few * other.sample(few, counts=False) > SAMPLE_SECONDS:
            return True
        few *= FEWER
    return other.sample(steps, counts=False) >= HOPELESS * best


def decided(
    made: Decisions,
    key: str,
    rule: Callable[[], Contender[Way]],
    others: Callable[[Contender[Way]], Iterator[Contender[Way]]],
    ahead: Ahead,
    written: Callable[[Way], dict[str, Any]],
) -> tuple[dict[str, Any], Contender[Way], Contender[Way]] | None:
    """Find the fastest way and keep it; return the decision that stands, the contender of the rule, and the fastest.

    None where nothing is decided: the run is too short, the machine is busy, its memory holds no second way, or steps
    cannot be timed; nor without a file, since each process would decide anew, and compute other bits.

    Parameters
    ----------
    made : Decisions
    key : str
        For what this one holds.
    rule : callable
        Makes the contender that is taken where nothing else is faster.
    others : callable
        Takes that contender; see `fastest`.
    ahead : Ahead
        The run that is about to begin.
    written : callable
        Takes a way, and returns what a file says of it.
    """
    if made.path is None or _tried.get((made.path, key), 0) == MOST_TRIALS:
        return None
    with contextlib.suppress(NoStepsError, MemoryError):  # of a contender's memory, which a run has once
        ruled = rule()
        found = fastest(ruled, others(ruled), ahead)
        if found is not None:
            return made.keep(key, written(found.way)), ruled, found
        _tried[made.path, key] = _tried.get((made.path, key), 0) + (len(ruled.seconds) > 0)
    return None


class NoStepsError(Exception):
    """Steps cannot be timed: they do not go on."""


def steps_on(
    backend: Backend, session: Session, state: TrainState, data: DeviceData, table: NDArray[np.float64]
) -> Callable[[int], float]:
    """Return a function that takes so many steps and returns their seconds.

    Parameters
    ----------
    backend : Backend
    session : Session
        The contender's own.
    state : TrainState
        A copy of the run's: it is trained, hardly.
    data : DeviceData
    table : (steps, 6) float64
        Of steps that come next in the run; the one with the most to do stands for all.

    Raises
    ------
    NoStepsError
        By that function: the loss is not finite, or no row counts.
    """
    scalars = StepScalars(*table[np.argmax(table[:, _COLUMNS.index("inverse_total")])].tolist())._replace(rate=TINY)
    batch = min(session.plan.batch, len(data.x))
    # rows from all over the data, always others: in a run they are far from the caches too
    rows = np.random.default_rng(0).integers(0, len(data.x), max(batch, MOST_ROWS // batch * batch))
    batches = len(rows) // batch
    # a call of a run ends with the epoch, but where one call takes several
    several = session.takes_epochs and batch == session.plan.batch
    most = batches if several else len(data.x) // batch
    place = 0

    def take(steps: int) -> float:
        nonlocal place
        if scalars.inverse_total == 0:
            raise NoStepsError
        taken = 0.0
        while steps:
            count = min(steps, batches - place, most)
            order = backend.asarray(rows[place * batch : (place + count) * batch])
            many = np.tile(np.array(scalars), (count, 1))
            backend.synchronize()
            began = time.perf_counter()
            report = backend.train_steps(session, state, data, order, many, 0, np.zeros(3))
            backend.synchronize()
            taken += time.perf_counter() - began
            if not report.finite:
                raise NoStepsError
            place = (place + count) % batches
            steps -= count
        return taken

    return take


_COLUMNS = StepScalars._fields
