"""How many threads work on the parts of a run: as many as it may use, or one where that was measured to be faster.

Threads wait for each other several times a step.  Where other programs want the cores too, one of them is not running
half of the time, and the others wait for it; and where a step is short, to wait takes longer than to work.  The numbers
depend on the parts alone, so the number of threads may change between any two steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

SECONDS = 0.1
"""How long a call lasts: after it the number of threads may change.  Its threads begin with nothing in their caches."""
FIRST_SECONDS = 0.05
"""When the other number is tried for the first time."""
TRIAL_SECONDS = 0.01
"""How long the other number of threads is tried: a few times as long as an operating system lets a program run."""
AGAIN, SOON = 200, 10
"""The other number is tried again once the last trial was one part in so many of the time since.  One thread that has
just taken over tries several much sooner, then twice as late each time: what slowed them down may be over at once, such
as another library's threads that wait for work."""
SLOWER = 1.3
"""How much longer than the best so far a step of several threads may take before one is tried at once."""
PROBE_SECONDS, HOPELESS = 0.0005, 5
"""Before several threads are tried they do what takes one thread so long, some steps or one; where they take so many
times as long, the trial is over: others want the cores.  To start a thread takes up to a millisecond itself."""
FASTER = 0.95
"""What part of the time a step must take with the other number for that to be taken."""


RECENT = 5.0
"""Seconds for which the next session begins as the last one ended: what slows threads down lasts longer than a fit."""

_last_alone = -math.inf
"""When one thread was last tried against several, and was faster."""


class Crew:
    """The number of threads of a session, from call to call.

    Parameters
    ----------
    most : int
        Threads, other than one.
    clock : callable, optional
        Seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.most = most
        self.threads = 1 if clock() < _last_alone + RECENT else most
        self._clock = clock
        self._seconds: dict[int, float] = {}
        """Of a step, when it was last measured, by the number of threads."""
        self._best = math.inf
        self._due = math.inf
        self._promising = False
        self._patience = math.inf

    def calls(self, steps: int) -> Iterator[tuple[int, int]]:
        """Divide steps among calls: yield (threads, steps) for each, and time what is done with it."""
        if self.most == 1:
            yield 1, steps
            return
        while steps:
            threads = self._next()
            count = min(steps, self._count(threads))
            began = self._clock()
            yield threads, count
            now = self._clock()
            self._note(threads, (now - began) / count, now - began, now)
            steps -= count

    def _next(self) -> int:
        known = self._seconds.get(self.threads)
        if known is None:
            return self.threads
        if self.threads > 1 and known > SLOWER * self._best:
            return 1
        # one thread that is interrupted now and then is as good as it was
        due = self._clock() >= self._due
        return self.threads if not due else 1 if self.threads > 1 else self.most

    def _count(self, threads: int) -> int:
        current = self._seconds.get(self.threads)
        if current is None:
            return 1
        if threads == self.threads:
            return max(1, int(SECONDS / current))
        if threads > 1 and not self._promising:
            return max(1, int(PROBE_SECONDS / current))
        return max(1, int(TRIAL_SECONDS / self._seconds.get(threads, self.most * current)))

    def _note(self, threads: int, step: float, call: float, now: float) -> None:
        is_first = self.threads not in self._seconds
        self._seconds[threads] = step
        if threads == self.threads:
            self._best = min(self._best, step)
            if is_first:
                self._due = now + max(FIRST_SECONDS, call)
            return
        if threads > 1 and not self._promising and step < HOPELESS * self._seconds[1]:
            self._promising = True
            return
        self._promising = False
        if step < FASTER * self._seconds[self.threads]:
            self.threads = threads
            self._patience = SOON * call
        _note_alone(now if self.threads == 1 else -math.inf)
        self._best = self._seconds[self.threads]
        self._due = now + (min(self._patience, AGAIN * call) if self.threads == 1 else AGAIN * call)
        self._patience *= 2


class Steady(Crew):
    """A number of threads that stays what it is: for what is timed itself."""

    def calls(self, steps: int) -> Iterator[tuple[int, int]]:
        yield self.most, steps


def _note_alone(now: float) -> None:
    global _last_alone
    _last_alone = now
