"""Who trains together, and all that they tell each other; an engine is a class that carries it out.

Every method but `failed` and `look` is called by all ranks, in the same order; each waits for the others, and no longer
than `timeout`.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastmlp.errors import ParallelError

if TYPE_CHECKING:
    from fastmlp._typing import Array

T = TypeVar("T")
TIMEOUT = 300.0
"""Seconds that a rank waits for others where nobody says: they may be compiling, or writing a large file."""


class Carrier(ABC):
    """What brings float32 and float64 arrays from rank to rank, unchanged.

    Of arrays on a device it queues that on the stream that is current, between what has been queued before and what is
    queued next; the host waits in `settle` alone.

    Attributes
    ----------
    rank, size : int
        Which one this is, from 0, and how many there are.
    capturable : bool
        Whether its calls may be captured into a graph, and be made again by each of its replays.
    """

    capturable = True

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    @abstractmethod
    def share(self, value: T) -> list[T]:
        """Return what each rank gave, in their order: small things, such as numbers and text."""

    @abstractmethod
    def broadcast(self, array: Array) -> None:
        """Overwrite an array, (n,), with that of rank 0."""

    @abstractmethod
    def gather(self, array: Array, bounds: Sequence[int]) -> None:
        """Fill an array, (n,), of which each rank r has ``bounds[r]..bounds[r + 1]`` already, from all ranks."""

    @abstractmethod
    def exchange(self, rows: Array, counts: Sequence[int], bounds: Sequence[int], out: Array) -> None:
        """Bring each rank its columns of the rows of all.

        Parameters
        ----------
        rows : (counts[rank], n) array
            Of this rank.
        counts : sequence of int
            How many rows each rank has.
        bounds : sequence of int
            Rank r gets the columns ``bounds[r]..bounds[r + 1]``.
        out : (sum(counts), width) array
            Overwritten: this rank's columns, of all rows in the order of the ranks.
        """

    def common(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Array] | None:
        """Return an array of each rank, of the shape that it asks for, which all read and write; of zeros.

        None, on all ranks, where they have no memory in common.  What one has written the others see after `meet`, or
        after what else all of them wait for each other in.
        """
        return None

    def meet(self) -> None:
        """Wait until all ranks are here, the hosts alone."""
        self.share(None)

    def settle(self) -> None:
        """Wait until all that is queued so far is done; what waits for other ranks waits no longer than `timeout`."""
        return

    def captures(self, graphs: dict[Any, Any]) -> None:
        """Take note of graphs that hold its calls, which it may empty when it ends."""
        return

    def abort(self) -> None:
        """Let what waits for other ranks go on, with whatever there is; nothing is carried afterwards."""
        return


class Kept:
    """What is made once for ranks and kept from run to run, by name: closed when they go, or the program ends."""

    def __init__(self) -> None:
        self.by_name: dict[object, Any] = {}
        weakref.finalize(self, _close, self.by_name)


def _close(things: dict[object, Any]) -> None:
    while things:
        things.popitem()[1].close()


class Group(Carrier):
    """Ranks that train one model together, each of which has all of its weights; it carries arrays of NumPy's.

    Attributes
    ----------
    rank, size : int
        Which one this is, from 0, and how many there are.  Rank 0 writes files.
    shards : int or None
        Into how many parts a batch is cut; None where that is left open.
    timeout : float
        Seconds that a rank waits for the others.
    gpu_each : bool
        Whether each rank has to have a GPU of its own, so that NCCL carries what lies there.
    kept : Kept
        What outlasts a run.
    """

    gpu_each = False

    def __init__(self, rank: int, size: int, shards: int | None, timeout: float = TIMEOUT) -> None:
        super().__init__(rank, size)
        self.shards, self.timeout, self.kept = shards, timeout, Kept()

    def on_gpu(self, cupy: Any) -> Carrier:
        """Return what carries arrays of CuPy's between ranks that share a GPU, as those of one process may."""
        return self

    def look(self) -> None:
        """Raise ParallelError where another rank is known to have failed; waits for nobody."""
        return

    def tell_in_a_line(self, plain: tuple[type[BaseException], ...]) -> None:
        """Let errors of these types, which end the other ranks, be told without a traceback."""
        return

    def failed(self, error: BaseException) -> None:
        """End the wait of the other ranks after an error of this one, which not all of them have."""
        return

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Let an error of this rank end the others too, instead of leaving them to wait."""
        try:
            yield
        except BaseException as error:
            self.failed(error)
            raise

    def refuse_others(self, mine: Mapping[str, Any]) -> None:
        """Raise ParallelError, on every rank, where one has another value of something than rank 0.

        Parameters
        ----------
        mine : mapping
            By what messages call it.
        """
        first, *others = self.share(dict(mine))
        for rank, theirs in enumerate(others, start=1):
            for name, value in first.items():
                if theirs.get(name) != value:
                    raise ParallelError(
                        f"parallel: all ranks must have the same {name}; rank {rank} has {_short(theirs.get(name))}, "
                        f"rank 0 {_short(value)}"
                    )

    def refuse_other_weights(self, digest: str, when: str) -> None:
        """Raise ParallelError, on every rank, where the hash of one's weights is not that of most."""
        found = self.share(digest)
        usual = Counter(found).most_common(1)[0][0]  # of rank 0 where as many have another
        if odd := [rank for rank, theirs in enumerate(found) if theirs != usual]:
            names = ", ".join(map(str, odd))
            raise ParallelError(
                f"parallel: the weights of rank {names} are no longer those of the others {when}: something changes "
                "them on some ranks alone (a callback?), or a machine computes wrongly (fastmlp selftest tells)"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, size={self.size}, shards={self.shards})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


class Alone(Group):
    """One rank, without others to wait for: a run in shards, in the process that asks."""

    def __init__(self, shards: int | None) -> None:
        super().__init__(0, 1, shards)

    def share(self, value: T) -> list[T]:
        return [value]

    def broadcast(self, array: Array) -> None:
        return

    def gather(self, array: Array, bounds: Sequence[int]) -> None:
        return

    def exchange(self, rows: Array, counts: Sequence[int], bounds: Sequence[int], out: Array) -> None:
        for place, row in enumerate(rows):
            out[place] = row
