"""The double of CuPy, its order: devices, memory, streams, events and graphs, and what CUDA forbids on them.

What is put on a stream is done at once (or late, see `cupy_late`), but the double keeps account of what *orders* it:
every stream, event and the host has a vector clock (Lamport 1978; Mattern 1989), every allocation knows who touched it
last, and an access that nothing orders after the one before it is an error, whether or not it would have gone wrong.
What is freed goes to the next who allocates as much on the stream that it was allocated on, as in CuPy's pool: who used
it on another stream must have been waited for.  A graph holds nothing alive, as in CuPy: replaying one whose arrays are
gone is an error.  Whatever CUDA forbids while a stream is captured is an error that also spoils the capture: by the
capture's mode and by who does it (`_refuse_in_capture`), or in any mode and to anybody (`_refuse_of_captured`).
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter

import cupy_late
import numpy as np
from cupy_late import Clock, done_with
from cupy_readings import CudaError

counts = Counter()
"""How often the host waited for the device ("synchronisations") and copied to it ("uploads")."""

pinned = Counter()
"""Bytes of pinned memory that is not of CuPy's pool: "used" now, and at its "peak"."""

pooled = set()
"""Sizes of the blocks that CuPy's pool of pinned memory keeps for ever; tests clear and read it."""

poison = []
"""What has poisoned the process; tests clear it."""

milliseconds = {"launch": 5e-3, "replay": 1e-3, "product": 5e-3}
"""What a kernel takes by itself, within a graph, and a product by cuBLAS, on the clock that events read."""


def _refuse_when_poisoned():
    if poison:
        raise CudaError(f"cudaErrorIllegalAddress: an illegal memory access was encountered ({poison[0]})")


# --- order ------------------------------------------------------------------------------------------------------------


_host = Clock()
_gone = {}  # of streams that are no more the number of their last operation, until the host has waited for it
_readings = []


def _host_waits(clock):
    """Let the host know what a clock knows; what was to be read until then must be as it was."""
    with _lock:
        cupy_late.wait(clock)
        _host.join(clock)
        done = [r for r in _readings if _host.knows(*r.at)]
        _readings[:] = [r for r in _readings if r not in done]
        over = [stream for stream, count in _gone.copy().items() if _host.knows(stream, count)]
        done_with.update(over)
        for stream in over:
            del _gone[stream]
            for known in (_host, *(s._clock for s in list(_streams.values()))):
                known.pop(stream, None)
    for reading in done:
        reading.check()


_memories = weakref.WeakValueDictionary()


