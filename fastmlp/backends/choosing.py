"""Asking for a backend: by name, as it is, or the one that suits this machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastmlp.backends.base import Backend
from fastmlp.backends.registry import VARIABLE, choose_backend, make

_log = logging.getLogger("fastmlp")


def get_backend(name: str = "auto", **options: Any) -> Backend:
    """Return a backend by name.

    Parameters
    ----------
    name : str
        ``"numpy"``, ``"numba"``, ``"cupy"``, a registered one, or ``"auto"``: what the environment variable
        FASTMLP_BACKEND names; else Numba where it can run, else NumPy.
    **options
        Options of that backend; one that it does not have is a TypeError.

    Raises
    ------
    BackendUnavailable
        It cannot run here; the message gives the reason and the cure.
    ValueError
        There is no such backend.
    """
    backend: Backend = make(choose_backend()[0] if _is_auto(name) else name, options)
    return backend


@dataclass(frozen=True)
class BackendChoice:
    """Which backend a model runs on, and why.

    Attributes
    ----------
    name : str
    why : str
    left_open : bool
        Whether a long run may choose another, see `fastmlp.engine.backend_trial`.
    seconds : dict of str to float
        What a step took on each backend, where that was tried.
    """

    name: str
    why: str
    left_open: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} ({self.why})"


def chosen_backend(backend: str | Backend) -> tuple[Backend, BackendChoice]:
    """Return a backend given as such or by name, and why it is that one; what "auto" stands for is logged."""
    if isinstance(backend, Backend):
        return backend, BackendChoice(backend.name, "asked for")
    found = get_backend(backend)
    if not _is_auto(backend):
        return found, BackendChoice(found.name, "asked for")
    name, why = choose_backend()
    _log.info("backend 'auto' is %s (%s)", name, why)
    return found, BackendChoice(name, why, left_open=not why.startswith(VARIABLE))


def _is_auto(name: object) -> bool:
    return isinstance(name, str) and name == "auto"  # arrays are equal one by one
