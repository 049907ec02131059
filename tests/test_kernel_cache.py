"""What is kept of compiled kernels on disk: damaged, foreign or refused, it is said once and ends no run."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


@entry
def square(x):
    return x * x


@entry
def first(x):
    return x[0]
"""
TWINS = """
from .compiling import entry, part


def times(factor):
    @part
    def product(x):
        s = 0.0
{}
        return s

    return product


twice, thrice = times(2), times(3)


@entry
def doubled(x):
    return twice(x) + twice(x)


@entry
def tripled(x):
    return thrice(x) + thrice(x)
""".format("\n".join(f"        s += x[{i}] * (factor + s * {i}.25)" for i in range(200)))
"""Parts of the same name and types, too long to be copied into their callers."""
SHOW = """
import kernelcopy.caller as c
kernels = c.triple, c.half, c.square
print(*(kernel(2.0) for kernel in kernels), sum(kernel._cache_hits.total() for kernel in kernels))
"""
HELD = """
write = compiling._KernelFiles._write
def held(*arguments):
    time.sleep(3)
    write(*arguments)
compiling._KernelFiles._write = held
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
    (package / "twins.py").write_text(TWINS)
    environment = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": ""}

    def call(code=SHOW):
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split(), done.stderr

    return call


def kept(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.nbc"))


DAMAGES = {
    "empty": lambda c: b"",
    "cut": lambda c: c[: len(c) // 2],
    "altered": lambda c: c[:-200] + bytes([c[-200] ^ 0x10]) + c[-199:],
}


def test_damaged_files_are_noticed_said_once_and_compiled_anew_and_one_that_is_gone_is_no_damage(run, tmp_path):
    assert run() == (["6.0", "1.0", "4.0", "0"], "")
    files = kept(tmp_path)
    assert len(files) == len(DAMAGES)
    for path, damage in zip(files, DAMAGES.values(), strict=True):
        path.write_bytes(damage(path.read_bytes()))
    got, said = run()
    assert got == ["6.0", "1.0", "4.0", "0"]
    assert (
        said.count("RuntimeWarning") == 1 and "what is kept of compiled kernels is damaged (it was altered or" in said
    )
    files[0].unlink()
    assert run() == (["6.0", "1.0", "4.0", "2"], "")
    assert run() == (["6.0", "1.0", "4.0", "3"], "")


def test_no_altered_byte_and_no_cut_passes(tmp_path, monkeypatch):
    from fastmlp.kernels.cpu import compiling

    cache = compiling._KernelFiles(str(tmp_path), "kernel", compiling.STAMP)
    cache.save(("a type", "a processor"), {"code": bytes(range(256))})
    assert cache.load(("a type", "a processor")) == {"code": bytes(range(256))}
    assert cache.load(("another type", "a processor")) is None
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 7)] + [whole + b"x", b"\x80\x04N."]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(len(whole))]
    for contents in damaged:
        monkeypatch.setattr(compiling, "_told", set())
        path.write_bytes(contents)
        with pytest.warns(RuntimeWarning, match="is damaged"):
            assert cache.load(("a type", "a processor")) is None
    cache.save(("a type", "a processor"), 5)
    assert cache.load(("a type", "a processor")) == 5


def test_a_cache_that_takes_no_more_is_said_once_and_the_run_goes_on(run):
    got, said = run(FULL + SHOW)
    assert got == ["6.0", "1.0", "4.0", "0"]
    assert said.count("RuntimeWarning") == 1 and "takes no more (No space left on device)" in said
    assert run() == (got, "")


@pytest.mark.thorough
def test_what_several_processes_keep_at_once_is_all_found_again(run, tmp_path):
    types = ["float32", "float64"]
    code = "import numpy as np, kernelcopy.caller as c\nfor name in {0}: c.first(np.ones(2, name))\n"
    code += "print(c.first._cache_hits.total())"
    held = "import time\nfrom kernelcopy import compiling\n" + HELD + code  # both have looked before any has written
    with ThreadPoolExecutor(len(types)) as pool:
        for found in pool.map(lambda t: run(held.format([t])), types):
            assert found == (["0"], "")
    assert len(kept(tmp_path)) == len(types)
    assert run(code.format(types)) == ([str(len(types))], "")


def test_parts_of_one_name_that_different_processes_compiled_are_not_taken_for_each_other(run):
    """Numba tells functions of one name apart by a number, which counts what one process has compiled."""
    call = "import numpy as np, kernelcopy.twins as t\nx = np.zeros(200)\nx[0] = 1\n"
    of_two, of_three = (f"print(t.{name}(x), t.{name}._cache_hits.total())\n" for name in ("doubled", "tripled"))
    assert run(call + of_two) == (["4.0", "0"], "")
    assert run(call + of_three) == (["6.0", "0"], "")
    assert run(call + of_two + of_three)[0] == ["4.0", "1", "6.0", "1"]
    assert run(call + of_three + of_two)[0] == ["6.0", "1", "4.0", "1"]


def test_versions_of_numba_keep_their_code_beside_each_other(tmp_path, monkeypatch):
    from fastmlp.kernels.cpu import compiling

    cache = compiling._KernelFiles(str(tmp_path), "kernel", compiling.STAMP)
    for version in ("0.61.0", "0.99.0"):
        monkeypatch.setattr(numba, "__version__", version)
        cache.save("key", version)
    for version in ("0.61.0", "0.99.0"):
        monkeypatch.setattr(numba, "__version__", version)
        assert cache.load("key") == version


@pytest.mark.thorough  # in one process, test_no_altered_byte_and_no_cut_passes asks for another type too
def test_code_under_the_name_of_another_type_is_not_run(run, tmp_path):
    both = (
        "import numpy as np, kernelcopy.caller as c\n"
        "print(c.first(np.array([3, 3], np.float32)), c.first(np.array([7, 7.0])))"
    )
    assert run(both)[0] == ["3.0", "7.0"]
    first, second = kept(tmp_path)
    contents = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(contents)  # as two processes leave them that compile for one type each at once
    assert run(both) == (["3.0", "7.0"], "")
