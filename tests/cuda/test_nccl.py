"""Ranks on GPUs: gradients go from device to device, in order, and add up to the same bits however many there are."""

import cupy_double as cp
import cupy_nccl
import numpy as np
import pytest
from compare import assert_close, assert_same_bits
from emulator import needs_emulator
from gpu_ranks import ALL, EAGER, X, Y, by_ranks, fitted, on_its_gpu, same_runs

import fastmlp
from fastmlp.backends.cuda import nccl
from fastmlp.backends.cuda.backend import CupyBackend
from fastmlp.errors import KernelError
from fastmlp.parallel.group import Alone
from fastmlp.parallel.threads import Threads, _ThreadsOnGpu
from fastmlp.parallel.tree import TreeSum, cut

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]
by_nccl = pytest.mark.usefixtures("gpu_each")
WEIGHTS = np.random.default_rng(3).uniform(0.5, 2.0, len(Y)).astype("f4")
SIMPLE = {"optimizer": fastmlp.SGD(0.05), "sample_weight": WEIGHTS}
RUNS = {
    "adam, clipping, dropout, average": ALL,
    "sgd, weights, fewer rows than shards": ({}, SIMPLE),
    "adam, clipping, dropout, average, eager": EAGER,
    "sgd, weights, fewer rows than shards, eager": ({"way": "eager"}, SIMPLE),
}
runs = pytest.mark.parametrize(("made", "options"), RUNS.values(), ids=RUNS)


# --- bits -----------------------------------------------------------------------------------------------------------


@by_nccl
@runs
def test_any_number_of_gpus_gives_the_same_bits(made, options):
    (expected,) = by_ranks(1, made, options)
    assert same_runs(fitted(Alone(8), made, **options), expected)
    for ranks in (2, 3):
        assert all(same_runs(found, expected) for found in by_ranks(ranks, made, options))
    assert not cupy_nccl.alive
    assert bool(cupy_nccl.captures) == ("way" not in made)


@pytest.mark.parametrize(("made", "options"), [ALL, EAGER], ids=["auto", "eager"])
def test_threads_that_share_a_gpu_give_the_same_bits(made, options):
    expected = fitted(Alone(8), made, **options)
    assert all(same_runs(found, expected) for found in by_ranks(3, made, options))


@by_nccl
@pytest.mark.parametrize("made", [made for made, _ in RUNS.values()], ids=RUNS)
def test_ranks_on_gpus_differ_from_those_on_the_cpu_by_rounding(made):
    made = {**made, "dtype": "float64"}
    by_numpy = {name: value for name, value in made.items() if name != "way"}
    options = {"optimizer": fastmlp.Adam(1e-3, epsilon=0.1)}  # so large that rounding stays rounding
    expected, *_ = by_ranks(1, {**by_numpy, "backend": "numpy"}, options)
    found, *_ = by_ranks(2, made, options)
    for got, wanted in zip(found[0], expected[0], strict=True):
        assert_close(got, wanted, k=21 * 6, scale=1, c=16)
    for name, values in expected[1].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-12)


@by_nccl
def test_a_checkpoint_of_gpus_goes_on_to_the_same_bits_on_one(tmp_path):
    path, (made, options) = tmp_path / "run.safetensors", ALL
    expected, *_ = by_ranks(2, made, options)

    class Stop(fastmlp.Callback):
        def on_epoch_end(self, run, figures):
            run.stop("enough")

    by_ranks(3, made, {**options, "callbacks": [fastmlp.Checkpoint(path), Stop()]})
    model = fastmlp.load(path, CupyBackend())
    model.resume(X, Y, verbose=0)
    for got, wanted in zip(model.get_weights(), expected[0], strict=True):
        assert_same_bits(got, wanted)


# --- who moves what, when, on which stream --------------------------------------------------------------------------


