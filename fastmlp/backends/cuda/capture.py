"""Capturing a stream into a graph, with nothing else going on in the process that would spoil it."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

from fastmlp.streams import reached

one_at_a_time = threading.Lock()
"""Held while a stream is captured, and by whoever waits for a whole device, for which CUDA gives up a capture."""


class Branch:
    """What may run beside a stream while that is captured; elsewhere all follows each other on the one stream.

    Parameters
    ----------
    cupy : module
    stream, side : cupy.cuda.Stream
        The one that is captured, and another, which is captured with it from a fork to the next join.
    """

    def __init__(self, cupy: Any, stream: Any, side: Any) -> None:
        self._cupy, self._stream, self.side = cupy, stream, side

    @contextlib.contextmanager
    def beside(self, after: Branch | None = None) -> Iterator[None]:
        """Let what is launched here come after what has been launched so far, and beside what follows.

        What runs beside in another branch has to be named where that comes first too.
        """
        if not self._stream.is_capturing():
            yield
            return
        self.side.wait_event(reached(self._cupy, self._stream))
        if after is not None and after.side.is_capturing():
            self.side.wait_event(reached(self._cupy, after.side))
        with self.side:
            yield

    def join(self) -> None:
        """Let what follows come after all that ran beside."""
        if self.side.is_capturing():
            self._stream.wait_event(reached(self._cupy, self.side))


def captured(stream: Any, queue: Callable[[], object], errors: tuple[type[Exception], ...]) -> Any:
    """Return the graph of what a function puts on a stream.

    The garbage collector rests meanwhile: what it finds may be a stream, an event or memory of somebody else's, and to
    free it is a call that CUDA answers by giving up the capture.

    Parameters
    ----------
    stream : cupy.cuda.Stream
        The current one; not the default.
    queue : callable
    errors : tuple of type
        What CuPy raises where CUDA refuses something; of several, the first is raised.
    """
    with one_at_a_time:  # else one thread would wake the collector in the capture of another
        collects = gc.isenabled()
        gc.disable()
        try:
            stream.begin_capture()
            try:
                queue()
            except BaseException:
                with contextlib.suppress(*errors):  # the first error is the one that tells
                    stream.end_capture()
                raise
            return stream.end_capture()
        finally:
            if collects:
                gc.enable()
