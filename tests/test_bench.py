"""What `fastmlp bench` is made of: when it says faster, what a sample is, what a machine can do, who is measured."""

import itertools
import json
import math
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp.bench import child, contenders, measures, running, verdicts, workloads
from fastmlp.bench.machine import commit
from fastmlp.bench.results import Case, read
from fastmlp.bench.running import MeasuringError
from fastmlp.bench.workloads import Workload
from fastmlp.doctor.fresh import FreshProcessError, TooLongError, in_fresh_process
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


def test_what_does_several_at_once_is_asked_for_so_many_that_they_last():
    """What a call costs beside them counts little then."""
    clock, asked = Clock(None), []

    def train(epochs):
        asked.append(epochs)
        clock.now += 5e-3 + epochs * 1e-3

    found = measures.samples_of(train, 4, 100.0, least=0.1, clock=clock)
    assert found == pytest.approx([1e-3] * 4, rel=0.06)
    assert len(found) == 4 and set(asked[-4:]) == {asked[-1]} and asked[-1] < 200


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


def test_a_contender_of_a_gpu_gets_the_rows_of_one_and_trains_so_many_epochs_that_a_call_is_nothing(monkeypatch):
    asked = []

    def make(workload, spec, rows, seed):
        asked.append((rows.steps, len(rows.many)))
        return contenders.Running(lambda epochs: asked.append(time.sleep(0.003 + 0.001 * epochs)), int, int)

    for device in ("cpu", "cuda"):
        there = contenders.Contender("somebody", "json", device, make)
        monkeypatch.setattr(child, "contender", lambda name, there=there: there)
        found = child.of_contender("somebody", SMALL.to_dict(), TINY._replace(operations=1e5), 0)
        steps, many = next(rows for rows in asked if rows is not None)
        assert min(found["train"]) * steps < (0.0015 if device == "cpu" else 0.00125)
        assert (steps, many) == ((115, 2777) if device == "cpu" else (8, workloads.ROWS))
        asked.clear()


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
    assert ask.asked[:8] == ["tiny numba", "limits", *first]
    assert ask.asked[8:15] == [*second, "limits"]
    assert ask.asked[-1] == "cold small numba" and len(ask.asked) == 2 + 3 * 7
    assert [len(case.rounds) for case in found.cases] == [3] * 6


def test_the_first_call_is_measured_once_with_nothing_compiled():
    found = run(Measuring())
    samples = {(case.workload.name, case.contender): case.samples("cold") for case in found.cases}
    assert samples.pop(("small", "numba")) == [70.0]
    assert set(map(tuple, samples.values())) == {()}
    assert found.cases[1].samples("first") != [70.0] * 3
    found = run(Measuring(failing=("cold small numba",)))
    words = "not measured: the first call of fastmlp numba with nothing compiled: it is broken"
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
        "not measured: scikit-learn (small); measured in fewer rounds: fastmlp numpy, scikit-learn (other): too slow"
    ]


def test_a_run_that_measures_nothing_is_an_error():
    with pytest.raises(
        MeasuringError, match="not measured: scikit-learn: it is broken; not measured: fastmlp cupy: no GPU"
    ):
        run(Measuring(failing=("sklearn",)), {"sklearn": None, "cupy": "no GPU"})


def test_where_the_time_is_over_nobody_is_dropped_silently():
    with pytest.raises(MeasuringError, match="not measured: fastmlp numpy: no time was left of 0 s"):
        run(Measuring(), ["numpy"], total=0.0)


class Slow(Measuring):
    """Takes so many seconds for each, by a clock of its own, and is ended where it takes too long."""

    def __init__(self, monkeypatch, seconds):
        super().__init__()
        self.now, self.seconds, self.took = 0.0, seconds, {}
        monkeypatch.setattr(running, "time", types.SimpleNamespace(monotonic=lambda: self.now))

    def __call__(self, target, task, *, timeout, environment=None):
        seconds = self.seconds[task.get("contender", "limits")]
        self.now += min(seconds, timeout)
        found = super().__call__(target, task, timeout=timeout, environment=environment)
        if seconds > timeout:
            raise TooLongError(f"took longer than {timeout:g} s")
        return found