class _Memory:
    """One allocation, aligned to 512 bytes like CuPy's; new memory is NaN."""

    def __init__(self, size):
        self.device, self.stream = _current_device(), get_current_stream()  # for which CuPy's pool will free it
        self._kind = self.device, self.stream._number, -(-size // 512)
        with _lock:
            _take_back()
            kept = _pool.get(self._kind)
            # of a block that was freed: whoever used it elsewhere, the next one here must come after
            raw, self.uses = kept.pop() if kept else (np.empty(512 * self._kind[2] + 512, np.uint8), [])
            start = -raw.ctypes.data % 512
            self._raw, self.bytes = raw, raw[start : start + size]
            self.start = self.bytes.ctypes.data
            self.stream._spoil(self.bytes)
            _memories[self.start] = self

    def __del__(self):
        _freed.append((self._kind, self._raw, self.uses, self.stream))  # and no more: it may be anywhere
        _spoil(_forbidding(), "memory of another was freed, as by the garbage collector,")

    def used(self, start, stop, writes, stream, count, clock):
        """Take note that bytes are read or written, and refuse it where nothing orders it after what it must follow."""
        kept = []
        for use in self.uses:
            begin, end, written, other, number = use
            clash = begin < stop and start < end and (writes or written) and not clock.knows(other, number)
            if clash and cupy_late.complains():
                raise CudaError("an array is used on two streams that nothing orders: wait for an event first")
            # whatever comes after this one comes after all that it has had to come after
            if not (start <= begin and end <= stop and (writes or (other == stream and not written))):
                kept.append(use)
        self.uses = [*kept, (start, stop, writes, stream, count)]


_pool, _freed = {}, []
"""Blocks that were freed, by device, stream and size; and those that were freed since anybody looked."""


def forget_freed():
    """Give all blocks back to the system, as between tests, of which one must not depend on what another left."""
    _freed.clear()
    _pool.clear()


def _take_back():
    """Put what was freed into the pool, and spoil what is in it where the stream may give it away at once."""
    while _freed:
        kind, raw, uses, stream = _freed.pop(0)
        if all(stream._clock.knows(other, number) or _host.knows(other, number) for *_, other, number in uses):
            stream._spoil(raw)
        _pool.setdefault(kind, []).append((raw, uses))


class Use:
    """Some bytes of an allocation, which it does not keep alive: what an operation reads or writes."""

    def __init__(self, memory, start=0, stop=None):
        self._memory = weakref.ref(memory)
        self.start, self.stop = start, max(memory.bytes.size, 1) if stop is None else max(stop, start + 1)

    def __call__(self):
        return self._memory()

    @classmethod
    def of(cls, array):
        """Return the bytes of an array that lie side by side."""
        start = array._view.ctypes.data - array._memory.start
        return cls(array._memory, start, start + array._view.nbytes)


def _alive():
    # one step of the interpreter: going through the dictionary itself fails where another thread allocates meanwhile
    return [memory for found in _memories.valuerefs() if (memory := found()) is not None]


def _memory_at(pointer):
    for memory in _alive():
        if memory.start <= pointer < memory.start + max(memory.bytes.size, 1):
            return memory
    raise CudaError(f"the address {pointer:#x} belongs to no array (or to one that has been freed)")


class Event:
    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self._clock, self._timed, self._time, self._stuck = None, not disable_timing, None, None

    @property
    def done(self):
        """Tell whether all before it is done, which a device that is asked again and again gets to."""
        self._refuse_captured("asking for")
        _refuse_when_poisoned()
        counts["asked"] += 1
        if self._stuck is not None and self._stuck.now:
            return False
        _host_waits(self._clock or {})
        return True

    def record(self, stream=None):
        (stream or get_current_stream()).record(self)

    def synchronize(self):
        self._refuse_captured("waiting for")
        _refuse_in_capture("waiting for an event")
        _refuse_when_poisoned()
        counts["synchronisations"] += 1
        _refuse_for_ever(self._stuck)
        _host_waits(self._clock or {})

    def _refuse_captured(self, what):
        """Refuse what needs an event to have happened, if it was recorded in a capture, where nothing happens."""
        graph = getattr(self, "_captured", None)
        if graph is not None:
            _spoil([s for s in _capturing if s is graph._captured_by], f"{what} an event of it")
            raise CudaError(f"cudaErrorCapturedEvent: {what} an event that was last recorded in a capture")


def _refuse_for_ever(stuck):
    if stuck is not None and stuck.now:
        raise CudaError("double: the host waits for a stream that waits for ever")


def _elapsed_time(start_event, end_event):
    for event in (start_event, end_event):
        event._refuse_captured("the time of")
        if not event._timed or event._time is None:
            raise CudaError("cudaErrorInvalidResourceHandle: an event without a time, or never recorded")
        if not all(_host.knows(stream, count) for stream, count in event._clock.items()):
            raise CudaError("cudaErrorNotReady: nobody has waited for the event")
    return end_event._time - start_event._time


class Stream:
    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        self._clock, self._non_blocking, self._graph, self._spoiled = Clock(), non_blocking, None, None
        self._number, self._branch = next(_numbers), 0  # its own for ever, and of the graph that it is captured into
        self.ptr, self._time, self._device = 0 if null else id(self), 0.0, None if null else _current_device()
        self._stuck = None  # of a stream that waits for ranks that do not come, see `cupy_nccl`
        _streams[self.ptr] = self

    def __del__(self):
        if _gone is None:  # the interpreter is ending
            return
        _gone[self._number] = self._clock.get(self._number, 0)

    def __enter__(self):
        if self._device not in (None, _current_device()):
            raise RuntimeError(f"This stream was not created on device {_current_device()}")
        _stack().append(self)
        return self

    def __exit__(self, *_):
        assert _stack().pop() is self

    def _do(self, reads, writes, action, kind=""):
        with _lock:
            self._do_alone(reads, writes, action, kind)

    def _do_alone(self, reads, writes, action, kind):
        """Put an operation on the stream: check what orders it, then do it (or keep it, while captured)."""
        _refuse_when_poisoned()
        here = _current_device() if self._device is None else self._device
        reads, writes = ([u if isinstance(u, Use) else Use(u) for u in part] for part in (reads, writes))
        if any(use().device != here for use in (*reads, *writes)):
            raise CudaError(f"an array of another device is used on device {here}, which CuPy would let pass unchecked")
        if self._graph is not None:
            self._graph._operations.append((tuple(reads), tuple(writes), action))
            self._graph._parts.append((self._branch, "operation", len(self._graph._operations) - 1))
            return
        self._time += milliseconds.get(kind, 0.0)
        if any(s._graph is not None for s in _capturing) and self.ptr == 0:
            _refuse_in_capture("work on the legacy default stream")
        _take_back()
        number = self._counted()
        for uses, writes_it in ((reads, False), (writes, True)):
            for use in uses:
                use().used(use.start, use.stop, writes_it, self._number, number, self._clock)
        cupy_late.put(self._number, self._clock, getattr(action, "held", lambda: action)())

    def _counted(self):
        """Return the number of an operation that is about to be put on the stream."""
        self._clock.join(_host)
        self._clock[self._number] += 1
        return self._clock[self._number]

    def _spoil(self, block):
        """Let a block of memory hold nothing that means anything, after all that is on the stream."""
        self._counted()
        cupy_late.put(self._number, self._clock, lambda: block.fill(0xFF))

    def synchronize(self):
        if self._graph is not None:
            _refuse_of_captured("synchronisation", [self._graph._captured_by])
        _refuse_in_capture("synchronisation")
        _refuse_when_poisoned()
        counts["synchronisations"] += 1
        _refuse_for_ever(self._stuck)
        _host_waits(self._clock)

    def record(self, event=None):
        event = event or Event()
        with _lock:  # other threads forget there what is done with
            event._clock = Clock(self._clock)
            event._clock.join(_host)
        event._captured, event._time, event._stuck = self._graph, self._time, self._stuck
        if self._graph is not None:
            event._mark = object()  # of the event itself the graph knows nothing, or each would keep the other alive
            self._graph._parts.append((self._branch, "record", event._mark))
        return event

    def wait_event(self, event):
        graph = getattr(event, "_captured", None)
        if graph is not None and graph._captured_by is not None:
            if self._graph is None:  # a stream that waits for an event of a capture is captured with it: a fork
                if self.ptr == 0 or not self._non_blocking:
                    what = "a fork to the default stream, or to one that it waits for"
                    _refuse_of_captured(what, [graph._captured_by])
                graph._forks.append(self)
                self._graph, self._branch = graph, len(graph._forks)
            elif self._graph is not graph:
                both = [graph._captured_by, self._graph._captured_by]
                _refuse_of_captured("waiting for an event of another capture", both)
            self._graph._parts.append((self._branch, "wait", event._mark))
            return
        if self._graph is not None:
            what = "waiting for an event that was recorded before the capture"
            _refuse_of_captured(what, [self._graph._captured_by])
        event._refuse_captured("waiting for")
        with _lock:
            self._clock.join(event._clock)
        self._time, self._stuck = max(self._time, event._time), self._stuck or event._stuck

    def is_capturing(self):
        return self._graph is not None

    def begin_capture(self, mode=None):
        if self.ptr == 0:
            raise CudaError("the legacy default stream cannot be captured")
        if not self._non_blocking:
            raise CudaError("double: capture on a non-blocking stream, or work on the default stream is drawn in")
        if self._graph is not None:
            raise CudaError("the stream is being captured already")
        if mode not in (None, GLOBAL, THREAD_LOCAL, RELAXED):
            raise CudaError(f"cudaErrorInvalidValue: no capture mode {mode}")
        self._graph, self._spoiled, self._branch = Graph(), None, 0
        self._graph._captured_by, self._graph._begun_by = self, threading.get_ident()
        self._graph._mode = RELAXED if mode is None else mode  # CuPy's choice, since its pool may have to grow
        _capturing.append(self)

    def end_capture(self):
        if self._graph is None:
            raise CudaError("the stream is not being captured")
        if self not in _capturing:
            raise CudaError("cudaErrorStreamCaptureUnmatched: the capture was begun on another stream")
        if self._graph._mode != RELAXED and self._graph._begun_by != threading.get_ident():
            raise CudaError("cudaErrorStreamCaptureWrongThread: the capture was begun by another thread")
        _capturing.remove(self)
        graph, self._graph, self._spoiled, spoiled = self._graph, None, None, self._spoiled
        graph._captured_by = None
        for fork in graph._forks:
            fork._graph = None
        if spoiled:
            raise CudaError(f"cudaErrorStreamCaptureInvalidated: {spoiled}")
        if not graph._joined():
            raise CudaError("cudaErrorStreamCaptureUnjoined: work of a fork that the captured stream does not wait for")
        return graph


class Graph:
    """Operations to be replayed, in branches; of the arrays it knows nothing but where they were."""

    def __init__(self):
        self._operations = []
        self._parts = []  # (branch, what, its number, mark of an event, or function), in their order
        self._forks, self._captured_by, self._begun_by, self._mode = [], None, None, None

    def _joined(self):
        """Return whether the stream that was captured comes after all that its forks did."""
        after, events = {}, {}  # of each branch the parts that it comes after
        for number, (branch, what, item) in enumerate(self._parts):
            mine = after.setdefault(branch, set())
            if what in ("operation", "call"):
                mine.add(number)
            elif what == "record":
                events[item] = set(mine)
            else:
                mine |= events.get(item, set())
        everything = {number for number, part in enumerate(self._parts) if part[1] in ("operation", "call")}
        return after.get(0, set()) == everything

    def launch(self, stream=None):
        try:
            stream = stream or get_current_stream()
            if stream.is_capturing():
                raise CudaError("double: a graph launched while a stream is captured")
            # each branch is a stream again, so that the account of what orders what holds within the graph too
            streams, events = [stream, *(Stream(non_blocking=True) for _ in self._forks)], {}
            for branch, what, item in self._parts:
                if what == "record":
                    events[item] = streams[branch].record(Event(disable_timing=True))
                elif what == "wait":
                    streams[branch].wait_event(events[item])
                elif what == "call":  # of a library, which makes it anew on the stream that it is given
                    item(streams[branch])
                else:
                    reads, writes, action = self._operations[item]
                    if any(use() is None for use in (*reads, *writes)):
                        raise CudaError("a graph uses an array that has been freed")
                    streams[branch]._do(reads, writes, action, "replay")
        except BaseException:
            self = None  # the frame of an error is in Python here, and may not keep the graph alive
            raise

    def upload(self, stream=None):
        pass


_capturing = []
_lock = threading.RLock()
_threads = threading.local()  # the current device is each thread's own, and so is each device's current stream
_streams = weakref.WeakValueDictionary()
_numbers = itertools.count()
DEVICES = 4


def _current_device():
    return getattr(_threads, "devices", [0])[-1]


def get_current_stream(device_id=None):
    return _stack()[-1]


def _stack():
    if not hasattr(_threads, "streams"):
        _threads.streams = {device: [_null] for device in range(DEVICES)}
    return _threads.streams[_current_device()]


_null = Stream(null=True)
Stream.null = _null


def _stream_at(pointer):
    return _null if pointer in (0, 1) else _streams[pointer]


GLOBAL, THREAD_LOCAL, RELAXED = range(3)
"""Modes of a capture: who may do beside it what CUDA calls potentially unsafe; none, other threads, all."""


def _forbidding():
    """Return the streams of the captures beside which this thread may do nothing that is potentially unsafe.

    CUDA lets that pass in the thread that captures too, if it does so in CuPy's mode, relaxed.  It is refused there all
    the same: it would be done once, while the stream is captured, and by no replay of the graph.
    """
    me = threading.get_ident()
    return [s for s in list(_capturing) if s._graph._mode == GLOBAL or s._graph._begun_by == me]


def _spoil(streams, what):
    for stream in streams:
        stream._spoiled = stream._spoiled or what


def _refuse_in_capture(what):
    """Refuse what is potentially unsafe beside a capture: to allocate, load, wait, copy from or to the host."""
    if streams := _forbidding():
        _refuse_of_captured(what, streams)


def _refuse_of_captured(what, streams):
    """Refuse, and spoil the captures of streams: as what is, in any mode and any thread, at odds with them."""
    _spoil(streams, what)
    raise CudaError(f"cudaErrorStreamCaptureUnsupported: {what} while a stream is being captured")
