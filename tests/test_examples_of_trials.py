"""Many trials at once, as the examples show: every backend of joblib, and studies that processes share."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import joblib
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import ParameterGrid, cross_val_score

from fastmlp import MLPClassifier

TRIALS = Path(__file__).resolve().parents[1] / "examples" / "trials"
ROWS, EPOCHS, WORKERS = 200, 3, 2
COMMON = ("--rows", str(ROWS), "--epochs", str(EPOCHS))
LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
CURE = "is not installed; pip install 'fastmlp[cluster]'"

pytestmark = pytest.mark.usefixtures("default_signals", "kernels_in_the_cache")


def started(name, *arguments, **variables):
    """Start an example, on a machine on which nobody has limited the threads."""
    clean = {name: value for name, value in os.environ.items() if name not in LIMITS}
    return subprocess.Popen(
        [sys.executable, "-P", str(TRIALS / name), *map(str, arguments), *COMMON],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, **variables},
        cwd=tempfile.gettempdir(),  # workers look for modules where they are started: fastmlp's source holds no kernels
    )


def printed(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def without_ray(out):
    """Return what an example printed without the lines that Ray puts between.

    joblib's pool ends its workers by ray.kill, and now and then Ray tells the driver that one "died or was killed", on
    the driver's own output, whatever RAY_LOG_TO_DRIVER is.  One that dies at work is an error of the example.
    """
    return "".join(line for line in out.splitlines(keepends=True) if "(raylet)" not in line)


def assert_threads_fit(out, workers):
    threads = int(re.search(r"(\d+) threads each", out)[1])
    assert threads * workers <= max(workers, joblib.cpu_count(only_physical_cores=True)), out


def test_every_example_of_trials_is_run():
    assert {path.name for path in TRIALS.iterdir() if path.is_file()} == {"search.py", "study.py"}


@pytest.fixture(scope="module")
def expected():
    """The lines of the search, by one fit after the other."""
    x, y = load_digits(return_X_y=True)
    lines = []
    for parameters in ParameterGrid({"hidden_layer_sizes": [(32,), (64,)], "dropout": [0.0, 0.2]}):
        estimator = MLPClassifier(backend="numba", n_jobs=1, epochs=EPOCHS, random_state=0, **parameters)
        accuracy = cross_val_score(estimator, x[:ROWS] / 16, y[:ROWS], cv=2).mean()
        lines.append(f"{accuracy:.4f}  {parameters}")
    assert len(set(line[:6] for line in lines)) > 1
    return lines


@pytest.mark.parametrize(
    ("where", "module"),
    [
        ("loky", "joblib"),
        pytest.param("dask", "distributed", marks=pytest.mark.thorough),
        pytest.param("ray", "ray", marks=pytest.mark.thorough),
    ],
)
def test_a_search_on_each_backend_gives_the_scores_of_one_process_and_takes_no_more_threads_than_cores(
    where, module, expected
):
    pytest.importorskip(module, reason=f"{module} {CURE}")
    with tempfile.TemporaryDirectory(prefix="fastmlp") as folder:  # a short name, as Ray's sockets need
        variables = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "DASK_TEMPORARY_DIRECTORY": folder}
        out = without_ray(printed(started("search.py", "--backend", where, "--workers", WORKERS, **variables)))
    assert out.splitlines()[: len(expected)] == expected
    assert int(re.search(r"(\d+) processes, this one not among them", out)[1]) in range(1, WORKERS + 1)
    assert_threads_fit(out, WORKERS)


@pytest.fixture
def dask_cluster(tmp_path):
    """The address of a scheduler with two workers of one thread each, and the file of what it says."""
    pytest.importorskip("distributed", reason=f"distributed {CURE}")
    told = tmp_path / "scheduler.json"
    environment = {**os.environ, "DASK_TEMPORARY_DIRECTORY": str(tmp_path)}
    options = ("--scheduler-file", str(told), "--no-dashboard")
    kinds = {
        "scheduler": ("--host", "127.0.0.1", "--port", "0"),
        "worker": ("--nthreads", "1", "--nworkers", str(WORKERS)),
    }
    processes = []
    for kind, own in kinds.items():
        command = [sys.executable, "-m", "dask", kind, *options, *own]
        with open(tmp_path / f"{kind}.log", "w") as log:
            processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tempfile.gettempdir())
            )
        while not told.exists():
            assert processes[0].poll() is None, (tmp_path / "scheduler.log").read_text()
            time.sleep(0.05)
    yield json.loads(told.read_text())["address"], tmp_path / "scheduler.log"
    for process in reversed(processes):
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.thorough
def test_a_search_runs_on_the_workers_of_a_cluster_that_is_there(dask_cluster, expected):
    address, log = dask_cluster
    out = printed(started("search.py", "--backend", "dask", "--address", address))
    assert out.splitlines()[: len(expected)] == expected
    assert ", this one not among them" in out
    assert_threads_fit(out, WORKERS)
    assert "Receive client connection" in log.read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--address", "tcp://head:8786"], "--address is of a cluster of Dask or Ray"),
        (["--backend", "dask", "--address", "tcp://head:8786", "--workers", "2"], "--workers are of this machine"),
    ],
)
def test_no_option_is_ignored(monkeypatch, capsys, given, message):
    monkeypatch.setattr(sys, "argv", ["search.py", *given])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TRIALS / "search.py"), run_name="__main__")
    assert message in capsys.readouterr().err


# --- Optuna ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason=f"optuna {CURE}")


def trials_in(optuna, journal):
    """Return the trials of the study in a file; none where it is not there yet."""
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    storage = optuna.storages.JournalStorage(backend)
    known = {study.study_name: study._study_id for study in storage.get_all_studies()}
    return storage.get_all_trials(known["digits"]) if known else []


@pytest.mark.thorough  # where it was killed as it wrote, Optuna lets the next one wait half a minute
def test_a_study_goes_on_after_a_process_is_killed(optuna, tmp_path):
    journal, done = tmp_path / "journal.log", optuna.trial.TrialState.COMPLETE
    process = started("study.py", "--journal", journal, "--processes", 1, "--trials", 10_000)
    while not any(t.state == done for t in trials_in(optuna, journal)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(trials_in(optuna, journal))
    out = printed(started("study.py", "--journal", journal, "--processes", 1, "--trials", before + 1))
    ended = [t for t in trials_in(optuna, journal) if t.state.is_finished()]
    assert len(ended) == before + 1
    assert len({t.user_attrs["process"] for t in ended if t.state == done}) == 2
    assert f"best: {max(t.value for t in ended if t.state == done):.4f}" in out


@pytest.mark.thorough
def test_processes_share_a_study_and_what_lags_behind_is_pruned(optuna, tmp_path):
    journal, states = tmp_path / "journal.log", optuna.trial.TrialState
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name="digits", direction="maximize")
    ranges = {
        "units": optuna.distributions.IntDistribution(8, 128, log=True),
        "learning_rate_init": optuna.distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "dropout": optuna.distributions.FloatDistribution(0.0, 0.5),
    }
    unreachable = optuna.trial.create_trial(
        params={"units": 8, "learning_rate_init": 1e-3, "dropout": 0.0},
        distributions=ranges,
        value=2.0,
        intermediate_values=dict.fromkeys(range(EPOCHS), 2.0),
        user_attrs={"process": 0, "threads": 0},
    )
    study.add_trials([unreachable] * 5)  # before so many Optuna prunes nothing
    out = printed(started("study.py", "--journal", journal, "--processes", WORKERS, "--trials", 8))
    found = study.get_trials()[5:]
    assert 3 <= len(found) < 3 + WORKERS  # each process ends the trial at hand
    assert {t.state for t in found} == {states.PRUNED}
    assert {max(t.intermediate_values) for t in found} == {EPOCHS - 1}
    assert f"5 trials done, {len(found)} pruned" in out
    assert_threads_fit(out, WORKERS)
