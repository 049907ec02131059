"""Which way of steps a run takes: tried on its own steps and kept, or the rule's; too wide networks."""

import json
import logging
from pathlib import Path

import cupy_double
import numpy as np
import pytest
from compare import assert_same_bits
from emulator import needs_emulator
from gpu_arrays import make, model_on, rows, train
from scenarios import Scenario

import fastmlp
from fastmlp.backends import contest, decisions, registry
from fastmlp.backends.cuda import choice as cupy_choice
from fastmlp.backends.cuda import kept, probe
from fastmlp.backends.cuda import step as cupy_step
from fastmlp.backends.cuda import trial as cupy_trial
from fastmlp.backends.cuda.step import GRAPH_STEPS
from fastmlp.backends.decisions import steps_key
from fastmlp.doctor import checkup, looks
from fastmlp.formulas.optimizers import SGD, Adam

pytestmark = [needs_emulator, pytest.mark.cuda_host, pytest.mark.usefixtures("cupy_is_its_double")]

FAST = {"launch": 1e-4, "product": 1e-4}
"""Milliseconds of eager launches where eager steps are the faster ones; by themselves captured ones are."""


def way_of(model):
    (session,) = (s for s in model._learner.sessions._idle if s.plan.optimizer is not None)
    return session.choices()["way"]


@pytest.fixture
def time(monkeypatch):
    """Return what sets the milliseconds that a kind of work takes on the double."""

    def takes(**milliseconds):
        for kind, value in milliseconds.items():
            monkeypatch.setitem(cupy_double.milliseconds, kind, value)

    return takes


@pytest.fixture
def samples(monkeypatch):
    """Keep (way, steps, whether it counts, graphs captured meanwhile) of each sample of a trial."""
    found, graphs = [], []
    sample, capture = contest.Contender.sample, cupy_step.TrainingStep._captured_steps

    def watched(self, steps, *, counts=True):
        before = len(graphs)
        seconds = sample(self, steps, counts=counts)
        found.append((self.way, steps, counts, len(graphs) - before))
        return seconds

    monkeypatch.setattr(contest.Contender, "sample", watched)
    monkeypatch.setattr(
        cupy_step.TrainingStep, "_captured_steps", lambda self, *a: graphs.append(a) or capture(self, *a)
    )
    return found


# --- a trial --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["captured", "eager"])
@pytest.mark.parametrize(("launch", "fastest"), [(5e-3, "captured"), (1e-4, "eager")])
def test_the_way_that_is_the_faster_on_the_device_is_taken_said_and_kept(
    rule, launch, fastest, ways_are_tried, time, monkeypatch, caplog
):
    time(launch=launch, product=launch)
    monkeypatch.setattr(cupy_choice, "CROSSING", 0.0 if rule == "eager" else 1e99)
    model = model_on(make("auto"))
    with caplog.at_level(logging.INFO, "fastmlp"):
        train(model, *rows(), epochs=1)
    assert way_of(model) == fastest
    (line,) = [r for r in caplog.records if "by the rule" in r.getMessage()]
    operations, ruled, by_rule, best, taken = line.args
    assert (operations, by_rule, taken) == (6 * 4 * (6 * 7 + 7 * 3), rule, fastest)
    # single graphs; of 9 nodes and the one that advances 2 run beside others
    expected = {"captured": 1e-3 * (9 + 1 - 2), "eager": launch * eager_launches()}
    assert ruled == pytest.approx(expected[rule], rel=1e-3)
    assert best == pytest.approx(expected[fastest], rel=1e-3)
    (path,) = ways_are_tried.iterdir()
    written = json.loads(path.read_text())
    assert written["machine"] == kept.machine(cupy_double)
    ((key, decision),) = written["decided"].items()
    assert "6-7-3, batch 4" in key and decision == {"way": fastest}


def eager_launches():
    backend = make("eager")
    scenario = Scenario("", (6, 7, 3), {"activation": "tanh"}, Adam(), batch=4)
    state, data = scenario.state(backend, "float32"), scenario.device_data(backend, "float32")
    step = cupy_choice.make_step(backend, scenario.plan("float32"), state, data, captured=False)
    return len(step.kernels())


@pytest.mark.parametrize("rule", ["captured", "eager"])
def test_no_capture_is_in_a_sample_that_tells_anything(rule, ways_are_tried, time, samples, monkeypatch):
    monkeypatch.setattr(cupy_choice, "CROSSING", 0.0 if rule == "eager" else 1e99)
    launch = 6e-3 / eager_launches()  # so that both ways take about as long
    time(launch=launch, product=launch)
    monkeypatch.setattr(contest, "SAMPLE_SECONDS", 1e-4)
    train(model_on(make("auto")), *rows(36), epochs=1, batch_size=2)
    counted = [s for s in samples if s[2]]
    assert {s[0] for s in counted} == {"captured", "eager"}
    assert min(s[1] for s in counted) >= GRAPH_STEPS and not any(s[3] for s in counted)
    assert samples[0][0] == rule
    others = [s for s in samples if s[0] != rule]
    tells = [s[2] for s in others].index(True) - 1  # whether it is hopeless
    assert not any(s[3] for s in others[tells:])
    assert sum(s[3] for s in samples) == 2  # a short graph and a long one


