"""Arrays of a GPU in, arrays of that GPU out, without copies."""

import warnings

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_close, assert_same_bits
from emulator import needs_emulator
from gpu_arrays import KINDS, HostDlpack, make, model_on, rows, train

import fastmlp
from fastmlp import Adam
from fastmlp import stepbystep as steps
from fastmlp.backends.cuda import step as cupy_step

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]


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
    stop = type("Stop", (fastmlp.Callback,), {"on_epoch_end": lambda self, run, figures: run.stop("enough")})()
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
    with pytest.raises(TypeError, match="all of one kind; got cupy, numpy"):
        steps.linear_forward(there[0], expected["W1"], expected["b1"])
