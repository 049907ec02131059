"""Training steps of which a rank takes some shards of the batch, all ranks the same update: captured into graphs.

The passes over the shards, the sums along the tree, what goes from rank to rank and the update are one sequence of
launches, as in `step.py`, which has the rest.  What is exchanged stands on a stream of its own, forked as soon as the
gradients of some layers of the last shard are there, while those of the layers below are still computed, and joined
before the update.  Its calls come in the same order on all ranks, each between the same others.

All ranks have to agree to capture: to NCCL it is a property of a call whether it is captured, the same for all who make
it, and a graph of one rank answers the graph of the others that was captured with it (its user guide, "Using NCCL with
CUDA Graphs").  So none goes eagerly beside others that replay, though both would ask for the same.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastmlp.backends.cuda.capture import Branch
from fastmlp.backends.cuda.choice import CROSSING, choose_way, step_operations
from fastmlp.backends.cuda.memory import Arena, chunk_table, flat_gradients, step_arena, targets_held
from fastmlp.backends.cuda.products import CapturedProducts
from fastmlp.backends.cuda.step import TrainingStep
from fastmlp.backends.session import StepReport
from fastmlp.parallel.tree import Share, TreeSum, cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from fastmlp._typing import Array
    from fastmlp.backends.cuda.operations import CupyOperations
    from fastmlp.backends.cuda.products import StepProducts
    from fastmlp.backends.data import DeviceData, HostData
    from fastmlp.errors import KernelError
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState
    from fastmlp.parallel.group import Carrier

PIECE = 2**22
"""Bytes of gradients from which they are worth a call of their own while others are computed: so many take a link of
450 GB/s somewhat longer than the 6.6 us of a call, see `benchmarks/machines/h200.toml`.  Measured nowhere yet."""


class Piece(NamedTuple):
    """A run of the flat buffer that goes from rank to rank at once, as soon as the gradients of a layer are there."""

    start: int
    stop: int
    layer: int


def pieces_of(plan: Plan) -> list[Piece]:
    """Return what is exchanged at once, in the order in which it is there: upper layers, lower ones, all biases."""
    layout, lowest = plan.layout, plan.spec.lowest_trainable
    pieces: list[Piece] = []
    stop, pending = layout.weights_size, False
    for layer in range(plan.spec.layers - 1, lowest - 1, -1):
        start = layout.offsets[layer][0]
        pending = pending or not plan.spec.frozen[layer]
        if not pending:
            stop = start
        elif layer == lowest or (stop - start) * plan.precision.weights.itemsize >= PIECE:
            pieces.append(Piece(start, stop, layer))
            stop, pending = start, False
    if len(pieces) == 1:
        return [pieces[0]._replace(stop=layout.size)]
    return pieces and [*pieces, Piece(layout.offsets[lowest][1], layout.size, lowest)]


def piece_table(chunks: NDArray[np.int64], piece: Piece, behind: int) -> NDArray[np.int64]:
    """Return the chunks that lie in a piece, counted from where it starts; its gradients from `behind` on."""
    own = chunks[(chunks[:, 0] >= piece.start) & (chunks[:, 0] < piece.stop)].copy()
    own[:, :2] -= piece.start
    own[:, 4] += piece.start - behind
    return own


def part_of(plan: Plan, share: Share) -> Plan:
    """Return the plan of a pass over one shard."""
    return replace(plan, batch=share.most_rows(plan.batch)[1])


def products_of(operations: CupyOperations, plan: Plan, share: Share) -> CapturedProducts:
    """Return what shards multiply with: chosen by their rows, which do not depend on how many ranks there are."""
    return CapturedProducts(operations, operations.multiprocessors, part_of(plan, share))


def shared_arena(plan: Plan, products: StepProducts, rows: int, targets: Array, share: Share) -> Arena:
    """Return all that steps of several ranks work in; parameters as of `memory.step_arena`."""
    part, size, real = part_of(plan, share), plan.layout.size, plan.precision.weights
    parts = step_arena(part, products, rows, targets).parts
    own = max(share.most_rows(plan.batch)[0], 1)
    for name in ("x", "y", "weights"):
        shape, dtype = parts[name]
        parts[name] = parts[f"next_{name}"] = ((own, *shape[1:]), dtype)
    steps = -(-rows // plan.batch)
    parts["table"] = ((steps, parts["table"][0][1]), np.float64)
    parts["report"], parts["frozen"] = ((steps, 3), np.float64), ((steps + 1,), np.int32)
    chunks, pieces = parts["chunks"][0][0], pieces_of(plan)
    widest = max((-(-(piece.stop - piece.start) // share.ranks) for piece in pieces), default=0)
    return Arena(
        parts
        | {
            "shard_grads": parts["grads"],
            "grads": ((size,), real),
            "pieces": ((chunks, 6), np.int64),
            "sums": ((share.buffers, size), real),
            "brought": ((sum(share.counts) * widest,), real),
            "totals": ((share.shards, 3), np.float64),
        }
    )


def shared_bytes(operations: CupyOperations, plan: Plan, data: HostData, share: Share) -> int:
    """Return the bytes of device memory that such steps work in, beside the model's and the data's own."""
    products = products_of(operations, plan, share)
    return shared_arena(plan, products, len(data), targets_held(plan, data), share).nbytes


class ShardedStep(TrainingStep):
    """The steps of one run that several ranks take together.

    Parameters
    ----------
    carrier : Carrier
        Between the ranks; its calls are captured with the rest.
    share : Share
    others
        As for `TrainingStep`.
    """

    def __init__(
        self,
        operations: CupyOperations,
        plan: Plan,
        state: TrainState,
        data: DeviceData,
        carrier: Carrier,
        share: Share,
        *,
        captured: bool,
    ) -> None:
        self._carrier, self._share = carrier, share
        self._shard = share.first
        super().__init__(operations, products_of(operations, plan, share), plan, state, data, captured=captured)
        carrier.captures(self._graphs)
        memory = self.memory
        for name in ("sums", "grads"):
            memory[name][...] = 0  # what does not train stays so
        self._wire = Branch(self._cupy, self._stream, self._cupy.cuda.Stream(non_blocking=True))
        counts = (share.shards, share.ranks, share.rank, plan.layout.size)
        self._tree = TreeSum(*counts, lambda shape: memory["sums"][: shape[0]], operations.add)
        self._totals_bounds = [3 * bound for bound in cut(share.shards, share.ranks)]
        self._pieces: list[tuple[Piece, Array, Array]] = []
        places = [place for place in self.gradients if place is not None]
        chunks, done = chunk_table(self._part, self.gradients), 0
        for piece in pieces_of(plan):
            # of the gradients those of its layers alone, since others are being computed meanwhile
            mine = [p for layer, p in enumerate(self.gradients) if p and self._lies_in(layer, piece)] or places
            table = piece_table(chunks, piece, mine[0].weights)
            there = memory["pieces"][done : done + len(table)]
            operations.fill(there, table)
            self._pieces.append((piece, there, memory["shard_grads"][mine[0].weights : mine[-1].stop]))
            done += len(table)

    def _lies_in(self, layer: int, piece: Piece) -> bool:
        return piece.start <= self._plan.layout.offsets[layer][0] < piece.stop

    # --- what `TrainingStep` asks for ---

    def _of_pass(self, plan: Plan) -> Plan:
        return part_of(plan, self._share)

    def _update_chunks(self) -> NDArray[np.int64]:
        return chunk_table(self._plan, flat_gradients(self._plan))

    def _arena_for(self, plan: Plan, rows: int, targets: Array) -> Arena:
        return shared_arena(plan, self._products, rows, targets, self._share)

    def _copies_for(self, data: DeviceData) -> Arena:
        return Arena({})  # its graphs hold calls of a carrier that is lent for a run

    @property
    def _left(self) -> Array:
        return self.memory["shard_grads"]

    def kernels(self) -> list[str]:
        """Return the names of the kernels that a shard takes; nothing is launched, and nothing sent."""
        n = self._part.batch

        def shard(step: ShardedStep) -> None:
            views, layers = TrainingStep._views(step, n), self._plan.layout.views(self._params)
            TrainingStep._gather(step, 0, n, views)
            step._forward(0, views, layers)
            step._loss(0, n, views)
            step._backward(views, layers)

        return [call.kernel for call in self._listed_by(shard)]

    def let_go(self) -> bool:
        self._graphs.clear()  # which the carrier knows of too
        return super().let_go()

    def _settle(self) -> None:
        self._carrier.settle()

    def _failure(self, error: Exception) -> KernelError:
        # whether CUDA is past use is asked of the whole device, which may be waiting for ranks that do not come
        self._carrier.abort()
        return super()._failure(error)

    def _one_by_one(self, count: int, whole: int, short: int) -> None:
        for index in range(count):
            self._enqueue(index, self._plan.batch if index < whole else short)

    # --- the launches of a step ---

    def _views(self, n: int, index: int = 0) -> dict[str, Array]:
        first, stop = self._share.rows(n)
        return super()._views(stop - first, index)

    def _gather(self, index: int, n: int, views: dict[str, Array], first_row: int = 0) -> None:
        """Gather the rows of a batch of n that are this rank's."""
        first, stop = self._share.rows(n)
        if stop > first:
            super()._gather(index, stop - first, views, first)

    def _learn(self, index: int, n: int, views: dict[str, Array], *, more: bool = False) -> None:
        share, memory = self._share, self.memory
        layers, program = self._plan.layout.views(self._params), share.program
        last = max(place for place, (what, _, _) in enumerate(program) if what != "add")
        for place, (what, source, buffer) in enumerate(program[:last]):
            if what == "add":
                self._operations.add(memory["sums"][buffer], memory["sums"][source])
                continue
            done = self._losses_of(index, n, share.first + source, views, layers, more=more and place == 0)
            self._backward_of(done, layers)
            self._side.join()
            for piece in self._pieces:
                self._collect(piece, buffer, what)
        what, source, buffer = program[last]
        done = self._losses_of(index, n, share.first + source, views, layers, more=more and last == 0)
        self._share_totals(index)
        left = list(self._pieces)

        def ready(layer: int) -> None:
            while left and left[0][0].layer >= layer:
                self._share_piece(left.pop(0), buffer, what, program[last + 1 :])

        self._backward_of(done, layers, ready)
        ready(0)
        self._side.join()
        self._wire.join()
        self._apply_gradients(index, layers)
        self._ahead.join()

    def _losses_of(
        self, index: int, n: int, shard: int, views: dict[str, Array], layers: list[tuple[Array, Array]], *, more: bool
    ) -> dict[str, Array]:
        """Queue the forward pass of a shard of a batch of n rows, and its losses; return what its rows work in."""
        share, self._shard = self._share, shard
        bounds, (first, _) = cut(n, share.shards), share.rows(n)
        part, gathered = slice(bounds[shard] - first, bounds[shard + 1] - first), ("x", "y", "weights")
        rows = part.stop - part.start
        mine = {name: view[part] if name in gathered else self.memory[name][:rows] for name, view in views.items()}
        if rows:
            self._forward(index, mine, layers, bounds[shard])
        if more:  # as in a step of one rank
            with self._ahead.beside():
                self._gather(index + 1, n, self._views(n, index + 1))
        if rows:
            self._loss(index, rows, mine)
        else:  # a batch of fewer rows than shards
            self.memory["totals"][shard] = 0
        return mine

    def _backward_of(
        self, views: dict[str, Array], layers: list[tuple[Array, Array]], ready: Callable[[int], object] | None = None
    ) -> None:
        if len(views["x"]):
            self._backward(views, layers, ready)
        else:
            self._left[...] = 0

    def _finish(self, index: int, n: int, rows: tuple[Array | None, ...]) -> None:
        args = (*rows, self.memory["totals"][self._shard], np.int64(n))
        self._launch("losses.cu", "totals<{real}>", ((1,), (256,)), args)

    def _share_totals(self, index: int) -> None:
        """Bring the totals of all shards together; first of what is exchanged."""
        memory = self.memory
        with self._wire.beside(self._side):
            self._carrier.gather(memory["totals"].reshape(-1), self._totals_bounds)
            where = (memory["table"], memory["cursor"], np.int32(index), memory["report"], memory["frozen"])
            args = (memory["totals"], np.int64(self._share.shards), *where)
            self._launch("losses.cu", "finish_shards", ((1,), (1,)), args)

    def _collect(self, piece: tuple[Piece, Array, Array], buffer: int, what: str) -> None:
        """Bring the gradients of a shard into a buffer of the tree, or add them to it."""
        (start, stop, _), chunks, gradients = piece
        args = (chunks, gradients, self.memory["sums"][buffer][start:stop], np.bool_(what == "shard onto"))
        self._launch("optimizers.cu", "collect_gradients<{real}>", ((len(chunks),), (256,)), args)

    def _share_piece(
        self, piece: tuple[Piece, Array, Array], buffer: int, what: str, adds: Sequence[tuple[str, int, int]]
    ) -> None:
        """Add up a piece over the shards of all ranks, beside what is still computed."""
        (start, stop, _), carrier, memory = piece[0], self._carrier, self.memory
        bounds = cut(stop - start, carrier.size)
        first, last = bounds[carrier.rank : carrier.rank + 2]
        sums, whole, rows = memory["sums"][:, start:stop], memory["grads"][start:stop], sum(self._tree.counts)
        with self._wire.beside(self._side):
            self._collect(piece, buffer, what)
            for _, source, target in adds:
                self._operations.add(sums[target], sums[source])
            brought = memory["brought"][: rows * (last - first)].reshape(rows, last - first)
            carrier.exchange(sums[: self._tree.counts[carrier.rank]], self._tree.counts, bounds, brought)
            if last > first:
                whole[first:last] = self._tree.whole(brought)
            carrier.gather(whole, bounds)


