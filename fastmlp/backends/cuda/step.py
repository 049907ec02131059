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
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cuda.blas import GRAPH_CUBLAS, Call
from fastmlp.backends.cuda.capture import Branch, captured
from fastmlp.backends.cuda.launches import StepLaunches
from fastmlp.backends.cuda.memory import (
    BATCH,
    Arena,
    check_room,
    chunk_table,
    copies_of,
    gradients_of,
    held,
    held_types,
    step_arena,
)
from fastmlp.backends.cuda.operations import rule_numbers
from fastmlp.backends.cuda.products import StepProducts
from fastmlp.errors import KernelError
from fastmlp.streams import reached

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


class TrainingStep(StepLaunches):
    """The steps of one run: what it trains, on which data, in which way; keeps alive all that it touches.

    Graphs know the addresses of what they work on.  Of a small data set they have a copy, so that they serve the next
    run as well, on data of that kind; those of a large one end with the run.

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
        self._part = self._of_pass(plan)
        self._cupy = operations._cupy
        assert plan.optimizer is not None, "the session was made for prediction"
        self._optimizer = plan.optimizer
        self.trained = state.params, tuple(state.moments), state.average, state.key
        self._key = state.key
        self._params, self._average = state.params, state.average
        self._moments = plan.optimizer.by_role(state.moments)
        self._stream, side, ahead = (self._cupy.cuda.Stream(non_blocking=True) for _ in range(3))
        self._side, self._ahead = (Branch(self._cupy, self._stream, other) for other in (side, ahead))
        self._graphs: dict[tuple[int, int], Any] = {}
        self._listed: dict[int, list[Call]] = {}
        self.gradients = gradients_of(self._part, products)
        self._chunks_on_host = self._update_chunks()
        targets = np.empty((0, *data.y.shape[1:]), held_types(plan, data.x, data.y)[1])
        self._arena = arena = self._arena_for(plan, len(data.x), targets)
        memory = operations.memory_info()
        check_room(lambda plan: self._arena_for(plan, len(data.x), targets).nbytes, plan, data.x, memory)
        copies = self._copies_for(data)
        if arena.nbytes + copies.nbytes > memory["free"] + memory["kept"]:
            copies = Arena({})
        self.nbytes = arena.nbytes + copies.nbytes
        """Bytes of device memory beside the model's and the data's own."""
        self.memory = arena.allocate(self._cupy)
        self._copies, self._room = copies.allocate(self._cupy), len(data.x)
        self.read(data)
        streams = enumerate((self._stream, side)[: products.workspaces(self._part)])
        self._workspaces = [(stream, self.memory[f"workspace{place}"]) for place, stream in streams]
        self._row_names = [n for n in self.memory if n.rstrip("0123456789") in _ROW_ARRAYS]
        operations.fill(self.memory["chunks"], self._chunks_on_host)
        operations.fill(self.memory["rule"], rule_numbers(self._optimizer, plan.spec.l2))
        if numbers := plan.spec.loss.parameters:
            operations.fill(self.memory["loss_parameters"], np.array(numbers, plan.precision.products))

    # of these, steps of several ranks have others, see `shards.py`

    def _of_pass(self, plan: Plan) -> Plan:
        """Return the plan of a pass forward and back."""
        return plan

    def _update_chunks(self) -> NDArray[np.int64]:
        return chunk_table(self._plan, self.gradients)

    def _arena_for(self, plan: Plan, rows: int, targets: Array) -> Arena:
        return step_arena(plan, self._products, rows, targets)

    def _copies_for(self, data: DeviceData) -> Arena:
        return copies_of(self._plan, self._products, data, self._arena)

    def _settle(self) -> None:
        """Wait for what others have to do with what is queued, no longer than they are waited for."""
        return

    def trains(self, state: TrainState) -> bool:
        """Return whether it trains these very buffers."""
        params, moments, average, key = self.trained
        same = params is state.params and average is state.average and key == state.key
        return same and len(moments) == len(state.moments) and all(map(operator.is_, moments, state.moments))

    def reads(self, data: DeviceData) -> bool:
        """Return whether it works on this very data."""
        own = self._data
        return own is not None and own.x is data.x and own.y is data.y and own.weights is data.weights

    def fits(self, state: TrainState, data: DeviceData) -> bool:
        """Return whether it trains these very buffers on this very data."""
        return self.trains(state) and self.reads(data)

    def can_read(self, data: DeviceData) -> bool:
        """Return whether it can go on on this data, of the kind that its graphs were captured on."""
        parts = self._copies_for(data).parts
        alike = {name: (shape[1:], dtype) for name, (shape, dtype) in parts.items()}
        own = {name: (array.shape[1:], array.dtype) for name, array in self._copies.items()}
        return bool(parts) and alike == own and len(data.x) <= self._room

    def read(self, data: DeviceData) -> None:
        """Work on this data from now on."""
        self._data: DeviceData | None = None  # until all of it is there
        self._order_given: Array | None = None
        self._rows = len(data.x)
        arrays = dict(zip(BATCH, held(self._operations, data, self._plan), strict=True))
        for name, copy_of in self._copies.items():
            copy_of[: self._rows] = arrays[name]
            arrays[name] = copy_of
        self._x, self._y, self._weights = arrays.values()
        self._data = data

    def let_go(self) -> bool:
        """Let go of the data; return whether steps on others can follow."""
        self._data = self._order_given = None
        return bool(self._copies)

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
                self._settle()
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
        self._stream.wait_event(reached(self._cupy, caller))
        try:
            with self._stream:
                self._products.bind(self._workspaces)
                yield caller
        except BaseException:
            # what is queued may still be at work on memory that the caller is about to free
            with contextlib.suppress(*self._operations.cuda_errors):
                caller.wait_event(reached(self._cupy, self._stream))
            raise
        caller.wait_event(reached(self._cupy, self._stream))

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
            self._one_by_one(count, whole, short)
            return
        done = 0
        while done < count:
            rows = batch if done < whole else short
            steps = GRAPH_STEPS if done + GRAPH_STEPS <= whole else 1
            self._graph(steps, rows).launch(self._stream)
            done += steps

    def _one_by_one(self, count: int, whole: int, short: int) -> None:
        for index in range(count):
            self._operations.carry_out(self._calls(self._plan.batch if index < whole else short), index)

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
        self._settle()
        kept = {name: self.memory[name].get() for name in ("cursor", "table", "frozen", "report")}
        self.memory["cursor"][...] = 0
        self.memory["table"][...] = 0  # a batch that weighs nothing
        self.memory["frozen"][...] = 1
        self._enqueue(0, rows)
        self._advance(0)
        self._settle()
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
        return self._listed_by(lambda step: step._enqueue(index, rows))

    def _listed_by(self, queue: Callable[[Self], object]) -> list[Call]:
        """Return the launches that a function queues, of which none is carried out."""
        calls: list[Call] = []
        listing = copy(self)
        listing._operations = self._operations.listing(calls)
        listing._products = self._products.through(listing._operations)
        queue(listing)
        return calls

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


def _counting(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[int, ...]:
    """Return which arguments of a launch are the number of the step: in two steps they alone differ."""
    pairs = enumerate(zip(first, second, strict=True))
    return tuple(place for place, (a, b) in pairs if isinstance(a, np.int32) and a != b)
