"""What makes small fits cheap changes none of their bits."""

import itertools

import numpy as np
import pytest

from fastmlp import MLP, SGD, Adam, AdamW, RMSprop, StepDecay
from fastmlp.engine.batches import inverse_totals
from fastmlp.formulas import random_bits
from fastmlp.formulas.initializers import INITIALIZERS
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS, choose_optimizer
from fastmlp.network.layout import Layout, layout_of
from fastmlp.network.plan import Plan, Precision


def some_rows(rows, features=4, classes=3):
    draw = np.random.default_rng(rows)
    return draw.standard_normal((rows, features)).astype(np.float32), draw.integers(0, classes, rows)


def run(units, rows, seed, place):
    """Every number of a short training: weights before and after, figures, predictions."""
    x, y = some_rows(rows, units[0], units[-1])
    model = MLP(units, dropout=0.2, backend=place, seed=seed)
    numbers = [w.tobytes() for w in model.get_weights()]
    history = model.fit(x, y, epochs=3, verbose=0).history
    del history["epoch_seconds"]
    numbers += [w.tobytes() for w in model.get_weights()]
    return numbers, history, model.predict_proba(x).tobytes(), model.evaluate(x, y)


# --- the order of rows and the initial weights ----------------------------------------------------------------------


@pytest.mark.parametrize("place", ["numpy", "numba"])
@pytest.mark.parametrize(
    ("units", "rows"), [((4, 16, 3), 150), ((4, 16, 3), 513), ((4, 16, 3), 1100), ((40, 33, 3), 7)]
)
def test_small_trainings_are_those_with_the_random_bits_for_many(monkeypatch, units, rows, place):
    small = [run(units, rows, seed, place) for seed in (0, 2**63 + 1)]
    monkeypatch.setattr(random_bits, "FEW", 0)
    monkeypatch.setattr(random_bits, "FEW_ROWS", 0)
    assert small == [run(units, rows, seed, place) for seed in (0, 2**63 + 1)]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_plan_is_kept_while_what_it_was_made_for_is_the_same_and_no_longer():
    learner = MLP((4, 16, 3), backend="numpy", seed=0)._learner
    adam, rate, momentum = Adam(), Adam(StepDecay(0.1)), SGD(0.1, momentum=0.5)
    asked = [(8, adam), (8, adam), (9, adam), (8, rate), (8, momentum), (8, AdamW()), (8, RMSprop()), (8, adam)]
    for still in ((), (0,)):
        if still:
            learner.freeze(still, True)
        for batch, optimizer in asked:
            plan = learner.plan(batch, optimizer)
            precision = Precision.of(learner.dtype)
            assert plan == Plan(learner.spec, batch, precision, True, optimizer.without_schedule())
            assert learner.plan(batch, optimizer) is plan


def test_a_network_that_changes_between_fits_trains_as_it_then_is():
    x, y = some_rows(150)
    model = MLP((4, 16, 3), seed=0, backend="numpy")
    adam = Adam()
    for layers in ((0,), (0, 1), ()):
        model.unfreeze()
        if layers:
            model.freeze(*layers)
        before = model.get_weights()
        model.fit(x, y, epochs=1, optimizer=adam, verbose=0)
        same = [bool((a == b).all()) for a, b in zip(before, model.get_weights(), strict=True)]
        assert same == [0 in layers, 0 in layers, 1 in layers, 1 in layers]


def test_records_by_name_are_those_of_the_defaults():
    for registry in (LOSSES, INITIALIZERS, OPTIMIZERS):
        for name in registry.names():
            assert registry.record(name) == registry.type_of(name)()
            assert type(registry.record(name)) is registry.type_of(name)
    assert choose_optimizer(None, None) == Adam()


def test_a_fit_leaves_nothing_in_the_records_that_others_share():
    shared = choose_optimizer(None, None)
    x, y = some_rows(9)
    MLP((4, 3), backend="numpy", seed=0).fit(x, y, epochs=1, verbose=0)
    assert vars(shared) == vars(Adam())


@pytest.mark.parametrize("units", [(4, 3), (4, 16, 3), (3, 16, 4)])
def test_a_layout_that_is_kept_is_the_one_that_would_be_made(units):
    for itemsize in (4, 8):
        kept, made = layout_of(units, itemsize), Layout(units, itemsize)
        assert (kept, kept.offsets, kept.size) == (made, made.offsets, made.size)
        assert layout_of(units, itemsize) is kept


# --- the table of steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (7, 7), (7, 3), (9, 3), (150, 128), (256, 128)])
def test_batches_of_rows_without_weights_weigh_as_with_weights_of_one(rows, batch):
    steps = -(-rows // batch)
    for first, stop in itertools.combinations(range(steps + 1), 2):
        asked = np.arange(rows), batch, first, stop - first
        assert inverse_totals(None, *asked).tolist() == inverse_totals(np.ones(rows), *asked).tolist()
