"""Who trains together, and all that they tell each other; an engine is a class that carries it out.

Every method but `failed` is called by all ranks, in the same order; each waits for the others, and no longer than
`timeout`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from numpy.typing import NDArray

from fastmlp.errors import ParallelError

T = TypeVar("T")
TIMEOUT = 300.0
"""Seconds that a rank waits for others where nobody says: they may be compiling, or writing a large file."""


class Group(ABC):
    """Ranks that train one model together, each of which has all of its weights.

    Attributes
    ----------
    rank, size : int
        Which one this is, from 0, and how many there are.  Rank 0 writes files.
    shards : int or None
        Into how many parts a batch is cut; None where that is left open.
    """

    def __init__(self, rank: int, size: int, shards: int | None) -> None:
        self.rank, self.size, self.shards = rank, size, shards

    @abstractmethod
    def share(self, value: T) -> list[T]:
        """Return what each rank gave, in their order: small things, such as numbers and text."""

    @abstractmethod
    def broadcast(self, array: NDArray[Any]) -> None:
        """Overwrite an array, (n,), with that of rank 0."""

    @abstractmethod
    def gather(self, array: NDArray[Any], bounds: Sequence[int]) -> None:
        """Fill an array, (n,), of which each rank r has ``bounds[r]..bounds[r + 1]`` already, from all ranks."""

    @abstractmethod
    def exchange(self, rows: NDArray[Any], counts: Sequence[int], bounds: Sequence[int], out: NDArray[Any]) -> None:
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

    def broadcast(self, array: NDArray[Any]) -> None:
        return

    def gather(self, array: NDArray[Any], bounds: Sequence[int]) -> None:
        return

    def exchange(self, rows: NDArray[Any], counts: Sequence[int], bounds: Sequence[int], out: NDArray[Any]) -> None:
        out[...] = rows
