"""Which form products take: by the rule, by what was measured on this machine, by what a run had that goes on."""

import functools
import json
import os
import time

import numpy as np
import pytest
from compare import assert_same_bits

import fastmlp
from fastmlp.backends.cpu import calibration, forms
from fastmlp.backends.cpu.calibration import Measured, Table
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
    forget()
    yield
    monkeypatch.undo()
    forget()


def forget():
    forms._of.cache_clear()
    forms._of_layers.cache_clear()
    forms._parts_for.cache_clear()


def learn(*measured):
    """Let this be what was measured in float32."""
    calibration._tables[SINGLE] = Table([Measured(*m) for m in measured], 1e-4, 1e-7)
    calibration._settled.add(SINGLE)
    forget()


def evenly(*seconds):
    return [(product, 8, 32, 16, seconds) for product in range(3)]


def session_of(units, batch=16, **options):
    plan = Plan(make_spec(units), batch, Precision.of(SINGLE), True, fastmlp.SGD(0.1).without_schedule())
    return fastmlp.get_backend("numba", threads=1, **options).open(plan)


@tiled
def test_what_is_measured_is_kept_and_read_back(nothing_known, monkeypatch, tmp_path):
    fastmlp.get_backend("numba")
    path = tmp_path / "table.json"
    monkeypatch.setattr(calibration, "table_path", lambda dtype: path)
    monkeypatch.setattr(calibration, "SECONDS", 0.0)  # one shape in all three products, then no more
    assert not calibration.is_settled(SINGLE) and calibration.known(SINGLE) is None
    calibration.calibrate(SINGLE, lambda: None)
    table = calibration.known(SINGLE)
    assert [m.product for m in table.measured] == [0, 1, 2] and all(len(m.seconds) == 3 for m in table.measured)
    assert all(1e-9 < s < 1 for m in table.measured for s in m.seconds)
    assert 1e-9 < table.meeting < 0.1 and 1e-7 < table.start < 1
    calibration._tables.clear(), calibration._settled.clear()
    assert calibration.is_settled(SINGLE) and calibration.known(SINGLE).measured == table.measured


@tiled
def test_the_compiler_does_not_use_up_the_time_of_the_measurement(monkeypatch):
    shapes = []

    def time_product(which, shape, dtype):
        if not shapes:
            time.sleep(0.3)
        shapes.append((which, *shape))
        return (1.0, 1.0, 1.0)

    monkeypatch.setattr(calibration, "time_product", time_product)
    monkeypatch.setattr(calibration, "SECONDS", 0.2)
    found = calibration.measure(SINGLE).measured
    assert len(found) > 100 and [(m.product, m.rows, m.inputs, m.outputs) for m in found] == shapes[1:]


@tiled
def test_a_shape_far_from_all_that_was_measured_goes_by_the_rule(nothing_known):
    learn(*((p, 16, 64, 64, (1.0, 9.0, 9.0)) for p in range(3)))
    assert forms.Forms().of(BACKWARD, 64, 256, 256, SINGLE) == BLAS  # 2 + 2 + 2
    assert forms.Forms().of(BACKWARD, 65, 256, 256, SINGLE) == forms.by_rule(BACKWARD, 65, 256, 256, SINGLE)


@tiled
@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "{",
        lambda kept: json.dumps({**kept, "machine": {**kept["machine"], "processor": "another"}}),
        lambda kept: json.dumps({**kept, "measured": []}),
        lambda kept: json.dumps({**kept, "measured": [[*m[:4], [1.0, 2.0]] for m in kept["measured"]]}),
        lambda kept: json.dumps({**kept, "measured": [[*m[:4], [1.0, 2.0, -1.0]] for m in kept["measured"]]}),
        lambda kept: json.dumps({**kept, "measured": [[*m[:4], [1.0, 2.0, float("nan")]] for m in kept["measured"]]}),
        lambda kept: json.dumps({**kept, "measured": 7}),
        lambda kept: json.dumps([kept]),
        lambda kept: json.dumps({**kept, "start": 0}),
        lambda kept: json.dumps({k: v for k, v in kept.items() if k != "start"}),
        lambda kept: json.dumps({k: v for k, v in kept.items() if k != "meeting"}),
        lambda kept: json.dumps({**kept, "meeting": -1e-6}),
    ],
)
def test_a_damaged_table_is_made_anew(nothing_known, monkeypatch, tmp_path, damage):
    path = tmp_path / "table.json"
    monkeypatch.setattr(calibration, "table_path", lambda dtype: path)
    kept = {"machine": calibration.machine(), "start": 1e-4, "meeting": 1e-6}
    kept["measured"] = [[*m] for m in evenly(1.0, 2.0, 3.0)]
    path.write_text(json.dumps(kept))
    assert calibration._read(path).measured == [Measured(*m) for m in evenly(1.0, 2.0, 3.0)]
    path.write_text(damage(kept))
    assert calibration.known(SINGLE) is None and not calibration.is_settled(SINGLE)
    again = Table([Measured(*m) for m in evenly(3.0, 2.0, 1.0)], 1e-4, 1e-7)
    monkeypatch.setattr(calibration, "measure", lambda dtype: again)
    calibration.calibrate(SINGLE, lambda: None)
    assert calibration._read(path).measured == [Measured(*m) for m in evenly(3.0, 2.0, 1.0)]
    assert os.listdir(tmp_path) == ["table.json"]


