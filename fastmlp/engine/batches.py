"""Which rows a step takes: parts held out, batches of an epoch, the order of its rows, the weight of each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_number
from fastmlp.formulas.random_bits import epoch_order

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.data import HostData


def split_rows(data: HostData, fraction: float) -> tuple[HostData, HostData | None]:
    """Return the first part and, where `fraction` is not 0, the last part of the data, in the order given.

    Raises
    ------
    ValueError
        The fraction is not in [0, 1), or leaves one of the parts without a row.
    """
    fraction = check_number("validation_split", fraction, 0.0, 1.0)
    if fraction == 0.0:
        return data, None
    held_out = round(len(data) * fraction)
    if not 0 < held_out < len(data):
        raise ValueError(
            f"validation_split={fraction!r} of {len(data)} rows leaves {len(data) - held_out} to train on and "
            f"{held_out} to validate; both need at least one"
        )
    cut = len(data) - held_out
    return data.window(slice(0, cut)), data.window(slice(cut, None))


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
    shuffle : bool
        Whether each epoch has an order of its own.
    asarray : callable
        Brings an order to the backend, `Backend.asarray`.
    """

    def __init__(self, key: int, rows: int, shuffle: bool, asarray: Callable[[Any], Array]) -> None:
        self._key, self._rows, self._shuffle, self._asarray = key, rows, shuffle, asarray
        self._made: list[Order] = []

    def of_epoch(self, begins: int) -> Order:
        """Return the order of the epoch that begins with a step; two are kept, so that one can be made ahead."""
        for made in self._made:
            if made.begins == begins or not self._shuffle:
                return made
        host = epoch_order(self._key, begins, self._rows) if self._shuffle else np.arange(self._rows)
        del self._made[:-1]  # before the next one takes memory
        order = Order(begins, host, self._asarray(host))
        self._made.append(order)
        return order
