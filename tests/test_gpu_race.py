"""The race on a GPU: where there is none it says so; PyTorch's part trains, on a CPU, over every row once an epoch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastmlp
from fastmlp.bench import peers
from fastmlp.bench.workloads import Rows, Workload

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu_race(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_race

    return gpu_race


def test_without_a_gpu_nothing_is_measured_and_the_reason_is_said():
    if fastmlp.available_backends()["cupy"].available:
        pytest.skip("there is a GPU here")
    command = [sys.executable, str(BENCHMARKS / "gpu_race.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No GPU race here: ")
    assert fastmlp.available_backends()["cupy"].reason.splitlines()[0][:40] in done.stdout


WORKLOAD = Workload("own", (6, 8, 3), 16)


def test_pytorchs_steps_train_and_take_every_row_once_an_epoch(torch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((96, 6)).astype(np.float32)
    rows = Rows(x, (x @ rng.standard_normal((6, 3))).argmax(axis=1), x, 6)
    step, made = peers.torch_step(WORKLOAD, WORKLOAD.spec(), rows, 0, "cpu")
    taken, first = [], None
    for epoch in range(40):
        peers.new_epoch(made)
        losses = []
        for _ in range(6):
            at = int(made["cursor"])
            taken += made["order"][at : at + 16].tolist() if epoch == 0 else []
            step()
            losses.append(float(made["loss"]))
        first = first or np.mean(losses)
    assert sorted(taken) == list(range(96))
    assert np.mean(losses) < 0.9 * first


def test_a_step_of_pytorch_gives_back_all_that_a_graph_of_it_reads(torch):
    """A graph keeps nothing alive: labels that were freed gave PyTorch's kernels classes out of range."""
    rows = Rows(np.zeros((96, 6), "f4"), np.zeros(96, np.int64), np.zeros((96, 6), "f4"), 6)
    step, made = peers.torch_step(WORKLOAD, WORKLOAD.spec(), rows, 0, "cpu")
    read = [cell.cell_contents for cell in step.__closure__ if isinstance(cell.cell_contents, torch.Tensor)]
    kept = [value for value in (*made.values(), *made["held"]) if isinstance(value, torch.Tensor)]
    assert len(read) >= 5
    assert all(any(tensor is other for other in kept) for tensor in read)


@pytest.mark.thorough
def test_a_child_that_measures_nothing_is_told_with_its_reason(gpu_race, capfd):
    if fastmlp.available_backends()["cupy"].available:
        pytest.skip("there is a GPU here")
    found, silent = gpu_race.race(["viblo"], ["fastmlp-captured"], 1, 1)
    assert found == {"viblo": {"fastmlp-captured": []}}
    assert silent == "measured nothing: fastmlp-captured (viblo); the reason was printed above"
    said = capfd.readouterr().err
    assert "ModuleNotFoundError: No module named 'cupy'" in said or "cupy" in said
    assert "No module named 'race'" not in said
    assert "viblo" not in gpu_race.as_table(found)


def test_a_child_measures_in_a_process_of_its_own(gpu_race, tmp_path, monkeypatch):
    (tmp_path / "a_child.py").write_text(
        "import os\ndef measure(name): print('by the way'); return {name: os.environ.get('OPENBLAS_CORETYPE')}"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")  # which would slow every contender down
    assert gpu_race.raced("a_child:measure", name="viblo") == {"viblo": None}
