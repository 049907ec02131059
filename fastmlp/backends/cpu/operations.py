"""The fine operations of the Numba backend: arrays made ready for kernels, and kernels called one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cpu.forms import Forms
from fastmlp.backends.cpu.scratch import scratch_size
from fastmlp.backends.cpu.session import network_rule, rows_as_bytes
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.formulas.activations import get_activation
from fastmlp.formulas.random_bits import keep_threshold

if TYPE_CHECKING:
    from fastmlp.formulas.losses import Loss
    from fastmlp.formulas.optimizers import Optimizer, StepScalars

Floats = NDArray[Any]


class NumbaOperations(NumpyBackend):
    """Every fine operation by the kernels that compiled steps are made of; a user's own functions by NumPy."""

    def __init__(self, forms: Forms) -> None:
        super().__init__()
        self.forms = forms

    def _form(self, product: int, rows: int, w: Floats) -> tuple[int, int]:
        """Return the form of a product by weights like `w`, and how many numbers of scratch it needs."""
        inputs, outputs = w.shape
        form = self.forms.of(product, rows, inputs, outputs, w.dtype)
        return form, scratch_size(form, rows, inputs, outputs, w.dtype)

    def gather_rows(
        self, source: Floats, order: NDArray[np.intp] | slice, out: Floats, scratch: Floats | None = None
    ) -> None:
        if isinstance(order, slice) or out.dtype.kind != "f":
            super().gather_rows(source, order, out, scratch)
            return
        from fastmlp.kernels.cpu import operations

        rows, kind = rows_as_bytes(source)
        with _in_order(out) as (target,):
            operations.gather(rows, kind, np.asarray(order, np.int64), target.reshape(len(target), -1))

    def dense_forward(self, x: Floats, w: Floats, b: Floats, out: Floats) -> None:
        from fastmlp.kernels.cpu import codes, operations

        with _in_order(out) as (target,):
            form = self._form(codes.FORWARD, len(x), w)
            operations.dense_forward(*form, *map(_ordered, (x, w, b)), target)

    def activate(self, activation: str, z: Floats, slope: Floats | None, scratch: tuple[Floats, Floats]) -> None:
        if not get_activation(activation).compiled:
            super().activate(activation, z, slope, scratch)
            return
        from fastmlp.kernels.cpu import codes, operations

        wanted = slope is not None
        with _in_order(z, slope if wanted else z) as (a, s):
            zeros = np.zeros(z.shape[1], z.dtype)
            operations.activate(codes.code_of(activation, codes.ACTIVATIONS), a, zeros, s, wanted)

    def activation_backward(self, activation: str, a: Floats, slope: Floats | None, d: Floats, scratch: Floats) -> None:
        from fastmlp.kernels.cpu import codes, operations

        # with the slope at hand it does not matter whose it is
        code = codes.IDENTITY if slope is not None else codes.code_of(activation, codes.ACTIVATIONS)
        with _in_order(d) as (gradient,):
            s = _ordered(a if slope is None else slope).reshape(-1)
            flat = _ordered(a).reshape(-1), s, slope is not None, gradient.reshape(-1)
            operations.activation_backward(code, *flat)

    def dropout(
        self,
        a: Floats,
        slope: Floats | None,
        rate: float,
        key: int,
        step: int,
        layer: int,
        scratch: Floats,
        first_row: int = 0,
    ) -> None:
        from fastmlp.kernels.cpu import operations

        has = slope is not None
        with _in_order(a, slope if has else a) as (values, slopes):
            scale = a.dtype.type(1 / (1 - rate))
            counter = np.uint64(keep_threshold(rate)), scale, np.uint64(key), np.uint64(step), np.uint64(layer)
            lanes = np.empty((4, -(-a.shape[1] // 4)), a.dtype)
            operations.dropout(values, slopes, has, *counter, np.uint64(first_row), lanes)

    def loss(
        self,
        loss: Loss,
        outputs: Floats,
        targets: NDArray[Any],
        row_weights: Floats | None,
        inverse_total: float,
        d_outputs: Floats,
        row_losses: Floats,
        scratch: tuple[Floats, Floats],
    ) -> None:
        if not loss.compiled:
            super().loss(loss, outputs, targets, row_weights, inverse_total, d_outputs, row_losses, scratch)
            return
        from fastmlp.kernels.cpu import codes, operations, structures
        from fastmlp.kernels.cpu.losses import work_size

        real = outputs.dtype.type
        parameters = np.array(loss.parameters, outputs.dtype)
        labels, wanted = _targets(targets, outputs)
        weights = np.empty(0, outputs.dtype) if row_weights is None else _ordered(row_weights)
        work = np.empty(work_size(outputs.shape[1]), outputs.dtype)
        data = structures.Data(np.empty(0, np.uint8), codes.UINT8, labels, *rows_as_bytes(wanted), weights)
        with _in_order(d_outputs, row_losses) as (d, rows):
            operations.losses(
                *(codes.code_of(loss.name, codes.LOSSES), parameters, data, _ordered(outputs), real(inverse_total)),
                *(d, rows, work),
            )

    def hits(self, loss: Loss, outputs: Floats, targets: NDArray[Any], out: Floats) -> None:
        if not loss.compiled:
            super().hits(loss, outputs, targets, out)
            return
        from fastmlp.kernels.cpu import codes, operations

        code = codes.code_of(loss.name, codes.LOSSES)
        with _in_order(out) as (found,):
            operations.hits(code, _ordered(outputs), *_targets(targets, outputs), found)

    def dense_backward(
        self, x: Floats, dz: Floats, w: Floats, dw: Floats | None, db: Floats | None, dx: Floats | None
    ) -> None:
        from fastmlp.kernels.cpu import codes, operations

        gradient = _ordered(dz)
        if dw is not None:
            with _in_order(dw) as (out,):
                form = self._form(codes.GRADIENT, len(x), out)
                operations.weight_gradient(*form, _ordered(x), gradient, out)
        if db is not None:
            with _in_order(db) as (out,):
                operations.bias_gradient(gradient, out)
        if dx is not None:
            with _in_order(dx) as (out,):
                form = self._form(codes.BACKWARD, len(dz), w)
                operations.input_gradient(*form, gradient, _ordered(w), out)

    def squared_norm(self, array: Floats) -> float:
        from fastmlp.kernels.cpu import operations

        return float(operations.squared_norm(_ordered(array)))

    def update(
        self,
        optimizer: Optimizer,
        p: Floats,
        g: Floats,
        moments: Sequence[Floats],
        decay: float,
        scalars: StepScalars,
        scratch: Floats,
    ) -> None:
        if not optimizer.compiled:
            super().update(optimizer, p, g, moments, decay, scalars, scratch)
            return
        from fastmlp.kernels.cpu import operations

        real = p.dtype.type
        none = np.empty(0, p.dtype)
        mean, square = (none if m is None else m for m in optimizer.by_role(moments))
        numbers = map(real, (scalars.rate, scalars.correction1, scalars.correction2, 1 - scalars.rate * decay))
        operations.optimize(network_rule(optimizer, p.dtype), p, g, mean, square, *numbers)

    def max_norm(self, w: Floats, limit: float) -> None:
        from fastmlp.kernels.cpu import operations

        with _in_order(w) as (weights,):
            operations.max_norm(weights, w.dtype.type(limit), np.empty(w.shape[1], w.dtype))

    def average(self, mean: Floats, p: Floats, decay: float, scratch: Floats) -> None:
        from fastmlp.kernels.cpu import operations

        operations.moving_average(mean, p, mean.dtype.type(1 - decay))


def _ordered(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in C order that says it may be written: the one type that kernels are compiled for."""
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else array.copy()


@contextmanager
def _in_order(*arrays: NDArray[Any] | None) -> Iterator[list[NDArray[Any]]]:
    """Lend arrays in C order to write to; what is written to a copy is written back."""
    given = [a for a in arrays if a is not None]
    lent = [a if a.flags.c_contiguous else np.ascontiguousarray(a) for a in given]
    yield lent
    for array, own in zip(given, lent, strict=True):
        if own is not array:
            array[...] = own


def _targets(targets: NDArray[Any], outputs: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Return (labels, targets), the one that there is not being empty or not looked at."""
    if targets.ndim == 1:
        return _ordered(targets.astype(np.int64, copy=False)), _ordered(outputs)
    return np.empty(0, np.int64), _ordered(targets.astype(outputs.dtype, copy=False))