def test_a_decision_holds_for_later_fits_and_processes(ways_are_tried, time, samples):
    time(**FAST)
    backend = make("auto")
    for _ in range(2):
        train(model_on(backend), *rows())
    count = len(samples)
    assert count
    later = model_on(make("auto"))  # as in another process
    decisions._known.clear()
    train(later, *rows())
    assert way_of(later) == "eager" and len(samples) == count
    train(model_on(backend), *rows(), batch_size=5)
    train(model_on(backend, dtype="float64"), *rows())
    assert len(samples) == 3 * count
    assert len(list(ways_are_tried.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{",
        lambda text: text.replace('"eager"', '"sideways"'),
        lambda text: text.replace("double of a GPU", "double of another"),
    ],
)
def test_a_damaged_decision_is_made_anew(ways_are_tried, time, samples, damage):
    time(**FAST)
    train(model_on(make("auto")), *rows())
    (path,) = ways_are_tried.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    decisions._known.clear(), samples.clear()
    model = model_on(make("auto"))
    train(model, *rows())
    assert samples and way_of(model) == "eager"
    assert path.read_text() == whole


def test_what_another_process_found_meanwhile_stands(ways_are_tried, time):
    train(model_on(make("auto")), *rows())
    (path,) = ways_are_tried.iterdir()
    path.write_text(path.read_text().replace('"captured"', '"eager"'))
    decisions._known[path].clear()  # as a process that looked before the other one wrote
    model = model_on(make("auto"))
    train(model, *rows())
    assert way_of(model) == "eager"


def test_another_model_has_found_it_meanwhile(ways_are_tried, samples, monkeypatch):
    backend = make("auto")
    model = model_on(backend)
    with monkeypatch.context() as short:
        short.setattr(contest, "SHARE", 0.0)
        train(model, *rows())
    made = backend.decisions(cupy_choice.STEPS, np.dtype("float32"))
    (session,) = model._learner.sessions._idle
    made.keep(steps_key(session.plan), {"way": "eager"})
    train(model, *rows())
    assert way_of(model) == "eager" and not samples


def test_what_was_decided_on_a_gpu_is_told_by_info_and_by_the_doctor(ways_are_tried, time, monkeypatch):
    train(model_on(make("auto")), *rows())
    time(**FAST)
    train(model_on(make("auto")), *rows(), batch_size=5)
    monkeypatch.setattr(probe, "cuda_availability", lambda: registry.Availability(True, "the double"))
    monkeypatch.setattr(probe, "cupy_wheels", lambda: ["cupy-cuda12x", "cupy-cuda13x"])
    for facts in (checkup.in_short(), looks.LOOKS["cuda"]().facts):
        told = facts["training steps on the GPU, float32"]
        assert sorted((key.split(", ")[1], way) for key, way in told) == [("batch 4", "captured"), ("batch 5", "eager")]
        assert all(key.startswith("6-7-3, ") for key, _ in told)
        assert "training steps on the GPU, float64" not in facts  # nothing was tried


def test_what_is_kept_holds_for_one_gpu_its_driver_and_one_text_of_the_kernels(ways_are_tried, monkeypatch):
    def path():
        return kept.kept_path("steps", kept.machine(cupy_double))

    found, runtime = [path()], cupy_double.cuda.runtime
    assert found[0].parent == ways_are_tried
    monkeypatch.setattr(runtime, "getDeviceProperties", lambda device: {"name": b"another"})
    found.append(path())
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: 13010)
    found.append(path())
    monkeypatch.setattr(cupy_double, "__version__", "99.0", raising=False)
    found.append(path())
    monkeypatch.setattr(kept, "_stamp", lambda: "other kernels")
    found.append(path())
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")  # cuBLAS is faster
    found.append(path())
    assert len(set(found)) == len(found)


def test_it_lies_where_cupy_keeps_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    assert kept.kernel_folder() == tmp_path
    for unset in (lambda: monkeypatch.setenv("CUPY_CACHE_DIR", ""), lambda: monkeypatch.delenv("CUPY_CACHE_DIR")):
        unset()
        assert kept.kernel_folder() == Path.home() / ".cupy" / "kernel_cache"


def test_on_a_busy_machine_nothing_is_decided_nor_asked_for_ever(ways_are_tried, time, samples, monkeypatch):
    time(**FAST)
    monkeypatch.setattr(contest, "UNSTEADY", 0.5)
    monkeypatch.setattr(contest, "FAR", 1e9)
    asked = []
    for _ in range(contest.MOST_TRIALS + 1):
        model = model_on(make("auto"))
        train(model, *rows())
        asked.append(len(samples))
        samples.clear()
        assert way_of(model) == "captured"
    assert all(asked[:-1]) and not asked[-1]
    assert not ways_are_tried.exists()


