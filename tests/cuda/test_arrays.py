"""Arrays of a GPU in, arrays of that GPU out: no copies, streams that wait for each other, other devices refused."""

import warnings

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_close, assert_same_bits
from emulator import needs_emulator

import fastmlp
from fastmlp import Adam
from fastmlp import stepbystep as steps
from fastmlp.backends import cupy_backend, cupy_step

pytestmark = needs_emulator


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cp)
    monkeypatch.setattr(cupy_backend, "probe", lambda: fastmlp.backends.Availability(True, "the double of CuPy"))
    monkeypatch.delitem(fastmlp.backends._made, "cupy", raising=False)
    yield
    fastmlp.backends._made.pop("cupy", None)


class Dlpack:
    """An array of a library that knows DLPack alone, made on that library's own stream."""

    def __init__(self, host, stream=None):
        self.stream = stream or cp.cuda.Stream(non_blocking=True)
        with self.stream:
            self.array = cp.asarray(host)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options):
        with self.array.device, self.stream:
            return self.array.__dlpack__(**options)


class Interface:
    """An array of a library that knows the CUDA array interface alone."""

    def __init__(self, host):
        self.stream = cp.cuda.Stream(non_blocking=True)
        with self.stream:
            self.array = cp.asarray(host)

    @property
    def __cuda_array_interface__(self):
        with self.array.device, self.stream:
            return self.array.__cuda_array_interface__


class HostDlpack:
    """An array in host memory of a library that knows DLPack alone."""

    def __init__(self, host):
        self.host = host

    def __dlpack_device__(self):
        return self.host.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.host.__dlpack__(**options)


KINDS = {"cupy": cp.asarray, "dlpack": Dlpack, "interface": Interface}


def rows(n=21):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 6)).astype("f4"), rng.integers(0, 3, n)


def make(way="captured", **options):
    return cupy_backend.CupyBackend(way=way, **options)


def model_on(backend=None, **changes):
    return fastmlp.MLP((6, 7, 3), **({"activation": "tanh", "seed": 0, "backend": backend or make()} | changes))


def train(model, x, y, **changes):
    return model.fit(x, y, **({"epochs": 2, "batch_size": 4, "verbose": 0} | changes))


# --- in and out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cupy", "dlpack", pytest.param("interface", marks=pytest.mark.whole_ladder)])
@pytest.mark.parametrize("way", [pytest.param("captured", marks=pytest.mark.whole_ladder), "eager"])
def test_arrays_of_the_gpu_give_the_bits_that_the_same_in_host_memory_give(kind, way):
    backend = make(way)
    x, y = rows()
    weights = np.linspace(0, 1, len(x)).astype("f4")
    wrap = KINDS[kind]
    there, here = model_on(backend), model_on(backend)
    options = {"validation_split": 0.2, "class_weight": {1: 2.0}}
    found = train(there, wrap(x), wrap(y), sample_weight=wrap(weights), **options)
    expected = train(here, x, y, sample_weight=weights, **options)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert found.history[name] == expected.history[name]
    for a, b in zip(there.get_weights(), here.get_weights(), strict=True):
        assert_same_bits(a, b)
    for ask in (there.predict, there.predict_proba):
        assert_same_bits(ask(wrap(x)).get(), ask(x))
    assert there.evaluate(wrap(x), wrap(y), wrap(weights)) == there.evaluate(x, y, weights)
    loss, gradients = there.loss_and_gradients(wrap(x), wrap(y), wrap(weights))
    expected_loss, expected_gradients = there.loss_and_gradients(x, y, weights)
    assert loss == expected_loss
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert_same_bits(a.get(), b)
    predictor = there.predictor()
    assert_same_bits(predictor.outputs(wrap(x[3])).get(), predictor.outputs(x[3]))
    assert int(predictor(wrap(x[3])).get()) == predictor(x[3])


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_labels_and_weights_are_trained_on_where_they_lie(kind, monkeypatch):
    x, y = rows()
    given = [KINDS[kind](a) for a in (x, y, np.ones(len(x), "f4"))]
    seen, init = [], cupy_step.TrainingStep.__init__

    def look(self, *args, **kwargs):
        init(self, *args, **kwargs)
        seen.append((self._x.data.ptr, self._y.data.ptr, self._weights.data.ptr))

    monkeypatch.setattr(cupy_step.TrainingStep, "__init__", look)
    model = model_on(make("eager"))
    cp.counts.clear()
    train(model, *given[:2], sample_weight=given[2], epochs=1)
    owners = [getattr(a, "array", a) for a in given]
    assert seen == [tuple(a.data.ptr for a in owners)]
    largest = max(a.nbytes for a in owners)
    assert largest == x.nbytes


