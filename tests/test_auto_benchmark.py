"""What the benchmark of `backend="auto"` calls too much, which epochs it counts, and what it takes for a trial."""

import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path

import cupy_double
import pytest

import fastmlp
from fastmlp.backends import registry
from fastmlp.backends.cpu import trial
from fastmlp.backends.cuda import backend as cuda_backend
from fastmlp.backends.cuda import tested
from fastmlp.backends.cuda import trial as cuda_trial
from fastmlp.backends.session import Ahead
from fastmlp.doctor import selftest
from fastmlp.engine import runs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def auto(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("auto")


def test_ten_shapes_from_4_8_2_to_4096_wide(auto):
    assert len(auto.SHAPES) == 10
    assert next(iter(auto.SHAPES.values())).units == (4, 8, 2)
    assert max(max(workload.units) for workload in auto.SHAPES.values()) == 4096
    assert auto.TOTAL < 240


def test_samples_are_whole_epochs_after_the_first_and_long_enough(auto):
    ends = [5.0, 5.004, 5.008, 5.012, 5.022, 5.03]  # the first has taken 5 s
    assert auto.samples(ends, 10) == pytest.approx([0.012 / 30, 0.010 / 10])
    assert auto.samples([5.0, 5.001, 5.002], 10) == pytest.approx([1e-4])


@pytest.mark.parametrize(
    ("own", "trial_seconds", "expected", "word", "too_much"),
    [
        (1.05, 0.4, 3.0, "no difference seen", False),
        (1.2, 0.4, 3.0, "slower", True),
        (1.0, 0.6, 3.0, "no difference seen", True),
        (1.0, 0.6, 31.0, "no difference seen", False),  # 2 % of the run
        (0.5, 0.0, 3.0, "faster", False),
    ],
)
def test_too_much_is_a_slower_step_or_a_long_trial(auto, own, trial_seconds, expected, word, too_much):
    def ran(step, spent=0.0):
        return auto.Ran("numba", [step * (1 + i / 1e4) for i in range(8)], spent, 2.0, expected)

    found = {"auto": [ran(own), ran(own, trial_seconds)], "numpy": [ran(3.0)] * 2, "numba": [ran(1.0)] * 2}
    cells, is_too_much = auto.judged("tiny", found)
    assert (cells[0], cells[1], cells[5], is_too_much) == ("4-8-2, 32", "numba", word, too_much)
    assert cells[3].startswith("numba 1.00 s") and cells[7] == "2.00 s" and len(cells) == len(auto.HEAD)
    assert auto.judged("tiny", {**found, "auto": []}).too_much


def test_a_run_tells_its_steps_and_what_its_trials_took(auto, monkeypatch):
    tried = []

    def settle(*_):
        tried.append(time.sleep(0.05 if len(tried) > 2 else 0.4))
        return 0.02

    monkeypatch.setattr(runs, "settle", settle)
    workload = replace(auto.SHAPES["tiny"], batch=512)
    ran = auto.trained(workload.to_dict(), "numpy", 0.05)
    assert ran.backend == "numpy"
    assert all(0 < step < 0.1 for step in ran.steps)
    assert ran.expected > 2 * max(ran.steps) * auto.rows_of(workload, workload.spec(), auto.OPERATIONS, 0).steps
    assert len(tried) == 4 and 0.02 <= ran.trial < 0.4 and 0.025 < ran.started < 0.35  # of the last run alone
    with auto.tried() as (spent, started):
        for way in (trial, cuda_trial):
            with pytest.raises(AttributeError):
                way.decide(None, None, None, None, None, Ahead(1))
    assert len(spent) == 2 and not started


@pytest.mark.parametrize("seconds", [1e-4, 2e-3])
def test_a_run_is_expected_to_take_as_long_on_any_processor(auto, seconds, monkeypatch):
    """Else a fast one would not try a GPU, for which a run has to be long."""
    asked = []
    monkeypatch.setattr(auto, "epoch_seconds", lambda *given: seconds)
    monkeypatch.setattr(fastmlp.MLP, "fit", lambda self, *rows, epochs, **options: asked.append(epochs))
    with pytest.raises(IndexError):  # since no epoch has ended
        auto.trained(auto.SHAPES["tiny"].to_dict(), "numpy", 0.05)
    assert asked == [1, round(auto.EXPECTED / seconds)]


def test_nothing_that_was_decided_is_known_to_a_process(auto, monkeypatch):
    asked = []

    def raced(target, variables, **given):
        cache = Path(variables["NUMBA_CACHE_DIR"])
        assert variables["FASTMLP_BACKEND"] is None and target == "auto:trained"
        asked.append((given["backend"], sorted(file.name for file in cache.rglob("*"))))
        for name in ("steps-a-float32.json", "backends-a-float32.json", "threads-a-float32.json", "kernel.nbc"):
            (cache / name).touch()
        there = Path(variables["CUPY_CACHE_DIR"])
        assert there.is_relative_to(cache)  # what is decided on a GPU lies there
        there.mkdir(exist_ok=True)
        (there / "fastmlp-steps-float32-a.json").touch()
        return ["numba", [1.0], 0.0, 0.0, 1.0]

    monkeypatch.setattr(auto, "raced", raced)
    monkeypatch.setattr(auto, "said_of_test", lambda environment: "")
    found, left_out = auto.race(["tiny"], 2, 0.1)
    kept = ["cupy", "kernel.nbc", "threads-a-float32.json"]
    assert asked[0] == ("auto", []) and all(files == kept for _, files in asked[1:])
    assert [backend for backend, _ in asked[1:]] == list(found["tiny"]) * 2 and left_out == ""
    monkeypatch.setattr(auto, "TOTAL", -1.0)
    found, left_out = auto.race(["tiny"], 1, 0.1)
    assert left_out == f"{len(found['tiny'])} runs were left out, for which no time was left"


@pytest.mark.parametrize("failing", [(), ("memory", "race"), None])
def test_a_gpu_is_tested_first_and_keeps_its_mark_where_it_passes(auto, failing, monkeypatch, tmp_path):
    """On the double of CuPy; in this process, where the script has one of its own for each."""
    asked = []

    def raced(target, variables, **given):
        with monkeypatch.context() as patch:
            patch.setenv("CUPY_CACHE_DIR", variables["CUPY_CACHE_DIR"])
            asked.append((target.partition(":")[2], tested.selftest_passed()))
            if target == "auto:tested":
                return None if failing is None else auto.tested()
        return ["numba", [1.0], 0.0, 0.0, 1.0]

    def run_stage(stage, backend):
        assert backend == "cupy"
        return selftest.Outcome(stage, stage not in failing, 100.0, "")

    monkeypatch.setattr(cuda_backend, "probe", lambda: registry.Availability(True, "the double of CuPy"))
    monkeypatch.setitem(sys.modules, "cupy", cupy_double)
    monkeypatch.setattr(selftest, "get_backend", lambda name: None)
    monkeypatch.setattr(selftest, "run_stage", run_stage)
    monkeypatch.setattr(auto, "raced", raced)
    found, said = auto.race(["tiny"], 1, 0.1)
    passed = failing == ()
    assert asked[:2] == [("tested", False), ("trained", passed)]
    assert asked[2:] == [("trained", passed)] * len(found["tiny"]) and "cupy" in found["tiny"]
    text, _ = auto.table(["tiny"], found, said)
    because = {(): "", ("memory", "race"): "failed: memory, race", None: "ended with an error"}[failing]
    assert ("The self-test of the GPU" in text) != passed and because in text
