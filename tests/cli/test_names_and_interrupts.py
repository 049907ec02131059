"""Names that a picture or a terminal cannot show, and Ctrl-C at any moment, end no run and leave no traceback."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fastmlp.cli import run as run_training

plots = pytest.importorskip("fastmlp.plots")
pytest.importorskip("matplotlib")

NAMES = {
    "dollars": ("$x_{$", "a $5 to $6"),
    "chinese": ("花鳥風", "月"),
    "accents": ("Größe", "naïve"),
    "backslashes": ("\\frac{", "\\$"),
    "control": ("a\x07b", "c\x1bd"),
}
TRAIN = ("train", "t.csv", "--target", "y", "--epochs", "1", "--hidden", "4", "--backend", "numpy", "--seed", "0")


def write_table(path, names):
    lines = [f"{i % 7},{names[i % len(names)]}" for i in range(60)]
    path.write_text("\n".join(["x,y", *lines]), encoding="utf-8")


def in_a_process(tmp_path, *arguments, code="from fastmlp.cli import main; main()", **environment):
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, env={**os.environ, **environment}, timeout=120)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("kinds", [["chinese"], sorted(NAMES.keys() - {"chinese"})], ids=["chinese", "the others"])
def test_any_class_name_can_be_drawn_or_is_said_in_one_line(cli, pictures, tmp_path, kinds):
    write_table(tmp_path / "t.csv", [name for kind in kinds for name in NAMES[kind]])
    code, _, err = cli(*TRAIN, "--out", "run")
    assert code == 0 and err.count("\n") <= 1 and "Traceback" not in err
    assert (tmp_path / "run" / "confusion.png").exists()
    assert not (tmp_path / "run" / "checkpoint.safetensors").exists()
    if kinds == ["chinese"]:
        assert err.startswith("warning: the fonts of pictures have no '月花風鳥', which are drawn as boxes")


def test_a_picture_that_cannot_be_drawn_is_a_line_and_the_others_are_drawn(cli, pictures, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("no such\nfont")

    write_table(tmp_path / "t.csv", ("a", "b"))
    monkeypatch.setattr(plots, "curves", broken)
    code, out, err = cli(*TRAIN, "--out", "run")
    assert (code, err) == (0, "no curves.png: ValueError: no such font\n")
    assert "validation accuracy" in out
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.toml", "history.json", "model.safetensors", "confusion.png"}


def test_a_full_disk_while_drawing_is_a_line_too(cli, pictures, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_table(tmp_path / "t.csv", ("a", "b"))
    monkeypatch.setattr(plots, "save", full)
    code, _, err = cli(*TRAIN, "--out", "run")
    assert code == 0
    assert err.splitlines() == [
        f"no {n}.png: OSError: [Errno 28] No space left on device" for n in ("curves", "confusion")
    ]


IN_TURN = """
import sys
from fastmlp.cli import main, run
run._draw = lambda *_: None
commands = [[]]
for argument in sys.argv[1:]:
    commands.append([]) if argument == "then" else commands[-1].append(argument)
