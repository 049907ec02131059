"""Predictions on a GPU: what is kept of them from call to call, and how rows come there and outputs back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cuda.forward import Forward, can_be_ready, is_aligned
from fastmlp.backends.cuda.operations import CupyOperations
from fastmlp.backends.cuda.uploads import pinned, send
from fastmlp.backends.session import Session

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.network.plan import Plan

_KEPT = 4
"""Numbers of rows for which a session keeps what is ready."""


class ForwardSession(Session):
    """A session that also keeps its forward passes, ready for some numbers of rows."""

    def __init__(self, operations: CupyOperations, plan: Plan) -> None:
        super().__init__(operations, plan)
        self._operations = operations
        self._forwards: dict[int, Forward] = {}

    @cached_property
    def numbers(self) -> Array:
        """The numbers of the rows of a batch, (batch,)."""
        return self.backend.asarray(np.arange(self.plan.batch))

    @cached_property
    def can_be_ready(self) -> bool:
        """Whether `forward` does what `Backend.predict` is."""
        return can_be_ready(self.plan.spec)

    def inputs(self, x: Array) -> Array:
        """Return rows in the type and the layout that `forward` takes: as they lie, or in memory of the session's."""
        if x.dtype == self.plan.precision.products and is_aligned(x):
            return x
        held = self.x[: len(x)]
        self.backend.gather_rows(x, self.numbers[: len(x)], held)
        return held

    def forward(self, params: Array, rows: int) -> Forward:
        """Return the forward pass of so many rows, no more than a batch, by these parameters."""
        found = self._forwards.get(rows)
        if found is None or found.params is not params:
            if len(self._forwards) >= _KEPT or any(other.params is not params for other in self._forwards.values()):
                self._forwards.clear()
            outputs = self.plan.spec.units[1:]
            room = [z[: rows * o].reshape(rows, o) for z, o in zip(self._z, outputs, strict=True)]
            found = Forward(self._operations, self.plan, params, self.layers_of("predict", params), room)
            self._forwards[rows] = found
        return found


class CupyPredictions(CupyOperations):
    """What `CupyBackend` adds training to; parameters as of `CupyOperations`."""

    def __init__(self, cupy: Any, *, tf32: bool = False) -> None:
        super().__init__(cupy, tf32=tf32)
        self._stream = cupy.cuda.Stream(non_blocking=True)

    def predict(self, session: Session, params: Array, x: Array, out: Array) -> None:
        if not isinstance(session, ForwardSession) or not session.can_be_ready:
            super().predict(session, params, x, out)
            return
        for start in range(0, len(x), session.plan.batch):
            part = slice(start, min(start + session.plan.batch, len(x)))
            session.forward(params, part.stop - start).run(session.inputs(x[part]), out[part])

    def staging(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        size = math.prod(shape) * dtype.itemsize
        with self.placed():
            array: NDArray[Any] = pinned(self._cupy, size, self.cuda_errors).view(dtype).reshape(shape)
        array[...] = 0
        return array

    def bind_predict(self, session: Session, params: Array, x: NDArray[Any], out: NDArray[Any]) -> Callable[[], object]:
        there, found = self.empty(x.shape, x.dtype), self.empty(out.shape, out.dtype)
        calls: list[Callable[[], object]] = [partial(self.predict, session, params, there, found)]
        if isinstance(session, ForwardSession) and session.can_be_ready and len(x) <= session.plan.batch:
            calls = list(session.forward(params, len(x)).calls(there, found))

        def run() -> None:
            with self.placed(), self._stream:
                try:
                    send(there, x)
                    for call in calls:
                        call()
                    found.get(out=out, blocking=False)
                except BaseException:
                    # what is queued may still be at work on memory that the caller is about to free
                    with contextlib.suppress(*self.cuda_errors):
                        self._stream.synchronize()
                    raise
                self._stream.synchronize()

        return run
