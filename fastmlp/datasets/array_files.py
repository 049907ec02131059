"""Files of arrays: ``.npz``, ``.npy`` (memory-mapped) and IDX; nothing is unpickled."""

from __future__ import annotations

import io
import math
import os
import zipfile
from contextlib import AbstractContextManager
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
from fastmlp.errors import DataError
from fastmlp.files.reading import refused_by_name

ARRAY_SUFFIXES = (".npy", ".idx", "-ubyte", ".idx.gz", "-ubyte.gz")
"""How the names of files end that hold one array."""
_HEAD = 1 << 16
"""Bytes in which a header ends that NumPy reads."""
_DEFLATE = 1032
"""Bytes that one byte of deflated data can stand for."""


def read_npz(source: Source, target: str | int | None) -> Table:
    """Read the arrays ``x`` and ``y``, or the one that `target` names, of an archive."""
    path = source.path
    y_name = "y" if target is None else str(target)
    with _numpy(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        with np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays:
            wanted = ["x"] if target is None else ["x", y_name]
            if missing := [name for name in wanted if name not in arrays.files]:
                raise DataError(
                    f"{path}: expected arrays named {listed(wanted)}, got no {listed(missing)}; "
                    f"the file has {listed(arrays.files)}"
                )
            x = _member(arrays, "x", size)
            y = _member(arrays, y_name, size) if y_name in arrays.files else None
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
    with _numpy(path):
        with open(path, "rb") as file:
            _check_size(file.read(_HEAD), os.fstat(file.fileno()).st_size)
        return np.lib.format.open_memmap(os.fspath(path), mode="r")


def _numpy(path: str | os.PathLike[str]) -> AbstractContextManager[None]:
    return refused_by_name(
        path,
        ": expected a whole NumPy file of numbers, got one that cannot be read ({reason}); write it with numpy.save or "
        "numpy.savez, without Python objects",
        out_of_memory="save x as .npy, which stays on the disk",
    )


def _member(arrays: np.lib.npyio.NpzFile, name: str, size: int) -> npt.NDArray[Any]:
    """Return an array of an archive of that many bytes, after looking whether it can be as large as it says."""
    archive = arrays.zip
    assert archive is not None
    file_name = name if name in archive.namelist() else f"{name}.npy"
    info = archive.getinfo(file_name)
    ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE}.get(info.compress_type)
    if ratio is None:  # LZMA allocates what the file asks for, up to 4 GiB, and has no bound like that of deflated data
        raise ValueError(f"{file_name} is compressed by method {info.compress_type}, which numpy.savez never writes")
    if info.compress_size > size or info.file_size > ratio * info.compress_size:
        raise ValueError(f"{file_name} is said to hold {info.file_size} bytes, in an archive of {size}")
    with archive.open(info) as member:
        _check_size(member.read(_HEAD), info.file_size)
    return _native(arrays[name])


def _check_size(head: bytes, size: int) -> None:
    """Raise ValueError unless an array has as many bytes as its header says, before NumPy allocates them."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(stream)
    expected = stream.tell() + math.prod(shape) * dtype.itemsize
    if not dtype.hasobject and (expected != size or min(shape, default=0) < 0):
        raise ValueError(f"expected {expected} bytes for shape {shape}, got {size}")


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
    if y.ndim == 2 and y.shape[1] == 1 and y.dtype.kind in "biu":
        y = y.reshape(-1)  # labels in a column, as `MLP.fit` takes them
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
