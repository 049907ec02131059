"""What a training step costs, counted on the double: launches, and the distinct bytes that each of them touches.

The bytes are derived here from the sizes of the network alone.  No kernel may touch more; those that read or write
whole matrices touch exactly that.
"""

from dataclasses import replace
from itertools import pairwise

import cupy_double
import numpy as np
import pytest
from compare import assert_close, normal
from emulator import Traffic, needs_emulator
from scenarios import Scenario

import fastmlp
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import products as cupy_products
from fastmlp.backends.cuda.choice import make_step
from fastmlp.backends.cuda.products import OwnProducts
from fastmlp.backends.cuda.step import TrainingStep
from fastmlp.formulas.optimizers import SGD, Adam

pytestmark = [needs_emulator, pytest.mark.cuda_host]

THREE_LAYERS = Scenario("three layers", (784, 32, 16, 10), {"activation": "relu"}, Adam(), rows=32, batch=32, epochs=1)


@pytest.fixture(autouse=True)
def on_the_double(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cupy_double)
    monkeypatch.setattr(cupy_products, "WORTH", dict.fromkeys(cupy_products.WORTH, np.inf))  # no cuBLAS in graphs


def counted(scenario, way, dtype="float32"):
    """Return [(kernel, traffic)] of a single step."""
    own = cupy_backend.CupyBackend(way=way)
    session, state = own.open(scenario.plan(dtype)), scenario.state(own, dtype)
    data, order = scenario.device_data(own, dtype), own.asarray(scenario.order(0))
    table = scenario.table(0, 0, dtype)
    own.train_steps(session, state, data, order, table, 0, np.zeros(3))
    cupy_double.launches.clear()
    own.train_steps(session, state, data, order, table, 0, np.zeros(3))
    return [(name.split("<")[0], traffic) for name, traffic in cupy_double.launches]


def names(scenario, way="captured"):
    return [name for name, _ in counted(scenario, way)]


# --- launches -------------------------------------------------------------------------------------------------------


def test_a_captured_step_of_three_layers_is_twelve_launches():
    assert names(THREE_LAYERS) == [
        "gather_batch",
        *["product_forward"] * 3,
        "loss_rows",
        "finish_batch",
        *["product_weight_gradient", "product_input_gradient"] * 2,
        "product_weight_gradient",
        "update_parameters",
        "advance_cursor",  # once a graph, of up to 16 steps
    ]


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"optimizer": Adam(clip_norm=1.0)}, ["gradient_norm"]),
        ({"optimizer": Adam(ema=0.9)}, []),
        ({"network": {"max_norm": 1.0}}, ["max_norm"] * 3),
        ({"network": {"max_norm": 1.0}, "optimizer": Adam(ema=0.9)}, ["average_parameters"] + ["max_norm"] * 3),
        ({"network": {"l2": 0.1, "dropout": (0.1, 0.2, 0.3)}}, []),
    ],
)
def test_what_clipping_max_norm_and_average_add(changes, more):
    assert sorted(names(replace(THREE_LAYERS, **changes))) == sorted(names(THREE_LAYERS) + more)


def test_a_layer_of_a_prediction_is_a_product_and_one_launch():
    network = {"activation": ("tanh", "relu", "sigmoid"), "loss": "mse"}
    model = fastmlp.MLP((12, 8, 7, 3), backend=cupy_backend.CupyBackend(), seed=0, **network)
    x = normal((5, 12), "float32", 1)
    model.predict(x)
    cupy_double.launches.clear()
    found = model.predict(x)
    assert [name for name, _ in cupy_double.launches if name.startswith("bias")] == ["bias_activation<float>"] * 3
    assert not [name for name, _ in cupy_double.launches if name.startswith("activation")]
    assert_close(found, fastmlp.MLP((12, 8, 7, 3), backend="numpy", seed=0, **network).predict(x), k=100)


