"""Checks of single arguments, for every face: what is right comes back in one plain type, what is not is refused.

Each error names the argument, what was got and what was expected.
"""

from __future__ import annotations

import math
import operator
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np


def check_integer(argument: str, value: Any, *, also: str = "") -> int:
    """Return an integer of whatever integer type it was given; TypeError for anything else, True and False too."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{argument} must be an integer{_or(also)} {value!r}") from None


def check_count(argument: str, value: Any, least: int = 1, *, also: str = "") -> int:
    """Return an integer that is not below `least`, of whatever integer type it was given.

    Parameters
    ----------
    argument : str
        Its name, for messages.
    value : object
    least : int
    also : str
        What else the argument may be, for messages, such as ``"or None"``.

    Raises
    ------
    TypeError
        It is no integer; True and False are none.
    ValueError
        It is below `least`.
    """
    number = check_integer(argument, value, also=also)
    if number < least:
        raise ValueError(f"{argument} must be at least {least}{_or(also)} {value!r}")
    return number


def check_number(
    argument: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False, also: str = ""
) -> float:
    """Return a number in [low, high), or in (low, high) where it must be `above` the bound, as a float.

    Parameters
    ----------
    argument : str
        Its name, for messages.
    value : object
        Of any real type, or an array of any library that holds one and has no axes.
    low, high : float
        Infinity and NaN are out of all bounds.
    above : bool
    also : str
        What else the argument may be, for messages, such as ``"or None"``.

    Raises
    ------
    TypeError
        It is no number; True, False and text are none.
    ValueError
        It is out of bounds.
    """
    number = value if type(value) is float else _as_float(argument, value, also)
    if not math.isfinite(number) or number < low or (above and number == low) or number >= high:
        bounds = [] if math.isinf(low) else [f"{'above' if above else 'at least'} {low:g}"]
        bounds += ["finite" if math.isinf(high) else f"below {high:g}"]
        raise ValueError(f"{argument} must be {' and '.join(bounds)}{_or(also)} {value!r}")
    return number


def _as_float(argument: str, value: Any, also: str) -> float:
    given = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    masked = isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any())  # its item is 0
    if masked or isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{argument} must be a number{_or(also)} {value!r}")
    try:
        return float(given)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def check_flag(argument: str, value: Any) -> bool:
    """Return True or False, given as that, NumPy's too, or as 1 or 0; TypeError for anything else."""
    if not isinstance(value, (bool, np.bool_, int, np.integer)) or value not in (0, 1):
        raise TypeError(f"{argument} must be True or False, got {value!r}")
    return bool(value)


def check_sequence(argument: str, value: Any, expected: str) -> list[Any]:
    """Return the entries of what has an order, such as a list or an array; TypeError for anything else.

    Text, mappings and sets are refused: what they give one by one is letters, keys, or in no order.

    Parameters
    ----------
    argument : str
        Its name, for messages.
    value : object
    expected : str
        What it must be, for messages, such as ``"a sequence of names"``.
    """
    try:
        if isinstance(value, (str, bytes, Mapping, set, frozenset)):
            raise TypeError
        return list(value)
    except TypeError:
        raise TypeError(f"{argument} must be {expected}, got {value!r}") from None


def check_text(argument: str, value: Any) -> str:
    """Return text that is not empty; TypeError or ValueError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{argument} must be text, got {value!r}")
    if not value:
        raise ValueError(f"{argument} must not be empty")
    return value


def check_choice(argument: str, value: Any, choices: Sequence[str]) -> str:
    """Return one of a few words; TypeError for what is no text, ValueError for any other word."""
    if isinstance(value, str) and value in choices:
        return value
    wrong = ValueError if isinstance(value, str) else TypeError
    raise wrong(f"{argument} must be {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}; got {value!r}")


def check_callable(argument: str, value: Any, expected: str) -> Callable[..., Any]:
    """Return what can be called; TypeError, which says what was `expected`, for anything else."""
    if not callable(value):
        raise TypeError(f"{argument} must be {expected}, got {value!r}")
    called: Callable[..., Any] = value
    return called


def check_path(argument: str, path: Any) -> str:
    """Return the name of a file or a folder as text.

    A number is none, True neither, though the operating system takes both for a file that is open.

    Raises
    ------
    TypeError
        It is neither text nor a path.
    ValueError
        It is empty, or holds what no name can.
    """
    try:
        name = os.fspath(path)
    except TypeError:
        name = None
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be text or a pathlib.Path, got {path!r}")
    if not name or "\0" in name:
        raise ValueError(f"{argument} must be the name of a file or folder, got {path!r}")
    return name


def check_names(argument: str, names: Any) -> tuple[str, ...]:
    """Return names that differ, given as a sequence of text or of numbers.

    Raises
    ------
    TypeError
        It is no sequence, or an entry is neither text nor a number.
    ValueError
        A name is there twice, so that it says nothing.
    """
    given = check_sequence(argument, names, "a sequence of names")
    for i, name in enumerate(given):
        if not isinstance(name, (str, Real, np.bool_)):
            raise TypeError(f"{argument}[{i}] must be text or a number, got {name!r}")
    found = tuple(map(str, given))
    if not found:
        raise ValueError(f"{argument} must be one name at least, got {names!r}")
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise ValueError(f"{argument} must be names that differ, got {twice!r} more than once")
    return found


def check_dtype(dtype: str | type | np.dtype[Any]) -> np.dtype[Any]:
    """Return float32 or float64; ValueError for anything else."""
    try:  # NumPy would take the dtype of any value that has one
        kind = np.dtype(dtype) if isinstance(dtype, (str, type, np.dtype)) else None
    except TypeError:
        kind = None
    # a dtype equals whatever NumPy would make it of: float64 equals None
    if kind is None or kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
    return kind


def check_seed(seed: int | None) -> int:
    """Return a 64-bit seed; for None one drawn from the operating system."""
    if seed is None:
        return secrets.randbits(64)
    key = check_integer("seed", seed, also="or None")
    if not 0 <= key < 2**64:
        raise ValueError(f"seed must be in 0..2**64-1, got {seed!r}")
    return key


def _or(also: str) -> str:
    """Return how a message goes on to what was got."""
    return f", {also}; got" if also else ", got"
