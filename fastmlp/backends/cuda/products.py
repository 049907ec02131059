"""The products of a layer inside a training step, in two ways behind one interface: cuBLAS, and fastmlp's own kernels.

cuBLAS is the faster for large layers; CuPy does not let it be called while a stream is captured into a graph (its
`cublas.setStream` refuses; CUDA itself would allow it, with a workspace of one's own).  Own kernels do what follows a
product (bias, activation, slope, bias gradient) in the same launch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.kernels import column_grid, gradient_slabs, is_wide, tile_grid
from fastmlp.formulas.activations import IDENTITY, get_activation

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.cuda.operations import CupyOperations

SLABS = 8
"""Parts, at most, that the rows of a weight gradient are cut into; the optimizer adds them in order."""
_ROWS_A_SLAB = 256
_BLOCKS_A_MULTIPROCESSOR = 2
# How much of its multiprocessor's arithmetic a block of each configuration uses, relative to the largest: a prior from
# the numbers that a thread multiplies for each that it loads, not a measurement.
_EFFICIENCY = {16: 0.55, 32: 0.8, 64: 1.0}
_LARGEST_GRID = 65535


def choose_tile(m: int, n: int, k: int, multiprocessors: int) -> int:
    """Return the side of the tiles in which a product (m, k) (k, n) is computed: 16, 32 or 64.

    A block computes one tile, and the blocks that a device holds at once run in waves; the tile is the one whose waves
    take the least time.  Small tiles fill the device with few rows and columns, large ones load each number less often.
    """

    def time(tile: int) -> float:
        blocks = -(-m // tile) * -(-n // tile)
        waves = -(-blocks // (multiprocessors * _BLOCKS_A_MULTIPROCESSOR))
        return waves * tile * tile * k / _EFFICIENCY[tile]

    fitting = [tile for tile in _EFFICIENCY if -(-n // tile) <= _LARGEST_GRID]
    if not fitting:
        raise ValueError(f"a layer of {n} units is wider than CUDA's grids allow, {_LARGEST_GRID * 64}")
    return min(fitting, key=time)


def weight_slabs(m: int, n: int, rows: int, tile: int, multiprocessors: int) -> int:
    """Return into how many slabs of rows the gradient of weights (m, n) is cut, to give the device enough blocks."""
    blocks = -(-m // tile) * -(-n // tile)
    wanted = -(-multiprocessors * _BLOCKS_A_MULTIPROCESSOR // blocks)
    return max(1, min(wanted, SLABS, rows // _ROWS_A_SLAB))


class Masks(NamedTuple):
    """Dropout of a layer's outputs in a step; see `dropout` of the interface."""

    threshold: int
    scale: float
    key: int
    layer: int


class StepProducts(Protocol):
    """The products of a step, each with what follows it.

    `index` is the number of the step within its graph; `cursor` the device's own count, see `step.cuh`.
    """

    def through(self, operations: CupyOperations) -> StepProducts:
        """Return the same products, launched through other operations."""

    def slabs(self, rows: int, fan_in: int, fan_out: int) -> tuple[int, int]:
        """Return in how many slabs the gradients of weights and of biases are left."""

    def forward(
        self,
        x: Array,
        w: Array,
        b: Array,
        z: Array,
        slope: Array | None,
        activation: str,
        masks: Masks | None,
        cursor: Array,
        index: int,
    ) -> None:
        """``z = f(x w + b)`` under dropout, and its slope where there is room for it."""

    def input_gradient(
        self, dz: Array, w: Array, dx: Array, activation: str, a: Array | None, slope: Array | None
    ) -> None:
        """``dx = dz w'`` times the slope of the layer below."""

    def weight_gradient(self, x: Array, dz: Array, dw: Array, db: Array, stride: int, slabs: tuple[int, int]) -> None:
        """``dw = x' dz`` and the sums of dz over rows, flat arrays; slab s lies `stride` numbers after slab s - 1."""


