"""Checked data on its way from a user's arrays to a backend; made by `engine.checks`, taken by coarse operations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.sparse import SparseRows

if TYPE_CHECKING:
    from fastmlp._typing import Array

FINGERPRINT_ROWS = 256


@dataclass(frozen=True)
class DeviceData:
    """Data on a backend: what the coarse operations take.

    Attributes
    ----------
    x : (n, I)
        Inputs.
    y : (n,) or (n, K)
        Targets.
    weights : (n,) or None
        Row weights; None means 1 each.
    changes : bool
        Whether the same arrays hold other rows at each call.
    """

    x: Array
    y: Array
    weights: Array | None
    changes: bool = False


@dataclass(frozen=True)
class HostData:
    """Checked data, not copied where that can be.

    Attributes
    ----------
    x : (n, I) real
        NumPy's, or of the backend where it came from a GPU, or `SparseRows`.
    y : (n,) int64 labels, or (n, K) floating targets
        NumPy's.
    weights : (n,) float or None
        NumPy's; row weights, class weights included.
    y_there, weights_there : array or None
        The same on the backend, where they came from there as they are.
    training : (m,) intp or None
        The rows that train, where others of these are held out; None means all.
    names : tuple of str or None
        Of the columns of the data frame that x was.
    """

    x: Array
    y: NDArray[Any]
    weights: NDArray[Any] | None
    y_there: Array | None = None
    weights_there: Array | None = None
    training: NDArray[np.intp] | None = None
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def training_rows(self) -> int:
        """How many rows train."""
        return len(self) if self.training is None else len(self.training)

    def on(self, asarray: Callable[[Any], Array]) -> DeviceData:
        """Return the data where `asarray` brings arrays, `Backend.asarray`."""
        y = self.y if self.y_there is None else self.y_there
        weights = self.weights if self.weights_there is None else self.weights_there
        return DeviceData(asarray(self.x), asarray(y), None if weights is None else asarray(weights))

    def moved(self, asarray: Callable[[Any], Array]) -> HostData:
        """Return the same data, with what a backend works on there."""
        there = self.on(asarray)
        return HostData(there.x, self.y, self.weights, there.y, there.weights)

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes on a backend."""
        return sum(a.nbytes for a in (self.x, self.y, self.weights) if a is not None) // max(len(self), 1)

    def window(self, part: slice) -> HostData:
        """Return some consecutive rows."""

        def cut(array: Array | None) -> Array | None:
            return None if array is None else array[part]

        return HostData(self.x[part], self.y[part], cut(self.weights), cut(self.y_there), cut(self.weights_there))

    def taken(self, rows: NDArray[np.intp], picked: Callable[[Array, NDArray[np.intp]], Array]) -> HostData:
        """Return copies of some rows; those of what is on a backend by `Backend.picked`."""

        def pick(array: Array | None) -> Array | None:
            if isinstance(array, SparseRows):
                return array.picked(rows)
            if array is None or isinstance(array, np.ndarray):
                return None if array is None else array[rows]
            return picked(array, rows)

        return HostData(pick(self.x), self.y[rows], pick(self.weights), pick(self.y_there), pick(self.weights_there))

    def fingerprint(self, to_numpy: Callable[[Array], NDArray[Any]]) -> str:
        """Return a short hash that tells other data apart: shapes, types, targets, and evenly spaced rows of x.

        Parameters
        ----------
        to_numpy : callable
            `Backend.to_numpy` of where the data lies.
        """
        digest = hashlib.blake2b(digest_size=16)
        sample = np.unique(np.linspace(0, len(self) - 1, FINGERPRINT_ROWS).astype(np.intp))
        if isinstance(self.x, (np.ndarray, SparseRows)):
            rows = self.x[sample]
        else:
            rows = np.stack([to_numpy(self.x[int(row)]) for row in sample])
        for array in (rows, self.y, self.weights):
            if array is not None:
                digest.update(f"{array.shape} {array.dtype.str}".encode())
                digest.update(np.ascontiguousarray(array).data)
        digest.update(str(self.x.shape).encode())
        return digest.hexdigest()
