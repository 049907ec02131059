"""What the double of CuPy refuses beside a capture: by the capture's mode, by who does it, or to anybody."""

import gc
import threading

import cupy_double as cp
import cupy_streams
import numpy as np
import pytest
from compare import assert_same_bits
from cupy_streams import GLOBAL, RELAXED, THREAD_LOCAL
from emulator import needs_emulator
from gpu_arrays import make, model_on, rows, train

from fastmlp.backends.cuda import step as cupy_step


@pytest.fixture
def stream():
    """Return a stream to capture, while nothing is collected that other tests have left."""
    stream = cp.cuda.Stream(non_blocking=True)
    gc.collect()
    gc.disable()
    yield stream
    gc.enable()
    if stream.is_capturing():
        cupy_streams._capturing.remove(stream)


def elsewhere(function):
    """Call a function in another thread, where what it returns is freed too; raise what it raises."""
    errors = []

    def run():
        try:
            function()
        except BaseException as e:
            errors.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


HOST = np.zeros(64, np.float32)

UNSAFE = {
    "allocates": lambda a, event: cp.empty((3,), np.float32),
    "pins memory": lambda a, event: cp.cuda.PinnedMemory(64),
    "copies to the host": lambda a, event: a.get(),
    "copies from the host": lambda a, event: a.set(HOST),
    "waits for another stream": lambda a, event: cp.Stream.null.synchronize(),
    "waits for an event of before": lambda a, event: event.synchronize(),
    "makes a handle of cuBLAS": lambda a, event: cp.CublasLibrary().cublasCreate_v2(_Reference()),
    "works on the default stream": lambda a, event: a.__setitem__(..., 0),
}


class _Reference:
    class _obj:  # noqa: N801 - as of ctypes
        value = 0


def test_cupy_captures_in_the_relaxed_mode_and_numbers_them_as_cuda_does():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'fastmlp[cuda-test]'")
    assert "Default is\n        :data:`~cupy.cuda.runtime.streamCaptureModeRelaxed`" in (
        cupy.cuda.Stream.begin_capture.__doc__
    )
    runtime = cupy.cuda.runtime
    names = runtime.streamCaptureModeGlobal, runtime.streamCaptureModeThreadLocal, runtime.streamCaptureModeRelaxed
    assert names == (GLOBAL, THREAD_LOCAL, RELAXED)


@pytest.mark.parametrize("mode", [None, RELAXED, THREAD_LOCAL, GLOBAL])
@pytest.mark.parametrize("what", UNSAFE)
def test_another_thread_is_refused_what_is_unsafe_beside_a_global_capture_alone(what, mode, stream):
    a, event = cp.empty((64,), np.float32), cp.Stream.null.record()
    stream.begin_capture(mode)
    if mode == GLOBAL:
        with pytest.raises(cp.CudaError, match="Unsupported"):
            elsewhere(lambda: UNSAFE[what](a, event))
        with pytest.raises(cp.CudaError, match="Invalidated"):
            stream.end_capture()
    else:
        elsewhere(lambda: UNSAFE[what](a, event))
        stream.end_capture()


@pytest.mark.parametrize("mode", [None, THREAD_LOCAL, GLOBAL])
@pytest.mark.parametrize("what", UNSAFE)
def test_the_thread_that_captures_is_refused_it_in_any_mode(what, mode, stream):
    a, event = cp.empty((64,), np.float32), cp.Stream.null.record()
    stream.begin_capture(mode)
    with pytest.raises(cp.CudaError, match="Unsupported"):
        UNSAFE[what](a, event)
    with pytest.raises(cp.CudaError, match="Invalidated"):
        stream.end_capture()


@pytest.mark.parametrize("mode", [None, THREAD_LOCAL, GLOBAL])
def test_memory_that_another_thread_frees_spoils_a_global_capture_alone(mode, stream):
    held = [cp.empty((4,), np.float32)]
    stream.begin_capture(mode)
    elsewhere(held.clear)
    if mode == GLOBAL:
        with pytest.raises(cp.CudaError, match="Invalidated: memory of another was freed"):
            stream.end_capture()
    else:
        stream.end_capture()


