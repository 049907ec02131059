"""Files that are either the old one or the whole new one, whatever happens in between."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastmlp.arguments import check_path

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_SHOWN = 40
_TEMPORARY = re.compile(rf"\..{{1,{_SHOWN}}}\.[0-9a-f]{{12}}\.tmp", re.DOTALL)
_tidied: set[Path] = set()
"""Files whose leftovers this process has removed."""


@contextmanager
def atomic_writer(path: str | os.PathLike[str], *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Open a binary file that takes the place of `path` when the block ends without an error.

    What is written goes to a temporary file in the same folder, which is flushed to the disk and then renamed
    over `path`. Until then `path` keeps its old content; a process killed on the way leaves at most a file
    ``.NAME.*.tmp`` beside it, which the next process that writes `path` removes. The new file has the permissions
    that the umask gives to any new file; a symbolic link stays a link, its target is replaced.

    Parameters
    ----------
    path : path
        The file to create or to replace; its folder must exist.
    lasting : bool
        Whether to wait until the disk has it, which takes up to tenths of a second.  What is made anew where it is
        lost or damaged need not be safe from a power cut.

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
    target = Path(os.path.realpath(check_path("path", path)))
    if target.exists() and not target.is_file():
        # os.replace would put a regular file in the place of a device such as /dev/null
        raise OSError(f"{path}: expected a regular file or none; a folder, device or pipe cannot be replaced")
    if target not in _tidied:
        _tidied.add(target)  # whoever is killed from now on is another process, and one look at a folder is enough
        remove_leftovers(target.parent, target.name)
    temporary = None
    try:
        while True:
            temporary = _beside(target)  # known before it is there: who interrupts from now on leaves none
            with open(temporary, "xb") as file:
                if not _is_ours(file):
                    continue
                yield file
                file.flush()
                if lasting:
                    os.fsync(file.fileno())
                if fcntl is not None:
                    os.replace(temporary, target)  # as long as it is locked, or it would pass for a leftover
            break
        if fcntl is None:
            os.replace(temporary, target)  # Windows renames no file that is open
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise _named(error, path) from error
        raise
    if lasting:
        _sync_folder(target.parent)


def refuse_missing_folder(path: str | os.PathLike[str]) -> None:
    """Raise FileNotFoundError where a file has no folder to be written into, before the work that it is for."""
    if not Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a folder to write it into, found none; make it first")


def _beside(target: Path) -> Path:
    """Return where what is written to a target lies until it is whole."""
    # 40 characters of the name, so that a name as long as the file system allows leaves room for the rest
    return target.with_name(f".{target.name[:_SHOWN]}.{secrets.token_hex(6)}.tmp")


def _is_ours(file: BinaryIO) -> bool:
    """Lock a new temporary file as long as it is open; False where another process took it for a leftover before."""
    if fcntl is not None:
        with suppress(OSError):  # file systems without locks are tidied by nobody either
            fcntl.flock(file, fcntl.LOCK_EX)
    return os.name == "nt" or os.fstat(file.fileno()).st_nlink > 0


def is_temporary(name: str) -> bool:
    """Return whether a file has a name as `atomic_writer` gives it until it is whole."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_leftovers(folder: str | os.PathLike[str], name: str = "") -> None:
    """Remove what killed processes left of files that they were writing into a folder.

    Who writes holds a lock on its temporary file, which ends with the process however that ends; so nothing of a
    process that lives is touched.

    Parameters
    ----------
    folder : path
    name : str
        Only what was left of the file of this name; of all where it is empty.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if is_temporary(entry.name) and entry.name.startswith(f".{name[:_SHOWN]}." if name else "."):
                with suppress(OSError):
                    _remove_unless_locked(entry.path)


def _remove_unless_locked(path: str) -> None:
    if fcntl is None:
        os.unlink(path)  # which Windows refuses where it is open
        return
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)


def _named(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """Return an error with the name of the file that was to be written, where it names a temporary one or none."""
    if error.filename is not None and not is_temporary(os.path.basename(error.filename)):
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
