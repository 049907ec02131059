"""The race to an accuracy: its clock and its rules; every contender trains, by its seed, and predicts new rows."""

import importlib
import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

from fastmlp.bench.workloads import Rows, Workload

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
CONTENDERS = {
    "torch": "torch",
    "jax": "jax",
    "sklearn": "sklearn",
    "fastmlp-numpy": "fastmlp",
    "fastmlp-numba": "numba",
}


@pytest.fixture
def timing(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("time_to_accuracy")


class Hours:
    """Everything takes an hour; a third of the test rows more is right after each epoch."""

    def __init__(self):
        self.now, self.epochs, self.did = 0.0, 0, []

    def load(self, name):
        self.now += 1
        self.did.append(name)
        return np.zeros(3, np.int64)

    def begin(self, x, y, many):
        self.now += 1
        return self.train, self.predict

    def train(self, epochs):
        self.now += epochs
        self.epochs += epochs

    def predict(self):
        self.now += 1
        return (np.arange(3) >= self.epochs).astype(np.int64)


def test_the_clock_runs_from_the_first_touch_of_the_data_to_the_evaluation_that_finds_the_target(timing):
    hours = Hours()
    hours.now = 100.0
    found = timing.reach(60.0, 9, hours.load, hours.begin, lambda: hours.now)
    assert found == (4 + 1 + 2 * 2, 2, pytest.approx(200 / 3))
    assert hours.did == ["train-x", "train-y", "test-x", "test-y"]


def test_what_is_not_reached_takes_for_ever(timing):
    hours = Hours()
    found = timing.reach(60.0, 1, hours.load, hours.begin, lambda: hours.now)
    assert found == (math.inf, 1, pytest.approx(100 / 3))


def test_the_fastest_and_the_slowest_are_dropped(timing):
    assert timing.scored([9.0, 1.0, 2.0, 3.0, 7.0]) == (3.0, 4.0)
    assert timing.scored([2.0, math.inf, 1.0]) == (2.0, 2.0)
    assert timing.scored([4.0, 2.0]) == (3.0, 3.0)


def test_the_table_holds_each_contender_against_the_fastest_peer(timing):
    run = timing.Run
    slow, fast = [run(4.0, 3, 98.1)] * 3, [run(1.0, 2, 98.2)] * 3
    never = [run(math.inf, 30, 90.0)] * 3
    rows = timing.report({"jax": slow, "torch": never, "fastmlp-numba": fast, "sklearn": []}).splitlines()[2:]
    cells = {line.split(" | ")[0].strip("| "): [c.strip(" |") for c in line.split(" | ")[1:]] for line in rows}
    assert cells["jax"][:3] == ["4.00", "4.00", "1.00"]
    assert cells["fastmlp-numba"] == ["1.00", "1.00", "4.00", "1.00, 1.00, 1.00", "2, 2, 2", "98.20, 98.20, 98.20"]
    assert cells["torch"][:3] == ["inf", "inf", ""] and "sklearn" not in cells


@pytest.mark.parametrize("name", list(CONTENDERS))
@pytest.mark.filterwarnings("ignore")  # those of other libraries
def test_every_contender_trains_by_its_seed_and_predicts_rows_it_has_not_seen(timing, name):
    race = importlib.import_module("race")
    assert set(race.CONTENDERS) == set(CONTENDERS)
    if importlib.util.find_spec(CONTENDERS[name]) is None:
        pytest.skip(f"{CONTENDERS[name]} is not installed; pip install {CONTENDERS[name]}")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((640, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 3))).argmax(axis=1)

    workload = Workload("small", (6, 16, 3), 16, optimizer="adam")

    def answers(seed, epochs):
        rows = Rows(x[:512], y[:512], x[512:], 512 // 16)
        running = race.named(name).make(workload, workload.spec(), rows, seed)
        running.train(epochs)
        return np.asarray(running.predict())

    after = answers(0, 30)
    assert (after == y[512:]).mean() > 0.85
    assert np.array_equal(answers(1, 2), answers(1, 2)) and not np.array_equal(answers(1, 2), answers(2, 2))
