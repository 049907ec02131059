"""Ranks on GPUs: gradients go from device to device, in order, and add up to the same bits however many there are."""

import itertools
import threading
import time

import cupy_double as cp
import cupy_nccl
import numpy as np
import pytest
from blobs import blobs
from compare import assert_close, assert_same_bits
from emulator import needs_emulator

import fastmlp
from fastmlp.backends.cuda import nccl
from fastmlp.backends.cuda.backend import CupyBackend
from fastmlp.parallel import in_threads
from fastmlp.parallel.group import Alone
from fastmlp.parallel.threads import Threads, _ThreadsOnGpu
from fastmlp.parallel.tree import TreeSum, cut

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]
X, Y = blobs(rows=21)
WEIGHTS = np.random.default_rng(3).uniform(0.5, 2.0, len(Y)).astype("f4")
SHORT = {"epochs": 2, "batch_size": 8, "verbose": 0}
RUNS = {
    "adam, clipping, dropout, average": (
        {"dropout": (0.1, 0.3), "l2": 0.01, "max_norm": 1.5},
        {"optimizer": fastmlp.Adam(clip_norm=0.3, ema=0.9)},
    ),
    "sgd, weights, fewer rows than shards": ({}, {"optimizer": fastmlp.SGD(0.05), "sample_weight": WEIGHTS}),
}
runs = pytest.mark.parametrize(("made", "options"), RUNS.values(), ids=RUNS)
by_nccl = pytest.mark.usefixtures("gpu_each")


@pytest.fixture
def gpu_each(monkeypatch):
    """Let each thread of `in_threads` stand for a process, which has a GPU of its own."""
    monkeypatch.setattr(Threads, "gpu_each", True)
    monkeypatch.setattr(nccl, "import_nccl", lambda: cupy_nccl)
    cupy_nccl.calls.clear()
    yield
    cupy_nccl.calls.clear()
    cupy_nccl.faults.clear()
    cupy_nccl.patience[0] = 20.0
    cp.visible[0] = cp.DEVICES


def network(**made):
    return fastmlp.MLP((6, 5, 3), **{"backend": CupyBackend(), "activation": "tanh", "seed": 1, **made})


def fitted(group, made=None, x=X, y=Y, **options):
    """Return what a run leaves: weights and history, without the time that it took."""
    model = network(**(made or {}))
    history = model.fit(x, y, **{**SHORT, **options}, parallel=group).history
    return model.get_weights(), {name: values for name, values in history.items() if name != "epoch_seconds"}


def by_ranks(ranks, made=None, options=None, **group):
    return in_threads(lambda group: fitted(group, made, **(options or {})), ranks, **group)


def same_runs(found, expected):
    return found[1] == expected[1] and all(
        got.tobytes() == wanted.tobytes() for got, wanted in zip(found[0], expected[0], strict=True)
    )


# --- bits -----------------------------------------------------------------------------------------------------------


@by_nccl
@runs
def test_any_number_of_gpus_gives_the_same_bits(made, options):
    (expected,) = by_ranks(1, made, options)
    assert same_runs(fitted(Alone(8), made, **options), expected)
    for ranks in (2, 3):
        assert all(same_runs(found, expected) for found in by_ranks(ranks, made, options))


def test_threads_that_share_a_gpu_give_the_same_bits():
    made, options = RUNS["adam, clipping, dropout, average"]
    expected = fitted(Alone(8), made, **options)
    assert all(same_runs(found, expected) for found in by_ranks(3, made, options))


@by_nccl
@pytest.mark.parametrize("made", [made for made, _ in RUNS.values()], ids=RUNS)
def test_ranks_on_gpus_differ_from_those_on_the_cpu_by_rounding(made):
    made = {**made, "dtype": "float64"}
    expected, *_ = by_ranks(1, {**made, "backend": "numpy"})
    found, *_ = by_ranks(2, made)
    for got, wanted in zip(found[0], expected[0], strict=True):
        assert_close(got, wanted, k=21 * 6, scale=1, c=16)
    for name, values in expected[1].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-12)


@by_nccl
def test_a_checkpoint_of_gpus_goes_on_to_the_same_bits_on_one(tmp_path):
    path, (made, options) = tmp_path / "run.safetensors", RUNS["adam, clipping, dropout, average"]
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


def on_its_gpu(work, ranks, **options):
    """Call a function with the carrier of each rank, on a stream of its own, as a run does."""

    def call(group):
        with cp.cuda.Device(group.rank), cp.cuda.Stream(non_blocking=True), nccl.carried(group, cp) as carrier:
            return work(carrier)

    return in_threads(call, ranks, **options)


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
        carrier.exchange(tree.own(lambda shard: cp.asarray(arrays[shard])), tree.counts, bounds, brought)
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

    by_ranks(ranks, None, {"epochs": 1, "batch_size": 21, "callbacks": [Look()], "optimizer": fastmlp.SGD(0.1)})
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


