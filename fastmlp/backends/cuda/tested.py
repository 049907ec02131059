"""Whether the self-test has passed on this GPU with these versions: what "auto" asks before it takes one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from fastmlp._version import __version__
from fastmlp.files.atomic import atomic_writer


def _path() -> Path:
    """Return the file that says so, beside CuPy's compiled kernels: its name tells the GPU and the versions."""
    import cupy

    runtime = cupy.cuda.runtime
    here = {
        "gpu": runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode(),
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "cupy": cupy.__version__,
        "fastmlp": __version__,
    }
    name = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    return folder / f"fastmlp-selftest-{name}.json"


def selftest_passed() -> bool:
    """Tell whether the last self-test on this GPU, with these versions, passed."""
    try:
        return _path().exists()
    except Exception:  # a driver that does not answer: a run on the CPU goes on without it
        return False


def note_selftest(passed: bool) -> None:
    """Note how a self-test of the whole backend ended; a folder that cannot be written is no error."""
    path = _path()
    with contextlib.suppress(OSError):
        if not passed:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(b"{}\n")
