"""Optimizers: trajectories of the slow form, the stages around the update, and what the records refuse."""

import json
import re

import numpy as np
import oracle
import pytest
from compare import assert_close, assert_same_bits, optimizer_records, oracle_of

from fastmlp import MLP
from fastmlp.formulas.optimizers import (
    OPTIMIZERS,
    SGD,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    StepScalars,
    optimizer_from_json,
    optimizer_to_json,
)
from fastmlp.formulas.schedules import Cosine, OneCycle

STEPS = 40


def trajectory(optimizer, start, gradients, rates):
    """Return the parameter after each step, by the library: one element of a flat array."""
    p, moments = np.array([start]), [np.zeros(1) for _ in range(optimizer.moments)]
    table = optimizer.table(np.array(rates), 0, np.ones(len(rates)))
    path = []
    for g, row in zip(gradients, table.tolist(), strict=True):
        optimizer.update(p, np.array([g]), moments, StepScalars(*row), np.full(1, np.nan))
        path.append(p[0])
    return path


@pytest.mark.parametrize("optimizer", optimizer_records(), ids=repr)
@pytest.mark.parametrize("kind", ["noise", "constant", "tiny", "zeros and jumps"])
def test_trajectories_are_those_of_the_papers(optimizer, kind):
    rng = np.random.default_rng(0)
    gradients = {
        "noise": rng.normal(size=STEPS),
        "constant": np.full(STEPS, -0.3),
        "tiny": rng.normal(size=STEPS) * 1e-7,
        "zeros and jumps": rng.normal(size=STEPS) * 10 * (np.arange(STEPS) % 5 == 0),
    }[kind].tolist()
    rates = (0.1 * 0.9 ** np.arange(STEPS)).tolist()
    step, p, expected = oracle_of(oracle.OPTIMIZERS, optimizer.name, "optimizer")(optimizer), 0.5, []
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        p = step(p, g, rate, t)
        expected.append(p)
    assert_close(trajectory(optimizer, 0.5, gradients, rates), expected, k=STEPS, scale=1 + np.abs(expected))


@pytest.mark.parametrize("optimizer", optimizer_records(), ids=repr)
def test_every_optimizer_goes_down_a_bowl(optimizer):
    p, moments = np.array([1.0, -2.0]), [np.zeros(2) for _ in range(optimizer.moments)]
    rate = 0.02
    for row in optimizer.table(np.full(300, rate), 0, np.ones(300)).tolist():
        optimizer.update(p, p * [1.0, 3.0], moments, StepScalars(*row), np.empty(2))
    assert np.abs(p).max() < 0.1


def test_table_holds_rates_corrections_averaging_and_weights():
    table = Adam(beta1=0.5, beta2=0.9, ema=0.5).table(np.array([3.0, 4.0]), 6, np.array([0.25, 0.0]))
    for row, t, rate, inverse in zip(table, (7, 8), (3, 4), (0.25, 0), strict=True):
        expected = [rate, 1 / (1 - 0.5**t), (1 - 0.9**t) ** -0.5, min(0.5, (1 + t) / (10 + t)), inverse, 1.0]
        assert_close(row, expected, scale=np.abs(expected))
    assert SGD().table(np.array([3.0]), 6, np.array([0.5])).tolist() == [[3.0, 1.0, 1.0, 0.0, 0.5, 1.0]]
    shared = SGD().table(np.array([3.0, 2.0]), 0, np.array([0.5, 0.25]), np.array([0.1, 0.2]))
    assert shared[:, 5].tolist() == [0.1, 0.2]


def test_averaging_forgets_early_weights_soon():
    decays = SGD(ema=0.9).table(np.ones(200), 0, np.ones(200))[:, 3]
    assert_close(decays, [oracle.average_decay(0.9, t) for t in range(1, 201)])
    assert decays[0] == 2 / 11
    assert decays[-1] == 0.9


def small_problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(24, 3)), rng.integers(0, 2, 24)


def fitted(optimizer, epochs=1, **options):
    x, y = small_problem()
    model = MLP((3, 4, 2), activation="tanh", backend="numpy", dtype="float64", seed=1, **options)
    model.fit(x, y, epochs=epochs, batch_size=8, optimizer=optimizer, verbose=0)
    return model


def test_an_equal_optimizer_goes_on_with_its_moments_and_another_begins_anew():
    x, y = small_problem()
    whole, twice, other = fitted(Adam(0.1), epochs=2), fitted(Adam(0.1)), fitted(Adam(0.1))
    twice.fit(x, y, epochs=1, batch_size=8, optimizer=Adam(0.1), verbose=0)
    for a, b in zip(whole.get_weights(), twice.get_weights(), strict=True):
        assert_same_bits(a, b)
    other.fit(x, y, epochs=1, batch_size=8, optimizer=Adam(0.1, beta1=0.8), verbose=0)
    assert not np.array_equal(whole.get_weights()[0], other.get_weights()[0])
    assert other._learner.state.optimizer_step == 3
    assert twice._learner.state.optimizer_step == 6


def test_decay_touches_weights_and_not_biases():
    before, after = fitted(SGD(0.1)), fitted(SGD(0.1, weight_decay=0.5))
    shrunk = MLP((3, 4, 2), activation="tanh", dtype="float64", seed=1)
    x, y = small_problem()
    shrunk.fit(x, y, epochs=1, batch_size=24, optimizer=SGD(0.0, weight_decay=0.5), verbose=0)
    for a, b in zip(
        MLP((3, 4, 2), activation="tanh", dtype="float64", seed=1).get_weights(), shrunk.get_weights(), strict=True
    ):
        assert_same_bits(b, a)  # decay is in proportion to the rate
    assert np.linalg.norm(after.get_weights()[0]) < np.linalg.norm(before.get_weights()[0])


