"""Sparse inputs, of which a few rows at a time are made dense: where they are trained on, or answered."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW_BYTES = 16 * 2**20
"""Memory that the rows made dense at once may take, where a batch takes no more."""


class SparseRows:
    """Inputs (n, I) of SciPy in rows; ``rows[part]`` is a dense array.

    Attributes
    ----------
    matrix : SciPy's CSR matrix or array
        No two numbers in one place, so that each has its own whatever the type.
    """

    ndim = 2

    @staticmethod
    def can_hold(x: Any) -> bool:
        """Return whether something that has `toarray` is SciPy's."""
        from scipy.sparse import issparse

        return bool(issparse(x))

    def __init__(self, matrix: Any) -> None:
        rows = matrix.tocsr()
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        self.matrix = rows

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.matrix.shape
        return rows, columns

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""
        found: np.dtype[Any] = self.matrix.dtype
        return found

    @property
    def size(self) -> int:
        """Numbers, zeros included."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows made dense."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice | NDArray[np.intp]) -> NDArray[Any]:
        dense: NDArray[Any] = self.matrix[part].toarray(order="C")
        return dense

    def fill(self, part: NDArray[np.intp], out: NDArray[Any]) -> None:
        """Write some rows, dense, to an array of the same type in C order."""
        self.matrix[part].toarray(out=out)

    def picked(self, part: NDArray[np.intp]) -> SparseRows:
        """Return some rows, sparse."""
        return SparseRows(self.matrix[part])

    def astype(self, dtype: np.dtype[Any]) -> SparseRows:
        """Return the same in another type."""
        return self if dtype == self.dtype else SparseRows(self.matrix.astype(dtype))

    def with_numbers(self, numbers: NDArray[Any]) -> SparseRows:
        """Return the same places with other numbers, in the order of ``matrix.data``."""
        rows = self.matrix
        return SparseRows(type(rows)((numbers, rows.indices, rows.indptr), shape=rows.shape))

    def largest(self) -> NDArray[Any]:
        """Return the largest magnitude of each column, (1, I)."""
        found: NDArray[Any] = abs(self.matrix).max(axis=0).toarray().reshape(1, -1)
        return found

    def range(self) -> NDArray[Any]:
        """Return the smallest number and the largest, (2, 1)."""
        return np.array([[self.matrix.min()], [self.matrix.max()]], self.dtype)

    def at_once(self, batch: int) -> int:
        """Return how many rows are made dense at once: whole batches, one at least."""
        row_bytes = max(self.shape[1] * self.dtype.itemsize, 1)
        return max(WINDOW_BYTES // (row_bytes * batch), 1) * batch
