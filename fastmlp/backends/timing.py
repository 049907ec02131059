"""Where time goes: a clock that notes what is done from when to when, and a backend with one around its operations.

Only who profiles makes one: what is not profiled runs as it does without this file.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from fastmlp.backends.operations import Operations

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.session import Session
    from fastmlp.network.state import TrainState

_Function = TypeVar("_Function", bound=Callable[..., Any])

FINE = sorted(Operations.__abstractmethods__ - {"empty", "asarray", "to_numpy"})
"""The fine operations that every backend has.  Some do `dense_activate` themselves too, in fewer passes."""
OF_NO_LAYER = ("loss", "hits")
"""Operations on the arrays of the last layer that are not part of it."""


class Span(NamedTuple):
    """Something that was done.

    Attributes
    ----------
    name : str
    layer : int or None
        Of the network; None for what belongs to no single one.
    start : float
        Seconds, of `time.perf_counter`.
    seconds : float
        How long it took.
    own : float
        Seconds without the spans that lie within.
    """

    name: str
    layer: int | None
    start: float
    seconds: float
    own: float


class Clock:
    """Notes spans, of which some lie within others; for one thread.

    Parameters
    ----------
    backend : Operations
        By which spans are marked for a profiler of the device.
    """

    def __init__(self, backend: Operations) -> None:
        self._backend = backend
        self._spans: list[Span] = []
        self._within: list[float] = []
        """For each span that is open, the seconds of those within."""

    @contextmanager
    def span(self, name: str, layer: int | None = None) -> Iterator[None]:
        """Note what is done in this context."""
        with self._backend.marked(name if layer is None else f"{name}, layer {layer}"):
            self._within.append(0.0)
            start = time.perf_counter()
            try:
                yield
            finally:
                seconds = time.perf_counter() - start
                own = seconds - self._within.pop()
                if self._within:
                    self._within[-1] += seconds
                self._spans.append(Span(name, layer, start, seconds, own))

    def around(self, name: str, function: _Function) -> _Function:
        """Return a function that does the same, and notes each call under a name."""

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            with self.span(name):
                return function(*args, **options)

        return timed  # type: ignore[return-value]

    def taken(self) -> list[Span]:
        """Return the spans that have ended since the last call, in the order in which they did."""
        spans, self._spans = self._spans, []
        return spans


def timed_backend(backend: Backend, clock: Clock, layers: Mapping[int, int]) -> Backend:
    """Return a twin of a backend whose every fine operation is noted; what is composed of them calls these.

    Where a backend only queues its work, each operation is waited for, so that its time is its own.

    Parameters
    ----------
    backend : Backend
        Not changed.
    clock : Clock
    layers : dict from int to int
        The layer that an array belongs to, by the array's `id`; see `layers_of_arrays`.
    """
    twin = copy(backend)
    fused = type(backend).dense_activate is not Operations.dense_activate
    for name in (*FINE, *(["dense_activate"] if fused else [])):
        setattr(twin, name, _timed(name, backend, clock, layers))
    return twin


def _timed(name: str, backend: Backend, clock: Clock, layers: Mapping[int, int]) -> Callable[..., Any]:
    operation = getattr(backend, name)

    @functools.wraps(operation)
    def timed(*args: Any, **options: Any) -> Any:
        # an operation reads the activations of the layer below, and writes those or the gradients of its own
        found = [layers[id(a)] for a in (*args, *options.values()) if id(a) in layers]
        with clock.span(name, max(found) if found and name not in OF_NO_LAYER else None):
            result = operation(*args, **options)
            backend.synchronize()
        return result

    return timed


def layers_of_arrays(session: Session, state: TrainState, rows: int) -> dict[int, int]:
    """Return the layer of each array that operations are given in steps on so many rows, by the array's `id`.

    The session keeps these arrays, so that their ids stay theirs while it lives.
    """
    views, plan, found = session.views(rows), session.plan, {}
    for arrays in (views.z, views.slopes, views.dz):
        found.update({id(array): layer for layer, array in enumerate(arrays) if array is not None})
    for name, buffer in (("params", state.params), ("grads", session.grads)):
        for layer, pair in enumerate(session.layers_of(name, buffer)):
            found.update({id(array): layer for array in pair})
        for part, array in zip(plan.updates, session.segments_of(name, buffer), strict=True):
            starts = [(layer, at) for layer, pair in enumerate(plan.layout.offsets) for at in pair]
            inside = {layer for layer, at in starts if part.start <= at < part.stop}
            if len(inside) == 1:
                found[id(array)] = inside.pop()
    return found