def test_clipping_bounds_the_step_and_leaves_short_gradients_alone():
    start = MLP((3, 4, 2), activation="tanh", backend="numpy", dtype="float64", seed=1).get_weights()
    x, y = small_problem()
    model = MLP((3, 4, 2), activation="tanh", backend="numpy", dtype="float64", seed=1)
    model.fit(x, y, epochs=1, batch_size=24, optimizer=SGD(1.0, clip_norm=1e-3), verbose=0)
    moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(model.get_weights(), start, strict=True)))
    assert_close(moved, 1e-3, k=26, scale=1)
    options = {"learning_rate": 0.1, "momentum": 0.5}  # the bits of plain SGD differ: it folds the rate into the loss
    for a, b in zip(
        fitted(SGD(**options, clip_norm=1e6)).get_weights(), fitted(SGD(**options)).get_weights(), strict=True
    ):
        assert_same_bits(a, b)


def test_the_average_predicts_and_the_raw_weights_train():
    raw, averaged = fitted(SGD(0.1), epochs=3), fitted(SGD(0.1, ema=0.9), epochs=3)
    x, _ = small_problem()
    assert_same_bits(averaged._learner.state.params, raw._learner.state.params)
    assert not np.array_equal(averaged.get_weights()[0], raw.get_weights()[0])
    copy = MLP((3, 4, 2), activation="tanh", backend="numpy", dtype="float64", seed=9)
    copy.set_weights(averaged.get_weights())
    assert_same_bits(copy.predict_proba(x), averaged.predict_proba(x))


# --- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [*optimizer_records(), SGD(Cosine(0.1, steps=7), ema=0.9, clip_norm=2)], ids=repr)
def test_records_survive_the_way_to_a_file_and_back(optimizer):
    assert optimizer_from_json(json.loads(json.dumps(optimizer_to_json(optimizer)))) == optimizer


def test_without_schedule_drops_the_rate_alone():
    assert Adam(OneCycle(0.1), beta1=0.5).without_schedule() == Adam(0.0, beta1=0.5)


def test_names_and_positions_are_those_that_users_know():
    assert OPTIMIZERS.names() == ("sgd", "adam", "adamw", "rmsprop")
    assert SGD(0.1, 0.9, True) == SGD(learning_rate=0.1, momentum=0.9, nesterov=True)
    assert AdamW(0.1, 0.8, 0.9, 1e-7) == AdamW(learning_rate=0.1, beta1=0.8, beta2=0.9, epsilon=1e-7)
    assert SGD(0.1, 0.9, True, 0.01, 1.0, 0.9) == SGD(0.1, 0.9, True, weight_decay=0.01, clip_norm=1.0, ema=0.9)
    assert (Adam().weight_decay, AdamW().weight_decay) == (0.0, 0.01)
    assert [r.moments for r in (SGD(), SGD(momentum=0.9), Adam(), RMSprop(), RMSprop(momentum=0.9))] == [0, 1, 2, 1, 2]


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, RMSprop])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate must be at least 0 and finite, got -0.1"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0 and finite, got nan"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"learning_rate": True}, "learning_rate must be a number, got True"),
        ({"weight_decay": -1}, "weight_decay must be at least 0 and finite, got -1"),
        ({"clip_norm": 0}, "clip_norm must be above 0 and finite, or None; got 0"),
        ({"clip_norm": float("inf")}, "clip_norm must be above 0 and finite, or None; got inf"),
        ({"ema": 1.0}, "ema must be above 0 and below 1, such as 0.999, or None; got 1.0"),
        ({"ema": 0}, "ema must be above 0 and below 1, such as 0.999, or None; got 0"),
    ],
)
def test_every_optimizer_refuses_what_makes_no_sense(kind, arguments, message):
    with pytest.raises(TypeError if "a number" in message else ValueError, match=re.escape(message)):
        kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (SGD, {"momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0"),
        (SGD, {"nesterov": True}, "nesterov=True needs a momentum above 0, such as momentum=0.9"),
        (Adam, {"beta1": -0.1}, "beta1 must be at least 0 and below 1, got -0.1"),
        (AdamW, {"beta2": 1}, "beta2 must be at least 0 and below 1, got 1"),
        (Adam, {"epsilon": 0.0}, "epsilon must be above 0 and finite, got 0.0"),
        (RMSprop, {"rho": "0.9"}, "rho must be a number, got '0.9'"),
        (RMSprop, {"momentum": 2}, "momentum must be at least 0 and below 1, got 2"),
        (RMSprop, {"epsilon": -1}, "epsilon must be above 0 and finite, got -1"),
    ],
)
def test_each_optimizer_refuses_what_makes_no_sense_to_it(kind, arguments, message):
    with pytest.raises(TypeError if "a number" in message else ValueError, match=re.escape(message)):
        kind(**arguments)


def test_an_unknown_optimizer_is_named_with_the_nearest_known_one():
    x, y = small_problem()
    with pytest.raises(ValueError, match="optimizer 'adamm' is not known; did you mean 'adam"):
        MLP((3, 2)).fit(x, y, epochs=1, optimizer="adamm", verbose=0)
    assert issubclass(SGD, Optimizer)
