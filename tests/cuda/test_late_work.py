"""Work that is done late, as on a device: the same bits on every schedule, and others where order is missing."""

import contextlib
import functools
import inspect

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import EmulatorError, needs_emulator
from gpu_arrays import Dlpack, make, model_on, rows
from gpu_arrays import train as fit
from scenarios import Scenario, train

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import capture, choice, uploads
from fastmlp.backends.cuda import memory as cupy_memory
from fastmlp.backends.cuda import step as cupy_step
from fastmlp.formulas.optimizers import Adam

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]

SEEDS = range(6)
"""Of schedules: two of each kind."""
NETWORK = {"activation": "tanh", "dropout": 0.2}
LONG = Scenario("long", (5, 7, 6, 3), NETWORK, Adam(clip_norm=0.5, ema=0.9), rows=41, batch=2, epochs=1)


@pytest.fixture(autouse=True)
def small_and_proven(monkeypatch):
    """Bring little at once; and prove nothing, which waits for all that is queued again and again."""
    monkeypatch.setattr(choice, "_doubt", lambda *_: "")
    monkeypatch.setattr(uploads, "PIECE", 256)
    monkeypatch.setattr("fastmlp.backends.cuda.operations.PIECE", 256)
    monkeypatch.setattr(cupy_memory, "WORKSPACE", 512)


# --- what is tried --------------------------------------------------------------------------------------------------


def captured():
    state, sums, _ = train(LONG, make("captured"), "float32")
    return [state.params.get(), state.average.get(), *sums]


def eager():
    state, sums, _ = train(LONG, make("eager"), "float32")
    return [state.params.get(), state.average.get(), *sums]


def fitted(way="captured"):
    """Fit twice with everything that goes to and fro meanwhile, and predict."""
    x, y = rows(41)
    model = model_on(make(way), dropout=0.2)
    for _ in range(2):
        fit(model, x, y, validation_data=(x[:9], y[:9]), optimizer=Adam(ema=0.9))
    return [*model.get_weights(), model.predict_proba(x), np.array(list(model.evaluate(x, y).values()))]


def taken():
    """Train on arrays of others, changed before and after, and of streams of their own."""
    x, y = rows(21)
    model = model_on(make("captured"))
    found = []
    for given in (Dlpack(x), Dlpack(x * 2)):
        with given.stream:
            given.array *= 0.5
        fit(model, given, y, epochs=1)
        probabilities = model.predict_proba(given)
        with given.stream:
            given.array[...] = np.float32(np.nan)  # it is over with
        found.append(probabilities.get())
    with cp.cuda.Stream(non_blocking=True):
        there = cp.asarray(x)
        there *= 0.5
        probabilities = model.predict_proba(there)
        there *= 0.0
        found.append(probabilities.get())
    return [*model.get_weights(), *found]


def proven():
    """Hold kernels against cuBLAS, with what is computed in between looked at by the host."""
    backend = make("captured")
    state, data = LONG.state(backend, "float32"), LONG.device_data(backend, "float32")
    with backend.working():
        return [np.frombuffer(choice.prove(backend, LONG.plan("float32"), state, data).encode(), np.uint8)]


def uploaded():
    backend, host = make("eager"), np.arange(3000, dtype=np.float32)
    return [a.get() for a in (backend.asarray(host), backend.asarray(host[::-1]))]


def filled():
    backend, stream = make("eager"), cp.cuda.Stream(non_blocking=True)
    with stream:
        target, host = cp.empty((5,), np.float32), np.arange(5, dtype=np.float32)
        backend.fill(target, host)
        host[...] = 7
        return [target.get()]


WORK = {work.__name__: work for work in (captured, eager, fitted, taken, proven, uploaded, filled)}


def differs(work, expected):
    """Return whether a schedule gives other numbers, or an error that follows from them."""
    for seed in range(12):
        try:
            with cp.late(seed):
                found = work()
        except (fastmlp.NonFiniteLossError, AssertionError, EmulatorError):  # garbage taken for an address, and so on
            return True
        if any(a.tobytes() != b.tobytes() for a, b in zip(found, expected, strict=True)):
            return True
    return False


# --- nothing is missing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("work", "seed"),
    [
        pytest.param(work, seed, marks=[] if seed < 3 and work in ("captured", "filled") else pytest.mark.cuda_host)
        for work in WORK
        for seed in SEEDS
    ],
)
def test_whatever_the_schedule_the_bits_are_those_of_work_done_at_once(work, seed):
    with cp.late(seed):
        found = WORK[work]()
    for a, b in zip(found, at_once(work), strict=True):
        assert_same_bits(a, b)


