"""Where what was found out about a GPU is kept: beside CuPy's kernels, in files for one GPU and its versions."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fastmlp._version import __version__
from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.blas import rounds_to_tf32


def kernel_folder() -> Path:
    """Return the folder in which CuPy keeps compiled kernels; without one that can be written nothing runs."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")


def machine(cupy: Any) -> dict[str, Any]:
    """Return what holds only together: the GPU that is current, versions, the text of the kernels, how cuBLAS rounds.

    Parameters
    ----------
    cupy : module
        CuPy, or what stands for it in tests.
    """
    runtime = cupy.cuda.runtime
    return {
        "gpu": runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(),
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "fastmlp": __version__,
        "kernels": _stamp(),
        "tf32 everywhere": rounds_to_tf32(),
    }


def kept_path(what: str, here: dict[str, Any]) -> Path:
    """Return the file that keeps something that holds on this `machine`."""
    name = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
    return kernel_folder() / f"fastmlp-{what}-{name}.json"


@functools.cache
def _stamp() -> str:
    """Return the text of all kernels, in short."""
    texts = "".join(map(sources.expanded, sorted(sources.KERNELS)))
    return hashlib.sha256(texts.encode()).hexdigest()[:16]
