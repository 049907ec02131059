"""What "auto" stands for: the environment's word, the first choice, or what a long run was measured to be faster on."""

import logging
import math
import pickle
import time
from typing import ClassVar

import numpy as np
import pytest

import fastmlp
from fastmlp.backends import contest, decisions, registry
from fastmlp.backends.decisions import Decisions
from fastmlp.backends.numpy_backend import NumpyBackend
from fastmlp.backends.registry import Availability
from fastmlp.convert import from_sklearn, to_sklearn
from fastmlp.engine import backend_trial, runs
from fastmlp.errors import KernelError

UNITS = (6, 5, 3)
SLOW_STEP = 15e-3
"""Seconds: longer than a step of the other one takes where other programs have the cores meanwhile."""


class Other(NumpyBackend):
    """A backend that takes its time, or less than the one that is there."""

    name = "other"
    fails_at = 0
    starting: ClassVar[list[float]] = []
    """Seconds that its next calls take more."""
    slow_batch = 0
    """Rows of steps that it is slower in than the other one."""

    def train_steps(self, session, state, data, order, table, *arguments):
        Other.fails_at -= 1
        if Other.fails_at == 0:
            raise KernelError("it fails", kernel="some_kernel")
        time.sleep(Other.starting.pop(0) if Other.starting else 0.0)
        if session.plan.batch == Other.slow_batch:
            time.sleep(4 * SLOW_STEP * len(table))
        return super().train_steps(session, state, data, order, table, *arguments)


class Slow(NumpyBackend):
    name = "slow"

    def train_steps(self, session, state, data, order, table, *arguments):
        time.sleep(SLOW_STEP * len(table))
        return super().train_steps(session, state, data, order, table, *arguments)


def probe():
    return Availability(True, "a machine of its own")


passed = True


def selftest_passed():
    return passed


@pytest.fixture
def rivals(monkeypatch, tmp_path):
    """Two backends of which "auto" may choose, and a place where it keeps what it found."""
    monkeypatch.delenv("FASTMLP_BACKEND", raising=False)
    registry.register_backend("other", __name__, "Other")
    registry.register_backend("slow", __name__, "Slow")
    monkeypatch.setattr(registry, "_AUTOMATIC", ("slow",))
    monkeypatch.setattr(registry, "_RIVALS", {"other": "numpy"})
    monkeypatch.setattr(backend_trial, "SHORT_RUN", 0.0)
    monkeypatch.setattr(contest, "SHARE", 1e9)
    monkeypatch.setattr(contest, "UNSTEADY", 1e9)
    monkeypatch.setattr(contest, "SAMPLE_SECONDS", 1e-3)
    monkeypatch.setattr(contest, "MOST_SECONDS", 60.0)
    monkeypatch.setattr(decisions, "_known", {})
    monkeypatch.setattr(backend_trial, "_took", {})
    kept = tmp_path  # a file for each backend, as CPU and GPU have
    monkeypatch.setattr(NumpyBackend, "decisions", lambda self, *_: Decisions(kept / f"{self.name}.json", {}))
    for attribute in ("fails_at", "slow_batch"):
        monkeypatch.setattr(Other, attribute, 0)
    for name in ("other", "slow"):
        monkeypatch.delitem(registry._made, name, raising=False)
    yield tmp_path
    for name in ("other", "slow"):
        registry._made.pop(name, None)


def trained(backend="auto", **options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64)
    model = fastmlp.MLP(UNITS, backend=backend, seed=0)
    model.fit(x, y, epochs=2, batch_size=16, verbose=0, **options)
    return model


def estimator(backend="auto", kind=fastmlp.MLPClassifier, fits="fit", **options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64)
    options = {"epochs": 2, "batch_size": 16, "random_state": 0, **options}
    classes = {} if fits == "fit" else {"classes": [0, 1, 2]}
    return getattr(kind(hidden_layer_sizes=UNITS[1:-1], backend=backend, **options), fits)(x, y, **classes)


