"""How steps come by their rows: all data lie on the backend, or those of a few steps are brought there at a time."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.data import DeviceData, HostData
from fastmlp.backends.sparse import SparseRows

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.operations import Operations
    from fastmlp.engine.batches import Order


class Fed(NamedTuple):
    """What `train_steps` is given for some steps.

    Attributes
    ----------
    data : DeviceData
    order : (n,) intp
        Rows of these data, on the backend.
    first : int
        Number of the first step within that order.
    numbers : (n,) intp or None
        The user's number of each row of these data; None where they are all that there are.
    """

    data: DeviceData
    order: Array
    first: int
    numbers: NDArray[np.intp] | None


class Feed:
    """All data on the backend, for the whole run."""

    most_steps = sys.maxsize
    """Steps that `steps` may be asked for at once."""

    def __init__(self, data: HostData, backend: Operations) -> None:
        self.whole: DeviceData | None = data.on(backend.asarray)
        """All of the data, where they lie on the backend at once."""

    def steps(self, order: Order, first: int, count: int) -> Fed:
        """Return what `count` steps from step `first` of an epoch on take."""
        assert self.whole is not None
        return Fed(self.whole, order.device, first, None)


class SparseFeed(Feed):
    """Sparse inputs: the rows of a few batches are made dense in memory that is used again and again.

    The arrays that hold them stay the same, since captured steps are bound to theirs.
    """

    def __init__(self, data: HostData, x: SparseRows, backend: Operations, batch: int) -> None:
        self.whole = None
        rows = min(x.at_once(batch), -(-data.training_rows // batch) * batch)
        self._x, self._source, self._backend, self._batch = x, data, backend, batch
        self.most_steps = rows // batch
        weights = data.weights

        def room(like: NDArray[np.generic] | SparseRows) -> Array:
            return backend.empty((rows, *like.shape[1:]), like.dtype)

        self._there = DeviceData(room(x), room(data.y), None if weights is None else room(weights), changes=True)
        on_host = isinstance(self._there.x, np.ndarray)
        self._dense = self._there.x if on_host else np.empty((rows, x.shape[1]), x.dtype)
        self._order = backend.asarray(np.arange(rows))

    def steps(self, order: Order, first: int, count: int) -> Fed:
        numbers = order.host[first * self._batch : (first + count) * self._batch]
        n, there, asarray = len(numbers), self._there, self._backend.asarray
        self._x.fill(numbers, self._dense[:n])
        if self._dense is not there.x:
            there.x[:n] = asarray(self._dense[:n])
        there.y[:n] = asarray(self._source.y[numbers])
        if there.weights is not None and self._source.weights is not None:
            there.weights[:n] = asarray(self._source.weights[numbers])
        return Fed(there, self._order if n == len(self._order) else self._order[:n], 0, numbers)


def feed_of(data: HostData, backend: Operations, batch: int) -> Feed:
    """Return the feed of a run on some data, in batches of so many rows."""
    x = data.x
    return SparseFeed(data, x, backend, batch) if isinstance(x, SparseRows) else Feed(data, backend)
