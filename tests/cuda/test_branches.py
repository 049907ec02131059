"""Both sides of what a size, a type or what ran before decides, at small sizes: thresholds are lowered instead.

`branches.txt` lists them, each with the tests that take both sides.
"""

import logging
from dataclasses import replace

import cupy_double as cp
import numpy as np
import pytest
from compare import DTYPES, assert_close, assert_same_bits
from emulator import needs_emulator
from gpu_arrays import make, model_on, rows
from gpu_arrays import train as fit
from scenarios import SCENARIOS, Scenario, train

import fastmlp
from fastmlp.backends.choosing import get_backend
from fastmlp.backends.cuda import choice, kernels, memory, sources
from fastmlp.backends.cuda import launches as cupy_launches
from fastmlp.backends.cuda import step as cupy_step
from fastmlp.backends.cuda.products import choose_tile, weight_slabs
from fastmlp.formulas.optimizers import SGD, Adam

pytestmark = [needs_emulator, pytest.mark.cuda_host, pytest.mark.usefixtures("cupy_is_its_double")]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
ways = pytest.mark.parametrize("way", ["captured", "eager"])

TANH = {"activation": "tanh"}


@pytest.fixture(autouse=True)
def several_processors():
    kept = cp.multiprocessors[0]
    yield
    cp.multiprocessors[0] = kept
    cp.faults.clear()
    cp.poison.clear()


def hold_against_numpy(scenario, way, dtype="float64", backend=None):
    """Train there and on NumPy; compare what was learnt, what was averaged, and the sums of losses."""
    found, sums, session = train(scenario, backend or make(way), dtype)
    expected, expected_sums, _ = train(scenario, get_backend("numpy"), dtype)
    k = max(scenario.batch, *scenario.units) * scenario.steps * scenario.epochs
    pairs = [(found.params, expected.params), *zip(found.moments, expected.moments, strict=True)]
    for own, other in pairs if expected.average is None else [*pairs, (found.average, expected.average)]:
        assert_close(own.get(), other, k=k, scale=1 + np.abs(other), c=16)
    assert_close(sums, expected_sums, dtype=dtype, k=k, scale=1 + np.abs(expected_sums), c=16)
    return session


# --- sizes ----------------------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("large", [10**9, 100], ids=["few parameters", "many parameters"])
@pytest.mark.parametrize("optimizer", [Adam(epsilon=0.1, ema=0.9, clip_norm=0.5), SGD(0.1)], ids=["adam", "sgd"])
@pytest.mark.parametrize("max_norm", [2.0, None])
def test_every_parameter_is_updated_however_many_there_are(way, large, optimizer, max_norm, monkeypatch):
    """Chunks of many parameters are longer than a block has threads, those of few may be too."""
    monkeypatch.setattr(memory, "_LARGE", large)
    monkeypatch.setattr(memory, "_CHUNK", 300)
    monkeypatch.setattr(memory, "_LARGE_CHUNK", 1300)
    scenario = Scenario("", (30, 50, 3), {**TANH, "max_norm": max_norm}, optimizer, rows=9, batch=4, epochs=1)
    chunks = memory.chunk_table(scenario.plan("float32"), [memory.Gradients(0, 0, 0, (1, 1), 0)] * 2)
    assert max(stop - start for start, stop, *_ in chunks.tolist()) == (1300 if large == 100 else 300)
    hold_against_numpy(scenario, way)


@ways
@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s.weighted or s.soft], ids=str)
def test_row_weights_and_targets_count_however_many_outputs_there_are(way, scenario, monkeypatch):
    """Beyond so many outputs a block works on a row, and a warp up to there."""
    monkeypatch.setattr(kernels, "WARP_OUTPUTS", 2)
    assert kernels.loss_grid(5, 3) == (((5,), (256,)), 8)
    hold_against_numpy(replace(scenario, epochs=1), way)


def test_row_weights_and_losses_are_right_of_just_512_outputs_and_of_one_more():
    assert [kernels.loss_grid(9, k)[1] for k in (512, 513)] == [1, 8]
    for k in (512, 513):
        scenario = Scenario("", (3, k), {}, SGD(0.1), weighted=True, rows=9, batch=4, epochs=1)
        hold_against_numpy(scenario, "eager")