def nodes_in_a_row(scenario, steps, monkeypatch):
    """Return how many nodes of a graph of so many steps follow each other, by the time that it takes.

    On the double's clock every node takes as long, and what runs beside something longer takes no time.
    """
    own = cupy_backend.CupyBackend(way="captured")
    scenario = replace(scenario, rows=scenario.batch * steps)
    plan, state = scenario.plan("float32"), scenario.state(own, "float32")
    step = make_step(own, plan, state, scenario.device_data(own, "float32"), captured=True)
    step.run(own.asarray(scenario.order(0)), scenario.table(0, 0, "float32"), 0, 0)
    with step._own_stream():
        step.memory["cursor"][...] = 0
        graph = step._graph(steps, scenario.batch)
        monkeypatch.setitem(cupy_double.milliseconds, "replay", 1.0)
        before = step._stream.record()._time
        graph.launch(step._stream)
        # the clock is a sum of floats of all that the stream did before
        return round(step._stream.record()._time - before, 6)


@pytest.mark.parametrize(("steps", "nodes"), [(1, 9), (16, 1 + 16 * 8)])
def test_what_follows_each_other_in_a_graph(steps, nodes, monkeypatch):
    """Of 12 nodes of a step the loss's totals and all weight gradients but the last run beside the chain of the others.

    In a long graph each batch is gathered while the step before it is taken.
    """
    assert nodes_in_a_row(THREE_LAYERS, steps, monkeypatch) == nodes + 1  # the last advances the cursor


@pytest.mark.parametrize(
    ("above", "a_step"),
    [
        # 8 products by cuBLAS, 3 biases with activations, 3 sums of columns, 2 slopes, the loss, the update
        (0, 8 + 3 + 3 + 2 + 2),
        # the uppermost layer's own: its weight gradient follows the loss's totals beside, and is waited for
        (100, (2 * 2 + 1) + 1 + 2 + (2 + 2) + 2 + 1),
        (10**9, 8),
    ],
    ids=["cuBLAS alone", "both", "own alone"],
)
def test_nothing_runs_beside_products_of_cublas(above, a_step, monkeypatch):
    """Where something does, several of its blocks fall to one multiprocessor: it took twice as long on a device."""
    scenario = Scenario("three layers", (5, 7, 6, 3), {}, Adam(), rows=4, batch=4, epochs=1)
    per_multiprocessor = above / cupy_double.multiprocessors[0]
    monkeypatch.setattr(cupy_products, "WORTH", dict.fromkeys(cupy_products.WORTH, per_multiprocessor))
    assert nodes_in_a_row(scenario, 16, monkeypatch) == 1 + 16 * a_step + 1
    # every batch of a long graph but the first is gathered once the step before has its outputs
    order = [name.split("<")[0] for name, _ in cupy_double.launches]
    gathered = [k for k, name in enumerate(order) if name == "gather_batch"][-15:]
    assert [order[k + 1] for k in gathered] == ["loss_rows"] * 15


# --- bytes ----------------------------------------------------------------------------------------------------------

INDEX = DOUBLE = 8
FLAG = 4
PLACE = INDEX + DOUBLE  # a number of the cursor, and the scalar of the step's row that it leads to
CHUNK_OF_TABLE = 6 * INDEX


