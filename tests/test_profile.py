"""``fastmlp.profile``: every operation of a step is timed, in its layer; what is compiled is said to be."""

import json
import time

import numpy as np
import pytest
import scipy.sparse

import fastmlp
from fastmlp.backends import timing
from fastmlp.backends.choosing import get_backend
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.backends.operations import Operations
from fastmlp.doctor import profile as profiling
from fastmlp.errors import DataError

UNITS = (3, 7, 5, 2)


class Hours:
    """A clock that goes on when it is told to."""

    now = 0.0

    def __init__(self, monkeypatch):
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def hours(monkeypatch):
    return Hours(monkeypatch)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 3)).astype(np.float32), rng.integers(0, 2, 12)


def network(**options):
    return fastmlp.MLP(UNITS, **{"backend": "numpy", "activation": "tanh", "seed": 0, **options})


def profiled(rows, model=None, **options):
    return fastmlp.profile(model or network(), *rows, **{"batch_size": 4, "steps": 2, **options})


def listed(found):
    return [(row.operation, row.layer, row.calls) for row in found.operations]


# --- the clock --------------------------------------------------------------------------------------------------------


def test_a_span_knows_what_it_takes_without_those_within(hours):
    clock = timing.Clock(get_backend("numpy"))
    with clock.span("outer"):
        hours.pass_by(1)
        with clock.span("first", 0):
            hours.pass_by(2)
        hours.pass_by(1)
        with clock.span("second", 1):
            hours.pass_by(4)
        hours.pass_by(2)
    with pytest.raises(ZeroDivisionError), clock.span("failed"):
        hours.pass_by(1)
        raise ZeroDivisionError
    assert clock.taken() == [
        timing.Span("first", 0, 1.0, 2.0, 2.0),
        timing.Span("second", 1, 4.0, 4.0, 4.0),
        timing.Span("outer", None, 0.0, 10.0, 4.0),
        timing.Span("failed", None, 10.0, 1.0, 1.0),
    ]
    assert clock.taken() == []


def test_the_fine_operations_are_those_that_a_backend_must_have():
    memory = {"empty", "asarray", "to_numpy"}
    assert {*timing.FINE, *memory} == set(Operations.__abstractmethods__)
    assert {"dense_forward", "update", "loss"} <= set(timing.FINE)


# --- operations and layers --------------------------------------------------------------------------------------------

EVERYTHING = [
    ("gather_rows", None, 2),
    ("dropout", None, 1),
    ("dense_forward", 0, 1),
    ("activate", 0, 1),
    ("dropout", 0, 1),
    ("dense_forward", 1, 1),
    ("activate", 1, 1),
    ("dense_forward", 2, 1),
    ("loss", None, 1),
    ("hits", None, 1),
    ("totals", None, 1),
    ("dense_backward", 2, 1),
    ("activation_backward", 1, 1),
    ("dense_backward", 1, 1),
    ("activation_backward", 0, 1),
    ("dense_backward", 0, 1),
    ("add_scaled", None, 1),
    ("squared_norm", None, 2),
    ("scale", None, 2),
    ("update", None, 2),
    ("max_norm", 0, 1),
    ("max_norm", 1, 1),
    ("max_norm", 2, 1),
    ("average", None, 2),
]


@pytest.mark.parametrize("where", ["numpy", "numba"])
def test_every_operation_of_a_step_is_listed_in_its_layer_in_the_order_of_the_step(rows, where):
    model = network(backend=where, dropout=(0.1, 0.2, 0.0), l2=1e-3, max_norm=0.5)
    found = profiled(rows, model, optimizer=fastmlp.AdamW(clip_norm=1e-6, ema=0.9))
    assert listed(found) == EVERYTHING


def test_what_no_layer_shares_belongs_to_its_layer(rows):
    model = network()
    model.freeze(0, 2)
    found = profiled(rows, model, optimizer=fastmlp.AdamW(ema=0.9))
    updates = [row for row in listed(found) if row[0] in ("update", "average")]
    assert updates == [("update", 1, 2), ("average", 1, 2)]
    assert [row for row in listed(found) if row[0] == "dense_backward"] == [
        ("dense_backward", 2, 1),
        ("dense_backward", 1, 1),
    ]


def test_a_backend_that_fuses_a_layer_is_listed_with_that(rows):
    class Fused(NumpyBackend):
        name = "fused"

        def dense_activate(self, *args):
            super().dense_activate(*args)

    assert [row for row in listed(profiled(rows, network(backend=Fused()))) if "dense_a" in row[0]] == [
        ("dense_activate", layer, 1) for layer in range(3)
    ]


