"""Which numbers the type of a network can hold; those that it cannot are refused by row and column."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DataError

if TYPE_CHECKING:
    from fastmlp._typing import Array

BLOCK, GPU_BLOCK = 1 << 16, 1 << 22
"""Elements looked at at a time: in host memory as many as stay in the cache."""


def check_held(
    array: Array,
    dtype: np.dtype[Any],
    argument: str,
    *,
    training: bool = False,
    names: Sequence[str] | None = None,
    cure: str = "use dtype='float64'",
    to_numpy: Callable[[Array], NDArray[Any]] = np.asarray,
) -> None:
    """Raise DataError where the type of a network cannot hold what an array of a wider type holds.

    A single number too small for the type is 0, as rounding has it.  A column of nothing else has lost all that it
    said, which `training` refuses too.  NaN and infinity are left to those who look for them.

    Parameters
    ----------
    array : (n,) or (n, columns) real
    dtype : numpy.dtype
        In which the network computes.
    argument : str
        What it was given as, for messages.
    training : bool
        Whether columns that are lost are refused.
    names : sequence of str, optional
        Of the columns.
    cure : str
        What to do beside taking another unit, where a wider type is to be had.
    to_numpy : callable
        `Backend.to_numpy` of where the array lies.
    """
    if array.dtype.kind != "f" or array.dtype.itemsize <= dtype.itemsize or not array.size:
        return
    columns = array if array.ndim == 2 else array.reshape(len(array), -1)
    high, low = _limits(dtype)
    rows = max((BLOCK if isinstance(array, np.ndarray) else GPU_BLOCK) // columns.shape[1], 1)
    left, largest = np.arange(columns.shape[1] if training else 0), np.zeros(1)
    for first in range(0, len(columns), rows):
        block = columns[first : first + rows]
        if high < _magnitude(block) < math.inf:
            block = np.abs(block)
            at, column = divmod(int(block.argmax()), block.shape[1])
            raise DataError(
                f"{argument}: row {first + at} of column {_name(names, column)} holds "
                f"{_text(to_numpy(columns[first + at, column]))}, and {dtype} numbers up to {high:.3g} only; "
                f"{_cure(dtype, cure)}",
                row=first + at,
            )
        if len(left):  # after the first block hardly any but columns of zeros
            here = to_numpy(np.abs(block if len(left) == block.shape[1] else block[:, left]).max(axis=0))
            largest = np.maximum(largest, here)
            small = largest < low
            left, largest = left[small], largest[small]
    if (largest[: len(left)] > 0).any():
        column = int(left[np.argmax(largest > 0)])
        magnitudes = np.abs(to_numpy(columns[:, column]))
        row = int(magnitudes.argmax())
        raise DataError(
            f"{argument}: column {_name(names, column)} holds nothing above {_text(magnitudes[row])} (in row {row}), "
            f"and {dtype} numbers from {low:.3g} on only; {_cure(dtype, cure)}",
            row=row,
        )


def _magnitude(block: Array) -> Any:
    """Return the largest absolute value, in the type of the block, which Python's own may not hold."""
    if isinstance(block, np.ndarray):
        return max(block.max(), -block.min())
    return abs(block).max()  # one function of a GPU's arrays less to rely on


@lru_cache(maxsize=4)
def _limits(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the largest number of a type, and its smallest with all digits."""
    return float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)


def _text(number: Any) -> str:
    value = float(number)
    return f"{value:.6g}" if math.isfinite(value) else str(number)  # of a type wider than Python's


def _name(names: Sequence[str] | None, column: int) -> str:
    return str(column) if names is None else repr(names[column])


def _cure(dtype: np.dtype[Any], wider: str) -> str:
    return "take another unit for it" if dtype == np.float64 else f"take another unit for it, or {wider}"
