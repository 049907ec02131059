"""What trials of training steps (`trial`) decided on this machine: kept in a file with the compiled kernels."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmlp.backends.cpu.calibration import kept_path, machine
from fastmlp.files.atomic import atomic_writer

if TYPE_CHECKING:
    from fastmlp.network.plan import Plan


class Decision(NamedTuple):
    """What was found to be the fastest: the forms by name, see `choices.named`, and the parts of a step."""

    products: str
    parts: int


_known: dict[Path, dict[str, Decision]] = {}
"""Of this process, by file: what another one writes meanwhile changes nothing for it."""


def key_of(plan: Plan, most: int) -> str:
    """Return the name of what a decision holds for: steps of one shape, on so many threads at most."""
    optimizer = plan.optimizer
    assert optimizer is not None
    kind = "in the product" if optimizer.plain else f"by {optimizer.name}"
    clips = "" if optimizer.clip_norm is None else ", clipped"
    units = "-".join(map(str, plan.spec.units))
    lowest = plan.spec.lowest_trainable
    above = f" from layer {lowest}" if lowest else ""
    return f"{units}{above}, batch {plan.batch}, updated {kind}{clips}, {most} threads"


def can_be_kept(dtype: np.dtype[Any]) -> bool:
    """Tell whether there is a folder for decisions: without one, each run would be of other bits."""
    return kept_path("steps", dtype) is not None


def decided(plan: Plan, most: int) -> Decision | None:
    """Return what was decided for steps of this shape, on this machine; None where nothing was."""
    path = kept_path("steps", plan.precision.products)
    return None if path is None else _of_file(path).get(key_of(plan, most))


def decisions(dtype: np.dtype[Any]) -> dict[str, Decision]:
    """Return all that was decided for a type on this machine."""
    path = kept_path("steps", dtype)
    return {} if path is None else dict(_of_file(path))


def _of_file(path: Path) -> dict[str, Decision]:
    if path not in _known:
        _known[path] = _read(path)
    return _known[path]


def _read(path: Path) -> dict[str, Decision]:
    """Return what a file holds; nothing where there is none, or it is damaged or another machine's."""
    with contextlib.suppress(Exception):  # whatever is wrong with it, steps are tried again
        kept = json.loads(path.read_text())
        if kept["machine"] == machine():
            return {str(k): Decision(str(d["products"]), int(d["parts"])) for k, d in kept["steps"].items()}
    return {}


def keep(key: str, decision: Decision, dtype: np.dtype[Any]) -> Decision:
    """Write a decision beside those that are there; return what stands: another process may have been faster."""
    path = kept_path("steps", dtype)
    assert path is not None, "without a folder nothing is decided"
    there = _read(path)
    if there.get(key) == _of_file(path).get(key):  # nothing, or what fits nothing here
        there[key] = decision
    decision = there[key]
    # who cannot keep it tries again the next time
    with contextlib.suppress(OSError):
        os.makedirs(path.parent, exist_ok=True)
        with atomic_writer(path) as file:
            steps = {k: d._asdict() for k, d in there.items()}
            file.write(json.dumps({"machine": machine(), "steps": steps}, indent=1).encode())
    _of_file(path)[key] = decision
    return decision