def test_a_short_run_is_not_tried_and_a_longer_one_after_it_is(ways_are_tried, time, samples, monkeypatch):
    time(**FAST)
    model, (x, y) = model_on(make("auto")), rows()
    with monkeypatch.context() as short:
        short.setattr(contest, "SHARE", 0.2)
        train(model, x, y, optimizer=SGD(0.1))
        assert not samples and way_of(model) == "captured"
    # goes eagerly from its first step on
    train(model, x, y, optimizer=SGD(0.1))
    assert samples and way_of(model) == "eager"
    right = model_on(make("captured"))
    train(right, x, y, optimizer=SGD(0.1))
    right.to(make("eager"))
    train(right, x, y, optimizer=SGD(0.1))
    for a, b in zip(model.get_weights(), right.get_weights(), strict=True):
        assert_same_bits(a, b)


def test_what_a_session_knows_of_its_steps_tells_whether_a_trial_is_worth_it(ways_are_tried, samples, monkeypatch):
    monkeypatch.setattr(contest, "SHARE", 0.2)
    monkeypatch.setattr(contest, "SAMPLE_SECONDS", 1e-2)
    model, (x, y) = model_on(make("auto")), rows()
    train(model, x, y, epochs=1)
    (session,) = model._learner.sessions._idle
    for seconds, tried in ((1e-9, False), (1.0, True)):
        session.seconds_per_step = seconds
        train(model, x, y, epochs=12)  # 72 steps
        assert bool(samples) == tried


@pytest.mark.parametrize(("count", "batch"), [(12, 4), (5, 4)])
def test_a_sample_of_more_steps_than_an_epoch_has_takes_several_calls(
    count, batch, ways_are_tried, samples, monkeypatch
):
    """The memory of steps on a GPU is for the order of an epoch, and of no more rows."""
    monkeypatch.setattr(contest, "SAMPLE_SECONDS", 1e-4)
    train(model_on(make("auto")), *rows(count), batch_size=batch)
    assert max(s[1] for s in samples if s[2]) > 5 and list(ways_are_tried.iterdir())


def test_steps_of_fewer_rows_than_a_batch_are_of_all_that_there_are(ways_are_tried):
    """So where a trial looks at a part of the data alone."""
    backend, scenario = make("captured"), Scenario("", (4, 3, 2), {"activation": "tanh"}, SGD(0.1), rows=3, batch=4)
    session, state = backend.open(scenario.plan("float32")), scenario.state(backend, "float32")
    data, table = scenario.device_data(backend, "float32"), scenario.table(0, 0, "float32")
    before = state.step
    assert contest.steps_on(backend, session, state, data, table)(3) > 0
    assert state.step == before + 3


def test_a_fault_in_a_trial_is_told_as_one_of_training(ways_are_tried, monkeypatch):
    take = contest.Contender.sample

    def faulty(self, *args, **options):
        cupy_double.faults["update_parameters"] = None
        return take(self, *args, **options)

    monkeypatch.setattr(contest.Contender, "sample", faulty)
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


def test_a_wide_network_is_neither_proven_nor_tried_and_its_memory_is_that_of_eager_steps(
    low, ways_are_tried, monkeypatch, caplog
):
    monkeypatch.setattr(cupy_choice, "prove", lambda *_: pytest.fail("proven"))
    monkeypatch.setattr(cupy_trial, "decide", lambda *_: pytest.fail("tried"))
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


def test_a_network_just_below_is_tried(low, ways_are_tried, samples):
    train(model_on(make("auto")), *rows(), batch_size=3)
    assert samples


def test_captured_steps_that_are_asked_for_are_proven_however_wide(low, monkeypatch):
    proofs, prove = [], cupy_choice.prove
    monkeypatch.setattr(cupy_choice, "prove", lambda *a: proofs.append(a) or prove(*a))
    backend = make("captured")
    train(model_on(backend), *rows())
    assert len(proofs) == 1
    assert list(backend._ways.values()) == ["captured"]


def test_until_a_trial_the_number_of_operations_tells_the_way(monkeypatch):
    for crossing, way in ((1e99, "captured"), (0.0, "eager")):
        monkeypatch.setattr(cupy_choice, "CROSSING", crossing)
        model = model_on(make("auto"))
        train(model, *rows(), epochs=1)
        assert way_of(model) == way and not model.backend._ways


def test_ways_that_do_not_fit_beside_each_other_are_left_to_the_rule(ways_are_tried, monkeypatch, samples):
    made, kinds = cupy_choice.make_step, []

    def scarce(*args, captured, **options):
        kinds.append(captured)
        if samples and not captured:
            raise MemoryError("planted")
        return made(*args, captured=captured, **options)

    monkeypatch.setattr("fastmlp.backends.cuda.backend.make_step", scarce)
    model = model_on(make("auto"))
    train(model, *rows())
    assert False in kinds and way_of(model) == "captured"
    assert not ways_are_tried.exists()
    assert np.isfinite(model.get_weights()[0]).all()
