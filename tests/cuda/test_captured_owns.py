"""A captured step is keyed by all that is baked into it, owns all that it touches, and changes only what it should."""

import gc
import weakref
from dataclasses import replace

import cupy_double as cp
import cupy_streams
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import needs_emulator
from scenarios import Scenario, train

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import choice as cupy_choice
from fastmlp.backends.cuda import step as cupy_step
from fastmlp.backends.cuda.step import GRAPH_STEPS
from fastmlp.formulas.optimizers import SGD, Adam, RMSprop
from fastmlp.formulas.random_bits import epoch_order
from fastmlp.network.plan import Plan, Precision

pytestmark = [needs_emulator, pytest.mark.cuda_host]

SMALL = Scenario("small", (5, 7, 3), {"activation": "tanh", "dropout": 0.2}, Adam(clip_norm=0.5), rows=41, batch=2)


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cp)


def make(way="captured"):
    return cupy_backend.CupyBackend(way=way)


def rows(n=21):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 5)).astype("f4"), rng.integers(0, 3, n)


# --- the key --------------------------------------------------------------------------------------------------------

MODEL = {"activation": "tanh", "dropout": 0.2, "l2": 0.1, "max_norm": 2.0, "loss": "softmax_cross_entropy"}
OTHERS = {
    "units": ({"units": (5, 6, 3)}, {}),
    "activation": ({"activation": "relu"}, {}),
    "dropout": ({"dropout": 0.3}, {}),
    "l2": ({"l2": 0.2}, {}),
    "max-norm": ({"max_norm": 1.0}, {}),
    "loss": ({"loss": fastmlp.SoftmaxCrossEntropy(label_smoothing=0.1)}, {}),
    "dtype": ({"dtype": "float64"}, {}),
    "rows": ({}, {"batch_size": 5}),
    "optimizer": ({}, {"optimizer": RMSprop()}),
    "a scalar of the optimizer": ({}, {"optimizer": Adam(beta1=0.8)}),
    "clipping": ({}, {"optimizer": Adam(clip_norm=0.1)}),
    "average": ({}, {"optimizer": Adam(ema=0.9)}),
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_is_baked_into_a_step_another_has_another_plan(what):
    network, options = OTHERS[what]

    def plan(network, options):
        model = fastmlp.MLP(network.pop("units", (5, 7, 3)), backend=make(), seed=0, **(MODEL | network))
        options = {"batch_size": 4, "optimizer": Adam()} | options
        return Plan(
            model.spec, options["batch_size"], Precision.of(model.dtype), True, options["optimizer"].without_schedule()
        )

    first, other = plan({}, {}), plan(dict(network), options)
    assert first == plan({}, {})
    assert hash(first) == hash(plan({}, {}))
    assert first != other


def test_frozen_layers_and_seeds_are_part_of_the_key():
    x, y = rows()
    backend = make()
    models = [fastmlp.MLP((5, 7, 3), backend=backend, seed=seed, dropout=0.2) for seed in (0, 0, 1)]
    reference = [fastmlp.MLP((5, 7, 3), backend="numpy", seed=seed, dropout=0.2) for seed in (0, 0, 1)]
    for model in (models[1], reference[1]):
        model.freeze(0)
    for model in (*models, *reference):
        for epochs in (1, 1):
            model.fit(x, y, epochs=epochs, batch_size=4, optimizer=SGD(0.1), verbose=0)
    for model in (models[1], reference[1]):
        model.unfreeze()
        model.fit(x, y, epochs=1, batch_size=4, verbose=0)
    for a, b in zip(models, reference, strict=True):
        for found, expected in zip(a.get_weights(), b.get_weights(), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_rates_are_not_baked_in_and_change_nothing_of_the_key():
    assert Adam(1e-3).without_schedule() == Adam(fastmlp.Cosine(1e-2)).without_schedule()
    x, y = rows()
    found, expected = (fastmlp.MLP((5, 7, 3), backend=b, seed=0, activation="tanh") for b in (make(), "numpy"))
    for model in (found, expected):
        model.fit(x, y, epochs=3, batch_size=4, optimizer=SGD(fastmlp.Cosine(0.5)), verbose=0)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_each_device_has_steps_and_proofs_of_its_own(monkeypatch):
    proofs, prove = [], cupy_choice.prove
    monkeypatch.setattr(cupy_choice, "prove", lambda *a: proofs.append(a[0].device) or prove(*a))
    x, y = rows()
    weights = []
    for device in (0, 1):
        with cp.cuda.Device(device):
            model = fastmlp.MLP((5, 7, 3), backend=make(), seed=0)
            model.fit(x, y, epochs=1, batch_size=4, verbose=0)
        weights.append(model.get_weights())
    assert proofs == [0, 1]
    for a, b in zip(*weights, strict=True):
        assert_same_bits(a, b)


def test_data_changed_between_two_fits_is_seen(monkeypatch):
    x, y = rows()
    there, labels = cp.asarray(x), cp.asarray(y)
    found, expected = (fastmlp.MLP((5, 7, 3), backend=make(), seed=0) for _ in range(2))
    for factor in (1.0, 0.5):
        there *= factor
        found.fit(there, labels, epochs=1, batch_size=4, verbose=0)
        expected.fit(x * np.float32(factor), y, epochs=1, batch_size=4, verbose=0)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        assert_same_bits(a, b)


# --- what it owns ---------------------------------------------------------------------------------------------------


def test_all_that_a_graph_reads_and_writes_is_held_by_its_step():
    own = make()
    _, _, session = train(replace(SMALL, epochs=1), own, "float32")
    step = session._training
    (graph, *_) = step._graphs.values()
    touched = {m() for reads, writes, _ in graph._operations for m in (*reads, *writes)}
    assert len(touched) >= 5
    kernels = own._kernels
    held = {id(a._memory) for a in (*step.memory.values(), *_arrays(vars(step)))}
    assert {id(m) for m in touched} <= held
    alive = weakref.ref(kernels)
    del own, session, kernels, touched
    gc.collect()
    assert alive() is not None  # the modules, too, are held by the step


def _arrays(values):
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, cp.ndarray):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _arrays(value)


# --- before a capture -----------------------------------------------------------------------------------------------


def test_every_kernel_runs_uncaptured_and_is_waited_for_before_it_is_captured(monkeypatch):
    events, stream_class = [], cp.Stream
    begin, synchronize, call = stream_class.begin_capture, stream_class.synchronize, cp._Function.__call__
    monkeypatch.setattr(stream_class, "begin_capture", lambda self, *a: events.append("capture") or begin(self, *a))
    monkeypatch.setattr(stream_class, "synchronize", lambda self: events.append(("wait", self)) or synchronize(self))

    def launch(self, *args, **kwargs):
        stream = cp.cuda.get_current_stream()
        events.append((self._name, stream.is_capturing(), stream))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(cp._Function, "__call__", launch)
    own = make()
    scenario = replace(SMALL, epochs=1)
    session, state = own.open(scenario.plan("float32")), scenario.state(own, "float32")
    data, order = scenario.device_data(own, "float32"), own.asarray(scenario.order(0))
    session._way = "captured"  # proven before
    own.train_steps(session, state, data, order, scenario.table(0, 0, "float32"), 0, np.zeros(3))
    step = session._training
    captures = [i for i, e in enumerate(events) if e == "capture"]
    assert len(captures) == len(step._graphs) == 3
    before = 0
    for at in captures:
        ahead = events[before:at]
        after = [e for e in events[at + 1 :] if e != "capture" and e[0] != "wait"]
        uncaptured = {e[0] for e in ahead if e[0] != "wait" and not e[1]}
        captured = {e[0] for e in after if e[1]}
        assert captured <= uncaptured
        last = max(i for i, e in enumerate(ahead) if e[0] != "wait")
        assert ("wait", step._stream) in ahead[last:]
        before = at
    assert {e[2] for e in events if e != "capture" and e[0] != "wait" and not e[1]} == {step._stream}
    assert {e[2] for e in events if e != "capture" and e[0] != "wait" and e[1]} == {
        step._stream,
        step._side.side,
        step._ahead.side,
    }


def test_the_step_before_a_capture_changes_nothing(monkeypatch):
    own = make()
    scenario = replace(SMALL, epochs=1, optimizer=Adam(ema=0.5, weight_decay=0.5, clip_norm=0.5), network=MODEL)
    plan, state, data = scenario.plan("float32"), scenario.state(own, "float32"), scenario.device_data(own, "float32")
    step = cupy_choice.make_step(own, plan, state, data, captured=True)
    names = ("cursor", "table", "frozen", "report")
    for name in names:
        memory = step.memory[name]
        own.fill(memory, np.arange(memory.size).reshape(memory.shape).astype(memory.dtype))
    own.fill(step.memory["cursor"], np.full(3, 10**6))  # far beyond the order of the rows
    before = [a.get() for a in (state.params, *state.moments, state.average, *(step.memory[n] for n in names))]
    with step._own_stream():
        step._take_order(own.asarray(scenario.order(0)))
        step._warm_up(2)
    after = [a.get() for a in (state.params, *state.moments, state.average, *(step.memory[n] for n in names))]
    for a, b in zip(after, before, strict=True):
        assert_same_bits(a, b)


def test_what_is_called_between_the_halves_of_a_step_is_on_its_stream():
    own = make("eager")
    plan, state, data = SMALL.plan("float32"), SMALL.state(own, "float32"), SMALL.device_data(own, "float32")
    step, streams = cupy_choice.make_step(own, plan, state, data, captured=False), []
    order, table = own.asarray(SMALL.order(0)), SMALL.table(0, 0, "float32")[:1]
    step.halves(order, table, 0, lambda: streams.append(cp.cuda.get_current_stream()))
    assert streams == [step._stream]


@pytest.mark.parametrize("fails", ["a launch", "the end of the capture"])
def test_a_capture_that_breaks_is_ended_and_says_what_came_first(fails, monkeypatch):
    own = make()
    scenario = replace(SMALL, epochs=1)
    plan, state, data = scenario.plan("float32"), scenario.state(own, "float32"), scenario.device_data(own, "float32")
    step = cupy_choice.make_step(own, plan, state, data, captured=True)
    run = own.asarray(scenario.order(0)), scenario.table(0, 0, "float32"), 0, 0
    with monkeypatch.context() as patch:
        if fails == "a launch":
            call = cp._Function.__call__

            def refuse(self, *args, **kwargs):
                if cp.cuda.get_current_stream().is_capturing() and self._name.startswith("loss_rows"):
                    cp._refuse_in_capture("planted")
                return call(self, *args, **kwargs)

            patch.setattr(cp._Function, "__call__", refuse)
            expected = "the kernel loss_rows<float, long long, 1> does not run .*planted"
        else:
            whole = cupy_step.TrainingStep._apply_gradients

            def spoil(self, index, layers):
                self._stream._spoiled = self._stream._spoiled or "planted"
                whole(self, index, layers)

            patch.setattr(cupy_step.TrainingStep, "_apply_gradients", spoil)
            expected = "the graph of a step is refused .*Invalidated: planted"
        with pytest.raises(fastmlp.KernelError, match=f"{expected}.*way='eager'"):
            step.run(*run)
    assert not step._stream.is_capturing()
    assert not cupy_streams._capturing
    step._stream._spoiled = None
    assert step.run(*run)[:2] == (scenario.steps, True)


# --- what is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["captured", pytest.param("eager", marks=pytest.mark.whole_ladder)])
@pytest.mark.parametrize(
    "bad",
    [pytest.param(0, marks=pytest.mark.whole_ladder), pytest.param(3, marks=pytest.mark.whole_ladder), GRAPH_STEPS + 1],
)
def test_the_step_that_is_not_finite_is_replayed_to_name_row_and_layer(way, bad):
    x, y = rows(80)
    model = fastmlp.MLP((5, 7, 3), backend=make(way), seed=0, dropout=0.2)
    reference = fastmlp.MLP((5, 7, 3), backend="numpy", seed=0, dropout=0.2)

    row = int(epoch_order(model.seed, 0, len(x))[4 * bad + 1])
    x[row] = 3e38 * np.sign(model.get_weights()[0][:, 0])  # finite itself, its first product is not
    errors = []
    for m in (model, reference):
        with pytest.raises(fastmlp.NonFiniteLossError) as e:
            m.fit(x, y, epochs=1, batch_size=4, verbose=0)
        errors.append(e.value)
    assert (errors[0].step, errors[0].row, errors[0].where) == (errors[1].step, errors[1].row, errors[1].where)
    assert (errors[0].step, errors[0].row) == (bad, row)
    assert "layer 0" in errors[0].where
    for a, b in zip(model.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
