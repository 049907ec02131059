"""Targets as losses take them: checked, with the row, the column and the cure where one does not suit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def holds_labels(y: NDArray[Any], outputs: int) -> bool:
    """Return whether targets of a loss over classes are labels, (n,) or a column (n, 1), and no rows of one-hot."""
    return y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1 < outputs)


def as_labels(y: NDArray[Any], classes: int) -> NDArray[Any]:
    """Return class labels, (n,) or (n, 1), as (n,) int64; DataError unless all are integers in 0..classes-1."""
    y = y.reshape(-1)
    if y.dtype.kind not in "iu":
        if y.dtype.kind == "f" and np.array_equal(y, np.floor(y)):
            cure = "they are whole numbers: pass y.astype(int)"
        elif y.dtype.kind in "OUS":
            cure = "number them first: class_names, y = np.unique(y, return_inverse=True)"
        else:
            cure = "class probabilities are passed as (n, K)"
        raise DataError(f"y: labels (n,) must be integers, got dtype {y.dtype}; {cure}")
    low, high = (int(y.min()), int(y.max())) if len(y) else (0, 0)
    if low < 0 or high >= classes:
        row = int(np.argmax((y < 0) | (y >= classes)))
        raise DataError(
            f"y: labels must be in 0..{classes - 1} (the network has {classes} outputs), got {y[row]} in row {row}; "
            "number the classes from 0, or give the network more outputs"
        )
    return y.astype(np.int64, copy=False)


def as_values(y: NDArray[Any], outputs: int, loss: str) -> NDArray[Any]:
    """Return finite real targets (n, outputs), given as that or, for one output, as (n,)."""
    if y.dtype.kind not in "biuf":
        raise DataError(f"y: {loss} needs real numbers, got dtype {y.dtype}")
    if y.ndim == 1 and outputs == 1:
        y = y[:, None]
    if y.ndim != 2 or y.shape[1] != outputs:
        expected = "(n,) or (n, 1)" if outputs == 1 else f"(n, {outputs})"
        raise DataError(f"y: {loss} needs targets of shape {expected}, one column an output; got {y.shape}")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        row, column = np.argwhere(~np.isfinite(y))[0]
        raise DataError(f"y: targets must be finite, got {y[row, column]} in row {row}, column {column}")
    return y


def as_probabilities(y: NDArray[Any], loss: str) -> NDArray[Any]:
    """Return rows (n, K) that are not negative and sum to 1 within 1e-3; DataError names the worst row."""
    sums = y.sum(axis=1, dtype=np.float64)
    if len(y) and (y.min() < 0 or np.abs(sums - 1).max() > 1e-3):
        row = int(np.argmax(np.maximum(np.abs(sums - 1), -y.min(axis=1))))
        raise DataError(
            f"y: {loss} needs rows of probabilities (not negative, sum 1), got row {row} with minimum "
            f"{y[row].min()} and sum {sums[row]:.6g}; for several labels a row use loss='sigmoid_cross_entropy'"
        )
    return y


def not_negative(y: NDArray[Any], loss: str) -> NDArray[Any]:
    """Return targets (n, K), none below 0; DataError names the first that is."""
    if y.size and y.min() < 0:
        row = int(np.argmax(y.min(axis=1) < 0))
        raise DataError(f"y: {loss} needs targets >= 0, got {y[row].min()} in row {row}")
    return y
