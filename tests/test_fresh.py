"""A function called in a fresh process: its answer, its errors in words, its end, and that of all it has started."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmlp.doctor import fresh
from fastmlp.doctor.fresh import FreshProcessError, TooLongError, in_fresh_process

HERE = """
import json, os, subprocess, sys, time
from fastmlp.doctor.fresh import in_fresh_process

def answer(**given):
    print("by the way")
    return [os.getpid(), given, {name: os.environ.get(name) for name in ("A", "B")}]

def loaded():
    return sorted(sys.modules)

def fails(how):
    print("before")
    exec(how)

def starts(file):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(file, "a") as out:
        print(os.getpid(), child.pid, file=out, flush=True)
    child.wait()

def nests(file):
    with open(file, "a") as out:
        print(os.getpid(), file=out, flush=True)
    in_fresh_process("here:starts", {"file": file}, timeout=60.0)

def one_of_several(file, fails=None):
    import atexit
    def leave():
        with open(file, "a") as out:
            print(rank, file=out, flush=True)
    rank = int(os.environ["RANK"])
    atexit.register(leave)
    if rank == fails:
        raise ValueError("of rank 1")
    return {"rank": rank} if rank == 0 else None
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A module of functions, which this process and those that it starts find."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "here.py").write_text(HERE)
    monkeypatch.syspath_prepend(tmp_path / "modules")


