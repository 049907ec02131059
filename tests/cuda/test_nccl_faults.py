"""Ranks on GPUs: which GPU each has, and how a run ends that cannot go on."""

import itertools
import threading
import time

import cupy_double as cp
import cupy_nccl
import numpy as np
import pytest
from emulator import needs_emulator
from gpu_ranks import SHORT, X, Y, by_ranks, fitted, network, on_its_gpu

import fastmlp
from fastmlp.backends.cuda import nccl
from fastmlp.parallel import in_threads
from fastmlp.parallel.threads import Threads

pytestmark = [needs_emulator, pytest.mark.usefixtures("cupy_is_its_double")]
by_nccl = pytest.mark.usefixtures("gpu_each")


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


def test_threads_on_several_gpus_are_refused():
    message = r"^parallel: all ranks must have the same GPU, which threads share; rank 1 has 1, rank 0 0"
    with pytest.raises(fastmlp.ParallelError, match=message):
        in_threads(lambda group: placed(group, group.rank), 2)


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
    error = ended_early(lambda: time.sleep(1.5), timeout=1)
    assert isinstance(error, fastmlp.ParallelError)
    assert str(error).startswith("parallel: rank 1 has waited 1 s for the others")


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
            time.sleep(1.5)

    with pytest.raises(fastmlp.ParallelError, match=r"^parallel: rank 0 has waited 1 s for the others"):
        in_threads(join, 2, timeout=1)


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

    with pytest.raises(fastmlp.ParallelError, match=r"^parallel: the weights of rank 1 are no longer"):
        in_threads(train, 3, timeout=60)
