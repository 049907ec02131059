"""The race on a GPU: where there is none it says so; PyTorch's part trains, on a CPU, over every row once an epoch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastmlp

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


def test_pytorchs_steps_train_and_take_every_row_once_an_epoch(gpu_race, torch):
    workload = gpu_race.Workload((6, 8, 3), 16)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((96, 6)).astype(np.float32)
    y = (x @ rng.standard_normal((6, 3))).argmax(axis=1)
    step, made = gpu_race.torch_step(workload, x, y, "cpu")
    taken, first = [], None
    for epoch in range(40):
        gpu_race.new_epoch(made)
        losses = []
        for _ in range(6):
            at = int(made["cursor"])
            taken += made["order"][at : at + 16].tolist() if epoch == 0 else []
            step()
            losses.append(float(made["loss"]))
        first = first or np.mean(losses)
    assert sorted(taken) == list(range(96))
    assert np.mean(losses) < 0.9 * first
    epoch = gpu_race.with_torch(workload, x, y, "cpu")
    assert np.isfinite(epoch())
