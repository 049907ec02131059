"""The device memory of a training step: one allocation, whose size is known before it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cuda.products import StepProducts
from fastmlp.backends.data import DeviceData
from fastmlp.backends.sparse import SparseRows
from fastmlp.formulas.optimizers import StepScalars

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.cuda.operations import CupyOperations
    from fastmlp.backends.data import HostData
    from fastmlp.network.plan import Plan

NORM_BLOCKS = 256
BATCH = ("x", "y", "weights")
"""What is gathered of a batch; captured steps have a second place for it, for that of the next step."""
WORKSPACE = 8 * 2**20
"""Bytes that cuBLAS works in on each stream of a captured step: as much as it takes by itself on a large device."""
KEPT = 64 * 2**20
"""Bytes of device memory up to which captured steps outlast a run, with a copy of its data: they are larger only where
a step takes so long that to capture it anew is nothing."""
_CHUNK, _LARGE_CHUNK, _LARGE = 1024, 8192, 1 << 22
_ALIGNMENT = 256
_APART = 64
"""Numbers that parts of the gradients begin at a multiple of."""


class Arena:
    """One allocation, cut into arrays.

    Parameters
    ----------
    parts : dict
        name: (shape, dtype).
    """

    def __init__(self, parts: dict[str, tuple[tuple[int, ...], Any]]) -> None:
        self.parts, self._starts, self.nbytes = parts, {}, 0
        for name, (shape, dtype) in parts.items():
            self._starts[name] = self.nbytes
            size = math.prod(shape) * np.dtype(dtype).itemsize
            self.nbytes += -(-size // _ALIGNMENT) * _ALIGNMENT

    def allocate(self, cupy: Any) -> dict[str, Array]:
        """Return the arrays, as views into one new allocation."""
        memory = cupy.empty((max(self.nbytes, 1),), np.uint8)
        arrays = {}
        for name, (shape, dtype) in self.parts.items():
            start = self._starts[name]
            size = math.prod(shape) * np.dtype(dtype).itemsize
            arrays[name] = memory[start : start + size].view(np.dtype(dtype)).reshape(shape)
        return arrays


class Gradients(NamedTuple):
    """Where a step leaves the gradients of a layer, counted in numbers from the start of the gradients of all.

    Of weights and of biases alike, slab s begins `stride` numbers after slab s - 1.
    """

    weights: int
    biases: int
    stride: int
    slabs: tuple[int, int]
    stop: int

    @classmethod
    def after(cls, start: int, sizes: tuple[int, int], slabs: tuple[int, int]) -> Gradients:
        """Return the places, from `start` on, of so many weights and biases in so many slabs each, and no others."""
        weights, biases = (-(-size // _APART) * _APART for size in sizes)
        # where weights are left in one slab, as by cuBLAS, those of the biases follow each other
        stride = biases if slabs[0] == 1 else weights + biases
        return cls(start, start + weights, stride, slabs, start + weights + biases + (max(slabs) - 1) * stride)


def gradients_of(plan: Plan, products: StepProducts) -> list[Gradients | None]:
    """Return where the gradients of each layer are left; None for those that do not train."""
    spec, start = plan.spec, 0
    places: list[Gradients | None] = []
    for layer, (i, o) in enumerate(pairwise(spec.units)):
        place = None
        if not spec.frozen[layer]:
            place = Gradients.after(start, (i * o, o), products.slabs(plan.batch, i, o))
            start = place.stop
        places.append(place)
    return places


def flat_gradients(plan: Plan) -> list[Gradients | None]:
    """Return where the gradients of each layer lie in a buffer of the layout of the parameters."""
    places = zip(plan.layout.offsets, plan.spec.frozen, strict=True)
    return [None if still else Gradients(*starts, 0, (1, 1), plan.layout.size) for starts, still in places]


def chunk_table(plan: Plan, gradients: Sequence[Gradients | None]) -> NDArray[np.int64]:
    """Return the chunks that an optimizer's blocks take, (count, 6).

    They are: start, stop, is weight, slabs of the gradient, how far behind a parameter its gradient lies, and how far
    its slabs lie apart.
    """
    spec, offsets = plan.spec, plan.layout.offsets
    length = _chunk_length(plan)
    parts = [np.empty((0, 6), np.int64)]
    for is_weight in (1, 0):
        for layer, place in enumerate(gradients):
            if place is None:
                continue
            start = offsets[layer][1 - is_weight]
            stop = start + spec.units[layer + 1] * (spec.units[layer] if is_weight else 1)
            behind = (place.weights if is_weight else place.biases) - start
            first = np.arange(start, stop, length)
            part = np.empty((len(first), 6), np.int64)
            part[:, 0], part[:, 1] = first, np.minimum(first + length, stop)
            part[:, 2:] = is_weight, place.slabs[1 - is_weight], behind, place.stride
            parts.append(part)
    return np.concatenate(parts)


def _chunk_length(plan: Plan) -> int:
    return _LARGE_CHUNK if plan.layout.size > _LARGE else _CHUNK


def _chunks(plan: Plan, gradients: Sequence[Gradients | None]) -> int:
    """Return how many chunks the table has, which takes longer to make."""
    length, layers = _chunk_length(plan), zip(pairwise(plan.spec.units), gradients, strict=True)
    return sum(-(-i * o // length) - (-o // length) for (i, o), place in layers if place is not None)


def update_parts(chunks: int, steps: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return what the end of a step works in, beside gradients and parameters, as parts of an arena.

    Parameters
    ----------
    chunks : int
        See `chunk_table`.
    steps : int
        How many rows the table of steps has.
    """
    return {
        "chunks": ((chunks, 6), np.int64),
        "partials": ((NORM_BLOCKS,), np.float64),
        "rule": ((7,), np.float64),
        "cursor": ((3,), np.int64),
        "table": ((steps, len(StepScalars._fields)), np.float64),
        "frozen": ((steps + 1,), np.int32),
    }


