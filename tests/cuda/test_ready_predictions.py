"""Predictions on a GPU whose launches are made ready once: the same bits, and how little is done for a call."""

import gc
from collections import Counter

import cupy_double as cp
import numpy as np
import pytest
from compare import assert_close, assert_same_bits
from emulator import needs_emulator
from gpu_arrays import Dlpack, make, model_on, rows, train

import fastmlp
from fastmlp.backends.base import Backend
from fastmlp.backends.cuda import memory
from fastmlp.backends.cuda.predictions import ForwardSession
from fastmlp.backends.session import Session
from fastmlp.network.plan import Plan, Precision

pytestmark = [needs_emulator, pytest.mark.cuda_host, pytest.mark.usefixtures("cupy_is_its_double")]


@pytest.fixture
def calls(monkeypatch):
    """What is done on the device and for it: arrays made, copies, events, waits, launches; tests clear and read it."""
    found = Counter()

    def count(owner, name, what):
        function = getattr(owner, name)

        def counted(*args, **options):
            found[what] += 1
            return function(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    for name in ("empty", "asarray", "arange"):
        count(cp, name, name)
    for name in ("get", "set", "__setitem__", "max", "sum", "astype", "copy", "argmax"):
        count(cp.ndarray, name, name.strip("_"))
    count(cp.cuda, "Event", "event")
    count(cp.cuda.Stream, "synchronize", "synchronize")
    count(cp._Function, "__call__", "launch")
    count(cp.cuda.cublas, "gemmEx", "product")
    return found


def trained(**changes):
    x, y = rows()
    model = model_on(**changes)
    train(model, x, y)
    return model


def session_of(model, batch):
    precision = Precision.of(np.dtype(model.dtype))
    return model.backend.open(Plan(model.spec.deterministic(), batch, precision))


def composed(model, params, x, session=None):
    out = cp.empty((len(x), 3), np.float32)
    Backend.predict(model.backend, session or session_of(model, 32), params, x, out)
    return out.get()


# --- bits -----------------------------------------------------------------------------------------------------------


def given(kind, x):
    """Return the same rows where they lie otherwise, or in another type."""
    if kind == "aligned":
        return cp.asarray(x)
    if kind == "elsewhere":  # where rows begin that are not the first
        return cp.asarray(np.concatenate([x[:1], x]))[1:]
    if kind == "by columns":
        return cp.asarray(np.ascontiguousarray(x.T)).T
    return cp.asarray(x.astype(kind))


@pytest.mark.parametrize("kind", ["aligned", "elsewhere", "by columns", "float16", "int16", "uint8"])
@pytest.mark.parametrize("batch", [21, 8, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_outputs_are_those_of_the_composition(kind, batch, dtype):
    model = model_on(dtype=dtype, activation=("tanh", "identity"))
    x = given(kind, np.abs(rows()[0]).astype(dtype))
    params, backend = model._learner.state.params, model.backend
    found, expected = (backend.empty((len(x), 3), np.dtype(dtype)) for _ in "ab")
    for _ in range(2):
        session = session_of(model, batch)
        backend.predict(session, params, x, found)
        backend.predict(session, params, x, found)
    Backend.predict(backend, session_of(model, batch), params, x, expected)
    assert_same_bits(found.get(), expected.get())


def test_outputs_may_be_where_no_product_is_taken(monkeypatch):
    model, x = model_on(), cp.asarray(rows()[0])
    room = cp.asarray(np.zeros((22, 3), "f4"))
    multiply, places = cp.cuda.cublas.gemmEx, []
    monkeypatch.setattr(cp.cuda.cublas, "gemmEx", lambda *a: places.extend((a[10], a[14])) or multiply(*a))
    model.backend.predict(session_of(model, 32), model._learner.state.params, x, room[1:])
    assert len(places) == 4
    assert not any(place % 256 for place in places)  # of the inputs, and of what is filled
    assert_same_bits(room[1:].get(), composed(model, model._learner.state.params, x))
    assert not room[0].get().any()


@pytest.mark.parametrize("batch", [32, 8])
def test_what_is_bound_predicts_what_is_there_at_each_call(batch):
    model, (x, _) = model_on(), rows()
    params, backend = model._learner.state.params, model.backend
    there, out = backend.staging(x.shape, x.dtype), backend.staging((len(x), 3), x.dtype)
    with backend.working():
        run = backend.bind_predict(session_of(model, batch), params, there, out)
    for given_rows in (x, x[::-1], x * 2):
        there[...] = given_rows
        run()
        assert_same_bits(out, composed(model, params, cp.asarray(given_rows)))


def test_functions_of_a_users_own_are_composed():
    fastmlp.register_activation("cube_there", lambda z: (z**3, 3 * z**2))
    x = rows()[0]
    here, there = (model_on(backend, activation="cube_there") for backend in ("numpy", make()))
    assert_close(there.predict_proba(cp.asarray(x)).get(), here.predict_proba(x), k=8, c=16)
    assert_close(there.predictor().outputs(x[0]), here.predictor().outputs(x[0]), k=8, c=16, scale=10)


@pytest.mark.parametrize(("rows_there", "units"), [(2, 200), (300, 5)])
def test_layers_wider_than_a_block_and_many_rows_are_worked_out_whole(rows_there, units):
    model = fastmlp.MLP((6, units, 3), backend=make(), activation="tanh", seed=0)
    x, params = cp.asarray(rows(rows_there)[0]), model._learner.state.params
    out = cp.empty((rows_there, 3), np.float32)
    model.backend.predict(session_of(model, 512), params, x, out)
    assert_same_bits(out.get(), composed(model, params, x, session_of(model, 512)))


def test_a_plan_with_dropout_is_composed():
    model, x = model_on(dropout=0.5), cp.asarray(rows()[0])
    plan, params = Plan(model.spec, 32, Precision.of(np.dtype("f4"))), model._learner.state.params
    out = cp.empty((21, 3), np.float32)
    model.backend.predict(model.backend.open(plan), params, x, out)
    assert_same_bits(out.get(), composed(model, params, x, model.backend.open(plan)))


def test_a_session_of_any_backend_will_do():
    model, x = model_on(), cp.asarray(rows()[0])
    plan, params = session_of(model, 32).plan, model._learner.state.params
    out = cp.empty((21, 3), np.float32)
    model.backend.predict(Session(model.backend, plan), params, x, out)
    assert_same_bits(out.get(), composed(model, params, x))


def test_sessions_work_each_in_memory_of_its_own():
    model = model_on()
    first, second = (session_of(model, 8).forward(model._learner.state.params, 3) for _ in "ab")
    assert first is not second
    assert first._room[0].data.ptr != second._room[0].data.ptr


def test_rows_are_read_where_they_lie():
    model, x = model_on(), rows()[0]
    session = session_of(model, 32)
    assert isinstance(session, ForwardSession)
    there = cp.asarray(x)
    assert session.inputs(there) is there
    for kind in ("elsewhere", "by columns", "float64"):
        found = session.inputs(given(kind, x))
        assert found.data.ptr == session.x.data.ptr
        assert_same_bits(found.get(), x)


def test_a_few_numbers_of_rows_are_kept_and_other_parameters_are_not_taken_for_the_same():
    model, x = trained(), rows()[0]
    there = [cp.asarray(x[:n]) for n in range(1, 8)]
    session, slow, params = session_of(model, 32), session_of(model, 32), model._learner.state.params
    for other in (params, model.backend.copy(params), params):
        for rows_there in there:
            out = cp.empty((len(rows_there), 3), np.float32)
            model.backend.predict(session, other, rows_there, out)
            assert_same_bits(out.get(), composed(model, other, rows_there, slow))
    session = session_of(model, 32)
    ready = [session.forward(params, n) for n in range(1, 5)]
    assert all(session.forward(params, n) is found for n, found in enumerate(ready, start=1))
    session.forward(params, 5)
    assert list(session._forwards) == [5]


def test_weights_that_train_on_are_those_that_predict():
    model, (x, y) = trained(), rows()
    there = cp.asarray(x)
    before = model.predict_proba(there).get()
    few = [model.predict_proba(x[:2]) for _ in range(4)]
    train(model, x, y)
    assert not (model.predict_proba(there).get() == before).all()
    assert not (model.predict_proba(x[:2]) == few[-1]).all()
    assert_same_bits(model.predict_proba(x[:2]), model.predict_proba(cp.asarray(x[:2])).get())


@pytest.mark.parametrize("seed", range(6))
def test_a_device_that_is_late_changes_nothing(seed):
    model, x = trained(), rows()[0]
    predictor, expected = model.predictor(), model.predict_proba(x)
    single = [predictor.outputs(row) for row in x[:5]]
    with cp.late(seed):
        found = [predictor.outputs(row) for row in x[:5]]
        few = [model.predict_proba(x[:6]) for _ in range(4)]
        with cp.cuda.Stream(non_blocking=True):
            there = cp.asarray(x)
            many = model.predict_proba(there).get()
    for a, b in zip(found, single, strict=True):
        assert_same_bits(a, b)
    assert_same_bits(many, expected)
    for answer in few[1:]:
        assert_same_bits(answer, few[0])


# --- what a call costs ----------------------------------------------------------------------------------------------


def test_many_rows_on_the_device_take_a_product_and_a_launch_a_layer_and_are_never_waited_for(calls):
    x = cp.asarray(np.tile(rows()[0], (300, 1)))
    model = trained()
    model.predict(x)
    calls.clear()
    model.predict(x)
    # the outputs are made, on the caller's stream; an event for each of the two streams to wait for the other
    assert calls == {"product": 2, "launch": 2, "empty": 1, "asarray": 1, "argmax": 1, "event": 2}


def test_a_row_in_host_memory_takes_a_copy_there_and_one_back_and_a_single_wait(calls):
    model, x = trained(), rows()[0]
    predictor = model.predictor()
    predictor(x[0])
    calls.clear()
    predictor(x[1])
    assert calls == {"set": 1, "product": 2, "launch": 2, "get": 1, "synchronize": 1}


def test_a_few_rows_in_host_memory_take_no_more_but_the_order_of_streams(calls):
    model, x = trained(), rows()[0]
    first = [model.predict(x[:5]) for _ in range(3)]
    calls.clear()
    assert_same_bits(model.predict(x[:5]), first[0])
    assert calls == {"set": 1, "product": 2, "launch": 2, "get": 1, "synchronize": 1, "event": 2}


def test_rows_of_another_are_waited_for_once(calls):
    model, x = trained(), Dlpack(rows()[0])
    model.predict(x)
    calls.clear()
    model.predict(x)
    assert calls["synchronize"] == 1


def test_the_memory_of_a_predictor_that_is_pinned_is_given_back():
    cp.pinned.clear()
    predictor = trained().predictor()
    assert cp.pinned["used"] == 4 * (6 + 3)
    predictor(rows()[0][0])
    del predictor
    gc.collect()
    assert cp.pinned["used"] == 0


def test_where_nothing_can_be_pinned_a_predictor_predicts_the_same(monkeypatch):
    model, x = trained(), rows()[0]
    expected = model.predictor().outputs(x[0])

    def refused(size, flags=0):
        raise cp.CudaError("cudaErrorMemoryAllocation: planted")

    monkeypatch.setattr(cp.cuda, "PinnedMemory", refused)
    assert_same_bits(model.predictor().outputs(x[0]), expected)


def test_a_fit_on_arrays_of_the_device_looks_at_what_it_left_once(calls, monkeypatch):
    tables, make_table = [], memory.chunk_table
    monkeypatch.setattr(memory, "chunk_table", lambda *a: tables.append(a) or make_table(*a))
    x, y = (cp.asarray(a) for a in rows())
    model = model_on()
    for _ in range(2):
        calls.clear()
        tables.clear()
        model.fit(x, y, epochs=1, batch_size=21, verbose=0)
    # y; the weights, in case that a step spoils them; the report; and the look
    assert calls["get"] - calls["sum"] - calls["max"] == 4
    assert not tables  # whether it fits is a matter of sizes


# --- what CUDA refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["loaded", "launched"])
def test_a_kernel_that_is_refused_is_told(when, monkeypatch):
    model, x = model_on(), cp.asarray(rows()[0])

    def refuse(*_, **__):
        raise cp.CudaError("cudaErrorInvalidDeviceFunction: planted")

    owner, name = (cp.RawModule, "get_function") if when == "loaded" else (cp._Function, "__call__")
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(
        fastmlp.KernelError, match=r"bias_activation<float> does not run on this GPU \(.*planted\)"
    ) as e:
        model.predict(x)
    assert e.value.kernel == "bias_activation<float>"


def test_memory_of_the_host_is_not_freed_while_it_is_read(monkeypatch):
    """Where something fails after the row is on its way, that is waited for."""
    model, x = model_on(), rows()[0]
    predictor = model.predictor()

    def refuse(*_):
        raise cp.cuda.cublas.CUBLASError("planted")

    monkeypatch.setattr(cp.cuda.cublas, "gemmEx", refuse)
    with pytest.raises(fastmlp.KernelError, match="planted"):
        predictor(x[0])
    del predictor
    gc.collect()
    with model.backend.working():
        model.backend.synchronize()


# --- what is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_one_look_tells_whether_all_of_several_arrays_are_finite(dtype, bad, where, calls):
    arrays = [np.linspace(-3, 3, size).astype(dtype) for size in (5, 70_000, 1)]
    if bad is not None:
        arrays[where][-1] = bad
    there, backend = [cp.asarray(a) for a in arrays], make()
    calls.clear()
    assert backend.all_finite(there) is (bad is None)
    assert calls == {"empty": 1, "launch": 3, "get": 1, "synchronize": 1}
    assert fastmlp.get_backend("numpy").all_finite(arrays) is (bad is None)


def test_a_square_that_overflows_is_looked_into():
    assert not make().all_finite([cp.asarray(np.array([1e200]))])
    x, y = rows()
    model = model_on(dtype="float64")
    weights = model.get_weights()
    weights[1][0] = 1e200
    model.set_weights(weights)
    train(model, x * 0, y, epochs=1)  # no error: all weights are finite
    assert model.get_weights()[1].max() == 1e200
