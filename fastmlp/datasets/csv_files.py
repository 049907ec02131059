"""CSV files: which column is what, and where exactly a file that cannot be used goes wrong."""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from fastmlp.datasets import headers, words
from fastmlp.datasets.cells import WHOLE, cure_of, is_fractional, is_missing, is_number, listed, quoted
from fastmlp.datasets.table import (
    Source,
    Table,
    check_classes,
    classes_of,
    feature_names_of,
    finite,
    whole_numbers,
)
from fastmlp.datasets.text_files import FilePath, open_text, records
from fastmlp.errors import DataError, FileFormatError

_HEADER = "if that is a header row, header=True (--header) reads it as one"
_RAW = "; columns of words and missing values are taken with raw=True (--preprocess standard)"
_COUNTED_ROWS = 10
"""From so many rows on a column that counts them is told."""


@dataclass(frozen=True)
class _Layout:
    """Where things are in a CSV file.

    Attributes
    ----------
    first : list of str
        The cells of the first row.
    header : bool or None
        Whether these are names; None where the numbers below have to tell.
    target : int or None
    features : list of int
    """

    first: list[str]
    header: bool | None
    target: int | None
    features: list[int]

    @property
    def width(self) -> int:
        return len(self.first)

    def describe(self, column: int) -> str:
        return f"column {self.first[column]!r}" if self.header else f"column {column}"


def read_csv(source: Source, target: str | int | None) -> Table:
    """Read a CSV file; `target` as of `load_table`."""
    with open_text(source.path) as file:
        layout = _layout(source, target, file)
    if not source.raw:
        return _of_numbers(source, layout)
    kinds = None if source.raw is True or len(source.raw) != len(layout.features) else list(source.raw)
    if kinds is not None and layout.header and source.header is None and source.feature_names is None:
        first = [layout.first[column] for column in layout.features]
        if any(cell in kind.known for cell, kind in zip(first, kinds, strict=True)):
            layout = replace(layout, header=False)  # of a model that knows no names, and these are its categories
    if kinds is None or all(kind.holds == "number" and not kind.known for kind in kinds):
        said = len(source.said)
        try:
            return _of_numbers(source, layout)
        except DataError:
            del source.said[said:]  # what is wrong then is told by the cells
    return _of_words(source, layout, kinds)


def _of_words(source: Source, layout: _Layout, kinds: list[words.Kind] | None) -> Table:
    """Read a file whose features may be words and miss values, cell by cell."""
    layout = replace(layout, header=bool(layout.header))
    bare = replace(layout, features=[])  # whose faults are those of the target
    lines: list[int] = []
    rows: list[list[str]] = []
    with open_text(source.path) as file:
        for line, cells in itertools.islice(records(source.path, file), int(bool(layout.header)), None):
            if (fault := _ragged(source, layout, line, cells)) is not None:
                raise fault
            lines.append(line)
            rows.append(cells)
    cells_of = list(zip(*rows, strict=True))
    columns = []
    for i, column in enumerate(layout.features):
        kind = None if kinds is None else kinds[i]
        columns.append(words.column_of(source, layout.describe(column), cells_of[column], lines, kind))
        if source.header is None and layout.header and layout.first[column] in cells_of[column]:
            source.say(
                f"the first row is read as the names of the columns, and {quoted(layout.first[column])} is in other "
                f"rows too; {headers.OTHERWISE}"
            )
    y, class_names = None, None
    if layout.target is not None:
        y, class_names = _target_of_words(source, bare, cells_of[layout.target])
    numbers = [c if isinstance(c, np.ndarray) else np.full(len(rows), np.nan) for c in columns]
    _tell_counted(source, layout, np.column_stack(numbers))
    x = words.as_rows(columns)
    if layout.header:
        return Table(x, y, tuple(layout.first[column] for column in layout.features), class_names)
    return Table(x, y, feature_names_of(source, x.shape[1]), class_names)


def _target_of_words(
    source: Source, layout: _Layout, cells: tuple[str, ...]
) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    """Return the target of a file that was read cell by cell, as `_csv_target` does."""
    if source.task == "regression":
        if (fault := _fault(source, layout)) is not None:
            raise fault
        return np.array(list(map(float, cells))), None
    places = {text: float(i) for i, text in enumerate(dict.fromkeys(cells))}
    return _csv_target(source, layout, np.array([places[cell] for cell in cells]), list(places))


