"""Runs that are interrupted or killed go on to the same weights, and a run's folder is never overwritten."""

import json
import math
import os
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest

import fastmlp
from fastmlp.cli import run as run_training
from fastmlp.cli.folder import RunFolder, _toml
from fastmlp.cli.settings import Settings
from fastmlp.files import safetensors as files

ROWS, BATCH = 96, 8
STEPS = ROWS // BATCH  # of an epoch
SETTINGS = f"--epochs 4 --batch-size {BATCH} --seed 5 --hidden 6 --dropout 0.3 --ema 0.9".split()

# the pictures of a run take longer than its training, and are no matter of these tests; epochs take no second
MAIN = """
from fastmlp.cli import run
from fastmlp.cli.app import main

run._draw = lambda *_: None
run.CHECKPOINT_SECONDS = 0.0
"""

# ends a process by a signal to itself right after a step
STOPPED = """
import os, signal
from fastmlp.engine import loop as training

training.CALL_SECONDS = 0.0  # from the second call on a step a call
steps = training.Training._steps


def stopping(self, *arguments):
    rate = steps(self, *arguments)
    if self.steps_done == {at}:
        os.kill(os.getpid(), signal.{signal})
    return rate


training.Training._steps = stopping
main()
"""


def write_table(folder):
    draw = np.random.default_rng(0)
    lines = [f"{x:.6f},{20 * y:.6f},{'ab'[int(x + y > 0)]}" for x, y in draw.normal(size=(ROWS * 5 // 4, 2))]
    (folder / "table.csv").write_text("\n".join(["x,y,class", *lines]))
    return folder / "table.csv"


@pytest.fixture
def table(tmp_path):
    return write_table(tmp_path)


def in_a_process(folder, code, *arguments):
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


# that compiled steps are cut short and resumed to the same bits, test_training and test_files tell of both backends
@pytest.fixture(scope="module", params=["numpy", pytest.param("auto", marks=pytest.mark.thorough)])
def train(request):
    """The command that trains, on one backend."""
    return ("train", "table.csv", "--target", "class", *SETTINGS, "--backend", request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, train, kernels_in_the_cache):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write_table(folder)
    done = in_a_process(folder, f"{MAIN}main()", *train, "--out", "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def cli(tmp_path, default_signals, kernels_in_the_cache):
    """Call the command line in a process of its own; with `at` and `signal` it ends after that step."""

    def call(*arguments, at=None, signal="SIGKILL"):
        code = "main()" if at is None else STOPPED.format(at=at, signal=signal)
        done = in_a_process(tmp_path, MAIN + code, *arguments)
        # how long a compiler takes, and whether that is said, is no matter of these tests
        said = [
            line
            for line in done.stderr.splitlines(keepends=True)
            if not line.startswith(("compiling the kernels", "measuring which"))
        ]
        done.stderr = "".join(said)
        return done

    return call


def results(folder):
    history = json.loads((folder / "history.json").read_text("utf-8"))["history"]
    del history["epoch_seconds"]
    return history, fastmlp.load(folder / "model.safetensors").get_weights()


def assert_same(folder, other):
    history, weights = results(folder)
    expected_history, expected = results(other)
    for got, want in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(got, want)
    assert history == expected_history


def test_a_killed_run_goes_on_to_the_same_weights(cli, here, table, train, whole, tmp_path):
    killed = cli(*train, "--out", "killed", at=2 * STEPS + 5)
    assert killed.returncode == -9
    folder = tmp_path / "killed"
    assert {p.name for p in folder.iterdir()} == {"config.toml", "checkpoint.safetensors"}
    assert files.read(folder / "checkpoint.safetensors")[0]["progress"]["epoch"] == 2
    code, err = here("summary", "killed/checkpoint.safetensors")
    assert code == 1 and "killed/checkpoint.safetensors is a checkpoint, from which" in err
    resumed = cli("train", "table.csv", "--resume", "--out", "killed")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert f"going on with the run in killed after {2 * STEPS} steps" in resumed.stdout
    assert_same(folder, whole)
    assert not (folder / "checkpoint.safetensors").exists()


def test_ctrl_c_saves_the_model_and_the_run_goes_on_to_the_same_weights(cli, table, train, whole, tmp_path):
    stopped = cli(*train, "--out", "stopped", at=STEPS + 9, signal="SIGINT")
    assert stopped.returncode == 130
    again = f"fastmlp train {table} --resume --out stopped"
    assert stopped.stderr == f"interrupted; the model so far is saved. To go on: {again}\n"
    folder = tmp_path / "stopped"
    assert {p.name for p in folder.iterdir()} >= {"config.toml", "checkpoint.safetensors", "model.safetensors"}
    assert fastmlp.load(folder / "model.safetensors").steps == STEPS + 9
    assert json.loads((folder / "history.json").read_text("utf-8"))["stop_reason"] == "interrupted"
    resumed = cli(*again.split()[1:])
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert_same(folder, whole)


@pytest.mark.thorough
def test_ctrl_c_in_the_first_epoch_leaves_a_model_too(cli, table, train, tmp_path):
    assert cli(*train, "--out", "run", at=9, signal="SIGINT").returncode == 130
    assert fastmlp.load(tmp_path / "run" / "model.safetensors").steps == 9
    assert cli(*train, "--out", "run", "--resume").returncode == 0


@pytest.mark.thorough  # by default a run that Ctrl-C ends as early begins again, below in this process
def test_a_run_killed_before_its_first_checkpoint_begins_again(cli, table, train, whole, tmp_path):
    assert cli(*train, "--out", "killed", at=9).returncode == -9
    assert {p.name for p in (tmp_path / "killed").iterdir()} == {"config.toml"}
    assert cli("train", "table.csv", "--resume", "--out", "killed").returncode == 0
    assert_same(tmp_path / "killed", whole)


# --- in this process ----------------------------------------------------------------------------------------------


@pytest.fixture
def here(capsys, monkeypatch, tmp_path):
    """Call the command line in this process; gives the exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_training, "_draw", lambda *_: None)

    def call(*arguments):
        from fastmlp.cli.app import main

        monkeypatch.setattr(sys, "argv", ["fastmlp", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr().err

    return call


def interrupt(monkeypatch, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_training, name, interrupted)


def test_a_run_stopped_between_the_last_epoch_and_its_end_is_finished_by_resume(here, table, monkeypatch, tmp_path):
    train = ("train", table, "--target", "class", *SETTINGS)
    assert here(*train, "--out", "whole")[0] == 0
    with monkeypatch.context() as patched:
        interrupt(patched, "finish")
        code, err = here(*train, "--out", "run")
        assert (code, err) == (130, f"interrupted. To go on: fastmlp train {table} --resume --out run\n")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert here(*train, "--resume", "--out", "run") == (0, "")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_resume_refuses_other_settings_by_name(here, table, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, "fit")
        assert here("train", table, "--target", "class", *SETTINGS, "--out", "run")[0] == 130
    resume = ("train", table, "--resume", "--out", "run")
    code, err = here(*resume, "--epochs", 9, "--hidden", "7,7", "--target", "class")
    assert code == 2
    assert "not --hidden 7,7 (the run has 6); --epochs 9 (the run has 4)" in err
    code, err = here("train", "mnist", "--resume", "--out", "run")
    assert code == 2 and f"not DATA mnist (the run has {table})" in err
    assert here(*resume, *SETTINGS, "--backend", "auto") == (0, "")


def test_resume_refuses_data_that_have_changed(here, table, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, "fit")
        here("train", table, "--target", "class", *SETTINGS, "--out", "run")
    table.write_text(table.read_text() + "\n1,1,a")
    code, err = here("train", table, "--resume", "--out", "run")
    assert (code, err) == (1, f"error: {table} has changed since the run in run began; start a new run\n")


def test_a_finished_run_is_neither_resumed_nor_overwritten(here, table, tmp_path):
    train = ("train", table, "--target", "class", *SETTINGS, "--out", "run")
    assert here(*train)[0] == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    code, err = here(*train)
    assert code == 1 and err.startswith("error: run is not empty; choose another folder for --out")
    code, err = here(*train, "--resume")
    assert (code, err) == (1, "error: the run in run is finished; choose another folder for a new one\n")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


LEFT = (".config.toml.0123456789ab.tmp", ".checkpoint.safetensors.0123456789ab.tmp", ".curves.png.0123456789ab.tmp")


def test_a_folder_with_nothing_but_leftovers_of_killed_runs_can_be_used(here, table, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in LEFT:
        (folder / name).write_bytes(b"half")
    train = ("train", table, "--target", "class", *SETTINGS, "--out", "run", "--backend", "numpy")
    code, err = here(*train, "--resume")
    assert code == 1 and err.endswith("there is no config.toml; leave out --resume\n")
    assert here(*train) == (0, "")
    assert not [path for path in folder.iterdir() if path.suffix == ".tmp"]


def test_leftovers_beside_files_of_somebody_else_stay_where_they_are(here, table, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("thesis.tex", *LEFT):
        (tmp_path / "run" / name).touch()
    code, err = here("train", table, "--target", "class", *SETTINGS, "--out", "run")
    assert code == 1 and "run is not empty" in err
    assert len(list((tmp_path / "run").iterdir())) == 4


def test_a_run_that_goes_on_removes_what_the_killed_one_left(here, table, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        interrupt(patched, "fit")
        here("train", table, "--target", "class", *SETTINGS, "--out", "run", "--backend", "numpy")
    for name in LEFT:
        (tmp_path / "run" / name).write_bytes(b"half")
    assert here("train", table, "--resume", "--out", "run")[0] == 0
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]


def test_history_is_json_also_where_figures_are_no_numbers(tmp_path):
    folder = RunFolder(tmp_path)
    history = {"history": {"loss": [1.5, math.nan], "val_loss": [math.inf, -math.inf]}, "stop_reason": ""}
    folder.write_history(history, {"test_loss": np.float64("nan"), "seconds": 2.0})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = json.loads(folder.history.read_text("utf-8"), parse_constant=refuse)
    assert read == {
        "history": {"loss": [1.5, None], "val_loss": [None, None]},
        "stop_reason": "",
        "result": {"test_loss": None, "seconds": 2.0},
    }


def test_a_spoilt_config_is_refused(here, table, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        interrupt(patched, "fit")
        here("train", table, "--target", "class", *SETTINGS, "--out", "run")
    config = tmp_path / "run" / "config.toml"
    text = config.read_text("utf-8")
    for spoilt in (text.replace("= 4", "= = 4"), text.replace("epochs =", "epoch ="), "", text.replace("seed", "sead")):
        config.write_text(spoilt)
        code, err = here("train", table, "--resume", "--out", "run")
        assert code == 1 and err.startswith("error: run/config.toml is not as fastmlp wrote it (")


EDITED = [
    ("data", "1", "DATA must be text, got 1"),
    ("data", '"a\\u0000b"', "null"),
    ("target", "3", "--target must be text, got 3"),
    ("hidden", '["6"]', "--hidden must be an integer, got '6'"),
    ("hidden", "6", "--hidden must be a list of numbers, got 6"),
    ("hidden", "[true]", "--hidden must be an integer, got True"),
    ("dropout", "[]", "--dropout must be a list of numbers, got ()"),
    ("dropout", '[".3"]', "--dropout must be a number, got '.3'"),
    ("epochs", "true", "--epochs must be an integer, got True"),
    ("epochs", "0", "--epochs must be at least 1, got 0"),
    ("epochs", "1e3", "--epochs must be an integer, got 1000.0"),
    ("batch_size", "-8", "--batch-size must be at least 1, got -8"),
    ("seed", '"5"', "seed must be an integer, got '5'"),
    ("seed", "1979-05-27", "seed must be an integer"),
    ("validation", "nan", "--validation must be finite, got nan"),
    ("validation", "true", "--validation must be a number, got True"),
    ("standardize", '"no"', "--standardize must be True or False, got 'no'"),
    ("preprocess", "7", "--preprocess must be"),
    ("activation", "7", "--activation must be text, got 7"),
    ("optimizer", "[]", "--optimizer must be text, got ()"),
    ("lr", '"fast"', "--lr must be a number, got 'fast'"),
    ("lr", "inf", "--lr must be at least 0 and finite, got inf"),
    ("ema", "{}", "--ema must be a number, got {}"),
    ("backend", "false", "--backend must be text, got False"),
    ("optimizer", '"adamm"', "optimizer 'adamm' is not known"),
    ("schedule", '"cosin"', "schedule 'cosin' is not known"),
    ("loss", '"hinge"', "loss 'hinge' is not known"),
    ("activation", '"rellu"', "activation 'rellu' is not known"),
    ("activation", '"relu,tanh"', "--activation needs one name, or one for each of the 1 hidden layers"),
    ("backend", '"gpu"', "backend"),
    ("dtype", '"float16"', "dtype"),
    ("momentum", "0.5", "--momentum: the optimizer 'adam' has none"),
    ("lr", "-1.0", "--lr must be at least 0"),
    ("ema", "2.0", "ema"),
    ("l2", "-1.0", "l2"),
    ("dropout", "[1.5]", "dropout"),
    ("dropout", "[0.1, 0.1, 0.1]", "dropout"),
    ("hidden", "[0]", "--hidden must be at least 1"),
    ("label_smoothing", "3.0", "smoothing"),
    ("weight_decay", "-3.0", "weight_decay"),
]


@pytest.mark.parametrize(("name", "value", "said"), EDITED)
def test_a_config_edited_by_hand_is_checked_like_options(here, table, monkeypatch, tmp_path, name, value, said):
    with monkeypatch.context() as patched:
        interrupt(patched, "fit")
        here("train", table, "--target", "class", *SETTINGS, "--out", "run")
    config = tmp_path / "run" / "config.toml"
    lines = [line for line in config.read_text("utf-8").splitlines() if not line.startswith(f"{name} =")]
    lines.insert(lines.index("[settings]") + 1, f"{name} = {value}")
    config.write_text("\n".join(lines))
    os.fstat(1)
    code, err = here("train", table, "--resume", "--out", "run")
    os.fstat(1)  # a number is no file name: opened and closed, it would be standard output
    assert code == 1 and err.startswith("error: run/config.toml is not as fastmlp wrote it (") and said in err


@pytest.mark.parametrize("text", ["settings = 3", "[settings]\ndata = 1", "a = " + "[" * 3000, "sha256 = 1\n", "\xff"])
def test_a_config_of_another_kind_is_refused(here, table, monkeypatch, tmp_path, text):
    with monkeypatch.context() as patched:
        interrupt(patched, "fit")
        here("train", table, "--target", "class", *SETTINGS, "--out", "run")
    config = tmp_path / "run" / "config.toml"
    config.write_bytes((text + config.read_text() if text.startswith("sha256") else text).encode("latin-1"))
    code, err = here("train", table, "--resume", "--out", "run")
    assert code == 1 and err.startswith("error: run/config.toml is not as fastmlp wrote it (") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epochs", "1", "epochs"),  # or the run would pass for finished
        ("batch_size", "31", "batch_size"),
        ("hidden", "[7]", "network"),
        ("seed", "6", "seed"),
        ("lr", "0.5", "optimizer"),
        ("dtype", '"float64"', "dtype"),
    ],
)
def test_settings_that_are_not_those_of_the_checkpoint_are_refused(
    here, table, monkeypatch, tmp_path, name, value, said
):
    with monkeypatch.context() as patched:
        interrupt(patched, "finish")
        here("train", table, "--target", "class", *SETTINGS, "--out", "run")
    config = tmp_path / "run" / "config.toml"
    text = config.read_text("utf-8")
    config.write_text(re.sub(rf"(?m)^{name} = .*$", f"{name} = {value}", text))
    code, err = here("train", table, "--resume", "--out", "run")
    assert code == 1 and f"are not of one run, they differ in {said}; put back the settings" in err
    config.write_text(text)
    assert here("train", table, "--resume", "--out", "run")[0] == 0


@pytest.mark.filterwarnings("always")
def test_a_run_that_goes_on_under_other_choices_is_told_so(here, table, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, "finish")
        here("train", table, "--target", "class", *SETTINGS, "--out", "run", "--backend", "numpy")
    from fastmlp.backends.numpy_backend import NumpyBackend

    checkpoint = RunFolder("run").checkpoint
    header, tensors = files.read(checkpoint)
    header["progress"]["epoch"] = 3  # as if the last epoch had not been
    files.write(checkpoint, header, tensors)
    choices = NumpyBackend.choices
    monkeypatch.setattr(NumpyBackend, "choices", lambda self: {**choices(self), "threads": 99})
    code, err = here("train", table, "--resume", "--out", "run")
    assert code == 0
    assert err.startswith("warning: the checkpoint was made under other choices (threads") and err.count("\n") == 1


def test_new_folders_have_names_of_their_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = []
    for _ in range(3):
        folder = RunFolder.new(None, "data/table.v2.csv")
        folder.path.mkdir(parents=True)
        names.append(folder.path.name)
    assert len(set(names)) == 3 and all(name.startswith("table-") for name in names)


def test_an_empty_folder_is_taken(tmp_path):
    assert RunFolder.new(tmp_path, "mnist").path == tmp_path


@pytest.mark.parametrize(
    "value",
    ["plain", 'quo"te \\ slash', "line\nbreak\ttab \x00\x7f", "ümläut 🙂", 1e-05, 0.1, 2**64 - 1, True, (1, 2), ()],
)
def test_values_survive_the_config(value):
    got = tomllib.loads(f"a = {_toml(value)}")["a"]
    assert (tuple(got) if isinstance(got, list) else got) == value


def test_settings_survive_the_config(tmp_path):
    settings = Settings(
        *("mnist", (3, 2), 5, 6, (0.1, 0.2, 0.3), 0.25, 2**64 - 1),
        **{"ema": 0.99, "optimizer": "sgd", "momentum": 0.5, "standardize": False},
    )
    folder = RunFolder(tmp_path)
    folder.write_config(settings, {"fastmlp": "1"})
    assert folder.settings() == settings