def gathers(parts, rank):
    if len(set(parts)) == 1:
        return [("allGather", None, parts[rank])]
    return [("broadcast", root, part) for root, part in enumerate(parts)]


@by_nccl
def test_the_host_waits_once_a_step():
    """For the totals, which tell whether there is an update: it asks an event until it is there, and copies them."""
    made, options = RUNS["adam, clipping, dropout, average"]
    found = []
    for rows in (16, 48):  # two steps, and six
        cp.counts.clear()
        by_ranks(1, made, {**options, "x": np.resize(X, (rows, 6)), "y": np.resize(Y, rows), "epochs": 1})
        found.append((cp.counts["asked"], cp.counts["synchronisations"]))
    assert np.subtract(found[1], found[0]).tolist() == [4, 4]


# --- order ----------------------------------------------------------------------------------------------------------


def elsewhere(carrier):
    """Another stream than the one that computes, which nothing makes wait."""
    if not hasattr(carrier, "other"):
        carrier.other = cp.cuda.Stream(non_blocking=True)
    return carrier.other.ptr


@by_nccl
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.cuda_host), 2])
def test_whatever_the_schedule_the_bits_are_those_of_work_done_at_once(seed):
    made, options = RUNS["adam, clipping, dropout, average"]
    options = {**options, "epochs": 1}
    expected, *_ = by_ranks(1, made, options)
    with cp.late(seed):
        found = by_ranks(2, made, options)
    assert all(same_runs(one, expected) for one in found)


@by_nccl
def test_gradients_that_are_sent_on_another_stream_are_others(monkeypatch):
    expected, *_ = by_ranks(1)
    monkeypatch.setattr(nccl.Nccl, "_stream", property(elsewhere))
    with pytest.raises(cp.CudaError, match="two streams that nothing orders"):
        by_ranks(2)
    assert any(differs(expected, seed) for seed in range(6))


def differs(expected, seed):
    try:
        with cp.late(seed):
            return not same_runs(by_ranks(2)[0], expected)
    except (fastmlp.NonFiniteLossError, fastmlp.ParallelError):  # what follows from numbers that are not there yet
        return True


def test_threads_that_share_a_gpu_wait_for_each_other_by_events(monkeypatch):
    expected = fitted(Alone(8))
    with cp.late(0):
        assert same_runs(by_ranks(2)[1], expected)
    for show in ("_show", "_done"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_ThreadsOnGpu, show, getattr(Threads, show))
            with pytest.raises(cp.CudaError, match="two streams that nothing orders"):
                by_ranks(2)


# --- GPUs -----------------------------------------------------------------------------------------------------------


def placed(group, device=0):
    with cp.cuda.Device(device):
        model = network()
    model.fit(X, Y, **{**SHORT, "epochs": 1}, parallel=group)
    return model._learner.backend.device, model._learner.state.params.device.id


@by_nccl
def test_each_rank_gets_a_gpu_of_its_own_and_keeps_the_one_that_it_has():
    assert in_threads(placed, 3) == [(0, 0), (1, 1), (2, 2)]
    assert in_threads(lambda group: placed(group, 3 - group.rank), 2) == [(3, 3), (2, 2)]


@by_nccl
def test_ranks_whose_launcher_shows_each_a_gpu_of_its_own_all_take_that(monkeypatch):
    numbers, own = itertools.count(7), {}

    def properties(device):
        return {"uuid": bytes([own.setdefault(threading.get_ident(), next(numbers))] * 16)}

    monkeypatch.setattr(cp.cuda.runtime, "getDeviceProperties", properties)
    assert in_threads(lambda group: nccl.own_gpu(group, cp, 0), 3) == [0, 0, 0]


@by_nccl
def test_more_ranks_than_gpus_are_refused_on_every_rank():
    cp.visible[0] = 2
    ended = []

    def train(group):
        try:
            fitted(group)
        except fastmlp.ParallelError as error:
            ended.append(str(error))
            raise

    with pytest.raises(
        fastmlp.ParallelError, match=r"^parallel: ranks 0 and 2 have the same GPU: .* runs 3 ranks.* 2;"
    ):
        in_threads(train, 3)
    assert ended == [ended[0]] * 3


@by_nccl
@pytest.mark.parametrize("ranks", [1, 2])
def test_steps_that_would_be_captured_are_refused_before_anything_changes(ranks):
    unchanged = []

    def train(group):
        model = network(backend=CupyBackend(way="captured"))
        before = model.get_weights()
        try:
            model.fit(X, Y, **SHORT, parallel=group)
        finally:
            unchanged.append(all(map(np.array_equal, model.get_weights(), before)))

    with pytest.raises(ValueError, match=r"^parallel: .* way='captured'; move it with model.to\('cupy'\)"):
        in_threads(train, ranks)
    assert unchanged == [True] * ranks


