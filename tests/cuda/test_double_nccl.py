"""The double of NCCL is honest (all of it is in the installed CuPy) and strict; CuPy's own takes what we give it."""

import importlib.util
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cupy_double as cp
import cupy_nccl
import numpy as np
import pytest

from fastmlp.parallel import in_threads


def of_cupy():
    """Return the signatures of CuPy's module, which a machine without the library cannot import, as its binary says."""
    spec = importlib.util.find_spec("cupy_backends")
    if spec is None:
        pytest.skip("CuPy is not installed; pip install 'fastmlp[cuda-test]'")
    (path,) = (Path(spec.submodule_search_locations[0]) / "cuda" / "libs").glob("nccl*.so")
    return path.read_bytes().decode("latin-1")


def test_every_name_and_parameter_of_the_double_exists_in_cupy():
    text, checked = of_cupy(), 0
    for name, value in vars(cupy_nccl.NcclCommunicator).items():
        if name[0] != "_":
            found = re.search(rf"NcclCommunicator\.{name}\(self(.*?)\)", text)
            assert found, f"CuPy's communicator has no {name}"
            theirs = re.findall(r"(\w+)(?:=\w+)?(?:,|$)", found[1])
            assert [p for p in inspect.signature(value).parameters if p != "self"] == theirs
            checked += 1
    assert checked == 10
    for name in ("NCCL_FLOAT32", "NCCL_FLOAT64", "NcclError", "get_version", "get_unique_id", "groupStart", "groupEnd"):
        assert hasattr(cupy_nccl, name)
        assert name in text


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    cupy_nccl.forget()


def on_devices(work, ranks=2, device=lambda rank: rank):
    name = cupy_nccl.get_unique_id()

    def call(group):
        with cp.cuda.Device(device(group.rank)), cp.cuda.Stream(non_blocking=True) as stream:
            return work(cupy_nccl.NcclCommunicator(ranks, name, group.rank), stream)

    return in_threads(call, ranks)


def numbers(*values):
    return cp.asarray(np.array(values, np.float32))


def test_messages_between_two_ranks_are_taken_in_turn():
    def work(comm, stream):
        rank = comm.rank_id()
        sent, got = numbers(10 * rank, 10 * rank + 1), numbers(-1, -1)
        cupy_nccl.groupStart()
        for i in range(2):
            comm.send(sent[i : i + 1].data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 1 - rank, stream.ptr)
        for i in range(2):
            comm.recv(got[i : i + 1].data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 1 - rank, stream.ptr)
        assert got._view.tolist() == [-1, -1]  # a group begins at its end
        cupy_nccl.groupEnd()
        return got.get().tolist()

    assert on_devices(work) == [[10, 11], [0, 1]]


def test_a_message_that_nobody_takes_leaves_the_stream_to_wait():
    def work(comm, stream):
        cupy_nccl.patience[0] = 0.01
        array = numbers(1)
        if comm.rank_id() == 0:
            comm.send(array.data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 1, stream.ptr)
            event = stream.record()
            assert not event.done
            for wait in (event.synchronize, stream.synchronize, comm.destroy):
                with pytest.raises(cp.CudaError, match="for ever"):
                    wait()
            other = cp.cuda.Stream(non_blocking=True)
            other.wait_event(event)
            assert not other.record().done
            comm.abort()
            assert event.done
            stream.synchronize()

    on_devices(work)


def test_what_is_received_comes_after_what_has_been_sent():
    def work(comm, stream):
        rank, array = comm.rank_id(), numbers(0)
        if rank == 0:
            array[...] = 5  # late
            comm.send(array.data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 1, stream.ptr)
            array[...] = 6
        else:
            comm.recv(array.data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 0, stream.ptr)
        return array.get().tolist()

    for seed in range(6):
        with cp.late(seed):
            assert on_devices(work) == [[6], [5]]


def test_a_captured_message_is_sent_by_each_launch_and_by_none_before():
    def work(comm, stream):
        rank, array = comm.rank_id(), numbers(5, 7)
        stream.begin_capture()
        swap(comm, array, stream)
        graph = stream.end_capture()
        array[:1] = 10 * rank
        found = []
        for _ in range(2):
            graph.launch(stream)
            found.append(array.get().tolist())
            array[:1] = 10 * rank + 1
        return found

    assert on_devices(work) == [[[0, 10], [1, 11]], [[10, 0], [11, 1]]]


def swap(comm, array, stream):
    cupy_nccl.groupStart()
    comm.send(array[:1].data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 1 - comm.rank_id(), stream.ptr)
    comm.recv(array[1:].data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 1 - comm.rank_id(), stream.ptr)
    cupy_nccl.groupEnd()


