"""Threads of which one cannot be started, or does not come: nobody waits for it, and nothing works on unseen."""

import _thread
import signal
import time

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp.backends.cpu import choices
from fastmlp.backends.cpu.crew import Steady
from fastmlp.backends.cpu.threads import NoThreadError, on_meeting_threads, on_threads

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
pytestmark = pytest.mark.skipif(
    not fastmlp.available_backends()["numba"].available or numba.config.DISABLE_JIT,
    reason="without compiled kernels there is one thread",
)


class TooLateError(Exception):
    """What a handler of a signal raises."""


def fitted():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(96, 20)).astype("float32"), rng.integers(0, 4, 96)
    backend = fastmlp.get_backend("numba", threads=3, products="rule")
    model = fastmlp.MLP((20, 16, 4), backend=backend, seed=0)
    return model, lambda: model.fit(x, y, epochs=2, batch_size=48, verbose=0)


@pytest.fixture
def all_of_them(monkeypatch):
    """As if all threads were always the fastest."""
    monkeypatch.setattr(choices, "Crew", Steady)


def refuse(monkeypatch, numbers):
    """Have threads of these numbers not started."""
    start = _thread.start_new_thread

    def some(run, given):
        if given[0] in numbers:
            raise RuntimeError("can't start new thread")
        return start(run, given)

    monkeypatch.setattr(_thread, "start_new_thread", some)


@pytest.mark.parametrize("refused", [{1}, {2}, {1, 2}])
def test_steps_are_one_threads_where_no_more_can_be_started_with_the_same_bits(monkeypatch, all_of_them, refused):
    wanted, fit = fitted()
    fit(), fit()
    model, fit = fitted()
    with monkeypatch.context() as patched:
        refuse(patched, refused)
        fit()
    fit()
    for a, b in zip(model.get_weights(), wanted.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_no_work_begins_where_a_thread_that_is_needed_cannot_be_started(monkeypatch):
    refuse(monkeypatch, {2})
    worked = []
    with pytest.raises(NoThreadError, match="can't start new thread"):
        on_threads(3, worked.append)
    time.sleep(0.05)
    assert worked == []
    on_threads(3, worked.append, all_needed=False)
    assert sorted(worked) == [0, 1]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_wait_for_one_that_was_kept_from_its_work(threads):
    """Thread 0 is this one: a handler may raise in it before it has entered what is compiled."""
    from fastmlp.kernels.cpu.compiling import entry
    from fastmlp.kernels.cpu.threads import all_begin, counters

    @entry
    def ask(t, threads, arrivals):
        return all_begin(arrivals, t, threads)

    answers, arrivals = {}, np.zeros(counters(threads), np.int64)

    def late(t, threads, arrivals):
        if t == 0:
            time.sleep(0.05)
            raise TooLateError
        answers[t] = ask(t, threads, arrivals)

    for _ in range(3):
        answers.clear()
        with pytest.raises(TooLateError):
            on_meeting_threads(threads, late, (arrivals,), arrivals)
        assert answers == dict.fromkeys(range(1, threads), False)
        on_meeting_threads(threads, lambda t, *given: answers.update({t: ask(t, *given)}), (arrivals,), arrivals)
        assert answers == dict.fromkeys(range(threads), True)


def test_no_step_is_taken_where_this_thread_was_kept_from_it(monkeypatch, all_of_them):
    from fastmlp.kernels.cpu import train

    wanted, fit = fitted()
    fit(), fit()
    model, fit = fitted()
    fit()
    before, kernel = model.get_weights(), train.train_thread

    def kept_from_it(t, *given):
        if t == 0:
            raise TooLateError
        kernel(t, *given)

    with monkeypatch.context() as patched:
        patched.setattr(train, "train_thread", kept_from_it)
        with pytest.raises(TooLateError):
            fit()
    for a, b in zip(model.get_weights(), before, strict=True):
        assert_same_bits(a, b)
    fit()
    for a, b in zip(model.get_weights(), wanted.get_weights(), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TooLateError, SystemExit])
def test_whatever_a_handler_raises_others_have_ended_before(default_signals, error):
    def raises(*_):
        raise error

    before, working = signal.signal(signal.SIGALRM, raises), [False]

    def work(t):
        if t == 1:
            working[0] = True
            time.sleep(0.2)
            working[0] = False

    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(error):
            on_threads(2, work)
        assert not working[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
