"""Coarse operations: overrides against the composition, the composition against float64 and against slow loops."""

import inspect
import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from compare import DTYPES, assert_close, assert_same_bits, unchanged, unset
from scenarios import SCENARIOS, Scenario, network_of, rows_of, train, train_slowly

from fastmlp import MLP
from fastmlp.backends.base import Backend
from fastmlp.backends.choosing import get_backend
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.formulas.initializers import Normal
from fastmlp.formulas.optimizers import SGD, Adam, StepScalars
from fastmlp.network.layout import Layout
from fastmlp.network.plan import Plan, Precision

COARSE = (
    *("predict", "evaluate", "loss_and_gradients", "apply_gradients", "train_steps", "train_epochs", "first_nonfinite"),
)

dtypes = pytest.mark.parametrize("dtype", DTYPES)
scenarios = pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
coarse = pytest.mark.parametrize("operation", COARSE)


def flat(state, backend, array):
    """Return the parameters in a flat buffer without its padding, which differs between types."""
    views = state.layout.views(backend.to_numpy(array))
    return np.concatenate([a.ravel() for pair in views for a in pair])


def run(operation, cls, backend, scenario, dtype):
    """Carry out a coarse operation as a class has it; return all its results, for comparison, as NumPy arrays."""
    method = getattr(cls, operation)
    state, data = scenario.state(backend, dtype), scenario.device_data(backend, dtype)
    inference = backend.open(Plan(scenario.spec.deterministic(), scenario.batch, Precision.of(np.dtype(dtype))))
    with unchanged(backend, data.x, data.y, *([] if data.weights is None else [data.weights])):
        if operation == "predict":
            out = unset(backend, (scenario.rows, scenario.units[-1]), dtype)
            with unchanged(backend, state.params):
                method(backend, inference, state.params, data.x, out)
            return [backend.to_numpy(out)]
        if operation == "evaluate":
            with unchanged(backend, state.params):
                return [np.array(method(backend, inference, state.params, data))]
        if operation == "loss_and_gradients":
            plan = Plan(scenario.spec.deterministic(), scenario.rows + 2, Precision.of(np.dtype(dtype)), True)
            session = backend.open(plan)
            total = scenario.rows if data.weights is None else float(backend.to_numpy(data.weights).sum())
            with unchanged(backend, state.params):
                loss = method(backend, session, state.params, data, 1 / total)
            return [np.array(loss), flat(state, backend, session.grads)]
        if operation == "first_nonfinite":
            state.params[state.layout.offsets[-1][0]] = np.inf
            session = backend.open(scenario.plan(dtype))
            order = backend.asarray(scenario.order(0))
            row, where = method(backend, session, state, data, order, 0)
            return [np.array(row), np.array(list(where.encode()))]
        if operation == "apply_gradients":
            session, sums = backend.open(scenario.plan(dtype)), []
            for w, b in state.layout.views(session.grads):
                w[...] = backend.asarray(np.linspace(-1, 1, w.size).reshape(w.shape).astype(dtype))
                b[...] = backend.asarray(np.linspace(1, -1, b.size).astype(dtype))
            method(backend, session, state, StepScalars(*scenario.table(0, 0, dtype)[0].tolist()))
        elif operation == "train_epochs":
            epochs, steps = range(scenario.epochs), scenario.steps
            session, norms = backend.open(scenario.plan(dtype)), np.zeros(scenario.epochs)
            orders = backend.asarray(np.stack([scenario.order(epoch) for epoch in epochs]))
            table = [scenario.table(epoch, state.optimizer_step + epoch * steps, dtype) for epoch in epochs]
            totals = np.zeros((scenario.epochs, 3))
            report = method(backend, session, state, data, orders, np.concatenate(table), totals, norms)
            assert report == (scenario.epochs * steps, True)
            sums = [*totals, norms]
        else:
            state, sums, _ = train(scenario, backend, dtype, method)
        kept = [state.params, *state.moments, *([] if state.average is None else [state.average])]
        counters = [np.array([state.step, state.optimizer_step])]
        return [flat(state, backend, a) for a in kept] + sums + counters


