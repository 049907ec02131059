"""The device memory of a training step: one allocation, whose size is known before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cuda_products import StepProducts

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.plan import Plan

NORM_BLOCKS = 256
_CHUNK, _LARGE_CHUNK, _LARGE = 1024, 8192, 1 << 22
_ALIGNMENT = 256


class Arena:
    """One allocation, cut into arrays.

    Parameters
    ----------
    parts : dict
        name: (shape, dtype).
    """

    def __init__(self, parts: dict[str, tuple[tuple[int, ...], Any]]) -> None:
        self._parts, self._starts, self.nbytes = parts, {}, 0
        for name, (shape, dtype) in parts.items():
            self._starts[name] = self.nbytes
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            self.nbytes += -(-size // _ALIGNMENT) * _ALIGNMENT

    def allocate(self, cupy: Any) -> dict[str, Array]:
        """Return the arrays, as views into one new allocation."""
        memory = cupy.empty((max(self.nbytes, 1),), np.uint8)
        arrays = {}
        for name, (shape, dtype) in self._parts.items():
            start = self._starts[name]
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            arrays[name] = memory[start : start + size].view(np.dtype(dtype)).reshape(shape)
        return arrays


def chunk_table(plan: Plan, slabs: list[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the chunks that an optimizer's blocks take, (count, 4): start, stop, is weight, slabs of the gradient.

    Parameters
    ----------
    plan : Plan
    slabs : list of (int, int)
        For each layer, in how many slabs the gradients of its weights and of its biases lie.
    """
    spec, offsets = plan.spec, plan.layout.offsets
    length = _LARGE_CHUNK if plan.layout.size > _LARGE else _CHUNK
    rows = []
    for is_weight in (1, 0):
        for layer in range(spec.layers):
            if spec.frozen[layer]:
                continue
            start = offsets[layer][1 - is_weight]
            stop = start + spec.units[layer + 1] * (spec.units[layer] if is_weight else 1)
            for at in range(start, stop, length):
                rows.append((at, min(at + length, stop), is_weight, slabs[layer][1 - is_weight]))
    return np.array(rows, np.int64).reshape(-1, 4)


def slabs_of(plan: Plan, products: StepProducts) -> list[tuple[int, int]]:
    """Return for each layer in how many slabs the gradients of its weights and of its biases are left."""
    return [products.slabs(plan.batch, i, o) for i, o in pairwise(plan.spec.units)]


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
    spec, batch, real = plan.spec, plan.batch, plan.dtype
    steps, slabs = -(-rows // batch), slabs_of(plan, products)
    parts: dict[str, tuple[tuple[int, ...], Any]] = {
        "x": ((batch, spec.units[0]), real),
        "y": ((batch, *targets.shape[1:]), targets.dtype),
        "weights": ((batch,), real),
        "row_losses": ((batch,), real),
        "row_hits": ((batch,), real),
        "grads": ((max(max(s) for s in slabs) * plan.layout.size,), real),
        "chunks": (chunk_table(plan, slabs).shape, np.int64),
        "partials": ((NORM_BLOCKS,), np.float64),
        "rule": ((7,), np.float64),
        "order": ((rows,), np.int64),
        "cursor": ((3,), np.int64),
        "table": ((steps, 5), np.float64),
        "report": ((steps, 3), np.float64),
        "frozen": ((steps + 1,), np.int32),
    }
    for layer, o in enumerate(spec.units[1:]):
        parts[f"z{layer}"] = parts[f"dz{layer}"] = ((batch, o), real)
        if plan.needs_slope[layer]:
            parts[f"slope{layer}"] = ((batch, o), real)
    return Arena(parts)


def check_room(needed: int, plan: Plan, products: StepProducts, x: Array, y: Array, memory: Mapping[str, int]) -> None:
    """Raise MemoryError, with the figures and what would fit, where a step does not fit on the device."""
    free = memory.get("free", needed) + memory.get("kept", 0)
    if needed <= free:
        return
    low, high = 0, plan.batch  # the largest batch that fits is in low..high - 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = step_arena(replace(plan, batch=middle), products, len(x), y).nbytes <= free
        low, high = (middle, high) if fits else (low, middle)
    cure = f"the largest batch that fits is {low}" if low else "not even a batch of one row fits: use a smaller network"
    raise MemoryError(
        f"training in batches of {plan.batch} rows needs {needed:,} bytes on the device beside the data ({x.nbytes:,} "
        f"bytes) and the parameters; {free:,} are free; {cure}"
    )
