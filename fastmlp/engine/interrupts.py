"""Ctrl-C while training runs: noted, so that the step at hand ends whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class CtrlC:
    """Notes Ctrl-C while it is entered; a second one interrupts at once.

    Only where Python's own handler is in place and this is the main thread: elsewhere signals are someone else's.
    Within a run whose callback trains a model, what the outer run notes ends both.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._installed = False
        self._around: CtrlC | None = None

    def __enter__(self) -> CtrlC:
        main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGINT) if main else None
        if handler is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        else:
            outer = getattr(handler, "__self__", None)
            self._around = outer if isinstance(outer, CtrlC) else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @property
    def pressed(self) -> bool:
        """Whether Ctrl-C was pressed since it was entered, or since the run around this one was."""
        return self._pressed or (self._around is not None and self._around.pressed)

    def check(self) -> None:
        """Raise KeyboardInterrupt where Ctrl-C was pressed."""
        if self.pressed:
            raise KeyboardInterrupt

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
