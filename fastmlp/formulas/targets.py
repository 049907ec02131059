"""Targets as losses take them: checked, with the row, the column and the cure where one does not suit."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


_NUMBER = "number them first: class_names, y = np.unique(y, return_inverse=True)"


def holds_labels(y: NDArray[Any], outputs: int) -> bool:
    """Return whether targets of a loss over classes are labels, (n,) or a column (n, 1), and no rows of one-hot."""
    return y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1 < outputs)


def as_labels(y: NDArray[Any], classes: int) -> NDArray[Any]:
    """Return class labels, (n,) or (n, 1), as (n,) int64; DataError unless all are integers in 0..classes-1."""
    y = y.reshape(-1)
    if y.dtype.kind not in "iu":
        _refuse_missing(y)
        if y.dtype.kind == "b":
            cure = "they are True and False: pass y.astype(int)"
        elif y.dtype.kind in "fO" and all(isinstance(v, Real) and v % 1 == 0 for v in y.tolist()):
            cure = "they are whole numbers: pass y.astype(int)"
        elif y.dtype.kind == "f":
            cure = "class probabilities are passed as (n, K)"
        else:
            cure = _NUMBER
        raise DataError(f"y: labels (n,) must be integers, got dtype {y.dtype}; {cure}")
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or high >= classes:
        row = int(np.argmax((y < 0) | (y >= classes)))
        raise DataError(
            f"y: labels must be in 0..{classes - 1} (the network has {classes} outputs), got {y[row]} in row {row}; "
            "number the classes from 0, or give the network more outputs",
            row=row,
        )
    return y.astype(np.int64, copy=False)


def as_values(y: NDArray[Any], outputs: int, loss: str, each: int = 1) -> NDArray[Any]:
    """Return finite real targets (n, T), given as that or, for T = 1, as (n,); `each` outputs are for one of the T."""
    if y.dtype.kind not in "biuf":
        _refuse_missing(y)
        cure = "pass y.astype(float)" if _are_numbers(y) else f"if they are classes, {_NUMBER}"
        raise DataError(f"y: {loss} needs real numbers, got dtype {y.dtype}; {cure}")
    columns = outputs // each
    if y.ndim == 1 and columns == 1:
        y = y[:, None]
    if y.ndim != 2 or y.shape[1] != columns:
        expected = "(n,) or (n, 1)" if columns == 1 else f"(n, {columns})"
        labels = y.ndim == 1 and y.dtype.kind in "biu"
        cure = "; labels (n,), one class a row, are for loss='softmax_cross_entropy'" if labels else ""
        whose = "an output" if each == 1 else f"for every {each} of the {outputs} outputs"
        raise DataError(f"y: {loss} needs targets of shape {expected}, one column {whose}; got {y.shape}{cure}")
    if y.dtype.kind == "f":
        _refuse_missing(y)
    return y


def _refuse_missing(y: NDArray[Any]) -> None:
    """Raise DataError where a target is NaN or infinite, or None or one of pandas' marks of a missing value."""
    if y.dtype.kind == "f":
        there = np.isfinite(y)
    elif y.dtype.kind in "mM":
        there = ~np.isnat(y)
    elif y.dtype.kind == "O":
        there = np.array([not _is_missing(v) for v in y.flat], np.bool_).reshape(y.shape)
    else:
        return
    if not there.all():
        at = tuple(np.argwhere(~there)[0].tolist())
        where = f"row {at[0]}" + (f", column {at[1]}" if len(at) > 1 else "")
        raise DataError(
            f"y: targets must be finite, got {y[at]} in {where}; leave out the rows without a target", row=at[0]
        )


def _is_missing(value: object) -> bool:
    if isinstance(value, (float, np.floating)):
        return not math.isfinite(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # pandas need not be there


def _are_numbers(y: NDArray[Any]) -> bool:
    """Return whether objects or text can be read as numbers."""
    if y.dtype.kind not in "OUS":
        return False
    try:
        y.astype(np.float64)
    except (TypeError, ValueError):
        return False
    return True


def as_probabilities(y: NDArray[Any], loss: str) -> NDArray[Any]:
    """Return rows (n, K) that are not negative and sum to 1 within 1e-3; DataError names the worst row."""
    sums = y.sum(axis=1, dtype=np.float64)
    if len(y) and (y.min() < 0 or np.abs(sums - 1).max() > 1e-3):
        row = int(np.argmax(np.maximum(np.abs(sums - 1), -y.min(axis=1).astype(np.float64))))
        raise DataError(
            f"y: {loss} needs rows of probabilities (not negative, sum 1), got row {row} with minimum "
            f"{y[row].min():g} and sum {sums[row]:.6g}; for several labels a row use loss='sigmoid_cross_entropy'",
            row=row,
        )
    return y


def not_negative(y: NDArray[Any], loss: str) -> NDArray[Any]:
    """Return targets (n, K), none below 0; DataError names the first that is."""
    if y.size and y.min() < 0:
        row = int(np.argmax(y.min(axis=1) < 0))
        raise DataError(f"y: {loss} needs targets >= 0, got {y[row].min()} in row {row}", row=row)
    return y
