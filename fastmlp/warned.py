"""Warnings that point at the line of a user's program."""

from __future__ import annotations

import inspect
import warnings

_BETWEEN = ("fastmlp", "numpy", "contextlib")
"""Packages whose functions lie between a user's call and a warning."""


def warn_caller(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Warn where the library was called: how many of its functions, and of NumPy's decorators, lie between differs.

    Parameters
    ----------
    message : str or Warning
        A warning has its own category.
    category : type
    """
    level, frame = 1, inspect.currentframe()
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
