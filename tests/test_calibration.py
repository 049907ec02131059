"""Which form products take, and on how many threads: by the rule, by what a run had that goes on, by what is known."""

import functools
import itertools
import json
import math
import os
import threading
from dataclasses import replace

import numpy as np
import pytest

import fastmlp
from fastmlp.backends.cpu import calibration, forms, near
from fastmlp.backends.cpu.backend import NumbaBackend
from fastmlp.backends.cpu.calibration import Measured
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import make_spec

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
pytestmark = pytest.mark.skipif(
    not fastmlp.available_backends()["numba"].available, reason=fastmlp.available_backends()["numba"].reason
)
tiled = pytest.mark.skipif(
    not fastmlp.available_backends()["numba"].available or numba.config.DISABLE_JIT,
    reason="the JIT is off, so the BLAS computes all products",
)
SINGLE = np.dtype("float32")
BLAS, DIRECT, PACKED = range(3)
FORWARD, BACKWARD, GRADIENT = range(3)
PARTS_FOR = forms.Forms.parts_for
"""Before a fixture of all tests shares out steps however small they are."""


@pytest.fixture
def nothing_known(monkeypatch):
    """A process that has asked for no table yet; what it learns is forgotten."""
    monkeypatch.setattr(calibration, "_tables", {})
    monkeypatch.setattr(calibration, "_settled", set())
    forms._parts_for.cache_clear()
    yield
    monkeypatch.undo()
    forms._parts_for.cache_clear()


def learn(start=1e-4, meeting=1e-7, rate=1e10, near=1024.0):
    """Let this be what was measured in float32."""
    calibration._tables[SINGLE] = Measured(start, meeting, rate, near)
    calibration._settled.add(SINGLE)
    forms._parts_for.cache_clear()


def session_of(units, batch=16, **options):
    plan = Plan(make_spec(units), batch, Precision.of(SINGLE), True, fastmlp.SGD(0.1).without_schedule())
    return fastmlp.get_backend("numba", threads=1, **options).open(plan)


@tiled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_measured_is_kept_and_read_back(nothing_known, monkeypatch, tmp_path, dtype):
    dtype, path = np.dtype(dtype), tmp_path / "table.json"
    fastmlp.get_backend("numba")
    monkeypatch.setattr(calibration, "table_path", lambda dtype: path)
    assert not calibration.is_settled(dtype) and calibration.known(dtype) is None
    calibration.calibrate(dtype, lambda: 4096.0, lambda: None)
    table = calibration.known(dtype)
    assert 1e-7 < table.start < 1 and 1e-9 < table.meeting < 0.1 and 1e8 < table.rate < 1e13 and table.near == 4096
    calibration._tables.clear(), calibration._settled.clear()
    assert calibration.is_settled(dtype) and calibration.known(dtype) == table


@tiled
@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "{",
        lambda kept: json.dumps({**kept, "machine": {**kept["machine"], "processor": "another"}}),
        lambda kept: json.dumps({**kept, "measured": 7}),
        lambda kept: json.dumps([kept]),
        lambda kept: json.dumps({**kept, "measured": {**kept["measured"], "start": 0}}),
        lambda kept: json.dumps({**kept, "measured": {**kept["measured"], "meeting": -1e-6}}),
        lambda kept: json.dumps({**kept, "measured": {**kept["measured"], "rate": float("nan")}}),
        lambda kept: json.dumps({**kept, "measured": {"start": 1e-4, "meeting": 1e-6}}),
    ],
)
def test_a_damaged_table_is_made_anew(nothing_known, monkeypatch, tmp_path, damage):
    path = tmp_path / "table.json"
    monkeypatch.setattr(calibration, "table_path", lambda dtype: path)
    before, again = Measured(1e-4, 1e-6, 1e10, math.inf), Measured(2e-4, 1e-7, 2e10, 1024.0)
    kept = {"machine": calibration.machine(), "measured": before._asdict()}
    path.write_text(json.dumps(kept))
    assert calibration._read(path) == before
    path.write_text(damage(kept))
    assert calibration.known(SINGLE) is None and not calibration.is_settled(SINGLE)
    monkeypatch.setattr(calibration, "measure", lambda dtype, reach: again)
    calibration.calibrate(SINGLE, lambda: 4096.0, lambda: None)
    assert calibration._read(path) == again
    assert os.listdir(tmp_path) == ["table.json"]


