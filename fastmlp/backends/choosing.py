"""Asking for a backend: by name, as it is, or the one that suits this machine."""

from __future__ import annotations

import logging
from typing import Any

from fastmlp.backends.base import Backend
from fastmlp.backends.registry import choose_backend, make

_log = logging.getLogger("fastmlp")


def get_backend(name: str = "auto", **options: Any) -> Backend:
    """Return a backend by name.

    Parameters
    ----------
    name : str
        ``"numpy"``, ``"numba"``, ``"cupy"``, a registered one, or ``"auto"``: Numba where it can run, else NumPy.
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


def resolve_backend(backend: str | Backend) -> Backend:
    """Return a backend given as such or by name; what "auto" stands for is logged, and why."""
    if isinstance(backend, Backend):
        return backend
    if _is_auto(backend):
        name, why = choose_backend()
        _log.info("backend 'auto' is %s (%s)", name, why)
    return get_backend(backend)


def _is_auto(name: object) -> bool:
    return isinstance(name, str) and name == "auto"  # arrays are equal one by one