def derived(scenario, real):
    """Return what each kernel of a step may touch, in the order in which they are launched; `real` bytes a number."""
    n, units, spec, rule = scenario.batch, scenario.units, scenario.spec, scenario.optimizer
    layers = list(pairwise(units))
    parameters = sum(i * o + o for i, o in layers)
    slopes = [scenario.plan("float32").needs_slope[k] for k in range(len(layers))]
    target = INDEX if scenario.data()[1].ndim == 1 else units[-1] * real
    chunks = sum(-(-i * o // 1024) + -(-o // 1024) for i, o in layers)
    void = PLACE + FLAG  # whether the step changes nothing
    rule_numbers, scalars = 7 * DOUBLE, 6 * DOUBLE
    row = n * (units[0] * real + target)
    yield "gather_batch", row + n * INDEX + 3 * INDEX, row
    for (i, o), slope in zip(layers, slopes, strict=True):
        yield "product_forward", (n * i + i * o + o) * real + 3 * INDEX, n * o * real * (1 + slope)
    top = units[-1]
    yield "loss_rows", n * (top * real + target) + PLACE, n * (top + 2) * real
    yield "finish_batch", n * 2 * real + PLACE + FLAG, 3 * DOUBLE + FLAG
    for k in range(len(layers) - 1, -1, -1):
        i, o = layers[k]
        yield "product_weight_gradient", n * (i + o) * real, (i * o + o) * real
        if k:
            yield "product_input_gradient", (n * o + i * o + n * i) * real, n * i * real
    table, moments = chunks * CHUNK_OF_TABLE, rule.moments
    norms = 0
    if rule.clip_norm is not None:
        norms = min(chunks, 256) * DOUBLE
        weights = sum(i * o for i, o in layers) if spec.l2 else 0
        yield "gradient_norm", (parameters + weights) * real + table + rule_numbers, norms
    late, average = spec.max_norm is not None, rule.ema is not None
    arrays = 1 + moments + (average and not late)
    yield (
        "update_parameters",
        (arrays + 1) * parameters * real + table + rule_numbers + scalars + void + norms,
        arrays * parameters * real,
    )
    if late:
        for i, o in layers:
            yield "max_norm", i * o * real + void, i * o * real
    if late and average:
        yield "average_parameters", 2 * parameters * real + table + scalars + void, parameters * real
    yield "advance_cursor", INDEX, INDEX


WHOLE_MATRICES = ("product_forward", "product_weight_gradient", "product_input_gradient")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": SGD()},
        {"optimizer": Adam(clip_norm=1.0, ema=0.9), "network": {"activation": "tanh", "l2": 0.1, "dropout": 0.2}},
        {"optimizer": Adam(ema=0.9), "network": {"max_norm": 1.0, "loss": "mean_squared_error"}},
    ],
    ids=["adam", "sgd", "clipping, average, l2, dropout", "max-norm, average, values as targets"],
)
def test_no_kernel_touches_more_bytes_than_it_must(changes, dtype):
    scenario = replace(THREE_LAYERS, **changes)
    hold_within(counted(scenario, "captured", dtype), list(derived(scenario, np.dtype(dtype).itemsize)))


def hold_within(found, expected):
    assert [name for name, _ in found] == [name for name, _, _ in expected]
    for (name, traffic), (_, read, written) in zip(found, expected, strict=True):
        assert traffic.read <= read, f"{name} reads {traffic.read} bytes of {read}"
        assert traffic.written <= written, f"{name} writes {traffic.written} bytes of {written}"
        if name in WHOLE_MATRICES:
            assert traffic.written == written
            assert traffic.read >= read - 3 * INDEX  # the cursor is read for dropout alone


@pytest.mark.parametrize("more", [Traffic(4, 0), Traffic(0, 4)], ids=str)
def test_a_number_too_many_is_noticed(more):
    expected = list(derived(THREE_LAYERS, 4))
    found = [(name, Traffic(read, written)) for name, read, written in expected]
    hold_within(found, expected)
    name, traffic = found[4]
    found[4] = name, Traffic(traffic.read + more.read, traffic.written + more.written)
    with pytest.raises(AssertionError, match=r"loss_rows (reads|writes)"):
        hold_within(found, expected)


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [3, 8, 19])
def test_the_batch_that_is_said_to_fit_is_the_largest_that_does(monkeypatch, batch):
    own, scenario = cupy_backend.CupyBackend(way="captured"), Scenario("", (5, 400, 3), {}, SGD(), rows=41, batch=2)
    state, data, plan = scenario.state(own, "float32"), scenario.device_data(own, "float32"), scenario.plan("float32")

    def step(rows):
        return TrainingStep(own, OwnProducts(own, 4), replace(plan, batch=rows), state, data, captured=True)

    room = {"free": step(batch).nbytes, "kept": 0}
    monkeypatch.setattr(type(own), "memory_info", lambda self: room)
    with pytest.raises(MemoryError) as e:
        step(33)
    assert f"({data.x.nbytes:,} bytes)" in str(e.value)
    largest = int(str(e.value).split()[-1])
    assert largest >= batch
    step(largest)
    with pytest.raises(MemoryError):
        step(largest + 1)
