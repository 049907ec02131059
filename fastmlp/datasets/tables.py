"""What the command line reads: CSV, ``.npz``, ``.npy`` and IDX files as features, targets and their names."""

from __future__ import annotations

import csv
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmlp.datasets.idx import read_idx
from fastmlp.errors import DataError, FileFormatError

Task: TypeAlias = Literal["auto", "classification", "regression"]

_ARRAY_SUFFIXES = (".npy", ".idx", "-ubyte", ".idx.gz", "-ubyte.gz")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")  # what always fits in an int64
_MISSING = {"", "?", "-", "na", "n/a", "null", "none"}  # a first row with one of these can still be data
_SCAN = 1 << 22  # elements looked at at a time, so that a mapped file never is in memory as a whole


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
        return None if self.feature_names == _made_up_names(len(self.feature_names)) else self.feature_names


def load_table(
    path: str | os.PathLike[str],
    *,
    target: str | int | None = None,
    task: Task = "auto",
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Table:
    """Read a table of numbers with, where asked for, a target for each row.

    The name's ending tells the format: ``.csv`` (UTF-8, separated by commas), ``.npz`` (arrays ``x`` and
    ``y``), ``.npy``, or IDX (``.idx``, ``-ubyte``; gzipped with ``.gz`` after it). Nothing is unpickled.

    Parameters
    ----------
    path : path
        The file.
    target : str or int, optional
        CSV: the target column, by its name in the header row or its index from 0 (negative ones count from
        the last column; an index as text does, if no column has that name). Without it every column is a
        feature and `y` is None. NPZ: the array to take as `y` instead of ``y``, which may be missing if
        `target` is not given. NPY and IDX: the file with the targets, itself NPY or IDX.
    task : {"auto", "classification", "regression"}
        What the targets are. "classification": text or whole numbers, that become indices into `class_names`
        (sorted, numbers by value). "regression": float64. "auto": text becomes classes, whole numbers stay
        what they are (int64, no `class_names`: they may be labels or counts), other numbers are float64.
    feature_names : sequence of str, optional
        The columns to take from a CSV file, in this order; others are ignored, whatever they hold. In a file
        without names only their number is checked. Usually those of a saved model.
    class_names : sequence of str, optional
        The classes, usually those of a saved model: targets are looked up in them rather than sorted anew, so
        that an index means the same class even if the file lacks some. Implies "classification".

    Returns
    -------
    table : Table
        At least one row and one feature.

    Raises
    ------
    FileFormatError
        Where the file is not of the format that its name says, is truncated or damaged.
    DataError
        Where it can be read but not used: no rows, ragged rows, text or nothing where a number is expected,
        NaN or infinity (each with its place), a missing column or array (with those that are there), an
        unknown class, the wrong rank, more or fewer targets than rows.
    OSError
        FileNotFoundError and its like, as Python raises them.

    Notes
    -----
    The first row of a CSV file is a header row if it has a cell that is text, and no number but whole ones
    such as 0, 1, 2 (a target given by index does not count). Features of a ``.npy`` file are scanned for NaN
    once, in pieces, and never copied.
    """
    if class_names is not None:
        task = "classification"
    source = _Source(path, task, feature_names, class_names)
    name = os.fspath(path).lower()
    if name.endswith(".csv"):
        return _read_csv(source, target)
    if name.endswith(".npz"):
        return _read_npz(source, target)
    if name.endswith(_ARRAY_SUFFIXES):
        return _read_single(source, target)
    raise FileFormatError(
        f"{path}: expected a name that ends in .csv, .npz, .npy, .idx or -ubyte (IDX, also with .gz), "
        f"got {Path(path).name!r}"
    )


@dataclass(frozen=True)
class _Source:
    """What `load_table` was asked for."""

    path: str | os.PathLike[str]
    task: Task
    feature_names: Sequence[str] | None
    class_names: Sequence[str] | None


# --- CSV --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Where things are in a CSV file; `names` are those of all its columns, None without a header row."""

    width: int
    names: list[str] | None
    target: int | None
    features: list[int]

    def describe(self, column: int) -> str:
        return f"column {column}" if self.names is None else f"column {self.names[column]!r}"


def _read_csv(source: _Source, target: str | int | None) -> Table:
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
        names = _feature_names(source, x.shape[1])
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


def _layout(source: _Source, target: str | int | None, records: Iterator[tuple[int, list[str]]]) -> _Layout:
    path = source.path
    _, first = next(records, (0, []))
    if not first:
        raise DataError(f"{path}: expected rows of numbers, got an empty file")
    if len(first) == 1 and re.search("[;\t]", first[0]):
        raise DataError(f"{path}: expected values separated by commas, got {_quote(first[0])}; save it with commas")
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
                f"{path}: expected the columns {_list(source.feature_names)}, got no {_list(missing)}; "
                f"the file has {_list(list(places))}"
            )
        features = [places[name] for name in source.feature_names]
    return _Layout(len(first), first if header else None, index, features)


