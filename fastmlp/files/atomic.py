"""Files that are either the old one or the whole new one, whatever happens in between."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` when the block ends without an error.

    What is written goes to a temporary file in the same folder, which is flushed to the disk and then renamed
    over `path`. Until then `path` keeps its old content; a process killed on the way leaves at most a file
    ``.NAME.*.tmp`` beside it. The new file has the permissions that the umask gives to any new file; a
    symbolic link stays a link, its target is replaced.

    Parameters
    ----------
    path : path
        The file to create or to replace; its folder must exist.

    Yields
    ------
    file : binary file
        Open for writing, seekable.

    Raises
    ------
    OSError
        Before anything is written where the folder is missing or not writable, or `path` is there and is not
        a regular file; or where the disk refuses the data. It names `path`.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        # os.replace would put a regular file in the place of a device such as /dev/null
        raise OSError(f"{path}: expected a regular file or none; a folder, device or pipe cannot be replaced")
    # 40 characters of the name, so that a name as long as the file system allows leaves room for the rest
    temporary = target.with_name(f".{target.name[:40]}.{secrets.token_hex(6)}.tmp")
    try:
        file = open(temporary, "xb")
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise _named(error, path, temporary) from error
    _sync_folder(target.parent)


def _named(error: OSError, path: str | os.PathLike[str], temporary: Path) -> OSError:
    """Return an error with the name of the file that was to be written, where it names the temporary one or none."""
    if error.filename not in (None, temporary, os.fspath(temporary)):
        return error
    if error.errno is None:  # such as NumPy's, of a disk that is full
        return type(error)(f"{os.fspath(path)}: {error}")
    return OSError(error.errno, error.strerror, os.fspath(path))


def _sync_folder(folder: Path) -> None:
    # The rename itself survives a power cut only once the folder is on the disk. Not every system can do that
    # (Windows opens no folders, some network file systems refuse), and the file is whole either way.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
