"""Columns of a CSV file that may hold words and miss values: what each holds, and its cells as Python's objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastmlp.datasets.cells import PLAIN, cure_of, is_formatted, is_missing, is_number, measures, quoted
from fastmlp.datasets.table import Source
from fastmlp.errors import DataError

_FEW = 20
"""Up to so many different values, most of them numbers, are words if one of them is no number."""
_BOOLEANS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
"""As pandas reads them."""


class Kind(NamedTuple):
    """What a column held when a model was trained.

    Attributes
    ----------
    holds : {"text", "boolean", "number"} or None
        Of categories, or ``"number"``; None where the column was left out.
    known : collection of str
        The categories: a cell that is one of them never stands for a missing value.
    """

    holds: str | None
    known: Sequence[str] = ()


def column_of(source: Source, name: str, cells: Sequence[str], lines: Sequence[int], kind: Kind | None) -> Any:
    """Return a column as float64, NaN where a value is missing, or as a list of text or booleans, None there.

    Parameters
    ----------
    source : Source
    name : str
        What messages call the column.
    cells : (n,) sequence of str
    lines : (n,) sequence of int
        In which line of the file each is.
    kind : Kind, optional
        None: the cells tell.

    Raises
    ------
    DataError
        A cell is no number where the others, or those of training, are.
    """
    texts = list(dict.fromkeys(cells))
    known = set(() if kind is None else kind.known)
    there = [text for text in texts if text in known or not is_missing(text)]
    holds = _held(source, name, there) if kind is None else kind.holds
    if holds == "number" and known:  # numbers as categories, of a frame that said so: whether 1 or 1.0
        known = set()
        there = [text for text in texts if not is_missing(text)]
    if holds == "number":
        numbers = {text: float(text) for text in there if is_number(text)}
        if (odd := next((text for text in there if text not in numbers), None)) is not None:
            raise DataError(
                f"{source.path}: line {lines[cells.index(odd)]}, {name}: expected a number, got {quoted(odd)}"
                f"{cure_of(odd)}"
            )
        return np.array([numbers.get(cell, np.nan) for cell in cells])
    values: dict[str, Any] = {text: text for text in there}
    if holds == "boolean":
        values = {text: _BOOLEANS.get(text, text) for text in there}
    return [values.get(cell) for cell in cells]


def _held(source: Source, name: str, texts: Sequence[str]) -> str:
    """Return what the different values of a column are; DataError where they look like badly written numbers."""
    odd = [text for text in texts if not is_number(text)]
    if not odd:
        return "number"
    if all(text in _BOOLEANS for text in texts):
        return "boolean"
    formatted = [text for text in odd if is_formatted(text)]
    doubtful = {*formatted, *measures(odd)}
    if 2 * (len(doubtful) + len(texts) - len(odd)) <= len(texts):
        return "text"
    shown = quoted(next((text for text in odd if text in doubtful), odd[0]))
    if formatted or len(texts) > _FEW:
        raise DataError(
            f"{source.path}: expected numbers or words in {name}, got {shown} among {len(texts)} different values: "
            f"{PLAIN}, and dates as numbers of days, or leave the column out"
        )
    source.say(f"the {len(texts)} different values of {name}, such as {shown}, are taken as words, not as numbers")
    return "text"


def as_rows(columns: Sequence[Any]) -> npt.NDArray[Any]:
    """Return columns as rows: float64 where all hold numbers, else objects."""
    if all(isinstance(column, np.ndarray) for column in columns):
        return np.column_stack(columns)
    rows = np.empty((len(columns[0]), len(columns)), dtype=object)
    for i, column in enumerate(columns):
        rows[:, i] = column
    return rows
