"""Threads that share one piece of work, made for it alone, and which rows each has of it."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.parallel.tree import cut

LEAST_PIECE, PIECES = 64, 4
"""In how many pieces of how many rows at least a thread has its share: each is multiplied by a copy of the weights that
it makes, and who is interrupted is waited for a piece long."""


class NoThreadError(RuntimeError):
    """A process may have no more threads; no work has begun."""


def on_threads(
    threads: int,
    work: Callable[[int], object],
    *,
    give_up: Callable[[], object] | None = None,
    all_needed: bool = True,
) -> None:
    """Call ``work(t)`` for each t below `threads` at once, t = 0 in this thread; return when all are done.

    Threads are made for each call: that is a twentieth of a millisecond beside calls of many, and leaves no pool behind
    that a fork, another pool around it or the end of the process could trip over.  This thread begins while they start,
    which `threading.Thread` waits for.  What one of them raises is raised here once all have ended, and so is what a
    handler of a signal raises here, wherever that comes.

    Parameters
    ----------
    threads : int
    work : callable
    give_up : callable, optional
        Is called where this thread's work has raised, perhaps before it began: it is to end the others' work, where
        that waits for this one.
    all_needed : bool, optional
        Whether it takes all of them; else a thread that cannot be started is left out.

    Raises
    ------
    NoThreadError
        A thread that is needed cannot be started.
    """
    errors: list[BaseException] = []
    begins, ended = [False], [True] + [False] * (threads - 1)
    starts, ends = ([_thread.allocate_lock() for _ in range(1, threads)] for _ in range(2))

    def run(t: int, start: _thread.LockType, end: _thread.LockType) -> None:
        try:
            start.acquire()
            if begins[0]:
                work(t)
        except BaseException as e:
            errors.append(e)
        finally:
            ended[t] = True  # before: an interrupted wait is begun again, but not for a lock that was had already
            end.release()

    def let_go() -> None:
        if give_up is not None:
            give_up()
        for start in starts:
            if start.locked():
                start.release()

    try:
        for t, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
            start.acquire()
            end.acquire()
            try:
                _thread.start_new_thread(run, (t, start, end))
            except RuntimeError as e:
                if all_needed:
                    raise NoThreadError(*e.args) from e
                ended[t] = True
        begins[0] = True  # only now: each of them is needed, and whoever waits for one that is not there waits for good
        for start in starts:
            start.release()
        work(0)
    except BaseException as e:
        errors.insert(0, e)
        done = False
        while not done:
            try:
                let_go()
                done = True
            except BaseException as later:  # a handler of the user's; the others are to end whatever comes
                errors.insert(0, later)
    for t, end in enumerate(ends, 1):
        while begins[0] and not ended[t]:
            try:
                end.acquire()
            except BaseException as e:  # likewise; they must end their step first
                errors.insert(0, e)
    if errors:
        first = errors[0]
        errors.clear()
        try:
            raise first
        finally:
            del first  # whose frames hold all that was worked on


def on_meeting_threads(
    threads: int, kernel: Callable[..., object], arguments: tuple[Any, ...], arrivals: NDArray[np.int64]
) -> None:
    """Call a kernel that meets at barriers on so many threads, or on this one alone where they cannot be started.

    Parameters
    ----------
    threads : int
    kernel : callable
        Takes the number of a thread, that of all, and `arguments`; its numbers depend on no thread.
    arguments : tuple
    arrivals : (`threads.counters`,) int64
        Those of its barriers; overwritten.
    """
    from fastmlp.kernels.cpu.threads import GIVEN_UP

    def give_up() -> None:
        arrivals[GIVEN_UP] = 1

    arrivals[:] = 0
    try:
        on_threads(threads, lambda t: kernel(t, threads, *arguments), give_up=give_up)
    except NoThreadError:
        on_threads(1, lambda t: kernel(t, 1, *arguments))


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