MANY = {
    **{"limits": 4.0, "numpy": 3.0, "numba": 4.0, "cupy": 5.0, "torch": 8.0, "jax": 5.0, "sklearn": 4.0},
    **{"torch-gpu": 8.0, "torch-gpu-graph": 8.0, "jax-gpu": 8.0, "torch-compiled": 90.0, "torch-gpu-compiled": 26.0},
}
"""Seconds of a process where there are a GPU and every library."""


def quick_run(monkeypatch, seconds, count):
    ask, entrants = Slow(monkeypatch, seconds), dict.fromkeys(name for name in seconds if name != "limits")
    some = [SMALL, replace(SMALL, name="other", batch=4)][:count]
    found = running.run(some, entrants, measures.QUICK, seed=7, command="fastmlp bench", ask=ask)
    assert ask.now <= measures.QUICK.total
    return ask, {(c.workload.name, c.contender): len(c.rounds) for c in found.cases}, found


def test_who_compiles_nothing_has_all_rounds_of_a_quick_run_before_others_take_the_time(monkeypatch):
    _, rounds, found = quick_run(monkeypatch, MANY, 1)
    plain = [name for name in MANY if name != "limits" and "compiled" not in name]
    assert all(rounds["small", name] == 2 for name in plain)
    assert rounds["small", "torch-compiled"] == rounds["small", "torch-gpu-compiled"] == 0
    assert found.failures == ["not measured: PyTorch compiled, PyTorch compiled (GPU): no time was left of 170 s"]
    assert set(found.limits) == {"cpu float32", "cuda float32"}


def test_who_compiles_is_measured_in_the_time_that_nobody_else_needs(monkeypatch):
    few = {name: MANY[name] for name in ("limits", "numpy", "torch", "torch-gpu-compiled")}
    ask, rounds, found = quick_run(monkeypatch, few, 2)
    assert set(rounds.values()) == {2} and found.failures == []
    assert ask.asked.index("small torch-gpu-compiled") > ask.asked.index("other torch")
    assert found.notes[-1] == (
        "PyTorch compiled (GPU): training alone is measured with --quick, since each shape is compiled anew"
    )


def test_every_workload_has_a_round_before_any_has_two_and_who_was_cut_off_is_said_once(monkeypatch):
    _, rounds, found = quick_run(monkeypatch, {**MANY, "jax": 15.0}, 2)
    assert all(rounds[workload, "sklearn"] > 0 for workload in ("small", "other"))
    assert min(count for (_, name), count in rounds.items() if "compiled" not in name) == 1
    (line,) = found.failures
    assert line.startswith("not measured: PyTorch compiled, PyTorch compiled (GPU); measured in fewer rounds: ")
    assert line.endswith(": no time was left of 170 s") and line.count("JAX") <= 2
    (note,) = (note for note in found.notes if "busy" not in note)
    assert note == (
        "not measured: the first call of fastmlp numba with nothing compiled, the first call of fastmlp cupy with "
        "nothing compiled: no time was left of 170 s"
    )


def test_a_quick_run_of_many_takes_fewer_workloads_and_says_which_not():
    some = [SMALL, replace(SMALL, name="other")]
    many, few = ({name: None for name in names} for names in ((n for n in MANY if n != "limits"), ("numpy", "numba")))
    assert running.affordable(some, few, measures.QUICK) == (some, [])
    assert running.affordable(some, many, measures.FULL) == (some, [])
    assert running.affordable(some[:1], many, measures.QUICK) == (some[:1], [])
    left, notes = running.affordable(some, many, measures.QUICK)
    assert left == some[:1]
    assert notes == [
        "left out: other: with it there would be 52 processes, too many for 170 s; --workload other measures it"
    ]


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
    before = {name: value for name, value in found.cases[0].to_dict().items() if name != "many"}
    assert Case.from_dict(before).many == 10_000  # as earlier versions measured and did not say


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
