"""CSV files: which row is a header, which column is what, and where exactly one that cannot be used goes wrong."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastmlp.datasets.table import (
    WHOLE,
    Source,
    Table,
    classes_of,
    feature_names_of,
    finite,
    is_fractional,
    is_number,
    listed,
    quoted,
)
from fastmlp.errors import DataError, FileFormatError

_MISSING = {"", "?", "-", "na", "n/a", "null", "none"}  # a first row with one of these can still be data


@dataclass(frozen=True)
class _Layout:
    """Where things are in a CSV file; `names` are those of all its columns, None without a header row."""

    width: int
    names: list[str] | None
    target: int | None
    features: list[int]

    def describe(self, column: int) -> str:
        return f"column {column}" if self.names is None else f"column {self.names[column]!r}"


def read_csv(source: Source, target: str | int | None) -> Table:
    """Read a CSV file; `target` as of `load_table`."""
    path = source.path
    # newline="" leaves line ends inside quotes alone; utf-8-sig drops a byte order mark
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            layout = _layout(source, target, _records(path, file))
            file.seek(0)
            table, texts = _parse_csv(source, layout, file)
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"{path}: expected text in UTF-8, got {error.object[error.start : error.end]!r}; save the file as UTF-8"
            ) from error
    everything = layout.features == list(range(layout.width))
    x = table if everything else np.take(table, layout.features, axis=1)
    y, class_names = None, None
    if layout.target is not None:
        y, class_names = _csv_target(source, layout, table[:, layout.target], texts)
    if layout.names is None:
        names = feature_names_of(source, x.shape[1])
    else:
        names = tuple(layout.names[column] for column in layout.features)
    return Table(x, y, names, class_names)


def _records(path: str | os.PathLike[str], file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line where each row ends, and its cells; blank lines are skipped."""
    reader = csv.reader(file)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise FileFormatError(
            f"{path}: line {reader.line_num}: expected comma-separated values, got {error}"
        ) from error


def _layout(source: Source, target: str | int | None, records: Iterator[tuple[int, list[str]]]) -> _Layout:
    path = source.path
    _, first = next(records, (0, []))
    if not first:
        raise DataError(f"{path}: expected rows of numbers, got an empty file")
    if len(first) == 1 and re.search("[;\t]", first[0]):
        raise DataError(f"{path}: expected values separated by commas, got {quoted(first[0])}; save it with commas")
    header = _is_header(first)
    index: int | None = None
    if isinstance(target, str) and header and target in first:
        index = first.index(target)
    elif target is not None:
        index = _column_index(path, target, first, header)
        header = _is_header(first[:index] + first[index + 1 :])
    if next(records if header else iter([first]), None) is None:
        raise DataError(f"{path}: expected rows of numbers, got a header row only")
    if header and (twice := next((name for name in first if first.count(name) > 1), None)) is not None:
        raise DataError(f"{path}: expected column names that differ, got {twice!r} more than once")
    features = [column for column in range(len(first)) if column != index]
    if not features:
        raise DataError(f"{path}: expected a column of features beside the target, got the target only")
    if header and source.feature_names is not None:
        places = {first[column]: column for column in features}
        if missing := [name for name in source.feature_names if name not in places]:
            raise DataError(
                f"{path}: expected the columns {listed(source.feature_names)}, got no {listed(missing)}; "
                f"the file has {listed(list(places))}"
            )
        features = [places[name] for name in source.feature_names]
    return _Layout(len(first), first if header else None, index, features)


def _is_header(cells: list[str]) -> bool:
    names = [cell for cell in cells if not is_number(cell) and cell.lower() not in _MISSING]
    return bool(names) and all(cell.isdecimal() for cell in cells if is_number(cell))


