"""Which rows a step takes: parts held out, batches of an epoch, the order of its rows, the weight of each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_count
from fastmlp.formulas.random_bits import epoch_order, epoch_orders

if TYPE_CHECKING:
    from fastmlp._typing import Array


_HELD_OUT = 2**63
"""The step whose random numbers choose the rows held out; no run gets there."""


class Parts(NamedTuple):
    """The rows that train and those held out, each in the order of the data."""

    train: NDArray[np.intp]
    held_out: NDArray[np.intp]


def split_rows(rows: int, fraction: float, key: int, labels: NDArray[Any] | None) -> Parts | None:
    """Return which rows train and which are held out, drawn by a seed; None where `fraction` is 0.

    Of each class about the same share of rows is held out, and at least one row trains where there are enough.

    Parameters
    ----------
    rows : int
    fraction : float
        Of the rows, to hold out; in [0, 1).
    key : int
        64-bit seed.
    labels : (rows,) int, or None
        The class of each row; None where there are no classes.

    Raises
    ------
    ValueError
        The fraction leaves one of the parts without a row.
    """
    if fraction == 0.0:
        return None
    count = round(rows * fraction)
    if not 0 < count < rows:
        raise ValueError(
            f"validation_split={fraction!r} of {rows} rows leaves {rows - count} to train on and "
            f"{count} to validate; both need at least one"
        )
    order = epoch_order(key, _HELD_OUT, rows)
    chosen = order[-count:]
    if labels is not None:
        by_class = order[labels[order].argsort(kind="stable")]
        sorted_labels = labels[by_class]
        begins = np.r_[True, sorted_labels[1:] != sorted_labels[:-1]]
        order = by_class[~begins]  # the first row of each class trains
        if count <= len(order):
            chosen = order[(2 * np.arange(count) + 1) * len(order) // (2 * count)]  # evenly spaced
    held_out = np.zeros(rows, np.bool_)
    held_out[chosen] = True
    return Parts(np.flatnonzero(~held_out), np.flatnonzero(held_out))


def default_batch_size(rows: int) -> int:
    """Return how many rows a step takes where nobody says: a 32nd of those that train, from 8 to 128.

    Few rows in large batches are few steps an epoch, which train too little; `benchmarks/defaults.py` has the figures.
    """
    return min(max(rows // 32, 8), 128)


def check_batch_size(batch_size: object) -> int | None:
    """Return a batch size of a user; ValueError or TypeError where it is neither None nor a count."""
    return None if batch_size is None else check_count("batch_size", batch_size, also="or None")


def batch_of(batch_size: int | None, rows: int) -> int:
    """Return how many rows a step takes of those that train: as many as asked for, or as suit, but no more than are."""
    return min(default_batch_size(rows) if batch_size is None else batch_size, rows)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches of an epoch; the last may be shorter."""
    return -(-rows // batch_size)


def inverse_totals(
    weights: NDArray[Any] | None, order: NDArray[np.intp], batch_size: int, first: int, count: int
) -> NDArray[np.float64]:
    """Return 1 over the total row weight of each of `count` batches from batch `first` on; 0 where that is 0.

    Parameters
    ----------
    weights : (n,) float or None
        None means 1 each.
    order : (n,) intp
        The rows of the epoch.
    batch_size, first, count : int

    Returns
    -------
    (count,) float64
    """
    rows = order[first * batch_size : (first + count) * batch_size]
    if weights is None:
        sizes = np.full(count, float(batch_size))
        sizes[-1] = len(rows) - (count - 1) * batch_size
        return 1.0 / sizes
    starts = np.arange(0, len(rows), batch_size)
    sums = np.add.reduceat(weights[rows].astype(np.float64), starts)
    return np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)


def inverse_totals_of_epochs(
    weights: NDArray[Any] | None, orders: NDArray[np.intp], batch_size: int, steps: int
) -> NDArray[np.float64]:
    """Return `inverse_totals` of all batches of epochs that follow each other; orders (epochs, rows)."""
    if weights is None:
        return np.tile(inverse_totals(None, orders[0], batch_size, 0, steps), len(orders))
    return np.concatenate([inverse_totals(weights, order, batch_size, 0, steps) for order in orders])


DrawOrder = Callable[[], NDArray[np.intp]]
"""Returns the order of the rows of the next epoch."""


class Order(NamedTuple):
    """The order of the rows in the epoch that begins with a step, on the host and on the backend."""

    begins: int
    host: NDArray[np.intp]
    device: Array


class Orders:
    """The orders of the epochs of a run, each made once, the next one ahead where there is time.

    Parameters
    ----------
    key : int
        64-bit seed.
    rows : int
        How many train.
    shuffle : bool
        Whether each epoch has an order of its own.
    asarray : callable
        Brings an order to the backend, `Backend.asarray`.
    training : (rows,) intp, optional
        Which rows of the data train; None: all.
    draw : callable, optional
        Where the orders come from instead: called once before each epoch, it returns numbers of rows that train.
    """

    def __init__(
        self,
        key: int,
        rows: int,
        shuffle: bool,
        asarray: Callable[[Any], Array],
        training: NDArray[np.intp] | None = None,
        draw: DrawOrder | None = None,
    ) -> None:
        self._key, self._rows, self._shuffle, self._asarray = key, rows, shuffle, asarray
        self._training, self._draw = training, draw
        self._made: list[Order] = []

    def of_epoch(self, begins: int) -> Order:
        """Return the order of the epoch that begins with a step; two are kept, so that one can be made ahead."""
        for made in self._made:
            if made.begins == begins or not self._shuffle:
                return made
        if self._shuffle:
            host = self._draw() if self._draw else epoch_order(self._key, begins, self._rows)
        else:
            host = np.arange(self._rows)
        host = host if self._training is None else self._training[host]
        del self._made[:-1]  # before the next one takes memory
        order = Order(begins, host, self._asarray(host))
        self._made.append(order)
        return order

    def of_epochs(self, begins: Sequence[int]) -> NDArray[np.intp]:
        """Return the orders of the epochs that begin with these steps, (epochs, rows) on the host; none is kept."""
        assert self._draw is None, "what is drawn once cannot be drawn again"
        if self._shuffle:
            host = epoch_orders(self._key, begins, self._rows)
        else:
            host = np.tile(np.arange(self._rows), (len(begins), 1))
        return host if self._training is None else self._training[host]
