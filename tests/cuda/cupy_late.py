"""Late work, of the double of CuPy: a device that does what is queued when it likes, and tells nobody of mistakes.

Without it all that is put on a stream is done at once, in the order of the program, and whatever nothing orders is an
error.  Within ``late(seed)`` it waits in its stream until the host waits for it, or earlier: in an order drawn from the
seed among all those that streams and events allow.  Nothing is refused then, as on a GPU: an event that is missing, a
buffer of the host that is filled again too early, memory that is given away while another stream reads it, all change
numbers.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter, deque

import numpy as np

done_with = set()
"""Numbers of the streams that are gone, and all of whose operations the host has waited for."""


class Clock(Counter):
    """For each stream, by its number, how many of its operations are known to be done.

    A stream that is done with is left out: whatever comes later comes after it.  Each launch of a graph makes streams,
    and clocks that named them all would slow down one launch by one.
    """

    def knows(self, stream, count):
        return self[stream] >= count or stream in done_with

    def join(self, other):
        for stream, count in other.items():
            if not self.knows(stream, count):
                self[stream] = count


class _Schedule:
    """What is queued, and in which order it is done."""

    def __init__(self, seed):
        self._random, self._waiting, self._ranks = random.Random(seed), {}, {}
        # how likely something is done when it is queued, and something else when it is not what is waited for
        self._at_once, self._beside = ((0.0, 0.0), (0.0, 1.0), (0.7, 0.5))[seed % 3]

    def put(self, stream, clock, action):
        self._waiting.setdefault(stream, deque()).append((Clock(clock), action))
        while self._random.random() < self._at_once and self._step(None):
            pass

    def wait(self, clock):
        """Do all that a clock knows of and, as it happens, other things."""
        while any(queue[0][0][stream] <= clock[stream] for stream, queue in self._waiting.items()):
            assert self._step(None if self._random.random() < self._beside else clock), "nothing can go on"

    def _step(self, clock):
        """Do one thing that may be done now, of those that a clock knows if one is given; return whether there was."""
        ready = [
            stream
            for stream, queue in self._waiting.items()
            if (clock is None or queue[0][0][stream] <= clock[stream]) and self._free(stream, queue[0][0])
        ]
        if not ready:
            return False
        # one stream is always far ahead of another, else what takes long overtakes nothing (Burckhardt et al. 2010)
        stream = max(ready, key=self._rank) if self._random.random() < 0.9 else self._random.choice(ready)
        _, action = self._waiting[stream].popleft()
        if not self._waiting[stream]:
            del self._waiting[stream]
        _do(action)
        return True

    def _rank(self, stream):
        if stream not in self._ranks:
            self._ranks[stream] = self._random.random()
        return self._ranks[stream]

    def _free(self, stream, after):
        """Return whether all that something comes after is done."""
        return not any(other != stream and queue[0][0][other] <= after[other] for other, queue in self._waiting.items())

    def all(self):
        """Do what is left."""
        while self._step(None):
            pass


_schedule = None


@contextlib.contextmanager
def late(seed):
    """Let the device work late, by this seed, and be silent about mistakes."""
    global _schedule
    assert _schedule is None, "late within late"
    _schedule = _Schedule(seed)
    try:
        yield
        _schedule.all()
    finally:
        _schedule = None


def complains():
    """Return whether what would go wrong on a device is an error."""
    return _schedule is None


def put(stream, clock, action):
    """Do something at once, or queue it as what a clock says of its stream."""
    if _schedule is None:
        _do(action)
    else:
        _schedule.put(stream, clock, action)


def wait(clock):
    """Let all be done that a clock knows of."""
    if _schedule is not None:
        _schedule.wait(clock)


def _do(action):
    with np.errstate(all="ignore"):  # a GPU warns of nothing
        action()
