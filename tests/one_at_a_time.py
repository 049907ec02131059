"""What several processes of the tests need is made by one of them, and the others wait until it is there."""

import contextlib
import functools
import os
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: there each process makes its own
    fcntl = None


_held = threading.local()  # the files that this thread is alone with


@contextlib.contextmanager
def alone(path):
    """Let in one thread at a time of all processes that name the same file; who is in may come in again."""
    held = vars(_held).setdefault("paths", set())
    if fcntl is None or path in held:  # a second lock of one's own on a file would wait for the first for ever
        yield
        return
    with open(path, "a") as file:  # closing it lets the next one in, however this one ends
        fcntl.flock(file, fcntl.LOCK_EX)
        held.add(path)
        try:
            yield
        finally:
            held.discard(path)


@contextlib.contextmanager
def compiling_alone():
    """Let one of the workers compile a CPU kernel; the others then take it from the cache."""
    from fastmlp.kernels.cpu.compiling import _KernelCache
    from numba.core.dispatcher import Dispatcher

    whole = Dispatcher.compile

    @functools.wraps(whole)
    def compiled(self, signature):
        if not isinstance(self._cache, _KernelCache):  # a part, which is compiled within an entry
            return whole(self, signature)
        folder = Path(self._cache.cache_path)
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / f"{self.py_func.__name__}.lock"):
            return whole(self, signature)

    Dispatcher.compile = compiled
    try:
        yield
    finally:
        Dispatcher.compile = whole


def is_worker():
    """Tell whether this process is one of several that share out the tests."""
    return "PYTEST_XDIST_WORKER" in os.environ