def lives(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def all_end(numbers):
    end = time.monotonic() + 10
    while any(map(lives, numbers)) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(map(lives, numbers))


def test_the_answer_comes_from_another_process_with_arguments_and_variables(monkeypatch):
    monkeypatch.setenv("A", "taken away")
    given = {"a": [1, 2.5, None, float("inf")], "b": {"c": "\u00e4"}}
    number, found, variables = in_fresh_process("here:answer", given, timeout=60.0, environment={"A": None, "B": "2"})
    assert number != os.getpid()
    assert (found, variables) == (given, {"A": None, "B": "2"})
    assert os.environ["A"] == "taken away"


def test_nothing_is_imported_before_the_function_but_what_it_needs(tmp_path):
    (tmp_path / "modules" / "bare.py").write_text("import sys\ndef loaded(): return sorted(sys.modules)\n")
    there = set(in_fresh_process("bare:loaded", timeout=60.0))
    assert "bare" in there
    assert not there & {"json", "fastmlp", "numpy", "subprocess", "tempfile"}


@pytest.mark.parametrize(
    ("how", "said", "kind", "missing"),
    [
        ("raise ValueError('one\\ntwo')", "ValueError: one", "ValueError", None),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'", "ModuleNotFoundError", "not_there"),
        ("raise SystemExit('enough')", "SystemExit: enough", "SystemExit", None),
        ("os.kill(os.getpid(), 11)", "ends the process by SIGSEGV, Segmentation fault", "", None),
        ("print('last', flush=True); os._exit(3)", "ends the process with code 3 (last)", "", None),
    ],
)
def test_why_there_is_no_answer_is_in_the_error(how, said, kind, missing):
    with pytest.raises(FreshProcessError) as caught:
        in_fresh_process("here:fails", {"how": how}, timeout=60.0)
    assert (str(caught.value), caught.value.kind, caught.value.missing) == (said, kind, missing)
    if kind:
        assert caught.value.said.startswith("before\nTraceback")
        assert caught.value.__notes__ == [caught.value.said]


@pytest.fixture
def two_at_once(tmp_path):
    """A launcher of two processes."""
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\nRANK=1 "$@" &\nRANK=0 "$@"\nwait\n')
    launcher.chmod(0o755)
    return [str(launcher)]


def test_of_several_processes_one_answers_and_all_leave_as_python_does(tmp_path, two_at_once):
    # so that MPI is finalised in each of them: an mpiexec kills the others where it was not
    file = tmp_path / "left"
    given = {"file": str(file)}
    assert in_fresh_process("here:one_of_several", given, timeout=60.0, launcher=two_at_once) == {"rank": 0}
    assert sorted(file.read_text().split()) == ["0", "1"]


def test_of_several_processes_one_that_fails_is_told_and_waits_for_none(tmp_path, two_at_once):
    file = tmp_path / "left"
    given = {"file": str(file), "fails": 1}
    Path(two_at_once[0]).write_text('#!/bin/sh\nRANK=0 "$@"\nRANK=1 "$@"\n')  # whose answer is the last
    with pytest.raises(FreshProcessError, match="ValueError: of rank 1"):
        in_fresh_process("here:one_of_several", given, timeout=60.0, launcher=two_at_once)
    assert file.read_text().split() == ["0"]


def test_an_answer_that_is_not_plain_and_a_function_that_is_not_there_are_told():
    with pytest.raises(FreshProcessError, match="TypeError: Object of type set is not JSON serializable"):
        in_fresh_process("builtins:set", timeout=60.0)
    with pytest.raises(FreshProcessError, match="AttributeError: module 'here' has no attribute 'nobody'"):
        in_fresh_process("here:nobody", timeout=60.0)


def test_an_interpreter_that_crashes_is_told(monkeypatch, tmp_path):
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\nkill -ILL $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(FreshProcessError, match="SIGILL"):
        in_fresh_process("here:loaded", timeout=60.0)


@pytest.fixture
def too_long_once(monkeypatch):
    """Let the time of a process be over as soon as a file holds so many words, however slow the machine is."""

    def begin(file, words):
        def wait(child, timeout=None):
            if timeout is None:
                return real(child)
            end = time.monotonic() + 60
            while not (file.exists() and len(file.read_text().split()) == words) and time.monotonic() < end:
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(child.args, timeout)

        monkeypatch.setattr(fresh.subprocess.Popen, "wait", wait)

    real = subprocess.Popen.wait
    return begin


def test_what_was_said_is_kept_in_a_log_even_of_one_that_takes_too_long(tmp_path, too_long_once):
    too_long_once(tmp_path / "log", 2)
    how = "import time; print('asleep', flush=True); time.sleep(60)"
    with pytest.raises(TooLongError, match=r"^took longer than 0\.5 s"):
        in_fresh_process("here:fails", {"how": how}, timeout=0.5, log=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "before\nasleep\n"


@pytest.mark.parametrize(("function", "count"), [("starts", 2), ("nests", 3)])
def test_who_takes_too_long_ends_with_all_that_it_started(tmp_path, too_long_once, function, count):
    """Those that a process of its own has started in a session of their own too."""
    file = tmp_path / "numbers"
    too_long_once(file, count)
    with pytest.raises(TooLongError):
        in_fresh_process(f"here:{function}", {"file": str(file)}, timeout=0.5)
    numbers = file.read_text().split()
    assert len(numbers) == count
    assert all_end(numbers)


def test_the_time_is_what_was_asked_for():
    began = time.monotonic()
    with pytest.raises(TooLongError):
        in_fresh_process("here:fails", {"how": "import time; time.sleep(60)"}, timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 20


def test_who_does_not_end_when_told_is_killed(monkeypatch):
    monkeypatch.setattr(fresh, "GRACE", 0.1)
    how = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(TooLongError):
        in_fresh_process("here:fails", {"how": how}, timeout=0.5)
    assert time.monotonic() - began < 20


ALONE = "import here; here.in_fresh_process('here:starts', {'file': FILE}, timeout=60.0)"
IN_THREADS = "from fastmlp.doctor.checkup import examine; examine(('rich', 'matplotlib'))"
HANGS = """
import os, time
with open(FILE, "a") as out:
    print(os.getpid(), file=out, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("code", "number"), [(ALONE, signal.SIGTERM), (ALONE, signal.SIGINT), (IN_THREADS, signal.SIGINT)]
)
def test_who_is_told_to_end_ends_what_it_has_started_first(tmp_path, code, number, default_signals):
    file = tmp_path / "numbers"
    (tmp_path / "modules" / "rich.py").write_text(HANGS.replace("FILE", repr(str(file))))
    code = code.replace("FILE", repr(str(file)))
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "modules")}
    parent = subprocess.Popen([sys.executable, "-P", "-c", code], env=variables, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 30
    while not (file.exists() and file.read_text().endswith("\n")) and time.monotonic() < end:
        time.sleep(0.01)
    parent.send_signal(number)
    assert parent.wait(30) != 0
    assert all_end(file.read_text().split())


def test_a_handler_of_ones_own_stays():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        own = signal.getsignal(signal.SIGTERM)
        in_fresh_process("here:answer", timeout=60.0)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    in_fresh_process("here:answer", timeout=60.0)
    assert signal.getsignal(signal.SIGTERM) == before


def test_every_function_that_is_asked_for_by_name_is_there():
    root, found = Path(__file__).parent.parent, []
    files = [file for folder in ("fastmlp", "benchmarks") for file in (root / folder).rglob("*.py")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        if "in_fresh_process" in text or "raced(" in text:
            found += re.findall(r'"([a-z_.]+):([a-z_]+)"', text)
    assert len(found) >= 8
    for module, function in found:
        path = "/".join(module.split(".")) if module.startswith("fastmlp") else f"benchmarks/{module}"
        if module != "package.module":  # of a docstring
            assert f"\ndef {function}(" in (root / f"{path}.py").read_text(encoding="utf-8"), (module, function)


def test_what_starting_costs_is_measured_where_nothing_was_imported(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import startup

    how = "import startup; assert not {'numpy', 'fastmlp', 'statistics'} & set(sys.modules), sys.modules"
    bare = HERE.replace("from fastmlp.doctor.fresh import in_fresh_process", "")
    (tmp_path / "modules" / "here.py").write_text(bare)
    in_fresh_process("here:fails", {"how": how}, timeout=60.0)
    for function in startup.IMPORTS.values():
        assert 0 < in_fresh_process(f"startup:{function}", timeout=60.0) < 60_000
