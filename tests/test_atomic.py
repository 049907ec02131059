"""A file written atomically is the old one or the new one, never a part."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from fastmlp.backends.decisions import Decisions
from fastmlp.files.atomic import atomic_writer, remove_leftovers

posix = pytest.mark.skipif(os.name != "posix", reason="permissions and signals of POSIX systems")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_new_file_holds_what_was_written(tmp_path):
    with atomic_writer(tmp_path / "a") as file:
        file.write(b"new")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_old_file_is_replaced_only_at_the_end(tmp_path):
    (tmp_path / "a").write_bytes(b"old and longer")
    with atomic_writer(str(tmp_path / "a")) as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a").read_bytes() == b"old and longer"
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error, old):
    if old is not None:
        (tmp_path / "a").write_bytes(old)
    before = names(tmp_path)
    with pytest.raises(error), atomic_writer(tmp_path / "a") as file:
        file.write(b"half")
        raise error
    assert names(tmp_path) == before
    assert old is None or (tmp_path / "a").read_bytes() == old


@posix
def test_an_interrupt_before_the_first_byte_leaves_nothing_behind(tmp_path, monkeypatch):
    import fcntl

    def interrupted(file, how):
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_writer(tmp_path / "a") as file:
        file.write(b"new")
    assert names(tmp_path) == []


def test_a_failing_rename_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no"), atomic_writer(tmp_path / "a") as file:
        file.write(b"new")
    assert names(tmp_path) == []


def test_the_data_are_on_the_disk_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        mode = os.fstat(descriptor).st_mode
        events.append("folder" if stat.S_ISDIR(mode) else f"file of {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    def record_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    with atomic_writer(tmp_path / "a") as file:
        file.write(b"new")
    assert events[:2] == ["file of 3", "rename"]
    assert os.name != "posix" or events[2:] == ["folder"]


def test_what_need_not_last_waits_for_no_disk(tmp_path, monkeypatch):
    """And neither does what is decided in the middle of a fit."""

    def fsync(descriptor):
        raise AssertionError

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_writer(tmp_path / "a", lasting=False) as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new" and names(tmp_path) == ["a"]
    Decisions(tmp_path / "b", {}).keep("a step", {"parts": 2})
    assert names(tmp_path) == ["a", "b"]
    with pytest.raises(AssertionError), atomic_writer(tmp_path / "c") as file:
        file.write(b"new")


@posix
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_permissions_are_those_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_writer(tmp_path / "a"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


@posix
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    with atomic_writer(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


@posix
def test_a_device_is_never_replaced(tmp_path):
    with pytest.raises(OSError, match="expected a regular file"), atomic_writer(os.devnull):
        pass
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_folder_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="expected a regular file"), atomic_writer(tmp_path):
        raise AssertionError("the block must not run")
    assert names(tmp_path) == []


def test_a_missing_folder_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_writer(tmp_path / "none" / "a"):
        pass


def test_a_name_as_long_as_can_be_is_written(tmp_path):
    path = tmp_path / ("é" * 127)  # 254 bytes of at most 255
    with atomic_writer(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


@posix
def test_a_killed_process_leaves_the_old_file_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    script = (
        "import os, signal, sys\n"
        "from fastmlp.files.atomic import atomic_writer\n"
        "with atomic_writer(sys.argv[1]) as file:\n"
        "    file.write(bytes(1 << 20))\n"
        "    file.flush()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-P", "-c", script, str(tmp_path / "a")], env=environment, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    with atomic_writer(tmp_path / "a") as file:  # what the killed one left is in nobody's way, and goes
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


@posix
def test_what_a_living_process_is_writing_is_no_leftover(tmp_path):
    script = (
        "import sys\n"
        "from fastmlp.files.atomic import atomic_writer\n"
        "with atomic_writer(sys.argv[1]) as file:\n"
        "    file.write(b'theirs')\n"
        "    print(flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "a")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as other:
        other.stdout.readline()
        remove_leftovers(tmp_path)
        with atomic_writer(tmp_path / "a") as file:
            file.write(b"ours")
        assert len(names(tmp_path)) == 2
        other.communicate("\n", timeout=60)
    assert other.returncode == 0
    assert (names(tmp_path), (tmp_path / "a").read_bytes()) == (["a"], b"theirs")


def test_leftovers_are_known_by_their_names_and_only_of_the_file_that_is_written(tmp_path):
    left = [".a.0123456789ab.tmp", ".b.0123456789ab.tmp", f".{'n' * 40}.0123456789ab.tmp"]
    others = [".a.tmp", "a.0123456789ab.tmp", ".a.0123456789xy.tmp", ".a.0123456789ab.tmp.txt", "a.tmp"]
    for name in left + others:
        (tmp_path / name).touch()
    with atomic_writer(tmp_path / "a"):
        pass
    assert names(tmp_path) == sorted(["a", *left[1:], *others])
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(["a", *others])
    remove_leftovers(tmp_path / "none")


def test_a_temporary_file_taken_for_a_leftover_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    flock, taken = fcntl.flock, []

    def first_taken(file, how):
        if not taken:
            taken.append(file.name)
            os.unlink(file.name)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", first_taken)
    with atomic_writer(tmp_path / "a") as file:
        file.write(b"new")
    assert taken and (tmp_path / "a").read_bytes() == b"new" and names(tmp_path) == ["a"]


def test_errors_name_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_writer(tmp_path / "none" / "a"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "a") and ".tmp" not in str(caught.value)
    with pytest.raises(OSError, match="another") as caught, atomic_writer(tmp_path / "a"):
        raise OSError(5, "bad", "another")  # of another file than the one that is written
    assert caught.value.filename == "another"


FULL = """
import resource, signal, sys
import numpy as np
import fastmlp
from fastmlp.cli.output import write_predictions
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = fastmlp.MLP((3, 400, 2), loss="mean_squared_error", backend="numpy", seed=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
path = sys.argv[1]
try:
    if path.endswith("safetensors"):
        model.save(path)
    else:
        write_predictions(path, model, np.random.default_rng(0).random((9000, 2)), None)
except OSError as error:
    print(error.filename or error)
"""


@posix
@pytest.mark.parametrize("name", ["p.csv", "p.npy", "p.npz", "m.safetensors"])
def test_a_disk_that_is_full_is_told_with_the_file(tmp_path, name):
    done = subprocess.run([sys.executable, "-P", "-c", FULL, name], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith(name) and ".tmp" not in done.stdout
    # releases of NumPy leave an archive open that Python then says it cannot close
    assert done.stderr == "" or done.stderr.startswith("Exception ignored in: <function ZipFile.__del__")
    assert names(tmp_path) == []
