"""Columns of raw rows, of frames and arrays of any type: what each holds, as numbers or as categories."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DataError

Holds: TypeAlias = Literal["text", "boolean", "number"]
HOLDS: tuple[str, ...] = get_args(Holds)
MISSING = "NoneType", "NAType", "NaTType"
"""Types whose one value stands for no value, of Python and pandas, which need not be installed; NaN does so too."""
_SHOWN = 40


class Column(NamedTuple):
    """A column as it is given.

    Attributes
    ----------
    numbers : (n,) float64 array or None
        What is missing is NaN; None where the column holds categories.
    keys : list of (str or None), or None
        The category of each row, None where it is missing; None for numbers.
    holds : {"text", "boolean", "number"} or None
        What the values are; None where all are missing.
    """

    numbers: NDArray[np.float64] | None
    keys: list[str | None] | None
    holds: Holds | None


class Rows(NamedTuple):
    """Raw rows (n, I) of a frame or an array.

    Attributes
    ----------
    given : frame, or (n, I) array
    argument : str
        As which they were given, for messages.
    names : sequence of str or None
        Of the columns.
    """

    given: Any
    argument: str
    names: Sequence[str] | None

    @classmethod
    def of(cls, x: Any, argument: str, names: Sequence[str] | None) -> Rows:
        """Return rows; DataError where `x` is no table, or an array of text, in which numbers would be text too."""
        if hasattr(x, "toarray"):
            raise DataError(
                f"{argument} must be dense, since preprocess moves zeros, got {type(x).__name__}; pass "
                f"{argument}.toarray(), or use preprocess=None and scale before"
            )
        if is_frame(x):
            return cls(x, argument, names)
        try:
            array = np.asarray(x)
            if array.dtype.kind in "US" and not hasattr(x, "dtype"):
                array = np.asarray(x, dtype=object)  # NumPy has made text of the numbers in a list
        except Exception as e:  # rows of several lengths, or whatever an object's own way to become an array raises
            raise DataError(f"{argument} cannot be made into an array: {e}") from e
        if array.dtype.kind not in "biufO":
            raise DataError(
                f"{argument} must hold numbers, or objects of which each column is text, booleans or numbers, got "
                f"dtype {array.dtype}; pass a data frame, or an array of dtype=object"
            )
        if array.ndim != 2:
            raise DataError(f"{argument} must have shape (n, columns), got {array.shape}; one row is {argument}[None]")
        return cls(array, argument, names)

    @property
    def shape(self) -> tuple[int, int]:
        """How many rows, and columns."""
        rows, columns = self.given.shape
        return int(rows), int(columns)

    @property
    def matrix(self) -> NDArray[Any] | None:
        """The rows as they are, where they are an array of numbers."""
        return self.given if isinstance(self.given, np.ndarray) and self.given.dtype.kind in "iuf" else None

    def name(self, column: int) -> str:
        """Return what messages call a column."""
        if self.names is None and not isinstance(self.given, np.ndarray):
            return f"column {list(self.given.columns)[column]!r}"
        return f"column {column}" if self.names is None else f"column {self.names[column]!r}"

    def refuse(self, column: int, text: str, row: int | None = None) -> DataError:
        """Return the error of a column."""
        return DataError(f"{self.argument}: {self.name(column)} {text}", row=row)

    def column(self, at: int) -> Column:
        """Return a column; DataError where it holds dates, or values of several kinds."""
        given = self.given
        if isinstance(given, np.ndarray):
            values, declared = given[:, at], False
            if values.dtype.kind in "iuf":
                return Column(values.astype(np.float64), None, "number")
            return self._of_objects(at, values.tolist(), declared)
        if hasattr(given, "iloc"):
            series = given.iloc[:, at]
            kind = getattr(series.dtype, "kind", "O")
            declared = hasattr(series, "cat")
            if kind in "iuf" and not declared:
                return Column(np.array(series.to_numpy(dtype=np.float64, na_value=np.nan)), None, "number")
            if kind in "mM":
                raise self.refuse(at, f"holds {series.dtype}; make numbers of it, of days for example")
            return self._of_objects(at, np.asarray(series, dtype=object).tolist(), declared)
        series = given[given.columns[at]]
        if series.dtype.is_numeric():
            return Column(np.array(series.cast(float).to_numpy(), np.float64), None, "number")
        declared = str(series.dtype).startswith(("Categorical", "Enum"))
        return self._of_objects(at, series.to_list(), declared)

    def _of_objects(self, at: int, values: list[Any], declared: bool) -> Column:
        """Return a column of Python's objects: numbers are numbers, unless the frame has `declared` them categories."""
        found: dict[str, type] = {}
        for kind in set(map(type, values)):
            found.setdefault(_holds(kind) or kind.__name__, kind)
        found.pop("missing", None)
        if "number" in found and all(value != value for value in values if _holds(type(value)) == "number"):
            del found["number"]  # NaN beside text: missing
        if odd := [kind.__name__ for name, kind in found.items() if name not in HOLDS]:
            raise self.refuse(at, f"holds values of type {odd[0]}; make text or numbers of them")
        if len(found) > 1:
            raise self.refuse(
                at, f"holds values of several kinds, {' and '.join(sorted(found))}; make them all of one kind"
            )
        holds: Any = next(iter(found), None)
        if holds is None and not declared:
            return Column(np.full(len(values), np.nan), None, None)
        if holds == "number" and not declared:
            return Column(np.array([_number(value) for value in values]), None, "number")
        return Column(None, [_key(value) for value in values], holds)


