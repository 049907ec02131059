"""Sums over the shards of a batch: along one tree, whoever adds up which part of it."""

import operator
import time
from functools import partial

import numpy as np
import pytest
from compare import assert_same_bits

from fastmlp.engine.reductions import ByMessages, InCommon
from fastmlp.parallel import in_threads
from fastmlp.parallel.group import Alone
from fastmlp.parallel.tree import Share, TreeSum, cut


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
        scratch, asked, empty = np.empty(13, dtype), [], partial(np.empty, dtype=dtype)

        def gradients(shard):
            asked.append(shard)
            scratch[...] = arrays[shard]
            return scratch

        counts = Share(shards, group.size, group.rank).counts
        common = group.common((counts[group.rank], 13), np.dtype(dtype))
        found = []
        for sums in [None] if common is None else [None, common[group.rank]]:
            tree = TreeSum(shards, group.size, group.rank, 13, empty, operator.iadd)
            tree.sums = tree.sums if sums is None else sums
            tree.add_up(gradients)
            reduce = ByMessages(group, tree, 13, empty) if sums is None else InCommon(group, tree, common)
            group.share(None)
            found.append(np.full(13, np.nan, dtype))
            reduce(found[-1])
        return found, asked

    for ranks in range(1, min(shards, 5) + 1):
        results = in_threads(add_up, ranks)
        assert [shard for _, asked in results for shard in asked[: len(asked) // 2]] == list(range(shards))
        for found, _ in results:
            assert len(found) == 2
            for array in found:
                assert_same_bits(array, expected)
    (found,) = add_up(Alone(shards))[0]
    assert_same_bits(found, expected)


class Slow(np.ndarray):
    """An array into which nothing is copied, and to which nothing is added, before a while has passed."""

    def __setitem__(self, where, value):
        time.sleep(0.02)
        super().__setitem__(where, value)

    def __iadd__(self, other):
        time.sleep(0.02)
        return super().__iadd__(other)


@pytest.mark.parametrize("slow", range(3))
def test_ranks_that_are_ahead_wait_until_others_have_added_up_and_read(slow):
    def add_up(group):
        counts, dtype, found = Share(3, 3, group.rank).counts, np.dtype("f4"), []
        common = group.common((counts[group.rank], 6), dtype)
        mine = [rows.view(Slow) if group.rank == slow else rows for rows in common]
        tree = TreeSum(3, 3, group.rank, 6, partial(np.empty, dtype=dtype), operator.iadd)
        tree.sums = common[group.rank]
        reduce = InCommon(group, tree, mine)
        grads = np.empty(6, "f4")
        for step in range(3):
            tree.add_up(lambda shard, step=step: np.full(6, 10**step * (shard + 1), "f4"))
            group.share(None)
            reduce(grads.view(Slow) if group.rank == slow else grads)
            found.append(grads.tolist())
        return found

    for found in in_threads(add_up, 3):
        assert found == [[6.0] * 6, [60.0] * 6, [600.0] * 6]


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