def length(scenario):
    """Return the longest reduction of a step, times the steps whose rounding adds up."""
    return max(scenario.batch, *scenario.units) * scenario.steps * scenario.epochs


def hold_against(found, expected, dtype, scenario, what):
    """Compare lists of results; c is 16 for the four products that a number passes through on its way and back."""
    assert len(found) == len(expected)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if np.asarray(b).dtype.kind in "iu":
            assert np.array_equal(a, b), f"{what}, result {i}: {a} instead of {b}"
        else:
            scale = np.maximum(1, np.abs(b))
            assert_close(a, b, dtype=dtype, k=length(scenario), scale=scale, c=16, what=f"{what}, {i}")


# --- overrides ------------------------------------------------------------------------------------------------------


def hold_override(operation, backend, scenario, dtype):
    override = run(operation, type(backend), backend, scenario, dtype)
    composed = run(operation, Backend, backend, scenario, dtype)
    hold_against(override, composed, dtype, scenario, f"{operation} of {backend.name}")


@coarse
@scenarios
@dtypes
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # an infinite weight: only NumPy's composition warns of it
def test_overrides_do_what_the_composition_does(backend, operation, scenario, dtype):
    hold_override(operation, backend, scenario, dtype)


def test_a_wrong_override_is_noticed():
    class Wrong(NumpyBackend):
        def predict(self, session, params, x, out):
            super().predict(session, params, x, out)
            out[-1, -1] += 1e-3

    with pytest.raises(AssertionError, match=r"predict of numpy.*worst at \(18, 2\)"):
        hold_override("predict", Wrong(), SCENARIOS[0], "float32")


def test_overrides_have_the_signatures_of_the_interface(backend):
    for method, function in inspect.getmembers(Backend, inspect.isfunction):
        if method.startswith("__"):
            continue
        base = inspect.signature(function).parameters.values()
        own = inspect.signature(getattr(type(backend), method)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in own] == [(p.name, p.kind, p.default) for p in base], method


# --- the composition ------------------------------------------------------------------------------------------------


@coarse
@scenarios
@dtypes
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_composition_agrees_with_numpy_in_double_precision(backend, operation, scenario, dtype):
    if not scenario.smooth:
        scenario = replace(scenario, epochs=1)  # a rectifier may flip by rounding, and then all that follows differs
    found = run(operation, Backend, backend, scenario, dtype)
    expected = run(operation, Backend, get_backend("numpy"), scenario, "float64")
    hold_against(found, expected, dtype, scenario, operation)


@scenarios
def test_training_agrees_with_slow_loops(backend, scenario):
    state, sums, _ = train(scenario, backend, "float64")
    network = network_of(scenario, scenario.state(backend, "float64"), backend.to_numpy, "float64")
    expected = train_slowly(scenario, network, "float64")
    assert_close(sums, expected, k=length(scenario), c=16, what="totals")
    pairs = [("parameters", state.params, network.weights)]
    if state.average is not None:
        pairs.append(("average", state.average, network.average))
    for what, array, slow in pairs:
        for layer, (own, other) in enumerate(zip(state.layout.views(backend.to_numpy(array)), slow, strict=True)):
            for kind, a, b in zip(("weights", "biases"), own, other, strict=True):
                assert_close(a, b, k=length(scenario), scale=1, c=16, what=f"{what}: {kind} of layer {layer}")
    assert (state.step - 5, state.optimizer_step) == (scenario.steps * scenario.epochs,) * 2


