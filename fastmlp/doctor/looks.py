"""What a doctor looks at, one look a process: each imports what it looks at, which may fail, crash or hang there."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmlp.doctor.findings import Findings, Trouble
from fastmlp.doctor.versions import REQUIRED, installed

if TYPE_CHECKING:
    from fastmlp.backends.decisions import Decisions

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_LITTLE_ROOM = 100e6
"""Bytes that compiled kernels take, several times over."""
_OF_CUDA = ("CUDA Root", "CUDA Driver", "CUDA Runtime", "CUDA Extra", "cuBLAS", "NVRTC", "Device")


def _import(module: str) -> Findings:
    importlib.import_module(module)
    return Findings()


def _blas_of(folder: str) -> str:
    """Return what threadpoolctl says of the BLAS that lies in a folder of a package."""
    import threadpoolctl

    pools = [p for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"]
    pool = next((p for p in pools if f"{folder}.libs" in p["filepath"].lower()), pools[0] if pools else None)
    if pool is None:
        return "none that threadpoolctl knows"
    kind = " ".join(str(pool[k]) for k in ("internal_api", "version") if pool.get(k))
    return f"{kind}, kernels for {pool.get('architecture') or 'any processor'}, {pool['num_threads']} threads"


def _numpy() -> Findings:
    import numpy as np

    a = np.ones((64, 64))
    if not (a @ a == 64).all():  # where no kernel of the BLAS fits the processor, this is where the process ends
        raise ArithmeticError("a product of two matrices of ones comes out wrong")
    found = Findings()
    with contextlib.suppress(ImportError):
        found.add("BLAS", ("of NumPy", _blas_of("numpy")))
    if core := os.environ.get("OPENBLAS_CORETYPE"):
        found.troubles.append(
            Trouble(
                f"OPENBLAS_CORETYPE={core} keeps the BLAS from choosing the kernels that suit this processor",
                "unset OPENBLAS_CORETYPE",
            )
        )
    return found


def _scipy() -> Findings:
    import numpy as np
    from scipy.linalg import blas

    a = np.ones((64, 64))
    if not (blas.dgemm(1.0, a, a) == 64).all():
        raise ArithmeticError("a product of two matrices of ones comes out wrong")
    found = Findings()
    with contextlib.suppress(ImportError):
        found.add("BLAS", ("of SciPy", _blas_of("scipy")))
    return found


def _openblas() -> Findings:
    from fastmlp.backends.cpu import blas

    library, prefix = blas.load()
    size = 64
    ones, out = (ctypes.c_double * size**2)(*[1.0] * size**2), (ctypes.c_double * size**2)()
    n, one, no = ctypes.byref(ctypes.c_int(size)), ctypes.byref(ctypes.c_double(1.0)), ctypes.c_char_p(b"N")
    nothing = ctypes.byref(ctypes.c_double(0.0))
    getattr(library, f"{prefix}dgemm_")(no, no, n, n, n, one, ones, n, ones, n, nothing, out, n)
    if set(out) != {float(size)}:
        raise ArithmeticError("a product of two matrices of ones comes out wrong")
    found = Findings()
    found.add("BLAS", ("of fastmlp's kernels", blas.version()))
    return found


def _numba() -> Findings:
    import llvmlite.binding
    import numba

    if numba.njit(lambda a, b: a + b)(1, 2) != 3:
        raise ArithmeticError("a compiled sum comes out wrong")
    found = Findings()
    found.add("Numba", ("version", f"{numba.__version__}, llvmlite {installed('llvmlite')}"))
    found.add("Numba", ("LLVM", ".".join(map(str, llvmlite.binding.llvm_version_info))))
    found.add("Numba", ("processor", getattr(numba.config, "CPU_NAME", None) or llvmlite.binding.get_host_cpu_name()))
    layers = {"omp": "omppool", "tbb": "tbbpool", "workqueue": "workqueue"}
    usable = [layer for layer, module in layers.items() if _imports(f"numba.np.ufunc.{module}")]
    found.add("Numba", ("thread layers", f"{', '.join(usable) or 'none'} (fastmlp has threads of its own)"))
    if importlib.util.find_spec("fastmlp.kernels") is not None:
        from fastmlp.kernels.cpu import vectors

        width = f"{vectors.VECTOR_BYTES} bytes, {'with' if vectors.HAS_FMA else 'without'} fused multiply-adds"
        found.add("Numba", ("vectors", f"{width}{'' if vectors.HAS_FMA else ': all products are the BLAS kernels'}"))
    if getattr(numba.config, "DISABLE_JIT", 0):
        cause = "NUMBA_DISABLE_JIT is set, so kernels run line by line in Python, a thousand times slower"
        found.troubles.append(Trouble(cause, "unset NUMBA_DISABLE_JIT"))
    for variable in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        if value := os.environ.get(variable):
            cause = f"{variable}={value} has kernels compiled for another processor than this one"
            found.troubles.append(Trouble(cause, f"unset {variable}"))
    return found


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _threads() -> Findings:
    import joblib
    import scipy.linalg  # noqa: F401 - loads SciPy's BLAS, which has a limit too

    from fastmlp.backends.cpu.limits import default_threads, physical_cores

    found, there = Findings(), os.cpu_count() or 1
    bound = len(os.sched_getaffinity(0)) if sys.platform == "linux" else there
    usable, cores, threads = int(joblib.cpu_count()), physical_cores(), default_threads()
    limited = "" if usable == bound else ", by a limit of the container or LOKY_MAX_CPU_COUNT"
    found.add("threads", ("processors", f"{usable} usable of {there} (affinity: {bound}){limited}"))
    found.add("threads", ("physical cores", cores), ("a call takes", f"{threads} threads"))
    found.add("threads", *((name, os.environ[name]) for name in THREAD_VARIABLES if name in os.environ))
    if threads < cores:
        low = [n for n in THREAD_VARIABLES if _number(os.environ.get(n, "")) < cores]
        why = " and ".join(f"{n}={os.environ[n]}" for n in low) or "a library's limit"
        cure = f"unset {' '.join(low)}" if low else f"export NUMBA_NUM_THREADS={cores} OMP_NUM_THREADS={cores}"
        cause = f"training takes {threads} of {cores} physical cores, because of {why}"
        found.troubles.append(Trouble(cause, cure))
    return found


def _number(text: str) -> float:
    first = text.partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else float("inf")


def _caches() -> Findings:
    found = Findings()
    home = Path(os.path.expanduser("~"))
    writable = os.access(home, os.W_OK)
    found.add("caches", ("home folder", f"{home}{'' if writable else ', which cannot be written'}"))
    other = Path(tempfile.gettempdir()) / "fastmlp-cache"
    if not writable:
        folders = f"CUPY_CACHE_DIR={other}/cupy MPLCONFIGDIR={other}/matplotlib NUMBA_CACHE_DIR={other}/numba"
        cause = f"the home folder {home} cannot be written, where CuPy, Matplotlib and Numba keep what they prepare"
        found.troubles.append(Trouble(cause, f"export {folders}"))
    if importlib.util.find_spec("fastmlp.kernels") is not None:
        _look_at_kernels(found, other / "numba")
        found.merge(products())
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or home / ".cupy" / "kernel_cache")
    if folder.is_dir():
        found.add("caches", ("kernels of CuPy", f"{folder}, {_size(list(folder.iterdir()))}"))
    return found


def where_kernels_are() -> str:
    """Tell where compiled kernels are kept, and why not where they were to be; Numba has to be installed."""
    from fastmlp.kernels.cpu.kept import cache_folder

    folder = cache_folder()
    if folder is None:
        return "nowhere: no cache folder can be written; set NUMBA_CACHE_DIR"
    why = _refused(Path(folder))
    return f"in {folder}{f': {why}' if why else ''}"


def _refused(folder: Path) -> str:
    """Return what to say where Numba has passed over the folder that was asked for, which it does without a word."""
    given = os.environ.get("NUMBA_CACHE_DIR")
    passed_over = given and Path(os.path.abspath(given)) not in folder.parents
    return f"NUMBA_CACHE_DIR={given} cannot be written" if passed_over else ""


def _look_at_kernels(found: Findings, other: Path) -> None:
    """Look at what is kept of compiled kernels, and of what was measured of them."""
    from fastmlp.backends.cpu import calibration
    from fastmlp.kernels.cpu import kept as files_of_kernels

    kept = files_of_kernels.cache_folder()
    cure = f"export NUMBA_CACHE_DIR={other} && fastmlp warmup"
    if kept is None:
        cause = "compiled kernels are kept nowhere, since no folder can be written: every process compiles anew"
        found.troubles.append(Trouble(cause, cure))
        return
    folder = Path(kept)
    if why := _refused(folder):
        found.troubles.append(Trouble(f"{why}, so compiled kernels are kept in {folder}", cure))
    files = sorted(folder.glob("*-hashed*.nb[ci]")) if folder.is_dir() else []
    whats = (
        "measured",
        "steps",
        "backends",
        "proven-train",
        "proven-predict",
        *("threads", "products"),  # of earlier versions
    )
    tables = [t for what in whats for t in sorted(folder.glob(f"{what}-*.json"))] if folder.is_dir() else []
    found.add("caches", ("compiled kernels", f"{folder}, {_size(files)}"))
    current = {calibration.kept_path(what, _dtype(name)) for what in whats for name in ("float32", "float64")}
    stale = [f for f in files if not files_of_kernels.is_current(f)] + [t for t in tables if t not in current]
    if stale:
        cause = (
            f"{_size(stale)} in {folder} are of other versions of fastmlp or Numba, or damaged, and of no use any more"
        )
        names = r"\( -name '*-hashed*.nb[ci]' -o -name '*-float*.json' \)"
        found.troubles.append(Trouble(cause, f"find {folder} {names} -delete && fastmlp warmup"))
    free = shutil.disk_usage(folder).free if folder.is_dir() else _LITTLE_ROOM
    if free < _LITTLE_ROOM:
        cause = f"only {free / 1e6:.0f} MB are free in {folder}, where compiled kernels are kept"
        found.troubles.append(Trouble(cause, f"export NUMBA_CACHE_DIR={other}, or make room"))


def products() -> Findings:
    """Tell, for each type, what was measured of threads and of training steps on this machine."""
    from fastmlp.backends.cpu import calibration, forms
    from fastmlp.backends.cpu.choices import STEPS, decisions

    found = Findings()
    for dtype in map(_dtype, ("float32", "float64")):
        title, known = f"training steps, {dtype} (forward backward gradient of each layer)", calibration.known(dtype)
        if known is not None:
            start, meeting = f"{known.start * 1e6:.0f} us to start", f"{known.meeting * 1e9:.0f} ns to wait for another"
            found.add(title, ("threads", f"{start}, {meeting}, {known.rate / 1e9:.0f} GFLOP/s in a small product"))
            where = "everywhere" if known.near == math.inf else f"where rows take up to {known.near:,.0f} bytes"
            found.add(title, ("weights read in place", f"{where}, and for a few rows of inputs"))
        elif forms.Forms().lacks(dtype):
            found.add(title, ("threads", "not measured yet; fastmlp warmup does it"))
        else:
            found.add(title, ("threads", "not measured: there is no folder to keep it in"))
        _add_decided(found, title, decisions(STEPS, dtype))
    return found


def ways() -> Findings:
    """Tell, for each type, what trials decided of training steps on the GPU that is current."""
    from fastmlp.backends.choosing import get_backend
    from fastmlp.backends.cuda.choice import STEPS

    found, backend = Findings(), get_backend("cupy")
    for dtype in map(_dtype, ("float32", "float64")):
        _add_decided(found, f"training steps on the GPU, {dtype}", backend.decisions(STEPS, dtype))
    return found


def _add_decided(found: Findings, title: str, made: Decisions) -> None:
    """Add what trials of training steps decided, by what it holds for."""
    for key, decision in made.all().items():
        parts = f" (in {decision['parts']} parts)" if "parts" in decision else ""
        found.add(title, (key, f"{decision.get('way', decision.get('products'))}{parts}"))


def _dtype(name: str) -> Any:
    import numpy as np

    return np.dtype(name)


def _size(files: list[Path]) -> str:
    total = sum(file.stat().st_size for file in files if file.is_file())
    return f"{len(files)} file{'s' * (len(files) != 1)} ({total / 1e6:.1f} MB)"


def _backends() -> Findings:
    from fastmlp.backends.registry import VARIABLE, available_backends, choose_backend
    from fastmlp.errors import BackendUnavailable

    found = Findings()
    for name, state in available_backends().items():
        can = "can run" if state.available else "cannot run"
        found.add("backends", (name, f"{can}: {state.reason}" if state.reason else can))
    try:
        chosen, why = choose_backend()
    except BackendUnavailable as e:
        found.add("backends", ("auto", f"cannot be: {e}"))
        found.troubles.append(Trouble(str(e), f"unset {VARIABLE}"))
    else:
        found.add("backends", ("auto", f"is {chosen} ({why})"))
    return found


def _cuda() -> Findings:
    from fastmlp.backends.cuda.probe import cuda_availability, cupy_wheels

    found, listed, wheels = Findings(), gpus(), cupy_wheels()
    found.add("CUDA", ("GPUs, by nvidia-smi", "; ".join(listed) or "none"))
    found.add("CUDA", ("CuPy", cupy_packages()))
    if not wheels:
        if listed:
            extra = "cuda13" if int(listed[0].split(",")[1].strip().split(".")[0]) >= 580 else "cuda12"
            cause = f"there is a GPU ({listed[0]}), and no CuPy to train on it"
            found.troubles.append(Trouble(cause, f"python -m pip install 'fastmlp[{extra}]'"))
        return found
    state = cuda_availability()
    if not state.available:
        cause, _, cure = state.reason.rpartition("; ")
        found.troubles.append(Trouble(f"the backend cupy cannot run: {cause}", cure))
    if len(wheels) == 1:
        with contextlib.suppress(Exception):  # of a CuPy that cannot be imported all is said
            _runtime(found)
    if state.available:
        found.merge(ways())
    if os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        cause = "NVIDIA_TF32_OVERRIDE=1 makes cuBLAS round float32 to 11 bits"
        found.troubles.append(Trouble(cause, "unset NVIDIA_TF32_OVERRIDE"))
    return found


def cupy_packages() -> str:
    """Return the version of CuPy, and the package that brings it; all of them where there are several."""
    from fastmlp.backends.cuda.probe import cupy_wheels

    return ", ".join(f"{installed(wheel)} ({wheel})" for wheel in cupy_wheels()) or "not installed"


def gpus() -> list[str]:
    """Return name, driver, memory and compute capability of each GPU, as the driver's own tool tells them."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.count(",") == 3] if done.returncode == 0 else []


def _runtime(found: Findings) -> None:
    """Add what CuPy says of the driver, the toolkit and its libraries."""
    import cupy
    import cupyx

    for line in str(cupyx.get_runtime_info(full=False)).splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name.startswith(_OF_CUDA):
            found.add("CUDA", (name, value))
    free, total = cupy.cuda.Device().mem_info
    found.add("CUDA", ("memory", f"{free / 2**30:.1f} GiB free of {total / 2**30:.1f}"))


_OWN: dict[str, Callable[[], Findings]] = {
    "numpy": _numpy,
    "scipy": _scipy,
    "numba": _numba,
    "scipy_openblas32": _openblas,
}
LOOKS: dict[str, Callable[[], Findings]] = {
    **{module: _OWN.get(module) or functools.partial(_import, module) for module in REQUIRED},
    **({"matplotlib": functools.partial(_import, "matplotlib.pyplot")} if installed("matplotlib") else {}),
    "threads": _threads,
    "caches": _caches,
    "backends": _backends,
    "cuda": _cuda,
}
"""The looks by name: a module that is to be imported, or a topic."""


def taken(look: str) -> dict[str, Any]:
    """Take a look; return what it found, as plain values."""
    return asdict(LOOKS[look]())
