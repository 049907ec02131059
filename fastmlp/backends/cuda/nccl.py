"""What carries gradients between GPUs, one of each rank: NCCL, by CuPy.

NCCL only moves numbers here, and adds up none: its sums depend on how many ranks there are, and those of
`fastmlp.parallel.tree` do not.  Its calls are queued on the stream that is current, so what is sent is what that stream
has computed before, and what it computes next sees what has come.  The host waits in `Nccl.settle`, where it asks
whether an event has been reached: a peer that is gone is one that a stream would wait for without end.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from fastmlp.errors import BackendUnavailable, ParallelError
from fastmlp.parallel.group import Carrier, Group
from fastmlp.parallel.waiting import wait_until
from fastmlp.streams import reached

if TYPE_CHECKING:
    from fastmlp._typing import Array

T = TypeVar("T")
CAPTURED_FROM = 20906
"""The version of NCCL, 2.9.6, from which all of its calls may be captured into CUDA graphs (its user guide)."""


class Nccl(Carrier):
    """The ranks of a group, each by the GPU that is current where this is made; all make theirs at once.

    Parameters
    ----------
    group : Group
        Which tells the ranks the name of the communicator, and whether one has failed.
    cupy : module
        CuPy, or what stands for it in tests.

    Raises
    ------
    BackendUnavailable
        CuPy finds no NCCL; the message has the cure.
    ParallelError
        NCCL refuses, or takes longer than the group's timeout.
    """

    def __init__(self, group: Group, cupy: Any) -> None:
        super().__init__(group.rank, group.size)
        self._group, self._cupy, self._nccl = group, cupy, import_nccl()
        self._graphs: list[dict[Any, Any]] = []
        self.capturable = self._nccl.get_version() >= CAPTURED_FROM
        self._types = {"float32": self._nccl.NCCL_FLOAT32, "float64": self._nccl.NCCL_FLOAT64}
        with self._errors():
            name = self._nccl.get_unique_id() if self.rank == 0 else None
        self.name = group.share(name)[0]
        """Which the communicators of all ranks have."""
        self._communicator: Any = self._joined(self.name)

    def _joined(self, name: Any) -> Any:
        """Return the communicator of a name, for which NCCL waits until all ranks are there: in a thread, not here."""
        device, made, errors = self._cupy.cuda.Device(), [], []

        def join() -> None:
            try:
                with device:
                    made.append(self._nccl.NcclCommunicator(self.size, name, self.rank))
            except Exception as e:
                errors.append(e)

        thread = threading.Thread(target=join, name=f"NCCL of rank {self.rank}", daemon=True)
        thread.start()
        wait_until(lambda: not thread.is_alive(), self.rank, self._group.timeout, self._group.look)
        with self._errors():
            if errors:
                raise errors[0]
        return made[0]

    def broadcast(self, array: Array) -> None:
        where = self._part(array)
        with self._errors():
            self._communicator.broadcast(where[0], *where, 0, self._stream)

    def gather(self, array: Array, bounds: Sequence[int]) -> None:
        parts = [array[start:stop] for start, stop in itertools.pairwise(bounds)]
        if len({len(part) for part in parts}) == 1:
            own, count, kind = self._part(parts[self.rank])
            with self._errors():
                self._communicator.allGather(own, array.data.ptr, count, kind, self._stream)
            return
        with self._together():  # for parts of several sizes NCCL has no call of its own
            for root, part in enumerate(parts):
                if len(part):
                    where = self._part(part)
                    self._communicator.broadcast(where[0], *where, root, self._stream)

    def exchange(self, rows: Array, counts: Sequence[int], bounds: Sequence[int], out: Array) -> None:
        with self._together():
            for row in rows:
                for peer in range(self.size):
                    self._move(self._communicator.send, row[bounds[peer] : bounds[peer + 1]], peer)
            place = 0
            for peer, count in enumerate(counts):
                for row in out[place : place + count]:
                    self._move(self._communicator.recv, row, peer)
                place += count

    def _move(self, call: Callable[..., object], part: Array, peer: int) -> None:
        if len(part):
            call(*self._part(part), peer, self._stream)

    def _part(self, array: Array) -> tuple[int, int, int]:
        return array.data.ptr, array.size, self._types[array.dtype.name]

    @property
    def _stream(self) -> int:
        stream: int = self._cupy.cuda.get_current_stream().ptr
        return stream

    def settle(self) -> None:
        """Wait until all that is queued so far is done.

        Raises
        ------
        ParallelError
            It takes longer than the group's timeout, another rank has failed, or NCCL reports an error.
        """
        queued = reached(self._cupy, self._cupy.cuda.get_current_stream())

        def look() -> None:
            self._group.look()
            with self._errors():
                self._communicator.check_async_error()

        wait_until(lambda: bool(queued.done), self.rank, self._group.timeout, look)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Let NCCL begin calls at once, of which one could wait for another."""
        with self._errors():
            self._nccl.groupStart()
            try:
                yield
            finally:
                self._nccl.groupEnd()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._nccl.NcclError as e:
            raise ParallelError(
                f"parallel: NCCL fails on rank {self.rank}, GPU {self._cupy.cuda.Device().id} ({e}); the environment "
                "variable NCCL_DEBUG=INFO makes it say why"
            ) from e

    def share(self, value: T) -> list[T]:
        return self._group.share(value)

    def captures(self, graphs: dict[Any, Any]) -> None:
        self._graphs.append(graphs)

    def abort(self) -> None:
        """Let the streams go on that wait for other ranks, with whatever they have; what follows is refused."""
        self._ended("abort")

    def close(self) -> None:
        """Give back what NCCL holds."""
        self._ended("destroy")

    def _ended(self, how: str) -> None:
        self.forget_graphs()
        if self._communicator is not None:
            communicator, self._communicator = self._communicator, None
            getattr(communicator, how)()

    def forget_graphs(self) -> None:
        """Let go of all graphs that hold its calls: NCCL ends no communicator before these are gone."""
        while self._graphs:
            self._graphs.pop().clear()

    @contextlib.contextmanager
    def lent(self, group: Group) -> Iterator[None]:
        """Work for a group meanwhile, and for none afterwards: it may go, and this with it."""
        self._group = group
        try:
            yield
        finally:
            self.forget_graphs()
            del self._group


