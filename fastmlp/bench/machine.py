"""On what a figure was measured: processor, memory, GPU, versions, and the commit of fastmlp."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

from fastmlp._version import __version__
from fastmlp.doctor.looks import gpus

PACKAGES = (
    *("numpy", "scipy", "numba", "scipy-openblas32", "cupy-cuda12x", "cupy-cuda13x"),
    *("torch", "jax", "scikit-learn"),
)
"""Those whose versions decide how fast something is."""


def processor() -> str:
    """Return the kind of machine: the processor's name, and the instruction set that the kernels use there."""
    from fastmlp.kernels.cpu import vectors

    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    names = {64: "AVX-512", 32: "AVX2", 16: "128-bit vectors"}
    told = ", told to the compiler" if "NUMBA_CPU_NAME" in os.environ else ""
    return f"{found.group(1) if found else platform.processor()}, {names[vectors.VECTOR_BYTES]}{told}"


def machine() -> dict[str, str]:
    """Return what tells this machine from others."""
    from fastmlp.backends.cpu.limits import default_threads, physical_cores

    found = {"processor": processor(), "cores": f"{physical_cores()}, of which a call takes {default_threads()}"}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    return {**found, "GPU": "; ".join(gpus()) or "none", "system": platform.platform()}


def versions() -> dict[str, str]:
    """Return the versions of all that is measured and is installed."""
    found = {"fastmlp": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path = Path(__file__).parent) -> str | None:
    """Return the commit that fastmlp is at where its files are those of a git checkout, and whether they differ.

    None where git, or the checkout, is not there: a package that merely lies inside somebody's repository is none.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None or (head := git("rev-parse", "HEAD")) is None:
        return None
    return f"{head}, with changes" if git("status", "--porcelain", "--untracked-files=no") else head
