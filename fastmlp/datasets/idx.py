"""The IDX format of the MNIST files: a magic number, the sizes, the elements; big-endian, gzipped or not.

The format is described at the end of http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from fastmlp.arguments import check_path
from fastmlp.errors import FileFormatError
from fastmlp.files.atomic import atomic_writer
from fastmlp.files.reading import refused_by_name

_CODES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_DTYPES = {code: np.dtype(name) for code, name in _CODES.items()}
_NAMES = ", ".join(dtype.name for dtype in _DTYPES.values())
_MAX_RANK = 64  # of a NumPy array; the format itself goes to 255
_CHUNK = 1 << 20
_Stream: TypeAlias = BinaryIO | gzip.GzipFile


def read_idx(path: str | os.PathLike[str], *, expected_magic: int | None = None) -> npt.NDArray[Any]:
    """Read the array in an IDX file; whether it is gzipped is told by its content, not by its name.

    Parameters
    ----------
    path : path
        The file.
    expected_magic : int, optional
        Refuse any other magic number: 2051 for uint8 images (rank 3), 2049 for uint8 labels (rank 1). The
        number is ``256 * type code + rank``.

    Returns
    -------
    array : ndarray
        Of the file's element type in native byte order, C-contiguous and writable. Rank 0 is an array of
        shape ``()``.

    Raises
    ------
    FileFormatError
        Where the file is not IDX, has another magic number than expected, is shorter or longer than its
        header says, has more than 64 dimensions, or its gzip stream is damaged. A header that promises more
        than the file holds costs no memory: only what is really there is ever held.
    """
    with open(check_path("path", path), "rb") as plain:
        gzipped = plain.peek(2)[:2] == b"\x1f\x8b"
        if not gzipped:
            return _parse(plain, path, expected_magic)
        message = ": expected a whole gzip file, got a truncated or damaged one ({reason}); get the file again"
        with refused_by_name(path, message), gzip.GzipFile(fileobj=plain) as unzipped:
            return _parse(unzipped, path, expected_magic)


def write_idx(path: str | os.PathLike[str], array: npt.ArrayLike) -> None:
    """Write an array as an IDX file, gzipped where the name ends in ``.gz``.

    The file appears whole or not at all, and the same array always gives the same bytes (a gzip header
    without name or time).

    Parameters
    ----------
    path : path
        The file to create or to replace.
    array : array_like
        Any shape (rank 0 to 64, sizes below 2**32) of uint8, int8, int16, int32, float32 or float64.

    Raises
    ------
    TypeError
        Where the format has no such element type.
    ValueError
        Where a dimension is too large for the format.
    """
    if np.ma.is_masked(array):
        raise ValueError("array: an IDX file holds no masked values: fill them in, array.filled(value)")
    try:
        array = np.asarray(array)
    except ValueError as e:
        raise ValueError(f"array cannot be made into one of numbers: {e}") from e
    head = idx_header(array)
    body = np.asarray(array, dtype=array.dtype.newbyteorder(">"), order="C").reshape(-1).view(np.uint8)
    with atomic_writer(path) as file:
        if os.fspath(path).lower().endswith(".gz"):
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as zipped:
                zipped.write(head)
                zipped.write(body.data)
        else:
            file.write(head)
            file.write(body.data)


def idx_header(array: npt.NDArray[Any]) -> bytes:
    """Give the bytes that an IDX file has before the elements of `array`."""
    codes = [code for code, dtype in _DTYPES.items() if dtype == array.dtype.newbyteorder(">")]
    if not codes:
        raise TypeError(f"array: an IDX file holds one of {_NAMES}; got {array.dtype}: convert it with astype first")
    if any(size >= 2**32 for size in array.shape):
        raise ValueError(f"a dimension of an IDX file is below 2**32; got shape {array.shape}")
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, codes[0], array.ndim, *array.shape)


def _parse(file: _Stream, path: str | os.PathLike[str], expected_magic: int | None) -> npt.NDArray[Any]:
    magic = file.read(4)
    if len(magic) < 4:
        raise FileFormatError(f"{path}: expected an IDX magic number of 4 bytes, got {len(magic)} bytes")
    zeros, code, rank = struct.unpack(">HBB", magic)
    if zeros != 0:
        raise FileFormatError(
            f"{path}: expected an IDX file, which begins with two zero bytes, got {magic!r}; is this the right file?"
        )
    if expected_magic is not None and int.from_bytes(magic) != expected_magic:
        raise FileFormatError(
            f"{path}: expected {_describe(expected_magic)}, got {_describe(int.from_bytes(magic))}; "
            "is this the right file?"
        )
    if code not in _DTYPES:
        raise FileFormatError(f"{path}: expected an IDX type code for {_NAMES}, got 0x{code:02X}")
    if rank > _MAX_RANK:
        raise FileFormatError(f"{path}: expected at most {_MAX_RANK} dimensions, got {rank}")
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise FileFormatError(
            f"{path}: expected {4 * rank} bytes of sizes after the magic number, got {len(sizes)}; "
            "the file is truncated"
        )
    shape = struct.unpack(f">{rank}I", sizes)
    return _elements(file, path, shape, _DTYPES[code])


def _elements(
    file: _Stream, path: str | os.PathLike[str], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> npt.NDArray[Any]:
    expected = math.prod(shape) * dtype.itemsize
    body = bytearray()
    # One byte more than expected is asked for: it tells an over-long file, and makes gzip check its checksum.
    while len(body) <= expected and (chunk := file.read(min(_CHUNK, expected + 1 - len(body)))):
        body += chunk
    if len(body) != expected:
        got = f"only {len(body)}" if len(body) < expected else "more"
        raise FileFormatError(
            f"{path}: expected {expected} bytes of {dtype.name} for shape {shape}, got {got}; "
            "the file is truncated, altered or not IDX"
        )
    try:
        array = np.frombuffer(body, dtype).reshape(shape)
    except ValueError as error:  # no elements, but sizes whose product is beyond NumPy
        raise FileFormatError(f"{path}: expected a shape that NumPy can hold, got {shape}") from error
    native = dtype.newbyteorder("=")
    return array if array.dtype == native else array.byteswap(inplace=True).view(native)


def _describe(magic: int) -> str:
    code, rank = magic >> 8, magic & 0xFF
    kind = _DTYPES[code].name if code in _DTYPES else f"type code 0x{code:02X}"
    return f"the magic number {magic} ({kind}, rank {rank})"