def _is_header(cells: list[str]) -> bool:
    names = [cell for cell in cells if not _is_number(cell) and cell.lower() not in _MISSING]
    return bool(names) and all(cell.isdecimal() for cell in cells if _is_number(cell))


def _column_index(path: str | os.PathLike[str], target: str | int, first: list[str], header: bool) -> int:
    try:
        index = int(target)
    except ValueError:
        got = f"the columns {_list(first)}" if header else "no header row; give its index from 0"
        raise DataError(f"{path}: expected a target column {target!r}, got {got}") from None
    if not -len(first) <= index < len(first):
        raise DataError(f"{path}: expected a target among {len(first)} columns, got column {index}")
    return index % len(first)


def _parse_csv(source: _Source, layout: _Layout, file: IO[str]) -> tuple[npt.NDArray[np.float64], list[str]]:
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
    if table.shape[1] != layout.width or "" in codes or not _finite(table):
        raise _fault(source, layout) or FileFormatError(f"{source.path}: expected {layout.width} columns")
    return table, list(codes)


def _csv_target(
    source: _Source, layout: _Layout, codes: npt.NDArray[np.float64], texts: list[str]
) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    if source.task == "regression":
        return codes.copy(), None
    column = layout.describe(layout.target or 0)
    numbers = [_is_number(text) for text in texts]
    if layout.names is None and not numbers[0] and len(texts) > 1 and all(numbers[1:]) and codes[1:].all():
        raise DataError(
            f"{source.path}: expected numbers in {column}, got {_quote(texts[0])} in the first row and only "
            "there; if that is a header row, give the target by its name"
        )
    rows = codes.astype(np.intp)
    if source.task == "auto" and all(numbers):
        convert = int if all(map(_WHOLE.fullmatch, texts)) else float
        values = np.array([convert(text) for text in texts])
        if not _finite(values):
            raise _fault(source, layout, numeric_target=True) or DataError(f"{source.path}: not finite")
        return values[rows], None
    if not all(numbers) and any(map(_is_fractional, texts)):
        # prices with an "N/A" among them, rather than classes
        raise _fault(source, layout, numeric_target=True) or DataError(f"{source.path}: text among numbers")
    if (broken := next((text for text in texts if "\n" in text), None)) is not None:
        raise DataError(
            f"{source.path}: expected a class in {column}, got several lines, {_quote(broken)}; is a quote not closed?"
        )
    indices, class_names = _classes(source, texts)
    return indices[rows], class_names


def _fault(source: _Source, layout: _Layout, numeric_target: bool = False) -> DataError | None:
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
                if not _is_number(cell):
                    return DataError(f"{place}: expected a number, got {_quote(cell)}")
                if not math.isfinite(float(cell)):
                    return DataError(f"{place}: expected a finite number, got {_quote(cell)}")
    return None


# --- NumPy and IDX ----------------------------------------------------------------------------------------


def _read_npz(source: _Source, target: str | int | None) -> Table:
    path = source.path
    y_name = "y" if target is None else str(target)
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            wanted = ["x"] if target is None else ["x", y_name]
            if missing := [name for name in wanted if name not in arrays.files]:
                raise DataError(
                    f"{path}: expected arrays named {_list(wanted)}, got no {_list(missing)}; "
                    f"the file has {_list(arrays.files)}"
                )
            x = _native(arrays["x"])
            y = _native(arrays[y_name]) if y_name in arrays.files else None
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{path}: expected arrays that fit into memory, got {error}; save x as .npy, which stays on the disk"
        ) from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise _numpy_error(path, error) from error
    return _from_arrays(source, x, y)


def _read_single(source: _Source, target: str | int | None) -> Table:
    if target is None:
        return _from_arrays(source, _read_array(source.path), None)
    if isinstance(target, int) or not target.lower().endswith(_ARRAY_SUFFIXES):
        raise DataError(
            f"{source.path}: expected as target another .npy or IDX file, since this one holds one array; "
            f"got {target!r}"
        )
    return _from_arrays(source, _read_array(source.path), _native(_read_array(target)))


def _read_array(path: str | os.PathLike[str]) -> npt.NDArray[Any]:
    if not os.fspath(path).lower().endswith(".npy"):
        return read_idx(path)
    try:
        array = np.lib.format.open_memmap(os.fspath(path), mode="r")
    except (ValueError, EOFError, OverflowError) as error:
        raise _numpy_error(path, error) from error
    expected, size = array.offset + array.nbytes, os.path.getsize(path)
    if array.size and size != expected:
        raise FileFormatError(f"{path}: expected {expected} bytes for shape {array.shape}, got {size}")
    return array


