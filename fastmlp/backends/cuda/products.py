"""The products of a layer inside a training step, in two ways behind one interface: cuBLAS, and fastmlp's own kernels.

cuBLAS is the faster for large layers; CuPy does not let it be called while a stream is captured into a graph (its
`cublas.setStream` refuses; CUDA itself would allow it, with a workspace of one's own).  Own kernels do what follows a
product (bias, activation, slope, bias gradient) in the same launch.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.kernels import column_grid, gradient_slabs, is_wide, tile_grid
from fastmlp.formulas.activations import get_activation

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.cuda.blas import CuBlas
    from fastmlp.backends.cuda.operations import CupyOperations
    from fastmlp.network.plan import Plan

SLABS = 8
"""Parts, at most, that the rows of a weight gradient are cut into; the optimizer adds them in order."""
_ROWS_A_SLAB = 256
# As `BLOCKS` of products.cu: the 65,536 registers of any multiprocessor from 7.5 on hold two blocks of 256 threads.
_BLOCKS_A_MULTIPROCESSOR = 2
TILES = (16, 32, 64)
# How much of its multiprocessor's arithmetic each tile uses, relative to the largest, and a block that has it to itself
# beside one of several, by times of products on an NVIDIA H100 (`benchmarks/gpu_day.py`, stage "products").
# No attribute of a device tells them: they are what is left of the ratio of shared memory to multipliers (there 128
# bytes a cycle for 128 of them; for 64 on compute capability 7.5 and 8.0) where loads, barriers and the ends of loops
# are hidden or not.  `benchmarks/GPU.md` has the experiment that gives them for another GPU; wrong ones cost time.
_EFFICIENCY = {16: 0.41, 32: 0.76, 64: 1.0}
_ALONE = 1.2
_LARGEST_GRID = 65535


def choose_tile(m: int, n: int, k: int, multiprocessors: int, *, slabs: bool = False) -> int:
    """Return the side of the tiles in which a product (m, k) (k, n) is computed, one of `TILES`.

    A block computes one tile; the tile is the one whose busiest multiprocessor is done first.  Small tiles fill the
    device with few rows and columns, large ones load each number less often.  Where the sum may be cut into slabs, as
    in weight gradients, there are as many blocks more.
    """

    def time(tile: int) -> float:
        parts = weight_slabs(m, n, k, tile, multiprocessors) if slabs else 1
        busiest = -(-(-(-m // tile) * -(-n // tile) * parts) // multiprocessors)
        return max(busiest, _ALONE) * tile * tile * -(-k // parts) / _EFFICIENCY[tile]

    fitting = [tile for tile in TILES if -(-n // tile) <= _LARGEST_GRID]
    if not fitting:
        raise ValueError(f"a layer of {n} units is wider than CUDA's grids allow, {_LARGEST_GRID * max(TILES)}")
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
    first_row: int


NO_MASKS = Masks(0, math.nan, 0, 0, 0)
"""A threshold that keeps all: nobody looks at the scale, or would be seen to."""


class StepProducts(Protocol):
    """The products of a step, each with what follows it.

    `index` is the number of the step within its graph; `cursor` the device's own count, see `step.cuh`.

    Attributes
    ----------
    capturable : bool
        Whether they may be launched while a stream is captured.
    """

    capturable: ClassVar[bool]

    def through(self, operations: CupyOperations) -> StepProducts:
        """Return the same products, launched through other operations."""

    def workspaces(self, plan: Plan) -> int:
        """Return how many of the streams of a step need memory for cuBLAS to work in."""

    def bind(self, places: list[tuple[Any, Array]]) -> None:
        """Let this thread's products run on these streams, each with its own memory, from now on."""

    def slabs(self, rows: int, fan_in: int, fan_out: int) -> tuple[int, int]:
        """Return in how many slabs the gradients of weights and of biases are left."""

    def alone(self, fan_in: int, fan_out: int) -> bool:
        """Return whether a layer's products should have the device to themselves.

        cuBLAS cuts a product into about as many blocks as there are multiprocessors.  Where something else is at work
        as they start, several fall to one, and the product takes as many times as long: on an NVIDIA H100 82
        microseconds for 32 beside the gathering of a batch, 110 for 40 beside another weight gradient.
        """

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


