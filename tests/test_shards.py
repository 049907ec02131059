"""Gradients of shards in one compiled call: those of the shards one by one, to bits however the work is shared out."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from compare import assert_close, assert_same_bits
from scenarios import SCENARIOS, Scenario

import fastmlp
from fastmlp.backends.base import Backend
from fastmlp.formulas.optimizers import SGD, StepScalars
from fastmlp.parallel.tree import TreeSum, cut

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
pytestmark = pytest.mark.skipif(
    not fastmlp.available_backends()["numba"].available, reason=fastmlp.available_backends()["numba"].reason
)

types = pytest.mark.parametrize("dtype", ["f4", pytest.param("f8", marks=pytest.mark.thorough)])
ROUNDING = {"f4": 2e-5, "f8": 1e-12}


def summed(backend, scenario, dtype, shards, ranks=1, rows=None, one_by_one=False, threads=None, first=0, count=None):
    """Return the gradients of a batch's rows as ranks add them up, and the totals of all shards."""
    session = backend.open(scenario.plan(dtype))
    state, data = scenario.state(backend, dtype), scenario.device_data(backend, dtype)
    count = scenario.batch if count is None else count
    rows = scenario.order(0)[first : first + count]
    bounds, totals = cut(len(rows), shards), np.full((shards, 3), np.nan)
    scalars = StepScalars(*scenario.table(0, 0, dtype)[0].tolist())
    brought, tree = [], None
    for rank in range(ranks):
        tree = TreeSum(shards, ranks, rank, session.grads.size, partial(backend.empty, dtype=np.dtype(dtype)), np_add)
        tree.sums[...] = np.nan  # must be overwritten
        add_up = None if one_by_one else opened(backend, session, tree, cut(scenario.batch, shards), threads)
        if add_up is None:
            assert one_by_one

            def gradients(shard):
                part = slice(bounds[shard], bounds[shard + 1])
                session.grads[...] = 0
                totals[shard] = 0
                if part.stop > part.start:
                    Backend.batch_gradients(backend, session, state, data, rows[part], scalars, part.start)
                    totals[shard] = session.totals
                return session.grads

            tree.add_up(gradients)
        else:
            add_up(state, data, rows[::-1].copy(), bounds, scalars, totals)  # of which nothing may be left
            add_up(state, data, rows, bounds, scalars, totals)
        brought += [row.copy() for row in tree.sums]
    return tree.whole(brought), totals


def np_add(target, source):
    target += source


def opened(backend, session, tree, bounds, threads):
    """Open what adds up, by so many threads however small the work is."""
    if threads is None:
        return backend.open_shards(session, tree, bounds)
    from fastmlp.backends.cpu.shards import NumbaShards

    backend.prepare(session, lambda: None)
    return NumbaShards(session, backend.forms, tree.share, bounds, threads, tree).add_up


WIDE = Scenario("wide", (37, 70, 11), {"activation": "gelu", "dropout": 0.2}, SGD(), rows=320, batch=320)
"""Of several tiles each way, with rows in shards that a gradient sums in one block, and in more than one."""
PLAIN = replace(WIDE, name="plain", network={"activation": "relu"})
"""Inputs are read where they lie."""
FAR = Scenario("far apart", (1040, 20, 3), {"activation": "relu"}, SGD(), rows=320, batch=320)
"""Rows each on a page of its own, of which a shard has more than a small tile sums over at once, and fewer."""
MOSTLY_ZERO = replace(WIDE, name="mostly zero", network={"activation": "relu"}, zeros=True)
"""Where a single row passes over what a zero asks for."""
NARROW = Scenario("narrow", (5, 4, 3), {"activation": "tanh", "dropout": (0.1, 0.3)}, SGD(), rows=24, batch=24)


@types
@pytest.mark.parametrize("scenario", [*SCENARIOS, WIDE, PLAIN], ids=str)
def test_all_shards_at_once_are_the_shards_one_by_one(scenario, dtype):
    backend, reference = fastmlp.get_backend("numba", threads=1), fastmlp.get_backend("numpy")
    for shards in (1, 3, 8):
        found, totals = summed(backend, scenario, dtype, shards)
        expected, expected_totals = summed(reference, scenario, dtype, shards, one_by_one=True)
        scale = float(np.abs(expected).max()) + 1e-3
        assert_close(found, expected, dtype=dtype, scale=scale, k=scenario.batch, c=64.0, what=f"{shards} shards")
        np.testing.assert_allclose(totals, expected_totals, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("products", ["rule", "blas", "direct", "packed"])
@types
@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(WIDE, marks=pytest.mark.thorough),
        pytest.param(PLAIN, marks=pytest.mark.thorough),
        FAR,
        MOSTLY_ZERO,
        NARROW,
        replace(NARROW, name="bytes", bytes=True),
    ],
    ids=str,
)
def test_ranks_and_threads_change_no_bit(scenario, dtype, products):
    backend = fastmlp.get_backend("numba", products=products)
    for shards in (2, 7):
        for count in {scenario.batch, 2 * shards, shards + 1, shards - 1}:  # of many rows, of two, of one, of none
            given = {"shards": shards, "count": count}
            expected, expected_totals = summed(backend, scenario, dtype, **given, threads=1)
            for ranks, threads in ((1, 3), (2, 1), (3, 2), (shards, 1)):
                if ranks > shards or (threads > 1 and numba.config.DISABLE_JIT):  # threads wait in compiled code only
                    continue
                found, totals = summed(backend, scenario, dtype, ranks=ranks, threads=threads, **given)
                what = f"{count} rows in {shards} shards, {ranks} ranks of {threads} threads"
                assert_same_bits(found, expected, what)
                assert_same_bits(totals, expected_totals, what)