def is_frame(x: Any) -> bool:
    """Return whether rows are a data frame, of pandas or polars."""
    return hasattr(x, "columns") and (hasattr(x, "iloc") or hasattr(x, "get_column"))


def _holds(kind: type) -> str | None:
    if issubclass(kind, str):
        return "text"
    if issubclass(kind, (bool, np.bool_)):
        return "boolean"
    if issubclass(kind, (Real, Decimal)):
        return "number"
    return "missing" if kind.__name__ in MISSING else None


def _is_missing(value: Any) -> bool:
    return type(value).__name__ in MISSING or (not isinstance(value, str) and bool(value != value))


def _number(value: Any) -> float:
    if _is_missing(value):
        return np.nan
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return np.inf


def _key(value: Any) -> str | None:
    """Return the name of a category: a number's is the same whatever type it comes in."""
    if isinstance(value, str):
        return str(value)
    if _is_missing(value):
        return None
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    number = _number(value)
    return str(int(number)) if number.is_integer() else repr(number)


def as_numbers(rows: Rows, at: int) -> NDArray[np.float64]:
    """Return a column that held numbers in training; booleans are 1 and 0.  DataError for text."""
    column = rows.column(at)
    if column.numbers is not None:
        return column.numbers
    assert column.keys is not None
    if column.holds == "text":
        row, text = next((i, key) for i, key in enumerate(column.keys) if key is not None)
        raise rows.refuse(at, f"held numbers in training, got the text {_quoted(text)} in row {row}", row)
    numbers = {"True": 1.0, "False": 0.0, None: np.nan}
    return np.array([numbers[key] if key in numbers else float(key or 0) for key in column.keys])


def as_keys(rows: Rows, at: int, holds: Holds | None) -> list[str | None]:
    """Return the categories of a column that held text, booleans or numbers in training; DataError for other kinds."""
    column = rows.column(at)
    if column.holds is None:
        return [None] * rows.shape[0]
    keys = column.keys
    if column.numbers is not None:
        keys = [_key(value) for value in column.numbers.tolist()]
    assert keys is not None
    if holds == column.holds or holds is None:
        return keys
    turned: dict[str | None, str | None] = {None: None}
    if holds == "boolean":
        turned |= {"1": "True", "0": "False"}
    elif holds == "number":
        turned |= {"True": "1", "False": "0"}
    wrong = next((i for i, key in enumerate(keys) if key not in turned), None)
    if wrong is None:
        return [turned[key] for key in keys]
    raise rows.refuse(
        at,
        f"held {_CALLED[holds]} in training, got {_CALLED[column.holds]}, {_quoted(keys[wrong])} in row {wrong}; make "
        f"{_CALLED[holds]} of them",
        wrong,
    )


_CALLED = {"text": "text", "boolean": "booleans", "number": "numbers"}


def _quoted(text: str | None) -> str:
    shown = str(text)
    return repr(shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}...")
