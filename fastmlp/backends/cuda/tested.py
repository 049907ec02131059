"""Whether the self-test has passed on this GPU with these versions: what "auto" asks before it takes one."""

from __future__ import annotations

import contextlib
from pathlib import Path

from fastmlp.backends.cuda.kept import kept_path, machine
from fastmlp.files.atomic import atomic_writer


def _path() -> Path:
    """Return the file that says so: its name tells the GPU and the versions."""
    import cupy

    return kept_path("selftest", machine(cupy))


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
            path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path, lasting=False) as file:
            file.write(b"{}\n")