class CapturedShares:
    """What takes whole steps of several ranks, where all of them capture; made for each run, by all ranks.

    Parameters
    ----------
    operations : CupyOperations
    plan : Plan
    carrier : Carrier
    share : Share
    wanted : str or None
        ``"captured"``, ``"eager"``, or None: captured where a shard takes so few operations that the host would be the
        slower of the two.  That all ranks work out alike; what each of them measured they might not.
    """

    def __init__(
        self, operations: CupyOperations, plan: Plan, carrier: Carrier, share: Share, wanted: str | None
    ) -> None:
        self._operations, self._plan, self._carrier, self._share = operations, plan, carrier, share
        self._wanted = wanted
        self._step: ShardedStep | None = None
        self.way: str | None = None
        """How steps run, once the ranks have agreed."""
        self._in_graphs = False

    def run(
        self,
        state: TrainState,
        data: DeviceData,
        order: Array,
        table: NDArray[np.float64],
        first: int,
        totals: NDArray[np.float64],
        meanwhile: Callable[[], object] | None,
    ) -> StepReport | None:
        """Take steps, see `Backend.train_steps`; None, with nothing done, where the ranks go on eagerly."""
        if self.way is None:
            self.way = self._agreed(state, data)
        if self.way == "eager":
            return None
        # to make it anew is to send and receive once for nothing, which one rank cannot do by itself
        if not all(self._carrier.share(self._step is not None and self._step.fits(state, data))):
            if self._step is not None:
                self._step.let_go()
            self._step = None  # its memory is free before more is taken
            given = self._operations, self._plan, state, data, self._carrier, self._share
            self._step = ShardedStep(*given, captured=self._in_graphs)
        assert self._step is not None
        done, finite, report = self._step.run(order, table, first, state.step, meanwhile)
        for sums in report:
            totals += sums
        state.step += done
        state.optimizer_step += done
        return StepReport(done, finite)

    def _agreed(self, state: TrainState, data: DeviceData) -> str:
        """Return how all ranks go: captured where each of them can and would."""
        own, part = self._wanted, part_of(self._plan, self._share)
        if own is None:
            own = "captured" if step_operations(part) < CROSSING else "eager"
        if own == "captured":
            own = self._proven(part, state, data)
        told = self._carrier.share((own, self._carrier.capturable))
        ways = [way for way, _ in told]
        if "eager" not in ways:
            # else the same kernels one by one, to the same bits
            self._in_graphs = all(capturable for _, capturable in told)
            return "captured"
        if self._wanted == "captured":
            unable = ", ".join(str(rank) for rank, way in enumerate(ways) if way == "eager")
            warnings.warn(
                f"parallel: steps cannot be captured on rank {unable}, so all ranks train eagerly; way='eager' avoids "
                "the attempt",
                RuntimeWarning,
                stacklevel=2,
            )
        return "eager"

    def _proven(self, part: Plan, state: TrainState, data: DeviceData) -> str:
        """Return ``"captured"`` where the kernels of a shard do in a graph what they do by themselves, and fit."""
        try:
            return choose_way(self._operations, part, state, data, "captured")[0]
        except MemoryError:
            if self._wanted == "captured":
                raise
            return "eager"
