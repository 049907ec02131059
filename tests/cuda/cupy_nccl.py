"""The double of CuPy, its NCCL: communicators of threads of one process, each on a device of its own.

A call is queued on the stream that it is given, and what is sent then is what that stream has made before: the clocks
of the streams of sender and receiver are joined, so that the account of what orders what holds between ranks too, and
late work is done late.  While a stream is captured a call is kept, and made by each launch of the graph.  Where NCCL
lets the host go on before other ranks have made their call, this waits for them, but no longer than `patience`, and not
after one has given up; a stream whose peers have not come is stuck then, until its communicator is aborted.
"""

from __future__ import annotations

import copy
import functools
import itertools
import threading
import weakref
from collections import defaultdict

import numpy as np
from cupy_streams import CudaError, Use, _current_device, _lock, _memory_at, _spoil, _stream_at

available = True
NCCL_FLOAT32, NCCL_FLOAT64 = 7, 8
UNIQUE_ID_BYTES = 128
_ITEM_BYTES = {NCCL_FLOAT32: 4, NCCL_FLOAT64: 8}
_NAMES = {1: "UNHANDLED_CUDA_ERROR", 2: "SYSTEM_ERROR", 3: "INTERNAL_ERROR", 4: "INVALID_ARGUMENT", 5: "INVALID_USAGE"}

calls = []
"""What was asked for, as (rank, call, peer or root or None, elements, stream); tests clear and read it."""

groups = []
"""How many calls each group had; tests clear and read it."""

alive = set()
"""The communicators that nobody has closed; tests clear and read it."""

patience = [20.0]
"""Seconds that a call waits for those of other ranks; tests change it."""

JOIN_SECONDS = 20.0
"""How long a communicator waits for those of other ranks."""

faults = {}
"""By the name of a call, "async", or "captured" for any that is captured, the status that it ends with; tests fill and
clear it."""

version = [22707]
"""Of the library; tests change it."""

captures = []
"""What was captured, as (rank, number of the capture, [(call, peer or root or None, elements), ...], stream)."""


class NcclError(RuntimeError):
    def __init__(self, status):
        self.status = status
        super().__init__(f"NCCL_ERROR_{_NAMES[status]}: {_NAMES[status].lower().replace('_', ' ')}")


class _World:
    """What the communicators of one name share."""

    def __init__(self):
        self.changed, self.devices, self.given_up = threading.Condition(), {}, False
        self.sent, self.wanted = defaultdict(list), defaultdict(list)  # by (from, to)
        self.together = defaultdict(dict)  # by number of the call, by rank


class _Stuck:
    """Whether streams wait for other ranks that do not come, or not yet."""

    def __init__(self):
        self.calls = []

    @property
    def now(self):
        return any(not call.done for call in self.calls)


_worlds, _names = defaultdict(_World), itertools.count(1)
_group = threading.local()


def forget():
    """Let nothing of a test be left to the next: no communicator whose streams wait for ever, and no notes."""
    for communicator in alive:
        communicator._stuck.calls.clear()
    for noted in (alive, calls, captures, faults, groups):
        noted.clear()
    patience[0], version[0] = 20.0, 22707


def get_version():
    return version[0]


def get_unique_id():
    _fail("get_unique_id")
    calls.append((None, "get_unique_id", None, 0, None))
    return next(_names).to_bytes(UNIQUE_ID_BYTES, "little")


def groupStart():  # noqa: N802 - NCCL's names
    _group.depth = getattr(_group, "depth", 0) + 1
    if _group.depth == 1:
        _group.calls, _group.failed = [], None


def groupEnd():  # noqa: N802
    if getattr(_group, "depth", 0) < 1:
        raise NcclError(5)
    _group.depth -= 1
    if not _group.depth:
        begun, _group.calls = _group.calls, []
        groups.append(len(begun))
        if _group.failed is not None:  # of a group of which one call is refused, none is carried out
            raise _group.failed
        _carry_out(begun)