class OwnProducts:
    """fastmlp's own kernels: one launch a product, whatever follows it; may be captured."""

    def __init__(self, operations: CupyOperations, multiprocessors: int) -> None:
        self._operations, self._multiprocessors = operations, multiprocessors

    def through(self, operations: CupyOperations) -> OwnProducts:
        return OwnProducts(operations, self._multiprocessors)

    def slabs(self, rows: int, fan_in: int, fan_out: int) -> tuple[int, int]:
        tile = choose_tile(fan_in, fan_out, rows, self._multiprocessors)
        slabs = weight_slabs(fan_in, fan_out, rows, tile, self._multiprocessors)
        return slabs, slabs

    def forward(
        self,
        x: Array,
        w: Array,
        b: Array,
        z: Array,
        slope: Array | None,
        activation: str,
        masks: Masks | None,
        cursor: Array,
        index: int,
    ) -> None:
        (n, i), o = x.shape, w.shape[1]
        masks = masks or Masks(0, 1.0, 0, 0)
        args = (
            *(x, w, b, z, slope, np.int64(n), np.int64(i), np.int64(o), is_wide(i, (x,)), is_wide(o, (w,))),
            sources.code_of("activation", activation),
            *(np.uint32(masks.threshold), z.dtype.type(masks.scale), np.uint64(masks.key)),
            *(cursor, np.int32(index), np.int32(masks.layer)),
        )
        self._launch("product_forward", z.dtype, (n, o, i), 1, args)

    def input_gradient(
        self, dz: Array, w: Array, dx: Array, activation: str, a: Array | None, slope: Array | None
    ) -> None:
        (n, o), i = dz.shape, w.shape[0]
        sizes = np.int64(n), np.int64(i), np.int64(o), is_wide(o, (dz,)), is_wide(o, (w,))
        args = (dz, w, dx, *sizes, sources.code_of("activation", activation), a, slope)
        self._launch("product_input_gradient", dx.dtype, (n, i, o), 1, args)

    def weight_gradient(self, x: Array, dz: Array, dw: Array, db: Array, stride: int, slabs: tuple[int, int]) -> None:
        (n, i), o = x.shape, dz.shape[1]
        sizes = np.int64(n), np.int64(i), np.int64(o), is_wide(i, (x,)), is_wide(o, (dz,))
        args = (x, dz, dw, db, np.int64(stride), *sizes)
        self._launch("product_weight_gradient", dw.dtype, (i, o, n), slabs[0], args)

    def _launch(self, name: str, dtype: Any, sizes: tuple[int, int, int], slabs: int, args: tuple[Any, ...]) -> None:
        tile = choose_tile(*sizes, self._multiprocessors)
        grid = (-(-sizes[0] // tile), -(-sizes[1] // tile), slabs)
        self._operations._launch("products.cu", f"{name}<{{real}}, {tile}>", dtype, (grid, (256,)), args)


class BlasProducts:
    """cuBLAS, and a kernel after it."""

    def __init__(self, operations: CupyOperations, multiprocessors: int) -> None:
        self._operations, self._multiprocessors = operations, multiprocessors
        self._blas = operations._blas

    def through(self, operations: CupyOperations) -> BlasProducts:
        return BlasProducts(operations, self._multiprocessors)

    def slabs(self, rows: int, fan_in: int, fan_out: int) -> tuple[int, int]:
        return 1, gradient_slabs(rows, fan_out, self._multiprocessors)

    def forward(
        self,
        x: Array,
        w: Array,
        b: Array,
        z: Array,
        slope: Array | None,
        activation: str,
        masks: Masks | None,
        cursor: Array,
        index: int,
    ) -> None:
        n, o = z.shape
        self._blas.forward(x, w, z)
        args: tuple[Any, ...] = (sources.code_of("activation", activation), b, z, slope, np.int64(n), np.int64(o))
        args += (is_wide(o, (b, z, slope)),)
        name = "bias_activation"
        if masks is not None:
            name = "bias_activation_dropout"
            args += (np.uint32(masks.threshold), z.dtype.type(masks.scale), np.uint64(masks.key))
            args += (cursor, np.int32(index), np.int32(masks.layer))
        self._operations._launch("layers.cu", f"{name}<{{real}}>", z.dtype, tile_grid(n, o), args)

    def input_gradient(
        self, dz: Array, w: Array, dx: Array, activation: str, a: Array | None, slope: Array | None
    ) -> None:
        self._blas.input_gradient(dz, w, dx)
        if slope is not None or not get_activation(activation).is_identity:
            self._slope(activation, a, slope, dx, None, 0, 1)

    def weight_gradient(self, x: Array, dz: Array, dw: Array, db: Array, stride: int, slabs: tuple[int, int]) -> None:
        i, o = x.shape[1], dz.shape[1]
        self._blas.weight_gradient(x, dz, dw[: i * o].reshape(i, o))
        self._slope(IDENTITY, None, None, dz, db, stride, slabs[1])

    def _slope(
        self, activation: str, a: Array | None, slope: Array | None, d: Array, db: Array | None, stride: int, slabs: int
    ) -> None:
        n, o = d.shape
        args = (sources.code_of("activation", activation), a, slope, d, db, np.int64(stride), np.int64(n), np.int64(o))
        self._operations._launch("layers.cu", "activation_gradient<{real}>", d.dtype, column_grid(o, slabs), args)
