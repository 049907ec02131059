"""What `fastmlp bench` is made of: when it says faster, what a sample is, what a machine can do, who is measured."""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp.bench import child, contenders, costs, limits, measures, running, verdicts, workloads
from fastmlp.bench.machine import commit
from fastmlp.bench.results import Case, Results, read
from fastmlp.bench.running import MeasuringError
from fastmlp.bench.workloads import Workload
from fastmlp.doctor.fresh import FreshProcessError, in_fresh_process
from fastmlp.errors import FileFormatError

SMALL = Workload("small", (4, 3, 2), 8)
TINY = measures.Effort(1, 2, seconds=0.0, operations=1.0, timeout=60.0, total=60.0, of_compilers=("train",))
RNG = np.random.default_rng(0)


# --- when a difference is one ---


@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        (range(200, 207), range(100, 107), verdicts.SLOWER),
        (range(100, 107), range(200, 207), verdicts.FASTER),
        (range(200, 206), range(100, 106), verdicts.FEW),  # 2 of 924 orders: not below 0.002
        (range(105, 112), range(100, 107), verdicts.NONE),  # apart, but by less than the factor
        ([1, 1, 1, 1, 9, 9, 9, 9, 9], [1, 1, 1, 1, 1, 9, 9, 9, 9], verdicts.NONE),  # nine times, but by chance
        ([5.0] * 20, [5.0] * 20, verdicts.NONE),
    ],
)
def test_a_difference_needs_a_factor_and_more_than_chance(one, other, word):
    assert verdicts.compare(list(one), list(other)).word == word


def test_the_factor_is_the_callers():
    one, other = [1.07 + i / 1000 for i in range(10)], [1.0 + i / 1000 for i in range(10)]
    assert verdicts.compare(one, other).word == verdicts.NONE
    assert verdicts.compare(one, other, 1.05).word == verdicts.SLOWER
    assert verdicts.compare(other, one, 1.05).word == verdicts.FASTER


def test_the_chance_is_the_share_of_orders_that_lie_as_far_apart():
    one, other = [1.0, 4.0, 5.0, 8.0], [2.0, 3.0, 6.0, 7.0, 9.0]

    def wins(a, b):
        return sum(x > y for x in a for y in b)

    values, middle = sorted(one + other), len(one) * len(other) / 2
    found = abs(wins(one, other) - middle)
    apart = [
        abs(wins(taken, [v for v in values if v not in taken]) - middle) >= found
        for taken in itertools.combinations(values, len(one))
    ]
    assert verdicts.compare(one, other).chance == pytest.approx(np.mean(apart))


def test_a_summary_is_the_median_and_the_quartiles():
    assert verdicts.summarize([5.0, 1.0, 2.0, 3.0, 4.0]) == (3.0, 2.0, 4.0, 5)


# --- what a sample is ---


class Clock:
    """A clock that a call of some work moves on."""

    def __init__(self, seconds):
        self.now, self.calls, self.seconds = 0.0, 0, seconds

    def work(self):
        self.now += self.seconds(self.calls)
        self.calls += 1

    def __call__(self):
        return self.now


def test_a_sample_lasts_long_enough_and_is_told_a_call():
    clock = Clock(lambda _: 3e-4)
    found = measures.take_samples(clock.work, 5, 100.0, clock=clock)
    assert found == pytest.approx([3e-4] * 5)
    calls = clock.calls
    measures.take_samples(clock.work, 6, 100.0, clock=clock)
    assert 0.01 <= (clock.calls - 2 * calls) * 3e-4 < 0.03  # one more sample


def test_samples_that_were_too_short_are_thrown_away():
    """Work that is slow at first and then quick: what was measured while few calls seemed enough does not count."""
    clock = Clock(lambda call: 0.02 if call < 2 else 1e-5)
    found = measures.take_samples(clock.work, 4, 100.0, clock=clock)
    assert found == pytest.approx([1e-5] * 4)


@pytest.mark.parametrize(("seconds", "count"), [(100.0, 20), (1.0, 4), (5.5, 6)])
def test_samples_end_with_the_time_but_are_enough_for_a_verdict(seconds, count):
    clock = Clock(lambda _: 1.0)
    assert len(measures.take_samples(clock.work, 20, seconds, clock=clock)) == count


def test_a_clock_that_stands_still_for_short_work_is_no_trouble():
    clock = Clock(lambda call: 0.0 if call < 1000 else 1e-3)
    assert measures.take_samples(clock.work, 3, 100.0, clock=clock)[1:] == pytest.approx([1e-3] * 2)


def test_peak_memory_is_that_of_the_process_and_of_no_other():
    """On Linux the system's own figure is that of the parent, where that is larger."""
    code = (
        "from fastmlp.bench.measures import peak_memory; a = peak_memory(); b = b'x' * (60 << 20); b = None; "
        "print(a, peak_memory())"
    )
    ballast = np.ones(8 << 20)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < ballast.nbytes
    assert 55 << 20 <= after - before < 70 << 20


