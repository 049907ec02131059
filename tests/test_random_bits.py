"""The one random stream: the published bits, the right counters, and numbers of the right distribution."""

import itertools
import math

import numpy as np
import oracle
import pytest
from compare import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmlp import MLP
from fastmlp.formulas import random_bits
from fastmlp.formulas.initializers import INITIALIZERS, Normal
from fastmlp.formulas.random_bits import (
    BLOCK,
    FEW,
    FEW_ROWS,
    Purpose,
    draws,
    epoch_order,
    epoch_orders,
    keep_threshold,
    normals,
    philox4x32,
    philox4x32_of_few,
    uniforms,
)

ALL = 2**32 - 1
# kat_vectors of Random123 1.14: counter, key, words
PUBLISHED = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
words = st.integers(0, ALL)
keys = st.integers(0, 2**64 - 1)


def library(counter, key):
    counters = np.array(counter, np.uint64)[:, None]
    philox4x32(counters, key[0] | key[1] << 32, np.empty((2, 1), np.uint64))
    return tuple(counters[:, 0].tolist())


def of_few(counter, key):
    """The counter as the middle one of three, so that what leaks from its neighbours is seen."""
    ones = 1 | 1 << 64 | 1 << 128
    slots = tuple(ALL | w << 64 | ALL << 128 for w in counter)
    found = philox4x32_of_few(slots, key[0] | key[1] << 32, ones)
    return tuple(w >> 64 & 2**64 - 1 for w in found)


def drawn(key, purpose, shape, **counter):
    out = np.full(shape, 0xDEAD, np.uint32)
    draws(key, purpose, out, **counter)
    return out


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED, ids=["zeros", "ones", "pi"])
@pytest.mark.parametrize("philox", [library, of_few, oracle.philox4x32])
def test_philox_gives_the_published_words(philox, counter, key, expected):
    assert philox(counter, key) == expected


@given(st.tuples(words, words, words, words), st.tuples(words, words))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_philox_agrees_with_randomgen(counter, key):
    randomgen = pytest.importorskip("randomgen")
    number = sum(w << 32 * i for i, w in enumerate(counter))
    # randomgen steps its counter before it draws
    peer = randomgen.Philox(counter=(number - 1) % 2**128, key=key[0] | key[1] << 32, number=4, width=32)
    expected = tuple(int(w) for w in peer.random_raw(4))
    assert library(counter, key) == expected
    assert of_few(counter, key) == expected
    assert oracle.philox4x32(counter, key) == expected


