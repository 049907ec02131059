"""A day with a GPU, dry: every stage ends with its result, one that hangs is stopped, and what is there is kept."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_runs import made
from emulator import needs_emulator

from fastmlp.bench import contenders

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu_day(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_day")


def run(*options):
    command = [sys.executable, str(BENCHMARKS / "gpu_day.py"), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)


@needs_emulator
@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(
            "environment,ceilings,race,limits,auto,bench,memcheck,racecheck,synccheck,counters",
            marks=pytest.mark.thorough,
        ),
        pytest.param("selftest,selftest_warm,proof,ranks,suite,steps,products,kernels", marks=pytest.mark.whole_ladder),
    ],
)
def test_a_dry_day_ends_with_a_result_of_every_stage(stages, tmp_path):
    done = run("--dry-run", "--stages", stages, "--out", tmp_path / "day")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "day" / "summary.md").read_text()
    for stage in stages.split(","):
        found = json.loads((tmp_path / "day" / f"{stage}.json").read_text())
        assert found["text"], stage
        assert found["text"] in summary
        assert "failed" not in found


def test_every_stage_is_a_function_and_stands_in_the_page_that_explains_it(gpu_day):
    page = (BENCHMARKS / "GPU.md").read_text()
    for name, stage in gpu_day.STAGES.items():
        assert callable(getattr(importlib.import_module(gpu_day.MODULES[stage.part]), name))
        assert f"`{name}`" in page
    assert max(stage.seconds for stage in gpu_day.STAGES.values()) <= gpu_day.PART_SECONDS == 540


def test_a_stage_that_hangs_is_stopped_and_one_that_fails_says_why(gpu_day, tmp_path, monkeypatch):
    folder = tmp_path / "modules"  # which its processes find before the script itself
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    for code, seconds, said in (
        ("import time; print('asleep', flush=True); time.sleep(60)", 3, "stopped after 3 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 20, "ends the process by SIGKILL, Killed"),
        ("raise SystemExit('no GPU here')", 20, "SystemExit: no GPU here"),
    ):
        (folder / "gpu_day.py").write_text(f"def stage(name, dry):\n    {code}\n")
        found = gpu_day.run_stage("proof", tmp_path, seconds, dry=True)
        assert found["failed"] == said
        assert json.loads((tmp_path / "proof.json").read_text()) == found
        assert f"**failed**: {said}" in gpu_day.summary(tmp_path)
        assert ("asleep" in (tmp_path / "proof.log").read_text()) == ("asleep" in code)


def test_what_auto_takes_and_the_bench_are_stages_of_the_second_part(gpu_day, monkeypatch):
    """Their own functions; the processes of neither are started here."""
    gpu_speed, auto = importlib.import_module("gpu_speed"), importlib.import_module("auto")
    asked = []

    def race(names, rounds, seconds, total):
        asked.append((names, rounds, total))
        ran = [auto.Ran("cupy", [1.0 + i / 1e4 for i in range(8)], 0.1, 0.5, 6.0)]
        return {name: {"auto": ran, "numba": ran} for name in names}, "The self-test of the GPU failed: memory"

    monkeypatch.setattr(auto, "race", race)
    found = gpu_speed.auto(False)
    assert asked == [(("tiny", "viblo", "mid", "w2048", "w4096"), 1, 110.0)]
    assert "784-4096-10, 64 | cupy" in found["text"] and "failed: memory" in found["text"] and "failed" not in found
    assert json.loads(json.dumps(found))["runs"]["mid"]["auto"][0][0] == "cupy"

    def run(workloads, entrants, effort, **options):
        asked.append(([workload.name for workload in workloads], set(entrants), effort.total))
        return made({"numpy": 1e-3}, workloads)

    monkeypatch.setattr("fastmlp.bench.running.run", run)
    found = gpu_speed.bench(False)
    assert asked[-1][0] in (["viblo"], ["viblo", "mid"]) and set(contenders.PEERS) < asked[-1][1]
    assert asked[-1][2] < gpu_day.STAGES["bench"].seconds
    assert "### viblo: 784-64-32-10" in found["text"]
    assert json.loads(json.dumps(found["results"]))["format"] == 1


def test_what_was_measured_is_written_with_what_is_wrong_with_it(gpu_day, monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(importlib.import_module("results"), "write_section", lambda *given: written.append(given))
    gpu = "name, driver_version\nA GPU, 1.2"
    here = {"gpu": gpu, "cpus": 4, "python": "3.12", "versions": {"numpy": "2"}}
    found = {
        "environment": here,
        "steps": {"text": "### of steps"},
        "auto": {"failed": "slower\n\n| a table |", "text": "| a table |"},
        "race": {"failed": "stopped after 3 s"},
    }
    for name, answer in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(answer))
    gpu_day.write(tmp_path)
    versions = "A GPU, driver 1.2, 4 processors; Python 3.12, numpy 2"
    assert written == [
        ("A day with a GPU: steps", "#### of steps", "A GPU", versions),
        ("A day with a GPU: auto", "slower\n\n| a table |", "A GPU", versions),
    ]


def test_an_unknown_stage_is_refused_before_anything_runs(tmp_path):
    done = run("--stages", "proof,prof", "--out", tmp_path)
    assert done.returncode == 2
    assert "there is no stage prof; there are environment, ceilings" in done.stderr


def test_what_nsight_counts_is_told_by_kernel_and_grid(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu_why = importlib.import_module("gpu_why")
    head = ["ID", "Kernel Name", "Grid Size", *gpu_why.METRICS]
    launches = [
        ("void update<float>(int, float *)", "(4, 1, 1)", "1,000", "1", "2", "3", "40"),
        ("void update<float>(int, float *)", "(4, 1, 1)", "3,000", "3", "4", "5", "40"),
        ("void update<float>(int, float *)", "(8, 1, 1)", "500", "1", "1", "1", "40"),
    ]
    lines = [head, [""] * len(head), *(["0", *launch] for launch in launches)]
    quoted = [",".join(f'"{cell}"' for cell in line) for line in lines]
    found = gpu_why.counted("\n".join(["==PROF== connected", *quoted, "trained: 2 networks"]))
    assert found == [
        ["void update<float>", "(4, 1, 1)", 2, "2000", "2", "3", "4", "40"],
        ["void update<float>", "(8, 1, 1)", 1, "500", "1", "1", "1", "40"],
    ]
    assert gpu_why.counted("==ERROR== no counters") == []
