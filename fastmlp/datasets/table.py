"""A table of features and targets, and what reading one from any kind of file shares: names, classes, checks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmlp.datasets.cells import (
    PLAIN,
    WHOLE,
    is_formatted,
    is_fractional,
    is_missing,
    is_number,
    listed,
    measures,
    quoted,
)
from fastmlp.errors import DataError

Task: TypeAlias = Literal["auto", "classification", "regression"]

_MANY = 20
"""From more classes than this on, a target that has one for every other row is not taken for classes."""
SCAN = 1 << 22
"""Elements looked at at a time, so that a mapped file never is in memory as a whole."""


@dataclass(frozen=True, eq=False)
class Table:
    """Features and targets read from a file.

    Attributes
    ----------
    x : (n, d) ndarray
        Features, all finite: float64 from CSV, otherwise of the file's own type (uint8 stays uint8). Images
        and other higher ranks are flattened. From a ``.npy`` file it is memory-mapped and read-only. Where raw rows
        were asked for, NaN where a number is missing, and objects where a column holds words.
    y : (n,) or (n, k) ndarray, or None
        int64 labels, whole numbers or class indices; or float64 values. With two dimensions always float64; a column
        (n, 1) of integers in a file of arrays comes as (n,).
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
    """What `load_table` was asked for, and what is to be said of how it was read."""

    path: str | os.PathLike[str]
    task: Task
    feature_names: Sequence[str] | None
    class_names: Sequence[str] | None
    header: bool | None = None
    raw: Any = False
    said: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Keep a line for the user."""
        self.said.append(f"{self.path}: {text}")


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
    """Give the index of each text's class, and the names of the classes.

    Two spellings of one whole number are one class: ``+1``, ``01`` and ``1.0`` are 1 where ``1`` is another text.
    Where each number has one spelling, that is its name, leading zeros too: ``01`` and ``02`` may be codes.
    """
    texts = _whole_ones(texts)
    if source.class_names is not None:
        names = tuple(source.class_names)
    elif (odd := next(filter(is_fractional, texts), None)) is not None:
        raise DataError(
            f"{source.path}: expected classes, which are text or whole numbers, got {odd!r}; "
            'is it a regression (task="regression")?'
        )
    elif all(map(WHOLE.fullmatch, texts)):
        if len(set(map(int, texts))) < len(set(texts)):
            texts = [str(int(text)) for text in texts]
        names = tuple(sorted(set(texts), key=lambda text: (int(text), text)))
    else:
        names = tuple(sorted(set(texts)))
    if all(map(WHOLE.fullmatch, names)) and len(named := {int(name): name for name in names}) == len(names):
        # the file that the names are of may have spelt them in another way
        texts = [named.get(int(text), text) if WHOLE.fullmatch(text) else text for text in texts]
    places = {name: index for index, name in enumerate(names)}
    if (unknown := next((text for text in texts if text not in places), None)) is not None:
        raise DataError(f"{source.path}: expected one of the classes {listed(names)}, got {quoted(unknown)}")
    return np.array([places[text] for text in texts], dtype=np.int64), names


def _whole_ones(texts: list[str]) -> list[str]:
    """Return texts with whole numbers as such: ``3.0`` is 3; and so is ``3e0``, where all are numbers."""
    plain = [re.sub(r"(?<=[0-9])\.0*$", "", text) if is_number(text) else text for text in texts]
    if not all(map(is_number, plain)):
        return plain
    return [
        str(int(float(text))) if is_fractional(text) and abs(float(text)) <= 2.0**53 and float(text) % 1 == 0 else text
        for text in plain
    ]


def check_classes(source: Source, texts: Sequence[str], rows: int, column: str) -> None:
    """Raise DataError where the different texts of a target are no classes: numbers, dates or remarks.

    A task of classification, said or implied by class names, takes anything but signs for a missing value.
    """
    if (missing := next(filter(is_missing, texts), None)) is not None and missing not in (source.class_names or ()):
        raise DataError(
            f"{source.path}: expected a class in {column}, got {quoted(missing)}, which stands for a missing value: "
            "fill it in or remove the row, or give it another name if it is a class"
        )
    if source.task != "auto":
        return
    otherwise = 'if these are classes, say so with task="classification" (--loss softmax_cross_entropy)'
    formatted = [text for text in texts if is_formatted(text)]
    odd = list(dict.fromkeys([*formatted, *measures(texts)]))
    if odd and 2 * (len(odd) + sum(map(is_number, texts))) > len(texts):
        if formatted or len(texts) > _MANY:
            raise DataError(
                f"{source.path}: expected numbers or classes in {column}, got {quoted(odd[0])}: {PLAIN}, and dates as "
                f"numbers of days; {otherwise}"
            )
        source.say(
            f"the {len(texts)} different values of {column}, such as {quoted(odd[0])}, are taken as classes; to learn "
            f"them as values {PLAIN}; {otherwise}"
        )
    if len(texts) > max(_MANY, rows // 2):
        raise DataError(
            f"{source.path}: expected numbers or classes in {column}, got {len(texts)} different texts in {rows} rows, "
            f"such as {quoted(texts[0])}; {otherwise}"
        )


def whole_numbers(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return numbers as int64 where all are whole (1.0 is 1), and as they are otherwise."""
    if values.dtype.kind == "f" and (np.abs(values) <= 2.0**53).all() and (values == np.floor(values)).all():
        return values.astype(np.int64)
    return values


def finite(array: npt.NDArray[Any]) -> bool:
    """Return whether all numbers are finite, looking at a part at a time."""
    rows = max(1, SCAN // max(1, math.prod(array.shape[1:])))
    return all(bool(np.isfinite(array[first : first + rows]).all()) for first in range(0, len(array), rows))


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