def same_bits(one, other):
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("kind", "options"),
    [(fastmlp.MLPClassifier, {"early_stopping": True}), (fastmlp.MLPRegressor, {"solver": "sgd", "momentum": 0.5})],
)
def test_a_long_fit_of_an_estimator_moves_and_says_why(rivals, kind, options):
    found = estimator(kind=kind, **options)
    assert found.model_.backend.name == "other" and "ms on slow" in str(found.model_.backend_choice)
    by_name = estimator("other", kind, **options)
    assert same_bits(found.coefs_, by_name.coefs_) and found.loss_curve_ == by_name.loss_curve_
    assert getattr(found, "validation_scores_", None) == getattr(by_name, "validation_scores_", None)
    again = pickle.loads(pickle.dumps(found))
    assert again.model_.backend_choice == found.model_.backend_choice
    x = np.zeros((3, 6), "f4")
    assert np.array_equal(again.predict(x), found.predict(x))


def test_an_estimator_stays_where_its_parameters_keep_it(rivals, monkeypatch):
    monkeypatch.setattr(backend_trial, "_tried", None)
    for options in ({"exact": True}, {"n_jobs": -1}, {"solver": "lbfgs", "epochs": None, "max_iter": 200}):
        kept = estimator(**options).model_
        assert kept.backend.name == ("numpy" if "exact" in options else "slow")
    assert estimator("slow").model_.backend_choice.why == "asked for"
    monkeypatch.setenv("FASTMLP_BACKEND", "numpy")
    assert str(estimator().model_.backend_choice) == "numpy (FASTMLP_BACKEND=numpy)"


def test_an_estimator_that_goes_on_asks_again_where_its_parameters_do(rivals):
    found = estimator("numpy", warm_start=True)
    assert not found.model_.backend_choice.left_open
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64)
    found.set_params(backend="auto").fit(x, y)
    assert found.model_.backend.name == "other"
    found.fit(x, y)  # where the trial has brought it
    assert found.model_.backend.name == "other"


def test_short_fits_one_after_the_other_take_trial_steps_once(rivals, monkeypatch):
    monkeypatch.setattr(backend_trial, "SHORT_RUN", 60.0)
    tried, real = [], backend_trial._tried
    monkeypatch.setattr(backend_trial, "_tried", lambda *given: tried.append(1) or real(*given))
    found, rng = estimator(fits="partial_fit"), np.random.default_rng(1)
    for _ in range(3):
        found.partial_fit(rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64))
    assert len(tried) == 1 and found.model_.backend.name == "slow"
    monkeypatch.setattr(backend_trial, "SHORT_RUN", 1e-9)
    found.partial_fit(rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64))
    assert len(tried) == 2 and found.model_.backend.name == "other"


def test_a_model_from_a_file_takes_part_where_nobody_says_otherwise(rivals):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64)
    file = rivals / "model.safetensors"
    fastmlp.MLP(UNITS, backend="numpy", seed=0).save(file)
    for backend, name in (("auto", "other"), ("slow", "slow")):
        model = fastmlp.load(file, backend)
        assert model.backend_choice.left_open == (backend == "auto")
        model.fit(x, y, epochs=2, batch_size=16, verbose=0)
        assert model.backend.name == name
    converted = from_sklearn(to_sklearn(fastmlp.load(file, "numpy")))
    assert converted.backend_choice.left_open and converted.backend.name == "slow"


