"""Arrays of a GPU and streams: what the caller queues before and after a call keeps its place."""

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import needs_emulator
from gpu_arrays import Dlpack, Interface, make, model_on, rows, train

from fastmlp.backends.cuda import step as cupy_step

pytestmark = [needs_emulator, pytest.mark.cuda_host, pytest.mark.usefixtures("cupy_is_its_double")]


def test_each_call_may_come_from_another_stream():
    x, y = rows()
    streams = [cp.cuda.Stream(non_blocking=True) for _ in range(6)]
    with streams[0]:
        model = model_on()
        there = cp.asarray(x), cp.asarray(y)
    cp.cuda.get_current_stream().wait_event(streams[0].record())
    expected = model_on()
    train(expected, x, y)
    with streams[1]:
        streams[1].wait_event(streams[0].record())
        train(model, *there)
    with streams[2]:
        found = model.predict_proba(x)
    with streams[3]:
        streams[3].wait_event(streams[1].record())
        device = model.predict_proba(there[0])
        assert_same_bits(device.get(), found)  # the result is for the stream that asked
    with streams[4]:
        saved = model.get_weights()
        model.set_weights(saved)
        predictor = model.predictor()
    with streams[5]:
        assert_same_bits(predictor.outputs(x[0]), expected.predictor().outputs(x[0]))
        model.to("numpy")
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_what_the_caller_has_queued_comes_first_and_what_it_queues_next_comes_after():
    x, y = rows()
    model, reference = model_on(make("eager")), model_on(make("eager"))
    with cp.cuda.Stream(non_blocking=True):
        there = cp.asarray(x)
        there *= 0.5  # queued, not waited for
        found = model.predict_proba(there)
        there *= 0.0
        assert_same_bits(found.get(), reference.predict_proba(x * np.float32(0.5)))
        labels = cp.asarray(y)
        there[...] = 1.0
        train(model, there, labels)
        there *= 2.0
    train(reference, np.ones_like(x), y)
    assert_same_bits(model.get_weights()[0], reference.get_weights()[0])


def test_a_producer_of_dlpack_makes_us_wait_for_its_own_stream():
    x, _ = rows()
    model = model_on(make("eager"))
    given = Dlpack(x)
    with given.stream:
        given.array *= 0.5
    cp.counts.clear()
    found = model.predict_proba(given)
    assert cp.counts["synchronisations"] == 1  # the host, at the end; in the beginning the device waits alone
    assert_same_bits(found.get(), model.predict_proba(x * np.float32(0.5)))
    taken = cp.asarray(x)
    cp.counts.clear()
    model.predict_proba(taken)
    assert not cp.counts


@pytest.mark.parametrize("kind", [Dlpack, Interface])
@pytest.mark.parametrize("ask", ["predict_proba", "loss_and_gradients", "predictor", "fit", "evaluate"])
def test_a_producer_may_use_its_array_again_on_its_own_stream_once_a_call_is_over(kind, ask):
    x, y = rows()
    model, given = model_on(make("eager")), kind(x)
    for _ in range(2):
        if ask == "predictor":
            one = kind(x[0])
            model.predictor().outputs(one)
            with one.stream:
                one.array[...] = 0.0
        elif ask == "predict_proba":
            model.predict_proba(given)
        elif ask == "fit":
            train(model, given, y, validation_data=(given, y))
        else:
            getattr(model, ask)(given, y)
        with given.stream:
            given.array *= 0.5  # the double refuses it where nothing orders it


def test_a_producer_may_use_its_array_again_after_an_error(monkeypatch):
    x, y = rows()
    model, given = model_on(make("eager")), Dlpack(x)
    train(model, x, y)

    def fails(self, first, count):
        self._enqueue(0, 4)
        raise RuntimeError("planted")

    monkeypatch.setattr(cupy_step.TrainingStep, "_queue", fails)
    with pytest.raises(RuntimeError, match="planted"):
        train(model, given, y)
    with given.stream:
        given.array *= 0.0  # the step reads it


def test_results_belong_to_the_callers_stream():
    x, y = rows()
    model = model_on(make("eager"))
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        there, labels = cp.asarray(x), cp.asarray(y)
        results = [model.predict(there), model.predict_proba(there), model.predictor().outputs(there[0])]
        results += model.loss_and_gradients(there, labels)[1]
        results.append(model_on(model.backend, loss="mean_squared_error").predict(there))
    # what is freed on that stream may be used again on it alone
    assert {r._memory.stream for r in results} == {stream}
    assert model._learner.state.params._memory.stream is not stream


def test_after_an_error_in_training_the_caller_still_comes_after_what_was_queued(monkeypatch):
    x, y = rows()
    model = model_on(make("eager"))
    train(model, x, y)
    there = cp.asarray(x)

    def fails(self, first, count):
        self._enqueue(0, 4)
        raise RuntimeError("planted")

    monkeypatch.setattr(cupy_step.TrainingStep, "_queue", fails)
    with pytest.raises(RuntimeError, match="planted"):
        train(model, there, cp.asarray(y))
    there *= 0.0  # the step reads it
    model.get_weights()  # and writes them


def test_an_array_of_another_library_makes_its_own_backend_wait_and_no_other():
    own, other = make("eager"), make("eager")
    held = own.take(Dlpack(rows()[0]), "x")
    for backend, waits in ((other, 0), (own, 1)):
        cp.counts.clear()
        with backend.working():
            pass
        assert cp.counts["synchronisations"] == waits
    assert held.shape == rows()[0].shape


@pytest.mark.parametrize("way", ["captured", "eager"])
def test_two_devices_train_side_by_side_with_kernels_of_their_own(way):
    x, y = rows()
    first = model_on(make(way))
    train(first, x, y)
    with cp.cuda.Device(1):
        second = model_on(make(way))
    train(second, x, y)
    train(first, x, y)
    train(second, x, y)
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_no_stream_of_a_fit_waits_for_the_default_stream(monkeypatch):
    made, init = [], cp.Stream.__init__

    def noted(self, *args, **options):
        init(self, *args, **options)
        made.append(self._non_blocking)

    monkeypatch.setattr(cp.Stream, "__init__", noted)
    train(model_on(make("captured")), *rows())
    assert len(made) > 4
    assert all(made)