def _fail(call, rank=None):
    if call in faults or (call, rank) in faults:
        raise NcclError(faults.get(call) or faults[call, rank])


class _Call:
    """One call of one rank: where its bytes are, on which stream, and whether all ranks have done their part."""

    def __init__(self, communicator, kind, send, receive, size, other, stream):
        self.communicator, self.kind, self.other, self.stream, self.done = communicator, kind, other, stream, False
        whole = size * communicator._size if kind == "allGather" else size
        self.send = None if send is None else _bytes_at(send, size)
        self.receive = None if receive is None else _bytes_at(receive, whole)
        self.size, self.captured = size, None  # the number of its capture, which is that of what answers it

    def asked(self):
        """Return what has to be the same of all ranks."""
        return self.kind, self.size, self.other, self.captured

    def again(self, stream):
        """Return the call as a launch of its graph makes it, which keeps nothing alive."""
        if any(use is not None and use() is None for use in (self.send, self.receive)):
            raise CudaError("a graph uses an array that has been freed")
        if self.communicator._closed:
            raise CudaError("double: a graph makes calls of a communicator that has ended")
        twin = copy.copy(self)
        twin.stream = stream
        return twin


class NcclCommunicator:
    def __init__(self, ndev, commId, rank, config=None):  # noqa: N803
        _fail("init")
        if len(commId) != UNIQUE_ID_BYTES:
            raise ValueError(f"commId length {len(commId)} != {UNIQUE_ID_BYTES}.")
        self._world, self._size, self._rank, self._device = _worlds[commId], ndev, rank, _current_device()
        self._stuck, self._closed, self._count = _Stuck(), False, 0
        self._graphs, self._captures = weakref.WeakSet(), 0
        world = self._world
        with world.changed:
            if rank in world.devices or not 0 <= rank < ndev:
                raise NcclError(4)
            world.devices[rank] = self._device
            world.changed.notify_all()
            if not world.changed.wait_for(lambda: len(world.devices) == ndev, JOIN_SECONDS):
                raise NcclError(2)
        if len(set(world.devices.values())) < ndev:
            raise NcclError(5)  # two ranks on one GPU
        alive.add(self)

    def rank_id(self):
        return self._rank

    def size(self):
        return self._size

    def device_id(self):
        return self._device

    def send(self, sendbuf, count, datatype, peer, stream):
        self._call("send", sendbuf, None, count, datatype, peer, stream)

    def recv(self, recvbuf, count, datatype, peer, stream):
        self._call("recv", None, recvbuf, count, datatype, peer, stream)

    def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
        self._call("broadcast", sendbuff, recvbuff, count, datatype, root, stream)

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):  # noqa: N802
        self._call("allGather", sendbuf, recvbuf, count, datatype, None, stream)

    def check_async_error(self):
        _fail("async")

    def _refuse_beside_graphs(self):
        if len(self._graphs):  # NCCL polls until the last of them is destroyed, see its commDestroySync
            raise CudaError("double: to end a communicator is to wait for the graphs that hold its calls, for ever")

    def abort(self):
        self._refuse_beside_graphs()
        self._stuck.calls.clear()
        self._closed = True
        alive.discard(self)
        with self._world.changed:
            self._world.given_up = True
            self._world.changed.notify_all()

    def destroy(self):
        if self._stuck.now:
            raise CudaError("double: to destroy a communicator is to wait for what is queued on it, for ever")
        self._refuse_beside_graphs()
        self._closed = True
        alive.discard(self)

    def _call(self, kind, send, receive, count, datatype, other, stream):
        on = _stream_at(stream)
        try:
            _fail(kind)
            if on.is_capturing():
                _fail("captured", self._rank)
            if self._closed or on._device != self._device or (other is not None and not 0 <= other < self._size):
                raise NcclError(4)
            if count < 1:
                raise CudaError("double: NCCL is asked to move nothing")
        except NcclError as e:
            _group.failed = e
            raise
        if not on.is_capturing():
            calls.append((self._rank, kind, other, count, on))
        made = _Call(self, kind, send, receive, count * _ITEM_BYTES[datatype], other, on)
        if getattr(_group, "depth", 0):
            _group.calls.append(made)
        else:
            _carry_out([made])