@scenarios
@dtypes
def test_gradients_and_predictions_agree_with_slow_loops(backend, scenario, dtype):
    state = scenario.state(backend, dtype)
    network = network_of(scenario, state, backend.to_numpy, dtype)
    x, y, w = rows_of(scenario, dtype)
    loss, _, gradients = network.loss_and_gradients(x, y, w)
    expected = np.concatenate([np.ravel(part) for pair in gradients for part in pair])
    found = run("loss_and_gradients", Backend, backend, scenario, dtype)
    k = max(scenario.rows, *scenario.units)
    assert_close(found[0], loss / sum(w) + network.l2_penalty(sum(w)), dtype=dtype, k=k, c=16)
    assert_close(found[1], expected, dtype=dtype, k=k, scale=max(1, np.abs(expected).max()), c=16)
    (outputs,) = run("predict", Backend, backend, scenario, dtype)
    assert_close(outputs, network.forward(x)[0][-1], k=k, scale=1, c=16)
    rows, hits = network.losses(x, y)
    sums = [sum(a * b for a, b in zip(w, v, strict=True)) for v in (rows, [1.0] * len(w), hits)]
    assert_close(run("evaluate", Backend, backend, scenario, dtype)[0], sums, dtype=dtype, k=k, c=16)


@scenarios
@dtypes
def test_how_steps_are_cut_into_calls_changes_no_bit(backend, scenario, dtype):
    whole, sums, _ = train(scenario, backend, dtype)
    single, other_sums, _ = train(scenario, backend, dtype, calls=[1] * scenario.steps)
    assert_same_bits(backend.to_numpy(single.params), backend.to_numpy(whole.params))
    for a, b in zip(whole.moments, single.moments, strict=True):
        assert_same_bits(backend.to_numpy(b), backend.to_numpy(a))
    assert_same_bits(np.array(other_sums), np.array(sums))


@scenarios
@dtypes
def test_a_step_may_end_before_its_update_which_is_taken_by_itself(backend, scenario, dtype):
    whole, state = scenario.state(backend, dtype), scenario.state(backend, dtype)
    data, order, table = (
        scenario.device_data(backend, dtype),
        backend.asarray(scenario.order(0)),
        scenario.table(0, 0, dtype),
    )
    sums, parts = np.zeros(3), np.zeros(3)
    Backend.train_steps(backend, backend.open(scenario.plan(dtype)), whole, data, order, table[:1], 0, sums)
    ending = backend.open(scenario.plan(dtype, optimizer=None))
    with unchanged(backend, state.params):
        report = backend.train_steps(ending, state, data, order, table[:1], 0, parts)
    assert (report, state.step) == ((1, True), whole.step)
    assert_close(parts, sums, dtype=dtype, k=length(scenario), c=16)
    training = backend.open(scenario.plan(dtype))
    training.grads[...] = ending.grads
    backend.apply_gradients(training, state, StepScalars(*table[0].tolist()))
    for a, b in zip((state.params, *state.moments), (whole.params, *whole.moments), strict=True):
        # of plain gradient descent the whole step folds the rate into the gradients
        assert_close(flat(state, backend, a), flat(whole, backend, b), dtype=dtype, k=length(scenario), scale=1, c=16)


@dtypes
def test_a_session_serves_other_parameters_as_well(backend, dtype):
    scenario = SCENARIOS[5]
    data, first = scenario.device_data(backend, dtype), scenario.state(backend, dtype)
    second, _, _ = train(scenario, backend, dtype)
    plan = Plan(scenario.spec.deterministic(), scenario.rows, Precision.of(np.dtype(dtype)))
    old, fresh = (backend.open(plan) for _ in range(2))
    old_gradients, fresh_gradients = (backend.open(replace(plan, gradients=True)) for _ in range(2))
    out, expected = (unset(backend, (scenario.rows, scenario.units[-1]), dtype) for _ in range(2))
    for state in (first, second):
        backend.predict(old, state.params, data.x, out)
        figures = backend.evaluate(old, state.params, data)
        backend.loss_and_gradients(old_gradients, state.params, data, 0.1)
    backend.predict(fresh, second.params, data.x, expected)
    assert_same_bits(backend.to_numpy(out), backend.to_numpy(expected))
    assert figures == backend.evaluate(fresh, second.params, data)
    backend.loss_and_gradients(fresh_gradients, second.params, data, 0.1)
    assert_same_bits(backend.to_numpy(old_gradients.grads), backend.to_numpy(fresh_gradients.grads))


