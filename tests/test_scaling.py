"""The model of steps of several ranks, held against the calls that the engine makes, replayed one message at a time."""

import importlib
import operator
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp.bench.workloads import WORKLOADS, Workload
from fastmlp.parallel import in_threads
from fastmlp.parallel.group import Alone, Group
from fastmlp.parallel.tree import TreeSum

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
UNITS = (32, 32, 32)  # of which no array is padded


@pytest.fixture
def module(monkeypatch):
    """Import a script of the folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def model(module):
    return module("scaling_model")


# --- the engine's calls ---------------------------------------------------------------------------------------------


class Recording(Group):
    """A group that notes what its rank exchanges and gathers, and where it waits."""

    def __init__(self, group, in_common):
        super().__init__(group.rank, group.size, group.shards)
        self.group, self.calls = group, []
        self.failed = group.failed
        if in_common:
            self.common = group.common

    def meet(self):
        self.calls.append(("gather", np.zeros(self.size)))
        self.group.meet()

    def share(self, value):
        return self.group.share(value)

    def broadcast(self, array):
        self.group.broadcast(array)

    def gather(self, array, bounds):
        self.calls.append(("gather", np.diff(bounds) * array.itemsize))
        self.group.gather(array, bounds)

    def exchange(self, rows, counts, bounds, out):
        self.calls.append(("exchange", counts, np.diff(bounds) * rows.itemsize))
        self.group.exchange(rows, counts, bounds, out)


def calls_of_a_step(ranks, shards, in_common):
    def fit(group):
        recording = Recording(group, in_common)
        data = np.zeros((64, 32), "f4"), np.zeros(64, int)
        fastmlp.MLP(UNITS, backend="numpy", seed=0).fit(
            *data, epochs=1, batch_size=64, optimizer=fastmlp.SGD(0.1), verbose=0, parallel=recording
        )
        return recording.calls

    first, *others = in_threads(fit, ranks, shards=shards)
    assert all(repr(calls) == repr(first) for calls in others)
    return first


class Counted(np.ndarray):
    """An array that counts how often arrays are added to it and copied into it."""

    operations = 0

    def __iadd__(self, other):
        Counted.operations += 1
        return super().__iadd__(other)

    def __setitem__(self, where, value):
        Counted.operations += 1
        super().__setitem__(where, value)


def operations_of(work):
    Counted.operations = 0
    work()
    return Counted.operations


def replayed(work, wires, ranks, shards, in_common):
    """Return the seconds of a step of the engine: its calls message by message, its operations on arrays counted."""

    def link(one, other):
        return wires.near if one // wires.node == other // wires.node else wires.far

    def send(one, other, size):
        return link(one, other).message + size / link(one, other).bandwidth

    def gather(sizes):
        seconds, held = 0.0, [{rank} for rank in range(ranks)]
        distance = 1
        while distance < ranks:
            took, got = [], []
            for rank in range(ranks):
                # partners of powers of two exchange all they hold; else each takes what it lacks from the one ahead
                other = rank ^ distance if ranks & (ranks - 1) == 0 else (rank + distance) % ranks
                taken = held[other] - held[rank]
                took.append(link(rank, other).latency + send(other, rank, sum(sizes[r] for r in taken)))
                got.append(held[rank] | taken)
            seconds, held, distance = seconds + max(took), got, 2 * distance
        assert all(h == set(range(ranks)) for h in held)
        return seconds

    def exchange(counts, sizes):
        seconds = 0.0
        for row in range(max(counts)):
            took = [0.0]
            for rank in range(ranks):
                others = [other for other in range(ranks) if other != rank]
                if row < counts[rank] and others:
                    slowest = max(link(rank, other).latency for other in others)
                    took.append(slowest + sum(send(rank, other, sizes[other]) for other in others))
            seconds += max(took)
        return seconds

    seconds = 0.0
    for name, *given in calls_of_a_step(ranks, shards, in_common):
        seconds += gather(*given) if name == "gather" else exchange(*given)

    def empty(shape):
        return np.empty(shape, "f4").view(Counted)

    trees = [TreeSum(shards, ranks, rank, 5, empty, operator.iadd) for rank in range(ranks)]
    computed = []
    for tree in trees:
        adding = operations_of(lambda tree=tree: tree.add_up(lambda shard: np.ones(5, "f4")))
        computed.append((tree.stop - tree.first) * work.gradients + adding * (work.call + work.add))
    brought = np.ones((sum(trees[0].counts), 5), "f4").view(Counted)
    summing = operations_of(lambda: trees[0].whole(brought)) * (work.call + work.add / ranks)
    if in_common:
        summing += work.call + work.add  # each copies the whole
    else:  # its own sums are copied to the others', and the whole to its place
        summing += (max(trees[0].counts) + 1) * (work.call + work.add / ranks)
    return max(computed) + seconds + summing + work.update


NEAR, FAR = (3e-6, 1e-6, 5e9), (8e-6, 2e-6, 1e9)


@pytest.mark.parametrize(
    ("ranks", "shards", "node"),
    [(1, 8, 8), (2, 8, 8), (3, 8, 8), (4, 8, 2), (8, 8, 4), (8, 16, 2), (5, 5, 8), (4, 6, 1)],
)
@pytest.mark.parametrize("in_common", [False, True])
def test_the_model_takes_as_long_as_the_calls_of_the_engine_replayed(model, ranks, shards, node, in_common):
    work = model.Work(UNITS, 50e-6, 0.3e-6, 7e-6, 20e-6)
    wires = model.Wires(node, model.Link(*NEAR), model.Link(*FAR))
    found = model.step(work, wires, ranks, shards, in_common=in_common)
    # parts of arrays that ranks do not divide evenly differ by a number
    assert found.seconds == pytest.approx(replayed(work, wires, ranks, shards, in_common), rel=1e-3)
    assert found.share == pytest.approx(1 - (found.gradients + found.update) / found.seconds)


def test_layers_that_overlap_are_reduced_one_after_the_other_as_they_are_ready(model):
    # 2-3-1: multiply-adds 6 and 3; forward 9, back through the top layer 3 and 3, through the lowest 6
    work = model.Work((2, 3, 1), 21.0, 0.0, 0.0, 2.0, itemsize=1)
    assert work.pieces == [(4, 12 / 21), (9, 1.0)]
    slow, fast = (model.Link(1.0, 0.0, 1 / seconds) for seconds in (4.0, 0.5))

    def schedule(seconds_of_a_number):
        """Two ranks of one shard: an exchange and a gather, each of a second and its bytes."""
        told = 1.0 + 24 * seconds_of_a_number
        top = 12.0 + 2 * (1.0 + 2 * seconds_of_a_number)
        lowest = max(21.0, top) + 2 * (1.0 + 4.5 * seconds_of_a_number)
        return lowest + told + 2.0

    for link, seconds in ((slow, 4.0), (fast, 0.5)):
        wires = model.Wires(2, link, link)
        assert model.step(work, wires, 2, 2, overlap=True).seconds == pytest.approx(schedule(seconds))
        # as it is done: all numbers at once, after the gradients
        whole = 21.0 + 2 * (1.0 + 6.5 * seconds) + 1.0 + 24 * seconds + 2.0
        assert model.step(work, wires, 2, 2).seconds == pytest.approx(whole)
    assert model.step(work, wires, 2, 2, crowd=2.0).seconds == pytest.approx(2 * whole)


def test_shards_that_are_one_call_are_added_up_in_it(model):
    work, link = model.Work(UNITS, 50e-6, 0.3e-6, 7e-6, 20e-6), model.Link(*NEAR)
    wires = model.Wires(8, link, link)
    singly, at_once = (model.step(work._replace(at_once=at_once), wires, 2, 8) for at_once in (False, True))
    assert at_once.gradients == pytest.approx(4 * 50e-6)
    assert singly.gradients - at_once.gradients == pytest.approx(5 * 7.3e-6)  # two become sums, and three are added
    assert singly.reduction == at_once.reduction and singly.update == at_once.update


def test_more_ranks_than_shards_are_refused(model):
    work, link = model.Work(UNITS, 1.0, 0.0, 1.0, 1.0), model.Link(*NEAR)
    with pytest.raises(ValueError, match="ranks must be from 1 to shards=8; got 9"):
        model.step(work, model.Wires(8, link, link), 9, 8)


# --- machines -------------------------------------------------------------------------------------------------------

MACHINE = """
name = "two adders"
node = 2
[arithmetic]
product = 1e9
memory = 1e8
fixed = 1e-5
call = 1e-6
[near]
latency = 1e-6
message = 1e-6
bandwidth = 1e9
[far]
latency = 1e-5
message = 1e-6
bandwidth = 1e8
[[steps]]
units = [4, 3, 2]
rows = [10, 20]
seconds = [1e-3, 3e-3]
"""


@pytest.fixture
def described(model, tmp_path):
    def read(text):
        (tmp_path / "machine.toml").write_text(text)
        return model.read_machine(tmp_path / "machine.toml")

    return read


def test_a_machine_computes_by_its_rates_or_by_measured_steps(described):
    machine = described(MACHINE)
    units, parameters = (40, 30, 20), 41 * 30 + 31 * 20
    operations = 2 * 100 * (3 * (1200 + 600) - 1200)
    update = 4 * 6 * parameters / 1e8  # gradients; parameters and two moments written, and these read
    work = machine.work(units, 100)
    assert work.gradients == pytest.approx(1e-5 + max(operations / 1e9, 4 * (100 * 240 + 2 * parameters) / 1e8))
    assert work.update == pytest.approx(1e-6 + update)
    assert work.add == pytest.approx(3 * 4 * parameters / 1e8)
    assert machine.plain((4, 3, 2), 10) == pytest.approx(1e-3)
    assert machine.plain((4, 3, 2), 15) == pytest.approx(2e-3)
    assert machine.plain((4, 3, 2), 60) == pytest.approx(9e-3)  # beyond the last, in proportion
    assert machine.plain((4, 3, 2), 10, measured=False) < 1e-4


@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ("node = 2", "", "machine.toml: expected arithmetic, far, name, near, node, steps; got arithmetic, far, name"),
        ("node = 2", "nodes = 2", "expected arithmetic, far, name, near, node, steps; got .*nodes"),
        ("node = 2", "node = 0", "machine.toml: node must be a positive number; got 0"),
        ("product = 1e9", "", "arithmetic: expected call, fixed, memory, product; got call, fixed, memory"),
        ("bandwidth = 1e8", "bandwidth = -1", r"far.bandwidth must be a positive number; got -1"),
        ("rows = [10, 20]", "rows = [10]", r"steps\[0\]: rows and seconds must be as many"),
    ],
)
def test_a_wrong_description_is_refused_by_name(described, line, instead, message):
    assert MACHINE.count(line) == 1
    with pytest.raises(ValueError, match=message):
        described(MACHINE.replace(line, instead))


def test_the_plan_has_the_figures_of_the_model_and_a_picture(module, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    scaling = module("scaling")
    given = ["scaling.py", "plan", "--sizes", "mid,w8192", "--batch", "4096", "--overlap", "--pictures", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    scaling.main()
    out = capsys.readouterr().out
    machine = scaling.read_machine(scaling.MACHINE)
    for name in ("mid", "w8192"):
        units, batch = WORKLOADS[name].units, WORKLOADS[name].batch
        one = machine.plain(units, 4096)
        for overlap, label in ((False, name), (True, f"{name}, overlapped")):
            times = [f"{one / machine.sharded(units, 4096, n, overlap).seconds:.2f}" for n in (1, 8, 64, 256, 1024)]
            assert f"| {label} | 4,096 together | {' | '.join(times)} |" in out
            kept = machine.plain(units, batch) / machine.sharded(units, batch * 8, 8, overlap).seconds
            assert re.search(rf"\| {label} \| {batch:,} each \| \d+% \| {kept:.0%} \|", out)
    for name in ("scaling", "scaling-overlap"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_says_what_the_model_says(module):
    scaling = module("scaling")
    machine = scaling.read_machine(scaling.MACHINE)
    said = " ".join((BENCHMARKS.parent / "README.md").read_text("utf-8").split())
    said = said.partition("Where it pays")[2].partition("What does not hold")[0]

    def times(ranks, batch=16_384, names=("w8192", "big", "mid")):
        found = [scaling.speedup(machine, WORKLOADS[n], batch, ranks, overlap=False) for n in names]
        return [f"{value:.1f}" if value >= 1 else f"{value:.2f}" for value in found]

    large, middle, small = times(8)
    assert f"784-8192-8192-10 {large} times as fast as one, of 784-1024-1024-10 {middle} times" in said
    assert f"of 784-512-256-10 {small} times" in said
    assert "64 GPUs reach {}, {} and {} times".format(*times(64)) in said
    eight, many = (scaling.efficiency(machine, WORKLOADS["mid"], n, overlap=False) for n in (8, 64))
    assert f"eight GPUs keep {eight:.0%} of their speed and 64 keep {many:.0%}".replace("%", " %") in said
    assert f"eight take longer than one ({times(8, 128, ['mid'])[0]} times as fast)" in said
    assert machine.wires.node == 8 and f"({machine.name}, eight a node" in said


# --- measuring ------------------------------------------------------------------------------------------------------


def test_a_link_is_found_again_in_what_it_takes(module):
    measure = module("scaling_measure")
    sizes = [[size, *[5e-6 + size / 2e9] * 2] for size in measure.SIZES]
    assert measure.fit_link({"sizes": sizes, "message": 1e-6}) == pytest.approx((4e-6, 1e-6, 2e9))
    assert measure.fit_link({"sizes": sizes, "message": 9e-6}) == pytest.approx((0, 5e-6, 2e9))


def test_the_meter_counts_exchanges_and_gathers_alone(module):
    class Slow(Alone):
        def gather(self, array, bounds):
            time.sleep(0.01)

        def exchange(self, rows, counts, bounds, out):
            time.sleep(0.02)

    metered = module("scaling_measure").Metered(Slow(8))
    metered.share(1)
    assert metered.seconds == 0
    metered.gather(None, None)
    metered.exchange(None, None, None, None)
    assert 0.03 <= metered.seconds


def test_what_is_timed_is_the_median_of_a_call_by_each_clock(module):
    now, took = 0.0, iter([9, 9, 1, 4, 2, 3, 100])

    def work():
        nonlocal now
        now += next(took)

    clocks = (lambda: now), (lambda: now / 2)
    assert module("scaling_measure").timed(Alone(1), work, 0.0, clocks) == [3.0, 1.5]  # two calls come before


def test_the_parts_of_a_rank_are_measured_on_steps_that_hardly_move_the_weights(module):
    measure = module("scaling_measure")
    workload = Workload("small", (6, 8, 3), 16, optimizer="sgd")
    task = {"kind": "ranks", "ranks": 1, "workloads": [workload.to_dict()], "backend": "numpy", "seconds": 0.01}
    found = measure.child(task)["small"]
    assert set(found) == {"step", "reduction", "gradients", "update", "call", "add", "at_once", "in_common"}
    assert all(value >= 0 for value in found.values())
    assert 0 < found["reduction"] < found["step"] and found["gradients"] < found["step"]
    assert measure.child({**task, "kind": "plain"}) > 0
    with measure.ready(workload, "numpy") as here:
        before = here.learner.state.params.copy()
        measure.steps(Alone(8), here, 0.01)
        here.plain()
        assert here.learner.state.step > len(here.table)
        np.testing.assert_allclose(here.learner.state.params, before, atol=1e-5)


def test_a_prediction_is_made_of_the_parts_of_one_rank_or_of_two_at_once(module):
    scaling, model = module("scaling"), module("scaling_model")
    workload = Workload("small", UNITS, 64)
    parts = {"gradients": 1e-3, "call": 1e-6, "add": 1e-5, "update": 1e-4, "at_once": 0.0, "in_common": 0.0}
    slower = {name: 2 * value for name, value in parts.items()}
    sizes = [[size, *[5e-6 + size / 2e9] * 2] for size in (64, 4096)]
    two = {"small": slower, "links": {"sizes": sizes, "message": 1e-6}}
    found = {1: {"small": parts}, 2: two, 4: {"small": {"in_common": 1.0}}}
    link = model.Link(4e-6, 1e-6, 2e9)
    for ranks, own, crowd in ((1, parts, 1), (2, slower, 1), (4, slower, 2)):
        work = model.Work(UNITS, *list(own.values())[:4])
        expected = model.step(work, model.Wires(8, link, link), ranks, crowd=crowd, in_common=ranks == 4)
        assert scaling.predicted(workload, found, ranks, 2) == pytest.approx(expected)


@pytest.mark.mpi
@pytest.mark.usefixtures("default_signals")
def test_the_check_holds_predicted_steps_against_measured_ones(module):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed; pip install 'fastmlp[mpi-test]'")
    module("scaling").launcher()
    given = ["check", "--workloads", "hundred,viblo", "--ranks", "1,2,4", "--rounds", "1", "--seconds", "0.05"]
    command = [sys.executable, str(BENCHMARKS / "scaling.py"), *given, "--backend", "numpy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^\| (\w+) \| (\d) \| (\d+) \| (\d+) \| ([+-]\d+)% \| (\d+)% \| (\d+)% \|$", done.stdout, re.M)
    assert [line[:2] for line in lines] == [(name, n) for name in ("hundred", "viblo") for n in "124"]
    for _, _, predicted, measured, error, *shares in lines:
        assert abs(int(predicted) / int(measured) - 1 - int(error) / 100) < 0.02
        assert all(0 <= int(share) <= 100 for share in shares)
    assert re.search(r"At viblo two ranks of one thread take [\d.]+ ms .*: [\d.]+ of its speed", done.stdout)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--workloads", "small"], "there is no workload small; of viblo, keras"),
        (["--ranks", "9"], "ranks must be from 1 to 8, the shards of a batch; got 9"),
    ],
)
def test_a_wrong_option_is_refused(module, monkeypatch, capsys, given, message):
    monkeypatch.setattr(sys, "argv", ["scaling.py", *given])
    with pytest.raises(SystemExit):
        module("scaling").main()
    assert message in capsys.readouterr().err