@tiled
def test_ctrl_c_ends_the_measurement_and_keeps_nothing(nothing_known, monkeypatch, tmp_path):
    path = tmp_path / "table.json"
    monkeypatch.setattr(calibration, "table_path", lambda dtype: path)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate(SINGLE, interrupted)
    assert not path.exists() and not calibration.is_settled(SINGLE)


def test_where_no_folder_can_be_written_nothing_is_measured(nothing_known, monkeypatch):
    monkeypatch.setattr(calibration, "table_path", lambda dtype: None)
    assert calibration.is_settled(SINGLE) and calibration.known(SINGLE) is None
    assert not forms.Forms().lacks(SINGLE)


@tiled
def test_the_fastest_form_is_taken_where_it_is_more_than_noise_faster_than_the_rules(nothing_known):
    ruled = forms.by_rule(FORWARD, 8, 32, 16, SINGLE)
    for other in {BLAS, DIRECT, PACKED} - {ruled}:
        for gain, expected in ((1.04, ruled), (1.06, other)):
            seconds = [10.0] * 3
            seconds[ruled], seconds[other] = gain, 1.0
            learn(*evenly(*seconds))
            assert forms.Forms().of(FORWARD, 8, 32, 16, SINGLE) == expected
            assert forms.Forms("rule").of(FORWARD, 8, 32, 16, SINGLE) == ruled
            assert forms.Forms("packed").of(FORWARD, 8, 32, 16, SINGLE) == PACKED


@tiled
def test_a_shape_that_was_not_measured_goes_by_the_nearest_one(nothing_known):
    fast = {form: tuple(1.0 if f == form else 9.0 for f in range(3)) for form in range(3)}
    learn(
        *((p, 16, 64, 64, fast[BLAS]) for p in range(3)),
        *((p, 256, 64, 64, fast[PACKED]) for p in range(3)),
        *((p, 16, 1024, 64, fast[DIRECT]) for p in range(3)),
    )
    of = forms.Forms().of
    assert of(BACKWARD, 20, 100, 50, SINGLE) == BLAS
    assert of(BACKWARD, 300, 100, 50, SINGLE) == PACKED
    assert of(BACKWARD, 20, 784, 50, SINGLE) == DIRECT


@tiled
def test_the_blas_has_to_be_worth_the_gathering_of_the_lowest_layers_rows(nothing_known):
    for seconds, lowest in (((1.0, 1.09, 1.2), DIRECT), ((1.0, 1.2, 1.09), PACKED), ((1.0, 1.2, 1.2), BLAS)):
        learn(*evenly(*seconds))
        found = session_of((32, 16, 8)).chosen.forms
        assert found[0, FORWARD] == found[0, GRADIENT] == lowest
        # the layer above gathers nothing: only what is nearly as fast stays with the rule
        assert found[1, BACKWARD] == BLAS


def test_where_there_are_no_tiles_all_products_are_the_blass_whatever_was_measured(nothing_known, monkeypatch):
    """A table may have been written with tiles, and be read with the JIT off, where nothing looks at a row's index."""
    from fastmlp.kernels.cpu import tiles

    monkeypatch.setattr(tiles, "AVAILABLE", False)
    learn(*evenly(3e-6, 1e-6, 2e-6))
    for way in forms.WAYS:
        assert (session_of((32, 16, 4), products=way).chosen.forms == BLAS).all(), way
    assert not forms.Forms("auto").lacks(np.dtype("float64"))


