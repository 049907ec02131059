"""Several processes train one model, started by a real mpiexec: the bits, and how a job ends that cannot go on."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from blobs import blobs

import fastmlp
from fastmlp.parallel import in_threads

pytestmark = [pytest.mark.mpi, pytest.mark.usefixtures("default_signals")]
SECONDS = 10.0
"""Within which a job ends after a fault."""


@pytest.fixture(scope="session")
def mpiexec():
    """The mpiexec of the MPI that mpi4py uses: that of the same environment, or of the machine."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("mpi4py is not installed; pip install 'fastmlp[mpi-test]'")
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip("there is no mpiexec; pip install 'fastmlp[mpi-test]'")
    return found


@pytest.fixture
def job(mpiexec, tmp_path):
    """Start programs, each as several ranks."""
    started = []

    def start(ranks, *command):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [mpiexec, "-n", str(ranks), sys.executable, "-P", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def program(tmp_path, code):
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(code))
    return path


def ended(process):
    """Return the exit code of a job and all that it said."""
    out, _ = process.communicate(timeout=120)
    return process.returncode, out


FITS = """
import hashlib, os
import numpy as np
import fastmlp

def fits(group, x, y):
    weights = np.linspace(0, 2, len(y))
    runs = [
        ({}, {"optimizer": fastmlp.SGD(0.05)}),
        ({"dropout": (0.1, 0.3), "l2": 0.01}, {"optimizer": fastmlp.Adam(clip_norm=0.3, ema=0.9)}),
        ({"dropout": 0.2, "dtype": "float64"}, {"sample_weight": weights, "batch_size": 6}),
    ]
    digest = hashlib.sha256()
    for backend in ("numpy", "numba"):
        for network, options in runs:
            model = fastmlp.MLP((6, 8, 3), backend=backend, activation="tanh", seed=1, **network)
            options = {"epochs": 2, "batch_size": 16, "verbose": 0, "validation_split": 0.2, **options}
            history = model.fit(x, y, **options, parallel=group).history
            digest.update(repr([history["loss"], history["accuracy"]]).encode())
            for array in model.get_weights():
                digest.update(array.tobytes())
    return digest.hexdigest()
"""


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_any_number_of_processes_gives_the_bits_of_threads(job, tmp_path, ranks, kernels_in_the_cache):
    x, y = blobs(rows=75)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    made = {}
    exec(FITS, made)
    (expected,) = in_threads(lambda group: made["fits"](group, x, y), 1)
    code = f"""{FITS}
from mpi4py import MPI
data = np.load("data.npz")
first = fits(MPI.COMM_WORLD, data["x"], data["y"])
group = fastmlp.parallel.mpi(shards=8)
mine = group.common((2, 3 + group.rank), np.dtype("f4"))
if mine is not None:
    mine[group.rank][...] = group.rank
    group.meet()
    assert [array.tolist() for array in mine] == [[[r] * (3 + r)] * 2 for r in range(group.size)]
    type(group).common = lambda self, shape, dtype: None  # all else by messages
second = fits(group, data["x"], data["y"])
assert mine is not None or not os.path.isdir("/dev/shm")
os.write(1, f"{{first}} {{second}}\\n".encode())  # in one piece, however many ranks write
"""
    code, out = ended(job(ranks, program(tmp_path, code)))
    assert code == 0, out
    assert re.findall("[0-9a-f]{64}", out) == [expected] * 2 * ranks, out  # a slow machine says that it compiles


@pytest.mark.parametrize(
    ("gpus", "said"),
    [(3, "0 1 2"), (2, "parallel: ranks 0 and 2 have the same GPU: .* runs 3 ranks, and shows them 2;")],
)
def test_each_process_takes_a_gpu_of_its_own_or_is_told_that_there_are_too_few(job, tmp_path, gpus, said):
    """By a stand-in for the two questions that CUDA is asked."""
    code = f"""
import types
import fastmlp
from fastmlp.backends.cuda.nccl import own_gpu

def uuid(number):
    return {{"uuid": bytes([number] * 16)}}

runtime = types.SimpleNamespace(getDeviceCount=lambda: {gpus}, getDeviceProperties=uuid)
group = fastmlp.parallel.mpi()
number = own_gpu(group, types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)), 0)
numbers = group.share(number)
if group.rank == 0:
    print(*numbers)
"""
    code, out = ended(job(3, program(tmp_path, code)))
    assert (code == 0) == (gpus == 3)
    assert re.search(said, out), out


