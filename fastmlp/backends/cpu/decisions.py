"""What trials (`contest`) decided on this machine, kept in files with the compiled kernels."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp.backends.cpu.calibration import kept_path, machine
from fastmlp.files.atomic import atomic_writer
from fastmlp.network.plan import Plan

_known: dict[Path, dict[str, dict[str, Any]]] = {}
"""Of this process, by file: what another one writes meanwhile changes nothing for it."""


def steps_key(plan: Plan) -> str:
    """Return the name of the steps of a plan: all on which it depends what they take."""
    optimizer = plan.optimizer
    assert optimizer is not None
    kind = "in the product" if optimizer.plain else f"by {optimizer.name}"
    clips = "" if optimizer.clip_norm is None else ", clipped"
    units = "-".join(map(str, plan.spec.units))
    lowest = plan.spec.lowest_trainable
    above = f" from layer {lowest}" if lowest else ""
    return f"{units}{above}, batch {plan.batch}, updated {kind}{clips}"


def can_be_kept(what: str, dtype: np.dtype[Any]) -> bool:
    """Tell whether there is a folder for decisions: without one, each run would be of other bits."""
    return kept_path(what, dtype) is not None


def decided(what: str, key: str, dtype: np.dtype[Any]) -> dict[str, Any] | None:
    """Return what was decided on this machine; None where nothing was.

    Parameters
    ----------
    what : str
        The first part of the file's name.
    key : str
        For what, within the file.
    dtype : numpy.dtype
    """
    return decisions(what, dtype).get(key)


def decisions(what: str, dtype: np.dtype[Any]) -> dict[str, dict[str, Any]]:
    """Return all that was decided for a type on this machine, by key."""
    path = kept_path(what, dtype)
    return {} if path is None else _of_file(path)


def keep(what: str, key: str, decision: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Write a decision beside those that are there; return what stands: another process may have been faster."""
    path = kept_path(what, dtype)
    assert path is not None, "without a folder nothing is decided"
    there = _read(path)
    if there.get(key) == _of_file(path).get(key):  # nothing, or what fits nothing here
        there[key] = decision
    # who cannot keep it tries again the next time
    with contextlib.suppress(OSError):
        os.makedirs(path.parent, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(json.dumps({"machine": machine(), "decided": there}, indent=1).encode())
    _of_file(path)[key] = there[key]
    return there[key]


def _of_file(path: Path) -> dict[str, dict[str, Any]]:
    if path not in _known:
        _known[path] = _read(path)
    return _known[path]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Return what a file holds; nothing where there is none, or it is damaged or another machine's."""
    with contextlib.suppress(Exception):  # whatever is wrong with it, it is tried again
        kept = json.loads(path.read_text())
        if kept["machine"] == machine():
            return {str(k): dict(d) for k, d in kept["decided"].items()}
    return {}
