"""What is kept of compiled kernels on disk: damaged, foreign or refused, it is said once and ends no run."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")
pytestmark = pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="the JIT is off, so nothing is compiled")

CALLER = """
from .compiling import entry


@entry
def triple(x):
    return 3 * x


@entry
def half(x):
    return x / 2
"""
SHOW = """
import kernelcopy.caller as c
print(c.triple(2.0), c.half(2.0), c.triple._cache_hits.total() + c.half._cache_hits.total())
"""
FULL = """
from kernelcopy import compiling
def full(*_):
    raise OSError(28, "No space left on device")
compiling._KernelFiles._open_for_write = full
"""


@pytest.fixture
def run(tmp_path):
    """Call two kernels in a process of its own; gives what they return, how many came from the cache, and stderr."""
    from fastmlp.kernels.cpu import compiling

    package = tmp_path / "kernelcopy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "compiling.py").write_text(Path(compiling.__file__).read_text())
    (package / "caller.py").write_text(CALLER)
    environment = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": ""}

    def call(code=SHOW):
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split(), done.stderr

    return call


def kept(tmp_path, ending):
    return sorted((tmp_path / "cache").rglob(f"*{ending}"))


def altered(contents, at):
    changed = bytearray(contents)
    changed[int(at * (len(contents) - 1))] ^= 0x10
    return bytes(changed)


DAMAGES = {
    "empty": lambda c: b"",
    "cut to 5 bytes": lambda c: c[:5],
    "cut in the middle": lambda c: c[: len(c) // 2],
    "cut by one byte": lambda c: c[:-1],
    "too long": lambda c: c + b"x",
    **{f"altered at {at}": lambda c, at=at: altered(c, at) for at in (0, 0.01, 0.3, 0.6, 0.9, 1)},
    "foreign": lambda c: b"\x80\x04N.",
}


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_noticed_said_once_and_compiled_anew(run, tmp_path, ending, damage):
    assert run() == (["6.0", "1.0", "0"], "")
    files = kept(tmp_path, ending)
    assert len(files) == 2
    for path in files:
        path.write_bytes(damage(path.read_bytes()))
    got, said = run()
    assert got == ["6.0", "1.0", "0"]
    assert (
        said.count("RuntimeWarning") == 1 and "what is kept of compiled kernels is damaged (it was altered or" in said
    )
    assert run() == (["6.0", "1.0", "2"], "")


def test_a_file_that_is_gone_is_no_damage(run, tmp_path):
    run()
    for path in kept(tmp_path, "nbc"):
        path.unlink()
    assert run() == (["6.0", "1.0", "0"], "")
    assert run() == (["6.0", "1.0", "2"], "")


def test_a_cache_that_takes_no_more_is_said_once_and_the_run_goes_on(run):
    got, said = run(FULL + SHOW)
    assert got == ["6.0", "1.0", "0"]
    assert said.count("RuntimeWarning") == 1 and "takes no more (No space left on device)" in said
    assert run()[0][:2] == ["6.0", "1.0"]


def test_code_under_the_number_of_another_type_is_not_run(run, tmp_path):
    both = "import numpy as np, kernelcopy.caller as c\nprint(c.half(np.float32(3)), c.half(7))"
    assert run(both)[0] == ["1.5", "3.5"]
    first, second = kept(tmp_path, "nbc")
    contents = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(contents)  # as two processes leave them that compile for one type each at once
    assert run(both) == (["1.5", "3.5"], "")


def test_a_cache_of_real_kernels_that_is_damaged_ends_no_fit(tmp_path):
    from fastmlp.kernels.cpu import compiling, predict

    cache = compiling._KernelCache(predict.predict_thread.py_func)
    cache._cache_file._index_path = str(tmp_path / "index")
    (tmp_path / "index").write_bytes(np.random.default_rng(0).bytes(500))
    compiling._told.discard("damaged")
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert cache._cache_file._load_index() == {}