class Slow(NumpyBackend):
    """Takes three hours for the products of one layer, twice as long where it takes whole steps, and no other time."""

    name = "slow"

    def __init__(self, hours):
        super().__init__()
        self.hours, self.taken = hours, []

    def dense_forward(self, x, w, b, out):
        super().dense_forward(x, w, b, out)
        self.hours.pass_by(3 if w.shape[1] == 5 else 0)

    def train_steps(self, *args):
        self.taken.append(len(args[4]))
        self.hours.pass_by(3 * len(args[4]))
        return super().train_steps(*args)


def test_times_are_where_they_were_spent(rows, hours):
    slow = Slow(hours)
    found = profiled(rows, network(backend=slow))
    assert {(row.operation, row.layer): row.seconds for row in found.operations if row.seconds} == {
        ("dense_forward", 1): 3
    }
    assert found.layers == {0: 0, 1: 3, 2: 0, None: 0}
    assert (found.composed_seconds, found.between_seconds) == (3, 0)
    assert found.step_seconds == 6 and not found.is_composed
    assert slow.taken == [2] * (1 + profiling.ROUNDS)


def test_where_work_is_queued_each_operation_is_waited_for(rows, hours):
    class Queues(NumpyBackend):
        name = "queues"
        queued = 0

        def dense_backward(self, x, dz, w, dw, db, dx):
            super().dense_backward(x, dz, w, dw, db, dx)
            self.queued += w.shape[1]

        def synchronize(self):
            hours.pass_by(self.queued)
            self.queued = 0

    found = profiled(rows, network(backend=Queues()))
    assert found.layers == {0: 7, 1: 5, 2: 2, None: 0}
    assert found.waits and found.step_seconds == 14


