"""Sums over the shards of a batch: along one tree, whoever adds up which part of it."""

import operator
from functools import partial

import numpy as np
import pytest
from compare import assert_same_bits

from fastmlp.parallel import in_threads
from fastmlp.parallel.group import Alone
from fastmlp.parallel.tree import TreeSum, cut


def naive_sum(arrays):
    """Return the sum of the first half plus the sum of the second."""
    if len(arrays) == 1:
        return arrays[0]
    half = len(arrays) // 2
    return naive_sum(arrays[:half]) + naive_sum(arrays[half:])


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_any_number_of_ranks_adds_up_alike(shards, dtype):
    rng = np.random.default_rng(shards)
    arrays = (rng.normal(size=(shards, 13)) * 10.0 ** rng.integers(-6, 6, (shards, 1))).astype(dtype)
    expected = naive_sum(list(arrays))
    if shards > 2:
        assert (expected != sum(list(arrays)[1:], arrays[0])).any()  # the order tells

    def add_up(group):
        tree = TreeSum(shards, group.size, group.rank, 13, partial(np.empty, dtype=dtype), operator.iadd)
        scratch, asked = np.empty(13, dtype), []

        def gradients(shard):
            asked.append(shard)
            scratch[...] = arrays[shard]
            return scratch

        tree.add_up(gradients)
        bounds, found = cut(13, group.size), np.full(13, np.nan, dtype)
        out = np.empty((sum(tree.counts), bounds[group.rank + 1] - bounds[group.rank]), dtype)
        group.exchange(tree.sums, tree.counts, bounds, out)
        found[bounds[group.rank] : bounds[group.rank + 1]] = tree.whole(out)
        group.gather(found, bounds)
        return found, asked

    for ranks in range(1, min(shards, 5) + 1):
        results = in_threads(add_up, ranks)
        assert [shard for _, asked in results for shard in asked] == list(range(shards))
        for found, _ in results:
            assert_same_bits(found, expected)
    assert_same_bits(add_up(Alone(shards))[0], expected)


@pytest.mark.parametrize(
    ("shards", "counts"),
    [(8, [1]), (8, [1, 1]), (8, [1, 2, 2]), (8, [1] * 4), (8, [1] * 8), (6, [1, 1]), (5, [1, 1]), (7, [2, 2, 2])],
)
def test_ranks_exchange_the_largest_sums_that_they_can(shards, counts):
    assert TreeSum(shards, len(counts), 0, 3, np.empty, operator.iadd).counts == counts


def test_parts_are_even_and_leave_nothing_out():
    for total in range(20):
        for parts in range(1, 9):
            sizes = np.diff(cut(total, parts))
            assert sizes.sum() == total
            assert sizes.max() - sizes.min() <= 1


def test_ranks_tell_each_other():
    def talk(group):
        array = np.arange(3.0) + 10 * group.rank
        group.broadcast(array)
        return group.share({"rank": group.rank}), array.tolist()

    assert in_threads(talk, 3) == [([{"rank": 0}, {"rank": 1}, {"rank": 2}], [0.0, 1.0, 2.0])] * 3
