"""The first fit on a device: own kernels proven, and what follows where they are not right; ways that are given."""

import logging
import re
import shutil
import warnings
from dataclasses import replace

import cupy_double
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import needs_emulator
from scenarios import SCENARIOS, Scenario, train

import fastmlp
from fastmlp.backends import decisions, registry
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import choice as cupy_choice
from fastmlp.backends.cuda import step as cupy_step
from fastmlp.backends.cuda import trial as cupy_trial
from fastmlp.backends.cuda.products import BlasProducts, OwnProducts
from fastmlp.backends.cuda.step import GRAPH_STEPS
from fastmlp.formulas.optimizers import SGD, Adam
from fastmlp.network.state import TrainState

pytestmark = [needs_emulator, pytest.mark.cuda_host]

SMALL = Scenario("small", (6, 7, 5, 3), {"activation": "tanh", "dropout": 0.2}, Adam(), rows=21, batch=4)


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cupy_double)
    monkeypatch.setattr(cupy_backend, "probe", lambda: registry.Availability(True, "the double of CuPy"))
    monkeypatch.delitem(registry._made, "cupy", raising=False)
    for kind, time in cupy_double.milliseconds.items():
        monkeypatch.setitem(cupy_double.milliseconds, kind, time)
    yield
    cupy_double.faults.clear()
    cupy_double.poison.clear()
    registry._made.pop("cupy", None)


def make(way="auto", **options):
    return cupy_backend.CupyBackend(way=way, **options)


def rows(n=21, features=6, classes=3):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, features)).astype("f4"), rng.integers(0, classes, n)


def model_on(backend, **changes):
    return fastmlp.MLP((6, 7, 5, 3), **({"activation": "tanh", "seed": 0, "backend": backend} | changes))


def fit(model, **changes):
    x, y = rows()
    return model.fit(x, y, **({"epochs": 1, "batch_size": 4, "verbose": 0} | changes))


def way_taken(model):
    (session,) = (s for s in model._learner.sessions._idle if s.plan.optimizer is not None)
    return session.choices()["way"]


# --- a way that is given -------------------------------------------------------------------------------------------


