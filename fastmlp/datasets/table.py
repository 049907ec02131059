"""A table of features and targets, and what reading one from any kind of file shares: names, classes, checks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmlp.errors import DataError

Task: TypeAlias = Literal["auto", "classification", "regression"]

WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
"""Whole numbers that always fit in an int64."""
SCAN = 1 << 22
"""Elements looked at at a time, so that a mapped file never is in memory as a whole."""


@dataclass(frozen=True, eq=False)
class Table:
    """Features and targets read from a file.

    Attributes
    ----------
    x : (n, d) ndarray
        Features, all finite: float64 from CSV, otherwise of the file's own type (uint8 stays uint8). Images
        and other higher ranks are flattened. From a ``.npy`` file it is memory-mapped and read-only.
    y : (n,) or (n, k) ndarray, or None
        int64 labels, whole numbers or class indices; or float64 values. With two dimensions always float64.
    feature_names : tuple of str
        One for each column of `x`; ``x0, x1, ...`` where the file has no names.
    class_names : tuple of str, or None
        What each index in `y` stands for; None where `y` holds numbers as they are in the file.
    """

    x: npt.NDArray[Any]
    y: npt.NDArray[Any] | None
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...] | None

    @property
    def names_of_file(self) -> tuple[str, ...] | None:
        """The feature names where the file gave them; None where they were made up."""
        return None if self.feature_names == made_up_names(len(self.feature_names)) else self.feature_names


@dataclass(frozen=True)
class Source:
    """What `load_table` was asked for."""

    path: str | os.PathLike[str]
    task: Task
    feature_names: Sequence[str] | None
    class_names: Sequence[str] | None


def made_up_names(count: int) -> tuple[str, ...]:
    """Return ``x0, x1, ...``."""
    return tuple(f"x{column}" for column in range(count))


def feature_names_of(source: Source, count: int) -> tuple[str, ...]:
    """Return the names of columns that a file has no names for: those wanted, or made-up ones."""
    if source.feature_names is None:
        return made_up_names(count)
    if len(source.feature_names) != count:
        raise DataError(f"{source.path}: expected {len(source.feature_names)} features, got {count}")
    return tuple(source.feature_names)


def classes_of(source: Source, texts: list[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Give the index of each text's class, and the names of the classes."""
    texts = [re.sub(r"(?<=[0-9])\.0*$", "", text) if is_number(text) else text for text in texts]  # 3.0 is 3
    if source.class_names is not None:
        names = tuple(source.class_names)
    elif (odd := next(filter(is_fractional, texts), None)) is not None:
        raise DataError(
            f"{source.path}: expected classes, which are text or whole numbers, got {odd!r}; "
            'is it a regression (task="regression")?'
        )
    elif all(map(WHOLE.fullmatch, texts)):
        names = tuple(sorted(set(texts), key=lambda text: (int(text), text)))
    else:
        names = tuple(sorted(set(texts)))
    places = {name: index for index, name in enumerate(names)}
    if (unknown := next((text for text in texts if text not in places), None)) is not None:
        raise DataError(f"{source.path}: expected one of the classes {listed(names)}, got {quoted(unknown)}")
    return np.array([places[text] for text in texts], dtype=np.int64), names


def is_number(text: str) -> bool:
    """Return whether a text is a number as a file should hold it."""
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text  # float() takes more than a file should hold


def is_fractional(text: str) -> bool:
    """Return whether a text is a number, but not a whole one."""
    return is_number(text) and WHOLE.fullmatch(text) is None


def finite(array: npt.NDArray[Any]) -> bool:
    """Return whether all numbers are finite, looking at a part at a time."""
    rows = max(1, SCAN // max(1, math.prod(array.shape[1:])))
    return all(bool(np.isfinite(array[first : first + rows]).all()) for first in range(0, len(array), rows))


def quoted(text: str) -> str:
    """Return a text as messages show it, cut where it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def listed(names: Sequence[str]) -> str:
    """Return names as messages list them, the first twelve."""
    shown = ", ".join(map(repr, names[:12]))
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


def check_finite(path: str | os.PathLike[str], name: str, array: npt.NDArray[Any]) -> None:
    """Raise DataError with the place of the first number that is not finite."""
    if array.dtype.kind != "f":
        return
    rows = max(1, SCAN // max(1, math.prod(array.shape[1:])))
    for first in range(0, len(array), rows):
        finite = np.isfinite(array[first : first + rows])
        if not finite.all():
            place = np.argwhere(~finite)[0]
            place[0] += first
            index = tuple(map(int, place))
            raise DataError(
                f"{path}: expected finite numbers, got {array[index]} at {name}[{', '.join(map(str, index))}]"
            )