# --- faults ---------------------------------------------------------------------------------------------------------


def test_cupy_without_nccl_is_told_with_the_cure(monkeypatch):
    cuda = pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'fastmlp[cuda-test]'").cuda
    monkeypatch.setattr(cuda, "nccl", cp.cuda.__class__(available=False), raising=False)
    monkeypatch.setattr(Threads, "gpu_each", True)
    message = r"^parallel: .*NCCL, which CuPy does not find; pip install nvidia-nccl-cu13 .*backend='numba'"
    with pytest.raises(fastmlp.BackendUnavailable, match=message):
        by_ranks(2)


@by_nccl
@pytest.mark.parametrize("call", ["get_unique_id", "init", "broadcast", "allGather", "send", "recv"])
def test_what_nccl_refuses_is_told_with_the_rank_and_its_gpu(call):
    cupy_nccl.faults[call] = 2
    message = r"^parallel: NCCL fails on rank (\d), GPU \1 \(NCCL_ERROR_SYSTEM_ERROR: .*NCCL_DEBUG=INFO"
    with pytest.raises(fastmlp.ParallelError, match=message) as raised:
        by_ranks(2)
    assert isinstance(raised.value.__cause__, cupy_nccl.NcclError)


def ended_early(fault, **options):
    """Return what a rank raises that waits for another, and what that does to its stream; the other has the fault."""
    cupy_nccl.patience[0] = 0.02

    def work(carrier):
        array = cp.asarray(np.zeros(4, np.float32))
        if carrier.rank == 0:
            fault()
            return
        stream = cp.cuda.get_current_stream()
        try:
            carrier.gather(array, [0, 2, 4])
            with pytest.raises(cp.CudaError, match="waits for ever"):
                stream.synchronize()
            carrier.settle()
        finally:
            carrier.abort()
            stream.synchronize()  # it does not wait any more

    began = time.perf_counter()
    with pytest.raises(Exception) as raised:
        on_its_gpu(work, 2, **options)
    assert time.perf_counter() - began < 30
    return raised.value


@by_nccl
def test_a_rank_that_does_not_come_is_not_waited_for_longer_than_told():
    error = ended_early(lambda: time.sleep(0.6), timeout=0.3)
    assert isinstance(error, fastmlp.ParallelError)
    assert str(error).startswith("parallel: rank 1 has waited 0.3 s for the others")


@by_nccl
def test_a_rank_that_fails_ends_the_wait_of_the_others():
    def fail():
        raise OSError("the disk is full")

    error = ended_early(fail, timeout=300)
    assert isinstance(error, OSError)


@by_nccl
def test_an_error_that_nccl_meets_later_ends_the_wait():
    def fail():
        cupy_nccl.faults["async"] = 1
        time.sleep(0.3)

    error = ended_early(fail, timeout=300)
    assert str(error).startswith("parallel: NCCL fails on rank 1, GPU 1 (NCCL_ERROR_UNHANDLED_CUDA_ERROR")


@by_nccl
def test_a_communicator_that_some_do_not_join_is_not_waited_for_longer_than_told():
    def join(group):
        if group.rank == 0:
            nccl.Nccl(group, cp)
        else:
            group.share(None)  # it answers, and then does something else
            time.sleep(0.5)

    with pytest.raises(fastmlp.ParallelError, match=r"^parallel: rank 0 has waited 0.2 s for the others"):
        in_threads(join, 2, timeout=0.2)


@by_nccl
def test_a_rank_that_raises_ends_a_run_with_its_error():
    def train(group):
        class Fails(fastmlp.Callback):
            def on_epoch_end(self, run, figures):
                if group.rank == 1 and run.epoch == 1:
                    raise OSError("the disk is full")

        fitted(group, callbacks=[Fails()])

    with pytest.raises(OSError, match=r"^the disk is full$"):
        in_threads(train, 3, timeout=60)


@by_nccl
def test_a_loss_that_is_not_finite_is_told_as_by_one_process():
    options = {"optimizer": fastmlp.SGD(1e19)}
    with pytest.raises(fastmlp.NonFiniteLossError, match="the loss is not finite in epoch 1, step") as alone:
        fitted(None, {"activation": "relu"}, **options)
    with pytest.raises(fastmlp.NonFiniteLossError) as shared:
        by_ranks(2, {"activation": "relu"}, options, timeout=60)
    assert str(shared.value) == str(alone.value)


@by_nccl
def test_weights_that_change_on_one_gpu_are_noticed():
    def train(group):
        class Spoils(fastmlp.Callback):
            def on_steps(self, run):
                if group.rank == 1:
                    run.learner.state.params[0] = 9.0

        fitted(group, callbacks=[Spoils()])

    with pytest.raises(fastmlp.ParallelError, match="^parallel: the weights of rank 1 are no longer those"):
        in_threads(train, 3, timeout=60)