# --- what a workload asks for, and what a machine gives ---


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


@pytest.mark.parametrize("name", workloads.RATES)
def test_each_optimizer_has_a_record(name):
    record = replace(SMALL, optimizer=name).optimizer_record()
    assert record.name == {"momentum": "sgd"}.get(name, name)
    assert getattr(record, "momentum", 0.0) == (0.9 if name == "momentum" else 0.0)
    assert record.learning_rate == workloads.RATES[name]


# --- processes ---


def task(name, **changes):
    return {"contender": name, "workload": {**SMALL.to_dict(), **changes}, "effort": TINY, "seed": 0}


def test_a_process_measures_everything():
    found = in_fresh_process("fastmlp.bench.child:of_contender", task("numpy"), timeout=60.0)
    assert list(found) == ["import", "first", "train", "predict", "row", "memory"]
    assert [len(samples) for samples in found.values()] == [1, 1, 2, 2, 2, 1]
    assert all(s > 0 for samples in found.values() for s in samples)
    assert found["train"][0] < found["first"][0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sklearn", "^the contender scikit-learn has no counterpart to the activation gelu"),
        ("nobody", "^ValueError: backend 'nobody' is not known"),
    ],
)
def test_why_a_contender_was_not_measured_is_told_in_its_own_words(name, said):
    ask = running._Asking(TINY, in_fresh_process)
    with pytest.raises(MeasuringError, match=said):
        ask("of_contender", task(name, activation="gelu"))


def test_memory_of_a_gpu_is_told_where_the_contender_knows_it(monkeypatch):
    made = contenders.own("numpy").make
    there = contenders.own("numpy")._replace(make=lambda *a: made(*a)._replace(device_memory=lambda: 7))
    monkeypatch.setattr(child, "contender", lambda name: there)
    found = child.of_contender("somebody", SMALL.to_dict(), TINY, 0)
    assert found["device"] == [7.0]
    assert list(child.of_contender("somebody", SMALL.to_dict(), TINY, 0, first_alone=True)) == ["import", "first"]


# --- a run ---


class Measuring:
    """In the place of processes: remembers who was asked, and fails where it is told to."""

    def __init__(self, failing=()):
        self.asked, self.failing = [], failing

    def __call__(self, target, task, *, timeout, environment=None):
        assert target.startswith("fastmlp.bench.child:") and timeout > 0
        if "device" in task:
            self.asked.append("limits")
            return {"product": [1e9], "copies": [[1000, [1e9]], [2000, [1e9]]], "launch": [0.0]}
        name, workload = task["contender"], task["workload"]["name"]
        cold = task.get("first_alone", False)
        self.asked.append(f"{'cold ' * cold}{workload} {name}")
        if name in self.failing or self.asked[-1] in self.failing:
            raise FreshProcessError("it is broken")
        if cold:
            assert not any(Path(environment[name]).exists() for name in contenders.CACHES)
            return {"import": [1.0], "first": [70.0]}
        return {m: [1.0 + len(self.asked) / 1e3] * 4 for m in measures.MEASURES if m != "cold"}


def run(ask, entrants=("numpy", "numba", "sklearn"), rounds=3, **changes):
    effort = TINY._replace(rounds=rounds, **changes)
    some = [SMALL, replace(SMALL, name="other", batch=4)]
    given = entrants if isinstance(entrants, dict) else dict.fromkeys(entrants)
    return running.run(some, given, effort, seed=7, command="fastmlp bench", ask=ask)


def test_contenders_take_turns_and_nobody_is_always_the_first():
    ask = Measuring()
    found = run(ask)
    first = ["small numpy", "small numba", "small sklearn", "other numpy", "other numba", "other sklearn"]
    second = ["small numba", "small sklearn", "small numpy", "other numba", "other sklearn", "other numpy"]
    assert ask.asked[:9] == ["tiny numba", "limits", *first, "limits"]
    assert ask.asked[9:15] == second
    assert ask.asked[-1] == "cold small numba" and len(ask.asked) == 2 + 3 * 7
    assert [len(case.rounds) for case in found.cases] == [3] * 6


def test_the_first_call_is_measured_once_with_nothing_compiled():
    found = run(Measuring())
    samples = {(case.workload.name, case.contender): case.samples("cold") for case in found.cases}
    assert samples.pop(("small", "numba")) == [70.0]
    assert set(map(tuple, samples.values())) == {()}
    assert found.cases[1].samples("first") != [70.0] * 3
    found = run(Measuring(failing=("cold small numba",)))
    words = "fastmlp numba: the first call with nothing compiled was not measured: it is broken"
    assert words in found.notes and found.failures == []