def _of_numbers(source: Source, layout: _Layout) -> Table:
    """Read a file whose features are numbers."""
    table, texts = _parse(source, layout)
    if layout.header is None:
        layout, table, texts = _named(source, layout, table, texts)
    everything = layout.features == list(range(layout.width))
    x = table if everything else np.take(table, layout.features, axis=1)
    y, class_names = None, None
    if layout.target is not None:
        y, class_names = _csv_target(source, layout, table[:, layout.target], texts)
    _tell_counted(source, layout, x)
    if not layout.header:
        names = feature_names_of(source, x.shape[1])
    else:
        names = tuple(layout.first[column] for column in layout.features)
    return Table(x, y, names, class_names)


def _layout(source: Source, target: str | int | None, file: TextIO) -> _Layout:
    path = source.path
    found = list(itertools.islice(records(path, file), 2))
    if not found:
        raise DataError(f"{path}: expected rows of numbers, got an empty file")
    for line, cells in found:
        if cells is found[0][1] and len(cells) == 1 and re.search("[;\t]", cells[0]):
            raise DataError(f"{path}: expected values separated by commas, got {quoted(cells[0])}; save it with commas")
        if (
            odd := next((cell for cell in cells if re.fullmatch(r"[-+.\d]+(?:[;\t][-+.\d]*)+", cell)), None)
        ) is not None:
            raise DataError(
                f"{path}: line {line}: expected values separated by commas, got {quoted(odd)}; save it with commas "
                "between values and points in numbers"
            )
    first = found[0][1]
    second = found[1][1] if len(found) > 1 else []
    index, header = _target_and_header(source, target, first, second)
    if header and len(found) == 1:
        raise DataError(f"{path}: expected rows of numbers, got a header row only")
    if header and len(set(first)) < len(first):
        twice = next(name for i, name in enumerate(first) if first.index(name) < i)
        raise DataError(f"{path}: expected column names that differ, got {twice!r} more than once")
    features = [column for column in range(len(first)) if column != index]
    if header and source.feature_names is not None:
        places = {first[column]: column for column in features}
        if missing := [name for name in source.feature_names if name not in places]:
            raise DataError(
                f"{path}: expected the columns {listed(source.feature_names)}, got no {listed(missing)}; "
                f"the file has {listed(list(places))}"
            )
        features = [places[name] for name in source.feature_names]
    elif header and features[:1] == [0] and headers.is_index(first[0]) and len(features) > 1:
        features = features[1:]
        source.say(
            "the first column has no name and is left out, as the index that pandas and R write; give it a name in "
            "the first row to learn from it"
        )
    if not features:
        raise DataError(f"{path}: expected a column of features beside the target, got the target only")
    return _Layout(first, header, index, features)


def _target_and_header(
    source: Source, target: str | int | None, first: list[str], second: list[str]
) -> tuple[int | None, bool | None]:
    """Return the column of the target, and whether the first row holds names; None where numbers have to tell."""
    path, sure = source.path, source.header
    if sure is None and source.feature_names and set(source.feature_names) <= set(first):
        sure = True
    index: int | None = None
    if isinstance(target, str) and target in first and sure is not False:
        index = first.index(target)
        if sure or headers.is_named(first):
            return index, True
        if not WHOLE.fullmatch(target) or not -len(first) <= int(target) < len(first):
            return index, True
        if headers.is_counted(first, second, index):
            _say_names(source, first)
            return index, True
        index = None
    if target is not None:
        index = _column_index(path, target, first, sure or headers.is_named(first))
    if sure is not None:
        return index, sure
    others = first if index is None else first[:index] + first[index + 1 :]
    if headers.is_named(others):
        return index, True
    guessed = headers.is_counted(first, second, index) or (not all(map(is_number, others)) and headers.is_mixed(others))
    if index is not None and source.task == "regression" and not is_number(first[index]):
        guessed |= not is_missing(first[index]) and headers.is_scale(others)
    if guessed:
        _say_names(source, first)
        return index, True
    return index, None if all(map(is_number, others)) else False


def _say_names(source: Source, first: list[str]) -> None:
    source.say(f"the first row ({listed(first[:3])}, ...) is read as the names of the columns; {headers.OTHERWISE}")