class _Products:
    """What products have that need no memory of a step's, nor the whole of a device."""

    def workspaces(self, plan: Plan) -> int:
        return 0

    def bind(self, places: list[tuple[Any, Array]]) -> None:
        assert not places

    def alone(self, fan_in: int, fan_out: int) -> bool:
        return False


class OwnProducts(_Products):
    """fastmlp's own kernels: one launch a product, whatever follows it.

    Parameters
    ----------
    operations : CupyOperations
    multiprocessors : int
    batch : int, optional
        Rows by which tiles are chosen, by default those at hand.  So a short batch takes the kernels of the whole ones,
        which were proven: whether a run has a short batch, and of how many rows, its plan does not tell.
    """

    capturable: ClassVar[bool] = True

    def __init__(self, operations: CupyOperations, multiprocessors: int, batch: int | None = None) -> None:
        self._operations, self._multiprocessors, self._batch = operations, multiprocessors, batch

    def through(self, operations: CupyOperations) -> OwnProducts:
        return OwnProducts(operations, self._multiprocessors, self._batch)

    def slabs(self, rows: int, fan_in: int, fan_out: int) -> tuple[int, int]:
        tile = choose_tile(fan_in, fan_out, rows, self._multiprocessors, slabs=True)
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
        masks = masks or NO_MASKS
        args = (
            *(x, w, b, z, slope, np.int64(n), np.int64(i), np.int64(o), is_wide(i, (x,)), is_wide(o, (w,))),
            sources.code_of("activation", activation),
            *(np.uint32(masks.threshold), z.dtype.type(masks.scale), np.uint64(masks.key)),
            *(cursor, np.int32(index), np.int32(masks.layer), np.int64(masks.first_row)),
        )
        self._launch("product_forward", z.dtype, (n, o), (self._batch or n, o, i), None, args)

    def input_gradient(
        self, dz: Array, w: Array, dx: Array, activation: str, a: Array | None, slope: Array | None
    ) -> None:
        (n, o), i = dz.shape, w.shape[0]
        sizes = np.int64(n), np.int64(i), np.int64(o), is_wide(o, (dz,)), is_wide(o, (w,))
        args = (dz, w, dx, *sizes, sources.code_of("activation", activation), a, slope)
        self._launch("product_input_gradient", dx.dtype, (n, i), (self._batch or n, i, o), None, args)

    def weight_gradient(self, x: Array, dz: Array, dw: Array, db: Array, stride: int, slabs: tuple[int, int]) -> None:
        (n, i), o = x.shape, dz.shape[1]
        sizes = np.int64(n), np.int64(i), np.int64(o), is_wide(i, (x,)), is_wide(o, (dz,))
        args = (x, dz, dw, db, np.int64(stride), *sizes)
        self._launch("product_weight_gradient", dw.dtype, (i, o), (i, o, self._batch or n), slabs[0], args)

    def _launch(
        self,
        name: str,
        dtype: Any,
        shape: tuple[int, int],
        sizes: tuple[int, int, int],
        slabs: int | None,
        args: tuple[Any, ...],
    ) -> None:
        """Launch a product of some shape, in tiles as for one of these sizes."""
        tile = choose_tile(*sizes, self._multiprocessors, slabs=slabs is not None)
        grid = (-(-shape[0] // tile), -(-shape[1] // tile), slabs or 1)
        self._operations._launch("products.cu", f"{name}<{{real}}, {tile}>", dtype, (grid, (256,)), args)


class BlasProducts(_Products):
    """cuBLAS, by CuPy's handle or another, and a kernel after it."""

    capturable: ClassVar[bool] = False

    def __init__(self, operations: CupyOperations, multiprocessors: int, blas: CuBlas | None = None) -> None:
        self._operations, self._multiprocessors = operations, multiprocessors
        self._blas = blas or operations._blas

    def through(self, operations: CupyOperations) -> BlasProducts:
        return BlasProducts(operations, self._multiprocessors)

    def alone(self, fan_in: int, fan_out: int) -> bool:
        return True

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
            args += (cursor, np.int32(index), np.int32(masks.layer), np.int64(masks.first_row))
        self._operations._launch("layers.cu", f"{name}<{{real}}>", z.dtype, tile_grid(n, o), args)

    def input_gradient(
        self, dz: Array, w: Array, dx: Array, activation: str, a: Array | None, slope: Array | None
    ) -> None:
        self._blas.input_gradient(dz, w, dx)
        if slope is not None or not get_activation(activation).is_identity:
            self._operations.activation_backward(activation, a, slope, dx, dx)

    def weight_gradient(self, x: Array, dz: Array, dw: Array, db: Array, stride: int, slabs: tuple[int, int]) -> None:
        (n, i), o = x.shape, dz.shape[1]
        self._blas.weight_gradient(x, dz, dw[: i * o].reshape(i, o))
        args = dz, db, np.int64(stride), np.int64(n), np.int64(o)
        self._operations._launch("layers.cu", "column_sums<{real}>", dz.dtype, column_grid(o, slabs[1]), args)


WORTH = {"float32": 2e6, "float64": 5e4}
"""Multiply-adds of a product for each multiprocessor, from which cuBLAS gains more than a launch of its own costs.

Measured on an NVIDIA H100 (`benchmarks/gpu_day.py`, stage "products"): all three products of a layer together take 62
microseconds by own kernels and 67 by cuBLAS at 1.6e6 (512 x 784 x 512, float32), 113 and 95 at 3.1e6.  In float64,
where cuBLAS has tensor cores there, the two are alike from 1e4 to 2e4, and cuBLAS takes 0.75 of the time at 1.3e5.

It is for each multiprocessor, so that a device with fewer of them turns to cuBLAS sooner; the rest is of that one GPU:
how much faster cuBLAS multiplies there, and what a launch within a graph costs.  Where float64 has no tensor cores (all
but A100, H100 and the like) the second is surely another.  `benchmarks/GPU.md` has the experiment.
"""


class CapturedProducts:
    """What captured steps multiply with: own kernels where a layer is small, cuBLAS by a handle of our own where not.

    Which it is depends on sizes, type and device alone, so that a run has the same bits whenever it is made there.
    """

    capturable: ClassVar[bool] = True

    def __init__(self, operations: CupyOperations, multiprocessors: int, plan: Plan) -> None:
        self._multiprocessors, self._plan, self._graph_blas = multiprocessors, plan, operations.graph_blas
        self._own = OwnProducts(operations, multiprocessors, plan.batch)
        self._blas = BlasProducts(operations, multiprocessors, operations.graph_blas)

    def through(self, operations: CupyOperations) -> CapturedProducts:
        return CapturedProducts(operations, self._multiprocessors, self._plan)

    def _of_batch(self, batch: int, fan_in: int, fan_out: int) -> OwnProducts | BlasProducts:
        large = batch * fan_in * fan_out > WORTH[self._plan.precision.products.name] * self._multiprocessors
        return self._blas if large and self._graph_blas is not None else self._own

    def _of(self, fan_in: int, fan_out: int) -> OwnProducts | BlasProducts:
        """Return what multiplies in a layer; in a short batch too, since gradients lie as the whole ones leave them."""
        return self._of_batch(self._plan.batch, fan_in, fan_out)

    def workspaces(self, plan: Plan) -> int:
        by_blas = any(self._of_batch(plan.batch, i, o) is self._blas for i, o in pairwise(plan.spec.units))
        return 2 if by_blas else 0  # the streams that a step's products run on

    def bind(self, places: list[tuple[Any, Array]]) -> None:
        if places:
            assert self._graph_blas is not None
            self._graph_blas.bind(places)

    def slabs(self, rows: int, fan_in: int, fan_out: int) -> tuple[int, int]:
        return self._of_batch(rows, fan_in, fan_out).slabs(rows, fan_in, fan_out)

    def alone(self, fan_in: int, fan_out: int) -> bool:
        return self._of(fan_in, fan_out).alone(fan_in, fan_out)

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
        self._of(*w.shape).forward(x, w, b, z, slope, activation, masks, cursor, index)

    def input_gradient(
        self, dz: Array, w: Array, dx: Array, activation: str, a: Array | None, slope: Array | None
    ) -> None:
        self._of(*w.shape).input_gradient(dz, w, dx, activation, a, slope)

    def weight_gradient(self, x: Array, dz: Array, dw: Array, db: Array, stride: int, slabs: tuple[int, int]) -> None:
        self._of(x.shape[1], dz.shape[1]).weight_gradient(x, dz, dw, db, stride, slabs)
