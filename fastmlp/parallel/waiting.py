"""A wait that has a limit, and in which Ctrl-C is seen: what is waited for is asked again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from fastmlp.errors import ParallelError

BUSY = 2000
"""How often a wait asks at once, while others that want the core have it; then it sleeps in between."""
NAP = 50e-6


def wait_until(done: Callable[[], bool], rank: int, timeout: float, look: Callable[[], object] | None = None) -> None:
    """Wait for other ranks.

    Parameters
    ----------
    done : callable
        Tells whether they have done what this rank waits for.
    rank : int
        Which waits, for the message.
    timeout : float
        Seconds.
    look : callable, optional
        Called now and then; what it raises ends the wait.

    Raises
    ------
    ParallelError
        They have not, in this time.
    """
    end, asked = time.monotonic() + timeout, 0
    while not done():
        asked += 1
        if asked <= BUSY:
            _let_others()
            continue
        time.sleep(NAP)
        if look is not None:
            look()
        if time.monotonic() > end:
            raise ParallelError(
                f"parallel: rank {rank} has waited {timeout:g} s for the others; all ranks must "
                "make the same calls, or need a longer fastmlp.parallel.mpi(timeout=...)"
            )


def _let_others() -> None:
    """Let another process have the core, where one waits for it."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
