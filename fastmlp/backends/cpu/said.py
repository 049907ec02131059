"""What is said of a wait for the compiler, and of one for a measurement."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_log = logging.getLogger("fastmlp")

LONG_SECONDS = 1.5
"""Of a wait for the compiler, after which its reason is said; reading compiled code takes a third of a second."""


@contextmanager
def said_if_it_takes_long(what: str) -> Iterator[None]:
    """Say that kernels are compiled, once it is clear that they are not just read from the cache."""
    from fastmlp.kernels.cpu.kept import cache_folder

    how_often = "once on this machine (`fastmlp warmup` does it ahead)"
    if cache_folder() is None:
        how_often = "in each process, since no cache folder can be written: set NUMBA_CACHE_DIR"
    notice = threading.Timer(LONG_SECONDS, _log.warning, ("%s, %s", what, how_often))
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()
