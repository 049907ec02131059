"""``fastmlp selftest``: every stage passes where a backend is right, and says what is wrong where it is not."""

import re
import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

from fastmlp import cli, selftest
from fastmlp.backends.numpy_backend import NumpyBackend

STAGES = [s for s in selftest.STAGES if s != "race"]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_pass_on_numpy(stage):
    assert selftest.STAGES[stage]("numpy")


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=[pytest.mark.whole_ladder] if s == "against NumPy" else []) for s in STAGES]
)
def test_stages_pass_on_cupy(cupy_or_its_double, stage):
    assert re.search("agree with NumPy|same bits twice|no more after ten fits", selftest.STAGES[stage]("cupy"))


def test_results_that_are_off_are_told_by_how_much():
    expected = selftest._trained("numpy", "float64")
    assert selftest._compare(expected, expected, "float64", "itself") == 0
    for off in (1e-3, np.nan):
        found = [expected[0] + off, *expected[1:]]
        with pytest.raises(selftest.SelfTestError, match=r"itself in float64: off by .* times what rounding allows"):
            selftest._compare(found, expected, "float64", "itself")


def test_runs_that_differ_in_their_bits_are_told(cupy_or_its_double, monkeypatch):
    results = iter([np.zeros(2), np.ones(2)])
    monkeypatch.setattr(selftest, "_trained", lambda *_, **__: [next(results)])
    with pytest.raises(selftest.SelfTestError, match="two captured runs in float32 differ in their bits"):
        selftest.compare_ways("cupy")


def test_memory_that_grows_is_told(monkeypatch):
    figures = iter(range(1000, 2000))
    monkeypatch.setattr(NumpyBackend, "memory_info", lambda self: {"used": next(figures)})
    with pytest.raises(selftest.SelfTestError, match="grew from 1,002 to 1,011 bytes over ten fits"):
        selftest.leave_memory_alone("numpy")


def test_the_command_prints_a_line_a_stage_and_what_to_report(monkeypatch):
    outcomes = {
        "against NumPy": (0, "all agree\n", ""),
        "captured and eager": (1, "", "Traceback\nSelfTestError: two runs differ"),
        "memory": (-11, "", ""),
    }

    def run(command, **_):
        stage = command[-2]
        if stage == "race":
            raise subprocess.TimeoutExpired(command, selftest.SECONDS)
        return subprocess.CompletedProcess(command, *outcomes[stage])

    monkeypatch.setattr(selftest.subprocess, "run", run)
    result = CliRunner().invoke(cli.app, ["selftest", "--backend", "numpy"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith("passed  against NumPy") and lines[0].endswith("all agree")
    assert lines[1].startswith("FAILED  captured and eager") and lines[1].endswith("two runs differ")
    assert "the process ended with code -11" in lines[2]
    assert "it hangs" in lines[3]
    assert "Please report all of this" in result.output
    assert "Traceback" in result.output


def test_a_stage_runs_in_a_process_of_its_own():
    outcome = selftest.run_stage("captured and eager", "numpy")
    assert outcome.passed
    assert outcome.text == "there is only one way"
    failed = selftest.run_stage("memory", "nothing")
    assert not failed.passed
    assert "backend" in failed.text