@by_nccl
@pytest.mark.parametrize("size", [12, 13, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_sums_of_a_tree_come_to_each_gpu_and_are_gathered_from_all(ranks, size, dtype):
    rng = np.random.default_rng(size)
    arrays = (rng.normal(size=(8, size)) * 10.0 ** rng.integers(-6, 6, (8, 1))).astype(dtype)
    backend = CupyBackend()

    def added(carrier):
        def empty(shape):
            return cp.empty(shape, np.dtype(dtype))

        adding = backend if carrier.rank == 0 else CupyBackend()
        tree, bounds = TreeSum(8, ranks, carrier.rank, size, empty, adding.add), cut(size, ranks)
        mine = slice(bounds[carrier.rank], bounds[carrier.rank + 1])
        brought, found = empty((sum(tree.counts), mine.stop - mine.start)), empty((size,))
        tree.add_up(lambda shard: cp.asarray(arrays[shard]))
        carrier.exchange(tree.sums, tree.counts, bounds, brought)
        if len(found[mine]):
            found[mine] = tree.whole(brought)
        carrier.gather(found, bounds)
        carrier.settle()
        return found.get()

    pairs = arrays[::2] + arrays[1::2]
    expected = (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])
    for found in on_its_gpu(added, ranks):
        assert_same_bits(found, expected)


@by_nccl
def test_a_broadcast_brings_what_rank_0_has():
    def told(carrier):
        array = cp.asarray(np.arange(5, dtype=np.float32) + 10 * carrier.rank)
        carrier.broadcast(array)
        return array.get().tolist()

    assert on_its_gpu(told, 3) == [[0, 1, 2, 3, 4]] * 3


@by_nccl
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_that_is_moved_goes_by_the_training_stream_and_to_whom_it_has_to(ranks):
    """Of one step: the totals from all to all; sums of the tree to whose columns they are; then the columns to all."""
    streams, sizes = {}, set()

    class Look(fastmlp.Callback):
        def on_steps(self, run):
            streams[run.learner.backend.device] = run.learner.backend._stream
            sizes.add(run.learner.state.layout.size)

    by_ranks(
        ranks, {"way": "eager"}, {"epochs": 1, "batch_size": 21, "callbacks": [Look()], "optimizer": fastmlp.SGD(0.1)}
    )
    assert [call[1] for call in cupy_nccl.calls].count("get_unique_id") == 1
    (size,), shards = sizes, 8  # of the flat buffer; of a batch
    columns = np.diff(cut(size, ranks)).tolist()
    brought = {1: [1], 2: [1, 1], 3: [1, 2, 2]}[ranks]  # sums of the tree, see test_parallel
    for rank in range(ranks):
        calls = [call for call in cupy_nccl.calls if call[0] == rank]
        assert {stream for *_, stream in calls} == {streams[rank]}
        found = [call[1:4] for call in calls]
        expected = [("broadcast", 0, size)]  # the weights
        expected += gathers((3 * np.diff(cut(shards, ranks))).tolist(), rank)
        expected += [("send", peer, columns[peer]) for _ in range(brought[rank]) for peer in range(ranks)]
        expected += [("recv", peer, columns[rank]) for peer in range(ranks) for _ in range(brought[peer])]
        expected += gathers(columns, rank)
        assert found == expected
    # one of what is exchanged, and one of each gathering of parts that are not alike
    exchanged = [ranks * sums + sum(brought) for sums in brought]
    uneven = ranks * [ranks] * sum(shards % ranks > 0 for shards in (shards, size))
    assert sorted(cupy_nccl.groups) == sorted(exchanged + uneven)


def gathers(parts, rank):
    if len(set(parts)) == 1:
        return [("allGather", None, parts[rank])]
    return [("broadcast", root, part) for root, part in enumerate(parts)]


@by_nccl
def test_the_host_waits_once_a_step():
    """For the totals, which tell whether there is an update: it asks an event until it is there, and copies them."""
    made, options = EAGER
    found = []
    for rows in (16, 48):  # two steps, and six
        cp.counts.clear()
        by_ranks(1, made, {**options, "x": np.resize(X, (rows, 6)), "y": np.resize(Y, rows), "epochs": 1})
        found.append((cp.counts["asked"], cp.counts["synchronisations"]))
    assert np.subtract(found[1], found[0]).tolist() == [4, 4]
    assert found[0][0] == 2 + 2  # and once for the weights of rank 0, and once before the call ends


@by_nccl
@pytest.mark.parametrize(("made", "options"), [ALL, EAGER], ids=["auto", "eager"])
def test_events_of_ranks_take_no_time(made, options, timed_events):
    by_ranks(2, made, {**options, "epochs": 1})
    assert timed_events
    assert not any(timed_events)


# --- order ----------------------------------------------------------------------------------------------------------


MISTAKE = cp.CudaError, KernelError
"""The second where a launch meets it."""


def elsewhere(carrier):
    """Another stream than the one that computes, which nothing makes wait."""
    if not hasattr(carrier, "other"):
        carrier.other = cp.cuda.Stream(non_blocking=True)
    return carrier.other.ptr


@by_nccl
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.cuda_host), 2])
@pytest.mark.parametrize(("made", "options"), [ALL, EAGER], ids=["auto", "eager"])
def test_whatever_the_schedule_the_bits_are_those_of_work_done_at_once(made, options, seed):
    options = {**options, "epochs": 1}
    expected, *_ = by_ranks(1, made, options)
    with cp.late(seed):
        found = by_ranks(2, made, options)
    assert all(same_runs(one, expected) for one in found)


@by_nccl
def test_gradients_that_are_sent_on_another_stream_are_others(monkeypatch):
    expected, *_ = by_ranks(1, {"way": "eager"})
    monkeypatch.setattr(nccl.Nccl, "_stream", property(elsewhere))
    with pytest.raises(MISTAKE, match="two streams that nothing orders"):
        by_ranks(2, {"way": "eager"})
    assert any(differs(expected, seed) for seed in range(6))


def differs(expected, seed):
    try:
        with cp.late(seed):
            return not same_runs(by_ranks(2, {"way": "eager"})[0], expected)
    except (fastmlp.NonFiniteLossError, fastmlp.ParallelError):  # what follows from numbers that are not there yet
        return True


def test_threads_that_share_a_gpu_wait_for_each_other_by_events(monkeypatch):
    eager = {"way": "eager"}
    expected = fitted(Alone(8), eager)
    with cp.late(0):
        assert same_runs(by_ranks(2, eager)[1], expected)
    for show in ("_show", "_done"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_ThreadsOnGpu, show, getattr(Threads, show))
            with pytest.raises(MISTAKE, match="two streams that nothing orders"):
                by_ranks(2, eager)