for command in commands:
    sys.argv = ["fastmlp", *command]
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code or 0)
"""
"""Commands one after another in one process, which has the time of their import once."""


@pytest.mark.parametrize(
    ("encoding", "names"), [("ascii", "chinese"), pytest.param("latin-1", "accents", marks=pytest.mark.thorough)]
)
def test_a_terminal_without_the_letters_of_a_name_shows_them_escaped(tmp_path, encoding, names):
    names = NAMES[names]
    write_table(tmp_path / "t.csv", names)
    commands = (
        [*TRAIN, "--out", "花"],
        ["summary", "花"],
        ["evaluate", "花", "t.csv", *"--target y --backend numpy".split()],
    )
    joined = [argument for command in (*commands, ["evaluate", "花", "鳥.csv"]) for argument in ("then", *command)]
    done = in_a_process(tmp_path, *joined[1:], code=IN_TURN, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    _, summary, evaluated, missing, end = done.stdout.split(b"ended with ")
    assert [text[:1] for text in (summary, evaluated, missing, end)] == [b"0", b"0", b"0", b"1"], done.stderr
    for shown in (summary, evaluated):
        assert names[1].encode(encoding, "backslashreplace") in shown
    assert b"no such file" in done.stderr


# --- Ctrl-C -------------------------------------------------------------------------------------------------------

SLOW_IMPORT = """
import builtins, os, signal, sys
import fastmlp.cli
real = builtins.__import__
def slow(name, *arguments, **options):
    if name == "{module}":
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *arguments, **options)
builtins.__import__ = slow
fastmlp.cli.main()
"""


@pytest.mark.parametrize("module", ["typer", "fastmlp.cli.data", "fastmlp.model"])
def test_ctrl_c_while_python_imports_is_a_line(tmp_path, default_signals, module):
    write_table(tmp_path / "t.csv", ("a", "b"))
    done = in_a_process(tmp_path, *TRAIN, code=SLOW_IMPORT.format(module=module))
    assert (done.returncode, done.stderr, done.stdout) == (130, b"interrupted\n", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


INTERRUPTED_AT = {
    "fit": {"config.toml"},
    "finish": {"config.toml", "checkpoint.safetensors"},
    "extra_figures": {"config.toml", "checkpoint.safetensors", "model.safetensors"},
    "_draw": {"config.toml", "checkpoint.safetensors", "model.safetensors", "history.json"},
}
"""Functions of a run, and the files that are there when Ctrl-C comes while one of them is called."""
AT_EACH = """
import os, signal, sys, time
from unittest import mock
from fastmlp.cli import main, run
def interrupted(*arguments):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
_, names, *command = sys.argv
for name in names.split(","):
    sys.argv = ["fastmlp", *command, "--out", name]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a process that has not had one yet
    with mock.patch.object(run, name, interrupted):
        try:
            main()
        except SystemExit as end:
            print("ended with", end.code)
"""


def test_ctrl_c_after_the_folder_is_made_tells_how_to_go_on(cli, tmp_path, default_signals):
    write_table(tmp_path / "t.csv", ("a", "b"))
    done = in_a_process(tmp_path, ",".join(INTERRUPTED_AT), *TRAIN, code=AT_EACH)
    again = [f"fastmlp train {tmp_path / 't.csv'} --resume --out {name}" for name in INTERRUPTED_AT]
    assert done.stderr.decode().splitlines() == [f"interrupted. To go on: {command}" for command in again]
    assert (done.returncode, done.stdout.count(b"ended with 130\n")) == (0, len(again))
    for command, (name, left) in zip(again, INTERRUPTED_AT.items(), strict=True):
        assert {path.name for path in (tmp_path / name).iterdir()} == left
        code, _, err = cli(*command.split()[1:])
        assert code == 0, err
        assert "result" in json.loads((tmp_path / name / "history.json").read_text("utf-8"))
        assert not (tmp_path / name / "checkpoint.safetensors").exists()


def test_ctrl_c_before_there_is_a_run_is_a_line(cli, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    write_table(tmp_path / "t.csv", ("a", "b"))
    monkeypatch.setattr(run_training, "load_run", interrupted)
    assert cli(*TRAIN, "--out", "run")[::2] == (130, "interrupted\n")


SLOW_END = """
import threading, time
from fastmlp.cli import main, run
def interrupted(*_):
    threading.Thread(target=time.sleep, args=(60,)).start()  # as a compiler that cannot be stopped
    raise KeyboardInterrupt
run.finish = interrupted
main()
"""


def test_a_second_ctrl_c_ends_at_once_without_a_traceback(tmp_path, default_signals):
    write_table(tmp_path / "t.csv", ("a", "b"))
    command = [sys.executable, "-P", "-c", SLOW_END, *TRAIN, "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        said = run.stderr.readline()
        time.sleep(1)
        run.send_signal(signal.SIGINT)
        began = time.monotonic()
        rest = run.stderr.read()
        assert run.wait(30) == 130 and time.monotonic() - began < 30
    assert said.startswith("interrupted. To go on: fastmlp train") and rest == ""


ANSWERED = """
from fastmlp.cli import app, main
def interrupted_again():
    raise KeyboardInterrupt
app.main = interrupted_again
main()
"""


def test_a_ctrl_c_while_another_is_answered_is_a_line_too(tmp_path, default_signals):
    done = in_a_process(tmp_path, code=ANSWERED)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")