def test_the_environment_says_what_auto_is(monkeypatch):
    monkeypatch.setenv("FASTMLP_BACKEND", "numpy")
    model = fastmlp.MLP(UNITS, seed=0)
    assert model.backend.name == "numpy" and str(model.backend_choice) == "numpy (FASTMLP_BACKEND=numpy)"
    assert fastmlp.get_backend().name == "numpy" and not model.backend_choice.left_open
    for asked in ("", " auto "):
        monkeypatch.setenv("FASTMLP_BACKEND", asked)
        assert fastmlp.get_backend().name == registry.choose_backend()[0]
        assert fastmlp.MLP(UNITS, seed=0).backend_choice.left_open
    monkeypatch.setenv("FASTMLP_BACKEND", "nunpy")
    with pytest.raises(fastmlp.BackendUnavailable, match=r"variable FASTMLP_BACKEND=nunpy: backend 'nunpy' is .*numpy"):
        fastmlp.MLP(UNITS, seed=0)
    # who asks by name is not concerned
    assert fastmlp.MLP(UNITS, backend="numpy", seed=0).backend_choice.why == "asked for"


def test_a_backend_of_the_environment_that_cannot_run_is_told_so(monkeypatch):
    monkeypatch.setenv("FASTMLP_BACKEND", "cupy")
    if fastmlp.available_backends()["cupy"].available:
        pytest.skip("there is a GPU")
    with pytest.raises(fastmlp.BackendUnavailable, match="FASTMLP_BACKEND=cupy, but that backend cannot run here"):
        fastmlp.MLP(UNITS, seed=0)


def test_a_long_run_moves_to_the_faster_backend_and_says_why(rivals, caplog):
    with caplog.at_level(logging.INFO, logger="fastmlp"):
        model = trained()
    choice = model.backend_choice
    assert (model.backend.name, choice.name) == ("other", "other")
    assert choice.seconds["other"] < choice.seconds["slow"] and "ms on slow" in str(choice)
    assert str(choice) in caplog.text
    # nothing of the trial is left in the weights
    for a, b in zip(model.get_weights(), trained("other").get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    again = pickle.loads(pickle.dumps(model))
    assert again.backend_choice == choice
    assert model.to("numpy").backend_choice.why == "asked for"


def test_what_a_device_needs_before_its_first_steps_neither_counts_nor_speaks_against_it(rivals, monkeypatch):
    """As CUDA, which has to be started, kernels to be loaded, and graphs to be captured."""
    monkeypatch.setattr(contest, "MOST_SECONDS", 0.8)
    monkeypatch.setattr(contest, "SAMPLE_SECONDS", 8e-3)  # two steps of 5 ms
    monkeypatch.setattr(contest, "LONG_SHARE", 0.0)
    monkeypatch.setattr(Other, "starting", [0.5, 0.0, 0.5])  # the third call is the first of several steps
    took, real = [], runs.settle
    monkeypatch.setattr(runs, "settle", lambda *given: took.append(real(*given)) or took[-1])
    began = time.perf_counter()
    assert trained().backend.name == "other" and not Other.starting
    assert 0 < took[0] < 0.8 and time.perf_counter() - began > 1.0 + took[0]


def test_what_trials_of_a_run_take_is_bounded_together(rivals, monkeypatch):
    ahead = []

    def train_steps(self, session, *given):
        ahead.append(session.ahead)
        return NumpyBackend.train_steps(self, session, *given)

    monkeypatch.setattr(runs, "settle", lambda *_: 0.25)
    monkeypatch.setattr(Slow, "train_steps", train_steps)
    trained()
    assert ahead[0] == (8, 0.25, math.inf)
    ahead.clear()
    monkeypatch.setattr(runs, "settle", lambda *_: 0.0)
    trained()
    assert ahead[0] == (8, 0.0, math.inf)


def test_what_steps_took_elsewhere_says_nothing_of_a_run_here(rivals, monkeypatch):
    """A model on the GPU notes how short its steps are: one on the CPU is not kept there by that."""
    monkeypatch.setattr(Other, "slow_batch", 32)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64)
    model = trained()
    assert model.backend.name == "other"
    monkeypatch.setattr(backend_trial, "SHORT_RUN", 0.02)  # less than 8 steps of 5 ms, more than eight fast ones
    for step in (1, 2):
        model.fit(x, y, epochs=2, batch_size=17, verbose=0)  # of another shape
        assert model.backend.name == "other" and len(backend_trial._took) == 2, step
    new = fastmlp.MLP(UNITS, seed=0)
    new.fit(x, y, epochs=2, batch_size=17, verbose=0)
    assert new.backend.name == "other"


