"""Threads that share one piece of work, made for it alone."""

from __future__ import annotations

import threading
from collections.abc import Callable


def on_threads(threads: int, work: Callable[[int], object]) -> None:
    """Call ``work(t)`` for each t below `threads` at once, t = 0 in this thread; return when all are done.

    Threads are made for each call: that is a tenth of a millisecond beside calls of many, and leaves nothing behind
    that a fork, a nested pool or the end of the process could trip over.
    """
    others = [threading.Thread(target=work, args=(t,), daemon=True) for t in range(1, threads)]
    for thread in others:
        thread.start()
    interrupted = None
    try:
        work(0)
    except KeyboardInterrupt as e:
        interrupted = e
    for thread in others:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt as e:  # a handler of the user's; the others must end their step first
                interrupted = e
    if interrupted is not None:
        raise interrupted
