"""Compiling the CUDA source as a user's CuPy would, for any GPU, on a machine without one.

`cupy_options` asks the installed CuPy for its own compiler options, by going its whole way up to the compiler and
stopping there; `compile_for` then runs NVRTC and returns what its assembler says of each kernel.
"""

from __future__ import annotations

import functools
import io
import re
from dataclasses import dataclass
from unittest import mock

import pytest

from fastmlp.backends.cuda import sources

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)

SHARED_MEMORY = 48 * 1024
"""Static shared memory of a block ends here on every architecture."""


@dataclass(frozen=True)
class Usage:
    """What the assembler says of one kernel: registers a thread, bytes."""

    registers: int
    spilled: int
    stack: int
    shared: int


class ReachedError(Exception):
    """CuPy has come as far as the compiler."""


@functools.cache
def missing():
    """Return why nothing can be compiled here, or an empty string."""
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except Exception as e:  # of many kinds: no package, no library, a library too old
        return f"NVRTC cannot be used ({type(e).__name__}: {e}); pip install 'fastmlp[cuda-test]'"
    return ""


needs_nvrtc = pytest.mark.skipif(bool(missing()), reason=missing())


@functools.cache
def cupy_options():
    """Return the options that CuPy compiles a module of ours with, without the architecture."""
    from cupy._core import core
    from cupy.cuda import compiler

    seen = []
    own = compiler._NVRTCProgram

    class Program(own):
        def compile(self, options=(), log_stream=None):
            if "probe" not in self.src:  # CuPy compiles an empty file to learn the compiler's version
                return super().compile(options, log_stream)
            seen.extend(options)
            raise ReachedError

    with (
        mock.patch.object(compiler, "_NVRTCProgram", Program),
        mock.patch.object(compiler, "_get_arch", lambda: "75"),
        mock.patch.object(compiler, "_get_arch_for_options_for_nvrtc", lambda arch=None: ("-arch=sm_75", "cubin")),
        pytest.raises(ReachedError),
    ):
        source = "__global__ void probe() {}"
        core.compile_with_cache(source, sources.OPTIONS, None, None, backend="nvrtc", name_expressions=["probe"])
    return tuple(option for option in seen if not option.startswith("-arch"))


def instructions_of(architecture, source, names, file="kernels.cu"):
    """Return the instructions of kernels, one text for all, as NVRTC hands them to its assembler (PTX)."""
    from cupy.cuda import compiler

    program = compiler._NVRTCProgram(source, file, (), (), name_expressions=list(names), method="ptx")
    code, _ = program.compile((*cupy_options(), f"-arch=compute_{architecture}"), io.StringIO())
    return code.decode()


def compile_for(architecture, source, names, file="kernels.cu"):
    """Compile kernels; return the `Usage` of each by name.

    Raises
    ------
    cupy.cuda.compiler.CompileException
        The source is not valid CUDA; the message has file and line.
    """
    from cupy.cuda import compiler

    log = io.StringIO()
    program = compiler._NVRTCProgram(source, file, (), (), name_expressions=list(names), method="cubin")
    options = (*cupy_options(), f"-arch=sm_{architecture}", "--ptxas-options=-v")
    code, mangled = program.compile(options, log)
    assert code[:4] == b"\x7fELF"
    by_symbol = {(m.decode() if isinstance(m, bytes) else m): name for name, m in mangled.items()}
    found = {}
    for part in log.getvalue().split("Compiling entry function")[1:]:
        symbol = re.search(r"'(\w+)'", part)[1]
        stack, stores, loads = re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        ).groups()
        shared = re.search(r"(\d+) bytes smem", part)
        found[by_symbol.get(symbol, symbol)] = Usage(
            registers=int(re.search(r"Used (\d+) registers", part)[1]),
            spilled=int(stores) + int(loads),
            stack=int(stack),
            shared=int(shared[1]) if shared else 0,
        )
    return found
