"""Which forms the products of a training step take: tried on the run's own steps, once for each shape, and kept."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.contest import Contender, decided, is_worth_it, steps_on
from fastmlp.backends.cpu.calibration import known
from fastmlp.backends.cpu.choices import STEPS, decisions, named

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.cpu.session import NumbaSession
    from fastmlp.backends.data import DeviceData
    from fastmlp.backends.session import Ahead
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState

_log = logging.getLogger("fastmlp")


def decide(
    backend: Backend,
    session: NumbaSession,
    state: TrainState,
    data: DeviceData,
    table: NDArray[np.float64],
    ahead: Ahead,
) -> bool:
    """Try forms of products on steps like those of this run; tell whether something is decided.

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
    ahead : Ahead
        What is left of the run.
    """
    plan = session.plan
    step = session.seconds_per_step or _expected_step(plan, session.chosen.most)
    if not is_worth_it(ahead.expected(step), step):  # said in no time: most runs are short
        return False
    copied = functools.cache(lambda: state.copied(backend.copy))

    def make(way: FormsAndParts) -> Contender[FormsAndParts]:
        return _contender(backend, plan, copied(), data, table, way)

    found = decided(
        decisions(STEPS, plan.precision.products),
        session.chosen.key,
        lambda: make(FormsAndParts(session.chosen.forms, session.chosen.parts)),
        lambda ruled: _others(ruled, make, session),
        ahead,
        lambda way: {"products": named(way.forms), "parts": way.parts},
    )
    if found is None:
        return False
    decision, ruled, best = found
    _log.info(
        "numba: a step takes %.4g ms by the rule and %.4g ms as steps are taken now: %s, in %d parts",
        *(1e3 * ruled.best, 1e3 * best.best, decision["products"], decision["parts"]),
    )
    return True


def _expected_step(plan: Plan, threads: int) -> float:
    """Return the seconds that a step may take, by the rate of a small product; 0 where it is unknown."""
    found = known(plan.precision.products)
    operations = 6.0 * plan.batch * sum(i * o for i, o in itertools.pairwise(plan.spec.units))
    return 0.0 if found is None else operations / (found.rate * threads)


class FormsAndParts(NamedTuple):
    """How a step is taken, see `Choices`."""

    forms: NDArray[np.int64]
    parts: int

    def same(self, other: FormsAndParts) -> bool:
        """Tell whether the other is the same."""
        return self.parts == other.parts and bool((self.forms == other.forms).all())


def _contender(
    backend: Backend,
    plan: Plan,
    state: TrainState,
    data: DeviceData,
    table: NDArray[np.float64],
    way: FormsAndParts,
) -> Contender[FormsAndParts]:
    """Return a contender in a session of its own; what it trains is the state that it is given."""
    session = cast("NumbaSession", backend.open(plan))
    session.chosen.fix(*way)
    return Contender(way, steps_on(backend, session, state, data, table))


def _others(
    ruled: Contender[FormsAndParts], make: Callable[[FormsAndParts], Contender[FormsAndParts]], session: NumbaSession
) -> Iterator[Contender[FormsAndParts]]:
    """Yield what may be faster than the rule: other parts, then one form for all products, then others for a layer."""
    from fastmlp.kernels.cpu.products import available_forms

    tried = [ruled]

    def trial(forms: NDArray[np.int64], parts: int) -> Iterator[Contender[FormsAndParts]]:
        way = FormsAndParts(forms, parts)
        if not any(way.same(c.way) for c in tried):
            tried.append(make(way))
            yield tried[-1]

    def best() -> FormsAndParts:
        return min(tried, key=lambda c: c.best).way

    chosen = session.chosen
    for parts in _numbers_of_parts(ruled.way.parts, chosen.most, chosen.most_parts, lambda: best().parts):
        yield from trial(chosen.forms_in(parts), parts)
    for form in available_forms():
        yield from trial(np.full_like(ruled.way.forms, form), best().parts)
    units = session.plan.spec.units
    for layer in sorted(range(len(units) - 1), key=lambda k: -units[k] * units[k + 1]):
        for form in available_forms():
            forms = best().forms.copy()
            forms[layer] = form
            yield from trial(forms, best().parts)


def _numbers_of_parts(parts: int, threads: int, finest: int, best: Callable[[], int]) -> Iterator[int]:
    """Yield half as many, then half of those, as long as that is the best; then, if none was, twice as many, and so on.

    What threads cost and earn grows steadily with their number, so what lies beyond a worse one is not looked at.  More
    parts than threads are another thing: they cost up to a tenth where cores are equally fast, and where some are
    slower, or another program has one, those do fewer of them.  So twice as many as threads are tried whatever was
    found, and twice as many again where they were the best.

    Parameters
    ----------
    parts : int
        By the rule.
    threads, finest : int
        How many threads there are, and into how many parts steps may be divided.
    best : callable
        Returns the number of parts that is the best so far.
    """
    fewer = parts
    while fewer > 1 and best() == fewer:
        fewer //= 2
        yield fewer
    more = parts
    while more < threads and best() == more:
        more = min(2 * more, threads)
        yield more
    finer = threads
    while 2 * finer <= finest and (finer == threads or best() == finer):
        finer *= 2
        yield finer
