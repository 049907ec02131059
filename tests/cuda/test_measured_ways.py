"""How both ways of steps are timed at a first fit, and which networks are too wide to gain anything by a capture."""

import logging

import cupy_double
import numpy as np
import pytest
from emulator import needs_emulator
from gpu_arrays import make, model_on, rows, train
from scenarios import Scenario

import fastmlp
from fastmlp.backends.cuda import choice as cupy_choice
from fastmlp.backends.cuda import step as cupy_step
from fastmlp.backends.cuda.step import GRAPH_STEPS
from fastmlp.formulas.optimizers import Adam

pytestmark = [needs_emulator, pytest.mark.cuda_host, pytest.mark.usefixtures("cupy_is_its_double")]


# --- timing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def samples(monkeypatch):
    """Keep (captured, steps of a round, rounds, milliseconds a step, graphs made meanwhile) of all that is timed."""
    found, timed = [], cupy_step.TrainingStep.timed

    def counting(self, order, table, rounds):
        before = len(self._graphs)
        time = timed(self, order, table, rounds)
        found.append((self._captured, len(table), rounds, time, len(self._graphs) - before))
        return time

    monkeypatch.setattr(cupy_step.TrainingStep, "timed", counting)
    return found


def test_each_way_is_warmed_and_then_timed_in_turns_for_50_ms(samples, monkeypatch):
    monkeypatch.setattr(cupy_choice, "SAMPLES", 5)
    monkeypatch.setattr(cupy_choice, "SAMPLE_MILLISECONDS", 10.0)
    for kind, time in {"launch": 0.05, "replay": 0.2, "product": 0.02}.items():
        monkeypatch.setitem(cupy_double.milliseconds, kind, time)
    train(model_on(make("auto")), *rows(36), epochs=1, batch_size=2)
    warming, timing = samples[:4], samples[4:]
    assert [s[0] for s in warming] == [True, True, False, False]
    assert [s[4] for s in warming] == [1, 0, 0, 0]  # the long graph, alone
    assert [s[0] for s in timing] == [True, False] * 5
    assert all(steps == GRAPH_STEPS for _, steps, *_ in samples)
    for captured in (True, False):
        assert sum(s[1] * s[2] * s[3] for s in timing if s[0] == captured) >= 50
    assert not any(s[4] for s in timing)


def test_steps_of_microseconds_are_timed_for_as_long(samples, monkeypatch):
    monkeypatch.setattr(cupy_choice, "SAMPLE_MILLISECONDS", 2.0)
    for kind in cupy_double.milliseconds:
        monkeypatch.setitem(cupy_double.milliseconds, kind, 3e-3)
    train(model_on(make("auto")), *rows(36), epochs=1, batch_size=2)
    for captured, steps, rounds, once, _ in samples[-2:]:
        assert steps * once < 1, captured  # a round
        assert steps * rounds * once >= 2, captured


def test_what_happens_once_is_in_no_figure(samples, monkeypatch, caplog):
    """A first launch that takes a second, and one sample that something else disturbs."""
    timed, calls = cupy_step.TrainingStep.timed, []
    monkeypatch.setattr(cupy_choice, "SAMPLES", 3)

    def disturbed(self, *args):
        calls.append(self._captured)
        time = timed(self, *args)
        return time + 1e3 * (calls.count(self._captured) in (1, 4))

    monkeypatch.setattr(cupy_step.TrainingStep, "timed", disturbed)
    with caplog.at_level(logging.INFO, "fastmlp"):
        train(model_on(make("auto")), *rows())
    (line,) = [r for r in caplog.records if "captured and" in r.getMessage()]
    assert max(line.args[1:3]) < 1


