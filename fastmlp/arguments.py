"""Checks of the arguments that the faces share; each error names the argument, what was got and what was expected."""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.backends import choose_backend, get_backend
from fastmlp.backends.base import Backend
from fastmlp.callbacks import Callback, ProgressBar
from fastmlp.random_bits import new_key

if TYPE_CHECKING:
    from fastmlp.training import Metric

_log = logging.getLogger("fastmlp")


def check_dtype(dtype: str | type | np.dtype[Any]) -> np.dtype[Any]:
    """Return float32 or float64; ValueError for anything else."""
    try:
        kind = np.dtype(dtype)
    except TypeError:
        kind = None
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return kind


def check_seed(seed: int | None) -> int:
    """Return the 64-bit key of a seed; a drawn one for None."""
    if seed is None:
        return new_key()
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(f"seed must be an integer or None, got {seed!r}")
    key = operator.index(seed)
    if not 0 <= key < 2**64:
        raise ValueError(f"seed must be in 0..2**64-1, got {seed!r}")
    return key


def resolve_backend(backend: str | Backend) -> Backend:
    """Return a backend given as such or by name; what "auto" stands for is logged, and why."""
    if isinstance(backend, Backend):
        return backend
    if backend == "auto":
        name, why = choose_backend()
        _log.info("backend 'auto' is %s (%s)", name, why)
    return get_backend(backend)


def check_count(argument: str, value: int, least: int = 1) -> int:
    """Return an integer that is not below `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, got {value!r}")
    return operator.index(value)


def check_callbacks(callbacks: Sequence[Callback], verbose: int) -> list[Callback]:
    """Return the callbacks of a run, with the progress bar that `verbose` asks for."""
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose must be 0, 1 or 2, got {verbose!r}")
    found = list(callbacks)
    for callback in found:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be Callback objects such as EarlyStopping(), got {callback!r}")
    if verbose and not any(isinstance(c, ProgressBar) for c in found):
        found.append(ProgressBar(bar=verbose == 1))
    return found


def check_metrics(metrics: Sequence[str | Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Return metrics by name; a name stands for a function of `sklearn.metrics`."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    if isinstance(metrics, str):
        metrics = (metrics,)
    found: dict[str, Metric] = {}
    for metric in metrics:
        if callable(metric):
            found[getattr(metric, "__name__", type(metric).__name__)] = metric
            continue
        import sklearn.metrics

        function = getattr(sklearn.metrics, metric, None)
        if not callable(function):
            raise ValueError(
                f"metrics: sklearn.metrics has no function {metric!r}; name one, such as 'balanced_accuracy_score', "
                "or pass a callable f(y, predicted)"
            )
        found[metric] = function
    return found
