"""Training steps of which each rank of a group computes some shards of the batch, and all ranks the same update."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.base import StepReport
from fastmlp.formulas.optimizers import StepScalars
from fastmlp.parallel.tree import TreeSum, cut

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.backends.data import DeviceData
    from fastmlp.backends.session import Session
    from fastmlp.network.state import TrainState
    from fastmlp.parallel.group import Group


class ShardedSteps:
    """What `Backend.train_steps` does, by several ranks; of one shard, to its very bits where that is composed.

    A rank takes the gradients of its shards, and brings the sums of them that the tree has.  Each rank then adds up a
    slice of the flat buffer over all shards, and the slices are gathered: what a rank sends and gets does not grow with
    the number of ranks.

    Parameters
    ----------
    group : Group
    shards : int
        At least as many as there are ranks.
    backend : Backend
    session : Session
        Made for training, for whole batches.
    """

    def __init__(self, group: Group, shards: int, backend: Backend, session: Session) -> None:
        self._group, self._backend, self._session = group, backend, session
        grads = session.grads
        self._tree = TreeSum(shards, group.size, group.rank, grads.size, grads.dtype)
        self._shards, self._bounds = shards, cut(grads.size, group.size)
        self._slice = slice(self._bounds[group.rank], self._bounds[group.rank + 1])
        width = self._slice.stop - self._slice.start
        self._brought = np.empty((sum(self._tree.counts), width), grads.dtype)
        self._sums = np.zeros((shards, 3))
        self._sums_bounds = [3 * bound for bound in cut(shards, group.size)]

    def train_steps(
        self,
        state: TrainState,
        data: DeviceData,
        order: Array,
        table: NDArray[np.float64],
        first: int,
        totals: NDArray[np.float64],
    ) -> StepReport:
        """Train on consecutive batches; see `Backend.train_steps`."""
        batch = self._session.plan.batch
        for i, row in enumerate(table.tolist()):
            start = (first + i) * batch
            if not self._step(state, data, order[start : start + batch], StepScalars(*row), totals):
                return StepReport(i, False)
            state.step += 1
            state.optimizer_step += 1
        return StepReport(len(table), True)

    def _step(
        self, state: TrainState, data: DeviceData, rows: Array, scalars: StepScalars, totals: NDArray[np.float64]
    ) -> bool:
        """Take one step; return False, having changed nothing, where the loss of the whole batch is not finite."""
        if scalars.inverse_total == 0:
            return True
        session, group = self._session, self._group
        grads, bounds = session.grads, cut(len(rows), self._shards)

        def gradients(shard: int) -> Array:
            part = slice(bounds[shard], bounds[shard + 1])
            if part.start == part.stop:  # a batch of fewer rows than shards
                grads[...] = 0
                self._sums[shard] = 0
            else:
                given = session, state, data, rows[part], scalars, part.start
                self._sums[shard] = self._backend.batch_gradients(*given)
            return grads

        own = self._tree.own(gradients)
        group.gather(self._sums.reshape(-1), self._sums_bounds)
        sums = np.add.reduce(self._sums, axis=0).tolist()  # row by row
        if not math.isfinite(sums[0]):
            return False
        group.exchange(own, self._tree.counts, self._bounds, self._brought)
        grads[self._slice] = self._tree.whole(self._brought)
        group.gather(grads, self._bounds)
        self._backend.finish_step(session, state, scalars)
        for i, value in enumerate(sums):
            totals[i] += value
        return True