def test_a_fault_while_steps_are_timed_is_told_as_one_of_training(monkeypatch):
    timed = cupy_step.TrainingStep.timed

    def faulty(self, *args):
        cupy_double.faults["update_parameters"] = None
        return timed(self, *args)

    monkeypatch.setattr(cupy_step.TrainingStep, "timed", faulty)
    try:
        with pytest.raises(fastmlp.KernelError, match=r"a training step fails on this GPU \(cudaErrorIllegalAddress"):
            train(model_on(make("auto")), *rows())
    finally:
        cupy_double.faults.clear()
        cupy_double.poison.clear()


# --- wide networks --------------------------------------------------------------------------------------------------


def plan_of(units, batch, dtype):
    return Scenario("", units, {"activation": "relu"}, Adam(), batch=batch).plan(dtype)


@pytest.mark.parametrize(
    ("units", "batch", "dtype", "surely"),
    [
        ((784, 64, 32, 10), 32, "float32", False),
        ((784, 1024, 1024, 10), 1024, "float32", False),  # measured: either may win
        ((784, 1024, 1024, 10), 4096, "float32", False),
        ((8192, 8192, 10), 1024, "float32", True),
        ((784, 512, 256, 10), 128, "float64", False),
        ((784, 1024, 1024, 10), 1024, "float64", False),
        ((784, 1024, 1024, 10), 4096, "float64", False),
        ((8192, 8192, 10), 1024, "float64", True),
    ],
)
def test_what_is_measured_on_a_device_is_left_to_measurement(units, batch, dtype, surely):
    assert cupy_choice.surely_eager(plan_of(units, batch, dtype)) == surely


@pytest.fixture
def low(monkeypatch):
    """Let every network here be a wide one."""
    operations = cupy_choice.step_operations(plan_of((6, 7, 3), 4, "float32"))
    monkeypatch.setattr(cupy_choice, "EAGER_FROM", operations)


def test_a_wide_network_is_neither_proven_nor_timed_and_its_memory_is_that_of_eager_steps(low, monkeypatch, caplog):
    monkeypatch.setattr(cupy_choice, "prove", lambda *_: pytest.fail("proven"))
    monkeypatch.setattr(cupy_choice, "measure", lambda *_: pytest.fail("timed"))
    x, y = rows()
    backend = make("auto")
    with caplog.at_level(logging.INFO, "fastmlp"):
        train(model_on(backend), x, y)
    assert list(backend._ways.values()) == ["eager"]
    assert "run eagerly: captured ones would gain nothing" in caplog.text
    monkeypatch.setattr(type(backend), "multiprocessors", 132)
    x, y = rows(2048)
    found = {way: model_on(make(way)).memory_estimate(x, y, batch_size=2048) for way in ("auto", "captured", "eager")}
    assert found["auto"] == found["eager"] != found["captured"]


def test_a_network_just_below_is_timed(low, monkeypatch):
    calls, measure = [], cupy_choice.measure
    monkeypatch.setattr(cupy_choice, "measure", lambda *a: calls.append(a) or measure(*a))
    train(model_on(make("auto")), *rows(), batch_size=3)
    assert len(calls) == 1


def test_captured_steps_that_are_asked_for_are_proven_however_wide(low, monkeypatch):
    proofs, prove = [], cupy_choice.prove
    monkeypatch.setattr(cupy_choice, "prove", lambda *a: proofs.append(a) or prove(*a))
    backend = make("captured")
    train(model_on(backend), *rows())
    assert len(proofs) == 1
    assert list(backend._ways.values()) == ["captured"]


def test_ways_that_do_not_fit_beside_each_other_are_timed_one_after_the_other(monkeypatch):
    asked, measure = [], cupy_choice.measure

    def scarce(operations, plan, state, data, ways):
        asked.append(tuple(ways))
        if len(ways) > 1:
            return dict.fromkeys(ways, np.inf)
        return measure(operations, plan, state, data, ways)

    monkeypatch.setattr(cupy_choice, "measure", scarce)
    backend = make("auto")
    train(model_on(backend), *rows())
    assert asked == [("captured", "eager"), ("captured",), ("eager",)]
    assert list(backend._ways.values()) == ["captured"]
