"""A run of training that several ranks carry out together: what they agree on, so that all do the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp._version import __version__
from fastmlp.engine.loop import Training
from fastmlp.engine.sharded import ShardedSteps
from fastmlp.parallel.tree import SHARDS, Share, cut

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.data import HostData
    from fastmlp.backends.session import Session, StepReport
    from fastmlp.engine.batches import DrawOrder, Order
    from fastmlp.engine.feed import Fed, Feed
    from fastmlp.engine.history import History
    from fastmlp.engine.interrupts import CtrlC
    from fastmlp.engine.learner import Learner
    from fastmlp.engine.loop import Callback
    from fastmlp.engine.metrics import Measure
    from fastmlp.engine.progress import Progress
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.parallel.group import Carrier, Group


def shards_of(group: Group, kept: int | None = None) -> int:
    """Return into how many shards a run cuts its batches; ValueError where that does not fit the group.

    Parameters
    ----------
    group : Group
    kept : int, optional
        Of the checkpoint that the run goes on from.
    """
    if kept is not None and group.shards not in (None, kept):
        raise ValueError(
            f"parallel: the run of the checkpoint has shards={kept}, and goes on with as many; got {group.shards}"
        )
    shards = kept or group.shards or SHARDS
    if group.size > shards:
        raise ValueError(
            f"parallel: {group.size} ranks have no more than shards={shards} to share; start fewer, or "
            + ("give a new run more" if kept else f"use fastmlp.parallel.mpi(shards={group.size}) or more")
        )
    return shards


def place(learner: Learner, group: Group | None) -> None:
    """Move the network of a rank to where that trains, such as to a GPU of its own; nothing where there is no group."""
    if group is not None:
        backend = learner.backend.of_rank(group)
        if backend is not learner.backend:
            learner.move(backend, learner.choice)


class SharedTraining(Training):
    """One run of training, of which every rank of a group has its part; each has a learner and the data of its own.

    All ranks take the same steps, to the same weights.  What follows from clocks and keys, and could differ, is settled
    between calls to the backend: how many steps are taken at once, and whether the run stops.

    Parameters
    ----------
    group : Group
    others
        As for `Training`.
    """

    def __init__(
        self,
        group: Group,
        learner: Learner,
        data: HostData,
        validation: HostData | None,
        progress: Progress,
        optimizer: Optimizer,
        metrics: Mapping[str, Measure],
        callbacks: Sequence[Callback],
        model: Any,
        draw: DrawOrder | None = None,
        history: History | None = None,
    ) -> None:
        looks = metrics, [c for c in callbacks if group.rank == 0 or not c.writes], model, draw, history
        super().__init__(learner, data, validation, progress, optimizer, *looks)
        assert progress.shards is not None, "a run of several ranks has them"
        self._group, self._shards = group, progress.shards
        self._share = Share(progress.shards, group.size, group.rank)
        self._seeing = [type(c).__name__ for c in self.callbacks if not c.writes]
        self._sharded: ShardedSteps | None = None
        self._carrier: Carrier = group

    def run(self) -> History:
        with self.learner.backend.carrying(self._group) as self._carrier:
            return super().run()

    def agree(self) -> None:
        """Raise ParallelError, on all ranks, where they differ in what decides the numbers of the run."""
        learner, to_numpy = self.learner, self.learner.backend.to_numpy
        asked = {k: v for k, v in self._progress.to_json().items() if k != "seconds"}
        validation = None if self._validation is None else self._validation.fingerprint(to_numpy)
        # which libraries are loaded, a list, depends on what else a rank has imported
        choices = {k: v for k, v in self._choices(None).items() if not isinstance(v, list)}
        self._group.refuse_others(
            {
                "version of fastmlp": __version__,
                "version of numpy": np.__version__,
                "choices of the backend": choices,
                "network": repr(learner.spec),
                "dtype": learner.dtype.name,
                "seed, as MLP(seed=...)": learner.state.key,
                "number of steps done before": (learner.state.step, learner.state.optimizer_step),
                "optimizer": repr(self.optimizer),
                "optimizer before": repr(learner.state.optimizer),
                "shape of x": self._data.x.shape,
                "settings of the run": asked,
                "data": self._data.fingerprint(to_numpy),
                "validation data": validation,
                "metrics": list(self._metrics),
                "callbacks": self._seeing,
            }
        )

    def _choices(self, session: Session | None) -> dict[str, Any]:
        """Return what decides the numbers: neither threads, nor what trials of whole steps found."""
        found = super()._choices(None) if session is None else session.shared_choices()
        return {name: value for name, value in found.items() if name != "threads"}

    def _prepare(self, session: Session, ctrl_c: CtrlC) -> None:
        """Let rank 0 compile and measure first: the others of its machine then read what it kept."""
        for array in self._arrays():
            self._carrier.broadcast(array)
        self._carrier.settle()
        if self._group.rank == 0:
            self._compile(session, ctrl_c)
        self._settle_stop()
        if self._group.rank and not self.history.stop_reason:
            self._compile(session, ctrl_c)
        self._settle_stop()

    def _compile(self, session: Session, ctrl_c: CtrlC) -> None:
        super()._prepare(session, ctrl_c)
        if not self.history.stop_reason:
            self._sharded = ShardedSteps(self._carrier, self._shards, self.learner.backend, session)

    def _arrays(self) -> list[Array]:
        state = self.learner.state
        return [state.params, *state.moments, *([] if state.average is None else [state.average])]

    def _may_take_several(self, session: Session) -> bool:
        return False

    def _steps(self, session: Session, feed: Feed, order: Order) -> float:
        rate = super()._steps(session, feed, order)
        self._check_weights()  # by all ranks: at a checkpoint rank 0 alone does
        return rate

    def _at_once(self, count: int) -> int:
        return min(self._group.share(count))

    def _train(self, session: Session, fed: Fed, table: NDArray[np.float64]) -> StepReport:
        assert self._sharded is not None, "prepared before"
        return self._sharded.train_steps(self.learner.state, fed.data, fed.order, table, fed.first, self._totals)

    def _validate(self, data: HostData) -> dict[str, float]:
        return self.learner.figures(data, self._metrics, self._totals_of)

    def _totals_of(self, data: HostData) -> NDArray[np.float64]:
        """Return the sums of the losses of all rows; each rank works out its shards of them."""
        learner, bounds = self.learner, cut(len(data), self._shards)
        first, stop = cut(self._shards, self._group.size)[self._group.rank :][:2]
        most = -(-len(data) // self._shards)

        def totals(part: slice) -> NDArray[np.float64]:
            return learner.inference.totals(learner.spec, learner.state.evaluated, data.window(part), most)

        parts = [slice(bounds[shard], bounds[shard + 1]) for shard in range(first, stop)]
        own = [totals(part) for part in parts if part.stop > part.start]
        found = self._group.share(own)
        whole: NDArray[np.float64] = np.add.reduce([row for rows in found for row in rows], axis=0)
        return whole

    def _settle_stop(self) -> None:
        reasons = self._group.share(self.history.stop_reason)
        self.history.stop_reason = next(filter(None, reasons), "")
        self._interrupted = self.history.stop_reason == "interrupted"

    def _end_epoch(self, figures: dict[str, float]) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for array in self._arrays():
            digest.update(self.learner.to_numpy(array).data)
        self._group.refuse_other_weights(digest.hexdigest(), f"after epoch {self.epoch + 1}")
        super()._end_epoch(self._group.share(figures)[0])  # clocks differ
        self._settle_stop()

    def save_checkpoint(self, path: str | PathLike[str]) -> None:
        if self._group.rank == 0:
            super().save_checkpoint(path)
