"""Threads that share one piece of work, made for it alone, and which rows each has of it."""

from __future__ import annotations

import _thread
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastmlp.parallel.tree import cut

LEAST_PIECE, PIECES = 64, 4
"""In how many pieces of how many rows at least a thread has its share: each is multiplied by a copy of the weights that
it makes, and who is interrupted is waited for a piece long."""


def on_threads(threads: int, work: Callable[[int], object], *, all_needed: bool = True) -> None:
    """Call ``work(t)`` for each t below `threads` at once, t = 0 in this thread; return when all are done.

    Threads are made for each call: that is a twentieth of a millisecond beside calls of many, and leaves no pool behind
    that a fork, another pool around it or the end of the process could trip over.  This thread begins while they start,
    which `threading.Thread` waits for.  What one of them raises is raised here once all have ended.

    Parameters
    ----------
    threads : int
    work : callable
    all_needed : bool, optional
        Whether it takes all of them; else a thread that cannot be started, where a process may have no more, is left
        out.
    """
    errors: list[BaseException] = []
    ended, locks = [True] + [False] * (threads - 1), [_thread.allocate_lock() for _ in range(1, threads)]

    def run(t: int, lock: _thread.LockType) -> None:
        try:
            work(t)
        except BaseException as e:
            errors.append(e)
        finally:
            ended[t] = True  # before: an interrupted wait is begun again, but not for a lock that was had already
            lock.release()

    for t, lock in enumerate(locks, 1):
        lock.acquire()
        try:
            _thread.start_new_thread(run, (t, lock))
        except RuntimeError:
            if all_needed:
                raise
            ended[t] = True
    try:
        work(0)
    except BaseException as e:
        errors.insert(0, e)
    for t, lock in enumerate(locks, 1):
        while not ended[t]:
            try:
                lock.acquire()
            except KeyboardInterrupt as e:  # a handler of the user's; the others must end their step first
                errors.insert(0, e)
    if errors:
        first = errors[0]
        errors.clear()
        try:
            raise first
        finally:
            del first  # whose frames hold all that was worked on


def shares_of(rows: int, threads: int, chunk: int) -> tuple[NDArray[np.int64], int]:
    """Return the shares of `kernels.cpu.predict`, (threads, LINE), and how many rows are taken of them at once.

    Parameters
    ----------
    rows : int
    threads : int
        No more than there are runs.
    chunk : int
        Rows at once at most, `RUN` or more.
    """
    from fastmlp.kernels.cpu.predict import FIRST, LINE, RUN, STOP

    shares = np.zeros((threads, LINE), np.int64)
    if threads == 1:
        shares[0, STOP] = rows
        return shares, chunk
    bounds = np.minimum(np.array(cut(-(-rows // RUN), threads)) * RUN, rows)
    shares[:, FIRST], shares[:, STOP] = bounds[:-1], bounds[1:]
    piece = -(-rows // (threads * PIECES * RUN)) * RUN
    return shares, min(max(piece, LEAST_PIECE), chunk // RUN * RUN)