def _bytes_at(pointer, size):
    memory = _memory_at(pointer)
    start = pointer - memory.start
    if start + size > memory.bytes.size:
        raise CudaError("double: NCCL reaches beyond an array")
    return Use(memory, start, start + size)


def _carry_out(begun):
    """Do what the other ranks have asked for too, and wait for those that have not yet; or keep it, while captured."""
    if not begun:
        return
    graphs = {call.stream._graph for call in begun}
    if len(graphs) > 1:
        for graph in graphs - {None}:
            _spoil([graph._captured_by], "a group of calls of NCCL that are not all in it")
        raise NcclError(5)
    if None not in graphs:
        _capture(begun, *graphs)
        return
    world = begun[0].communicator._world
    with world.changed:
        for call in begun:
            _post(world, call)
        world.changed.notify_all()
        world.changed.wait_for(lambda: world.given_up or all(call.done for call in begun), patience[0])
        for call in begun:
            if not call.done:
                call.stream._stuck = call.communicator._stuck
                call.communicator._stuck.calls.append(call)


def _capture(begun, graph):
    """Put calls into a graph: one of the stream of the last, as NCCL makes one kernel of a group."""
    communicator = begun[-1].communicator
    communicator._graphs.add(graph)
    for call in begun:
        call.captured = communicator._captures
    asked = [(call.kind, call.other, call.size) for call in begun]
    captures.append((communicator._rank, communicator._captures, asked, begun[-1].stream))
    communicator._captures += 1
    graph._parts.append((begun[-1].stream._branch, "call", lambda on: _carry_out([call.again(on) for call in begun])))


def _post(world, call):
    mine = call.communicator._rank
    if call.kind in ("send", "recv"):
        pair = (mine, call.other) if call.kind == "send" else (call.other, mine)
        (world.sent if call.kind == "send" else world.wanted)[pair].append(call)
        while world.sent[pair] and world.wanted[pair]:
            sender, receiver = world.sent[pair].pop(0), world.wanted[pair].pop(0)
            _same((sender.size, sender.captured), (receiver.size, receiver.captured))
            _move(sender, receiver, receiver.receive)
            sender.done = receiver.done = True
        return
    number = call.communicator._count
    call.communicator._count += 1
    ranks = world.together[number]
    ranks[mine] = call
    if len(ranks) < call.communicator._size:
        return
    for theirs in ranks.values():
        _same(call.asked(), theirs.asked())
    for receiver in ranks.values():
        for rank, sender in ranks.items():
            if call.kind == "allGather":
                part = slice(rank * call.size, (rank + 1) * call.size)
                use = receiver.receive
                _move(sender, receiver, Use(use(), use.start + part.start, use.start + part.stop))
            elif rank == call.other:
                _move(sender, receiver, receiver.receive)
    for theirs in world.together.pop(number).values():
        theirs.done = True


def _same(first, second):
    if first != second:
        raise CudaError(f"double: ranks ask NCCL for different things, {first} and {second}: they would wait for ever")


def _move(sender, receiver, use):
    """Copy bytes from what the sender's stream has made to what the receiver's stream makes next."""
    source = sender.send
    here, there = (part().bytes[part.start : part.stop] for part in (source, use))
    with _lock:
        if np.shares_memory(here, there):
            if here.ctypes.data != there.ctypes.data:
                raise CudaError("double: NCCL in place at another place")
            sender.stream._do([source], [], lambda: None, "nccl")
            return
        sender.stream._do([source], [], lambda: None, "nccl")
        receiver.stream._clock.join(sender.stream._clock)
        receiver.stream._do([], [use], functools.partial(np.copyto, there, here), "nccl")
        sender.stream._clock.join(receiver.stream._clock)
