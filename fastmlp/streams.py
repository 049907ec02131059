"""Order between streams of a GPU."""

from __future__ import annotations

from typing import Any


def reached(cupy: Any, stream: Any) -> Any:
    """Return an event that is over once all has been done that is queued on a stream so far.

    It keeps no time: other streams wait for such ones with the least overhead (CUDA Runtime API, Event Management).

    Parameters
    ----------
    cupy : module
    stream : cupy.cuda.Stream
    """
    return stream.record(cupy.cuda.Event(disable_timing=True))
