"""The backends by name: whether each can run here, and making one.  Nothing is imported before it is asked for.

It lies below the interface, which it therefore does not know: what it makes it returns as it is, and `choosing` hands
that to users with its type.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastmlp.arguments import check_text
from fastmlp.errors import BackendUnavailable
from fastmlp.formulas.records import check_new_name, choose

_log = logging.getLogger("fastmlp")

# name: (module, class).  A module may have a function `probe() -> Availability`; importing it must not be costly.
_BACKENDS: dict[str, tuple[str, str]] = {
    "numpy": ("fastmlp.backends.numpy_backend", "NumpyBackend"),
    "numba": ("fastmlp.backends.cpu.backend", "NumbaBackend"),
    "cupy": ("fastmlp.backends.cuda.backend", "CupyBackend"),
}
_AUTOMATIC = ("numba", "numpy")
_RIVALS = {"cupy": "cupy"}
"""Backends that a long run on "auto" may move to, where their self-test has passed on this machine, and the package
without which nothing of theirs is imported."""
VARIABLE = "FASTMLP_BACKEND"
_made: dict[str, Any] = {}


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here.

    Attributes
    ----------
    available : bool
    reason : str
        Why not and, after the last semicolon, the cure; or, where it can, on what it runs.
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


def make(name: str, options: Mapping[str, Any]) -> Any:
    """Return the backend of that name, the same one wherever no options are given; errors as of `get_backend`."""
    module, cls = choose("backend", name, _BACKENDS)
    if not options and name in _made:
        return _made[name]
    found = _probe(name)
    if not found.available:
        raise BackendUnavailable(f"backend {name!r} cannot run here: {found.reason}")
    backend = getattr(importlib.import_module(module), cls)(**options)
    if not options:
        _made[name] = backend
    return backend


def choose_backend() -> tuple[str, str]:
    """Return the name that ``"auto"`` stands for here, and why.

    Raises
    ------
    BackendUnavailable
        The environment variable FASTMLP_BACKEND names no backend, or one that cannot run here.
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked and asked != "auto":
        try:
            choose("backend", asked, _BACKENDS)
        except ValueError as e:
            raise BackendUnavailable(f"the environment variable {VARIABLE}={asked}: {e}") from None
        found = _probe(asked)
        if not found.available:
            raise BackendUnavailable(
                f"the environment variable {VARIABLE}={asked}, but that backend cannot run here: {found.reason}"
            )
        return asked, f"{VARIABLE}={asked}"
    return first_choice()


def first_choice() -> tuple[str, str]:
    """Return the name that ``"auto"`` stands for where the environment names none, and why."""
    passed_over: list[str] = []
    for name in _AUTOMATIC:
        found = _probe(name)
        if found.available:
            return name, "; ".join(passed_over) or "the first choice"
        passed_over.append(f"not {name}: {found.reason}")
    raise AssertionError("NumPy is always there")


def rivals() -> tuple[list[str], str]:
    """Return the backends to try against the one that "auto" stands for, and why there are no others."""
    found, passed_over = [], []
    for name, package in _RIVALS.items():
        if not _is_installed(package) or not _probe(name).available:
            continue  # where there is no GPU, nobody wants to know why
        module = importlib.import_module(_BACKENDS[name][0])
        if module.selftest_passed():
            found.append(name)
        else:
            passed_over.append(f"{name} was not tested on this GPU: fastmlp selftest --backend {name}")
    return found, "; ".join(passed_over)


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def restored_backend(name: str, options: Mapping[str, Any]) -> Any:
    """Return the backend of a pickled model; where it cannot run, "auto", with a warning that is logged once."""
    try:
        return make(name, options)
    except (RuntimeError, ValueError) as e:
        found = make(choose_backend()[0], {})
        _say_replaced(name, found.name, str(e))
        return found


@functools.cache
def _say_replaced(name: str, found: str, why: str) -> None:
    _log.warning("backend %s of a pickled model cannot be used here, so it runs on %s: %s", name, found, why)


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
    _BACKENDS[name] = check_text("module", module), check_text("cls", cls)