@given(
    keys,
    st.sampled_from(Purpose),
    st.integers(1, 9),
    st.integers(1, 9),
    words,
    st.integers(0, 2**40),
    st.integers(0, 2**24 - 1),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_draws_come_from_the_specified_counters(key, purpose, rows, columns, first_row, step, layer):
    first_row = min(first_row, ALL - rows)
    found = drawn(key, purpose, (rows, columns), first_row=first_row, step=step, layer=layer)
    expected = [[oracle.word(key, purpose, first_row + i, j, step, layer) for j in range(columns)] for i in range(rows)]
    assert found.tolist() == expected


@pytest.mark.parametrize("shape", [(2, 4 * BLOCK + 7), (3, 4 * BLOCK - 1), (BLOCK + 3, 5), (700, 41)], ids=str)
def test_draws_are_right_on_both_sides_of_a_block(shape):
    found = drawn(7, Purpose.DROPOUT, shape, first_row=2, step=3, layer=1)
    ends = [sorted({0, 1, n // 2, n - 2, n - 1}) for n in shape]
    ends[1] += [c for c in (4 * BLOCK - 1, 4 * BLOCK, 4 * BLOCK + 1) if c < shape[1]]
    height = max(1, BLOCK // -(-shape[1] // 4))
    ends[0] += [r for r in (height - 1, height) if r < shape[0]]
    for i, j in itertools.product(*ends):
        assert found[i, j] == oracle.word(7, oracle.DROPOUT, i + 2, j, 3, 1), (i, j)
    rows = drawn(7, Purpose.DROPOUT, (1, shape[1]), first_row=2 + shape[0] - 1, step=3, layer=1)
    assert (rows[0] == found[-1]).all()


SIZES = [(1, 1), (1, 5), (1, 150), (4, 16), (16, 3), (7, 33), (1, 4 * FEW), (1, 4 * FEW + 1), (FEW, 4), (FEW + 1, 3)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("key", [0, 2**32 - 1, 2**64 - 1, 0x0123456789ABCDEF])
def test_few_counters_give_the_words_that_many_give(monkeypatch, key, shape):
    cases = [
        (purpose, {"first_row": first_row, "step": step, "layer": layer})
        for purpose in Purpose
        for first_row, step, layer in ((0, 0, 0), (ALL - shape[0], 2**32 + 5, 3), (150, ALL, 2**24 - 1))
    ]
    as_they_are = [drawn(key, purpose, shape, **counter) for purpose, counter in cases]
    monkeypatch.setattr(random_bits, "FEW", 0)
    for found, (purpose, counter) in zip(as_they_are, cases, strict=True):
        assert (found == drawn(key, purpose, shape, **counter)).all(), (purpose, counter)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)], ids=str)
def test_no_words_are_drawn_where_there_is_no_room(shape):
    assert drawn(1, Purpose.DROPOUT, shape).shape == shape


def test_draws_fill_a_part_of_a_larger_array():
    whole = np.zeros((9, 9), np.uint32)
    draws(5, Purpose.DROPOUT, whole[1:8:2, 2:9:3])
    assert (whole[1:8:2, 2:9:3] == drawn(5, Purpose.DROPOUT, (4, 3))).all()
    assert np.count_nonzero(whole) == 12


def test_purposes_layers_steps_rows_and_keys_share_no_numbers():
    counters = [{}, {"first_row": 1}, {"step": 1}, {"layer": 1}]
    found = [drawn(k, p, (1, 64), **c) for k in (0, 1, 2**32) for p in Purpose for c in counters]
    assert len(np.unique(np.concatenate(found))) == len(found) * 64
    assert [int(p) for p in Purpose] == [oracle.INITIAL_WEIGHTS, oracle.EPOCH_ORDER, oracle.DROPOUT]


# --- orders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("step", [0, 1, 2**32 + 5])
def test_epoch_order_is_the_specified_permutation(rows, step):
    order = epoch_order(2**63 + 11, step, rows)
    assert order.dtype == np.intp
    assert order.tolist() == oracle.epoch_order(2**63 + 11, step, rows)


@pytest.mark.parametrize("rows", [1, 2, 150, FEW_ROWS - 1, FEW_ROWS, FEW_ROWS + 1, 4 * FEW, 4 * FEW + 1])
@pytest.mark.parametrize("key", [0, 7, 2**64 - 1])
def test_epoch_order_of_few_rows_is_made_by_the_rule_for_many(monkeypatch, key, rows):
    orders = [epoch_order(key, step, rows).tolist() for step in (0, 2, 2**33)]
    monkeypatch.setattr(random_bits, "FEW", 0)
    monkeypatch.setattr(random_bits, "FEW_ROWS", 0)
    assert orders == [epoch_order(key, step, rows).tolist() for step in (0, 2, 2**33)]


@pytest.mark.parametrize("rows", [1, 3, 4, 150, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("epochs", [1, 2, 70])  # 70 of 512 rows are more counters than are worked on at once
def test_orders_of_several_epochs_are_those_of_each(rows, epochs):
    steps = range(2**32 - 5, 2**32 - 5 + 3 * epochs, 3)
    expected = [epoch_order(2**63 + 7, step, rows).tolist() for step in steps]
    assert epoch_orders(2**63 + 7, steps, rows).tolist() == expected


@pytest.mark.parametrize("limit", [0, FEW_ROWS])
def test_rows_of_equal_words_keep_their_order(monkeypatch, limit):
    def few_words(key, purpose, out, **counter):
        out[...] = [[5, ALL, 0, 5, 2**16, 5, 0, ALL, 2**16 - 1]]

    monkeypatch.setattr(random_bits, "draws", few_words)
    monkeypatch.setattr(random_bits, "FEW_ROWS", limit)
    assert epoch_order(0, 0, 9).tolist() == [2, 6, 0, 3, 5, 8, 4, 1, 7]


def test_epoch_order_of_many_rows_is_a_permutation_and_differs_between_epochs_and_keys():
    first, second, other = epoch_order(1, 0, 60_000), epoch_order(1, 469, 60_000), epoch_order(2, 0, 60_000)
    for order in (first, second, other):
        assert (np.sort(order) == np.arange(60_000)).all()
        # fixed points of a random permutation are Poisson(1); 12 or more have a chance of 1e-9
        assert np.count_nonzero(order == np.arange(60_000)) < 12
    assert np.count_nonzero(first == second) < 12
    assert np.count_nonzero(first == other) < 12


# --- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-12])
def test_keep_threshold_is_the_rate_in_words(rate):
    assert keep_threshold(rate) == min(round(rate * 2**32), 2**32 - 1)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.8])
def test_dropout_drops_at_its_rate_overall_and_in_each_column(rate):
    dropped = drawn(3, Purpose.DROPOUT, (1000, 100), step=9, layer=1) < keep_threshold(rate)
    deviation = math.sqrt(rate * (1 - rate))
    assert abs(dropped.mean() - rate) < 5 * deviation / math.sqrt(dropped.size)
    assert np.abs(dropped.mean(axis=0) - rate).max() < 5 * deviation / math.sqrt(1000)
    assert np.abs(np.corrcoef(dropped[:, :20].T) - np.eye(20)).max() < 5.5 / math.sqrt(1000)


# --- initial weights ------------------------------------------------------------------------------------------------


def test_uniforms_lie_inside_the_open_interval_and_are_uniform():
    u = uniforms(1, (500, 401), 0)
    assert u.shape == (500, 401)
    assert 0 < u.min() < u.max() < 1
    n = math.sqrt(u.size)
    assert abs(u.mean() - 1 / 2) < 5 / n * math.sqrt(1 / 12)
    assert abs((u**2).mean() - 1 / 3) < 5 / n * math.sqrt(4 / 45)
    assert u[3, 5] == (oracle.word(1, oracle.INITIAL_WEIGHTS, 3, 5) + 0.5) / 2**32


def test_normals_have_the_moments_of_the_normal_distribution():
    z = normals(1, (500, 401), 2)
    n = math.sqrt(z.size)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 5 / n * math.sqrt(variance), power
    assert abs((z[:, 0:400:2] * z[:, 1:400:2]).mean()) < 5 / math.sqrt(z.size / 2)  # the two of a pair


def test_normals_are_those_of_box_and_muller():
    z = normals(9, (3, 5), 1)
    for i, j in np.ndindex(3, 5):
        u, v = ((oracle.word(9, oracle.INITIAL_WEIGHTS, i, 2 * (j // 2) + k, 0, 1) + 0.5) / 2**32 for k in (0, 1))
        angle = (math.cos, math.sin)[j % 2](2 * math.pi * v)
        assert_close(z[i, j], math.sqrt(-2 * math.log(u)) * angle, scale=4)


VARIANCES = {
    "glorot_uniform": lambda i, o: 2 / (i + o),
    "glorot_normal": lambda i, o: 2 / (i + o),
    "he_uniform": lambda i, o: 2 / i,
    "he_normal": lambda i, o: 2 / i,
    "lecun_uniform": lambda i, o: 1 / i,
    "lecun_normal": lambda i, o: 1 / i,
    "normal": lambda i, o: 0.01**2,
    "zeros": lambda i, o: 0.0,
}


@pytest.mark.parametrize("name", INITIALIZERS.names())
@pytest.mark.parametrize("shape", [(300, 100), (100, 301), (1, 1), (41, 7)], ids=str)
def test_initializers_have_their_mean_variance_and_range(name, shape):
    w = INITIALIZERS.record(name).draw(3, *shape, 1)
    assert w.shape == shape
    variance = VARIANCES[name](*shape)
    deviation = math.sqrt(variance)
    if w.size > 1000:
        kurtosis = 1.8 if "uniform" in name else 3.0
        assert abs(w.mean()) <= 5 * deviation / math.sqrt(w.size)
        assert abs((w**2).mean() - variance) <= 5 * variance * math.sqrt((kurtosis - 1) / w.size)
    bound = math.sqrt(3) * deviation if "uniform" in name else 6.7 * deviation  # Box and Muller of 32 bits ends at 6.7
    assert np.abs(w).max() <= bound


def test_initial_weights_differ_between_layers_and_seeds_and_repeat_for_a_seed():
    a, b, c = (MLP((5, 5, 5), seed=seed).get_weights() for seed in (1, 1, 2))
    for i in range(4):
        assert (a[i] == b[i]).all()
    assert (a[0] != a[2]).all()
    assert (a[0] != c[0]).all()
    assert not a[1].any()


def test_initializers_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="std must be at least 0 and finite, got -1"):
        Normal(-1)
    with pytest.raises(ValueError, match="did you mean 'he_normal'"):
        MLP((2, 2), initializer="he_norml")
