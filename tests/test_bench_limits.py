"""What `fastmlp bench` takes for the best of a machine, what a workload asks of it, and with how many rows."""

import inspect
import itertools
import threading
from dataclasses import replace

import cupy_double
import numpy as np
import pytest
from emulator import needs_emulator

from fastmlp.bench import costs, limits, measures, workloads
from fastmlp.bench.results import Case, Results
from fastmlp.bench.workloads import Workload

SMALL = Workload("small", (4, 3, 2), 8)
EFFORT = measures.QUICK._replace(samples=1, seconds=0.0)


def test_a_copy_is_that_of_one_thread_or_of_all_and_a_call_of_numpys_holds_enough_of_it(monkeypatch):
    """Of copies that take a microsecond, threads would measure how they take turns in Python's code."""
    called = []

    def copyto(target, source):
        called.append((threading.get_ident(), target.size))
        target[...] = source

    def once(work, effort):
        work()
        return [1.0]

    monkeypatch.setattr(limits, "COPIED", {"cpu": (1 << 14, 1 << 18)})
    monkeypatch.setattr(limits, "SIDE", {"cpu": 4})
    monkeypatch.setattr("fastmlp.backends.cpu.limits.default_threads", lambda: 3)
    monkeypatch.setattr(limits, "_samples", once)
    monkeypatch.setattr(np, "copyto", copyto)
    found = limits.measure("cpu", "float32", EFFORT)["copies"]
    assert [size for size, _ in found] == [1 << 14, 1 << 18]
    assert len(called) == 2 * (1 + 3)
    assert all(2 * copied >= limits.WORK >= 1 << 25 for _, copied in called)
    for (_, (alone, all_threads)), copied in zip(found, called[::4], strict=True):
        assert alone == 2 * copied[1]  # in the one second that it is said to have taken
        assert all_threads == pytest.approx(3 * alone, rel=0.01)


def test_a_copy_reaches_all_that_it_is_to_write():
    work = limits._copying(1000, 3)
    work()
    windows = inspect.getclosurevars(work).nonlocals["windows"]
    assert windows.shape == (3, 1000) and windows.all()


@needs_emulator
def test_a_launch_is_that_of_a_kernel_that_does_nothing():
    work = limits.launching(cupy_double)
    cupy_double.launches.clear()
    work()
    cupy_double.cuda.get_current_stream().synchronize()
    assert cupy_double.launches == [("nothing", (0, 0))]


def counted_step(units, batch, moments):
    """Count multiply-adds and numbers moved one by one."""
    multiplied = moved = 0
    for layer, (i, o) in enumerate(itertools.pairwise(units)):
        for _ in range(batch * i * o):
            multiplied += 1 + 1 + (layer > 0)  # outputs, gradients of weights, gradients of inputs
        moved += 2 * batch * o + 2 * batch * o  # activations and their gradients, each written and read
        moved += (1 + 1 + moments) * 2 * (i * o + o)  # parameters, gradients and moments, each written and read
    return 2 * multiplied, moved + batch * units[0]


@pytest.mark.parametrize("moments", [0, 1, 2])
def test_the_cost_of_a_step_is_what_is_counted_one_by_one(moments):
    operations, moved = counted_step((5, 4, 3, 2), 6, moments)
    assert costs.of_step((5, 4, 3, 2), 6, 8, moments) == (operations, 8 * moved)


def test_the_cost_of_a_prediction_is_what_is_counted():
    assert costs.of_rows((5, 4, 3), 7, 4) == (2 * 7 * (20 + 12), 4 * (7 * 5 + 2 * 7 * (4 + 3) + 20 + 12 + 4 + 3))


def machine(**changes):
    return limits.Limits(100e9, ((1e6, 80e9), (1e8, 20e9)), 0.0)._replace(**changes)


def test_the_limit_is_the_longest_of_products_memory_and_launch():
    assert machine().least_seconds(costs.Cost(100e9, 1e6)) == (pytest.approx(1.0), "products")
    assert machine().least_seconds(costs.Cost(1e6, 40e9)) == (pytest.approx(2.0), "memory")
    assert machine(launch=3e-6).least_seconds(costs.Cost(1e3, 1e3)) == (pytest.approx(3e-6), "launch")


def test_bandwidth_is_that_of_arrays_of_the_size():
    found = [machine().bandwidth(size) for size in (1e3, 1e6, 1e7, 1e8, 1e12)]
    assert found == pytest.approx([80e9, 80e9, 40e9, 20e9, 20e9])
    assert machine().memory == 20e9