@ways
def test_the_norm_is_that_of_all_chunks_where_there_are_more_than_blocks(way, monkeypatch):
    for module in (memory, cupy_launches):
        monkeypatch.setattr(module, "NORM_BLOCKS", 2)
    monkeypatch.setattr(memory, "_CHUNK", 16)
    hold_against_numpy(Scenario("", (9, 8, 3), {**TANH, "l2": 0.1}, SGD(0.5, clip_norm=0.01), epochs=1), way)


@ways
@pytest.mark.parametrize("multiprocessors", [4, 46, 132])
@pytest.mark.parametrize("batch", [600, 40])
def test_devices_of_any_size_compute_the_same(way, multiprocessors, batch):
    """How many slabs a gradient is left in, and how large tiles are, follows from the multiprocessors."""
    cp.multiprocessors[0] = multiprocessors
    scenario = Scenario("", (20, 36, 3), TANH, SGD(0.1), rows=batch + 100, batch=batch, epochs=1)
    session = hold_against_numpy(scenario, way)
    assert session.backend.multiprocessors == multiprocessors


def test_few_and_many_multiprocessors_choose_otherwise():
    found = {(choose_tile(256, 256, 600, m), weight_slabs(20, 36, 600, 16, m)) for m in (4, 46, 132)}
    assert len(found) > 1


@pytest.mark.parametrize("layers", [3, 4, 5])
@ways
def test_slopes_of_rectifiers_are_those_of_the_layer_below_however_deep(way, layers):
    units = (5, *range(9, 9 - layers, -1), 3)
    scenario = Scenario("", units, {"activation": "relu", "dropout": 0.2}, SGD(0.05), smooth=False, epochs=1)
    hold_against_numpy(scenario, way)


@ways
def test_hidden_layers_without_an_activation_pass_gradients_on_as_they_are(way):
    hold_against_numpy(Scenario("", (5, 7, 6, 3), {"activation": "identity"}, SGD(0.05), epochs=1), way)


@ways
def test_a_short_batch_leaves_gradients_where_those_of_whole_ones_lie(way):
    """700 rows in batches of 600: by its own rows the short one would be cut into fewer slabs."""
    assert [weight_slabs(6, 5, n, 16, 4) for n in (600, 100)] == [2, 1]
    hold_against_numpy(Scenario("", (6, 5, 3), TANH, SGD(0.1), rows=700, batch=600, epochs=1), way)


@ways
def test_runs_of_one_batch_of_just_whole_ones_and_of_a_long_graph_and_one_more(way):
    for count, batch in ((4, 4), (16 * 2, 2), (17 * 2, 2), (16 * 2 + 1, 2)):
        hold_against_numpy(Scenario("", (4, 3, 2), TANH, SGD(0.1), rows=count, batch=batch, epochs=2), way)


@pytest.mark.parametrize("way", ["captured", "auto", "eager"])
def test_a_batch_of_more_rows_than_there_are_is_all_of_them(way):
    """`fit` asks for no such batch; a backend may be asked by others."""
    hold_against_numpy(Scenario("", (4, 3, 2), TANH, SGD(0.1), rows=3, batch=4, epochs=2), way)


@ways
def test_where_no_layer_trains_losses_are_told_and_nothing_changes(way):
    scenario = Scenario("", (5, 4, 3), TANH, Adam(clip_norm=0.1), frozen=(True, True), epochs=1)
    own = make(way)
    before = scenario.state(own, "float32").params.get()
    found, sums, _ = train(scenario, own, "float32")
    assert_same_bits(found.params.get(), before)
    _, expected, _ = train(scenario, get_backend("numpy"), "float32")
    assert_close(sums, expected, dtype="float32", k=50, scale=1 + np.abs(expected))


# --- types ----------------------------------------------------------------------------------------------------------


