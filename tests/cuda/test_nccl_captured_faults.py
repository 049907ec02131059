"""Captured steps of several ranks: how a run ends that cannot go on, and how long a communicator lives."""

import gc
import threading
import time

import cupy_double as cp
import cupy_nccl
import cupy_streams
import pytest
from emulator import needs_emulator
from gpu_ranks import ALL, by_ranks, fitted, same_runs, unproven

import fastmlp
from fastmlp.backends.cuda import nccl, shards
from fastmlp.backends.cuda.operations import CupyOperations
from fastmlp.errors import KernelError
from fastmlp.parallel import in_threads

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double", "gpu_each")]
CAPTURED, ONE_EPOCH = {**ALL[0], "way": "captured"}, {**ALL[1], "epochs": 1}


@pytest.fixture(autouse=True)
def without_a_proof(monkeypatch):
    unproven(monkeypatch)


# --- faults ---------------------------------------------------------------------------------------------------------


def ended(message, error=fastmlp.ParallelError, **group):
    """See that a run of two ranks ends soon, with one error, and leaves no communicator."""
    cupy_nccl.patience[0] = 0.05
    began = time.perf_counter()
    with pytest.raises(error, match=message):
        by_ranks(2, CAPTURED, ONE_EPOCH, **{"timeout": 60, **group})
    assert time.perf_counter() - began < 30
    assert not cupy_nccl.alive


def test_what_nccl_refuses_in_a_capture_ends_all():
    cupy_nccl.faults["captured", 1] = 3
    ended(r"^parallel: NCCL fails on rank 1, GPU 1 \(NCCL_ERROR_INTERNAL_ERROR")


def test_a_capture_that_fails_on_one_rank_ends_all(monkeypatch):
    found = shards.ShardedStep._captured_steps

    def refused(self, *args):
        if self._carrier.rank:
            raise cp.CudaError("cudaErrorStreamCaptureInvalidated")
        return found(self, *args)

    monkeypatch.setattr(shards.ShardedStep, "_captured_steps", refused)
    ended(r"the graph of a step is refused \(cudaErrorStreamCaptureInvalidated\); .*way='eager'", KernelError)


def test_a_launch_that_fails_on_one_rank_ends_all(monkeypatch):
    launch = cupy_streams.Graph.launch

    def failing(graph, stream=None):
        if cp.cuda.Device().id and threading.current_thread().name.startswith("rank"):
            if any(what == "call" for _, what, _ in graph._parts):
                del graph
                raise cp.CudaError("cudaErrorLaunchFailure")
        try:
            launch(graph, stream)
        finally:
            del graph

    monkeypatch.setattr(cupy_streams.Graph, "launch", failing)
    ended(r"a training step fails on this GPU \(cudaErrorLaunchFailure\), in one of .*product_forward", KernelError)


def test_a_rank_without_memory_ends_all(monkeypatch):
    made = shards.ShardedStep.__init__

    def full(self, operations, plan, state, data, carrier, share, **options):
        if carrier.rank:
            raise MemoryError("no memory is left")
        made(self, operations, plan, state, data, carrier, share, **options)

    monkeypatch.setattr(shards.ShardedStep, "__init__", full)
    ended("^no memory is left$", MemoryError)


def test_a_rank_that_does_not_launch_is_not_waited_for_longer_than_told(monkeypatch):
    run = shards.ShardedStep.run

    def sleeps(self, *args):
        if self._carrier.rank:
            time.sleep(1.5)
        return run(self, *args)

    monkeypatch.setattr(shards.ShardedStep, "run", sleeps)
    ended("^parallel: rank 0 has waited 1 s for the others", timeout=1)