def _numpy_error(path: str | os.PathLike[str], error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{path}: expected a whole NumPy file of numbers, got one that cannot be read ({error}); "
        "write it with numpy.save or numpy.savez, without Python objects"
    )


def _native(array: object) -> npt.NDArray[Any]:
    if not isinstance(array, np.ndarray):  # an archive's member of another kind comes as bytes
        raise ValueError(f"expected an array, got {array!r:.40}")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="))


def _from_arrays(source: _Source, x: npt.NDArray[Any], y: npt.NDArray[Any] | None) -> Table:
    path = source.path
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected features that are numbers, got {x.dtype}")
    if x.ndim < 2:
        raise DataError(f"{path}: expected features of shape (rows, columns), got {x.shape}")
    if 0 in x.shape:
        raise DataError(f"{path}: expected at least one row and one feature, got shape {x.shape}")
    x = x.reshape(len(x), -1)
    _check_finite(path, "x", x)
    class_names = None
    if y is not None:
        if y.ndim not in (1, 2):
            raise DataError(f"{path}: expected targets of shape (rows,) or (rows, outputs), got {y.shape}")
        if len(x) != len(y):
            raise DataError(f"{path}: expected a target for each row, got {len(x)} rows and {len(y)} targets")
        y, class_names = _array_target(source, y)
    return Table(x, y, _feature_names(source, x.shape[1]), class_names)


def _array_target(source: _Source, y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    text = y.dtype.kind == "U"
    if y.dtype.kind not in ("biufU" if y.ndim == 1 and source.task != "regression" else "biuf"):
        kinds = "numbers" if source.task == "regression" else "numbers or, in one dimension, text"
        raise DataError(f"{source.path}: expected targets that are {kinds}, got {y.dtype}")
    if not text:
        _check_finite(source.path, "y", y)
    if y.ndim == 1 and (text or source.task == "classification"):
        if y.dtype.kind == "b":
            y = y.astype(np.uint8)
        distinct, codes = np.unique(y, return_inverse=True)
        indices, class_names = _classes(source, [str(value) for value in distinct])
        return indices[codes], class_names
    integer = y.dtype.kind != "f" and y.ndim == 1 and source.task == "auto"
    return y.astype(np.int64 if integer else np.float64), None


def _check_finite(path: str | os.PathLike[str], name: str, array: npt.NDArray[Any]) -> None:
    if array.dtype.kind != "f":
        return
    rows = max(1, _SCAN // max(1, math.prod(array.shape[1:])))
    for first in range(0, len(array), rows):
        finite = np.isfinite(array[first : first + rows])
        if not finite.all():
            place = np.argwhere(~finite)[0]
            place[0] += first
            index = tuple(map(int, place))
            raise DataError(
                f"{path}: expected finite numbers, got {array[index]} at {name}[{', '.join(map(str, index))}]"
            )


# --- Both -------------------------------------------------------------------------------------------------


def _made_up_names(count: int) -> tuple[str, ...]:
    return tuple(f"x{column}" for column in range(count))


def _feature_names(source: _Source, count: int) -> tuple[str, ...]:
    if source.feature_names is None:
        return _made_up_names(count)
    if len(source.feature_names) != count:
        raise DataError(f"{source.path}: expected {len(source.feature_names)} features, got {count}")
    return tuple(source.feature_names)


def _classes(source: _Source, texts: list[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Give the index of each text's class, and the names of the classes."""
    texts = [re.sub(r"(?<=[0-9])\.0*$", "", text) if _is_number(text) else text for text in texts]  # 3.0 is 3
    if source.class_names is not None:
        names = tuple(source.class_names)
    elif (odd := next(filter(_is_fractional, texts), None)) is not None:
        raise DataError(
            f"{source.path}: expected classes, which are text or whole numbers, got {odd!r}; "
            'is it a regression (task="regression")?'
        )
    elif all(map(_WHOLE.fullmatch, texts)):
        names = tuple(sorted(set(texts), key=lambda text: (int(text), text)))
    else:
        names = tuple(sorted(set(texts)))
    places = {name: index for index, name in enumerate(names)}
    if (unknown := next((text for text in texts if text not in places), None)) is not None:
        raise DataError(f"{source.path}: expected one of the classes {_list(names)}, got {_quote(unknown)}")
    return np.array([places[text] for text in texts], dtype=np.int64), names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text  # float() takes more than a file should hold


def _is_fractional(text: str) -> bool:
    return _is_number(text) and _WHOLE.fullmatch(text) is None


def _finite(array: npt.NDArray[Any]) -> bool:
    rows = max(1, _SCAN // max(1, math.prod(array.shape[1:])))
    return all(bool(np.isfinite(array[first : first + rows]).all()) for first in range(0, len(array), rows))


def _quote(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:12]))
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"
