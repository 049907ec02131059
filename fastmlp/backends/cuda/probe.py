"""Why CUDA cannot be used here, found out step by step, each reason with its cure."""

from __future__ import annotations

import functools
import importlib.util
import os
from importlib import metadata
from typing import Any

from fastmlp.backends.cuda.kept import kernel_folder
from fastmlp.backends.registry import Availability

INSTALL = "pip install 'fastmlp[cuda13]' (driver 580 or newer) or 'fastmlp[cuda12]'"
_PARTS = f"it comes with CuPy's [ctk] extra: {INSTALL}"
OLDEST = 75
"""Compute capability that the kernels are compiled and tested for at least: Turing."""


@functools.cache
def cuda_availability() -> Availability:
    """Return whether kernels can be compiled and products computed, looking only once."""
    if importlib.util.find_spec("cupy") is None:
        return Availability(False, f"the package cupy is not installed; {INSTALL}")
    wheels = cupy_wheels()
    if len(wheels) > 1:
        return Availability(
            False,
            f"several CuPy packages are installed, {', '.join(wheels)}, and overwrite each other; "
            f"pip uninstall {' '.join(wheels)}, then {INSTALL}",
        )
    try:
        import cupy
    except Exception as e:  # CuPy turns missing libraries into errors of several kinds
        return Availability(False, f"cupy cannot be imported ({_first_line(e)}); {INSTALL}")
    return look(cupy)


def cupy_wheels() -> list[str]:
    """Return the names of the installed packages that bring a module `cupy`."""
    names = {str(d.metadata["Name"]).lower().replace("_", "-") for d in metadata.distributions() if d.metadata["Name"]}
    return sorted(n for n in names if n == "cupy" or n.startswith("cupy-cuda") or n.startswith("cupy-rocm"))


def look(cupy: Any) -> Availability:
    """Return whether an imported CuPy finds all that it needs, and does a small product."""
    for step in (_driver, _compiler, _cache_folder, _library, _product):
        reason = step(cupy)
        if reason:
            return Availability(False, reason)
    device = cupy.cuda.Device()
    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return Availability(True, f"{name}, CuPy {cupy.__version__}")


def _driver(cupy: Any) -> str:
    runtime = cupy.cuda.runtime
    try:
        version = runtime.driverGetVersion()
    except Exception as e:
        return f"the NVIDIA driver does not answer ({_first_line(e)}); install one: https://www.nvidia.com/drivers"
    if version == 0:
        return "there is no NVIDIA driver, or no GPU; install a driver: https://www.nvidia.com/drivers"
    wanted = runtime.runtimeGetVersion()
    if version // 1000 < wanted // 1000:
        return (
            f"the driver is for CUDA {version // 1000}, this CuPy for CUDA {wanted // 1000}; update the driver, or "
            f"pip install 'fastmlp[cuda{version // 1000}]' instead"
        )
    try:
        count = runtime.getDeviceCount()
    except Exception as e:
        return f"the driver finds no GPU ({_first_line(e)}); see nvidia-smi"
    if count == 0:
        return "the driver finds no GPU; see nvidia-smi, and CUDA_VISIBLE_DEVICES"
    capability = int(cupy.cuda.Device().compute_capability)
    if capability < OLDEST:
        return f"the GPU has compute capability {capability / 10}; {OLDEST / 10} (Turing, 2018) or newer is needed"
    return ""


def _compiler(cupy: Any) -> str:
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as e:
        return f"the run-time compiler NVRTC is not found ({_first_line(e)}); {_PARTS}"
    return ""


def _cache_folder(cupy: Any) -> str:
    folder = kernel_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".fastmlp-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as e:
        return (
            f"CuPy keeps compiled kernels in {folder}, which cannot be written ({e}); set CUPY_CACHE_DIR to a folder "
            "that can"
        )
    return ""


def _library(cupy: Any) -> str:
    try:
        cupy.cuda.device.get_cublas_handle()
    except Exception as e:
        return f"cuBLAS is not found ({_first_line(e)}); {_PARTS}"
    return ""


def _product(cupy: Any) -> str:
    try:
        kernel = cupy.RawKernel('extern "C" __global__ void add_one(float* x) { x[threadIdx.x] += 1.0f; }', "add_one")
        x = cupy.ones((2, 2), dtype="float32")
        kernel((1,), (4,), (x,))
        if cupy.matmul(x, x).get().tolist() != [[8.0, 8.0], [8.0, 8.0]]:
            return "a product of two small matrices comes out wrong; please report it with the output of fastmlp info"
    except Exception as e:
        hint = "CUDA headers are missing: " if "header" in str(e) or "cannot open" in str(e) else ""
        return f"a small kernel and product fail ({hint}{_first_line(e)}); {_PARTS}"
    return ""


def _first_line(e: BaseException) -> str:
    return f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}".rstrip(": ")
