"""RESULTS.md: each benchmark writes a section of its own under the kind of machine, with versions and the command."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fastmlp.bench.machine import processor

PATH = Path(__file__).with_name("RESULTS.md")
HEAD = """# Results

Written by the scripts beside it: for each kind of machine, each section by the command that it names.
"""
PINNED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""What pins an old core type for OpenBLAS."""


def unpinned(told: Mapping[str, str] = MappingProxyType({})) -> None:
    """Start the script again without what pins an old core type for OpenBLAS, which would slow it down.

    Parameters
    ----------
    told : mapping of str to str, optional
        Variables that it is started with.
    """
    wanted = {**dict.fromkeys(PINNED), **told}
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        environment = {name: value for name, value in {**os.environ, **wanted}.items() if value is not None}
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def machine() -> str:
    """Return what a figure depends on besides the code: processor, cores, versions."""
    from fastmlp.backends.cpu.limits import physical_cores

    names = ["numpy", "numba", "scipy-openblas32", "torch", "jax", "scikit-learn"]
    there = [n for n in names if importlib.util.find_spec(n.replace("-", "_").replace("scikit_learn", "sklearn"))]
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in there)
    return f"{processor()}, {physical_cores()} cores; Python {platform.python_version()}, {versions}"


def write_section(title: str, body: str, kind: str | None = None, versions: str | None = None) -> None:
    """Put a section into RESULTS.md, in the place of the one of the same title.

    Parameters
    ----------
    title, body : str
    kind : str, optional
        The kind of machine that it is put under; by default this one.
    versions : str, optional
        What the figures depend on besides, where they were taken on another machine.
    """
    given = [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]  # folders tell nothing
    command = " ".join(["python", *(shlex.quote(a) for a in ["benchmarks/" + Path(sys.argv[0]).name, *given])])
    today = datetime.date.today().isoformat()
    section = f"### {title}\n\n`{command}` on {today}: {versions or machine()}.\n\n{body}\n"
    old = PATH.read_text() if PATH.exists() else HEAD
    head, *machines = re.split(r"^(?=## )", old, flags=re.M)
    kinds = {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in machines}
    here = f"## {kind or processor()}"
    parts = re.split(r"^(?=### )", kinds.get(here, ""), flags=re.M)[1:]
    kept = [part for part in parts if not part.startswith(f"### {title}\n")]
    kinds[here] = "\n" + "\n".join(part.rstrip("\n") + "\n" for part in sorted([*kept, section]))
    text = "\n".join(f"{kind}\n{sections.rstrip()}\n" for kind, sections in sorted(kinds.items()))
    PATH.write_text(f"{head.rstrip()}\n\n{text}")
