"""The gradients of several shards of a batch as one compiled call: what a process does of a step that many share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cpu.said import said_if_it_takes_long
from fastmlp.backends.cpu.scratch import level2_bytes, scratch_size
from fastmlp.backends.cpu.session import bytes_allocated
from fastmlp.backends.cpu.threads import on_meeting_threads
from fastmlp.backends.data import DeviceData
from fastmlp.backends.session import CHUNK
from fastmlp.parallel.tree import cut

if TYPE_CHECKING:
    from fastmlp.backends.base import AddUp
    from fastmlp.backends.cpu.forms import Forms
    from fastmlp.backends.cpu.session import NumbaSession
    from fastmlp.formulas.optimizers import StepScalars
    from fastmlp.network.state import TrainState
    from fastmlp.parallel.tree import Share, TreeSum


def add_up_shards(session: NumbaSession, forms: Forms, tree: TreeSum, bounds: Sequence[int], most: int) -> AddUp:
    """Return what adds up gradients of shards in calls that are compiled by now, see `Backend.open_shards`.

    Parameters
    ----------
    session, forms, tree, bounds
        As for `NumbaShards`.
    most : int
        Of the threads that a call may use.
    """
    from fastmlp.kernels.cpu.compiling import compile_aside

    dtype = session.plan.precision.products
    threads = _threads(session, forms, tree.share, bounds, most)
    shards = NumbaShards(session, forms, tree.share, bounds, threads, tree)
    if dtype not in _compiled:
        with said_if_it_takes_long(f"compiling the kernels of shards in {dtype}, ten to fifteen seconds"):
            compile_aside(shards.call_without_rows(), lambda: None)
        _compiled.add(dtype)
    return shards.add_up


_compiled: set[np.dtype[Any]] = set()


def _threads(session: NumbaSession, forms: Forms, share: Share, bounds: Sequence[int], most: int) -> int:
    units, dtype = session.plan.spec.units, session.plan.precision.products
    rows = bounds[share.stop] - bounds[share.first]
    return min(forms.threads_for(3 * rows, most, units, dtype), forms.parts_for(rows, most, units, dtype))


def shards_bytes(session: NumbaSession, forms: Forms, share: Share, most: int) -> int:
    """Return the bytes that steps of several ranks would allocate here, see `add_up_shards`; none is."""
    plan, bounds = session.plan, cut(session.plan.batch, share.shards)
    threads, item = _threads(session, forms, share, bounds, most), plan.precision.weights.itemsize
    work = bytes_allocated(session, lambda counting: NumbaShards(counting, forms, share, bounds, threads, None))
    update = plan.layout.size * (2 if plan.spec.l2 else 1) + CHUNK
    return work + update * item + share.nbytes(plan.layout.size, item, share.counts[share.rank])


class NumbaShards:
    """Adds up the gradients of the shards that one process has, to bits that the shards alone decide.

    Forms of products are those that the rule has for a shard's rows, whatever trials of whole steps found, and threads
    and processes share out what does not change a number.

    Parameters
    ----------
    session : NumbaSession
        For training, of whole batches.
    forms : Forms
    share : Share
    bounds : sequence of int
        Those of the shards in a whole batch.
    threads : int
    tree : TreeSum or None
        Whose sums, wherever they are, are overwritten; None where nothing is computed.
    """

    def __init__(
        self,
        session: NumbaSession,
        forms: Forms,
        share: Share,
        bounds: Sequence[int],
        threads: int,
        tree: TreeSum | None,
    ) -> None:
        from fastmlp.kernels.cpu import codes, structures

        plan = session.plan
        units, dtype = plan.spec.units, plan.precision.products
        rows = max(b - a for a, b in itertools.pairwise(bounds))
        self._forms = forms.of_layers(rows, 1, units, dtype, gradients=True)
        self._network = session.network._replace(forms=self._forms)
        # tiles sum each row alike, whatever is beside it
        self._joins = not (self._forms[:, [codes.FORWARD, codes.BACKWARD]] == codes.BLAS).any()
        self._share, self._session, self._threads, self._dtype, self._tree = share, session, threads, dtype, tree
        # of a shorter batch the same shards may have a row more: its cuts fall elsewhere
        self._batch = max(1, share.most_rows(bounds[-1])[0])
        layers = list(zip(units, units[1:], self._forms.tolist(), strict=False))
        # as many inputs as fit with it share the copies of a gradient of the outputs
        block = max(level2_bytes() // 2 // dtype.itemsize, *(8 * o for _, o, _ in layers))
        block = max([block, *(i * o for i, o, form in layers if form[codes.GRADIENT] == codes.BLAS)])
        steps = [(codes.TREE.index(what), source, buffer) for what, source, buffer in share.program]
        program = np.array(steps, np.int64).reshape(-1, 3)
        self._structure = structures.Tree(program, share.counts[share.rank], plan.layout.size, block)
        spare = max(0, share.buffers - share.counts[share.rank])
        self._spare = session._allocate(threads, spare * block)
        panels = max(scratch_size(f, self._batch, i, o, dtype) for i, o, form in layers for f in form)
        self._memory = session.memory_for(self._batch, threads, panels, training=True, gradients=block)
        if tree is not None:
            tree.sums[...] = 0  # what does not train stays so, there or where zeros are given instead
        self._data: DeviceData | None = None
        self._record: Any = None

    def add_up(
        self,
        state: TrainState,
        data: DeviceData,
        rows: NDArray[np.intp],
        bounds: Sequence[int],
        scalars: StepScalars,
        sums: NDArray[np.float64],
    ) -> None:
        """Overwrite the tree's sums with those of the gradients of a batch, L2 left out.

        Parameters
        ----------
        state : TrainState
        data : DeviceData
        rows : (n,) array
            Of the whole batch.
        bounds : sequence of int
            Where in these each shard begins, and the last one ends.
        scalars : StepScalars
        sums : (shards, 3) float64
            Those of the rank's own shards are overwritten: weighted loss, weight and weighted hits.
        """
        own = slice(self._share.first, self._share.stop)
        first, stop = bounds[own.start], bounds[own.stop]
        plan = self._session.plan
        # all gradients are multiples of those of the outputs, see `Backend.batch_gradients`
        scale = scalars.inverse_total * (scalars.rate if plan.folds_rate else 1.0)
        asked = (
            np.ascontiguousarray(rows[first:stop], np.int64),
            np.array(bounds[own.start : own.stop + 1], np.int64) - first,
            self._joins,
            *(first, scale, np.uint64(state.key), np.uint64(state.step), sums[own]),
        )
        if data.changes or self._data is not data:  # else once in a run: to convert labels takes longer than a step
            self._data, self._record = data, self._session.data(data)
        self._call(self._record, state.params, asked, self._structure, self._threads)

    def call_without_rows(self) -> Callable[[], object]:
        """Return the call as it is made for no rows, which compiles it."""
        session, none = self._session, np.zeros(0, np.int64)
        row = DeviceData(np.zeros((1, session.plan.spec.units[0]), self._dtype), none[:0], None)
        params, program = np.zeros(session.plan.layout.size, self._dtype), np.zeros((0, 3), np.int64)
        nothing = none, np.zeros(1, np.int64), True, 0, 1.0, np.uint64(0), np.uint64(0), np.zeros((0, 3))
        return partial(self._call, session.data(row), params, nothing, self._structure._replace(program=program), 1)

    def _call(self, data: Any, params: Any, asked: tuple[Any, ...], tree: Any, threads: int) -> None:
        from fastmlp.kernels.cpu.shards import shard_gradients_thread

        assert self._tree is not None, "what is only counted adds up nothing"
        rows, bounds, *rest, sums = asked
        arguments = (
            *(self._network, data, params, self._memory, rows, bounds, self._batch, *rest),
            *(tree, self._tree.sums.reshape(-1), self._spare, sums),
        )
        on_meeting_threads(threads, shard_gradients_thread, arguments, self._memory.arrivals)