def test_predictions_of_arrays_of_the_gpu_upload_nothing_and_wait_for_nothing():
    x, y = rows()
    model = model_on()
    train(model, x, y)
    there = cp.asarray(x)
    model.predict(there)
    cp.counts.clear()
    for ask in (model.predict, model.predict_proba):
        assert isinstance(ask(there), cp.ndarray)
    assert not cp.counts


LOSSES = {
    "softmax_cross_entropy": 3,
    "categorical_hinge": 3,
    "sigmoid_cross_entropy": 3,
    "poisson": 1,
    "mean_squared_error": 3,
}


OTHER_TYPES = [
    "uint8",
    *(pytest.param(t, marks=pytest.mark.whole_ladder) for t in ("int32", "float16", "float64", "bool")),
]


@pytest.mark.parametrize("loss", LOSSES)
def test_whatever_the_loss_predictions_are_those_of_the_host(loss):
    x, _ = rows()
    model = fastmlp.MLP((6, 7, LOSSES[loss]), loss=loss, backend=make(), seed=0)
    found, expected = model.predict(cp.asarray(x)), model.predict(x)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert_close(found.get(), expected, dtype="f4", k=8)
    if loss in ("softmax_cross_entropy", "sigmoid_cross_entropy"):
        found, expected = model.predict_proba(cp.asarray(x)), model.predict_proba(x)
        assert_close(found.get(), expected, dtype="f4", k=8)


@pytest.mark.parametrize("dtype", OTHER_TYPES)
def test_other_types_and_layouts_of_inputs_are_converted_there(dtype):
    x, y = rows()
    x = (np.abs(x) * 100).astype(dtype)
    there, here = model_on(), model_on()
    transposed = cp.asarray(np.ascontiguousarray(x.T)).T
    assert not transposed.flags.c_contiguous
    train(there, transposed, cp.asarray(y.astype("i4")))
    train(here, x, y)
    for a, b in zip(there.get_weights(), here.get_weights(), strict=True):
        assert_same_bits(a, b)
    assert_same_bits(there.predict_proba(transposed).get(), here.predict_proba(x))
    predictor = there.predictor()
    assert_same_bits(predictor.outputs(cp.asarray(x)[2]).get(), predictor.outputs(x[2]))


@pytest.mark.parametrize("targets", ["one-hot bytes", "soft", "column"])
def test_targets_of_the_gpu_mean_what_they_mean_in_host_memory(targets):
    x, y = rows()
    loss, units = "softmax_cross_entropy", 3
    if targets == "one-hot bytes":
        y = np.eye(3, dtype="u1")[y]
    elif targets == "soft":
        y = np.full((len(x), 3), 1 / 3, "f4")
    else:
        y, loss, units = (y > 1).astype("f4"), "sigmoid_cross_entropy", 1
    models = [fastmlp.MLP((6, 7, units), loss=loss, backend=make(), seed=0) for _ in range(2)]
    train(models[0], cp.asarray(x), cp.asarray(y))
    train(models[1], x, y)
    for a, b in zip(*(m.get_weights() for m in models), strict=True):
        assert_same_bits(a, b)
    assert models[0].evaluate(cp.asarray(x), cp.asarray(y)) == models[1].evaluate(x, y)