@contextlib.contextmanager
def carried(group: Group, cupy: Any) -> Iterator[Carrier]:
    """Lend what carries arrays of CuPy's between the ranks of a group; after an error nothing waits for them.

    It is made once for a group and a GPU.  To make it takes all ranks, so they agree on whether each has kept its own.
    """
    if not group.gpu_each:
        yield group.on_gpu(cupy)
        return
    kept, device = group.kept.by_name, ("nccl", int(cupy.cuda.Device().id))
    carrier = kept.pop(device, None)
    names = group.share(None if carrier is None else carrier.name)
    if carrier is not None and len(set(names)) > 1:
        carrier.abort()
    if carrier is None or len(set(names)) > 1:
        carrier = Nccl(group, cupy)
    with carrier.lent(group):
        try:
            yield carrier
        except BaseException:
            carrier.abort()
            raise
    kept[device] = carrier


def own_gpu(group: Group, cupy: Any, current: int) -> int:
    """Return the number of the GPU on which this rank trains.

    That is the current one, where all ranks have others, and else the rank's number among those of its machine, modulo
    how many GPUs it sees there: a launcher may show each a GPU of its own.

    Parameters
    ----------
    group : Group
    cupy : module
    current : int

    Raises
    ------
    ParallelError
        On every rank, where two would have the same GPU.
    """
    runtime, machine = cupy.cuda.runtime, socket.gethostname()

    def shared(number: int) -> list[tuple[str, bytes]]:
        return group.share((machine, runtime.getDeviceProperties(number)["uuid"]))

    told = shared(current)
    if len(set(told)) == group.size:
        return current
    before = sum(theirs == machine for theirs, _ in told[: group.rank])
    found = before % int(runtime.getDeviceCount())
    told = shared(found)
    for rank, gpu in enumerate(told):
        first = told.index(gpu)
        if first < rank:
            here = sum(theirs == gpu[0] for theirs, _ in told)
            raise ParallelError(
                f"parallel: ranks {first} and {rank} have the same GPU: {gpu[0]} runs {here} ranks, and shows them "
                f"{len({theirs for theirs in told if theirs[0] == gpu[0]})}; NCCL needs a GPU for each rank, so start "
                "no more ranks on a machine than it has GPUs, or train with backend='numba'"
            )
    return found


def import_nccl() -> Any:
    """Return CuPy's module of NCCL; BackendUnavailable, with the cure, where it finds no library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's own of a library that is not there, whose cure is below
        from cupy.cuda import nccl
    if not nccl.available:
        raise BackendUnavailable(
            "parallel: ranks on GPUs need NCCL, which CuPy does not find; pip install nvidia-nccl-cu13 (-cu12 with "
            "cupy-cuda12x), or train with backend='numba'"
        )
    return nccl