AT_ODDS = {
    "waits for the stream": lambda stream, fork, event: stream.synchronize(),
    "waits for a fork": lambda stream, fork, event: fork.synchronize(),
    "waits for the device": lambda stream, fork, event: cp.cuda.runtime.deviceSynchronize(),
    "waits for an event of it": lambda stream, fork, event: event.synchronize(),
}


@pytest.mark.parametrize("mode", [None, THREAD_LOCAL, GLOBAL])
@pytest.mark.parametrize("what", AT_ODDS)
@pytest.mark.parametrize("who", ["the same thread", "another"])
def test_whoever_waits_for_what_is_captured_spoils_it_in_any_mode(who, what, mode, stream):
    fork = cp.cuda.Stream(non_blocking=True)
    stream.begin_capture(mode)
    fork.wait_event(stream.record())
    event = fork.record()
    stream.wait_event(event)

    def wait():
        AT_ODDS[what](stream, fork, event)

    with pytest.raises(cp.CudaError, match=r"CaptureUnsupported|CapturedEvent"):
        wait() if who == "the same thread" else elsewhere(wait)
    with pytest.raises(cp.CudaError, match="Invalidated"):
        stream.end_capture()


def test_another_device_may_be_waited_for(stream):
    stream.begin_capture()

    def wait():
        with cp.cuda.Device(1):
            cp.cuda.runtime.deviceSynchronize()

    elsewhere(wait)
    stream.end_capture()


def test_an_event_that_was_recorded_in_a_capture_has_not_happened_when_that_is_over(stream):
    stream.begin_capture()
    event = stream.record()
    stream.end_capture().launch(stream)
    other = cp.cuda.Stream(non_blocking=True)
    for wrong in (
        event.synchronize,
        lambda: other.wait_event(event),
        lambda: cp.cuda.get_elapsed_time(event, stream.record()),
    ):
        with pytest.raises(cp.CudaError, match="cudaErrorCapturedEvent"):
            wrong()
    event.record(stream)  # and now it does
    event.synchronize()


def test_a_relaxed_capture_alone_may_be_ended_by_another_thread(stream):
    for mode in (GLOBAL, THREAD_LOCAL):
        stream.begin_capture(mode)
        with pytest.raises(cp.CudaError, match="WrongThread"):
            elsewhere(stream.end_capture)
        stream.end_capture()
    stream.begin_capture()
    elsewhere(stream.end_capture)
    with pytest.raises(cp.CudaError, match="no capture mode 3"):
        stream.begin_capture(3)


# --- two threads that train -------------------------------------------------------------------------------------------


def while_captured(monkeypatch, function):
    """Let a function be called in the midst of the first capture that follows."""
    learn, called = cupy_step.TrainingStep._learn, []

    def with_company(self, index, n, views, **options):
        if self._stream.is_capturing() and not called:
            called.append(function())
        learn(self, index, n, views, **options)

    monkeypatch.setattr(cupy_step.TrainingStep, "_learn", with_company)
    return called


@needs_emulator
@pytest.mark.usefixtures("cupy_is_its_double")
def test_another_thread_trains_while_one_captures_and_both_are_right(monkeypatch):
    x, y = rows()
    captured, eager, beside = model_on(make("captured")), model_on(make("eager")), model_on(make("eager"))
    train(eager, x, y)
    called = while_captured(monkeypatch, lambda: elsewhere(lambda: train(beside, x, y) and beside.predict_proba(x)))
    train(captured, x, y)
    assert len(called) == 1
    for a, b in zip(beside.get_weights(), eager.get_weights(), strict=True):
        assert_same_bits(a, b)
    for a, b in zip(captured.get_weights(), eager.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@needs_emulator
@pytest.mark.usefixtures("cupy_is_its_double")
def test_a_device_is_not_waited_for_while_another_thread_captures(monkeypatch):
    """Whether a fault has left CUDA past use is asked of the whole device, after a failure in any thread."""
    x, y = rows()
    model, expected, asking = model_on(make("captured")), model_on(make("captured")), make("eager")
    train(expected, x, y)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(asking.poisoned()))

    def ask():
        thread.start()
        thread.join(0.2)  # which would be enough to ask

    called = while_captured(monkeypatch, ask)
    train(model, x, y)
    thread.join()
    assert called
    assert answers == [False]
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        assert_same_bits(a, b)