def test_arrays_in_host_memory_that_know_dlpack_alone_are_read():
    x, y = rows()
    model = model_on("numpy")
    train(model, HostDlpack(x), HostDlpack(y))
    assert_same_bits(model.predict(HostDlpack(x)), model.predict(x))


def test_metrics_and_weights_of_arrays_of_the_gpu():
    x, y = rows()
    model = model_on()
    share = {"share": lambda y, p: float((y == p).mean())}
    history = train(model, cp.asarray(x), cp.asarray(y), metrics=share)
    assert history.history["share"][-1] == pytest.approx(model.evaluate(x, y)["accuracy"])
    other = model_on(seed=5)
    other.set_weights([cp.asarray(w) for w in model.get_weights()])
    assert_same_bits(other.predict_proba(x), model.predict_proba(x))


def test_a_run_on_arrays_in_host_memory_is_resumed_on_the_same_of_the_gpu(tmp_path):
    x, y = rows()
    whole, half = model_on(), model_on()
    train(whole, x, y)
    stop = type("Stop", (fastmlp.Callback,), {"on_epoch_end": lambda self, run, logs: run.stop("enough")})()
    train(half, x, y, callbacks=[stop, fastmlp.Checkpoint(tmp_path / "run.safetensors")])
    model = fastmlp.load(tmp_path / "run.safetensors", backend=make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.resume(cp.asarray(x), cp.asarray(y), verbose=0)
    for a, b in zip(model.get_weights(), whole.get_weights(), strict=True):
        assert_same_bits(a, b)
    other = fastmlp.load(tmp_path / "run.safetensors", backend=make())
    with pytest.raises(fastmlp.DataError, match="not those that the checkpoint"):
        other.resume(cp.asarray(x + 1), cp.asarray(y), verbose=0)


# --- streams --------------------------------------------------------------------------------------------------------


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
    assert cp.counts["synchronisations"] == 0  # the device waits, not the host
    assert_same_bits(found.get(), model.predict_proba(x * np.float32(0.5)))


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
    assert model._state.params._memory.stream is not stream


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


# --- what cannot be taken -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_array_of_another_gpu_is_refused_with_the_cure(kind):
    x, y = rows()
    model = model_on()
    with cp.cuda.Device(1):
        other = KINDS[kind](x)
    expected = "x lies on GPU 1, a .*, and the model is on GPU 0; copy it there, or make a backend"
    for ask in (model.predict, model.predict_proba):
        with pytest.raises(fastmlp.DataError, match=expected):
            ask(other)
    with pytest.raises(fastmlp.DataError, match=expected):
        train(model, other, y)
    with cp.cuda.Device(1):
        labels = KINDS[kind](y)
    with pytest.raises(fastmlp.DataError, match=r"^y of validation_data lies on GPU 1"):
        train(model, x, y, validation_data=(x, labels))
    with cp.cuda.Device(1):
        there = model_on(make())
        predicted = there.predict(other)
    assert there.backend.device == 1
    assert predicted.device.id == 1
    assert_same_bits(there.predict_proba(x), model.predict_proba(x))


def test_a_model_stays_on_its_gpu_whichever_is_current():
    x, y = rows()
    model, reference = model_on(), model_on()
    with cp.cuda.Device(1):
        train(model, x, y)
        found = model.predict_proba(x)
    train(reference, x, y)
    assert_same_bits(found, reference.predict_proba(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_on_another_backend_refuses_arrays_of_a_gpu_with_the_cure(kind):
    x, y = rows()
    model = model_on("numpy")
    there = KINDS[kind](x)
    expected = (
        r"x lies on a GPU, a .*, and the model runs on the numpy backend; move the model there with model.to\('cupy'"
    )
    with pytest.raises(fastmlp.DataError, match=expected):
        model.predict(there)
    with pytest.raises(fastmlp.DataError, match=expected):
        train(model, there, y)
    with pytest.raises(fastmlp.DataError, match=r"^sample_weight lies on a GPU"):
        train(model, x, y, sample_weight=KINDS[kind](np.ones(len(x))))


def test_shapes_and_types_of_arrays_of_the_gpu_are_checked():
    x, y = rows()
    model = model_on()
    for wrong, message in (
        (cp.asarray(x[:, :5]), r"x must have shape \(n, 6\), because the network has 6 inputs; got \(21, 5\)"),
        (cp.asarray(x[0]), r"x must have shape \(n, 6\), got \(6,\); one example is x.reshape\(1, -1\)"),
        (cp.asarray(x.astype(complex)), "x must hold real numbers, got dtype complex"),
    ):
        with pytest.raises(fastmlp.DataError, match=message):
            model.predict(wrong)
    with pytest.raises(fastmlp.DataError, match=r"labels must be in 0..2 .* got 7 in row 0"):
        train(model, cp.asarray(x), cp.asarray(y + 7))
    with pytest.raises(fastmlp.DataError, match="sample_weight must be finite and not negative"):
        train(model, cp.asarray(x), cp.asarray(y), sample_weight=cp.asarray(-np.ones(len(x))))
    with pytest.raises(fastmlp.DataError, match=r"x must be one example of shape \(6,\), got \(21, 6\)"):
        model.predictor()(cp.asarray(x))


def test_what_its_owner_does_not_hand_over_is_an_error_that_says_so():
    class Guarded(Dlpack):
        def __dlpack__(self, **options):
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")

    with pytest.raises(fastmlp.DataError, match=r"x cannot be taken .* require gradient, use tensor.detach\(\)"):
        model_on().predict(Guarded(rows()[0]))


# --- places ---------------------------------------------------------------------------------------------------------


def test_a_model_moves_to_the_gpu_and_back_with_its_moments():
    x, y = rows()
    optimizer = Adam(ema=0.9)
    moving, staying = (
        fastmlp.MLP((6, 7, 3), activation="tanh", seed=0, dtype="float64", backend="numpy") for _ in "ab"
    )
    for where in ("cupy", "numpy", "cupy"):
        train(moving, x, y, optimizer=optimizer)
        train(staying, x, y, optimizer=optimizer)
        assert moving.to(where) is moving
        assert moving.backend.name == where
        for a, b in zip(moving.get_weights(), staying.get_weights(), strict=True):
            assert_close(a, b, k=200, c=16)
    assert isinstance(moving.predict(cp.asarray(x)), cp.ndarray)


# --- step by step ---------------------------------------------------------------------------------------------------


def test_the_step_by_step_functions_keep_arrays_on_the_gpu(monkeypatch):
    monkeypatch.setattr(cp.ndarray, "__module__", "cupy")  # by which arrays are told apart
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30)), (rng.uniform(size=(1, 30)) > 0.5).astype(int)
    there = cp.asarray(x), cp.asarray(y)
    found, found_costs = steps.L_layer_model(*there, (2, 5, 3, 1), num_iterations=3)
    expected, costs = steps.L_layer_model(x, y, (2, 5, 3, 1), num_iterations=3)
    assert_close(found_costs, costs, dtype="f8", k=30)
    outputs, caches = steps.L_model_forward(there[0], found)
    found |= steps.L_model_backward(outputs, cp.asarray(y[0]), caches)
    outputs, caches = steps.L_model_forward(x, expected)
    expected |= steps.L_model_backward(outputs, y, caches)
    for name, value in found.items():
        assert isinstance(value, cp.ndarray), name
        assert_close(value.get(), expected[name], k=90, what=name)
    assert steps.accuracy(*there, found) == steps.accuracy(x, y, expected)
    with pytest.raises(TypeError, match="all of one kind; got ndarray, ndarray, ndarray of cupy, numpy"):
        steps.linear_forward(there[0], expected["W1"], expected["b1"])