def test_the_work_is_cut_into_slices_that_fit_the_cache(monkeypatch):
    from fastmlp.kernels.cpu.products import available_forms

    from fastmlp.backends.cpu import shards

    if len(available_forms()) == 1:
        pytest.skip(
            "there are no tiles here (the JIT is off, or no fused multiply-adds): the BLAS computes all products"
        )
    backend = fastmlp.get_backend("numba", threads=1)
    expected, _ = summed(backend, PLAIN, "f4", 8)
    made = []
    original = shards.NumbaShards.__init__

    def noted(self, *given):
        original(self, *given)
        made.append(self._structure.block)

    monkeypatch.setattr(shards.NumbaShards, "__init__", noted)
    for size in (1, 8 * 2 * 4 * 3 * 70):  # the least there can be, and some inputs of the first layer
        monkeypatch.setattr(shards, "level2_bytes", lambda size=size: size)
        found, _ = summed(backend, PLAIN, "f4", 8)
        assert_same_bits(found, expected)
    assert made[0] == 8 * 70 < made[-1] < 37 * 70


@pytest.mark.parametrize("changes", [False, True])
def test_labels_are_converted_once_unless_the_data_changes(changes, monkeypatch):
    backend, scenario = fastmlp.get_backend("numba", threads=1), replace(NARROW, network={"activation": "tanh"})
    session, state = backend.open(scenario.plan("f4")), scenario.state(backend, "f4")
    there = scenario.device_data(backend, "f4")
    data = replace(there, y=there.y.astype(np.int32), changes=changes)
    tree = TreeSum(2, 1, 0, session.grads.size, partial(np.empty, dtype="f4"), np_add)
    bounds, totals = cut(24, 2), np.zeros((2, 3))
    add_up = backend.open_shards(session, tree, bounds)
    made, original = [], type(session).data
    monkeypatch.setattr(type(session), "data", lambda self, data: made.append(data) or original(self, data))
    scalars = StepScalars(*scenario.table(0, 0, "f4")[0].tolist())
    found = []
    for labels in (there.y, (there.y + 1) % 3):
        data.y[...] = labels
        add_up(state, data, scenario.order(0), bounds, scalars, totals)
        found.append(tree.sums.copy())
    assert len(made) == (2 if changes else 1)
    assert (found[0] != found[1]).any() == changes
    add_up(state, replace(data), scenario.order(0), bounds, scalars, totals)  # of other data
    assert len(made) == (3 if changes else 2)
    assert (tree.sums != found[0]).any()


def test_a_shorter_batch_may_have_a_row_more_in_a_shard():
    from fastmlp.backends.cpu.shards import NumbaShards

    backend = fastmlp.get_backend("numba", threads=1)
    scenario = replace(NARROW, batch=22)
    session = backend.open(scenario.plan("f4"))
    whole, shorter = cut(22, 8), cut(21, 8)
    assert shorter[5] - shorter[4] > whole[5] - whole[4]
    for ranks in range(1, 9):
        for rank in range(ranks):
            tree = TreeSum(8, ranks, rank, session.grads.size, partial(np.empty, dtype="f4"), np_add)
            memory = NumbaShards(session, backend.forms, tree.share, whole, 1, tree)._memory
            most = max(cut(count, 8)[tree.stop] - cut(count, 8)[tree.first] for count in range(23))
            assert len(memory.counting) >= most and memory.x.size >= most * 5 and memory.z.size >= most * 7
        found, _ = summed(backend, scenario, "f4", 8, ranks=ranks, count=21)
        assert_same_bits(found, summed(backend, scenario, "f4", 8, count=21)[0])


def test_what_does_not_train_has_no_gradient():
    scenario = replace(WIDE, name="frozen", units=(37, 20, 30, 11), frozen=(True, False, True))
    backend, reference = fastmlp.get_backend("numba", threads=1), fastmlp.get_backend("numpy")
    found, _ = summed(backend, scenario, "f4", 5, ranks=2)
    expected, _ = summed(reference, scenario, "f4", 5, one_by_one=True)
    np.testing.assert_array_equal(found == 0, expected == 0)
    assert (found == 0).any() and (found != 0).any()


def test_a_function_of_ones_own_is_taken_shard_by_shard(registries_as_they_were):
    fastmlp.register_activation("cube_of_it", lambda z: (z**3, 3 * z * z))
    scenario = replace(NARROW, network={"activation": "cube_of_it"})
    backend = fastmlp.get_backend("numba")
    session = backend.open(scenario.plan("f4"))
    tree = TreeSum(2, 1, 0, session.grads.size, partial(np.empty, dtype="f4"), np_add)
    assert backend.open_shards(session, tree, cut(24, 2)) is None