@tiled
def test_ctrl_c_ends_the_measurement_and_keeps_nothing(nothing_known, monkeypatch, tmp_path):
    path = tmp_path / "table.json"
    monkeypatch.setattr(calibration, "table_path", lambda dtype: path)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate(SINGLE, lambda: 4096.0, interrupted)
    assert not path.exists() and not calibration.is_settled(SINGLE)


def test_where_no_folder_can_be_written_nothing_is_measured(nothing_known, monkeypatch):
    monkeypatch.setattr(calibration, "table_path", lambda dtype: None)
    assert calibration.is_settled(SINGLE) and calibration.known(SINGLE) is None
    assert not forms.Forms().lacks(SINGLE)


@tiled
def test_forms_of_a_run_that_there_are_not_here_are_not_taken(nothing_known):
    session = session_of((32, 16, 8), products="rule")
    before = session.chosen.forms
    auto = session_of((32, 16, 8))
    named = "packed packed packed, blas blas blas"
    for choices in (
        {"backend": "numba", "products": "packed"},
        {"backend": "numba", "products": "packed packed packed, blas blas sliced"},
        {"backend": "numba"},
        {"backend": "numpy", "products": named},
    ):
        auto.adopt(choices)
        assert (auto.chosen.forms == session_of((32, 16, 8)).chosen.forms).all()
    session.adopt({"backend": "numba", "products": named})
    assert (session.chosen.forms == before).all()  # as asked for
    auto.adopt({"backend": "numba", "products": named})
    assert auto.choices()["products"] == named


@tiled
def test_a_thread_that_waits_for_a_core_is_no_measure_of_meetings(monkeypatch):
    fastmlp.get_backend("numba")
    assert 1e-9 < calibration.time_meeting() <= calibration.LONGEST_MEETING
    monkeypatch.setattr(calibration, "LONGEST_MEETING", 1e-9)
    assert calibration.time_meeting() == 1e-9


@tiled
@pytest.mark.parametrize(("longest", "doubtful"), [(0.0, 1.0), (60.0, 1.0), (0.0, -1.0), (1.0, -1.0)])
def test_meetings_are_timed_at_several_moments_unless_each_takes_long(monkeypatch, longest, doubtful):
    """And at more, until the time is over, where none of them was one of which to believe it."""
    from fastmlp.kernels.cpu import operations

    calls, both = [0, 0], threading.Barrier(2, timeout=60)

    def meet(threads, times, arrivals, passed):
        if threads == 2:
            calls[both.wait()] += 1

    monkeypatch.setattr(operations, "meet", meet)
    monkeypatch.setattr(calibration, "LONGEST", longest)
    monkeypatch.setattr(calibration, "LONGEST_MEETING", doubtful)
    assert calibration.time_meeting() != 0
    wakes, rest = divmod(sum(calls), 2 * (1 + calibration.TRIES))
    assert rest == 0
    if longest and doubtful < 0:
        assert wakes > calibration.WAKES
    else:
        assert wakes == (calibration.WAKES if longest else 1)


@tiled
@pytest.mark.parametrize(
    ("direct", "reached"),
    [
        ({2048: 0.9e-3, 4096: 0.9e-3}, math.inf),
        ({2048: 1.005e-3, 4096: 1.005e-3}, math.inf),  # not slower
        ({2048: 0.9e-3, 4096: 1.05e-3}, 2048),
        ({2048: 1.05e-3, 4096: 0.9e-3}, 1024),
        ({2048: 0.9e-3, 4096: 0.03}, 2048),  # too slow a processor to try it out
        ({2048: 0.03, 4096: 0.9e-3}, 1024),
    ],
)
def test_weights_are_read_in_place_up_to_where_that_is_slower(monkeypatch, direct, reached):
    def call(training, precision, units, form, backend):
        return lambda: direct[4 * units[1]] if form == DIRECT else 1e-3

    monkeypatch.setattr(near, "_call", call)
    assert near.reach_of_direct(True, Precision.of(SINGLE), fastmlp.get_backend("numba")) == reached


