"""Ways to take a training step, tried on the run's own steps: what is decided, what is kept, and what is not."""

import json
import logging

import numpy as np
import pytest
from compare import assert_same_bits
from fastmlp.kernels.cpu.products import available_forms

import fastmlp
from fastmlp.backends import contest, decisions
from fastmlp.backends.cpu import calibration, trial
from fastmlp.backends.cpu import choices as cpu_choices
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.spec import make_spec

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
pytestmark = pytest.mark.skipif(
    not fastmlp.available_backends()["numba"].available or numba.config.DISABLE_JIT,
    reason="without compiled tiles there is nothing to choose",
)
UNITS = (32, 16, 8)
ALL = {"blas": "blas blas blas, blas blas blas", "packed": "packed packed packed, packed packed packed"}


@pytest.mark.parametrize(
    ("seconds", "ruled", "tried"),
    [
        ({1: 2, 2: 1, 4: 3, 8: 4}, 8, [4, 2, 1]),
        ({1: 5, 2: 4, 4: 3, 8: 1}, 8, [4]),
        ({1: 5, 2: 4, 4: 3, 8: 1}, 1, [2, 4, 8]),
        ({1: 5, 2: 4, 3: 1, 6: 2, 8: 1}, 3, [1, 6]),
        ({1: 5, 5: 3, 2: 4, 8: 1}, 5, [2, 8]),
        ({1: 1}, 1, []),
    ],
)
def test_parts_are_halved_or_doubled_as_long_as_that_is_faster(seconds, ruled, tried):
    found, most = [ruled], max(seconds)
    for parts in trial._numbers_of_parts(ruled, most, most, lambda: min(found, key=seconds.get)):
        found.append(parts)
    assert found[1:] == tried


