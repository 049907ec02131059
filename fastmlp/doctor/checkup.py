"""All looks at a machine, each in a process of its own: one that cannot import, crashes or hangs hides no other."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastmlp.doctor.findings import Findings, Trouble
from fastmlp.doctor.looks import LOOKS, cupy_packages, products
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
        answers = dict(zip(looks, pool.map(_ask, looks), strict=True))
    failed = {name for name, answer in answers.items() if "failed" in answer}
    for name, answer in answers.items():
        if name not in failed:
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
    return {**short, **products().facts} if available_backends()["numba"].available else short


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


def _ask(look: str) -> dict[str, Any]:
    """Take one look in another process, which finds what this one would; return its answer, or how it failed."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from fastmlp.doctor.looks import main; main({look!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {SECONDS} s: it hangs"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        return {"failed": end_of(done), "crashed": True}
    return answer


def end_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return how a process ended that should have answered."""
    if done.returncode < 0:
        number = -done.returncode
        return f"ends the process by {signal.Signals(number).name}, {signal.strsignal(number)}"
    last = [line for line in done.stderr.splitlines() if line.strip()]
    return f"ends the process with code {done.returncode}" + (f" ({last[-1].strip()})" if last else "")


def _failure(look: str, answer: dict[str, Any], found: Findings) -> Trouble:
    """Return what a failed look means, and what mends it."""
    what = answer["failed"]
    package = REQUIRED.get(look, "matplotlib" if look == "matplotlib" else None)
    if package is None:
        return Trouble(f"the look at {look} failed: {what}", "fastmlp doctor --markdown, to report this with", True)
    stops, wanted = package in REQUIRED.values(), pinned(package)
    if answer.get("missing") == look:
        return Trouble(f"{package} is not installed", f"{PIP} {wanted}", stops)
    core = os.environ.get("OPENBLAS_CORETYPE")
    if answer.get("crashed") and core and look in ("numpy", "scipy", "scipy_openblas32"):
        cause = f"OPENBLAS_CORETYPE={core} forces kernels that this processor cannot run: {package} {what}"
        return Trouble(cause, "unset OPENBLAS_CORETYPE", stops)
    for known in found.troubles:  # versions that do not go together are why, most likely
        if known.stops and known.cause.startswith((f"{package} ", f"{answer.get('missing')} ")):
            return Trouble(f"{package} cannot be used: {what}", known.cure, stops)
    if missing := answer.get("missing"):
        return Trouble(f"{package} cannot be used: {what}", f"{PIP} {missing.partition('.')[0]}", stops)
    cure = f"{PIP} --force-reinstall --no-cache-dir {wanted}"
    return Trouble(f"{package} cannot be used: {what}", cure, stops)
