"""Which numbers the type of a network can hold; those that it cannot are refused by row and column."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DataError

if TYPE_CHECKING:
    from fastmlp._typing import Array

BLOCK = 1 << 16
"""Elements looked at at a time, so that both extremes are found while they are in the cache."""


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
    columns = array.reshape(len(array), -1)
    largest = _largest(columns, to_numpy)
    limits = np.finfo(dtype)
    over = (largest > limits.max) & (largest < math.inf)
    lost = (largest > 0) & (largest < limits.tiny)
    wrong = over | lost if training else over
    if not wrong.any():
        return
    column = int(np.argmax(wrong))
    values = to_numpy(columns[:, column])
    row = int(np.argmax(np.abs(values)))
    name = repr(names[column]) if names is not None else str(column)
    cure = "another unit for it is the cure" if dtype == np.float64 else f"take another unit for it, or {cure}"
    if over[column]:
        raise DataError(
            f"{argument}: row {row} of column {name} holds {values[row]:.6g}, and {dtype} numbers up to "
            f"{limits.max:.3g} only; {cure}"
        )
    raise DataError(
        f"{argument}: column {name} holds nothing above {abs(values[row]):.6g} (in row {row}), and {dtype} numbers "
        f"from {limits.tiny:.3g} on only; {cure}"
    )


def _largest(columns: Array, to_numpy: Callable[[Array], NDArray[Any]]) -> NDArray[Any]:
    """Return the largest magnitude of each column; NaN where it holds one."""
    rows = max(BLOCK // columns.shape[1], 1) if isinstance(columns, np.ndarray) else len(columns)
    found: NDArray[Any] | None = None
    for first in range(0, len(columns), rows):
        block = columns[first : first + rows]
        here = np.maximum(to_numpy(block.max(axis=0)), -to_numpy(block.min(axis=0)))
        found = here if found is None else np.maximum(found, here)
    assert found is not None, "there is a row"
    return found
