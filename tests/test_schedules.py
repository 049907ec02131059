"""Schedules: the rate of every step against its formula and against PyTorch, horizons, memory, refusals."""

import json
import math
import re

import numpy as np
import oracle
import pytest
from compare import assert_close, oracle_of

from fastmlp import MLP, SGD
from fastmlp.formulas.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Exponential,
    InverseScaling,
    OneCycle,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
    as_schedule,
)

RECORDS = [
    *(SCHEDULES.record(name) for name in SCHEDULES.names()),
    StepDecay(0.5, every=3, factor=0.5),
    Exponential(0.5, final_fraction=0.1, steps=30),
    InverseScaling(0.5, power=1.5),
    Cosine(0.5, final_rate=0.1, steps=30),
    OneCycle(0.5, rise=0.5, start_divisor=2, final_divisor=3, steps=30),
    ReduceOnPlateau(0.1, min_rate=0.01),
]


def rates(schedule, count, horizon=100, first=0, memory=None):
    found = schedule.rates(first, count, getattr(schedule, "steps", None) or horizon, memory or {})
    assert found.shape == (count,)
    assert found.dtype == np.float64
    return found


@pytest.mark.parametrize("record", RECORDS, ids=repr)
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_every_schedule_follows_its_formula(record, warmup):
    oracle_of(oracle.SCHEDULES, record.name, "schedule")
    record = type(record)(**{**vars(record), "warmup_steps": warmup})
    horizon = getattr(record, "steps", None) or 100
    expected = [oracle.scheduled_rate(record, step, horizon) for step in range(130)]
    # steps and divisions of the argument of a cosine or a power: its rounding counts with the argument's size
    assert_close(rates(record, 130), expected, scale=4 * record.learning_rate)
    pieces = [rates(record, 13, first=first) for first in range(0, 130, 13)]
    assert np.array_equal(np.concatenate(pieces), rates(record, 130))


