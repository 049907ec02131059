"""The pytest-benchmark suite runs, each part of it once, in groups of which each backend is a line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.thorough
def test_the_suite_of_operations_steps_and_epochs_runs(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="it is not installed; pip install 'fastmlp[bench]'")
    chosen = "numpy and (dense or activate or softmax or viblo)"
    timed = ["--benchmark-min-rounds=1", "--benchmark-max-time=0.001", "--benchmark-json=j.json"]
    command = [sys.executable, "-P", "-m", "pytest", "-n0", "--dist=no", "-q", "-p", "no:cacheprovider", *timed]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    asked = [*command, "-k", chosen, str(BENCHMARKS / "test_speed.py")]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=tmp_path, env=variables, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "j.json").read_text()
    groups = set(re.findall(r'"group": "([^"]*)"', text))
    for group in ("dense_forward", "dense_backward", "activate", "softmax", "fit of one step", "epoch of", "predict"):
        assert any(found.startswith(group) for found in groups), group
    assert not any("numpy" in group for group in groups)  # or backends would not be side by side