def test_a_process_on_a_gpu_moves_all_by_nccl_to_the_bits_of_one_rank(job, tmp_path):
    """Of doubles, which are in each process for itself: so there is one."""
    emulator = pytest.importorskip("emulator")
    if emulator.missing():
        pytest.skip(emulator.missing())
    tests = Path(__file__).parent
    code = f"""
import atexit, sys
atexit.register(lambda: print(len(cupy_nccl.alive), "left"))  # after all that is registered from here on
sys.path[:0] = {[str(tests), str(tests / "cuda")]}
import cupy_double, cupy_nccl
import numpy as np
import fastmlp
from fastmlp.backends.cuda import backend, nccl, operations
from fastmlp.parallel.group import Alone

backend.import_cupy = lambda: cupy_double
nccl.import_nccl = lambda: cupy_nccl
operations.load_cublas = lambda: cupy_double.cublas_library
rng = np.random.default_rng(0)
x, y = rng.normal(size=(21, 6)).astype("f4"), rng.integers(0, 3, 21)

def weights(group):
    model = fastmlp.MLP((6, 5, 3), backend=backend.CupyBackend(), dropout=0.2, seed=0)
    model.fit(x, y, epochs=2, batch_size=8, verbose=0, parallel=group)
    return b"".join(w.tobytes() for w in model.get_weights())

expected = weights(Alone(8))
assert not cupy_nccl.calls
assert weights(fastmlp.parallel.mpi()) == expected
assert weights(fastmlp.parallel.mpi()) == expected  # another group of the same processes, by what the first has made
assert [kind for _, kind, *_ in cupy_nccl.calls].count("get_unique_id") == len(cupy_nccl.alive) == 1
assert cupy_nccl.captures
print(sorted({{kind for _, kind, *_ in cupy_nccl.calls}}))
"""
    code, out = ended(job(1, program(tmp_path, code)))
    assert code == 0, out
    assert out.split("\n")[:2] == ["['allGather', 'broadcast', 'get_unique_id', 'recv', 'send']", "0 left"]


FAULTY = """
import os, signal, sys, time
import numpy as np
import fastmlp
from mpi4py import MPI

fault = sys.argv[1]
if fault == "between fits":
    group = MPI.COMM_WORLD
else:
    group = fastmlp.parallel.mpi(timeout=3 if fault == "stuck" else 300)
faults = {
    "raises": lambda: (_ for _ in ()).throw(OSError("the disk is full")),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "terminated": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "leaves": lambda: sys.exit(3),
    "memory": lambda: np.empty(2**62, np.uint8),
    "stuck": lambda: time.sleep(1000),
    "bad file": lambda: np.load("nothere.npy"),
    "between fits": lambda: np.load("nothere.npy"),
}

def note(name, value):  # in a file: what a rank prints last can be lost with the job
    with open(f"{name}-{MPI.COMM_WORLD.rank}", "w") as file:
        file.write(str(value))

def fail():
    if group.rank == 1:
        note("fault", time.time())
        faults[fault]()

class Fails(fastmlp.Callback):
    def on_epoch_end(self, run, figures):
        if run.epoch == 2 and fault != "bad file":
            fail()

note("process", os.getpid())
MPI.COMM_WORLD.Barrier()  # a rank that has not started yet would be ended unnoted
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 6)).astype("f4"), rng.integers(0, 3, 64)
if fault == "bad file":
    fail()
if fault == "other data":
    x = x + group.rank
    note("fault", time.time())
optimizer = fastmlp.SGD(1e25) if fault == "not finite" else fastmlp.SGD(0.01)
if fault == "not finite":
    note("fault", time.time())
model = fastmlp.MLP((6, 8, 3), backend="numpy", seed=0)
if fault == "between fits":
    model.fit(x, y, epochs=1, verbose=0, parallel=group)
    fail()
callbacks = [Fails(), fastmlp.Checkpoint("run.safetensors")]
model.fit(x, y, epochs=100000, batch_size=16, optimizer=optimizer, callbacks=callbacks, verbose=0, parallel=group)
"""
FAULTS = {
    "raises": "rank 1 of 3: Traceback .*OSError: the disk is full",
    "killed": "EXIT CODE: 9|signal 9",
    "terminated": "EXIT CODE: 15|signal 15",
    "crashes": "EXIT CODE: 11|signal 11",
    "leaves": "rank 1 of 3: Traceback .*SystemExit: 3",
    "memory": "rank 1 of 3: Traceback .*MemoryError",
    "stuck": r"rank [02] of 3: Traceback .*parallel: rank \d has waited 3 s for the others",
    "bad file": "Traceback .*FileNotFoundError.*rank 1 of 3: FileNotFoundError, as above",
    "between fits": "Traceback .*FileNotFoundError.*rank 1 of 3: FileNotFoundError, as above",
    "other data": "Traceback .*ParallelError: parallel: all ranks must have the same data; rank 1 has",
    "not finite": "Traceback .*NonFiniteLossError: the loss is not finite in epoch 1",
}