@pytest.mark.parametrize("record", RECORDS, ids=repr)
def test_warm_up_rises_in_equal_steps_to_the_rate(record):
    warm = type(record)(**{**vars(record), "warmup_steps": 4})
    assert_close(rates(warm, 10) / rates(record, 10), [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


def test_first_and_last_rates_are_those_promised():
    assert rates(Constant(0.3), 5).tolist() == [0.3] * 5
    assert rates(StepDecay(1.0, every=2, factor=0.5), 6).tolist() == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert_close(rates(Exponential(2.0, final_fraction=0.01), 101)[[0, 50, 100]], [2, 0.2, 0.02])
    assert_close(rates(InverseScaling(1.0, power=0.5), 4), [1, 2**-0.5, 3**-0.5, 0.5])
    assert_close(rates(Cosine(1.0, final_rate=0.2), 141)[[0, 50, 100, 140]], [1, 0.6, 0.2, 0.2])
    one = rates(OneCycle(1.0, rise=0.3, start_divisor=25, final_divisor=1e4), 120)
    assert_close(one[[0, 29, 99, 119]], [0.04, 1.0, 0.04e-4, 0.04e-4])
    assert one.argmax() == 29


@pytest.mark.parametrize("horizon", [1, 2, 3])
def test_one_cycle_is_defined_for_the_shortest_runs(horizon):
    found = rates(OneCycle(1.0), horizon + 2, horizon=horizon)
    assert ((found > 0) & (found <= 1)).all()
    assert_close(found[-1], 1 / 25 / 1e4)


# --- horizons -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Exponential, Cosine, OneCycle])
def test_a_schedule_follows_the_call_unless_it_has_a_horizon(kind):
    assert kind().follows_call
    assert not kind(steps=10).follows_call


@pytest.mark.parametrize("kind", [Constant, StepDecay, InverseScaling, ReduceOnPlateau])
def test_a_schedule_without_an_end_follows_no_call(kind):
    assert not kind().follows_call


def rates_of_two_calls(schedule):
    """Return the rate at the end of each epoch of two calls of fit, two epochs of three steps each."""
    x = np.random.default_rng(0).normal(size=(6, 2))
    model, found = MLP((2, 2), seed=0), []
    for _ in range(2):
        history = model.fit(x, [0, 1] * 3, epochs=2, batch_size=2, optimizer=SGD(schedule), verbose=0).history
        found += history["learning_rate"]
    return found


def test_without_a_horizon_each_call_runs_the_whole_schedule():
    expected = [oracle.half_cosine(1, 0, step / 6) for step in (2, 5, 2, 5)]
    assert_close(rates_of_two_calls(Cosine(1.0)), expected)


def test_with_a_horizon_the_schedule_goes_on_from_call_to_call():
    expected = [oracle.half_cosine(1, 0, step / 12) for step in (2, 5, 8, 11)]
    assert_close(rates_of_two_calls(Cosine(1.0, steps=12)), expected)
    expected = [0.5 ** ((step) // 4) for step in (2, 5, 8, 11)]
    assert_close(rates_of_two_calls(StepDecay(1.0, every=4, factor=0.5)), expected)


def test_a_schedule_of_ones_own_reaches_training():
    class Odd(Schedule):
        def _shape(self, steps, horizon, memory):
            return steps + horizon

    assert rates_of_two_calls(Odd()) == [8, 11, 14, 17]


# --- plateaus -------------------------------------------------------------------------------------------------------


def observed(schedule, values):
    """Return the scale of the rate after each epoch with these figures."""
    memory, scales = {}, []
    for value in values:
        memory = schedule.observe(memory, {schedule.monitor: value})
        memory = json.loads(json.dumps(memory))  # a checkpoint keeps it as JSON
        scales.append(rates(schedule, 1, memory=memory)[0])
    return scales


def test_the_rate_falls_after_patience_epochs_without_improvement():
    schedule = ReduceOnPlateau(1.0, factor=0.5, patience=2, monitor="loss")
    values = [3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1]
    assert observed(schedule, values) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]


def test_only_an_improvement_above_min_delta_counts():
    schedule = ReduceOnPlateau(1.0, factor=0.1, patience=0, monitor="loss", min_delta=0.5)
    assert_close(observed(schedule, [3.0, 2.6, 2.4, 2.0]), [1, 0.1, 0.1, 0.1 * 0.1], c=8)


def test_accuracy_improves_upwards():
    schedule = ReduceOnPlateau(1.0, factor=0.5, patience=0, monitor="val_accuracy")
    assert observed(schedule, [0.1, 0.5, 0.4, 0.9]) == [1, 1, 0.5, 0.5]


def test_the_rate_stops_at_its_floor():
    schedule = ReduceOnPlateau(1.0, factor=0.1, patience=0, monitor="loss", min_rate=0.05)
    assert_close(observed(schedule, [1, 1, 1, 1]), [1, 0.1, 0.05, 0.05])
    assert rates(ReduceOnPlateau(0.01, min_rate=0.5), 1).tolist() == [0.01]


def test_a_figure_that_is_not_a_number_is_no_improvement():
    schedule = ReduceOnPlateau(1.0, factor=0.5, patience=0, monitor="loss")
    assert observed(schedule, [1.0, math.nan, 0.5]) == [1, 0.5, 0.5]


def test_a_figure_that_is_not_there_is_an_error_that_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no such figure; there are loss, accuracy\. Give fit validation_data"):
        ReduceOnPlateau().observe({}, {"loss": 1.0, "accuracy": 0.5})


# --- PyTorch --------------------------------------------------------------------------------------------------------


def torch_rates(torch, make, count, rate):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler, found = make(torch.optim.lr_scheduler, optimizer), []
    for step in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < count - 1:
            scheduler.step()
    return found


PEERS = {
    "cosine": (
        Cosine(0.3, final_rate=0.01, steps=50),
        lambda s, o: s.CosineAnnealingLR(o, T_max=50, eta_min=0.01),
        51,
    ),
    "one cycle": (
        OneCycle(0.3, rise=0.4, start_divisor=10, final_divisor=100, steps=50),
        lambda s, o: s.OneCycleLR(
            o, 0.3, total_steps=50, pct_start=0.4, div_factor=10, final_div_factor=100, cycle_momentum=False
        ),
        50,
    ),
    "step": (
        StepDecay(0.3, every=7, factor=0.5),
        lambda s, o: s.StepLR(o, step_size=7, gamma=0.5),
        50,
    ),
    "exponential": (
        Exponential(0.3, final_fraction=0.1, steps=50),
        lambda s, o: s.ExponentialLR(o, gamma=0.1 ** (1 / 50)),
        50,
    ),
    "warm-up": (
        Constant(0.3, warmup_steps=9),
        lambda s, o: s.LinearLR(o, start_factor=0.1, total_iters=9),
        20,
    ),
}


@pytest.mark.parametrize("name", PEERS)
def test_rates_are_those_of_torch(torch, name):
    schedule, make, count = PEERS[name]
    # PyTorch goes from rate to rate, so that fifty roundings add up
    found = torch_rates(torch, make, count, 0.3)
    assert_close(rates(schedule, count), found, k=count, scale=0.3, c=16)


# --- records --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", RECORDS, ids=repr)
def test_records_survive_the_way_to_a_file_and_back(record):
    assert SCHEDULES.from_json(json.loads(json.dumps(SCHEDULES.to_json(record)))) == record


def test_a_number_is_a_constant_schedule():
    assert as_schedule(0.1) == Constant(0.1)
    assert as_schedule(Cosine(0.1)) == Cosine(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constant(-1), "learning_rate must be at least 0 and finite, got -1"),
        (lambda: Constant(0.1, warmup_steps=-1), "warmup_steps must be at least 0, got -1"),
        (lambda: Constant(0.1, warmup_steps=0.5), "warmup_steps must be an integer, got 0.5"),
        (lambda: StepDecay(every=0), "every must be at least 1, got 0"),
        (lambda: StepDecay(factor=-0.1), "factor must be at least 0 and finite, got -0.1"),
        (lambda: Exponential(final_fraction=0), "final_fraction must be above 0 and finite, got 0"),
        (lambda: Exponential(steps=0), "steps must be at least 1, or None"),
        (lambda: InverseScaling(power=-1), "power must be at least 0 and finite, got -1"),
        (lambda: Cosine(final_rate=math.inf), "final_rate must be at least 0 and finite, got inf"),
        (lambda: Cosine(steps=2.5), "steps must be an integer, or None"),
        (lambda: OneCycle(rise=1.0), "rise must be above 0 and below 1, got 1.0"),
        (lambda: OneCycle(start_divisor=0.5), "start_divisor must be at least 1 and finite, got 0.5"),
        (lambda: OneCycle(final_divisor=math.nan), "final_divisor must be at least 1 and finite, got nan"),
        (lambda: ReduceOnPlateau(factor=1.0), "factor must be above 0 and below 1, got 1.0"),
        (lambda: ReduceOnPlateau(patience=-1), "patience must be at least 0, got -1"),
        (lambda: ReduceOnPlateau(min_rate=-1), "min_rate must be at least 0 and finite, got -1"),
        (lambda: ReduceOnPlateau(min_delta=-1), "min_delta must be at least 0 and finite, got -1"),
    ],
)
def test_schedules_refuse_what_makes_no_sense(make, message):
    with pytest.raises(TypeError if "an integer" in message else ValueError, match=re.escape(message)):
        make()
