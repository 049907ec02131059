"""A training step on CUDA: a fixed sequence of launches in memory of its own, run as it is or captured into graphs.

All that changes from step to step lies in device memory (see ``kernels/cuda/step.cuh``), so the sequence for step
`index` of a call is the same every time.  The host uploads the order of an epoch and the scalars of a call, queues
steps, and reads their report: one synchronisation a call.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.blas import GRAPH_CUBLAS, Call
from fastmlp.backends.cuda.capture import Branch, captured
from fastmlp.backends.cuda.kernels import column_grid, row_grid
from fastmlp.backends.cuda.memory import BATCH, NORM_BLOCKS, check_room, chunk_table, gradients_of, held, step_arena
from fastmlp.backends.cuda.operations import loss_grid, rule_numbers
from fastmlp.backends.cuda.products import Masks, StepProducts
from fastmlp.errors import KernelError
from fastmlp.formulas.activations import get_activation
from fastmlp.formulas.random_bits import keep_threshold

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.cuda.operations import CupyOperations
    from fastmlp.backends.data import DeviceData
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState

GRAPH_STEPS = 16
"""Steps of a long graph."""
GRAPH = "the graph of a step"
_ONLY_CAPTURED = ("product_", "advance_cursor", GRAPH, GRAPH_CUBLAS)
_ROW_ARRAYS = ("x", "y", "weights", "row_losses", "row_hits", "z", "dz", "slope")
"""What the arena holds a row of for each row of a batch; z, dz and slope with the number of their layer."""


class TrainingStep:
    """The steps of one run: what it trains, on which data, in which way; keeps alive all that it touches.

    Parameters
    ----------
    operations : CupyOperations
    products : StepProducts
        Which products are used; those that are captured must be `capturable`.
    plan : Plan
    state : TrainState
        Its buffers are trained in place.
    data : DeviceData
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
        data: DeviceData,
        *,
        captured: bool,
    ) -> None:
        self._operations, self._products, self._plan, self._captured = operations, products, plan, captured
        self._cupy = operations._cupy
        assert plan.optimizer is not None, "the session was made for prediction"
        self._optimizer = plan.optimizer
        self.source = data, state.params, tuple(state.moments), state.average, state.key
        self._key = state.key
        self._params, self._average = state.params, state.average
        self._moments = plan.optimizer.by_role(state.moments)
        self._stream, side, ahead = (self._cupy.cuda.Stream(non_blocking=True) for _ in range(3))
        self._side, self._ahead = Branch(self._stream, side), Branch(self._stream, ahead)
        self._graphs: dict[tuple[int, int], Any] = {}
        self._listed: dict[int, list[Call]] = {}
        self._order_given: Array | None = None
        self._x, self._y, self._weights = held(operations, data, plan)
        self._rows = len(self._x)
        self.gradients = gradients_of(plan, products)
        self._chunks_on_host = chunk_table(plan, self.gradients)
        arena = step_arena(plan, products, len(self._x), self._y)
        check_room(arena.nbytes, plan, products, self._x, self._y, operations.memory_info())
        self.nbytes = arena.nbytes
        """Bytes of device memory beside the model's and the data's own."""
        self.memory = arena.allocate(self._cupy)
        streams = enumerate((self._stream, side)[: products.workspaces(plan)])
        self._workspaces = [(stream, self.memory[f"workspace{place}"]) for place, stream in streams]
        self._row_names = [n for n in self.memory if n.rstrip("0123456789") in _ROW_ARRAYS]
        operations.fill(self.memory["chunks"], self._chunks_on_host)
        operations.fill(self.memory["rule"], rule_numbers(self._optimizer, plan.spec.l2))
        if numbers := plan.spec.loss.parameters:
            operations.fill(self.memory["loss_parameters"], np.array(numbers, plan.precision.products))

    def fits(self, state: TrainState, data: DeviceData) -> bool:
        """Return whether it trains these very buffers on this very data."""
        own_data, params, moments, average, key = self.source
        same = own_data.x is data.x and own_data.y is data.y and own_data.weights is data.weights
        same &= params is state.params and average is state.average and key == state.key
        return same and len(moments) == len(state.moments) and all(map(operator.is_, moments, state.moments))

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the short last one included."""
        return -(-self._rows // self._plan.batch)

    # --- running ---

    def run(
        self,
        order: Array,
        table: NDArray[np.float64],
        first: int,
        step: int,
        meanwhile: Callable[[], object] | None = None,
    ) -> tuple[int, bool, NDArray[np.float64]]:
        """Carry out the steps of a table; return how many, whether all were finite, and their totals (count, 3).

        Parameters
        ----------
        order : (n,) int64
            The rows of the epoch, on the device.
        table : (count, 6) float64
        first : int
            The number of the first step within the epoch.
        step : int
            The number of that step since the model began.
        meanwhile : callable, optional
            Called on the caller's stream when all is queued, before the host waits.

        Raises
        ------
        KernelError
            A kernel fails on the device, or cannot be launched or captured.
        """
        count = len(table)
        try:
            with self._own_stream() as caller:
                self._take_order(order)
                self._upload(table, first, step)
                self._queue(first, count)
                if meanwhile is not None:
                    with caller:
                        meanwhile()
                report = self.memory["report"][:count].get()
        except self._operations.failures as e:
            raise self._failure(e) from e
        finite = np.isfinite(report[:, 0])
        done = count if finite.all() else int(np.argmin(finite))
        return done, bool(finite.all()), report[:done]

    def halves(self, order: Array, table: NDArray[np.float64], step: int, between: Callable[[], object]) -> None:
        """Take one step, and call a function on its stream between the forward pass and the rest."""
        rows = min(self._plan.batch, len(order))
        layers, views = self._plan.layout.views(self._params), self._views(rows)
        with self._own_stream():
            self._take_order(order)
            self._upload(table, 0, step)
            self._gather(0, rows, views)
            self._forward(0, views, layers)
            between()
            self._loss(0, rows, views)
            self._backward(views, layers)
            self._apply_gradients(0, layers)

    def timed(self, order: Array, table: NDArray[np.float64], rounds: int) -> float:
        """Return the milliseconds that a step takes, by events around so many rounds of all steps of a table.

        What is done once (a graph is captured, and brought to the device; a kernel is loaded) counts as well.
        """
        cuda, count = self._cupy.cuda, len(table)
        begin, end = cuda.Event(), cuda.Event()
        try:
            with self._own_stream():
                self._take_order(order)
                self._upload(table, 0, 0)
                begin.record(self._stream)
                for _ in range(rounds):
                    self.memory["cursor"][...] = 0
                    self._queue(0, count)
                end.record(self._stream)
                end.synchronize()
        except self._operations.failures as e:
            raise self._failure(e) from e
        return float(cuda.get_elapsed_time(begin, end)) / (rounds * count)

    def _take_order(self, order: Array) -> None:
        if order is not self._order_given:
            self.memory["order"][: len(order)] = order  # of fewer rows than the data where some are held out
            self._order_given, self._rows = order, len(order)

    def _failure(self, error: Exception) -> KernelError:
        """Return what went wrong with the steps, which kernel it was as far as that is known, and what avoids it."""
        operations, poisoned = self._operations, self._operations.poisoned()
        # a fault shows at whatever is called next, so the kernel at hand is to blame only where each was waited for
        if isinstance(error, KernelError) and (operations.waits or not poisoned):
            text, kernel = str(error), error.kernel
        else:
            error = error.__cause__ if isinstance(error.__cause__, Exception) else error
            kernel = ", ".join(sorted(set(self.kernels())))
            text = f"a training step fails on this GPU ({error}), in one of {kernel}"
        own = self._captured or any(part in kernel for part in _ONLY_CAPTURED)
        switch = "fastmlp.get_backend('cupy', way='eager') avoids it" if own else "backend='numba' avoids the GPU"
        if poisoned:
            switch = f"CUDA can do nothing more in this process; in a new one, {switch}"
        return KernelError(f"{text}; {switch}", kernel=kernel)

    @contextlib.contextmanager
    def _own_stream(self) -> Iterator[Any]:
        """Work on a stream that may be captured, after what the caller has queued and before what it queues next."""
        caller = self._cupy.cuda.get_current_stream()
        self._stream.wait_event(caller.record())
        try:
            with self._stream:
                self._products.bind(self._workspaces)
                yield caller
        except BaseException:
            # what is queued may still be at work on memory that the caller is about to free
            with contextlib.suppress(*self._operations.cuda_errors):
                caller.wait_event(self._stream.record())
            raise
        caller.wait_event(self._stream.record())

    def _upload(self, table: NDArray[np.float64], first: int, step: int) -> None:
        memory = self.memory
        self._operations.fill(memory["table"][: len(table)], table)
        self._operations.fill(memory["cursor"], np.array([0, first, step], np.int64))
        memory["frozen"][...] = 0

    def _queue(self, first: int, count: int) -> None:
        batch = self._plan.batch
        short = self._rows - (self.steps_per_epoch - 1) * batch  # rows of the last step of an epoch
        whole = count - (1 if first + count == self.steps_per_epoch and short < batch else 0)
        if not self._captured:
            for index in range(count):
                self._operations.carry_out(self._calls(batch if index < whole else short), index)
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
            try:
                found = self._graphs[steps, rows] = self._captured_steps(steps, rows)
            except self._operations.cuda_errors as e:
                raise KernelError(f"{GRAPH} is refused ({e})", kernel=GRAPH) from e
        return found

    def _captured_steps(self, steps: int, rows: int) -> Any:
        def queue() -> None:
            self._gather(0, rows, self._views(rows, 0))
            for index in range(steps):
                self._learn(index, rows, self._views(rows, index), more=index + 1 < steps)
            self._advance(steps)

        return captured(self._stream, queue, self._operations.cuda_errors)

    def _advance(self, steps: int) -> None:
        self._launch("optimizers.cu", "advance_cursor", ((1,), (1,)), (self.memory["cursor"], np.int32(steps)))

    def _warm_up(self, rows: int) -> None:
        """Run a step that changes nothing, so that every kernel is loaded before a capture; nothing may be then."""
        kept = {name: self.memory[name].get() for name in ("cursor", "table", "frozen", "report")}
        self.memory["cursor"][...] = 0
        self.memory["table"][...] = 0  # a batch that weighs nothing
        self.memory["frozen"][...] = 1
        self._enqueue(0, rows)
        self._advance(0)
        self._stream.synchronize()
        for name, values in kept.items():
            self._operations.fill(self.memory[name], values)

    # --- the launches of a step ---

    def kernels(self) -> list[str]:
        """Return the names of the kernels of a step, own products included; nothing is launched."""
        calls = self._calls(self._plan.batch)
        return [call.kernel for call in calls] + (["advance_cursor"] if self._captured else [])

    def _calls(self, rows: int) -> list[Call]:
        """Return the launches of a step on so many rows, made once: of their arguments its number alone changes."""
        found = self._listed.get(rows)
        if found is None:
            first, second = self._list(0, rows), self._list(1, rows)
            found = self._listed[rows] = [
                call._replace(places=_counting(call.args, other.args))
                for call, other in zip(first, second, strict=True)
            ]
        return found

    def _list(self, index: int, rows: int) -> list[Call]:
        calls: list[Call] = []
        listing = copy(self)
        listing._operations = self._operations.listing(calls)
        listing._products = self._products.through(listing._operations)
        listing._enqueue(index, rows)
        return calls

    def _launch(self, file: str, name: str, grid: tuple[Any, Any], args: tuple[Any, ...]) -> None:
        self._operations._launch(file, name, self._plan.precision.products, grid, args)

    def _enqueue(self, index: int, n: int) -> None:
        """Queue step `index` of the graph, or of the call, on n rows."""
        views = self._views(n)
        self._gather(index, n, views)
        self._learn(index, n, views)

    def _learn(self, index: int, n: int, views: dict[str, Array], *, more: bool = False) -> None:
        """Queue what follows the gathering of the batch, and the gathering of the next, where there is one `more`."""
        layers = self._plan.layout.views(self._params)
        self._forward(index, views, layers)
        if more:  # into the other place; beside the small kernels of the loss, since large products want to be alone
            with self._ahead.beside():
                self._gather(index + 1, n, self._views(n, index + 1))
        self._loss(index, n, views)
        self._backward(views, layers)
        self._side.join()
        self._apply_gradients(index, layers)
        self._ahead.join()

    def _views(self, n: int, index: int = 0) -> dict[str, Array]:
        """Return what has a row for each row of a batch; that of every second step of a graph has another place."""
        views = {name: self.memory[name][:n] for name in self._row_names}
        second = index % 2 and self._products.capturable
        return views if not second else views | {name: self.memory[f"next_{name}"][:n] for name in BATCH}

    def _masks(self, layer: int) -> Masks | None:
        rate = self._plan.spec.dropout[layer] if layer < self._plan.spec.layers else 0.0
        return Masks(keep_threshold(rate), 1 / (1 - rate), self._key, layer) if rate else None

    def _gather(self, index: int, n: int, views: dict[str, Array]) -> None:
        real = sources.REALS[self._plan.precision.products.name]
        types = ", ".join((*(sources.CTYPES[a.dtype.name] for a in (self._x, self._y)), real))
        masks = self._masks(0) or Masks(0, 1.0, 0, 0)
        args = (
            *(self._x, self._y, self._weights, self.memory["order"], self.memory["cursor"], np.int32(index)),
            *(np.int64(self._plan.batch), views["x"], views["y"], views["weights"], np.int64(n)),
            *(np.int64(self._x.shape[1]), np.int64(1 if self._y.ndim == 1 else self._y.shape[1])),
            *(np.uint32(masks.threshold), self._plan.precision.products.type(masks.scale), np.uint64(masks.key)),
        )
        self._launch("gather.cu", f"gather_batch<{types}>", row_grid(n), args)

    def _forward(self, index: int, views: dict[str, Array], layers: list[tuple[Array, Array]]) -> None:
        a = views["x"]
        for layer, (w, b) in enumerate(layers):
            z = views[f"z{layer}"]
            activation, masks = self._plan.spec.activations[layer], self._masks(layer + 1)
            cursor = self.memory["cursor"]
            self._products.forward(a, w, b, z, views.get(f"slope{layer}"), activation, masks, cursor, index)
            a = z

    def _loss(self, index: int, n: int, views: dict[str, Array]) -> None:
        plan, memory, loss = self._plan, self.memory, self._plan.spec.loss
        top = plan.spec.layers - 1
        outputs, real = views[f"z{top}"], sources.REALS[plan.precision.products.name]
        grid, warps = loss_grid(*outputs.shape)
        held = sources.CTYPES[self._y.dtype.name]
        weights = None if self._weights is None else views["weights"]
        where = (memory["table"], memory["cursor"], np.int32(index))
        rows = (views["row_losses"], views["row_hits"])
        args = (
            *(sources.code_of("loss", loss.name), memory.get("loss_parameters"), np.int64(len(loss.parameters))),
            *(outputs, views["y"], weights, np.float64(0), *where, views[f"dz{top}"], *rows, np.int64(n)),
            np.int64(outputs.shape[1]),
        )
        self._launch("losses.cu", f"loss_rows<{real}, {held}, {warps}>", grid, args)
        totals = (*rows, weights, *where, memory["report"], memory["frozen"], np.int64(n))
        with self._side.beside():
            self._launch("losses.cu", "finish_batch<{real}>", ((1,), (256,)), totals)

    def _backward(self, views: dict[str, Array], layers: list[tuple[Array, Array]]) -> None:
        spec = self._plan.spec
        top, grads, beside = spec.layers - 1, self.memory["grads"], False
        self._output_slope(views)
        for layer in range(top, spec.lowest_trainable - 1, -1):
            dz = views[f"dz{layer}"]
            below = views[f"z{layer - 1}"] if layer else views["x"]
            more, place = layer > spec.lowest_trainable, self.gradients[layer]
            alone = self._products.alone(*layers[layer][0].shape)
            if alone and beside:
                self._side.join()
            beside = more and not alone
            if place is not None:
                dw, db = grads[place.weights : place.stop], grads[place.biases : place.stop]
                with self._side.beside() if beside else contextlib.nullcontext():
                    self._products.weight_gradient(below, dz, dw, db, place.stride, place.slabs)
            if more:
                slope, activation = views.get(f"slope{layer - 1}"), spec.activations[layer - 1]
                self._products.input_gradient(dz, layers[layer][0], views[f"dz{layer - 1}"], activation, below, slope)

    def _output_slope(self, views: dict[str, Array]) -> None:
        """Multiply by the slope of the outputs, where the loss is not one with their activation."""
        top = self._plan.spec.layers - 1
        activation, slope, d = self._plan.spec.activations[top], views.get(f"slope{top}"), views[f"dz{top}"]
        if slope is not None or not get_activation(activation).is_identity:
            self._operations.activation_backward(activation, views[f"z{top}"], slope, d, d)

    def _apply_gradients(self, index: int, layers: list[tuple[Array, Array]]) -> None:
        plan, memory, spec = self._plan, self.memory, self._plan.spec
        count = len(self._chunks_on_host)
        where = (memory["table"], memory["cursor"], np.int32(index))
        if not count:
            return
        grads, rule = memory["grads"], memory["rule"]
        parts = 0
        if self._optimizer.clip_norm is not None:
            parts = min(count, NORM_BLOCKS)
            norm = (memory["chunks"], np.int64(count), grads, self._params, rule, memory["partials"], *where)
            self._launch("optimizers.cu", "gradient_norm<{real}>", ((parts,), (256,)), norm)
        # where max-norm changes parameters after the update, the average is taken after both
        late = spec.max_norm is not None
        args = (
            sources.code_of("optimizer", self._optimizer.name),
            *(memory["chunks"], self._params, grads, *self._moments, None if late else self._average, rule),
            *(memory["partials"], np.int32(parts), *where, memory["frozen"]),
        )
        self._launch("optimizers.cu", "update_parameters<{real}>", ((count,), (256,)), args)
        if spec.max_norm is None:
            return
        for (w, _), still in zip(layers, spec.frozen, strict=True):
            if not still:
                i, o = w.shape
                sizes = plan.precision.weights.type(spec.max_norm), np.int64(i), np.int64(o)
                limit = (w, *sizes, *where, memory["frozen"])
                self._launch("optimizers.cu", "max_norm<{real}>", column_grid(o), limit)
        if self._average is not None:
            average = (memory["chunks"], self._params, self._average, *where, memory["frozen"])
            self._launch("optimizers.cu", "average_parameters<{real}>", ((count,), (256,)), average)


def _counting(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[int, ...]:
    """Return which arguments of a launch are the number of the step: in two steps they alone differ."""
    pairs = enumerate(zip(first, second, strict=True))
    return tuple(place for place, (a, b) in pairs if isinstance(a, np.int32) and a != b)