@ways
@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i4"])
def test_row_weights_of_any_type_weigh_alike(way, kind):
    x, y = rows(21)
    weights = np.random.default_rng(1).integers(0, 4, 21).astype("f8")
    found = []
    for backend, given in ((make(way), cp.asarray(weights.astype(kind))), ("numpy", weights)):
        model = model_on(backend)
        labels, inputs = (cp.asarray(y), cp.asarray(x)) if backend != "numpy" else (y, x)
        fit(model, inputs, labels, sample_weight=given)
        found.append(model.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_row_weights_in_another_type_are_converted_for_steps():
    """`fit` hands over no others; a backend may be given them by others."""
    backend, scenario = make("eager"), Scenario("", (5, 4, 3), TANH, SGD(0.1), weighted=True, epochs=1)
    data = scenario.device_data(backend, "float32")
    kept = replace(data, weights=backend.asarray(scenario.data()[2]))
    assert kept.weights.dtype == np.float64
    for found, expected in zip(
        memory.held(backend, kept, scenario.plan("float32")), (data.x, data.y, data.weights), strict=True
    ):
        assert_same_bits(found.get(), expected.get())


@ways
def test_row_weights_with_a_stride_are_taken_in_their_order(way):
    x, y = rows(21)
    whole = np.random.default_rng(1).uniform(0, 4, 42).astype("f4")
    found = []
    for weights in (cp.asarray(whole)[::2], cp.asarray(np.ascontiguousarray(whole[::2]))):
        model = model_on(make(way))
        fit(model, cp.asarray(x), cp.asarray(y), sample_weight=weights)
        figures = model.evaluate(cp.asarray(x), cp.asarray(y), weights)
        found.append([*model.get_weights(), np.array(list(figures.values()))])
    for a, b in zip(*found, strict=True):
        assert_same_bits(a, b)


def test_inputs_in_half_precision_on_the_device_are_those_of_the_host():
    x, _ = rows(21)
    model, half = model_on(make("eager")), x.astype("f2")
    assert_close(model.predict_proba(cp.asarray(half)).get(), model_on("numpy").predict_proba(half), k=20, scale=1)


def test_rows_in_half_precision_are_gathered_by_way_of_the_type_computed_in():
    backend, x = make("eager"), rows(21)[0].astype("f2")
    out = backend.empty((5, 6), np.dtype("f4"))
    backend.gather_rows(cp.asarray(x), slice(3, 8), out)
    assert out.get().tolist() == x[3:8].tolist()


# --- what ran before ------------------------------------------------------------------------------------------------


def test_kernels_proven_in_one_type_are_proven_anew_in_another():
    backend = make("captured")
    fit(model_on(backend), *rows())

    def spoil(arrays):
        if arrays[2].dtype == np.float64:
            arrays[2].reshape(-1)[0] += 1

    cp.faults["product_input_gradient"] = spoil
    with pytest.warns(RuntimeWarning, match="product_input_gradient computes the gradients of the pre-activations"):
        fit(model_on(backend, dtype="float64"), *rows())


def test_what_one_backend_has_proven_and_measured_another_has_not():
    """It may be on another device, or come after a driver was changed."""
    fit(model_on(make("captured")), *rows())
    cp.faults["product_forward"] = lambda arrays: arrays[3].reshape(-1).__setitem__(0, 7.0)
    model, right = model_on(make("captured")), model_on("numpy")
    with pytest.warns(RuntimeWarning, match="product_forward computes the activations of layer 0 off by"):
        fit(model, *rows())
    fit(right, *rows())
    for a, b in zip(model.get_weights(), right.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@dtypes
def test_a_short_batch_takes_the_kernels_that_were_proven_for_whole_ones(dtype, monkeypatch):
    """By its own rows its products would take another tile; whether a run has one the proof cannot know."""
    monkeypatch.setattr("fastmlp.backends.cuda.products.choose_tile", lambda m, *_, **__: 16 if m < 3 else 32)
    backend = make("captured")
    fit(model_on(backend, dtype=dtype), *rows(20), batch_size=5)
    model, expected = model_on(backend, dtype=dtype), model_on("numpy", dtype=dtype)
    cp.launches.clear()
    for one in (model, expected):
        fit(one, *rows(22), batch_size=5)
    assert {name for name, _ in cp.launches if name.startswith("product")} <= backend.proven
    for a, b in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("off", [1e-3, 0.1])
@pytest.mark.parametrize(
    ("kernel", "position", "what"),
    [
        ("product_forward", 3, "the activations of layer 0"),
        ("product_input_gradient", 2, "the gradients of the pre-activations of layer 0"),
        ("product_weight_gradient", 2, "the gradients of the weights of layer 1"),
        ("product_weight_gradient", 3, "the gradients of the biases of layer 1"),
    ],
)
def test_a_kernel_that_is_off_by_little_is_found(kernel, position, what, off):
    """Rounding allows a hundredth of the lesser of them."""

    def spoil(arrays):
        numbers = arrays[position].reshape(-1)  # gradients reach to the end of those of all layers
        numbers[0] += np.float32(off) * np.abs(numbers[:3]).max()

    cp.faults[kernel] = spoil
    with pytest.warns(RuntimeWarning, match=f"{kernel} computes {what} off by"):
        fit(model_on(make("captured")), *rows())


def test_the_steps_of_the_proof_move_every_number_and_leave_it_finite(monkeypatch):
    """Of what is not finite, stays as it was, or makes units saturate, the bits are alike whatever the kernels do."""
    found, left = [], choice._left

    def seen(state, operations):
        found.append(list(left(state, operations)))
        return iter(found[-1])

    monkeypatch.setattr(choice, "_left", seen)
    scenario = Scenario("", (5, 7, 3), TANH, Adam(ema=0.9), rows=17 * 2 + 1, batch=2)
    backend = make("captured")
    state, data = scenario.state(backend, "float32"), scenario.device_data(backend, "float32")
    assert choice.prove(backend, scenario.plan("float32"), state, data) == ""
    w = state.layout.views(np.arange(state.params.size))
    trained = np.concatenate([a.ravel() for pair in w for a in pair])  # the rest of the buffer is padding
    before = [state.params.get(), *(m.get() for m in state.moments), state.average.get()]
    assert len(found) == 5  # one by one, in a graph and by cuBLAS; an epoch in graphs, and one by one
    for results in found:
        for result, old in zip(results, before, strict=True):
            assert np.isfinite(result.array).all(), result.what
            assert (result.array[trained] != old[trained]).all(), result.what
            assert np.abs(result.array - old)[trained].max() < 1, result.what


def test_what_should_be_nothing_and_is_not_is_off_by_any_number():
    plan = Scenario("", (5, 4, 3), TANH, SGD(0.1)).plan("float32")
    nothing, something = (choice.Result("", "", np.array([0.0, a]), 0.0) for a in (0.0, 1e-30))
    assert choice._difference(something, nothing, plan, 1e-6) == np.finfo("f8").max
    assert choice._difference(nothing, nothing, plan, 1e-6) == 0


def test_figures_are_those_of_the_validation_data_of_each_fit():
    x, y = rows(30)
    found = []
    for backend in (make("captured"), "numpy"):
        model, losses = model_on(backend), []
        for part in (slice(0, 9), slice(9, 18), slice(3, 30)):
            history = fit(model, x, y, epochs=1, validation_data=(x[part], y[part]))
            losses += history.history["val_loss"]
        found.append(losses)
    np.testing.assert_allclose(*found, rtol=1e-4)
    assert len(set(found[1])) == 3


@ways
def test_a_fit_within_a_fit_has_memory_of_its_own(way):
    x, y = rows(42)
    backend = make(way)

    class Inner(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            other = model_on(backend, seed=3)
            fit(other, x[:20] * 2, y[:20], epochs=1, batch_size=5)
            fit(model_on(backend, seed=5), x, y, epochs=1)  # of the same plan

    found, expected = model_on(backend), model_on(make(way))
    fit(found, x, y, epochs=3, callbacks=[Inner()])
    fit(expected, x, y, epochs=3)
    for a, b in zip(found.get_weights(), expected.get_weights(), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("fault", ["refused", "illegal"])
def test_what_fails_in_a_short_batch_alone_is_told_before_it_trains(fault, monkeypatch):
    whole = cupy_step.TrainingStep._captured_steps

    def failing(self, steps, rows):
        if rows < self._plan.batch:
            if fault == "illegal":
                cp.faults["gather_batch"] = None
            else:
                raise cp.CudaError("cudaErrorNotSupported: planted")
        return whole(self, steps, rows)

    monkeypatch.setattr(cupy_step.TrainingStep, "_captured_steps", failing)
    if fault == "illegal":
        with pytest.raises(fastmlp.KernelError, match="cudaErrorIllegalAddress"):
            fit(model_on(make("captured")), *rows())
    else:
        with pytest.warns(RuntimeWarning, match=r"the graph of a step is refused \(cudaErrorNotSupported: planted"):
            fit(model_on(make("captured")), *rows())


@pytest.mark.parametrize("late", [None, 1.0])
def test_an_average_that_goes_wrong_in_graphs_alone_is_told(late, monkeypatch):
    whole = cupy_step.TrainingStep._apply_gradients

    def left_out(self, index, layers):
        average = self._average
        self._average = None if self._stream.is_capturing() else average
        whole(self, index, layers)
        self._average = average

    monkeypatch.setattr(cupy_step.TrainingStep, "_apply_gradients", left_out)
    model, right = model_on(make("captured"), max_norm=late), model_on(make("eager"), max_norm=late)
    with pytest.warns(RuntimeWarning, match=r"computes the average in a graph otherwise than by itself"):
        fit(model, *rows(), optimizer=Adam(ema=0.9))
    fit(right, *rows(), optimizer=Adam(ema=0.9))
    for a, b in zip(model.get_weights(), right.get_weights(), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("way", ["captured", "auto"])
def test_without_memory_for_a_captured_step_it_is_refused_or_runs_eagerly(way, monkeypatch, caplog):
    made = choice.make_step

    def scarce(*args, captured, **options):
        if captured:
            raise MemoryError("planted")
        return made(*args, captured=captured, **options)

    monkeypatch.setattr(choice, "make_step", scarce)
    backend = make(way)
    with caplog.at_level(logging.INFO, "fastmlp"):
        if way == "captured":
            with pytest.raises(MemoryError, match="planted"):
                fit(model_on(backend), *rows())
            return
        fit(model_on(backend), *rows())
    assert list(backend._ways.values()) == ["eager"]
    assert "steps run eagerly, since planted" in caplog.text


def test_operations_that_wait_name_the_kernel_that_fails():
    backend = make("eager")
    array = backend.asarray(np.ones(4, np.float32))
    backend.waiting().scale(array, 2.0)
    assert cp.counts["synchronisations"]
    assert array.get().tolist() == [2] * 4
    cp.faults["scale"] = None
    with pytest.raises(fastmlp.KernelError, match="the kernel scale<float> does not run on this GPU"):
        backend.waiting().scale(array, 2.0)


def test_the_memory_of_functions_of_a_users_own_is_that_of_the_composition():
    fastmlp.register_activation("cube_of_branches", lambda z: (z**3, 3 * z**2))
    x, y = rows()
    own, other = (model_on(b, activation="cube_of_branches").memory_estimate(x, y) for b in (make("eager"), "numpy"))
    assert own["workspace"] == pytest.approx(other["workspace"], rel=0.5)


def test_a_backend_says_which_options_were_given_and_no_others():
    assert repr(make("eager")) == "CupyBackend(tf32=False, way='eager')"
    assert make("auto").options == {}
    assert make("eager", tf32=True).options == {"tf32": True, "way": "eager"}


# --- what is compiled -----------------------------------------------------------------------------------------------


def test_kernels_are_compiled_with_these_options_and_no_others(monkeypatch):
    given, module = [], cp.RawModule
    monkeypatch.setattr(cp, "RawModule", lambda **options: given.append(options) or module(**options))
    kernels.Kernels(cp).get("flat.cu", "scale<double>", "double")
    (options,) = given
    assert options.keys() == {"code", "options", "name_expressions"}
    assert options["options"] == ("-std=c++17",)


def test_an_enum_that_is_not_there_is_no_number():
    with pytest.raises(LookupError, match=r"losses.cu has no enum Activation"):
        sources.codes("losses.cu", "Activation")


def test_what_is_included_twice_is_written_once(monkeypatch):
    files = {
        "a.cu": '#include "b.cuh"\n#include "c.cuh"\nlast',
        "b.cuh": '#pragma once\n#include "c.cuh"',
        "c.cuh": "c",
    }
    monkeypatch.setattr(sources, "read", files.__getitem__)
    text = sources.expanded.__wrapped__("a.cu")
    assert text.count('#line 1 "c.cuh"') == 1
    assert text.splitlines()[-2:] == ['#line 3 "a.cu"', "last"]
