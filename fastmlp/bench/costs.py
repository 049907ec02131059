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


def of_step(units: Sequence[int], batch: int, itemsize: int, moments: int) -> Cost:
    """Return the cost of a training step.

    Operations are those of the products: forward, of the weights' gradients, and of the gradients that go down to all
    layers but the first.  The inputs of the batch are read; what each layer gives, and its gradient, are written and
    read; so are parameters, gradients and each moment of the optimizer.

    Parameters
    ----------
    units : sequence of int
        From the inputs to the outputs.
    batch : int
        Rows.
    itemsize : int
        Bytes of a number.
    moments : int
        Arrays as large as the parameters that the optimizer keeps.
    """
    weights = products(units)
    parameters, values = weights + sum(units[1:]), sum(units[1:])
    numbers = batch * (units[0] + 4 * values) + 2 * parameters * (2 + moments)
    return Cost(2.0 * batch * (3 * weights - units[0] * units[1]), float(itemsize * numbers))


def of_rows(units: Sequence[int], rows: int, itemsize: int) -> Cost:
    """Return the cost of predicting so many rows: inputs and parameters are read, what each layer gives goes both ways.

    Parameters as of `of_step`.
    """
    weights, values = products(units), sum(units[1:])
    numbers = rows * (units[0] + 2 * values) + weights + values
    return Cost(2.0 * rows * weights, float(itemsize * numbers))
