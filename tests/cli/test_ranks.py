"""The command line where mpiexec starts it as several processes; `test_processes` has real ones."""

import sys

import pytest
import typer

import fastmlp
from fastmlp.cli import ranks
from fastmlp.parallel import in_threads
from fastmlp.parallel.group import Alone

TRAIN = ("--target", "kind", "--hidden", "4", "--epochs", "3", "--seed", "1", "--backend", "numpy", "--dropout", "0.2")


@pytest.fixture
def started(monkeypatch):
    """Make mpiexec the one that has started this process, as one of so many."""

    def start(size, group=None):
        monkeypatch.setenv("PMI_SIZE", str(size))
        if group is not None:
            monkeypatch.setattr(fastmlp.parallel, "mpi", lambda: group)

    for name in ranks.SIZES:
        monkeypatch.delenv(name, raising=False)
    return start


def model_of(folder):
    return (folder / "model.safetensors").read_bytes()


def test_one_process_of_mpiexec_gives_the_bits_of_its_shards(cli, flowers, tmp_path, started):
    assert cli("train", flowers, *TRAIN, "--out", "plain")[0] == 0
    assert cli("train", flowers, *TRAIN, "--shards", 8, "--out", "shards")[0] == 0
    started(1, Alone(None))
    assert cli("train", flowers, *TRAIN, "--out", "mpiexec")[0] == 0
    assert model_of(tmp_path / "mpiexec") == model_of(tmp_path / "shards") != model_of(tmp_path / "plain")
    settings = (tmp_path / "mpiexec" / "config.toml").read_text("utf-8")
    assert "shards = 8" in settings
    assert "--shards 8" in settings  # the command that repeats it
    assert "shards" not in (tmp_path / "plain" / "config.toml").read_text("utf-8")


def test_a_process_on_a_gpu_gives_the_bits_of_its_shards_too(cli, flowers, tmp_path, started, cupy_or_its_double):
    train = (*TRAIN, "--backend", "cupy", "--epochs", "2")
    assert cli("train", flowers, *train, "--shards", 8, "--out", "shards")[0] == 0
    started(1, Alone(None))
    assert cli("train", flowers, *train, "--out", "mpiexec")[0] == 0
    assert model_of(tmp_path / "mpiexec") == model_of(tmp_path / "shards")


def test_a_run_of_one_process_goes_on_without_mpiexec(cli, flowers, tmp_path, started):
    assert cli("train", flowers, *TRAIN, "--out", "run")[0] == 0
    (tmp_path / "run" / "model.safetensors").unlink()
    started(1, Alone(None))
    code, _, err = cli("train", flowers, "--resume", "--out", "run")
    assert code == 2
    assert "--resume: the run was begun without --shards, in one process; leave out mpiexec" in err


def test_processes_that_do_not_see_each_other_are_refused(cli, flowers, tmp_path, started):
    started(4, Alone(None))
    code, _, err = cli("train", flowers, *TRAIN, "--out", "run")
    assert code == 1
    assert "error: mpiexec has started 4 processes, and mpi4py finds 1: they are of different MPIs" in err
    assert not (tmp_path / "run").exists()


def test_without_mpi4py_the_cure_is_told(cli, flowers, started, monkeypatch):
    started(2)
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    code, _, err = cli("train", flowers, *TRAIN, "--out", "run")
    assert code == 1
    assert "error: parallel: mpi4py cannot be used" in err
    assert "pip install 'fastmlp[mpi]'" in err


def test_what_rank_0_decides_all_do():
    assert in_threads(lambda group: ranks.first_decides(group, lambda: group.rank + 7), 3) == [7, 7, 7]
    assert ranks.first_decides(None, lambda: 5) == 5


def test_where_rank_0_refuses_the_others_end_too():
    ends = {}

    def decide(group):
        try:
            ranks.first_decides(group, lambda: int("no"))
        except (ValueError, typer.Exit) as error:
            ends[group.rank] = type(error)

    in_threads(decide, 3, timeout=60)
    assert ends == {0: ValueError, 1: typer.Exit, 2: typer.Exit}