def test_the_host_waits_for_exchanges_only_where_it_gives_up_after_a_time(monkeypatch):
    queued, waits = threading.local(), []

    def noted(owner, name, *, leaves):
        made = getattr(owner, name)

        def call(*args, **options):
            if leaves is None and getattr(queued, "exchange", False):
                waits.append(name)
            found = made(*args, **options)
            queued.exchange = queued.__dict__.get("exchange", False) if leaves is None else leaves
            return found

        monkeypatch.setattr(owner, name, call)

    noted(cupy_streams.Graph, "launch", leaves=True)
    noted(shards.ShardedStep, "_enqueue", leaves=True)
    noted(shards.ShardedStep, "_settle", leaves=False)
    noted(cp.ndarray, "get", leaves=None)
    noted(cp.cuda.Stream, "synchronize", leaves=None)
    by_ranks(2, CAPTURED, ONE_EPOCH)
    assert not waits


def test_a_device_that_waits_for_ever_is_not_asked_whether_cuda_is_past_use(monkeypatch):
    """After an error the communicator ends first, and its graphs before it."""
    order, abort, poisoned = [], nccl.Nccl.abort, CupyOperations.poisoned
    monkeypatch.setattr(nccl.Nccl, "abort", lambda self: (order.append("abort"), abort(self)))
    monkeypatch.setattr(CupyOperations, "poisoned", lambda self: (order.append("asked"), poisoned(self))[1])
    test_a_launch_that_fails_on_one_rank_ends_all(monkeypatch)
    assert order.index("abort") < order.index("asked")


# --- communicators --------------------------------------------------------------------------------------------------


def names_made():
    return [call for _, call, *_ in cupy_nccl.calls].count("get_unique_id")


def test_a_communicator_serves_the_fits_of_its_group_and_ends_with_it():
    def twice(group):
        first = fitted(group, CAPTURED, **ONE_EPOCH)
        assert same_runs(fitted(group, CAPTURED, **ONE_EPOCH), first)
        # of each run no graph is left, though the model and the communicator stay
        assert not any(len(c._graphs) for c in list(cupy_nccl.alive) if c._rank == group.rank)
        return names_made(), bool(cupy_nccl.alive)

    assert in_threads(twice, 2) == [(1, True)] * 2
    gc.collect()
    assert not cupy_nccl.alive


def carriers(group, *, forget=False, error=None):
    """Return the carriers of two runs of a rank on its own GPU, of which the first may end with an error."""
    with cp.cuda.Device(group.rank):
        try:
            with nccl.carried(group, cp) as first:
                if error is not None:
                    raise error
        except ZeroDivisionError:
            pass
        if forget and group.rank:
            group.kept.by_name.popitem()[1].close()
        with nccl.carried(group, cp) as second:
            second.settle()
        return first is second


def test_after_an_error_ranks_make_another():
    assert in_threads(carriers, 2) == [True, True]
    assert names_made() == 1
    assert in_threads(lambda group: carriers(group, error=ZeroDivisionError()), 2) == [False, False]
    assert names_made() == 3
    gc.collect()
    assert not cupy_nccl.alive


def test_where_one_rank_has_lost_its_own_all_make_another():
    assert in_threads(lambda group: carriers(group, forget=True), 2) == [False, False]
    assert names_made() == 2
    assert not cupy_nccl.alive


def test_a_carrier_on_another_gpu_is_another():
    def on_both(group):
        found = []
        for device in (group.rank, 2 + group.rank):
            with cp.cuda.Device(device), nccl.carried(group, cp) as carrier:
                found.append(carrier)
        return found[0] is found[1]

    assert in_threads(on_both, 2) == [False, False]
    assert names_made() == 2


def test_without_graphs_to_forget_a_run_ends_in_a_wait(monkeypatch):
    """The double refuses what would hang in NCCL: to end a communicator while graphs hold its calls."""
    kept = []
    monkeypatch.setattr(nccl.Nccl, "captures", lambda self, graphs: kept.append(graphs))
    with pytest.raises(cp.CudaError, match="wait for the graphs that hold its calls, for ever"):
        in_threads(lambda group: (fitted(group, CAPTURED, **ONE_EPOCH), group.kept.by_name.popitem()[1].close()), 1)
    kept[0].clear()
    cupy_nccl.alive.clear()