def test_rounds_are_told_by_their_median(rows, hours):
    class Uneven(Slow):
        def loss(self, *args):
            super().loss(*args)
            self.hours.pass_by(len(self.taken) ** 2 if len(self.taken) != 4 else 100)

    found = profiled(rows, network(backend=Uneven(hours)), steps=1)
    took = [100 if call == 4 else call**2 for call in range(2, 2 + profiling.ROUNDS)]
    assert sorted(took)[profiling.ROUNDS // 2] == 25
    assert dict((row.operation, row.seconds) for row in found.operations)["loss"] == 25
    assert found.step_seconds == 6 + 25


def test_the_table_has_microseconds_and_shares_of_all_operations(rows):
    found = profiled(rows)
    assert sum(float(cells[4].rstrip("%")) for cells in found.table()) == pytest.approx(100, abs=2)
    first = found.operations[0]
    assert found.table()[0] == (
        "gather_rows",
        "",
        "2",
        f"{first.seconds * 1e6:.1f}",
        f"{found.share(first.seconds):.1%}",
    )
    lines = str(found).splitlines()
    assert lines[0].startswith("MLP((3, 7, 5, 2), ") and lines[1].split() == [
        "operation",
        "layer",
        "calls",
        "us",
        "share",
    ]
    assert lines[-len(found.notes()) :] == found.notes()


# --- the step that trains ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "composed"), [("numpy", True), ("numba", False)])
def test_whether_the_operations_are_the_step_is_said(rows, where, composed):
    found = profiled(rows, network(backend=where))
    assert found.is_composed is composed
    text = "\n".join(found.notes())
    assert ("made of these very operations" in text) is composed
    assert ("Their sum is not the step that trains" in text) is not composed
    assert "waited for" not in text
    threads = 1 if composed else network(backend=where).backend.threads
    assert found.threads == threads and ("take one thread each" in text) is (threads > 1)
    assert f"a step of 4 rows as {where} trains: {found.step_seconds * 1e6:.1f} us" in text


def test_a_function_of_ones_own_is_in_no_kernel(rows):
    fastmlp.register_activation("cube", lambda z: (z**3, 3 * z**2))
    assert profiled(rows, network(backend="numba", activation="cube")).is_composed


def test_on_a_gpu_operations_are_waited_for_and_ranges_are_in_pairs(rows, cupy_or_its_double):
    cupy = get_backend("cupy", way="eager")
    found = profiled(rows, network(backend=cupy), steps=1)
    assert found.waits and not found.is_composed
    assert ("dense_activate", 1, 1) in listed(found) and ("dense_backward", 0, 1) in listed(found)
    assert "each operation is waited for" in str(found)
    ranges = getattr(cupy._cupy, "ranges", None)
    if ranges is None:
        pytest.skip("NVTX of a GPU does not tell what was pushed")
    depth, names = 0, []
    for what, name in ranges:
        depth += 1 if what == "push" else -1
        assert depth >= 0
        names += [name] if what == "push" else []
    assert depth == 0
    assert names.count("train_steps") == names.count("step") == 1 + profiling.ROUNDS
    assert names.count("dense_backward, layer 2") == 1 + profiling.ROUNDS


def test_ranges_are_popped_after_an_error(cupy_or_its_double):
    cupy = get_backend("cupy", way="eager")
    ranges = getattr(cupy._cupy, "ranges", None)
    if ranges is None:
        pytest.skip("NVTX of a GPU does not tell what was pushed")
    before = len(ranges)
    with pytest.raises(ZeroDivisionError), timing.Clock(cupy).span("failed", 3):
        raise ZeroDivisionError
    assert ranges[before:] == [("push", "failed, layer 3"), ("pop", "failed, layer 3")]


# --- nothing changes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["numpy", "numba"])
def test_model_and_backend_are_as_they_were(rows, where):
    model = network(backend=get_backend(where), dropout=0.2)
    model.fit(*rows, epochs=1, verbose=0)
    state, there = model._learner.state, dict(vars(model.backend))
    before = [state.step, *(a.tobytes() for a in (state.params, *state.moments))]
    profiled(rows, model)
    assert [state.step, *(a.tobytes() for a in (state.params, *state.moments))] == before
    assert vars(model.backend) == there


def test_rows_of_every_kind(rows):
    x, y = rows
    for given in (x.astype(np.float64), (x * 50).clip(0, 255).astype(np.uint8), scipy.sparse.csr_array(x)):
        assert listed(profiled((given, y)))[0] == ("gather_rows", None, 2)
    weighted = profiled((x, y, np.linspace(0.1, 1, 12)))
    assert listed(weighted)[0] == ("gather_rows", None, 3)


def test_there_are_no_more_steps_than_whole_batches(rows):
    assert (profiled(rows, steps=50).steps, profiled(rows, batch_size=5, steps=50).steps) == (3, 2)
    found = profiled(rows, batch_size=500)
    assert (found.batch, found.steps) == (12, 1)


def test_a_loss_that_is_not_finite_is_refused(rows):
    model = network(dtype="float32")
    model.set_weights([w * np.float32(3e38) for w in model.get_weights()])
    with pytest.raises(DataError, match=r"^profile: the loss of these rows is not finite"):
        profiled(rows, model)


def test_other_models_are_refused(rows):
    with pytest.raises(TypeError, match=r"model must be a fastmlp.MLP \(of an estimator its model_\)"):
        fastmlp.profile(object(), *rows)


# --- the trace --------------------------------------------------------------------------------------------------------


def bars_of(path):
    """Return the bars of a trace, and the names of its tracks, as the format has them."""
    events = json.loads(path.read_text())["traceEvents"]
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    bars = [e for e in events if e["ph"] == "X"]
    assert {e["ph"] for e in events} == {"M", "X"}
    assert all(e["ts"] >= 0 and e["dur"] >= 0 and e["tid"] in tracks and e["pid"] == 1 for e in bars)
    assert min(e["ts"] for e in bars) == 0
    return bars, tracks


def test_a_trace_has_the_steps_that_train_and_the_operations_within_theirs(rows, tmp_path):
    found = profiled(rows, network(backend="numba"))
    found.to_trace(tmp_path / "trace.json")
    bars, tracks = bars_of(tmp_path / "trace.json")
    assert list(tracks.values()) == ["as numba trains, 2 steps a bar", "the same steps by single operations"]
    by_track = {name: [e for e in bars if tracks[e["tid"]] == name] for name in tracks.values()}
    trained, single = by_track.values()
    assert [e["name"] for e in trained] == ["train_steps"] * profiling.ROUNDS
    steps = [e for e in single if e["name"] == "step"]
    assert len(steps) == 2 * profiling.ROUNDS
    forward = [e for e in single if e["name"] == "dense_forward"]
    assert [e["args"] for e in forward] == [{"layer": layer} for _ in steps for layer in range(3)]
    for e in forward:
        within = [s for s in steps if s["ts"] <= e["ts"] and e["ts"] + e["dur"] <= s["ts"] + s["dur"] + 1e-3]
        assert len(within) == 1