@pytest.mark.parametrize("late", [0, 1], ids=["another graph", "a call that is not captured"])
def test_a_captured_call_is_answered_by_that_of_the_same_capture_alone(late):
    cupy_nccl.patience[0] = 0.2

    def work(comm, stream):
        array, graphs = numbers(1, 2), []
        for _ in range(2):
            stream.begin_capture()
            swap(comm, array, stream)
            graphs.append(stream.end_capture())
        if comm.rank_id() == 0 or not late:
            graphs[comm.rank_id()].launch(stream)
        else:
            swap(comm, array, stream)

    with pytest.raises(cp.CudaError, match="ranks ask NCCL for different things"):
        on_devices(work)


def captured_alone(comm, stream, array):
    stream.begin_capture()
    comm.broadcast(array.data.ptr, array.data.ptr, array.size, cupy_nccl.NCCL_FLOAT32, 0, stream.ptr)
    return stream.end_capture()


def test_a_communicator_does_not_end_before_the_graphs_that_hold_its_calls():
    def work(comm, stream):
        graph = captured_alone(comm, stream, numbers(1))
        for end in (comm.destroy, comm.abort):
            with pytest.raises(cp.CudaError, match="wait for the graphs that hold its calls, for ever"):
                end()
        del graph
        comm.destroy()
        assert comm not in cupy_nccl.alive

    on_devices(work, 1)


def test_a_graph_keeps_alive_neither_what_it_sends_nor_its_communicator():
    def work(comm, stream):
        graph, kept = captured_alone(comm, stream, numbers(1)), numbers(2)
        with pytest.raises(cp.CudaError, match="a graph uses an array that has been freed"):
            graph.launch(stream)
        graph = captured_alone(comm, stream, kept)
        comm._closed = True
        with pytest.raises(cp.CudaError, match="calls of a communicator that has ended"):
            graph.launch(stream)

    on_devices(work, 1)


def test_a_group_of_calls_is_captured_as_a_whole_or_not_at_all():
    def work(comm, stream):
        array, other = numbers(1, 2), cp.cuda.Stream(non_blocking=True)
        stream.begin_capture()
        cupy_nccl.groupStart()
        comm.send(array[:1].data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 0, stream.ptr)
        comm.recv(array[1:].data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 0, other.ptr)
        with pytest.raises(cupy_nccl.NcclError, match="INVALID_USAGE"):
            cupy_nccl.groupEnd()
        with pytest.raises(cp.CudaError, match="Invalidated: a group of calls of NCCL that are not all in it"):
            stream.end_capture()

    on_devices(work, 1)


def test_a_captured_call_on_a_fork_has_to_be_joined():
    def work(comm, stream):
        array, fork = numbers(1), cp.cuda.Stream(non_blocking=True)
        stream.begin_capture()
        fork.wait_event(stream.record())
        comm.broadcast(array.data.ptr, array.data.ptr, 1, cupy_nccl.NCCL_FLOAT32, 0, fork.ptr)
        with pytest.raises(cp.CudaError, match="Unjoined"):
            stream.end_capture()

    on_devices(work, 1)


def test_a_launch_that_nobody_answers_leaves_the_stream_to_wait():
    def work(comm, stream):
        cupy_nccl.patience[0] = 0.01
        array = numbers(1, 2)
        stream.begin_capture()
        swap(comm, array, stream)
        graph = stream.end_capture()
        if comm.rank_id() == 0:
            graph.launch(stream)
            event = stream.record()
            assert not event.done
            with pytest.raises(cp.CudaError, match="for ever"):
                cp.cuda.runtime.deviceSynchronize()
            del graph
            comm.abort()
            assert event.done

    on_devices(work)


REFUSED = cupy_nccl.NcclError, "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        (lambda comm, at, stream: comm.send(at, 1, 7, 9, stream.ptr), *REFUSED),
        (lambda comm, at, stream: comm.send(at, 1, 7, 0, 0), *REFUSED),
        (lambda comm, at, stream: (comm.destroy(), comm.send(at, 1, 7, 0, stream.ptr)), *REFUSED),
        (lambda comm, at, stream: comm.send(at, 4, 7, 0, stream.ptr), cp.CudaError, "beyond an array"),
        (lambda comm, at, stream: comm.send(at, 0, 7, 0, stream.ptr), cp.CudaError, "to move nothing"),
        (lambda comm, at, stream: comm.send(12, 1, 7, 0, stream.ptr), cp.CudaError, "belongs to no array"),
        (lambda comm, at, stream: comm.broadcast(at, at + 4, 2, 7, 0, stream.ptr), cp.CudaError, "at another place"),
        (lambda comm, at, stream: cupy_nccl.groupEnd(), cupy_nccl.NcclError, "INVALID_USAGE"),
    ],
)
def test_mistakes_are_refused(mistake, error, message):
    def work(comm, stream):
        array = numbers(1, 2, 3)
        with pytest.raises(error, match=message):
            mistake(comm, array.data.ptr, stream)

    on_devices(work, 1)