def step_arena(plan: Plan, products: StepProducts, rows: int, targets: Array) -> Arena:
    """Return all that a training step works in, as sizes; nothing is allocated.

    Parameters
    ----------
    plan : Plan
    products : StepProducts
    rows : int
        Rows of the data set.
    targets : array
        The targets of the data set, of which shape and type are looked at.
    """
    spec, batch, real = plan.spec, plan.batch, plan.precision.products
    steps, gradients = -(-rows // batch), gradients_of(plan, products)
    parts: dict[str, tuple[tuple[int, ...], Any]] = {
        "x": ((batch, spec.units[0]), real),
        "y": ((batch, *targets.shape[1:]), targets.dtype),
        "weights": ((batch,), real),
        "row_losses": ((batch,), real),
        "row_hits": ((batch,), real),
        "grads": ((max((place.stop for place in gradients if place is not None), default=0),), real),
        **update_parts(_chunks(plan, gradients), steps),
        "order": ((rows,), np.int64),
        "report": ((steps, 3), np.float64),
    }
    if spec.loss.parameters:
        parts["loss_parameters"] = ((len(spec.loss.parameters),), real)
    for layer, o in enumerate(spec.units[1:]):
        parts[f"z{layer}"] = parts[f"dz{layer}"] = ((batch, o), real)
        if plan.needs_slope[layer]:
            parts[f"slope{layer}"] = ((batch, o), real)
    if products.capturable:
        parts |= {f"next_{name}": parts[name] for name in BATCH}
    parts |= {f"workspace{place}": ((WORKSPACE,), np.uint8) for place in range(products.workspaces(plan))}
    return Arena(parts)


def check_room(needs: Callable[[Plan], int], plan: Plan, x: Array, memory: Mapping[str, int]) -> None:
    """Raise MemoryError, with the figures and what would fit, where a step does not fit on the device.

    Parameters
    ----------
    needs : callable
        Returns the bytes that steps of a plan take.
    plan : Plan
    x : array
        The inputs, which are there.
    memory : mapping
        What `Backend.memory_info` returns.
    """
    needed = needs(plan)
    free = memory.get("free", needed) + memory.get("kept", 0)
    if needed > free:
        cure = _largest_batch(needs, plan, free)
        raise MemoryError(
            f"training in batches of {plan.batch} rows needs {needed:,} bytes on the device beside the data "
            f"({x.nbytes:,} bytes) and the parameters; {free:,} are free; {cure}"
        )


def _largest_batch(needs: Callable[[Plan], int], plan: Plan, free: int) -> str:
    """Say what would fit into so many bytes."""
    low, high = 0, plan.batch  # the largest batch that fits is in low..high - 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = needs(replace(plan, batch=middle)) <= free
        low, high = (middle, high) if fits else (low, middle)
    return f"the largest batch that fits is {low}" if low else "not even a batch of one row fits: use a smaller network"


def held_types(plan: Plan, x: Array, y: Array) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the types in which inputs and targets lie on the device while a step gathers them."""
    held = x.dtype.name in ("uint8", "float32", "float64")
    return x.dtype if held else plan.precision.products, np.dtype(np.int64) if y.ndim == 1 else plan.precision.products


def held(operations: CupyOperations, data: DeviceData, plan: Plan) -> tuple[Array, Array, Array | None]:
    """Return inputs, targets and row weights in types that a step gathers: bytes stay bytes, labels int64."""
    x, y, weights = data.x, data.y, data.weights
    x_type, y_type = held_types(plan, x, y)
    x = x if x.dtype == x_type else x.astype(x_type)
    y = y if y.dtype == y_type else y.astype(y_type)
    if weights is not None and weights.dtype != plan.precision.products:
        weights = weights.astype(plan.precision.products)
    dense = operations._dense
    return dense(x), dense(y), None if weights is None else dense(weights)


def copies_of(plan: Plan, products: StepProducts, data: HostData | DeviceData, arena: Arena) -> Arena:
    """Return what captured steps have a copy of a data set in; nothing where they end with their run."""
    x_type, y_type = held_types(plan, data.x, data.y)
    parts: dict[str, tuple[tuple[int, ...], Any]] = {"x": (data.x.shape, x_type), "y": (data.y.shape, y_type)}
    if data.weights is not None:
        parts["weights"] = (data.weights.shape, plan.precision.products)
    copies = Arena(parts)
    changes = isinstance(data.x, SparseRows) or (isinstance(data, DeviceData) and data.changes)
    ends = changes or not products.capturable or arena.nbytes + copies.nbytes > KEPT
    return Arena({}) if ends else copies


def steps_bytes(plan: Plan, products: StepProducts, data: HostData) -> int:
    """Return the bytes that training steps on some data take where there is room, a copy of the data included."""
    arena = arena_on(plan, products, data)
    return arena.nbytes + copies_of(plan, products, data, arena).nbytes


def arena_on(plan: Plan, products: StepProducts, data: HostData) -> Arena:
    """Return what training steps on some data work in."""
    return step_arena(plan, products, len(data), targets_held(plan, data))


def targets_held(plan: Plan, data: HostData) -> NDArray[Any]:
    """Return no rows of what the targets are on the device."""
    return np.empty((0, *data.y.shape[1:]), held_types(plan, data.x, data.y)[1])


def data_bytes(plan: Plan, data: HostData) -> int:
    """Return the bytes that a data set takes on the device, beside what lies there already."""
    types = (*held_types(plan, data.x, data.y), plan.precision.products)
    here = (data.x, data.y, data.weights)
    there = (None if isinstance(data.x, np.ndarray) else data.x, data.y_there, data.weights_there)
    total = 0
    for array, own, held in zip(here, there, types, strict=True):
        if array is not None:
            total += array.nbytes if own is None else 0
            total += array.size * held.itemsize if array.dtype != held else 0  # a copy is converted
    return total


def check_fit(
    plan: Plan, ways: Sequence[Callable[[Plan], int]], data: HostData, more: int, memory: Mapping[str, int]
) -> None:
    """Raise MemoryError, with the figures and what would fit, where a run in any of some ways does not fit.

    Parameters
    ----------
    plan : Plan
    ways : sequence of callable
        Each returns the bytes that steps of a plan take in it.
    data : HostData
    more : int
        Bytes of moments and the like that are to be made first.
    memory : mapping
        What `Backend.memory_info` returns.
    """
    free, rows = memory["free"] + memory["kept"], len(data)
    resident = data_bytes(plan, data) + 16 * rows
    sizes = [way(plan) for way in ways]
    least = min(sizes)
    needed, way = more + resident + least, ways[sizes.index(least)]
    if needed <= free:
        return
    left = free - more - resident
    if left > 0:
        cure = _largest_batch(way, plan, left)
    else:
        cure = f"of the data, about {max(free - more, 0) * rows // (2 * resident):,} rows would"
    raise MemoryError(
        f"fit needs {needed:,} bytes on the GPU: {resident:,} for {rows:,} rows of data, {least:,} for "
        f"batches of {plan.batch} rows, {more:,} for the optimizer; {free:,} are free; {cure}"
    )
