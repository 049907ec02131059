"""Ctrl-C in a fit within a fit, and a process forked off in the middle of one."""

import os
import signal

import numpy as np
import pytest

import fastmlp

X, Y = np.random.default_rng(0).normal(size=(64, 4)), np.arange(64) % 3
pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGINT cannot be sent to one process on Windows")


def network():
    return fastmlp.MLP((4, 5, 3), backend="numpy", seed=0)


class At(fastmlp.Callback):
    """Does something after one of the epochs."""

    def __init__(self, epoch, does):
        self.epoch, self.does = epoch, does

    def on_epoch_end(self, run, figures):
        if run.epoch == self.epoch:
            self.does()


def test_ctrl_c_in_a_fit_within_a_callback_ends_both(default_signals):
    inner = []

    def fit_another():
        press = At(3, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.warns(fastmlp.TrainingInterrupted):
            inner.append(network().fit(X, Y, epochs=50, callbacks=[press], verbose=0))
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler  # the outer run notes it still

    with pytest.warns(fastmlp.TrainingInterrupted):
        outer = network().fit(X, Y, epochs=50, callbacks=[At(2, fit_another)], verbose=0)
    assert inner[0].stop_reason == outer.stop_reason == "interrupted"
    assert len(inner[0].history["loss"]) == 4 and len(outer.history["loss"]) <= 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_fit_within_a_callback_goes_to_its_end_where_nobody_interrupts(default_signals):
    inner = []
    fit_another = At(2, lambda: inner.append(network().fit(X, Y, epochs=5, verbose=0)))
    outer = network().fit(X, Y, epochs=4, callbacks=[fit_another], verbose=0)
    assert len(inner[0].history["loss"]) == 5 and len(outer.history["loss"]) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_forked_off_in_a_fit_is_told_so_and_the_other_goes_on():
    model, said = network(), []

    def fork():
        read, write = os.pipe()
        if not os.fork():
            try:
                model.fit(X, Y, epochs=1, verbose=0)
            except RuntimeError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said.append(pipe.read().decode())
        with pytest.raises(RuntimeError, match=r"^this model is being trained already"):
            model.fit(X, Y, epochs=1, verbose=0)

    history = model.fit(X, Y, epochs=3, callbacks=[At(2, fork)], verbose=0)
    assert said[0].startswith("this process was forked off while this model was being trained")
    assert len(history.history["loss"]) == 3
    model.fit(X, Y, epochs=1, verbose=0)


def test_a_fit_that_is_just_beginning_in_this_process_is_no_other_process_s():
    model = network()
    with model._learner._changing, pytest.raises(RuntimeError, match=r"^this model is being trained already"):
        model.fit(X, Y, epochs=1, verbose=0)
    model.fit(X, Y, epochs=1, verbose=0)
