"""Ctrl-C where nothing is at hand that could be lost: while Python imports, and after the last word was said."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


@contextmanager
def leaving_at_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once, with a line: for imports.

    Raised there, KeyboardInterrupt meets code of other libraries that is half initialised, and comes out as an
    ImportError or a SystemError, if at all.
    """
    ours = _is_pythons()
    if ours:
        signal.signal(signal.SIGINT, _say_and_leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def leave_at_the_next() -> None:
    """Let the next Ctrl-C end the process without a word: one was answered, and Python is on its way out."""
    if _is_pythons():
        signal.signal(signal.SIGINT, _leave)


def _is_pythons() -> bool:
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _say_and_leave(signum: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _leave(signum: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