@tiled
def test_the_rule_looks_at_no_table(nothing_known, monkeypatch):
    def known(dtype):
        raise AssertionError

    monkeypatch.setattr(forms, "known", known)
    monkeypatch.setattr(forms, "is_settled", known)
    forget()
    for way in ("rule", "blas", "direct", "packed"):
        model = fastmlp.MLP((32, 16, 8), backend=fastmlp.get_backend("numba", products=way), seed=0)
        model.fit(np.ones((8, 32)), np.zeros(8, int), epochs=1, verbose=0)


@tiled
def test_a_run_that_goes_on_takes_the_forms_that_it_had(nothing_known, tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 32)).astype("f4"), rng.integers(0, 8, 100)

    def model():
        return fastmlp.MLP((32, 16, 8), backend=fastmlp.get_backend("numba", threads=1), dtype="float32", seed=0)

    learn(*evenly(3.0, 1.0, 2.0))

    class Breaks(fastmlp.Callback):
        armed = True

        def on_epoch_end(self, run, figures):
            if self.armed:
                raise InterruptedError

    whole, half = model(), model()
    whole.fit(x, y, epochs=2, batch_size=16, verbose=0)
    callbacks = [fastmlp.Checkpoint(tmp_path / "run", every_steps=7), Breaks()]
    with pytest.raises(InterruptedError):
        half.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=callbacks)
    Breaks.armed = False
    learn(*evenly(1.0, 3.0, 2.0))
    assert "blas" in session_of((32, 16, 8)).choices()["products"]
    resumed = fastmlp.load(tmp_path / "run", backend=fastmlp.get_backend("numba", threads=1))
    resumed.resume(x, y, callbacks=callbacks, verbose=0)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        assert_same_bits(a, b)


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
def test_a_thread_has_to_earn_its_start(nothing_known):
    learn(*evenly(0.8e-3, 2e-3, 3e-3))  # for 8 rows; a start takes 0.1 ms
    for rows, threads in ((0, 1), (1, 1), (3, 1), (4, 2), (8, 4), (800, 8)):
        assert forms.Forms().threads_for(rows, 8, (32, 16), SINGLE) == threads
    assert forms.Forms("rule").threads_for(128, 2, (6, 16, 3), SINGLE) == 1
    assert forms.Forms("rule").threads_for(10_000, 2, (784, 512, 10), SINGLE) == 2


@tiled
def test_a_part_of_a_step_has_to_be_longer_than_its_thread_waits(nothing_known):
    parts_for = functools.partial(PARTS_FOR, forms.Forms())
    learn(*evenly(2e-6, 3e-6, 4e-6))  # for 8 rows, each of three products; a wait takes 1e-7, a part a hundred of them
    for rows, parts in ((0, 1), (8, 1), (26, 1), (27, 2), (270, 8)):
        assert parts_for(rows, 8, (32, 16), SINGLE) == parts, rows
    assert PARTS_FOR(forms.Forms("rule"), 8, 2, (6, 16, 3), SINGLE) == 1
    assert PARTS_FOR(forms.Forms("rule"), 128, 2, (784, 512, 10), SINGLE) == 2


@tiled
def test_a_thread_that_waits_for_a_core_is_no_measure_of_meetings(monkeypatch):
    fastmlp.get_backend("numba")
    assert 1e-9 < calibration.time_meeting() <= calibration.LONGEST_MEETING
    monkeypatch.setattr(calibration, "LONGEST_MEETING", 1e-9)
    assert calibration.time_meeting() == calibration.MEETING


@tiled
def test_parts_and_forms_are_chosen_again_once_the_machine_is_known(nothing_known, monkeypatch):
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
    assert (before["parts"], goes_on.chosen.parts, goes_on.chosen.crew.parts) == (1, 2, 2)
    learn(*evenly(1.0, 3.0, 2.0))
    for session in (fresh, goes_on, as_it_was):
        session.choose_again()
    assert (fresh.chosen.parts, fresh.chosen.crew.parts, fresh.choices()["products"]) == (
        2,
        2,
        "blas blas blas, blas blas blas",
    )
    assert (goes_on.chosen.parts, goes_on.choices()["products"]) == (2, named)
    assert as_it_was.choices() == before
    goes_on.adopt({"backend": "numba", "products": named, "parts": 3})  # there are no three threads here
    assert goes_on.chosen.parts == 2


def test_a_way_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"products must be 'auto', 'rule', .*; got 'tiles'"):
        fastmlp.get_backend("numba", products="tiles")
