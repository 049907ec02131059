"""A training step on CUDA: a fixed sequence of launches in memory of its own, run as it is or captured into graphs.

All that changes from step to step lies in device memory (see ``kernels/cuda/step.cuh``), so the sequence for step
`index` of a call is the same every time.  The host uploads the order of an epoch and the scalars of a call, queues
steps, and reads their report: one synchronisation a call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends import cuda_source
from fastmlp.backends.cuda_kernels import column_grid, row_grid
from fastmlp.backends.cuda_products import Masks, StepProducts
from fastmlp.backends.cupy_operations import loss_grid, loss_parameter, moments_by_role, rule_numbers
from fastmlp.random_bits import keep_threshold

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Rows
    from fastmlp.backends.cupy_operations import CupyOperations
    from fastmlp.plan import Plan
    from fastmlp.state import TrainState

GRAPH_STEPS = 16
"""Steps of a long graph."""
NORM_BLOCKS = 256
_CHUNK, _LARGE_CHUNK, _LARGE = 1024, 8192, 1 << 22
_ALIGNMENT = 256
_ROW_ARRAYS = ("x", "y", "weights", "row_losses", "row_hits", "z", "dz", "slope")
"""What the arena holds a row of for each row of a batch; z, dz and slope with the number of their layer."""


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


class TrainingStep:
    """The steps of one run: what it trains, on which data, in which way; keeps alive all that it touches.

    Parameters
    ----------
    operations : CupyOperations
    products : StepProducts
        Which products are used; only `OwnProducts` can be captured.
    plan : Plan
    state : TrainState
        Its buffers are trained in place.
    data : Rows
        On the device; stays as it is, bytes as bytes.
    captured : bool
        Run as CUDA graphs.
    """

    def __init__(
        self,
        operations: CupyOperations,
        products: StepProducts,
        plan: Plan,
        state: TrainState,
        data: Rows,
        *,
        captured: bool,
    ) -> None:
        self._operations, self._products, self._plan, self._captured = operations, products, plan, captured
        self._cupy = operations._cupy
        assert plan.optimizer is not None, "the session was made for prediction"
        self._optimizer = plan.optimizer
        self.source = data, state.params, tuple(state.moments), state.average, state.key
        self._key = state.key
        self._params, self._mean = state.params, state.average
        self._moments = moments_by_role(plan.optimizer, state.moments)
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._graphs: dict[tuple[int, int], Any] = {}
        self._order_given: Array | None = None
        self._x, self._y, self._weights = _held(operations, data, plan)
        self._slabs = slabs_of(plan, products)
        self._chunks_on_host = chunk_table(plan, self._slabs)
        arena = step_arena(plan, products, len(self._x), self._y)
        check_room(arena.nbytes, plan, products, self._x, self._y, operations.memory_info())
        self.nbytes = arena.nbytes
        """Bytes of device memory beside the model's and the data's own."""
        self._memory = arena.allocate(self._cupy)
        self._row_names = [n for n in self._memory if n.rstrip("0123456789") in _ROW_ARRAYS]
        self._memory["chunks"].set(self._chunks_on_host)
        self._memory["rule"].set(rule_numbers(self._optimizer, plan.spec.l2))

    def fits(self, state: TrainState, data: Rows) -> bool:
        """Return whether it trains these very buffers on this very data."""
        own_data, params, moments, average, key = self.source
        same = own_data.x is data.x and own_data.y is data.y and own_data.weights is data.weights
        same &= params is state.params and average is state.average and key == state.key
        return same and len(moments) == len(state.moments) and all(map(_is, moments, state.moments))

    @cached_property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the short last one included."""
        return -(-len(self._x) // self._plan.batch)

    # --- running ---

    def run(
        self, order: Array, table: NDArray[np.float64], first: int, step: int
    ) -> tuple[int, bool, NDArray[np.float64]]:
        """Carry out the steps of a table; return how many, whether all were finite, and their totals (count, 3).

        Parameters
        ----------
        order : (n,) int64
            The rows of the epoch, on the device.
        table : (count, 5) float64
        first : int
            The number of the first step within the epoch.
        step : int
            The number of that step since the model began.
        """
        memory, count = self._memory, len(table)
        with self._own_stream():
            if order is not self._order_given:
                memory["order"][...] = order
                self._order_given = order
            self._upload(table, first, step)
            self._queue(first, count)
            report = memory["report"][:count].get()
        finite = np.isfinite(report[:, 0])
        done = count if finite.all() else int(np.argmin(finite))
        return done, bool(finite.all()), report[:done]

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[None]:
        """Work on a stream that may be captured, after what the caller has queued and before what it queues next."""
        caller = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(caller.record())
        with self._stream:
            yield
        caller.wait_event(self._stream.record())

    def _upload(self, table: NDArray[np.float64], first: int, step: int) -> None:
        memory = self._memory
        memory["table"][: len(table)].set(np.ascontiguousarray(table))
        memory["cursor"].set(np.array([0, first, step], np.int64))
        memory["frozen"][...] = 0

    def _queue(self, first: int, count: int) -> None:
        batch = self._plan.batch
        short = len(self._x) - (self.steps_per_epoch - 1) * batch  # rows of the last step of an epoch
        whole = count - (1 if first + count == self.steps_per_epoch and short < batch else 0)
        if not self._captured:
            for index in range(count):
                self._enqueue(index, batch if index < whole else short)
            return
        done = 0
        while done < count:
            rows = batch if done < whole else short
            steps = GRAPH_STEPS if done + GRAPH_STEPS <= whole else 1
            self._graph(steps, rows).launch(self._stream)
            done += steps

    def _graph(self, steps: int, rows: int) -> Any:
        """Return the graph of so many steps of so many rows, captured when it is first needed."""
        found = self._graphs.get((steps, rows))
        if found is None:
            self._warm_up(rows)
            self._stream.begin_capture()
            try:
                for index in range(steps):
                    self._enqueue(index, rows)
                self._launch("optimizers.cu", "advance_cursor", ((1,), (1,)), (self._memory["cursor"], np.int32(steps)))
            finally:
                found = self._stream.end_capture()
            self._graphs[steps, rows] = found
        return found

    def _warm_up(self, rows: int) -> None:
        """Run a step that changes nothing, so that every kernel is loaded before a capture; nothing may be then."""
        kept = {name: self._memory[name].get() for name in ("cursor", "table", "frozen", "report")}
        self._memory["cursor"][...] = 0
        self._memory["table"][...] = 0  # a batch that weighs nothing
        self._memory["frozen"][...] = 1
        self._enqueue(0, rows)
        self._launch("optimizers.cu", "advance_cursor", ((1,), (1,)), (self._memory["cursor"], np.int32(0)))
        self._stream.synchronize()
        for name, values in kept.items():
            self._memory[name].set(values)

    # --- the launches of a step ---

    def _launch(self, file: str, name: str, grid: tuple[Any, Any], args: tuple[Any, ...]) -> None:
        self._operations._launch(file, name, self._plan.dtype, grid, args)

    def _enqueue(self, index: int, n: int) -> None:
        """Queue step `index` of the graph, or of the call, on n rows."""
        views = {name: self._memory[name][:n] for name in self._row_names}
        layers = self._plan.layout.views(self._params)
        self._gather(index, n, views)
        self._forward(index, views, layers)
        self._loss(index, n, views)
        self._backward(views, layers)
        self._update(index, layers)

    def _masks(self, layer: int) -> Masks | None:
        rate = self._plan.spec.dropout[layer] if layer < self._plan.spec.layers else 0.0
        return Masks(keep_threshold(rate), 1 / (1 - rate), self._key, layer) if rate else None

    def _gather(self, index: int, n: int, views: dict[str, Array]) -> None:
        real = cuda_source.REALS[self._plan.dtype.name]
        types = ", ".join((*(cuda_source.CTYPES[a.dtype.name] for a in (self._x, self._y)), real))
        masks = self._masks(0) or Masks(0, 1.0, 0, 0)
        args = (
            *(self._x, self._y, self._weights, self._memory["order"], self._memory["cursor"], np.int32(index)),
            *(np.int64(self._plan.batch), views["x"], views["y"], views["weights"], np.int64(n)),
            *(np.int64(self._x.shape[1]), np.int64(1 if self._y.ndim == 1 else self._y.shape[1])),
            *(np.uint32(masks.threshold), self._plan.dtype.type(masks.scale), np.uint64(masks.key)),
        )
        self._launch("gather.cu", f"gather_batch<{types}>", row_grid(n), args)

    def _forward(self, index: int, views: dict[str, Array], layers: list[tuple[Array, Array]]) -> None:
        a = views["x"]
        for layer, (w, b) in enumerate(layers):
            z = views[f"z{layer}"]
            activation, masks = self._plan.spec.activations[layer], self._masks(layer + 1)
            cursor = self._memory["cursor"]
            self._products.forward(a, w, b, z, views.get(f"slope{layer}"), activation, masks, cursor, index)
            a = z

    def _loss(self, index: int, n: int, views: dict[str, Array]) -> None:
        plan, memory, loss = self._plan, self._memory, self._plan.spec.loss
        top = plan.spec.layers - 1
        outputs, real = views[f"z{top}"], cuda_source.REALS[plan.dtype.name]
        grid, warps = loss_grid(*outputs.shape)
        held = cuda_source.CTYPES[self._y.dtype.name]
        weights = None if self._weights is None else views["weights"]
        where = (memory["table"], memory["cursor"], np.int32(index))
        rows = (views["row_losses"], views["row_hits"])
        args = (
            *(np.int32(cuda_source.codes("losses.cu", "Loss")[loss.name]), loss_parameter(loss, plan.dtype), outputs),
            *(views["y"], weights, np.float64(0), *where, views[f"dz{top}"], *rows, np.int64(n)),
            np.int64(outputs.shape[1]),
        )
        self._launch("losses.cu", f"loss_rows<{real}, {held}, {warps}>", grid, args)
        totals = (*rows, weights, *where, memory["report"], memory["frozen"], np.int64(n))
        self._launch("losses.cu", "finish_batch<{real}>", ((1,), (256,)), totals)

    def _backward(self, views: dict[str, Array], layers: list[tuple[Array, Array]]) -> None:
        plan, spec = self._plan, self._plan.spec
        top, grads = spec.layers - 1, self._memory["grads"]
        self._output_slope(views)
        for layer in range(top, spec.lowest_trainable - 1, -1):
            dz = views[f"dz{layer}"]
            below = views[f"z{layer - 1}"] if layer else views["x"]
            if not spec.frozen[layer]:
                w_at, b_at = plan.layout.offsets[layer]
                slabs = self._slabs[layer]
                self._products.weight_gradient(below, dz, grads[w_at:], grads[b_at:], plan.layout.size, slabs)
            if layer > spec.lowest_trainable:
                slope, activation = views.get(f"slope{layer - 1}"), spec.activations[layer - 1]
                self._products.input_gradient(dz, layers[layer][0], views[f"dz{layer - 1}"], activation, below, slope)

    def _output_slope(self, views: dict[str, Array]) -> None:
        """Multiply by the slope of the outputs, where the loss is not one with their activation."""
        top = self._plan.spec.layers - 1
        activation, slope, d = self._plan.spec.activations[top], views.get(f"slope{top}"), views[f"dz{top}"]
        if slope is not None or activation != "identity":
            self._operations.activation_backward(activation, views[f"z{top}"], slope, d, d)

    def _update(self, index: int, layers: list[tuple[Array, Array]]) -> None:
        plan, memory, spec = self._plan, self._memory, self._plan.spec
        count = len(self._chunks_on_host)
        where = (memory["table"], memory["cursor"], np.int32(index))
        if not count:
            return
        grads, stride, rule = memory["grads"], np.int64(plan.layout.size), memory["rule"]
        parts = 0
        if self._optimizer.clip_norm is not None:
            parts = min(count, NORM_BLOCKS)
            norm = (memory["chunks"], np.int64(count), grads, stride, self._params, rule, memory["partials"])
            self._launch("optimizers.cu", "gradient_norm<{real}>", ((parts,), (256,)), norm)
        # where max-norm changes parameters after the update, the average is taken after both
        late = spec.max_norm is not None
        args = (
            np.int32(cuda_source.codes("optimizers.cu", "Optimizer")[self._optimizer.name]),
            *(memory["chunks"], self._params, grads, stride, *self._moments, None if late else self._mean, rule),
            *(memory["partials"], np.int32(parts), *where, memory["frozen"]),
        )
        self._launch("optimizers.cu", "update_parameters<{real}>", ((count,), (256,)), args)
        if spec.max_norm is None:
            return
        for (w, _), still in zip(layers, spec.frozen, strict=True):
            if not still:
                i, o = w.shape
                limit = (w, plan.dtype.type(spec.max_norm), np.int64(i), np.int64(o), *where, memory["frozen"])
                self._launch("optimizers.cu", "max_norm<{real}>", column_grid(o), limit)
        if self._mean is not None:
            mean = (memory["chunks"], self._params, self._mean, *where, memory["frozen"])
            self._launch("optimizers.cu", "average_parameters<{real}>", ((count,), (256,)), mean)


def _is(a: object, b: object) -> bool:
    return a is b


def _held(operations: CupyOperations, data: Rows, plan: Plan) -> tuple[Array, Array, Array | None]:
    """Return inputs, targets and row weights in types that a step gathers: bytes stay bytes, labels int64."""
    x, y, weights = data.x, data.y, data.weights
    if x.dtype.name not in ("uint8", *cuda_source.REALS):
        x = x.astype(plan.dtype)
    wanted = np.dtype(np.int64) if y.ndim == 1 else plan.dtype
    y = y if y.dtype == wanted else y.astype(wanted)
    if weights is not None and weights.dtype != plan.dtype:
        weights = weights.astype(plan.dtype)
    dense = operations._dense
    return dense(x), dense(y), None if weights is None else dense(weights)