@functools.cache
def at_once(work):
    return WORK[work]()


# --- what would be missing ------------------------------------------------------------------------------------------


def without_waits(function):
    """Return a context manager's function as if the streams waited for nothing on the way in, or out."""

    def planted(place):
        @contextlib.contextmanager
        def wrapped(self, *args):
            wait, calls = cp.Stream.wait_event, []

            def skipping(stream, event):
                calls.append(stream)
                if len(calls) - 1 != place:
                    wait(stream, event)

            manager = function(self, *args)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cp.Stream, "wait_event", skipping if place == 0 else wait)
                value = manager.__enter__()
            try:
                yield value
            finally:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(cp.Stream, "wait_event", (lambda *_: None) if place == 1 else wait)
                    manager.__exit__(None, None, None)

        return wrapped

    return planted


def plant(patch, what):
    step, branch, backend = cupy_step.TrainingStep, capture.Branch, cupy_backend.CupyBackend
    own_stream, working = without_waits(step._own_stream), without_waits(backend.working)
    join, advance, wait, views, init = branch.join, step._advance, cp.Stream.wait_event, step._views, step.__init__

    def joined_at_last(name):
        def named(self, *args, **options):
            init(self, *args, **options)
            getattr(self, name).late = True

        def joined(self, steps):
            join(getattr(self, name))
            advance(self, steps)

        patch.setattr(step, "__init__", named)
        patch.setattr(step, "_advance", joined)
        patch.setattr(branch, "join", lambda self: None if hasattr(self, "late") else join(self))

    match what:
        case "steps begin before what the caller has queued":
            patch.setattr(step, "_own_stream", own_stream(0))
        case "the caller goes on before the steps are done":
            patch.setattr(step, "_own_stream", own_stream(1))
        case "operations begin before what the caller has queued":
            patch.setattr(backend, "working", working(0))
        case "the caller goes on before the operations are done":
            patch.setattr(backend, "working", working(1))
        case "a fork from the place of the one before":
            forks = {}

            @contextlib.contextmanager
            def beside(self):
                if not self._stream.is_capturing():
                    yield
                    return
                graph = self._stream._graph
                if graph not in forks:
                    forks[graph] = self._stream.record()
                wait(self.side, forks[graph])
                with self.side:
                    yield

            patch.setattr(branch, "beside", beside)
        case "updates before the gradients beside them are there":
            joined_at_last("_side")
        case "a batch before it is gathered":
            joined_at_last("_ahead")
        case "the next batch into the place of this one":
            patch.setattr(step, "_views", lambda self, n, index=0: views(self, n))
        case "a buffer filled again while it is read":
            patch.setattr(cp.cuda.Event, "synchronize", lambda self: None)
        case "buffers of the last upload filled while they are read":
            synchronize = cp.Stream.synchronize

            def called_by(name):
                return any(frame.function == name for frame in inspect.stack(0))

            patch.setattr(cp.Stream, "synchronize", lambda self: None if called_by("upload") else synchronize(self))
        case "a host array set without a copy":
            patch.setattr(backend, "fill", lambda self, target, host: target.set(np.ascontiguousarray(host)))
        case "the order on the stream of who asks":
            take = step._take_order

            def elsewhere(self, order):
                with cp.cuda.Stream(non_blocking=True):
                    take(self, order)

            patch.setattr(step, "_take_order", elsewhere)
        case "a producer's array used after the call":
            patch.setattr(backend, "_hand_back", lambda self, caller: caller.wait_event(self._stream.record()))


PLANTED = {
    "steps begin before what the caller has queued": "fitted",
    "the caller goes on before the steps are done": "proven",
    "operations begin before what the caller has queued": "taken",
    "the caller goes on before the operations are done": "taken",
    "a fork from the place of the one before": "captured",
    "updates before the gradients beside them are there": "captured",
    "a batch before it is gathered": "captured",
    "the next batch into the place of this one": "captured",
    "a buffer filled again while it is read": "uploaded",
    "buffers of the last upload filled while they are read": "uploaded",
    "a host array set without a copy": "filled",
    "the order on the stream of who asks": "captured",
    "a producer's array used after the call": "taken",
}


@pytest.mark.cuda_host
@pytest.mark.parametrize("what", PLANTED)
def test_order_that_is_missing_changes_numbers(what, monkeypatch):
    work, expected = WORK[PLANTED[what]], at_once(PLANTED[what])
    plant(monkeypatch, what)
    assert differs(work, expected), f"{what}: no schedule gives other numbers"