def exists(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(("fault", "message"), FAULTS.items(), ids=FAULTS)
def test_a_fault_of_one_rank_ends_the_job_soon_and_is_told(job, tmp_path, fault, message):
    code, out = ended(job(3, program(tmp_path, FAULTY), fault))
    over = time.time()
    assert code != 0
    assert re.search(message, out, re.DOTALL), out
    began = min(float(path.read_text()) for path in tmp_path.glob("fault-*"))
    assert over - began < SECONDS
    processes = [int(path.read_text()) for path in tmp_path.glob("process-*")]
    assert len(processes) == 3
    assert not any(map(exists, processes))
    if fault not in ("bad file", "between fits", "other data", "not finite"):
        fastmlp.load(tmp_path / "run.safetensors", "numpy")  # whole, whatever happened


# --- the command line -----------------------------------------------------------------------------------------------

MAIN = ("-c", "from fastmlp.cli import main; main()", "train")


@pytest.fixture
def table(tmp_path):
    x, y = blobs(rows=90)
    rows = [",".join(map(str, [*row, "abc"[label]])) for row, label in zip(x.tolist(), y.tolist(), strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["u,v,w,x,y,z,kind", *rows, ""]))
    return ("t.csv", "--target", "kind", "--hidden", "8", "--backend", "numpy", "--dropout", "0.1")


def test_a_run_of_the_command_line_is_one_run(job, tmp_path, table):
    files = []
    for ranks in (1, 3):
        out = f"run{ranks}"
        code, said = ended(job(ranks, *MAIN, *table, "--epochs", 3, "--seed", 5, "--out", out))
        assert code == 0, said
        assert said.count("epoch 2/3") == said.count("validation accuracy") == 1
        files.append((tmp_path / out / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert "shards = 8" in (tmp_path / "run3" / "config.toml").read_text()


def test_a_seed_is_drawn_once(job, tmp_path, table):
    code, said = ended(job(2, *MAIN, *table, "--epochs", 1))
    assert code == 0, said
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_ctrl_c_stops_all_and_the_run_goes_on_with_other_ranks_to_the_same_bits(job, tmp_path, table):
    process = job(2, *MAIN, *table, "--epochs", 60, "--seed", 5, "--out", "stopped")
    while not process.stdout.readline().startswith("epoch"):
        pass
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    assert code == 130, said
    assert "interrupted; the model so far is saved. To go on:" in said
    for ranks, out, options in ((3, "stopped", ["--resume"]), (1, "whole", ["--seed", 5])):
        code, said = ended(job(ranks, *MAIN, *table, "--epochs", 60, *options, "--out", out))
        assert code == 0, said
    first, second = ((tmp_path / out / "model.safetensors").read_bytes() for out in ("stopped", "whole"))
    assert first == second


def test_sigterm_ends_all_and_leaves_a_whole_checkpoint(job, tmp_path, table):
    process, checkpoint = (
        job(2, *MAIN, *table, "--epochs", 10**6, "--out", "run"),
        tmp_path / "run/checkpoint.safetensors",
    )
    while not checkpoint.exists():  # one is written after a second
        assert process.stdout.readline(), "it ended by itself"
    began = time.time()
    process.send_signal(signal.SIGTERM)
    code, _ = ended(process)
    assert code != 0
    assert time.time() - began < SECONDS
    assert fastmlp.load(checkpoint, "numpy").steps > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "nope"], "error: .*t.csv: expected a target column 'nope'"),
        (["--shards", 2], "--shards: 3 processes have no more than 2 to share"),
        (["--lr", "1e30", "--optimizer", "sgd"], "error: the loss is not finite in epoch 1"),
        (["--out", "t.csv"], "error: t.csv is a file; --out names a folder"),
    ],
)
def test_a_mistake_is_told_once(job, table, options, message):
    code, said = ended(job(3, *MAIN, *table, "--epochs", 3, *options))
    assert code != 0
    assert len(re.findall(message, said)) == 1, said
    assert "Traceback" not in said