def _column_index(path: str | os.PathLike[str], target: str | int, first: list[str], header: bool) -> int:
    try:
        index = int(target)
    except ValueError:
        got = f"the columns {listed(first)}" if header else "no header row; give its index from 0"
        raise DataError(f"{path}: expected a target column {target!r}, got {got}") from None
    if not -len(first) <= index < len(first):
        raise DataError(f"{path}: expected a target among {len(first)} columns, got column {index}")
    return index % len(first)


def _parse_csv(source: Source, layout: _Layout, file: IO[str]) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Read all columns into one array, and the texts that a target which is no regression's holds.

    In the array such a target stands as indices into the texts, ignored columns as 0.
    """
    # Columns are ignored here, not by usecols: numpy.loadtxt would then let ragged rows pass.
    converters: dict[int | str, Callable[[str], Any]] = {
        column: lambda _: 0.0
        for column in range(layout.width)
        if column not in layout.features and column != layout.target
    }
    codes: dict[str, int] = {}
    if layout.target is not None and source.task != "regression":
        converters[layout.target] = lambda text: codes.setdefault(text.strip(), len(codes))
    if layout.names is not None:
        next(_records(source.path, file))
    try:
        table = np.loadtxt(file, delimiter=",", quotechar='"', comments=None, ndmin=2, converters=converters or None)
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise _fault(source, layout) or FileFormatError(f"{source.path}: {error}") from error
    if table.shape[1] != layout.width or "" in codes or not finite(table):
        raise _fault(source, layout) or FileFormatError(f"{source.path}: expected {layout.width} columns")
    return table, list(codes)


def _csv_target(
    source: Source, layout: _Layout, codes: npt.NDArray[np.float64], texts: list[str]
) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    if source.task == "regression":
        return codes.copy(), None
    column = layout.describe(layout.target or 0)
    numbers = [is_number(text) for text in texts]
    if layout.names is None and not numbers[0] and len(texts) > 1 and all(numbers[1:]) and codes[1:].all():
        raise DataError(
            f"{source.path}: expected numbers in {column}, got {quoted(texts[0])} in the first row and only "
            "there; if that is a header row, give the target by its name"
        )
    rows = codes.astype(np.intp)
    if source.task == "auto" and all(numbers):
        convert = int if all(map(WHOLE.fullmatch, texts)) else float
        values = np.array([convert(text) for text in texts])
        if not finite(values):
            raise _fault(source, layout, numeric_target=True) or DataError(f"{source.path}: not finite")
        return values[rows], None
    if not all(numbers) and any(map(is_fractional, texts)):
        # prices with an "N/A" among them, rather than classes
        raise _fault(source, layout, numeric_target=True) or DataError(f"{source.path}: text among numbers")
    if (broken := next((text for text in texts if "\n" in text), None)) is not None:
        raise DataError(
            f"{source.path}: expected a class in {column}, got several lines, {quoted(broken)}; is a quote not closed?"
        )
    indices, class_names = classes_of(source, texts)
    return indices[rows], class_names


def _fault(source: Source, layout: _Layout, numeric_target: bool = False) -> DataError | None:
    """Find the first cell that makes a CSV file unusable: slow, exact, and only run on one that is."""
    path = source.path
    numeric = set(layout.features)
    if layout.target is not None and (numeric_target or source.task == "regression"):
        numeric.add(layout.target)
    with open(path, encoding="utf-8-sig", newline="") as file:
        records = _records(path, file)
        if layout.names is not None:
            next(records)
        for line, cells in records:
            if len(cells) != layout.width:
                return DataError(f"{path}: line {line}: expected {layout.width} cells, got {len(cells)}")
            for column, cell in enumerate(cells):
                place = f"{path}: line {line}, {layout.describe(column)}"
                if not cell and (column in numeric or column == layout.target):
                    return DataError(f"{place}: expected a value, got an empty cell")
                if column not in numeric:
                    continue
                if not is_number(cell):
                    return DataError(f"{place}: expected a number, got {quoted(cell)}")
                if not math.isfinite(float(cell)):
                    return DataError(f"{place}: expected a finite number, got {quoted(cell)}")
    return None
