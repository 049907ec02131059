"""Chrome traces: JSON that chrome://tracing and https://ui.perfetto.dev show as bars over time.

The format is the JSON array of the "Trace Event Format" (Duffy and others, Google, 2016): complete events, ``"ph":
"X"``, in microseconds, and the names of their tracks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike
from typing import Any, NamedTuple

from fastmlp.files.atomic import atomic_writer


class Event(NamedTuple):
    """A bar of a trace.

    Attributes
    ----------
    name : str
    track : str
        Bars of one track lie in one another where their times do.
    start, seconds : float
        Of any one clock.
    arguments : dict
        What is shown where a bar is selected.
    """

    name: str
    track: str
    start: float
    seconds: float
    arguments: dict[str, Any]


def write_trace(path: str | PathLike[str], title: str, events: Iterable[Event]) -> None:
    """Write a trace in one piece; it begins with the earliest event, at 0.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    events = sorted(events, key=lambda e: (e.start, -e.seconds))
    begin = events[0].start if events else 0.0
    tracks = {track: number for number, track in enumerate(dict.fromkeys(e.track for e in events), 1)}
    found: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": title}}]
    for track, number in tracks.items():
        found.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": track}})
    for e in events:
        when = {"ts": (e.start - begin) * 1e6, "dur": e.seconds * 1e6}
        found.append({"ph": "X", "name": e.name, "pid": 1, "tid": tracks[e.track], **when, "args": e.arguments})
    with atomic_writer(path) as file:
        file.write(json.dumps({"traceEvents": found, "displayTimeUnit": "ns"}).encode())
