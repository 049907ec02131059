"""The engine of one process: a thread for each rank, for tests and for trying things out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fastmlp.arguments import check_callable, check_count, check_number
from fastmlp.errors import ParallelError
from fastmlp.parallel.group import TIMEOUT, Carrier, Group
from fastmlp.streams import reached

if TYPE_CHECKING:
    from fastmlp._typing import Array

T = TypeVar("T")


class _Meeting:
    """What the threads of a group share: where they wait for each other, and what each of them shows.

    A thread that all others have met goes on, whatever happens to them afterwards: what all of them come to, an error
    too, each comes to by itself.
    """

    def __init__(self, size: int, timeout: float) -> None:
        self.shown: list[Any] = [None] * size
        self.first_error: tuple[int, BaseException] | None = None
        self.size, self.timeout = size, timeout
        self._arrived = self._met = 0
        self._changed = threading.Condition()

    def wait(self, rank: int) -> None:
        with self._changed:
            before = self._met
            self._arrived += 1
            if self._arrived == self.size:
                self._arrived, self._met = 0, before + 1
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._met > before or self.first_error is not None, self.timeout)
            if self._met > before:
                return
        self.look()
        raise ParallelError(
            f"parallel: rank {rank} has waited {self.timeout:g} s for the others; all ranks must make the same calls"
        )

    def look(self) -> None:
        if self.first_error is not None:
            failed, error = self.first_error
            raise ParallelError(f"parallel: rank {failed} has failed: {error}") from error

    def note(self, rank: int, error: BaseException) -> None:
        with self._changed:
            self.first_error = self.first_error or (rank, error)
            self._changed.notify_all()


class Threads(Group):
    """A rank that is a thread of this process; see `in_threads`."""

    def __init__(self, rank: int, shards: int | None, meeting: _Meeting) -> None:
        super().__init__(rank, meeting.size, shards, meeting.timeout)
        self._meeting = meeting

    def on_gpu(self, cupy: Any) -> Carrier:
        self.refuse_others({"GPU, which threads share": int(cupy.cuda.Device().id)})
        return _ThreadsOnGpu(self.rank, self.shards, self._meeting, cupy)

    def look(self) -> None:
        self._meeting.look()

    def _show(self, value: Any) -> list[Any]:
        """Return what all ranks show, which stays as it is until `_done`."""
        self._meeting.shown[self.rank] = value
        self._meeting.wait(self.rank)
        return list(self._meeting.shown)

    def _done(self) -> None:
        self._meeting.wait(self.rank)

    def share(self, value: T) -> list[T]:
        found: list[T] = self._show(value)
        self._done()
        return found

    def broadcast(self, array: Array) -> None:
        first = self._show(array)[0]
        if first is not array:
            array[...] = first
        self._done()

    def gather(self, array: Array, bounds: Sequence[int]) -> None:
        for rank, theirs in enumerate(self._show(array)):
            if rank != self.rank:
                part = slice(bounds[rank], bounds[rank + 1])
                array[part] = theirs[part]
        self._done()

    def exchange(self, rows: Array, counts: Sequence[int], bounds: Sequence[int], out: Array) -> None:
        columns = slice(bounds[self.rank], bounds[self.rank + 1])
        place = 0
        for theirs in self._show(rows):
            for row in theirs:
                out[place] = row[columns]
                place += 1
        self._done()

    def common(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Array] | None:
        return self.share(np.zeros(shape, dtype))

    def meet(self) -> None:
        self._meeting.wait(self.rank)

    def failed(self, error: BaseException) -> None:
        self._meeting.note(self.rank, error)


class _ThreadsOnGpu(Threads):
    """The same, of arrays on the one GPU of all: streams wait for each other by events, and the host for none."""

    def __init__(self, rank: int, shards: int | None, meeting: _Meeting, cupy: Any) -> None:
        super().__init__(rank, shards, meeting)
        self._cupy = cupy
        # a graph of one thread cannot wait for events of another's
        self.capturable = meeting.size == 1

    def common(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        return None

    def _show(self, value: Any) -> list[Any]:
        stream = self._cupy.cuda.get_current_stream()
        shown = super()._show((value, reached(self._cupy, stream)))
        for _, event in shown:
            stream.wait_event(event)
        return [theirs for theirs, _ in shown]

    def _done(self) -> None:
        """Let nobody overwrite what others are still about to read."""
        super()._done()
        stream = self._cupy.cuda.get_current_stream()
        for event in super()._show(reached(self._cupy, stream)):
            stream.wait_event(event)
        super()._done()


def in_threads(
    function: Callable[[Group], T], ranks: int, *, shards: int | None = None, timeout: float = TIMEOUT
) -> list[T]:
    """Call a function in as many threads, each with the group that it gives to ``fit(..., parallel=group)``.

    It shows, in one process, what several would compute, to the bit; it is no faster than one.  Each call makes a model
    of its own; on the ``"cupy"`` backend, all of them on one GPU.

    Parameters
    ----------
    function : callable
        Given the group of its rank.
    ranks : int
        At least 1.
    shards : int, optional
        Into how many parts a batch is cut; 8, or as many as the run that goes on has.
    timeout : float
        Seconds that a rank waits for the others.

    Returns
    -------
    list
        What each call returned, in the order of the ranks.

    Raises
    ------
    Exception
        What the first call to fail raised; the others end with it.

    Examples
    --------
    >>> from fastmlp.parallel import in_threads
    >>> in_threads(lambda group: group.rank, 3)
    [0, 1, 2]
    """
    check_callable("function", function, "a function of a group")
    size = check_count("ranks", ranks)
    parts = None if shards is None else check_count("shards", shards, also="or None")
    meeting = _Meeting(size, check_number("timeout", timeout, 0.0, above=True))
    results: list[Any] = [None] * size

    def call(rank: int) -> None:
        group = Threads(rank, parts, meeting)
        try:
            with group.guarded():
                results[rank] = function(group)
        except BaseException:  # noted by the group, and raised for all of them below
            return

    threads = [threading.Thread(target=call, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if meeting.first_error is not None:
        raise meeting.first_error[1]
    return results
