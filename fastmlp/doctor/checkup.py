"""All looks at a machine, each in a process of its own: one that cannot import, crashes or hangs hides no other."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastmlp.doctor.findings import Findings, Trouble
from fastmlp.doctor.fresh import FreshProcessError, TooLongError, end_all, in_fresh_process
from fastmlp.doctor.looks import LOOKS, cupy_packages, products, ways, where_kernels_are
from fastmlp.doctor.versions import PIP, REQUIRED, look_at_versions, pinned

SECONDS = 60
"""What a look may take before it counts as hanging."""
NEEDS: dict[str, tuple[str, ...]] = {
    "scipy": ("numpy",),
    "numba": ("numpy",),
    "sklearn": ("numpy", "scipy", "joblib", "threadpoolctl"),
    "matplotlib": ("numpy",),
    "threads": ("numpy", "numba", "joblib", "threadpoolctl"),
    "caches": ("numpy", "numba"),
    "backends": ("numpy",),
    "cuda": ("numpy",),
}
"""Looks that cannot succeed before others do; their failures would only repeat those."""


def examine(looks: Sequence[str] = tuple(LOOKS)) -> Findings:
    """Look at this machine: what is installed and usable, what is wrong, and what mends it.

    Works where NumPy, SciPy, Numba or the packages of the command line cannot be imported, or end the process.

    Parameters
    ----------
    looks : sequence of str
        Those to take, by their names.
    """
    found = _python()
    found.merge(look_at_versions())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        try:
            answers = dict(zip(looks, pool.map(_ask, looks), strict=True))
        except BaseException:  # Ctrl-C, above all: looks that hang are not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise
    failed = {name for name, answer in answers.items() if isinstance(answer, FreshProcessError)}
    for name, answer in answers.items():
        if not isinstance(answer, FreshProcessError):
            found.merge(Findings.from_dict(answer))
        elif waits_for := failed & set(NEEDS.get(name, ())):
            found.add("not looked at", (name, f"cannot be told before {', '.join(sorted(waits_for))} can be used"))
        else:
            found.troubles.append(_failure(name, answer, found))
    return found


IN_SHORT = ("fastmlp", "numpy", "scipy", "numba", "scipy-openblas32", "safetensors", "scikit-learn", "matplotlib")
"""Packages that `in_short` tells the versions of."""


def in_short() -> dict[str, list[tuple[str, str]]]:
    """Return what is asked for most often of what `examine` finds, by title; looked at in this process, so quickly.

    Packages that the command line needs have to be usable.
    """
    from fastmlp.backends.registry import available_backends

    found = _python()
    found.merge(look_at_versions())
    for look in ("numpy", "scipy", "threads", "backends"):
        found.merge(LOOKS[look]())
    machine, packages = dict(found.facts["machine"]), dict(found.facts["packages"])
    versions = [(name, packages[name]) for name in IN_SHORT]
    versions.insert(1, ("python", f"{machine['Python'].partition(' ')[0]}, {machine['platform']}"))
    libraries = [(f"BLAS {whose}", what) for whose, what in found.facts.get("BLAS", [])]
    threads = [*found.facts["threads"], *libraries]
    short = {
        "versions": [*versions, ("cupy", cupy_packages())],
        "threads": threads,
        "backends": found.facts["backends"],
    }
    there = available_backends()
    if there["numba"].available:
        short["caches"] = [("compiled kernels", where_kernels_are())]
    for name, decided in (("numba", products), ("cupy", ways)):
        short |= decided().facts if there[name].available else {}
    return short


def _python() -> Findings:
    found = Findings()
    found.add(
        "machine",
        ("Python", f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}"),
        ("platform", platform.platform()),
        ("fastmlp from", Path(__file__).parent.parent),
    )
    if find_spec("fastmlp.kernels") is None:
        found.troubles.append(
            Trouble(
                "fastmlp was imported from its source folder, which holds its kernels elsewhere, so Numba and CuPy "
                "cannot be used",
                f"{PIP} -e . && cd .. (or start Python with the option -P)",
            )
        )
    return found


def _ask(look: str) -> dict[str, Any] | FreshProcessError:
    """Take one look in another process, which finds what this one would; return what it found, or how it failed."""
    try:
        found: dict[str, Any] = in_fresh_process("fastmlp.doctor.looks:taken", {"look": look}, timeout=SECONDS)
    except FreshProcessError as e:
        return e
    return found


def _failure(look: str, error: FreshProcessError, found: Findings) -> Trouble:
    """Return what a failed look means, and what mends it."""
    hangs = isinstance(error, TooLongError)
    what, crashed = f"{error}: it hangs" if hangs else str(error), not (error.kind or hangs)
    package = REQUIRED.get(look, "matplotlib" if look == "matplotlib" else None)
    if package is None:
        return Trouble(f"the look at {look} failed: {what}", "fastmlp doctor --markdown, to report this with", True)
    stops, wanted = package in REQUIRED.values(), pinned(package)
    if error.missing == look:
        return Trouble(f"{package} is not installed", f"{PIP} {wanted}", stops)
    core = os.environ.get("OPENBLAS_CORETYPE")
    if crashed and core and look in ("numpy", "scipy", "scipy_openblas32"):
        cause = f"OPENBLAS_CORETYPE={core} forces kernels that this processor cannot run: {package} {what}"
        return Trouble(cause, "unset OPENBLAS_CORETYPE", stops)
    for known in found.troubles:  # versions that do not go together are why, most likely
        if known.stops and known.cause.startswith((f"{package} ", f"{error.missing} ")):
            return Trouble(f"{package} cannot be used: {what}", known.cure, stops)
    if missing := error.missing:
        return Trouble(f"{package} cannot be used: {what}", f"{PIP} {missing.partition('.')[0]}", stops)
    cure = f"{PIP} --force-reinstall --no-cache-dir {wanted}"
    return Trouble(f"{package} cannot be used: {what}", cure, stops)