@dtypes
def test_frozen_layers_and_padding_do_not_change(backend, dtype):
    scenario = SCENARIOS[0]
    start = scenario.state(backend, dtype)
    state, _, session = train(scenario, backend, dtype)
    layout = state.layout
    used = np.zeros(layout.size, bool)
    for w, b in layout.views(used):
        w[...], b[...] = True, True
    assert 0 < np.count_nonzero(~used)
    for array in (state.params, state.average, *state.moments, session.grads):
        assert not backend.to_numpy(array)[~used].any()
    before, after = (layout.views(backend.to_numpy(s.params))[1] for s in (start, state))
    assert_same_bits(after[0], before[0])
    assert_same_bits(after[1], before[1])
    assert not np.array_equal(
        layout.views(backend.to_numpy(state.params))[0][0], layout.views(backend.to_numpy(start.params))[0][0]
    )


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("units", [(1, 1), (7, 41, 3), (784, 64, 10)])
def test_layout_is_aligned_and_segments_cover_what_trains(itemsize, units):
    layout = Layout(units, itemsize)
    starts = [start for pair in layout.offsets for start in pair]
    assert all(start * itemsize % 128 == 0 for start in starts)
    counts = np.zeros(layout.size, int)
    for w, b in layout.views(counts):
        w += 1
        b += 1
    assert counts.max() == 1
    assert counts.sum() == sum((i + 1) * o for i, o in pairwise(units))
    for still in range(len(units) - 1):
        frozen = tuple(layer == still for layer in range(len(units) - 1))
        trained = np.zeros(layout.size, bool)
        for segment in layout.segments(frozen):
            assert not trained[segment.slice].any()
            assert (segment.stop <= layout.weights_size) == segment.is_weight
            trained[segment.slice] = True
        for layer, (w, b) in enumerate(layout.views(trained)):
            assert w.all() == b.all() == (layer != still)
            assert w.any() == b.any() == (layer != still)


