"""What trials (`contest`) decided on this machine, kept in files."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp.files.atomic import atomic_writer
from fastmlp.network.plan import Plan

_known: dict[Path | None, dict[str, dict[str, Any]]] = {}
"""Of this process, by file: what another one writes meanwhile changes nothing for it."""


_kept = 0


def kept_so_far() -> int:
    """Return how many decisions this process has kept: until it is another number there is nothing new to look for."""
    return _kept


def steps_key(plan: Plan) -> str:
    """Return the name of the steps of a plan: all on which it depends what they take."""
    optimizer = plan.optimizer
    assert optimizer is not None
    kind = "in the product" if optimizer.plain and not plan.spec.l2 else f"by {optimizer.name}"
    clips = "" if optimizer.clip_norm is None else ", clipped"
    units = "-".join(map(str, plan.spec.units))
    lowest = plan.spec.lowest_trainable
    above = f" from layer {lowest}" if lowest else ""
    return f"{units}{above}, batch {plan.batch}, updated {kind}{clips}"


class Decisions:
    """What was decided on a machine, by key.

    Parameters
    ----------
    path : Path or None
        The file that keeps it; None where no folder can be written: then it is known in this process alone.
    machine : dict
        What it holds for; what a file says of another machine is not looked at.
    """

    def __init__(self, path: Path | None, machine: Mapping[str, Any]) -> None:
        self.path, self._machine = path, machine

    def all(self) -> dict[str, dict[str, Any]]:
        """Return all decisions, as they were when this process first asked, and its own since."""
        if self.path not in _known:
            _known[self.path] = self._read()
        return _known[self.path]

    def keep(self, key: str, decision: dict[str, Any]) -> dict[str, Any]:
        """Write a decision beside those that are there; return what stands: another process may have been faster."""
        global _kept
        there = self._read()
        if there.get(key) == self.all().get(key):  # nothing, or what fits nothing here
            there[key] = decision
        if self.path is not None:
            # who cannot keep it tries again the next time
            with contextlib.suppress(OSError):
                os.makedirs(self.path.parent, exist_ok=True)
                with atomic_writer(self.path, lasting=False) as file:
                    file.write(json.dumps({"machine": self._machine, "decided": there}, indent=1).encode())
        self.all()[key] = there[key]
        _kept += 1
        return there[key]

    def _read(self) -> dict[str, dict[str, Any]]:
        """Return what the file holds; nothing where there is none, or it is damaged or another machine's."""
        with contextlib.suppress(Exception):  # whatever is wrong with it, it is tried again
            if self.path is not None:
                kept = json.loads(self.path.read_text())
                if kept["machine"] == self._machine:
                    return {str(k): dict(d) for k, d in kept["decided"].items()}
        return {}