def _named(
    source: Source, layout: _Layout, table: npt.NDArray[np.float64], texts: list[str]
) -> tuple[_Layout, npt.NDArray[np.float64], list[str]]:
    """Settle by the numbers whether the first row holds names, and take it away then."""
    target, others = layout.target, np.take(table, layout.features, axis=1)
    named = False
    if target is None or not texts or is_number(texts[0]):
        named = headers.is_apart(others)
    elif not is_missing(texts[0]):
        cells = [layout.first[column] for column in layout.features]
        column = layout.describe(target)
        if len(texts) > 1 and all(map(is_number, texts[1:])) and table[1:, target].all():
            named = headers.is_scale(cells)
            if not named and source.class_names is None:
                raise DataError(
                    f"{source.path}: expected numbers in {column}, got {quoted(texts[0])} in the first row and only "
                    f"there; {_HEADER}"
                )
        else:
            named = headers.is_title(texts, table[:, target], cells, others)
    if not named:
        return replace(layout, header=False), table, texts
    _say_names(source, layout.first)
    layout = replace(layout, header=True)
    if source.feature_names is not None:
        raise DataError(
            f"{source.path}: expected the columns {listed(source.feature_names)}, got {listed(layout.first)}; "
            f"{headers.OTHERWISE}"
        )
    table = table[1:]
    if target is not None and texts and not table[:, target].size == 0 and table[:, target].all():
        table[:, target] -= 1  # the first text was the name
        texts = texts[1:]
    return layout, np.ascontiguousarray(table), texts


def _column_index(path: str | os.PathLike[str], target: str | int, first: list[str], header: bool) -> int:
    try:
        index = int(target)
    except ValueError:
        got = f"the columns {listed(first)}" if header else "no header row; give its index from 0"
        raise DataError(f"{path}: expected a target column {target!r}, got {got}") from None
    if not -len(first) <= index < len(first):
        raise DataError(f"{path}: expected a target among {len(first)} columns, got column {index}")
    return index % len(first)


def _parse(source: Source, layout: _Layout) -> tuple[npt.NDArray[np.float64], list[str]]:
    """Read all columns into one array, and the texts that a target which is no regression's holds.

    In the array such a target stands as indices into the texts, ignored columns as 0.
    """
    # Columns are ignored here, not by usecols: numpy.loadtxt would then let ragged rows pass.
    used = {*layout.features, layout.target}
    converters: dict[int | str, Callable[[str], Any]] = {
        column: lambda _: 0.0 for column in range(layout.width) if column not in used
    }
    codes: dict[str, int] = {}
    if layout.target is not None and source.task != "regression":
        converters[layout.target] = lambda text: codes.setdefault(text.strip(), len(codes))

    def numbers(file: TextIO) -> npt.NDArray[np.float64]:
        codes.clear()
        return np.loadtxt(file, delimiter=",", quotechar='"', comments=None, ndmin=2, converters=converters or None)

    try:
        with open_text(source.path) as file:
            if layout.header:
                next(records(source.path, file))
            table = numbers(file)
        whole = table.shape[1] == layout.width and not any(text.startswith('"') for text in codes)
    except ValueError as error:
        if isinstance(error, (FileFormatError, UnicodeDecodeError)):
            raise
        whole = False
    if not whole:
        # what rows and cells are is told by `records`; numpy.loadtxt reads the same where nothing is out of the way
        if (fault := _fault(source, layout)) is not None:
            raise fault
        table = numbers(_rewritten(source, layout))
    if "" in codes or not finite(table):
        fault = _fault(source, layout)
        if fault is not None:
            raise fault
    return table, list(codes)


def _rewritten(source: Source, layout: _Layout) -> TextIO:
    """Return the rows of a file in the plainest way of writing them."""
    text = io.StringIO(newline="")
    with open_text(source.path) as file:
        rows = records(source.path, file)
        csv.writer(text).writerows(cells for _, cells in itertools.islice(rows, int(bool(layout.header)), None))
    text.seek(0)
    return text