# --- losses that are not finite -------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize(
    ("poison", "row", "where"),
    [
        ("input", 11, "the input"),
        ("weight", -1, "the weights of layer 1"),
        ("target", 11, "the loss of the row"),
        ("overflow", 11, "the pre-activations of layer 1"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_call_before_it_changes_anything(backend, dtype, poison, row, where):
    network = {"activation": "relu", "loss": "mean_squared_error", "initializer": "he_normal"}
    scenario = Scenario("", (4, 8, 3), network, Adam(ema=0.9, clip_norm=1.0))
    state, data = scenario.state(backend, dtype), scenario.device_data(backend, dtype)
    session, totals = backend.open(scenario.plan(dtype)), np.zeros(3)
    order = scenario.order(0)
    step = int(np.flatnonzero(order == 11)[0]) // scenario.batch
    if poison == "input":
        data.x[11, 2] = np.nan
    elif poison == "target":
        data.y[11, 0] = np.finfo(dtype).max
    elif poison == "overflow":
        data.x[11] = np.finfo(dtype).max / 16
        w, _ = state.layout.views(state.params)[1]
        w *= 64
    table = scenario.table(0, 0, dtype)
    order = backend.asarray(order)
    backend.train_steps(session, state, data, order, table[:step], 0, totals)
    if poison == "weight":
        state.layout.views(state.params)[1][0][2, 1] = np.inf
    kept = [state.params, state.average, *state.moments]
    with unchanged(backend, *kept):
        before = totals.copy()
        report = backend.train_steps(session, state, data, order, table[step:], step, totals)
        assert report == (0, False)
        assert state.step == 5 + step
        assert state.optimizer_step == step
        assert_same_bits(totals, before)
        assert backend.first_nonfinite(session, state, data, order, step) == (row, where)


def test_overflow_in_prediction_is_no_warning(backend):
    network = {"activation": "mish", "loss": "mean_squared_error", "initializer": Normal(2.0)}
    model = MLP((2, 3, 2), **network, backend=backend, seed=0)
    x = np.full((3, 2), np.finfo(np.float32).max)
    assert not np.isfinite(model.predict(x)).all()
    assert not np.isfinite(model.evaluate(x, np.zeros((3, 2)))["loss"])
    assert not np.isfinite(model.loss_and_gradients(x, np.zeros((3, 2)))[0])


# --- the arrays that users give -------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("source", ["float32", "float64", "uint8", "int16", ">f4"])
def test_arrays_of_any_layout_and_type_train_alike_and_do_not_change(backend, dtype, source):
    rng = np.random.default_rng(0)
    x, y, w = rng.integers(0, 100, (19, 7)).astype(source), rng.integers(0, 3, 19), rng.uniform(0, 2, 19)
    given = []
    for array in (x, y, w):  # backwards and every other element
        whole = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
        view = whole[(slice(None, None, -2),) * array.ndim]
        view[...] = array
        given.append(view)
    expected = [np.ascontiguousarray(a, a.dtype.newbyteorder("=")) for a in (x, y, w)]
    found = []
    for data in (given, expected):
        model = MLP((7, 5, 3), activation="tanh", dropout=0.2, backend=backend, dtype=dtype, seed=0)
        model.fit(data[0], data[1], sample_weight=data[2], epochs=2, batch_size=8, verbose=0)
        results = [*model.loss_and_gradients(*data)[1], model.predict_proba(data[0]), *model.get_weights()]
        found.append([*results, np.array(list(model.evaluate(*data).values()))])
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b)
    for view, array in zip(given, (x, y, w), strict=True):
        assert_same_bits(np.ascontiguousarray(view), array)


# --- what must not change from version to version -------------------------------------------------------------------


def test_recorded_losses_of_ten_epochs_are_reproduced(backend):
    rng = np.random.default_rng(42)
    x = rng.normal(size=(40, 6))
    y = (np.sin(x[:, 0]) + x[:, 1] * x[:, 2] > 0).astype(int) + (x[:, 3] > 1)
    model = MLP((6, 16, 8, 3), activation="tanh", dropout=0.1, l2=1e-3, backend=backend, dtype="float64", seed=3)
    history = model.fit(x, y, epochs=10, batch_size=16, optimizer=Adam(0.01), verbose=0).history
    recorded = [
        1.1829815651545115,
        0.9757960165544322,
        0.8355747696327332,
        0.7989604046139607,
        0.6713174159712734,
        0.616248343993658,
        0.5303241284436407,
        0.5371868011314904,
        0.4585149406407085,
        0.46516532256148296,
    ]
    # thirty steps of a tanh net do not amplify rounding: ten roundings an operation, reductions of at most 16
    assert_close(history["loss"], recorded, dtype="float64", k=16 * 30, c=16)


@pytest.mark.parametrize(
    ("units", "batch", "network", "optimizer", "as_bytes"),
    [
        ((784, 64, 10), 128, {}, SGD(), False),
        ((300, 256, 64), 256, {"activation": "tanh", "dropout": 0.5, "l2": 1e-4}, Adam(clip_norm=1.0), True),
    ],
    ids=["plain", "everything"],
)
def test_a_step_allocates_small_vectors_only(units, batch, network, optimizer, as_bytes):
    """NumPy itself takes a buffer of 8192 elements where it broadcasts or converts, before 2.3 one more for the scalar
    that bytes are divided by; vectors of the batch (indices, sums of rows) come to less than 16 KiB.  Activations and
    weights would take 32 to 392 KiB each.
    """
    scenario = Scenario("", units, network, optimizer, rows=20 * batch, batch=batch, bytes=as_bytes)
    backend = get_backend("numpy")
    state, session = scenario.state(backend, "float32"), backend.open(scenario.plan("float32"))
    data, order, totals = scenario.device_data(backend, "float32"), scenario.order(0), np.zeros(3)
    table = scenario.table(0, 0, "float32")
    backend.train_steps(session, state, data, order, table, 0, totals)
    tracemalloc.start()
    try:
        report = backend.train_steps(session, state, data, order, table, 0, totals)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"peak of 20 steps: {peak} bytes")
    assert report.done == 20
    buffers = 2 if as_bytes and np.lib.NumpyVersion(np.__version__) < "2.3.0" else 1
    assert peak < buffers * 8192 * 4 + 16 * 1024
