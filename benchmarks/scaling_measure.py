"""What `scaling.py` measures: steps that ranks take together, their parts, and what goes between two ranks.

Started by it, once for each number of ranks; rank 0 prints what was found.  All ranks make the same calls: how often
something is timed is settled by rank 0.
"""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from fastmlp.backends.choosing import get_backend
from fastmlp.bench.workloads import Workload, rows_of
from fastmlp.engine.feed import feed_of
from fastmlp.engine.learner import Learner
from fastmlp.engine.reductions import InCommon
from fastmlp.engine.sharded import ShardedSteps
from fastmlp.formulas.optimizers import StepScalars
from fastmlp.parallel.group import Alone, Group
from fastmlp.parallel.tree import SHARDS, TreeSum, cut

T = TypeVar("T")
SAMPLES = 5
SIZES = (1 << 6, 1 << 12, 1 << 16, 1 << 19, 1 << 22)
"""Bytes of a message between two ranks."""
BURST = 64
RATE = 1e-9
"""So that weights hardly move, however long is measured."""
OPERATIONS = 1e9
"""Of the data's batches together, at most, or there are a few."""


class Metered(Group):
    """A group that adds up how long it takes to exchange, gather and meet, waiting for each other included."""

    def __init__(self, group: Group) -> None:
        super().__init__(group.rank, group.size, group.shards)
        self._group, self.seconds = group, 0.0

    def share(self, value: T) -> list[T]:
        return self._group.share(value)

    def common(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[NDArray[Any]] | None:
        return self._group.common(shape, dtype)

    def meet(self) -> None:
        start = time.perf_counter()
        self._group.meet()
        self.seconds += time.perf_counter() - start

    def broadcast(self, array: NDArray[Any]) -> None:
        self._group.broadcast(array)

    def gather(self, array: NDArray[Any], bounds: Sequence[int]) -> None:
        start = time.perf_counter()
        self._group.gather(array, bounds)
        self.seconds += time.perf_counter() - start

    def exchange(self, rows: NDArray[Any], counts: Sequence[int], bounds: Sequence[int], out: NDArray[Any]) -> None:
        start = time.perf_counter()
        self._group.exchange(rows, counts, bounds, out)
        self.seconds += time.perf_counter() - start


class Ready(NamedTuple):
    """A network that is ready to train by itself, without `fit`, at batches of a workload."""

    learner: Learner
    session: Any
    data: Any
    order: NDArray[np.intp]
    table: NDArray[np.float64]

    @property
    def plain(self) -> Callable[[], Any]:
        """Return what trains on all batches as one process does."""
        totals, given = np.zeros(3), (self.session, self.learner.state, self.data, self.order, self.table)
        return lambda: self.learner.backend.train_steps(*given, 0, totals)


@contextmanager
def ready(workload: Workload, backend: str) -> Iterator[Ready]:
    """Lend the network of a workload on a backend, which takes as many threads as the environment says."""
    where = get_backend(backend)
    spec, optimizer = workload.spec(), workload.optimizer_record()
    learner = Learner.drawn(spec, np.dtype(workload.dtype), where, 0)
    rows = rows_of(workload, spec, OPERATIONS, 0)
    host = learner.data(rows.x, rows.y, training=True)
    learner.state.begin(optimizer, where.zeros, where.copy)
    inverse = np.full(rows.steps, 1 / workload.batch)
    table = optimizer.table(np.full(rows.steps, RATE), 0, inverse, spec.l2_share(inverse))
    with learner.exclusive(), learner.sessions.use(learner.plan(workload.batch, optimizer)) as session:
        where.prepare(session, lambda: None)
        yield Ready(learner, session, feed_of(host, where, workload.batch).whole, np.arange(len(rows.x)), table)


Clock = Callable[[], float]


def timed(
    group: Group,
    work: Callable[[], Any],
    seconds: float,
    clocks: Sequence[Clock] = (time.perf_counter,),
    samples: int = SAMPLES,
) -> list[float]:
    """Return what each clock says of a call that all ranks make at once: the median of some samples.

    Parameters
    ----------
    group : Group
    work : callable
    seconds : float
        That all samples take together, about.
    clocks : sequence of callable
        Which tell seconds.
    samples : int
    """
    work()
    start = time.perf_counter()
    work()
    wanted = seconds / samples / max(time.perf_counter() - start, 1e-9)
    calls, found = group.share(max(1, int(wanted)))[0], []
    for _ in range(samples):
        group.share(None)  # all begin together
        before = [clock() for clock in clocks]
        for _ in range(calls):
            work()
        found.append([(clock() - first) / calls for clock, first in zip(clocks, before, strict=True)])
    return [statistics.median(values) for values in zip(*found, strict=True)]


def slowest(group: Group, work: Callable[[], Any], seconds: float) -> float:
    """Return the seconds of a call that all ranks make at once, of the rank that takes the longest."""
    return max(group.share(timed(group, work, seconds)[0]))


def parts(group: Group, here: Ready, workload: Workload, seconds: float) -> dict[str, float]:
    """Return the seconds of what each rank does by itself, all ranks at once; see `scaling_model.Work`."""
    learner, session, data, order, table = here
    scalars, state, backend = StepScalars(*table[0].tolist()), learner.state, learner.backend
    rows, tiny = order[: -(-workload.batch // SHARDS)], np.ones(1, learner.dtype)
    sums, totals, bounds = np.ones_like(session.grads), np.empty((SHARDS, 3)), cut(workload.batch, SHARDS)
    empty = partial(np.empty, dtype=session.grads.dtype)
    tree = TreeSum(SHARDS, group.size, group.rank, session.grads.size, empty, operator.iadd)
    at_once = backend.open_shards(session, tree, bounds)

    def add(a: NDArray[Any], b: NDArray[Any]) -> None:
        a += b

    def gradients() -> None:
        if at_once is None:
            backend.batch_gradients(session, state, data, rows, scalars, 0)
        else:
            at_once(state, data, order[: workload.batch], bounds, scalars, totals)

    work = {
        "gradients": gradients,
        "update": lambda: backend.finish_step(session, state, scalars),
        "call": lambda: add(tiny, tiny),
        "add": lambda: add(sums, session.grads),
    }
    found = {name: slowest(group, call, seconds / len(work)) for name, call in work.items()}
    own = 1 if at_once is None else tree.stop - tree.first
    found["gradients"] /= own
    return {**found, "add": max(0.0, found["add"] - found["call"]), "at_once": float(at_once is not None)}


def steps(group: Group, here: Ready, seconds: float) -> dict[str, float]:
    """Return the seconds of a step of all ranks, and of those what went to other ranks or to waiting for them.

    And 1 for ranks that have memory in common.
    """
    metered = Metered(group)
    learner, session, data, order, table = here
    sharded, totals = ShardedSteps(metered, SHARDS, learner.backend, session), np.zeros(3)
    taken = 0

    def work() -> None:
        nonlocal taken
        at = taken % len(table)
        sharded.train_steps(learner.state, data, order, table[at : at + 1], at, totals)
        taken += 1

    both = timed(group, work, seconds, (time.perf_counter, lambda: metered.seconds))
    took, reduction = zip(*group.share(both), strict=True)
    in_common = float(isinstance(sharded.reduction, InCommon))
    return {"step": max(took), "reduction": min(reduction), "in_common": in_common}  # of the rank that waits for none


def links(group: Group, seconds: float) -> dict[str, Any]:
    """Return what goes between two ranks: seconds of an exchange and a gather by bytes, and of a message of a burst."""
    found = []
    for size in SIZES:
        part = size // 4
        rows, out = np.ones((1, 2 * part), np.float32), np.empty((2, part), np.float32)
        bounds, whole = cut(2 * part, 2), np.ones(2 * part, np.float32)
        both = partial(group.exchange, rows, [1, 1], bounds, out), partial(group.gather, whole, bounds)
        found.append([size, *(slowest(group, call, seconds / 2 / len(SIZES)) for call in both)])
    return {"sizes": found, "message": _message(group)}


def _message(group: Group) -> float:
    """Return the seconds that each message of a burst of small ones costs, by ping-pong."""
    from mpi4py import MPI

    comm, other = MPI.COMM_WORLD, 1 - group.rank
    there = [np.zeros(16, np.float32) for _ in range(BURST)]

    def burst(count: int) -> Callable[[], None]:
        def play() -> None:
            for turn in range(2):
                post = comm.Isend if group.rank == turn else comm.Irecv
                MPI.Request.Waitall([post(there[i], other) for i in range(count)])

        return play

    one, many = (slowest(group, burst(count), 0.05) / 2 for count in (1, BURST))
    return max(0.0, (many - one) / (BURST - 1))


def fit_link(found: dict[str, Any]) -> tuple[float, float, float]:
    """Return the latency, the seconds of a message, and the bytes a second, which fit best what `links` has measured.

    By least squares of relative errors.
    """
    sizes, times = zip(*((size, t) for size, *pair in found["sizes"] for t in pair), strict=True)
    weights = 1 / np.array(times)
    (first, inverse), _ = nnls(np.stack([weights, np.array(sizes) * weights], axis=1), np.ones(len(times)))
    message = min(found["message"], float(first))
    return float(first) - message, message, 1 / max(float(inverse), 1e-15)


def child(task: dict[str, Any]) -> Any:
    """Do what `scaling.py` asks for, and return what is found; of several ranks, rank 0 has what all found."""
    workloads = [Workload.from_dict(w) for w in task["workloads"]]
    backend, seconds = task["backend"], task["seconds"]
    if task["kind"] == "plain":
        with ready(workloads[0], backend) as here:
            return slowest(Alone(1), here.plain, seconds) / len(here.table)
    group: Group = Alone(SHARDS)
    if task["ranks"] > 1:
        from fastmlp.parallel import mpi

        group = mpi(shards=SHARDS)
        if group.size != task["ranks"]:
            raise RuntimeError(f"mpiexec and mpi4py are of different MPIs: {group.size} ranks of {task['ranks']}")
    with group.guarded():
        found: dict[str, Any] = {"links": links(group, seconds)} if group.size == 2 else {}
        for workload in workloads:
            with ready(workload, backend) as here:
                found[workload.name] = steps(group, here, seconds)
                if group.size <= 2:
                    found[workload.name] |= parts(group, here, workload, seconds)
    return found if group.rank == 0 else None
