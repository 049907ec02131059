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


def on_threads(threads: int, work: Callable[[int], object]) -> None:
    """Call ``work(t)`` for each t below `threads` at once, t = 0 in this thread; return when all are done.

    Threads are made for each call: that is a twentieth of a millisecond beside calls of many, and leaves nothing behind
    that a fork, a nested pool or the end of the process could trip over.  This thread begins while they start, which
    `threading.Thread` waits for.  What one of them raises is raised here once all have ended.
    """
    errors: list[BaseException] = []
    running = [_start(work, t, errors) for t in range(1, threads)]
    try:
        work(0)
    except BaseException as e:
        errors.insert(0, e)
    for ended in running:
        while True:
            try:
                ended.acquire()
                break
            except KeyboardInterrupt as e:  # a handler of the user's; the others must end their step first
                errors.insert(0, e)
    if errors:
        raise errors[0]


def _start(work: Callable[[int], object], t: int, errors: list[BaseException]) -> _thread.LockType:
    """Start a thread; return a lock that can be had when it has ended."""
    ended = _thread.allocate_lock()
    ended.acquire()

    def run() -> None:
        try:
            work(t)
        except BaseException as e:
            errors.append(e)
        finally:
            ended.release()

    _thread.start_new_thread(run, ())
    return ended


def shares_of(rows: int, threads: int, chunk: int) -> tuple[NDArray[np.int64], int]:
    """Return the shares of `kernels.cpu.predict`, (threads, LINE), and how many rows are taken of them at once.

    Parameters
    ----------
    rows : int
    threads : int
        No more than there are runs.
    chunk : int
        Rows at once at most.
    """
    from fastmlp.kernels.cpu.predict import FIRST, LINE, RUN, STOP

    shares = np.zeros((threads, LINE), np.int64)
    if threads == 1:
        shares[0, STOP] = rows
        return shares, chunk
    bounds = np.minimum(np.array(cut(-(-rows // RUN), threads)) * RUN, rows)
    shares[:, FIRST], shares[:, STOP] = bounds[:-1], bounds[1:]
    piece = -(-rows // (threads * PIECES * RUN)) * RUN
    return shares, min(max(piece, LEAST_PIECE), max(chunk // RUN, 1) * RUN)