@tiled
@pytest.mark.parametrize(
    ("direct", "reached"),
    [
        ([1.5e-3, 1e-3], math.inf),  # slower now and then, and as fast at best
        ([1.5e-3, 1e-3, 0.9e-3, 0.9e-3], math.inf),
        ([1e-3, 1.05e-3, 1.05e-3], math.inf),
        ([1.05e-3, 1.05e-3, 1.5e-3], 1024),
        ([0.03, 0.9e-3], math.inf),  # the first call alone takes long
    ],
)
def test_what_slows_calls_now_and_then_is_not_where_weights_lie(monkeypatch, direct, reached):
    def call(training, precision, units, form, backend):
        found = itertools.cycle(direct) if form == DIRECT else itertools.repeat(1e-3)
        return lambda: next(found)

    monkeypatch.setattr(near, "_call", call)
    assert near.reach_of_direct(True, Precision.of(SINGLE), fastmlp.get_backend("numba")) == reached


@tiled
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("training", [True, False])
def test_calls_of_either_kind_tell_how_far_weights_are_read_in_place(monkeypatch, dtype, training):
    monkeypatch.setattr(near, "ROUNDS", 1)
    monkeypatch.setattr(near, "LONG", 60.0)
    backend = fastmlp.get_backend("numba", threads=1, products="rule")
    assert near.reach_of_direct(training, Precision.of(np.dtype(dtype)), backend) in (1024, 2048, math.inf)
    monkeypatch.setattr("fastmlp.kernels.cpu.products.available_forms", lambda: (BLAS,))
    assert near.reach_of_direct(training, Precision.of(np.dtype(dtype)), backend) == 1024


@tiled
def test_a_call_has_the_form_that_it_is_timed_for(monkeypatch):
    sessions = []
    opened = NumbaBackend.open

    def open_(self, plan):
        sessions.append(opened(self, plan))
        return sessions[-1]

    monkeypatch.setattr(NumbaBackend, "open", open_)
    backend = fastmlp.get_backend("numba", threads=2, products="rule")
    for training in (True, False):
        for form in (DIRECT, PACKED):
            seconds = near._call(training, Precision.of(SINGLE), (32, 16), form, backend)
            assert seconds() > 0
            chosen = sessions[-1].chosen
            assert chosen.parts == 1 and chosen.forms.tolist() == [[form, PACKED, PACKED]]
            assert sessions[-1].network_of(near.ROWS).forms[0, FORWARD] == form


@tiled
def test_what_was_measured_says_where_weights_are_read_in_place(nothing_known):
    of, rule = forms.Forms().of, forms.Forms("rule").of
    for reached, asked in ((1024, (PACKED, PACKED)), (2048, (DIRECT, PACKED)), (math.inf, (DIRECT, DIRECT))):
        learn(near=reached)
        assert tuple(of(FORWARD, 128, 784, outputs, SINGLE) for outputs in (512, 513)) == asked
        assert forms.Forms().of_layers(128, 1, (784, 512), SINGLE, gradients=True)[0, FORWARD] == asked[0]
        assert of(GRADIENT, 128, 784, 512, SINGLE) == rule(FORWARD, 128, 784, 512, SINGLE) == PACKED


def test_where_there_are_no_tiles_all_products_are_the_blass(monkeypatch):
    from fastmlp.kernels.cpu import tiles

    monkeypatch.setattr(tiles, "AVAILABLE", False)
    for way in forms.WAYS:
        forms._of.cache_clear(), forms._of_layers.cache_clear()
        assert (session_of((32, 16, 4), products=way).chosen.forms == BLAS).all(), way
        assert not forms.Forms(way).left_open
    forms._of.cache_clear(), forms._of_layers.cache_clear()