def test_a_limit_is_the_best_of_all_rounds():
    rounds = [
        {"product": [3.0, 1.0], "copies": [[64, [1.0]], [128, [5.0]]], "launch": [0.3]},
        {"product": [2.0], "copies": [[64, [2.0, 1.0]], [128, [4.0]]], "launch": [0.2]},
    ]
    assert limits.best_of(rounds) == (3.0, ((64.0, 2.0), (128.0, 5.0)), 0.2)


def test_sweeps_change_one_thing():
    base = workloads.WORKLOADS["viblo"]
    batches = workloads.sweep(base, "batch", 2)
    assert [w.batch for w in batches] == [w.swept for w in batches] == list(workloads.BATCHES)
    assert {w.units for w in batches} == {base.units}
    assert [w.units for w in workloads.sweep(base, "depth", 2)][1] == (784, 64, 64, 10)
    assert next(w.units for w in workloads.sweep(base, "width", 2)) == (784, 16, 16, 10)
    assert [w.threads for w in workloads.sweep(base, "threads", 6)] == [1, 2, 4, 6]
    with pytest.raises(ValueError, match="has no hidden layers"):
        workloads.sweep(replace(base, units=(3, 2)), "width", 1)
    with pytest.raises(ValueError, match="is that of a file"):
        workloads.sweep(replace(base, model="a.safetensors"), "depth", 1)


def test_rows_follow_from_the_seed_and_make_whole_batches():
    a, b, c = (workloads.rows_of(SMALL, SMALL.spec(), 1e4, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.x, b.x)
    assert not np.array_equal(a.x, c.x)
    assert len(a.x) == len(a.y) == a.steps * SMALL.batch
    assert (a.x.dtype, a.y.dtype, len(a.many)) == (np.float32, np.int64, 277)  # 1e4 / (2 * 18)
    double = workloads.rows_of(replace(SMALL, dtype="float64"), SMALL.spec(), 1e4, 0)
    assert double.x.dtype == np.float64


@pytest.mark.parametrize("name", ["viblo", "mid", "big"])
@pytest.mark.parametrize("effort", [measures.QUICK, measures.FULL])
def test_an_epoch_of_a_gpu_is_long_and_fits_the_rows(name, effort):
    """In seconds that a step took on an H200."""
    workload = workloads.WORKLOADS[name]
    seconds = {"viblo": 29e-6, "mid": 67e-6, "big": 336e-6}[name]
    steps, there = (
        workloads.steps_of_an_epoch(workload.units, workload.batch, effort.operations, device)
        for device in ("cpu", "cuda")
    )
    assert 0.005 < there * seconds < 0.1
    assert steps <= there <= min(workloads.MOST_STEPS, workloads.ROWS // workload.batch)
    many = workloads.predicted_rows(workload.units, effort.operations, "cuda")
    assert workloads.predicted_rows(workload.units, effort.operations) <= many <= workloads.ROWS
    assert many > 50_000
    if effort is measures.QUICK:  # who launches every kernel by itself takes a millisecond a step
        assert there <= 500


@pytest.mark.parametrize("name", workloads.RATES)
def test_each_optimizer_has_a_record(name):
    record = replace(SMALL, optimizer=name).optimizer_record()
    assert record.name == {"momentum": "sgd"}.get(name, name)
    assert getattr(record, "momentum", 0.0) == (0.9 if name == "momentum" else 0.0)
    assert record.learning_rate == workloads.RATES[name]


def test_the_share_of_the_limit_is_that_of_the_cost():
    case = Case(SMALL, "numpy", "fastmlp numpy", "cpu", [{"train": [1e-6] * 3, "predict": [1e-7] * 3}], moments=2)
    found = Results("", "", 0, 1, None, {}, {}, None, cases=[case])
    assert found.share(case, "train") is None  # no limit was measured
    found.limits["cpu float32"] = [{"product": [1e9], "copies": [[1000, [1e12]], [2000, [1e12]]], "launch": [0.0]}]
    operations = counted_step((4, 3, 2), 8, 2)[0]
    assert found.share(case, "train") == (pytest.approx(operations / 1e9 / 1e-6), "products")
    assert found.share(case, "predict") == (pytest.approx(2 * 18 / 1e9 / 1e-7), "products")
    assert found.share(case, "row") is None
    found.limits["cpu float32"][0].update(product=[1e15], copies=[[1, [1e9]], [2, [1e9]]])
    shares = []
    for case.many in (1, 1000):  # of the weights, read once a call, each row has its part
        share, what = found.share(case, "predict")
        shares.append(share * 1e-7 * 1e9)
        assert what == "memory"
    assert shares == pytest.approx([4 * (4 + 2 * 5 + 18 + 5), 4 * (4 + 2 * 5 + 0.023)])
