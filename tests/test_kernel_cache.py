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
COMMON = """
from .compiling import entry, part, shared


@part
def add(x, y):
    return x + y


@shared
def twice(x):
    return add(x, x)


@shared
def four_times(x):
    return twice(twice(x))


@part
def ten_times(x):
    return add(four_times(add(x, x)), twice(x))


@entry
def eight(x):
    return four_times(twice(x))


@entry
def ten(x):
    return ten_times(x)
"""
"""Shared functions: of two entries, of a part, and of each other."""
SHOW = """
import kernelcopy.caller as c
kernels = c.triple, c.half, c.square
print(*(kernel(2.0) for kernel in kernels), sum(kernel._cache_hits.total() for kernel in kernels))
"""
HELD = """
write = kept.KernelFiles._write
def held(*arguments):
    time.sleep(3)
    write(*arguments)
kept.KernelFiles._write = held
"""
FULL = """
from kernelcopy import kept
def full(*_):
    raise OSError(28, "No space left on device")
kept.KernelFiles._open_for_write = full
"""


@pytest.fixture
def run(tmp_path):
    """Call two kernels in a process of its own; gives what they return, how many came from the cache, and stderr."""
    from fastmlp.kernels.cpu import compiling

    package = tmp_path / "kernelcopy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("compiling.py", "kept.py"):
        (package / name).write_text(Path(compiling.__file__).with_name(name).read_text())
    (package / "caller.py").write_text(CALLER)
    (package / "twins.py").write_text(TWINS)
    (package / "common.py").write_text(COMMON)
    environment = {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PATH": ""}

    def call(code=SHOW):
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.split(), done.stderr

    return call


def files_of(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.nbc"))


DAMAGES = {
    "empty": lambda c: b"",
    "cut": lambda c: c[: len(c) // 2],
    "altered": lambda c: c[:-200] + bytes([c[-200] ^ 0x10]) + c[-199:],
}


def test_damaged_files_are_noticed_said_once_and_compiled_anew_and_one_that_is_gone_is_no_damage(run, tmp_path):
    assert run() == (["6.0", "1.0", "4.0", "0"], "")
    files = files_of(tmp_path)
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
    from fastmlp.kernels.cpu import kept

    cache = kept.KernelFiles(str(tmp_path), "kernel", kept.STAMP)
    cache.save(("a type", "a processor"), {"code": bytes(range(256))})
    assert cache.load(("a type", "a processor")) == {"code": bytes(range(256))}
    assert cache.load(("another type", "a processor")) is None
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 7)] + [whole + b"x", b"\x80\x04N."]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :] for at in range(len(whole))]
    for contents in damaged:
        monkeypatch.setattr(kept, "_told", set())
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
    held = "import time\nfrom kernelcopy import kept\n" + HELD + code  # both have looked before any has written
    with ThreadPoolExecutor(len(types)) as pool:
        for found in pool.map(lambda t: run(held.format([t])), types):
            assert found == (["0"], "")
    assert len(files_of(tmp_path)) == len(types)
    assert run(code.format(types)) == ([str(len(types))], "")


def test_parts_of_one_name_that_different_processes_compiled_are_not_taken_for_each_other(run):
    """Numba tells functions of one name apart by a number, which counts what one process has compiled."""
    call = "import numpy as np, kernelcopy.twins as t\nx = np.zeros(200)\nx[0] = 1\n"
    of_two, of_three = (f"print(t.{name}(x), t.{name}._cache_hits.total())\n" for name in ("doubled", "tripled"))
    assert run(call + of_two) == (["4.0", "0"], "")
    assert run(call + of_three) == (["6.0", "0"], "")
    assert run(call + of_two + of_three)[0] == ["4.0", "1", "6.0", "1"]
    assert run(call + of_three + of_two)[0] == ["6.0", "1", "4.0", "1"]


ALL_COMMON = """
import kernelcopy.common as c
print(c.eight({0}), c.ten({0}), *(f._cache_hits.total() for f in (c.eight, c.ten, c.four_times, c.twice)))
"""


def test_what_several_entries_call_is_compiled_once_and_found_again(run, tmp_path):
    assert run(ALL_COMMON.format(3)) == (["24", "30", "0", "0", "0", "0"], "")
    assert len(files_of(tmp_path)) == 4
    assert run(ALL_COMMON.format(3)) == (["24", "30", "1", "1", "1", "1"], "")
    assert run("import kernelcopy.common as c\nprint(c.eight(3), c.twice._cache_hits.total())") == (["24", "1"], "")
    assert run(ALL_COMMON.format(1.5)) == (["12.0", "15.0", "0", "0", "0", "0"], "")  # of another type
    assert len(files_of(tmp_path)) == 8


@pytest.mark.parametrize("name", ["common.twice", "common.four_times", "common.eight", "common.ten"])
def test_a_shared_function_that_is_gone_or_damaged_is_compiled_anew(run, tmp_path, name):
    run(ALL_COMMON.format(3))
    (path,) = (path for path in files_of(tmp_path) if path.name.startswith(name))
    wanted = ["24", "30", *("0" if name.endswith(f) else "1" for f in (".eight", ".ten", "four_times", "twice"))]
    path.unlink()
    assert run(ALL_COMMON.format(3)) == (wanted, "")
    path.write_bytes(path.read_bytes()[:-9])
    got, said = run(ALL_COMMON.format(3))
    assert got == wanted and said.count("RuntimeWarning") == 1
    assert run(ALL_COMMON.format(3)) == (["24", "30", "1", "1", "1", "1"], "")


OTHER_SYMBOLS = """
from kernelcopy import compiling
compiling._FlagsOfOneName.get_mangle_string = lambda self: "other"
"""


def test_an_entry_whose_shared_functions_have_other_symbols_is_compiled_anew(run, tmp_path):
    """LLVM ends the process where code that was kept calls what is not there."""
    run(ALL_COMMON.format(3))
    for path in files_of(tmp_path):
        if path.name.startswith("common.twice"):
            path.unlink()
    got, said = run(OTHER_SYMBOLS + ALL_COMMON.format(3))
    assert got == ["24", "30", "0", "0", "0", "0"]
    assert said.count("RuntimeWarning") == 1 and "LookupError: it calls" in said


def test_entries_that_different_processes_compiled_share_what_a_third_has(run):
    one, other = (f"import kernelcopy.common as c\nprint(c.{name}(3))" for name in ("eight", "ten"))
    assert run(one) == (["24"], "")
    assert run(other) == (["30"], "")
    assert run(ALL_COMMON.format(3)) == (["24", "30", "1", "1", "1", "1"], "")


def test_python_cannot_call_a_shared_function(run):
    call = "import kernelcopy.common as c\nc.eight(3)\ntry:\n    c.twice(3)\nexcept TypeError:\n    print('refused')"
    assert run(call) == (["refused"], "")
    assert run(call) == (["refused"], "")  # nor one that was kept


def test_versions_of_numba_keep_their_code_beside_each_other(tmp_path, monkeypatch):
    from fastmlp.kernels.cpu import kept

    cache = kept.KernelFiles(str(tmp_path), "kernel", kept.STAMP)
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
    first, second = files_of(tmp_path)
    contents = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(contents)  # as two processes leave them that compile for one type each at once
    assert run(both) == (["3.0", "7.0"], "")