def test_ranks_that_ask_for_different_things_are_told():
    cupy_nccl.patience[0] = 0.2

    def work(comm, stream):
        array = numbers(1, 2)
        comm.broadcast(array.data.ptr, array.data.ptr, 1 + comm.rank_id(), cupy_nccl.NCCL_FLOAT32, 0, stream.ptr)

    with pytest.raises(cp.CudaError, match="ranks ask NCCL for different things"):
        on_devices(work)


def test_two_ranks_on_one_gpu_are_refused():
    with pytest.raises(cupy_nccl.NcclError, match="INVALID_USAGE"):
        on_devices(lambda comm, stream: None, device=lambda rank: 0)


# --- CuPy's own -------------------------------------------------------------------------------------------------------

LIBRARY = """
#include <string.h>
typedef struct { char internal[128]; } ID;
static struct { const void *from; size_t size; } sent[64];
static int sends, takes, groups;
int later;  /* what NCCL says of what it has begun */
#define NONE(name) int name(void) { return 5; }
NONE(ncclReduce) NONE(ncclAllReduce) NONE(ncclReduceScatter) NONE(ncclBcast) NONE(ncclCommSplit) NONE(ncclCommInitAll)
NONE(ncclCommInitRank)
const char *ncclGetErrorString(int status) { return "of the library of a test"; }
int ncclGetVersion(int *version) { *version = 22700; return 0; }
int ncclGetUniqueId(ID *id) { memset(id, 7, sizeof *id); return 0; }
int ncclCommInitRankConfig(void **comm, int ranks, ID id, int rank, void *config) {
  *comm = &later;
  return ranks == 1 && rank == 0 && id.internal[0] == 7 && id.internal[127] == 7 ? 0 : 4;
}
int ncclCommGetAsyncError(void *comm, int *status) { *status = later; return 0; }
int ncclCommDestroy(void *comm) { return 0; }
int ncclCommAbort(void *comm) { return 0; }
int ncclCommCuDevice(void *comm, int *device) { *device = 0; return 0; }
int ncclCommUserRank(void *comm, int *rank) { *rank = 0; return 0; }
int ncclCommCount(void *comm, int *count) { *count = 1; return 0; }
int ncclGroupStart(void) { groups++; return 0; }
int ncclGroupEnd(void) { return --groups || sends != takes ? 5 : 0; }
static size_t bytes(size_t count, int type) { return count * (type == 7 ? 4 : type == 8 ? 8 : 0); }
int ncclSend(const void *from, size_t count, int type, int peer, void *comm, void *stream) {
  sent[sends].from = from;
  sent[sends++].size = bytes(count, type);
  return groups && !peer && stream ? 0 : 4;
}
int ncclRecv(void *to, size_t count, int type, int peer, void *comm, void *stream) {
  if (sent[takes].size != bytes(count, type)) return 4;
  memcpy(to, sent[takes++].from, bytes(count, type));
  return groups && !peer && stream ? 0 : 4;
}
int ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream) {
  return from == to && count && bytes(count, type) && stream ? 0 : 4;
}
int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream) {
  return from == to && count && bytes(count, type) && !root && stream ? 0 : 4;
}
"""

PROGRAM = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
sys.path[:0] = sys.argv[2:]
import cupy_double as cp
import numpy as np
from cupy.cuda import nccl as cupys
from fastmlp.backends.cuda import nccl
from fastmlp.errors import ParallelError
from fastmlp.parallel.group import Alone

assert nccl.import_nccl() is cupys
group = Alone(8)
group.gpu_each = True
with cp.cuda.Stream(non_blocking=True), nccl.carried(group, cp) as carrier:
    for dtype in ("f4", "f8"):
        rows, out = cp.asarray(np.arange(10, dtype=dtype).reshape(2, 5)), cp.empty((2, 5), np.dtype(dtype))
        carrier.exchange(rows, [2], [0, 5], out)
        carrier.gather(out[0], [0, 5])
        carrier.broadcast(out[1])
        carrier.settle()
        assert out.get().tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    try:
        carrier._communicator.allReduce(0, 0, 1, 7, 0, 0)
    except cupys.NcclError as error:
        assert isinstance(error, RuntimeError)
    ctypes.c_int.in_dll(library, "later").value = 6
    try:
        with carrier._errors():
            carrier._communicator.check_async_error()
    except ParallelError as error:
        print(error)
"""


def test_cupys_own_module_takes_what_it_is_given(tmp_path):
    """By a library of one rank, which moves bytes in the memory of the host: of types and of how errors come back."""
    pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'fastmlp[cuda-test]'")
    compiler = shutil.which("gcc") or pytest.skip("there is no gcc")
    source, library = tmp_path / "nccl.c", tmp_path / "libnccl.so.2"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-Wl,-soname,libnccl.so.2", "-o", library, source], check=True)
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-P", "-W", "ignore", "-c", PROGRAM, str(library), *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = "parallel: NCCL fails on rank 0, GPU 0 (NCCL_ERROR_REMOTE_ERROR: of the library of a test); the"
    assert done.stdout.startswith(expected)