@pytest.mark.parametrize(
    ("seconds", "finest", "tried"),
    [
        ({1: 9, 2: 4, 4: 3, 8: 5, 16: 1}, 16, [2, 8]),
        ({1: 9, 2: 4, 4: 3, 8: 2, 16: 1}, 16, [2, 8, 16]),
        ({1: 9, 2: 4, 4: 3, 8: 2, 16: 1}, 15, [2, 8]),
        ({1: 9, 2: 2, 4: 3, 8: 5, 16: 1}, 16, [2, 1, 8]),  # half of the threads may be those on the fast cores
        ({1: 9, 2: 2, 4: 3, 8: 1, 16: 4}, 16, [2, 1, 8, 16]),
        ({1: 9, 2: 4, 4: 3, 8: 1}, 7, [2]),
    ],
)
def test_more_parts_than_threads_are_tried_whatever_was_found(seconds, finest, tried):
    found = [4]
    for parts in trial._numbers_of_parts(4, 4, finest, lambda: min(found, key=seconds.get)):
        found.append(parts)
    assert found[1:] == tried


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A machine on which nothing was decided, and the folder where that is kept."""
    monkeypatch.setattr(decisions, "_known", {})
    monkeypatch.setattr(contest, "_tried", {})
    monkeypatch.setattr(cpu_choices, "kept_path", lambda what, dtype: tmp_path / f"{what}-{dtype}.json")
    return tmp_path


def model_and_data(**options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(320, 32)).astype("f4"), rng.integers(0, 8, 320)
    backend = fastmlp.get_backend("numba", threads=2, **options)
    return fastmlp.MLP(UNITS, backend=backend, dtype="float32", seed=0), x, y


def train(model, x, y, epochs=2, **options):
    model.fit(x, y, epochs=epochs, batch_size=16, verbose=0, **options)
    return [w.copy() for w in model.get_weights()]


def choices(model):
    return next(s for s in model._learner.sessions._idle if s.plan.optimizer is not None).choices()


@pytest.fixture
def decides(monkeypatch):
    """Let the ways that are tried take a step each, and the one named be the fastest."""

    def let(winner):
        tried = []

        def fastest(ruled, others, ahead):
            from fastmlp.backends.cpu.choices import named

            found = {}
            for c in (ruled, *others):
                assert c.sample(3) > 0
                tried.append((named(c.way.forms), c.way.parts, ahead.steps))
                found[named(c.way.forms)] = c
            return found.get(winner)

        monkeypatch.setattr(contest, "fastest", fastest)
        monkeypatch.setattr(trial, "is_worth_it", lambda expected, least: True)
        return tried

    return let


@pytest.mark.parametrize("fit", ["epochs", "steps"])
@pytest.mark.parametrize("optimizer", [fastmlp.SGD(0.1), fastmlp.Adam(clip_norm=1.0)], ids=["sgd", "adam"])
def test_what_is_decided_is_taken_kept_and_changes_no_weights(kept, decides, optimizer, fit):
    options = {"optimizer": optimizer, **({"validation_split": 0.1} if fit == "steps" else {})}
    tried = decides(ALL["blas"])
    model, x, y = model_and_data()
    found = train(model, x, y, **options)
    assert choices(model)["products"] == ALL["blas"]
    # as if it had always been so: the trial has left no trace in the weights, the counters or the order of rows
    asked, _, _ = model_and_data(products="blas")
    for a, b in zip(found, train(asked, x, y, **options), strict=True):
        assert_same_bits(a, b)
    steps = 2 * (320 if fit == "epochs" else 288) // 16
    assert {n for _, _, n in tried} == {steps} and {parts for _, parts, _ in tried} == {1, 2, 4}
    uniform = {forms for forms, parts, _ in tried if len(set(forms.replace(",", "").split())) == 1}
    assert len(uniform) == len(available_forms())
    (path,) = kept.iterdir()
    ((key, decision),) = json.loads(path.read_text())["decided"].items()
    assert "32-16-8, batch 16" in key and decision == {"products": ALL["blas"], "parts": 2}


def test_half_as_many_parts_are_tried_first_in_the_forms_that_suit_them(kept, decides):
    tried = decides(ALL["blas"])
    _, x, y = model_and_data()
    backend = fastmlp.get_backend("numba", threads=4)
    train(fastmlp.MLP(UNITS, backend=backend, dtype="float32", seed=0), x, y)
    assert [parts for _, parts, _ in tried[:2]] == [4, 2]
    asked = backend.open(Plan(make_spec(UNITS), 16, Precision.of(np.dtype("float32")), True, fastmlp.Adam()))
    assert [forms for forms, _, _ in tried[:2]] == [cpu_choices.named(asked.chosen.forms_in(n)) for n in (4, 2)]


def test_steps_that_are_timed_hardly_move_the_weights(kept, decides, monkeypatch):
    """Else they would be those of another run: rectifiers that are dead, or losses that are not finite."""
    seen, steps_on = [], trial.steps_on

    def watched(backend, session, state, *given):
        seen.append((state, state.params.copy()))
        return steps_on(backend, session, state, *given)

    monkeypatch.setattr(trial, "steps_on", watched)
    decides(ALL["blas"])
    model, x, y = model_and_data()
    train(model, x, y, optimizer=fastmlp.SGD(0.5))
    assert len(seen) > 3
    for state, before in seen:
        assert state.step > 0 and np.abs(state.params - before).max() < 1e-6


def test_a_decision_holds_for_later_fits_and_processes(kept, decides, monkeypatch):
    tried = decides(ALL["blas"])
    before, x, y = model_and_data()
    with monkeypatch.context() as nowhere:
        nowhere.setattr(cpu_choices, "kept_path", lambda what, dtype: None)
        train(before, x, y)
    assert not tried and "blas" not in choices(before)["products"]  # no folder that can be written: the rule's
    found = train(model_and_data()[0], x, y)
    count = len(tried)
    assert count > 3
    train(before, x, y)  # a session that had been made by the rule
    assert choices(before)["products"] == ALL["blas"]
    decisions._known.clear()  # as another process
    again, *_ = model_and_data()
    for a, b in zip(found, train(again, x, y), strict=True):
        assert_same_bits(a, b)
    assert len(tried) == count
    for other in (fastmlp.SGD(0.1), fastmlp.SGD(0.1, clip_norm=1.0)):  # their steps are others
        train(model_and_data()[0], x, y, optimizer=other)
    train(model_and_data()[0], x, y, optimizer=fastmlp.SGD(0.3, momentum=0.5))
    assert len(tried) == 4 * count and len(json.loads(next(kept.iterdir()).read_text())["decided"]) == 4


def test_what_another_process_decided_meanwhile_stands(kept, decides):
    decides(ALL["blas"])
    model, x, y = model_and_data()
    train(model, x, y)
    (path,) = kept.iterdir()
    path.write_text(path.read_text().replace("blas blas blas", "packed packed packed"))
    decisions._known[path].clear()  # as a process that looked before the other one wrote
    later, *_ = model_and_data()
    train(later, x, y)
    assert choices(later)["products"] == ALL["packed"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "{",
        lambda text: "null",
        lambda text: text.replace('"processor": "', '"processor": "not '),
        lambda text: text.replace('"parts": 2', '"parts": "two"'),
        lambda text: text.replace('"parts": 2', '"parts": 9'),
        lambda text: text.replace("blas blas blas", "blas sliced blas"),
        lambda text: text.replace("blas blas blas, ", ""),
    ],
)
def test_a_damaged_decision_is_made_anew(kept, decides, damage):
    tried = decides(ALL["blas"])
    model, x, y = model_and_data()
    train(model, x, y)
    (path,) = kept.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    assert path.read_text() != whole
    decisions._known.clear(), tried.clear()
    train(model_and_data()[0], x, y)
    assert tried and path.read_text() == whole


def test_a_run_that_goes_on_takes_the_way_that_it_had(kept, decides, tmp_path_factory):
    class Breaks(fastmlp.Callback):
        armed = True

        def on_epoch_end(self, run, figures):
            if self.armed:
                raise InterruptedError

    folder = tmp_path_factory.mktemp("run")
    tried = decides(ALL["packed"])
    whole, x, y = model_and_data()
    half, *_ = model_and_data()
    train(whole, x, y)
    with pytest.raises(InterruptedError):
        train(half, x, y, callbacks=[fastmlp.Checkpoint(folder / "run", every_steps=7), Breaks()])
    Breaks.armed = False
    (path,) = kept.iterdir()
    for text in (path.read_text().replace("packed", "blas"), "{}"):  # decided otherwise since, or not at all
        path.write_text(text)
        decisions._known.clear(), tried.clear()
        resumed = fastmlp.load(folder / "run", backend=fastmlp.get_backend("numba", threads=2))
        resumed.resume(x, y, verbose=0)
        for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
            assert_same_bits(a, b)
        assert not tried


def test_steps_that_cannot_be_timed_are_left_to_the_rule(kept, monkeypatch):
    monkeypatch.setattr(contest, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(contest, "MOST_SECONDS", 60.0)
    monkeypatch.setattr(contest, "SHARE", 1e9)
    monkeypatch.setattr(contest, "UNSTEADY", 1e9)
    model, x, y = model_and_data()
    with pytest.raises(fastmlp.NonFiniteLossError):
        train(model, np.full_like(x, 3e38), y, optimizer=fastmlp.SGD(0.1))
    assert not list(kept.iterdir())
    none = np.zeros(320)
    none[20:40] = 1  # of most batches nobody counts, nor of the first
    train(model_and_data()[0], np.ones_like(x), y, sample_weight=none, shuffle=False)
    assert len(list(kept.iterdir())) == 1


def test_nothing_is_tried_for_short_runs_other_backends_or_what_was_asked_for(kept, monkeypatch):
    def contender(*_):
        raise AssertionError

    monkeypatch.setattr(trial, "_contender", contender)
    model, x, y = model_and_data()
    train(model, x, y)  # some milliseconds: not even a step is tried
    monkeypatch.setattr(trial, "is_worth_it", lambda expected, least: True)
    for way in ("rule", "blas", "direct", "packed"):
        train(model_and_data(products=way)[0], x, y)
    train(fastmlp.MLP(UNITS, backend="numpy", seed=0), x, y)


def test_a_short_fit_does_not_look_again_for_what_nobody_has_decided(kept, monkeypatch):
    model, x, y = model_and_data()
    train(model, x, y)
    looked, decisions_of = [], cpu_choices.decisions

    def watched(*given):
        looked.append(given)
        return decisions_of(*given)

    monkeypatch.setattr(cpu_choices, "decisions", watched)
    train(model, x, y)
    assert not looked
    decisions_of("steps", np.dtype("float32")).keep("of another shape", {"products": ALL["blas"], "parts": 1})
    train(model, x, y)
    train(model, x, y)
    assert len(looked) == 1


def test_a_machine_that_stays_busy_is_not_asked_for_ever(kept, monkeypatch):
    asked = []

    def fastest(ruled, others, ahead):
        ruled.sample(1)
        asked.append(1)

    monkeypatch.setattr(contest, "fastest", fastest)
    monkeypatch.setattr(trial, "is_worth_it", lambda expected, least: True)
    for _ in range(contest.MOST_TRIALS + 2):
        model, x, y = model_and_data()
        train(model, x, y)
    assert len(asked) == contest.MOST_TRIALS and not list(kept.iterdir())


def test_real_steps_are_timed_and_said(kept, monkeypatch, caplog):
    monkeypatch.setattr(contest, "SHARE", 1e9)
    monkeypatch.setattr(contest, "SAMPLE_SECONDS", 1e-4)
    monkeypatch.setattr(contest, "MOST_SECONDS", 60.0)
    monkeypatch.setattr(contest, "UNSTEADY", 1e9)
    model, x, y = model_and_data()
    with caplog.at_level(logging.INFO, logger="fastmlp"):
        train(model, x, y)
    (decision,) = cpu_choices.decisions("steps", np.dtype("float32")).all().values()
    assert decision["products"] in caplog.text and choices(model)["products"] == decision["products"]
    assert json.loads(next(kept.iterdir()).read_text())["machine"] == calibration.machine()
