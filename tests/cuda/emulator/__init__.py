"""Running CUDA kernels on the CPU: the same source, compiled by g++, on NumPy arrays; `cuda_emulator.h` says how."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from one_at_a_time import alone

from fastmlp.backends.cuda import sources

HERE = Path(__file__).parent
FLAGS = ("-std=gnu++17", "-O1", "-fPIC", "-fno-gnu-unique", f"-I{HERE}")
KERNEL_FLAGS = ("-fsanitize=thread,bounds", "-Werror=conversion", "-fno-tree-sra", "-fno-ipa-sra")
"""Every access is seen, and every index of an array whose size the source tells, a thread's own too; a number that
loses bits without a word of it is an error; what is read as 16 bytes stays one access, whose alignment can be looked
at."""
FUSED_FLAGS = ("-mfma", "-ffp-contract=fast", "-fexpensive-optimizations")
"""A product and the sum that it goes into are rounded once, as with NVRTC's default, --fmad=true; g++ looks for such
pairs among its expensive optimizations."""


_one_at_a_time = threading.Lock()  # blocks, fibers and the memory checker are one each in a process


class EmulatorError(RuntimeError):
    """What a GPU would have answered with an error, a hang or garbage."""


class Traffic(NamedTuple):
    """Distinct bytes of global memory that a launch touched."""

    read: int
    written: int


@functools.cache
def missing():
    """Return why nothing can be run here, or an empty string."""
    if platform.machine() not in ("x86_64", "AMD64") or os.name != "posix":
        return f"the kernel emulator switches stacks on x86-64 Linux only, this is {platform.platform()}"
    if shutil.which("g++") is None:
        return "the kernel emulator needs g++; apt install g++"
    return ""


@functools.cache
def fuses():
    """Return whether the processor here multiplies and adds with one rounding, as every GPU does.

    Where it does not, kernels run as they are written, each operation rounded; only what a fused one would round
    differently is not seen there.
    """
    command = ["g++", "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    return "#define __FMA__ 1" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


needs_emulator = pytest.mark.skipif(bool(missing()), reason=missing())


def _cache():
    folder = Path(tempfile.gettempdir()) / f"fastmlp-cuda-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _compiled(name, source, flags, inputs=()):
    """Compile C++ to a file named by all that goes into it; what is there already is used again."""
    parts = [source, " ".join(flags), *(Path(p).read_text() for p in sorted(HERE.glob("*.h"))), *map(str, inputs)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    result = _cache() / f"{name}-{key}{'.so' if '-shared' in flags else '.o'}"
    if result.exists():
        return result
    with alone(result.with_suffix(".lock")):
        if result.exists():  # another worker has compiled it meanwhile
            return result
        with tempfile.TemporaryDirectory(dir=_cache()) as work:
            (Path(work) / "source.cpp").write_text(source)
            made = Path(work) / "made"
            command = ["g++", *FLAGS, *flags, "-o", str(made), *map(str, inputs), str(Path(work) / "source.cpp")]
            run = subprocess.run(command, capture_output=True, text=True, check=False)
            if run.returncode:
                raise EmulatorError(f"g++ does not compile {name}:\n{run.stderr[:4000]}")
            made.replace(result)
    return result


@functools.cache
def _name(dtype):
    """Return the name of a type, which NumPy puts together anew each time that it is asked."""
    return dtype.name


def packed(value, wanted, where):
    """Return the bytes of an argument as CuPy would hand them over, or raise TypeError where they are not `wanted`."""
    if wanted.endswith("*"):
        if value is None:
            return bytes(8)
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{where}: a pointer needs an array, got {type(value).__name__}")
        if _name(value.dtype) != wanted[:-1].removeprefix("const "):
            raise TypeError(f"{where}: an array of {value.dtype} for {wanted}")
        if not value.flags.c_contiguous:
            raise ValueError(f"{where}: the array is not contiguous")
        return value.ctypes.data.to_bytes(8, sys.byteorder)
    # CuPy hands a Python int over as int64 and a float as float64, whatever the kernel expects
    own = value.dtype if isinstance(value, np.generic) else np.dtype({int: "i8", float: "f8", bool: "?"}[type(value)])
    if _name(own) != wanted:
        raise TypeError(f"{where}: {own.name} for a parameter of type {wanted}")
    return np.asarray(value, own).tobytes()


class Module:
    """The kernels `names` of a CUDA source, ready to run."""

    def __init__(self, source, names, label="kernels"):
        entries = ",\n".join(f"{{&emulator::Kernel<&{n}>::entry, emulator::Kernel<&{n}>::signature()}}" for n in names)
        kernels = (
            f'#include "cuda_emulator.h"\n{source}\n#line 1 "table"\nextern const emulator::Entry emulator_kernels[];'
        )
        kernels += f"\nconst emulator::Entry emulator_kernels[] = {{\n{entries}\n}};\n"
        parts = [
            _compiled(label, kernels, ("-c", *KERNEL_FLAGS, *(FUSED_FLAGS if fuses() else ("-ffp-contract=off",)))),
            *(_compiled(n, (HERE / f"{n}.cpp").read_text(), ("-c", "-O2")) for n in ("runtime", "memory_checker")),
        ]
        self._library = ctypes.CDLL(str(_compiled(label, "", ("-shared",), parts)))
        self._library.emulator_launch.restype = self._library.emulator_signature.restype = ctypes.c_char_p
        self._library.checker_bytes.restype = ctypes.c_uint64
        self._numbers = {name: i for i, name in enumerate(names)}

    def signature(self, name):
        """Return the types of a kernel's parameters, as ``float32*``, ``const float32*`` or ``int64``."""
        found = self._library.emulator_signature(self._numbers[name]).decode().rstrip(",")
        return found.split(",") if found else []

    def launch(self, name, grid, block, args, *, seed=0, owners=()):
        """Run a kernel; return its `Traffic`.

        Parameters
        ----------
        name : str
        grid, block : tuple of int
        args : sequence
            Arrays, None for a null pointer, NumPy scalars; exactly what the signature says.
        seed : int
            Of the order in which threads and blocks run; 0: as they are numbered.
        owners : sequence of arrays
            Memory that the kernel may touch besides its arguments, such as the whole of what an argument is part of.

        Raises
        ------
        EmulatorError
            Race, wrong address, deadlock, ...; the message has line, block and thread.
        TypeError, ValueError
            An argument or a size is not what the kernel or CUDA takes.
        """
        grid, block = tuple(grid) + (1,) * (3 - len(grid)), tuple(block) + (1,) * (3 - len(block))
        if min(grid + block) < 1 or grid[0] >= 2**31 or max(grid[1:]) > 65535:
            raise ValueError(f"{name}: CUDA has no grid of {grid} blocks of {block} threads")
        if math.prod(block) > 1024 or block[2] > 64:
            raise ValueError(f"{name}: CUDA has no blocks of {block} threads")
        wanted = self.signature(name)
        if len(args) != len(wanted):
            raise TypeError(f"{name} takes {len(wanted)} arguments, {wanted}; got {len(args)}")
        buffers = [
            ctypes.create_string_buffer(packed(v, w, f"{name}, argument {i}"), 8)
            for i, (v, w) in enumerate(zip(args, wanted, strict=True))
        ]
        with _one_at_a_time:
            return self._launch(name, (*grid, *block), buffers, [*owners, *args], seed)

    def _launch(self, name, sizes, buffers, arrays, seed):
        self._library.checker_forget()
        for start, stop, writable in _regions(a for a in arrays if isinstance(a, np.ndarray) and a.nbytes):
            self._library.checker_allow(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), int(writable))
        pointers = (ctypes.c_void_p * len(buffers))(*[ctypes.addressof(b) for b in buffers])
        error = self._library.emulator_launch(
            self._numbers[name], (ctypes.c_uint * 6)(*sizes), ctypes.c_uint64(seed), pointers
        )
        if error:
            raise EmulatorError(f"{name}: {error.decode()}")
        return Traffic(self._library.checker_bytes(0), self._library.checker_bytes(1))


def _regions(arrays):
    """Return (start, stop, writable) of the memory of arrays; what overlaps is one region, so that races show in it."""
    found = []
    for start, size, writable in sorted((a.ctypes.data, a.nbytes, a.flags.writeable) for a in arrays):
        stop = start + size
        if found and start < found[-1][1]:
            first, last, before = found.pop()
            start, stop, writable = first, max(last, stop), before or writable
        found.append((start, stop, writable))
    return found


@functools.cache
def module(file, real):
    """Return the kernels of a file of fastmlp's for ``"float"`` or ``"double"``."""
    return Module(sources.expanded(file), sources.instantiations(file, real), Path(file).stem)
