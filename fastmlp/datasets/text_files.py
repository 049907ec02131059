"""Files of text as rows of cells, whatever they were saved with: UTF-8 or UTF-16, with or without a mark, gzipped."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO, cast

from fastmlp.errors import FileFormatError

FilePath = str | os.PathLike[str]

_MARKS = {"utf-32-le": codecs.BOM_UTF32_LE, "utf-32-be": codecs.BOM_UTF32_BE, "utf-8": codecs.BOM_UTF8}
_MARKS |= {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
_SAMPLE = 4096


@contextmanager
def open_text(path: FilePath) -> Iterator[TextIO]:
    """Open a file of text, gzipped or not; byte order marks are no part of it.

    Raises
    ------
    FileFormatError
        When opened or while it is read: what cannot be decoded, with the line, a damaged gzip file, no text.
    """
    try:
        with _unpacked(path) as (file, encoding):
            # newline="" leaves line ends inside quotes alone
            text = io.TextIOWrapper(file, encoding=encoding, newline="")
            try:
                yield text
            finally:
                text.detach()
    except UnicodeDecodeError as error:
        raise _undecodable(path, error) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FileFormatError(
            f"{path}: expected a whole gzip file, got a truncated or damaged one ({error}); get the file again"
        ) from error


def records(path: FilePath, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line where each row ends, and its cells; blank lines are skipped.

    A row of one cell that is empty is one where there is one column, as pandas writes a missing value.
    """
    reader = csv.reader(file, skipinitialspace=True)
    width = 0
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if cells and (cells != [""] or width == 1):
                width = width or len(cells)
                yield reader.line_num, cells
    except csv.Error as error:
        raise FileFormatError(
            f"{path}: line {reader.line_num}: expected comma-separated values, got {error}"
        ) from error


@contextmanager
def _unpacked(path: FilePath) -> Iterator[tuple[BinaryIO, str]]:
    """Open the bytes after any byte order marks, and tell their encoding."""
    with open(path, "rb") as plain:
        if not plain.seekable():
            raise FileFormatError(
                f"{path}: expected a file, which can be read more than once, got a pipe; write what comes out of it "
                "to a file first"
            )
        head = plain.peek(4)[:4]
        if head == b"PK\x03\x04":
            raise FileFormatError(
                f"{path}: expected text, got a zip archive, as workbooks of Excel are; unpack it, or save it as CSV"
            )
        file = cast(BinaryIO, gzip.GzipFile(fileobj=plain) if head[:2] == b"\x1f\x8b" else plain)
        sample = file.read(_SAMPLE)
        marked = next((name for name, mark in _MARKS.items() if sample.startswith(mark)), None)
        encoding, start = marked or _unmarked(sample), 0
        mark = _MARKS[encoding]
        while sample[start:].startswith(mark):  # a second one is there where a program added its own
            start += len(mark)
        file.seek(start)
        yield file, encoding


def _unmarked(sample: bytes) -> str:
    """Tell UTF-16 by the zeros that it has in every other byte; everything else is UTF-8, or is refused."""
    pairs = len(sample) // 2
    low, high = sample[0 : 2 * pairs : 2].count(0), sample[1 : 2 * pairs : 2].count(0)
    if max(low, high) > 0.5 * pairs and min(low, high) < 0.1 * pairs:
        return "utf-16-le" if high > low else "utf-16-be"
    return "utf-8"


def _undecodable(path: FilePath, error: UnicodeDecodeError) -> FileFormatError:
    """Name the first line that cannot be decoded: slow, exact, and only run on a file that has one."""
    name = "UTF-8" if error.encoding.startswith("utf-8") else error.encoding.upper()
    got = error.object[error.start : error.end]
    place = ""
    if name == "UTF-8":
        with _unpacked(path) as (file, _):
            for number, line in enumerate(file, start=1):
                try:
                    line.decode()
                except UnicodeDecodeError as found:
                    got, place = line[found.start : found.end], f"line {number}: "
                    break
    return FileFormatError(f"{path}: {place}expected text in {name}, got {got!r}; save the file as UTF-8")
