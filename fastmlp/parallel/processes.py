"""The engine of several processes: MPI, by mpi4py.

Every call is one that does not block, asked again and again whether it is done: so a wait has a limit, and Ctrl-C is
seen.  Errors: MPI leaves ranks to wait for one that has raised.  So a rank that fails waits a moment for the others to
fail alike (as they do where the loss is not finite, or an argument makes no sense), and else ends the job.
"""

from __future__ import annotations

import itertools
import math
import mmap
import pickle
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from fastmlp.parallel.common import common_memory
from fastmlp.parallel.group import Group
from fastmlp.parallel.waiting import NAP, wait_until

T = TypeVar("T")

_kept = MPI.Comm.Create_keyval()
"""Where a communicator keeps its copies, which all calls with it share."""
ALIKE_SECONDS = 2.0
"""How long a rank that has failed waits for all others to fail too."""


class Processes(Group):
    """A rank of a communicator of mpi4py; see `fastmlp.parallel.mpi`."""

    gpu_each = True

    def __init__(self, comm: MPI.Intracomm, shards: int | None, timeout: float) -> None:
        super().__init__(comm.Get_rank(), comm.Get_size(), shards, timeout)
        self._plain: tuple[type[BaseException], ...] = ()
        kept: Any = comm.Get_attr(_kept)
        if kept is None:
            # messages of its own, which no others of the program can be taken for; and some for errors
            kept = self._copy(comm), self._copy(comm), self.kept
            comm.Set_attr(_kept, kept)
        self._comm: MPI.Intracomm = kept[0]
        self._errors: MPI.Intracomm = kept[1]
        self.kept = kept[2]
        _end_all_at_an_uncaught_error(self)

    def _copy(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        copy, asked = comm.Idup()
        self._wait(asked)
        return copy

    def _wait(self, request: MPI.Request) -> None:
        wait_until(request.Test, self.rank, self.timeout)

    def share(self, value: T) -> list[T]:
        sent = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.empty(self.size, np.int64)
        self._wait(self._comm.Iallgather(np.array([sent.size]), sizes))
        room = np.empty(int(sizes.sum()), np.uint8)
        self._wait(self._comm.Iallgatherv(sent, [room, sizes.tolist()]))
        ends = np.cumsum(sizes).tolist()
        # of processes of this job alone, which run this very program
        return [pickle.loads(room[end - n : end].tobytes()) for n, end in zip(sizes.tolist(), ends, strict=True)]

    def broadcast(self, array: NDArray[Any]) -> None:
        self._wait(self._comm.Ibcast(array, root=0))

    def gather(self, array: NDArray[Any], bounds: Sequence[int]) -> None:
        sizes = np.diff(bounds).tolist()
        self._wait(self._comm.Iallgatherv(MPI.IN_PLACE, [array, sizes, list(bounds[:-1]), _type_of(array)]))

    def exchange(self, rows: NDArray[Any], counts: Sequence[int], bounds: Sequence[int], out: NDArray[Any]) -> None:
        width = bounds[self.rank + 1] - bounds[self.rank]
        firsts = np.cumsum([0, *counts]).tolist()
        kind = _type_of(out)
        nothing = np.empty(0, out.dtype)
        for row in range(max(counts)):  # once, where the ranks divide the tree evenly
            mine = row < counts[self.rank]
            sent = np.diff(bounds).tolist() if mine else [0] * self.size
            sending = [rows[row] if mine else nothing, sent, list(bounds[:-1]) if mine else sent, kind]
            got = [width if row < count else 0 for count in counts]
            places = [width * (first + row) if n else 0 for first, n in zip(firsts, got, strict=False)]
            self._wait(self._comm.Ialltoallv(sending, [out, got, places, kind]))

    def common(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[NDArray[Any]] | None:
        if self.size == 1:
            return [np.zeros(shape, dtype)]
        shapes = self.share(shape)
        sizes = [-(-math.prod(s) * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE for s in shapes]
        memory = common_memory(self, sum(sizes))
        if memory is None:
            return None
        starts = itertools.accumulate(sizes, initial=0)
        return [
            np.frombuffer(memory, dtype, math.prod(s), at).reshape(s) for s, at in zip(shapes, starts, strict=False)
        ]

    def meet(self) -> None:
        self._wait(self._comm.Ibarrier())

    def tell_in_a_line(self, plain: tuple[type[BaseException], ...]) -> None:
        self._plain = plain

    def failed(self, error: BaseException) -> None:
        if not self._all_fail():
            in_a_line = isinstance(error, self._plain)
            self._end_all(f"error: {error}" if in_a_line else "".join(traceback.format_exception(error)))

    def _all_fail(self) -> bool:
        """Return whether all ranks have failed by now, or do in a moment: then none waits for another."""
        request, end = self._errors.Ibarrier(), time.monotonic() + ALIKE_SECONDS
        while not request.Test():
            if time.monotonic() > end:
                return False
            time.sleep(NAP)
        return True

    def _end_all(self, text: str) -> None:
        sys.stdout.flush()
        print(f"rank {self.rank} of {self.size}: {text}", file=sys.stderr, flush=True)
        time.sleep(0.1)  # mpiexec passes it on before it ends its processes
        self._comm.Abort(1)


def _type_of(array: NDArray[Any]) -> MPI.Datatype:
    return MPI.DOUBLE if array.dtype == np.float64 else MPI.FLOAT


_ending: list[Processes] = []


def _end_all_at_an_uncaught_error(group: Processes) -> None:
    """Let what a program does not catch, outside of `fit` too, end the job: Python would end one rank, others wait."""
    if group.size == 1:
        return
    if not _ending:
        before = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            before(kind, error, trace)
            latest = _ending[-1]
            if not latest._all_fail():
                latest._end_all(f"{kind.__name__}, as above")

        sys.excepthook = hook
    _ending[:] = [group]