def test_who_fails_is_kept_with_the_reason_and_not_asked_again():
    ask = Measuring(failing=("sklearn",))
    found = run(ask, {"numpy": None, "sklearn": None, "cupy": "there is no GPU"})
    assert sum(a.endswith("sklearn") for a in ask.asked) == 2
    assert not any(a.endswith("cupy") for a in ask.asked)
    assert found.failures == ["not measured: scikit-learn: it is broken", "not measured: fastmlp cupy: there is no GPU"]


def test_failures_of_one_reason_are_told_together():
    found = run(Measuring())
    for case in found.cases:
        case.failure = {"fastmlp numba": None}.get(case.label, "too slow")
    found.cases[2].rounds = []
    assert found.failures == [
        "measured in fewer rounds: fastmlp numpy: too slow",
        "not measured: scikit-learn (small): too slow",
        "measured in fewer rounds: scikit-learn (other): too slow",
    ]


def test_a_run_that_measures_nothing_is_an_error():
    with pytest.raises(
        MeasuringError, match="not measured: scikit-learn: it is broken; not measured: fastmlp cupy: no GPU"
    ):
        run(Measuring(failing=("sklearn",)), {"sklearn": None, "cupy": "no GPU"})


def test_where_the_time_is_over_nobody_is_dropped_silently():
    with pytest.raises(MeasuringError, match="not measured: fastmlp numpy: no time was left of the 0 s"):
        run(Measuring(), ["numpy"], total=0.0)


def test_progress_counts_every_process():
    said, ask = [], Measuring()
    entrants = dict.fromkeys(("numpy", "numba", "sklearn"))
    running.run([SMALL], entrants, TINY._replace(rounds=2), seed=0, command="", ask=ask, said=said.append)
    assert len(said) == len(ask.asked) == running.processes_of([SMALL], entrants, TINY._replace(rounds=2))


@pytest.mark.parametrize(("load", "notes"), [(0.9, 0), (1.1, 1)])
def test_a_busy_machine_is_told(monkeypatch, load, notes):
    monkeypatch.setattr(running.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(running.os, "cpu_count", lambda: 2)
    assert len([note for note in run(Measuring(), ["numpy"]).notes if "busy" in note]) == notes


# --- results ---


def test_results_are_the_same_when_read_again(tmp_path):
    found = run(Measuring(failing=("numba",)))
    found.write(tmp_path / "results.json")
    again = read(tmp_path)
    assert again == found
    assert json.loads((tmp_path / "results.json").read_text())["seed"] == 7
    assert again.cases[0].samples("train") == found.cases[0].samples("train")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"format": 9}', "expected results of format 1, got 9; measure anew"),
        ('{"format": 1, "cases": [], "more": 1}', "TypeError"),
        ('{"format": 1, "cases": [{}]}', "KeyError"),
    ],
)
def test_a_file_that_holds_no_results_is_refused_by_name(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileFormatError, match=said) as caught:
        read(tmp_path / "a.json")
    assert str(caught.value).startswith(str(tmp_path / "a.json"))


def test_the_share_of_the_limit_is_that_of_the_cost():
    case = Case(SMALL, "numpy", "fastmlp numpy", "cpu", [{"train": [1e-6] * 3, "predict": [1e-7] * 3}], moments=2)
    found = Results("", "", 0, 1, None, {}, {}, None, cases=[case])
    assert found.share(case, "train") is None  # no limit was measured
    found.limits["cpu float32"] = [{"product": [1e9], "copies": [[1000, [1e12]], [2000, [1e12]]], "launch": [0.0]}]
    operations = counted_step((4, 3, 2), 8, 2)[0]
    assert found.share(case, "train") == (pytest.approx(operations / 1e9 / 1e-6), "products")
    assert found.share(case, "predict") == (pytest.approx(2 * 18 / 1e9 / 1e-7), "products")
    assert found.share(case, "row") is None


def git(folder, *words):
    identity = "-c", "user.name=a", "-c", "user.email=a@b"
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_the_commit_is_that_of_the_files_and_not_of_where_they_lie(tmp_path):
    (tmp_path / "__init__.py").write_text("a = 1\n")
    assert commit(tmp_path) is None
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "-m", "a")
    assert commit(tmp_path) is None  # a package installed within somebody's repository
    git(tmp_path, "add", "__init__.py")
    git(tmp_path, "commit", "-m", "b")
    head = commit(tmp_path)
    assert len(head) == 40
    (tmp_path / "__init__.py").write_text("a = 2\n")
    assert commit(tmp_path) == f"{head}, with changes"


def test_the_child_imports_nothing_before_what_it_times():
    """What a contender's import takes would be too little otherwise."""
    code = "import sys, fastmlp.bench.child; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(eval(done.stdout))
    assert not loaded & {"numpy", "scipy", "numba", "sklearn", "torch", "jax", "rich", "matplotlib"}
    assert "fastmlp" in loaded


def test_quick_is_less_than_full():
    assert measures.QUICK.total < 180
    assert math.isinf(measures.FULL.total)
    assert Path(fastmlp.__file__).parent.joinpath("bench").is_dir()
