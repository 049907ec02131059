"""Files of arrays: ``.npz``, ``.npy`` (memory-mapped) and IDX; nothing is unpickled."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.datasets.cells import listed
from fastmlp.datasets.idx import read_idx
from fastmlp.datasets.table import (
    Source,
    Table,
    check_classes,
    check_finite,
    classes_of,
    feature_names_of,
    whole_numbers,
)
from fastmlp.errors import DataError, FileFormatError

ARRAY_SUFFIXES = (".npy", ".idx", "-ubyte", ".idx.gz", "-ubyte.gz")
"""How the names of files end that hold one array."""


def read_npz(source: Source, target: str | int | None) -> Table:
    """Read the arrays ``x`` and ``y``, or the one that `target` names, of an archive."""
    path = source.path
    y_name = "y" if target is None else str(target)
    try:
        with open(path, "rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            wanted = ["x"] if target is None else ["x", y_name]
            if missing := [name for name in wanted if name not in arrays.files]:
                raise DataError(
                    f"{path}: expected arrays named {listed(wanted)}, got no {listed(missing)}; "
                    f"the file has {listed(arrays.files)}"
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


def read_single(source: Source, target: str | int | None) -> Table:
    """Read a file of one array, and the targets from another where `target` names it."""
    if target is None:
        return _from_arrays(source, _read_array(source.path), None)
    if isinstance(target, int) or not target.lower().endswith(ARRAY_SUFFIXES):
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


def _from_arrays(source: Source, x: npt.NDArray[Any], y: npt.NDArray[Any] | None) -> Table:
    path = source.path
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected features that are numbers, got {x.dtype}")
    if x.ndim < 2:
        raise DataError(f"{path}: expected features of shape (rows, columns), got {x.shape}")
    if 0 in x.shape:
        raise DataError(f"{path}: expected at least one row and one feature, got shape {x.shape}")
    x = x.reshape(len(x), -1)
    check_finite(path, "x", x)
    class_names = None
    if y is not None:
        if y.ndim not in (1, 2):
            raise DataError(f"{path}: expected targets of shape (rows,) or (rows, outputs), got {y.shape}")
        if len(x) != len(y):
            raise DataError(f"{path}: expected a target for each row, got {len(x)} rows and {len(y)} targets")
        y, class_names = _array_target(source, y)
    return Table(x, y, feature_names_of(source, x.shape[1]), class_names)


def _array_target(source: Source, y: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    text = y.dtype.kind == "U"
    if y.dtype.kind not in ("biufU" if y.ndim == 1 and source.task != "regression" else "biuf"):
        kinds = "numbers" if source.task == "regression" else "numbers or, in one dimension, text"
        raise DataError(f"{source.path}: expected targets that are {kinds}, got {y.dtype}")
    if not text:
        check_finite(source.path, "y", y)
    if y.ndim == 1 and (text or source.task == "classification"):
        if y.dtype.kind == "b":
            y = y.astype(np.uint8)
        distinct, codes = np.unique(y, return_inverse=True)
        if text:
            check_classes(source, distinct.tolist(), len(y), "y")
        indices, class_names = classes_of(source, [str(value) for value in distinct])
        return indices[codes], class_names
    if y.ndim == 1 and source.task == "auto":
        y = whole_numbers(y)
        return y.astype(np.float64 if y.dtype.kind == "f" else np.int64), None
    return y.astype(np.float64), None
