"""Training steps of which each rank of a group computes some shards of the batch, and all ranks the same update."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.session import StepReport
from fastmlp.engine.reductions import ByMessages, InCommon
from fastmlp.formulas.optimizers import StepScalars
from fastmlp.parallel.tree import Share, TreeSum, cut

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.backends.data import DeviceData
    from fastmlp.backends.session import Session
    from fastmlp.network.state import TrainState
    from fastmlp.parallel.group import Carrier


class ShardedSteps:
    """What `Backend.train_steps` does, by several ranks; of one shard, to its very bits where that is composed.

    A rank takes the gradients of its shards, and brings the sums of them that the tree has; `reductions` make the sums
    over all shards of these.

    A backend may take whole steps by itself.  Else, on a device, all of that is queued on one stream, and the host
    waits once a step for ranks and device, for the totals of the batch: they tell whether its loss is finite, without
    which there is no update.

    Parameters
    ----------
    carrier : Carrier
        Between the ranks, for arrays of the backend.
    shards : int
        At least as many as there are ranks.
    backend : Backend
    session : Session
        Made for training, for whole batches.
    """

    def __init__(self, carrier: Carrier, shards: int, backend: Backend, session: Session) -> None:
        self._carrier, self._backend, self._session, self._shards = carrier, backend, session, shards
        self.reduction: ByMessages | InCommon | None = None
        """How sums become those of whole batches, from the first step on that is composed."""
        self._whole = backend.open_shared(session, carrier, Share(shards, carrier.size, carrier.rank))
        if self._whole is None:
            self._compose()

    def _compose(self) -> None:
        """Make what steps are composed of; some backends compile it."""
        carrier, backend, session, shards = self._carrier, self._backend, self._session, self._shards
        self._tree = TreeSum(shards, carrier.size, carrier.rank, session.grads.size, self._empty, backend.add)
        self._at_once = backend.open_shards(session, self._tree, cut(session.plan.batch, shards))
        self._totals = backend.zeros((shards, 3), np.dtype(np.float64))
        self._totals_bounds = [3 * bound for bound in cut(shards, carrier.size)]

    def _empty(self, shape: tuple[int, ...]) -> Array:
        return self._backend.empty(shape, self._session.grads.dtype)

    def _share_memory(self) -> ByMessages | InCommon:
        """Return how sums are reduced; all ranks ask at once."""
        carrier, tree, grads = self._carrier, self._tree, self._session.grads
        common = carrier.common(tree.sums.shape, np.dtype(grads.dtype))
        if common is None:
            return ByMessages(carrier, tree, grads.size, self._empty)
        tree.sums = common[carrier.rank]
        return InCommon(carrier, tree, common)

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
        if self._whole is not None:
            report = self._whole(state, data, order, table, first, totals)
            if report is not None:
                return report
            self._whole = None
            self._compose()
        if self.reduction is None:
            self.reduction = self._share_memory()
        batch = self._session.plan.batch
        for i, row in enumerate(table.tolist()):
            start = (first + i) * batch
            if not self._step(state, data, order[start : start + batch], StepScalars(*row), totals):
                return StepReport(i, False)
            state.step += 1
            state.optimizer_step += 1
        self._carrier.settle()  # what the host asks the device next may not wait for other ranks
        return StepReport(len(table), True)

    def _step(
        self, state: TrainState, data: DeviceData, rows: Array, scalars: StepScalars, totals: NDArray[np.float64]
    ) -> bool:
        """Take one step; return False, having changed nothing, where the loss of the whole batch is not finite."""
        if scalars.inverse_total == 0:
            return True
        session, carrier = self._session, self._carrier
        grads, bounds = session.grads, cut(len(rows), self._shards)

        def gradients(shard: int) -> Array:
            part = slice(bounds[shard], bounds[shard + 1])
            if part.start == part.stop:  # a batch of fewer rows than shards
                grads[...] = 0
                self._totals[shard] = 0
            else:
                self._backend.batch_gradients(session, state, data, rows[part], scalars, part.start)
                self._totals[shard] = session.totals
            return grads

        if self._at_once is None:
            self._tree.add_up(gradients)
        else:
            self._at_once(state, data, rows, bounds, scalars, self._totals)
        carrier.gather(self._totals.reshape(-1), self._totals_bounds)
        carrier.settle()
        sums = np.add.reduce(self._backend.to_numpy(self._totals), axis=0)  # row by row
        if not math.isfinite(sums[0]):
            return False
        assert self.reduction is not None, "shared before"
        self.reduction(grads)
        self._backend.finish_step(session, state, scalars)
        totals += sums
        return True
