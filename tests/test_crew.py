"""How many threads train: as many as may, or one; measured while a run lasts; the numbers stay the same."""

import itertools

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp.backends.cpu import crew
from fastmlp.backends.cpu.crew import Crew

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")


@pytest.fixture(autouse=True)
def idle(monkeypatch):
    monkeypatch.setattr(crew, "_last_alone", -np.inf)


class Machine:
    """A clock that calls move on, by what a step takes with one thread and with several."""

    def __init__(self, one, several):
        self.now, self.one, self.several = 0.0, one, several
        self.log = []

    def clock(self):
        return self.now

    def train(self, crew, steps):
        for threads, count in crew.calls(steps):
            self.now += count * (self.one if threads == 1 else self.several)
            self.log.append((threads, count))
        return sum(count for _, count in self.log)


@pytest.mark.parametrize("step", [4e-6, 1e-4, 3e-3, 0.1])
@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.25, 3, 20])
def test_what_is_faster_works_nearly_all_of_the_time(step, ratio):
    machine = Machine(step, step * ratio)
    made = Crew(2, machine.clock)
    steps = int(10 / step)
    assert machine.train(made, steps) == steps
    learning = 5 * max(machine.one, machine.several)
    assert machine.now < 1.06 * min(machine.one, machine.several) * steps + learning


def test_whatever_slows_several_threads_down_is_noticed_within_a_few_calls():
    machine = Machine(100e-6, 50e-6)
    made = Crew(2, machine.clock)
    machine.train(made, 100_000)
    assert made.threads == 2
    machine.several = 2e-3
    machine.log.clear()
    machine.train(made, 20_000)
    assert made.threads == 1
    assert machine.log[0][0] == 2 and machine.log[1][0] == 1  # one call is enough
    machine.several = 50e-6
    machine.train(made, 20_000)
    assert made.threads == 2


def test_the_next_session_begins_as_the_last_one_ended():
    machine = Machine(100e-6, 5e-3)
    machine.train(Crew(2, machine.clock), 2000)
    assert Crew(2, machine.clock).threads == 1
    machine.several = 50e-6  # nobody else wants the cores any more
    later = Crew(2, machine.clock)
    machine.train(later, 2000)
    assert later.threads == 2 and Crew(2, machine.clock).threads == 2
    machine.several = 5e-3
    machine.train(Crew(2, machine.clock), 2000)
    machine.now += crew.RECENT
    assert Crew(2, machine.clock).threads == 2


def test_one_part_is_one_call():
    machine = Machine(1.0, 1.0)
    assert machine.train(Crew(1, machine.clock), 1000) == 1000 and machine.log == [(1, 1000)]


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the JIT is off, so there is one part")
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": fastmlp.SGD(0.1)},
        {"optimizer": fastmlp.Adam(0.01, clip_norm=0.5, ema=0.9)},
        {"optimizer": fastmlp.SGD(0.1, momentum=0.9), "max_norm": 1.0},
        {"optimizer": fastmlp.SGD(0.1), "dropout": (0.2, 0.3), "units": (96, 12, 3), "batch_size": 9},
    ],
    ids=["SGD", "clipping and an average", "max-norm", "features shared out, dropout"],
)
def test_the_number_of_threads_may_change_between_any_two_steps(parts, options, monkeypatch):
    options = {"units": (12, 9, 3), "batch_size": 20, "max_norm": None, "dropout": 0.0, **options}
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, options["units"][0])), rng.integers(0, 3, 200)

    def trained(numbers):
        def calls(self, steps):
            for threads in itertools.cycle(numbers):
                count = min(3, steps)
                steps -= count
                yield threads, count
                if not steps:
                    return

        monkeypatch.setattr(Crew, "calls", calls)
        model = fastmlp.MLP(
            *(options["units"],), max_norm=options["max_norm"], dropout=options["dropout"], seed=1,
            backend=fastmlp.get_backend("numba", threads=parts),
        )  # fmt: skip
        history = model.fit(
            *(x, y), epochs=2, batch_size=options["batch_size"], optimizer=options["optimizer"], verbose=0
        )
        return [*model.get_weights(), np.array(history.history["loss"])]

    expected = trained([parts])
    for numbers in ([1], [1, parts], [2, 1, parts]):
        for a, b in zip(trained(numbers), expected, strict=True):
            assert_same_bits(a, b)


def test_a_trial_of_a_long_step_is_one_step():
    machine = Machine(2.0, 1.0)
    machine.train(Crew(2, machine.clock), 200)
    assert max(n for t, n in machine.log if t == 1) == 1
    assert sum(n for t, n in machine.log if t == 1) <= 2