@tiled
@pytest.mark.parametrize("registers", [16, 32])
def test_the_rule_copies_what_many_rows_read_or_what_lies_far_apart(monkeypatch, registers):
    from fastmlp.kernels.cpu import packing, tiles, vectors

    monkeypatch.setattr(vectors, "REGISTERS", registers)
    monkeypatch.setattr(forms, "_cache_bytes", lambda: 2**20)
    few, width = 4 * tiles.ROWS, packing.panel_width(SINGLE)
    seldom = DIRECT if registers == 32 else PACKED
    for product, rows, inputs, outputs, form in (
        (FORWARD, few, 784, 256, DIRECT),
        (FORWARD, 1000, 784, 256, DIRECT),
        (FORWARD, few, 784, 257, PACKED),
        # with 16 registers, where each few rows read all weights again, only what stays in a core's own cache
        (FORWARD, 1000, 1024, 256, DIRECT),
        (FORWARD, 1000, 1025, 256, seldom),
        (FORWARD, tiles.ROWS, 1025, 256, DIRECT),
        (FORWARD, 1000, 1025 * 256 // width, width, DIRECT),
        (GRADIENT, few, 784, 256, DIRECT),
        (GRADIENT, few, 784, 257, PACKED),
        (GRADIENT, few + 1, 784, 256, PACKED),
        (GRADIENT, few + 1, 257, 256, PACKED),
        (GRADIENT, few + 1, 256, 256, seldom),
        (GRADIENT, few + 1, 8 * tiles.ROWS + 1, 256, seldom),
        (GRADIENT, few + 1, 8 * tiles.ROWS, 256, DIRECT),
        (GRADIENT, few + 1, 256, 257, PACKED),
        (GRADIENT, few + 1, 784, width, DIRECT),
        # few panels of outputs pass by rows that lie in many sets of a cache: 768 x 4 bytes are three quarters of all
        (GRADIENT, few + 1, 784, 4 * width, DIRECT),
        (GRADIENT, few + 1, 784, 4 * width + 1, PACKED),
        (GRADIENT, few + 1, 768, 4 * width, PACKED),
        (GRADIENT, few + 1, 1024 + 64, 4 * width, DIRECT),
        (GRADIENT, few + 1, 1024 + 128, 4 * width, PACKED),
    ):
        assert forms.by_rule(product, rows, inputs, outputs, SINGLE) == form, (product, rows, inputs, outputs)
    # a thread's part of the inputs may be few; their rows are as far apart as before
    for inputs, parts, form in ((1152, 2, PACKED), (1024, 4, seldom), (48 * 4, 4, DIRECT), (1088, 2, DIRECT)):
        assert forms.by_rule(GRADIENT, few + 1, inputs, 4 * width, SINGLE, parts=parts) == form
    for rows, form in ((1, DIRECT), (tiles.ROWS, DIRECT), (tiles.ROWS + 1, PACKED)):
        assert forms.by_rule(FORWARD, rows, 784, 1024, SINGLE) == form
        assert forms.by_rule(GRADIENT, rows, 784, 1024, SINGLE) == PACKED
    assert [forms.by_rule(BACKWARD, rows, 784, 512, SINGLE) for rows in (1, 2, 8)] == [BLAS, PACKED, PACKED]


def test_the_rule_knows_how_large_a_cores_own_cache_is(monkeypatch, tmp_path):
    monkeypatch.setattr(forms, "CACHE_FILE", said := tmp_path / "size")
    for text, kib in (("1280K\n", 1280), ("256K", 256), ("1M\n", 512), ("", 512), ("\N{SNOWMAN}K", 512)):
        said.write_text(text, "utf-8")
        forms._cache_bytes.cache_clear()
        assert forms._cache_bytes() == 1024 * kib, text
    said.unlink()
    forms._cache_bytes.cache_clear()
    assert forms._cache_bytes() == forms.CACHE_BYTES == 2**19
    forms._cache_bytes.cache_clear()


@tiled
def test_a_few_rows_are_predicted_by_what_is_the_fastest_for_few():
    plan = Plan(make_spec((784, 1024, 10)), 1, Precision.of(SINGLE))
    backend = fastmlp.get_backend("numba", threads=1, products="rule")
    assert backend.open(plan).chosen.forms[0, FORWARD] == DIRECT
    assert backend.open(replace(plan, batch=100)).chosen.forms[0, FORWARD] == PACKED


@tiled
def test_a_session_for_many_rows_predicts_few_as_one_for_few_does():
    from fastmlp.kernels.cpu import tiles

    spec = make_spec((12288, 300, 10))  # so wide that a direct product needs more scratch than one with copies
    backend = fastmlp.get_backend("numba", threads=1, products="rule")
    many = backend.open(Plan(spec, 64, Precision.of(SINGLE)))
    rng = np.random.default_rng(0)
    x, params = rng.normal(size=(70, 12288)).astype("f4"), rng.normal(size=many.plan.layout.size).astype("f4")

    def predicted(session, rows):
        out = np.empty((rows, 10), SINGLE)
        backend.predict(session, params, x[:rows], out)
        return out

    for rows in (64, 1, tiles.ROWS, tiles.ROWS + 1, 64, 70):
        form = DIRECT if rows <= tiles.ROWS else PACKED
        assert many.network_of(rows).forms[0, FORWARD] == form
        alone = backend.open(Plan(spec, min(rows, 64), Precision.of(SINGLE)))
        np.testing.assert_array_equal(predicted(many, rows), predicted(alone, rows))
        assert many.inference_memory(1)[0].panels.size >= alone.inference_memory(1)[0].panels.size
    given = backend.open(Plan(spec, 64, Precision.of(SINGLE)))
    given.chosen.fix(np.full((2, 3), BLAS), 1)
    assert (given.network_of(1).forms == BLAS).all()


@tiled
def test_the_rule_looks_at_no_table(nothing_known, monkeypatch):
    def known(*_):
        raise AssertionError

    monkeypatch.setattr(forms, "known", known)
    monkeypatch.setattr(forms, "is_settled", known)
    monkeypatch.setattr("fastmlp.backends.cpu.choices.decisions", known)
    for way in ("rule", "blas", "direct", "packed"):
        model = fastmlp.MLP((32, 16, 8), backend=fastmlp.get_backend("numba", products=way), seed=0)
        model.fit(np.ones((8, 32)), np.zeros(8, int), epochs=1, verbose=0)


@tiled
def test_a_thread_has_to_earn_its_start(nothing_known):
    learn(start=1e-4, rate=1e7)  # 8 rows of 32-16 are 8192 operations: 0.82 ms
    for rows, threads in ((0, 1), (1, 1), (7, 1), (8, 2), (16, 4), (800, 8)):
        assert forms.Forms().threads_for(rows, 8, (32, 16), SINGLE) == threads
    assert forms.Forms("rule").threads_for(128, 2, (6, 16, 3), SINGLE) == 1
    assert forms.Forms("rule").threads_for(10_000, 2, (784, 512, 10), SINGLE) == 2


@tiled
def test_a_part_of_a_step_has_to_be_longer_than_its_thread_waits(nothing_known):
    parts_for = functools.partial(PARTS_FOR, forms.Forms())
    learn(meeting=1e-7, rate=4.096e9)  # 8 rows of 32-16, each of three products, 2 us; a part takes a hundred waits
    for rows, parts in ((0, 1), (8, 1), (26, 1), (27, 2), (270, 8)):
        assert parts_for(rows, 8, (32, 16), SINGLE) == parts, rows
    assert PARTS_FOR(forms.Forms("rule"), 8, 2, (6, 16, 3), SINGLE) == 1
    assert PARTS_FOR(forms.Forms("rule"), 128, 2, (784, 512, 10), SINGLE) == 2


@tiled
def test_parts_are_chosen_again_once_the_machine_is_known(nothing_known, monkeypatch):
    """But not those of a run that goes on."""
    monkeypatch.setattr(forms.Forms, "parts_for", PARTS_FOR)
    monkeypatch.setattr(forms.Forms, "lacks", lambda self, dtype: not calibration._tables)
    plan = Plan(make_spec((32, 16, 8)), 8, Precision.of(SINGLE), True, fastmlp.SGD(0.1).without_schedule())
    backend = fastmlp.get_backend("numba", threads=2)
    fresh, goes_on, as_it_was = (backend.open(plan) for _ in range(3))
    before = fresh.choices()
    as_it_was.adopt(before)
    named = "packed packed packed, blas blas blas"
    goes_on.adopt({"backend": "numba", "products": named, "parts": 2})
    assert (before["parts"], goes_on.chosen.parts, goes_on.chosen.crew.most) == (1, 2, 2)
    learn(rate=1e8)
    for session in (fresh, goes_on, as_it_was):
        session.choose_again()
    assert (fresh.chosen.parts, fresh.chosen.crew.most) == (2, 2)
    assert (goes_on.chosen.parts, goes_on.choices()["products"]) == (2, named)
    assert as_it_was.choices() == before
    for parts in (9, 3.0, True, "3"):  # more than two threads share out here; and what is no count
        goes_on.adopt({"backend": "numba", "products": named, "parts": parts})
        assert goes_on.chosen.parts == 2
    goes_on.adopt({"backend": "numba", "products": named, "parts": 8})
    assert (goes_on.chosen.parts, goes_on.chosen.crew.most) == (8, 2)


def test_a_way_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"products must be 'auto', 'rule', .*; got 'tiles'"):
        fastmlp.get_backend("numba", products="tiles")