def test_a_trial_changes_neither_the_model_nor_what_it_learns(ways_are_tried):
    tried, told = model_on(make()), model_on(make("captured"))
    for model in (tried, told):
        fit(model, epochs=2)
    assert way_taken(tried) == "captured"
    assert list(ways_are_tried.iterdir())
    for a, b in zip(tried.get_weights(), told.get_weights(), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize(("options", "expected"), [({"way": "eager"}, "eager"), ({"way": "captured"}, "captured")])
def test_a_way_that_is_asked_for_is_taken_without_a_trial(options, expected, ways_are_tried, monkeypatch):
    monkeypatch.setattr(cupy_trial, "decide", lambda *_, **__: pytest.fail("tried"))
    model = model_on(make(**options))
    fit(model)
    assert way_taken(model) == expected


def test_without_memory_for_a_trial_the_way_of_the_rule_is_taken(ways_are_tried, monkeypatch, caplog):
    def none(*_, **__):
        raise MemoryError("planted")

    monkeypatch.setattr(TrainState, "copied", none)
    model = model_on(make())
    with caplog.at_level(logging.INFO, "fastmlp"):
        fit(model)
    assert way_taken(model) == "captured"
    assert "no memory to prove" in caplog.text
    assert not ways_are_tried.exists()


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """Return a function that makes a checkpoint after the first of two epochs."""

    def make_checkpoint(backend):
        path = tmp_path / "run.safetensors"
        model = model_on(backend)
        stop = type("Stop", (fastmlp.Callback,), {"on_epoch_end": lambda self, run, figures: run.stop("enough")})()
        fit(model, epochs=2, callbacks=[stop, fastmlp.Checkpoint(path)])
        whole = model_on(backend)
        fit(whole, epochs=2)
        return path, whole

    return make_checkpoint


@pytest.mark.parametrize("launch", [pytest.param(5e-3, marks=pytest.mark.whole_ladder), 1e-4])
def test_a_resumed_run_takes_the_way_of_the_checkpoint_and_goes_on_to_the_same_bits(checkpoint, ways_are_tried, launch):
    cupy_double.milliseconds.update(launch=launch, product=launch)
    path, whole = checkpoint(make())
    taken = way_taken(whole)
    shutil.rmtree(ways_are_tried)  # as on a machine that would find the other one
    decisions._known.clear()
    cupy_double.milliseconds.update(launch=5e-3 if launch < 1e-3 else 1e-4, product=5e-3 if launch < 1e-3 else 1e-4)
    model = fastmlp.load(path, backend=make())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.resume(*rows(), verbose=0)
    assert way_taken(model) == taken == ("captured" if launch == 5e-3 else "eager")
    for a, b in zip(model.get_weights(), whole.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_the_way_of_a_run_in_another_precision_is_not_taken():
    session = make().open(SMALL.plan("float32"))
    for other in ({"tf32": True}, {"backend": "numpy"}, {"way": "auto"}, {"way": "sideways"}):
        session.adopt({"backend": "cupy", "tf32": False, "way": "eager"} | other)
        assert session.choices()["way"] == "auto"
    session.adopt({"backend": "cupy", "tf32": False, "way": "eager"})
    assert session.choices()["way"] == "eager"


def test_a_way_asked_for_wins_over_that_of_the_checkpoint_with_a_warning(checkpoint):
    path, _ = checkpoint(make())
    model = fastmlp.load(path, backend=make("eager"))
    with pytest.warns(fastmlp.ReproducibilityWarning, match="way 'captured', now 'eager'"):
        model.resume(*rows(), verbose=0)
    assert way_taken(model) == "eager"


@pytest.mark.parametrize(("first", "then"), [("cupy", "numpy"), ("numpy", "cupy")])
def test_a_run_goes_on_on_another_backend_with_a_warning(checkpoint, first, then):
    backends = {"cupy": make(), "numpy": fastmlp.get_backend("numpy")}
    path, whole = checkpoint(backends[first])
    model = fastmlp.load(path, backend=backends[then])
    with pytest.warns(fastmlp.ReproducibilityWarning, match=f"backend '{first}', now '{then}'"):
        history = model.resume(*rows(), verbose=0)
    assert len(history.history["loss"]) == 2
    np.testing.assert_allclose(model.get_weights()[0], whole.get_weights()[0], atol=1e-5)


@pytest.mark.whole_ladder
def test_a_run_that_goes_on_is_not_tried(checkpoint, ways_are_tried, monkeypatch):
    path, _ = checkpoint(make())
    monkeypatch.setattr(cupy_trial, "decide", lambda *_, **__: pytest.fail("tried"))
    fastmlp.load(path, backend=make()).resume(*rows(), verbose=0)


# --- proof ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.whole_ladder)])
def test_right_kernels_are_found_right_whatever_the_network(scenario, dtype):
    backend = make("captured")
    state, data = scenario.state(backend, dtype), scenario.device_data(backend, dtype)
    before = [a.get() for a in (state.params, *state.moments)]
    assert cupy_choice.prove(backend, scenario.plan(dtype), state, data) == ""
    for a, b in zip(before, (state.params, *state.moments), strict=True):
        assert_same_bits(a, b.get())


def test_a_rectifier_at_its_kink_does_not_count_against_the_kernels(monkeypatch):
    backend = make("captured")
    scenario = replace(SMALL, network={"activation": "relu", "dropout": 0.2})
    state, data = scenario.state(backend, "float32"), scenario.device_data(backend, "float32")
    w, b = state.layout.views(state.params)[0]
    w[:, 0] = 0
    b[:1] = 0
    forward = BlasProducts.forward

    def rounded_up(self, x, w, b, z, slope, *rest):
        forward(self, x, w, b, z, slope, *rest)
        z[...] = z + 1e-9
        if slope is not None:
            slope[...] = 1

    monkeypatch.setattr(BlasProducts, "forward", rounded_up)
    assert cupy_choice.prove(backend, scenario.plan("float32"), state, data) == ""


def test_data_that_is_not_finite_does_not_count_against_the_kernels():
    backend = make("captured")
    state, data = SMALL.state(backend, "float32"), SMALL.device_data(backend, "float32")
    data.x[1, 2] = np.nan
    assert cupy_choice.prove(backend, SMALL.plan("float32"), state, data) == ""


def test_kernels_are_proven_once_on_a_device(monkeypatch):
    proofs, prove = [], cupy_choice.prove
    monkeypatch.setattr(cupy_choice, "prove", lambda *a: proofs.append(1) or prove(*a))
    backend = make("captured")
    for batch in (4, 5):
        fit(model_on(backend), batch_size=batch)
    assert len(proofs) == 1
    fit(model_on(backend), optimizer=SGD(clip_norm=1.0))  # a kernel that was not among them
    assert len(proofs) == 2


def off(position):
    """Return what spoils the first number of a kernel's argument."""

    def spoil(arrays):
        arrays[position].reshape(-1)[0] += 1

    return spoil


WRONG = {
    "product_forward": (off(3), "the activations of layer 0"),
    "product_input_gradient": (off(2), "the gradients of the pre-activations of layer 1"),
    "product_weight_gradient": (off(2), "the gradients of the weights of layer 2"),
}


@pytest.mark.parametrize("kernel", WRONG)
@pytest.mark.parametrize("way", ["auto", pytest.param("captured", marks=pytest.mark.whole_ladder)])
def test_a_kernel_that_computes_wrong_numbers_is_named_and_training_goes_on_eagerly(kernel, way):
    fault, what = WRONG[kernel]
    cupy_double.faults[kernel] = fault
    backend = make(way)
    model, right = model_on(backend), model_on(make("eager"))
    expected = f"cannot be used on this GPU: the kernel {kernel} computes {what} off by .* goes on eagerly"
    expected += ".*fastmlp selftest --backend cupy"
    with pytest.warns(RuntimeWarning, match=expected):
        fit(model)
    fit(right)
    assert way_taken(model) == "eager"
    for a, b in zip(model.get_weights(), right.get_weights(), strict=True):
        assert_same_bits(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        fit(model_on(backend))


def test_gradients_are_compared_one_by_one():
    def spoil(arrays):
        arrays[2].reshape(-1)[:2] += (1, -1)  # their sum stays what it was

    cupy_double.faults["product_weight_gradient"] = spoil
    with pytest.warns(RuntimeWarning, match="product_weight_gradient computes the gradients of the weights of layer 2"):
        fit(model_on(make("captured")))


def test_how_far_a_kernel_is_off_is_told_in_units_of_the_right_numbers():
    def spoil(arrays):
        arrays[2].reshape(-1)[0] += 1e6

    cupy_double.faults["product_input_gradient"] = spoil
    with pytest.warns(RuntimeWarning, match="off by") as found:
        fit(model_on(make("captured")))
    off = float(re.search("off by (.*) times", str(found[0].message))[1])
    assert off > 1e8  # against what it computed itself it would be 1 / tolerance, less than 1e5


def test_a_kernel_that_goes_wrong_only_in_a_graph_is_named(monkeypatch):
    launch = cupy_step.TrainingStep._loss

    def stale(self, index, n, views):
        # as if a scalar that changes from step to step had been written into the graph
        launch(self, index + self._stream.is_capturing(), n, views)

    monkeypatch.setattr(cupy_step.TrainingStep, "_loss", stale)
    with pytest.warns(RuntimeWarning, match="kernel finish_batch computes the sums of the batch in a graph otherwise"):
        fit(model_on(make("captured")))


@pytest.mark.parametrize("kind", ["a long graph", "a short batch", "a second step"])
def test_steps_that_go_wrong_only_in_a_kind_of_graph_that_a_run_has_are_told(kind, monkeypatch):
    """A proof of one whole batch in a graph of one step saw none of them."""
    learn = cupy_step.TrainingStep._learn
    when = {
        "a long graph": lambda index, n: index == GRAPH_STEPS - 1,
        "a short batch": lambda index, n: n < 4,
        "a second step": lambda index, n: index == 1,
    }[kind]

    def wrong(self, index, n, views, **options):
        # as if the scalars of another step had been written into the graph
        memory = dict(self.memory)
        if self._stream.is_capturing() and when(index, n):
            self.memory |= {"cursor": zeros} if n < 4 else {"table": memory["table"][1:]}
        learn(self, index, n, views, **options)
        self.memory |= memory

    monkeypatch.setattr(cupy_step.TrainingStep, "_learn", wrong)
    zeros = cupy_double.asarray(np.zeros(3, np.int64))
    model = model_on(make("captured"))
    with pytest.warns(
        RuntimeWarning, match=r"\d+ steps in graphs compute the .* otherwise than their kernels one by one"
    ):
        model.fit(*rows(4 * GRAPH_STEPS + 6), epochs=1, batch_size=4, verbose=0)
    assert way_taken(model) == "eager"


def test_a_capture_that_is_refused_is_no_obstacle(monkeypatch):
    def refuse(self, mode=None):
        raise cupy_double.CudaError("cudaErrorNotSupported: planted")

    monkeypatch.setattr(cupy_double.Stream, "begin_capture", refuse)
    model = model_on(make("captured"))
    with pytest.warns(RuntimeWarning, match=r"the graph of a step is refused \(cudaErrorNotSupported: planted\)"):
        fit(model)
    assert way_taken(model) == "eager"


def test_a_kernel_that_cannot_be_launched_is_named(monkeypatch):
    whole = OwnProducts._launch

    def refuse(self, name, *args):
        if name == "product_input_gradient":
            monkeypatch.setattr(cupy_double._Function, "__call__", failing)
        try:
            whole(self, name, *args)
        finally:
            monkeypatch.setattr(cupy_double._Function, "__call__", call)

    def failing(self, *_, **__):
        raise cupy_double.CudaError("cudaErrorLaunchOutOfResources: planted")

    call = cupy_double._Function.__call__
    monkeypatch.setattr(OwnProducts, "_launch", refuse)
    expected = r"the kernel product_input_gradient<float, \d+> does not run on this GPU \(cudaErrorLaunchOutOfResources"
    with pytest.warns(RuntimeWarning, match=expected):
        fit(model_on(make("captured")))


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "switch"),
    [
        ("product_forward", r"way='eager'\) avoids it"),
        ("product_weight_gradient", r"way='eager'\) avoids it"),
        ("advance_cursor", r"way='eager'\) avoids it"),
        ("gather_batch", "backend='numba' avoids the GPU"),
        ("update_parameters", "backend='numba' avoids the GPU"),
    ],
)
def test_a_fault_at_the_first_fit_names_the_kernel_and_what_avoids_it(kernel, switch):
    model = model_on(make())
    cupy_double.faults[kernel] = None
    expected = f"on this GPU .*cudaErrorIllegalAddress.*nothing more in this process; in a new one, .*{switch}"
    with pytest.raises(fastmlp.KernelError, match=expected) as e:
        fit(model)
    # a kernel that only graphs have is one of several; others are launched one by one first, and known by name
    assert e.value.kernel.startswith(kernel)
    assert ("finish_batch" in e.value.kernel) == (kernel == "advance_cursor")


@pytest.mark.parametrize(("way", "switch"), [("captured", "way='eager'"), ("eager", "backend='numba'")])
def test_a_fault_later_names_the_kernels_that_it_may_be(way, switch):
    model = model_on(make(way))
    fit(model)
    cupy_double.faults["update_parameters"] = None
    # not the kernel at whose launch the fault shows, which may be another
    expected = r"a training step fails on this GPU \(cudaErrorIllegalAddress.*\), in one of .*update_parameters<float>"
    with pytest.raises(fastmlp.KernelError, match=f"{expected}.*{switch}"):
        fit(model)


@pytest.mark.whole_ladder
def test_all_scenarios_train_without_a_warning():
    backend = make("captured")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for scenario in SCENARIOS:
            train(replace(scenario, epochs=1), backend, "float32")
