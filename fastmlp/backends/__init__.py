"""The backends by name, and whether each can run here.  Nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastmlp.errors import BackendUnavailable
from fastmlp.records import check_new_name, choose

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend

_log = logging.getLogger("fastmlp")

# name: (module, class).  A module may have a function `probe() -> Availability`; importing it must not be costly.
_BACKENDS: dict[str, tuple[str, str]] = {
    "numpy": ("fastmlp.backends.numpy_backend", "NumpyBackend"),
    "numba": ("fastmlp.backends.numba_backend", "NumbaBackend"),
    "cupy": ("fastmlp.backends.cupy_backend", "CupyBackend"),
}
# CuPy has its place before the others when its self-test has passed on a GPU; until then it is for those who ask for it
# by name.
_AUTOMATIC = ("numba", "numpy")
_made: dict[str, Backend] = {}


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here.

    Attributes
    ----------
    available : bool
    reason : str
        Why not, and the cure; or, where it can, on what it runs.
    """

    available: bool
    reason: str = ""


def backend_names() -> tuple[str, ...]:
    """Return the names of all backends, whether they can run here or not."""
    return tuple(_BACKENDS)


def available_backends() -> dict[str, Availability]:
    """Return, for every backend by name, whether it can run here and, if not, why and the cure."""
    return {name: _probe(name) for name in _BACKENDS}


def _probe(name: str) -> Availability:
    module, _ = _BACKENDS[name]
    try:
        if importlib.util.find_spec(module) is None:
            return Availability(False, f"this version of fastmlp has no {name} backend; use backend='numpy'")
        probe = getattr(importlib.import_module(module), "probe", None)
    except ImportError as e:
        return Availability(False, f"{module} cannot be imported: {e}; install what is missing")
    result: Availability = probe() if probe is not None else Availability(True)
    return result


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
    if name == "auto":
        name = choose_backend()[0]
    module, cls = choose("backend", name, _BACKENDS)
    if not options and name in _made:
        return _made[name]
    found = _probe(name)
    if not found.available:
        raise BackendUnavailable(f"backend {name!r} cannot run here: {found.reason}")
    backend: Backend = getattr(importlib.import_module(module), cls)(**options)
    if not options:
        _made[name] = backend
    return backend


def restored_backend(name: str, options: dict[str, Any]) -> Backend:
    """Return the backend of a pickled model; where it cannot run, "auto", with a logged warning."""
    try:
        return get_backend(name, **options)
    except (RuntimeError, ValueError) as e:
        found = get_backend()
        _log.warning("backend %s of a pickled model cannot be used here, so it runs on %s: %s", name, found.name, e)
        return found


def choose_backend() -> tuple[str, str]:
    """Return the name that ``"auto"`` stands for here, and why."""
    passed_over: list[str] = []
    for name in _AUTOMATIC:
        found = _probe(name)
        if found.available:
            return name, "; ".join(passed_over) or "the first choice"
        passed_over.append(f"not {name}: {found.reason}")
    raise AssertionError("NumPy is always there")


def register_backend(name: str, module: str, cls: str) -> None:
    """Make a backend of your own known under `name`.

    Parameters
    ----------
    name : str
        A new name.
    module, cls : str
        Where its class is, a subclass of `fastmlp.backends.base.Backend`; the module is imported when first asked for.
    """
    check_new_name("backend", name, _BACKENDS)
    _BACKENDS[name] = (module, cls)