def _csv_target(
    source: Source, layout: _Layout, codes: npt.NDArray[np.float64], texts: list[str]
) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    if source.task == "regression":
        return codes.copy(), None
    assert layout.target is not None
    column = layout.describe(layout.target)
    numbers = [is_number(text) for text in texts]
    rows = codes.astype(np.intp)
    if source.task == "auto" and all(numbers):
        convert = int if all(map(WHOLE.fullmatch, texts)) else float
        values = np.array([convert(text) for text in texts])
        if not finite(values):
            raise _fault(source, layout, numeric_target=True) or DataError(f"{source.path}: not finite")
        return whole_numbers(values)[rows], None
    if not all(numbers) and any(is_fractional(text) and not is_missing(text) for text in texts):
        # prices with an "N/A" among them, rather than classes
        raise _fault(source, layout, numeric_target=True) or DataError(f"{source.path}: text among numbers")
    if set(filter(is_missing, texts)) - set(source.class_names or ()) and (fault := _fault(source, layout)) is not None:
        raise fault
    if layout.header and not headers.is_named(layout.first) and layout.first[layout.target] in texts:
        raise DataError(
            f"{source.path}: expected a name in the first row of {column}, got a class that is in other rows too; give "
            f"the target by its index from 0, {layout.target}"
        )
    if (broken := next((text for text in texts if "\n" in text), None)) is not None:
        raise DataError(
            f"{source.path}: expected a class in {column}, got several lines, {quoted(broken)}; is a quote not closed?"
        )
    check_classes(source, texts, len(codes), column)
    indices, class_names = classes_of(source, texts)
    return indices[rows], class_names


def line_of(path: FilePath, row: int, rows: int) -> int:
    """Return the line of a CSV file where a row of its table of so many rows ends, both from 0; the line is from 1."""
    with open_text(path) as file:
        # counted from the end, since a header may stand before them
        return [line for line, _ in records(path, file)][row - rows]


def _tell_counted(source: Source, layout: _Layout, x: npt.NDArray[np.float64]) -> None:
    """Tell of a column of features that counts the rows."""
    rows, columns = x.shape
    if rows < _COUNTED_ROWS or columns < 2 or source.feature_names is not None:
        return
    for position in np.flatnonzero((x[-1] - x[0] == rows - 1) & ((x[0] == 0) | (x[0] == 1))):
        if (np.diff(x[:, position]) == 1).all():
            source.say(
                f"{layout.describe(layout.features[position])} counts the rows ({x[0, position]:g}, "
                f"{x[1, position]:g}, ...) and is learned from; remove it from the file if it is an index"
            )


def _ragged(source: Source, layout: _Layout, line: int, cells: list[str]) -> DataError | None:
    if len(cells) == layout.width:
        return None
    cure = "; a value with a comma in it needs quotes around it" if len(cells) > layout.width else ""
    return DataError(f"{source.path}: line {line}: expected {layout.width} cells, got {len(cells)}{cure}")


def _fault(source: Source, layout: _Layout, numeric_target: bool = False) -> DataError | None:
    """Find the first cell that makes a CSV file unusable: slow, exact, and only run on one that is."""
    path = source.path
    numeric = set(layout.features)
    if layout.target is not None and (numeric_target or source.task == "regression"):
        numeric.add(layout.target)
    known = source.class_names or ()
    with open_text(path) as file:
        rows = records(path, file)
        if layout.header:
            next(rows)
        for number, (line, cells) in enumerate(rows):
            if (ragged := _ragged(source, layout, line, cells)) is not None:
                return ragged
            for column, cell in enumerate(cells):
                place = f"{path}: line {line}, {layout.describe(column)}"
                raw = "" if column == layout.target or source.raw or source.feature_names is not None else _RAW
                if not cell and (column in numeric or column == layout.target):
                    return DataError(f"{place}: expected a value, got an empty cell{raw}")
                missing = ", which stands for a missing value: fill it in or remove the row"
                if column == layout.target and column not in numeric and is_missing(cell) and cell not in known:
                    cure = ", or give it another name if it is a class"
                    return DataError(f"{place}: expected a class, got {quoted(cell)}{missing}{cure}")
                if column not in numeric:
                    continue
                if not is_number(cell):
                    cure = missing if is_missing(cell) else cure_of(cell)
                    if not cure and not layout.header and number == 0:
                        cure = f"; {_HEADER}"
                    return DataError(f"{place}: expected a number, got {quoted(cell)}{cure}{raw}")
                if not math.isfinite(float(cell)):
                    return DataError(f"{place}: expected a finite number, got {quoted(cell)}")
    return None