@pytest.mark.parametrize("other_first", [True, False])
def test_a_model_that_has_moved_goes_back_where_other_steps_are_faster_there(rivals, monkeypatch, other_first):
    monkeypatch.setattr(Other, "slow_batch", 32)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64)
    model, tried, real = fastmlp.MLP(UNITS, seed=0), [], backend_trial.fastest
    monkeypatch.setattr(backend_trial, "fastest", lambda *given: tried.append(given[0].way) or real(*given))
    each = [(16, "other"), (32, "slow")]
    for batch, name in (each if other_first else each[::-1]) * 2:
        model.fit(x, y, epochs=2, batch_size=batch, verbose=0)
        assert model.backend.name == name and set(model.backend_choice.seconds) <= {"other", "slow"}
    assert tried == ["slow", "other" if other_first else "slow"]  # and what was decided holds from either


def test_what_was_decided_is_not_tried_again(rivals, monkeypatch):
    first = trained()
    monkeypatch.setattr(backend_trial, "fastest", None)
    assert trained().backend_choice == first.backend_choice
    decisions._known.clear()  # as another process
    assert trained().backend_choice == first.backend_choice
    (file,) = rivals.iterdir()
    for damaged in ('"backend": "nowhere"', '"backend": 7'):
        kept = file.read_text()
        file.write_text(kept.replace('"backend": "other"', damaged))
        assert file.read_text() != kept
        decisions._known.clear()
        with pytest.raises(TypeError):  # tried, by nothing
            trained()
        file.write_text(kept)


def test_the_first_choice_stays_where_it_is_as_fast(rivals, monkeypatch):
    monkeypatch.setattr(registry, "_AUTOMATIC", ("other",))
    monkeypatch.setattr(registry, "_RIVALS", {"slow": "numpy"})
    model = trained()
    assert model.backend.name == "other" and set(model.backend_choice.seconds) <= {"other", "slow"}
    assert "other" in model.backend_choice.seconds


def test_nothing_is_tried_for_short_runs_by_name_or_without_a_self_test(rivals, monkeypatch):
    monkeypatch.setattr(backend_trial, "SHORT_RUN", 60.0)
    model = trained()
    assert model.backend.name == "slow" and not list(rivals.iterdir())
    monkeypatch.setattr(backend_trial, "_tried", None)
    assert trained("slow").backend_choice.why == "asked for"
    monkeypatch.setitem(globals(), "passed", False)
    cure = "other was not tested on this GPU: fastmlp selftest --backend other"
    assert trained().backend_choice.why == f"the first choice; {cure}"
    monkeypatch.setattr(registry, "_RIVALS", {"other": "a package that is not there"})
    assert trained().backend_choice.why == "the first choice"


@pytest.mark.parametrize("first", [1, 3])
def test_a_backend_that_fails_in_the_trial_is_not_taken_nor_given_up(rivals, monkeypatch, caplog, first):
    monkeypatch.setattr(Other, "fails_at", first)
    model = trained()
    assert model.backend.name == "slow" and "it fails" in caplog.text
    assert model.backend_choice.why == "the first choice" and not list(rivals.iterdir())
    assert trained().backend.name == "other"


def test_losses_that_are_not_finite_are_the_runs_to_tell(rivals):
    with pytest.raises(fastmlp.NonFiniteLossError):
        rng = np.random.default_rng(0)
        model = fastmlp.MLP(UNITS, seed=0)
        model.fit(np.full((64, 6), 3e38, "f4"), rng.integers(0, 3, 64), epochs=2, verbose=0)
    assert not list(rivals.iterdir())
