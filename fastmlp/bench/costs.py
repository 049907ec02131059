"""What a workload asks of a machine at the least: operations, and bytes between memory and processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastmlp.bench.workloads import products


class Cost(NamedTuple):
    """Floating-point operations of all products, and bytes that are read or written once at least."""

    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes


def of_gradients(units: Sequence[int], rows: int, itemsize: int) -> Cost:
    """Return the cost of the gradients of so many rows.

    Operations are those of the products: forward, of the weights' gradients, and of the gradients that go down to all
    layers but the first.  The inputs are read; what each layer gives, and its gradient, are written and read; so is
    each parameter read, and its gradient written.

    Parameters
    ----------
    units : sequence of int
        From the inputs to the outputs.
    rows : int
    itemsize : int
        Bytes of a number.
    """
    weights, values = products(units), sum(units[1:])
    numbers = rows * (units[0] + 4 * values) + 2 * (weights + values)
    return Cost(2.0 * rows * (3 * weights - units[0] * units[1]), float(itemsize * numbers))


def of_update(units: Sequence[int], itemsize: int, moments: int) -> Cost:
    """Return the cost of taking a step by gradients that are there: these are read, parameters written, moments both.

    Parameters
    ----------
    units : sequence of int
        From the inputs to the outputs.
    itemsize : int
        Bytes of a number.
    moments : int
        Arrays as large as the parameters that the optimizer keeps.
    """
    return Cost(0.0, float(itemsize * 2 * (1 + moments) * (products(units) + sum(units[1:]))))


def of_step(units: Sequence[int], batch: int, itemsize: int, moments: int) -> Cost:
    """Return the cost of a training step: the gradients of a batch, and the update; parameters as of these."""
    gradients, update = of_gradients(units, batch, itemsize), of_update(units, itemsize, moments)
    return Cost(gradients.operations, gradients.bytes + update.bytes)


def of_rows(units: Sequence[int], rows: int, itemsize: int) -> Cost:
    """Return the cost of predicting so many rows: inputs and parameters are read, what each layer gives goes both ways.

    Parameters as of `of_gradients`.
    """
    weights, values = products(units), sum(units[1:])
    numbers = rows * (units[0] + 2 * values) + weights + values
    return Cost(2.0 * rows * weights, float(itemsize * numbers))
