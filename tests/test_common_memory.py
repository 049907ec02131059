"""Memory that processes of one machine have in common: it is there for all of them, or for none, and leaves no file."""

import errno
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from fastmlp.parallel import common, in_threads
from fastmlp.parallel.common import common_memory

pytestmark = pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system reserves no room for files")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Files of a folder of its own, which need not be memory."""
    monkeypatch.setattr(common, "FOLDER", str(tmp_path))
    return tmp_path


def test_what_one_writes_all_read_and_no_file_is_left(folder):
    def write(group):
        memory = common_memory(group, 4096 * group.size)
        numbers = np.frombuffer(memory, np.int64)
        numbers[group.rank] = 10 + group.rank
        group.share(None)
        assert not any(folder.iterdir())
        return numbers[: group.size].tolist(), numbers.ctypes.data

    found = in_threads(write, 3)
    assert [numbers for numbers, _ in found] == [[10, 11, 12]] * 3
    assert len({address for _, address in found}) == 3  # each has mapped it


def refused(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


FAULTS = {
    "no such folder": lambda monkeypatch: monkeypatch.setattr(common, "FOLDER", "/nowhere"),
    "no room": lambda monkeypatch: monkeypatch.setattr(os, "posix_fallocate", refused),
    "another system": lambda monkeypatch: monkeypatch.delattr(os, "posix_fallocate"),
    "another machine": lambda monkeypatch: monkeypatch.setattr(common, "_opened", lambda path, nbytes: None),
    "a file that is shorter": lambda monkeypatch: monkeypatch.setattr(
        common, "_opened", partial(lambda opened, path, nbytes: opened(path, 10 * nbytes), common._opened)
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_where_one_cannot_have_it_none_has_and_no_file_is_left(folder, monkeypatch, fault):
    FAULTS[fault](monkeypatch)
    assert in_threads(lambda group: common_memory(group, 4096), 3) == [None] * 3
    assert not any(folder.iterdir())


def test_more_than_there_is_ends_no_process(folder):
    assert in_threads(lambda group: common_memory(group, 1 << 60), 2) == [None] * 2
    assert not any(folder.iterdir())


def test_a_rank_that_fails_meanwhile_leaves_no_file(folder):
    def fail(group):
        if group.rank:
            group.share(None)
            raise RuntimeError("no more")
        return common_memory(group, 4096)

    with pytest.raises(RuntimeError, match="no more"):
        in_threads(fail, 2)
    assert not any(folder.iterdir())


def test_it_outlasts_whoever_made_it(folder):
    """The process that has made it ends by a signal; what it wrote is there as long as another holds it."""
    code = """
import os, signal, sys
from fastmlp.parallel import common
memory = common._made(sys.argv[1], 4096)
memory[:5] = b"hello"
print("there", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = str(folder / "file")
    command = [sys.executable, "-P", "-c", code, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "there\n"
        memory = common._opened(path, 4096)
        os.unlink(path)
        process.communicate("now\n")
    assert memory[:5] == b"hello"
