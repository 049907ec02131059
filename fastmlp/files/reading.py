"""The one place where what a parser of another library raises becomes an error of ours, with the name of the file."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

from fastmlp.errors import DataError, FileFormatError


@contextmanager
def refused_by_name(path: str | PathLike[str], message: str, out_of_memory: str = "") -> Iterator[None]:
    """Turn whatever the block raises into an error of ours that names the file and the reason.

    A parser given damaged bytes raises what its own parts happen to raise: a header of NumPy's alone gives ten kinds
    of exceptions, down to RecursionError.  So nothing is listed here but what is to stay as it is.

    Parameters
    ----------
    path : path
    message : str
        What follows the name, with ``{reason}`` where the reason belongs.
    out_of_memory : str
        What can be done where the memory is too small, if anything.

    Raises
    ------
    FileFormatError
        For everything but the following.
    DataError
        Where there is not enough memory for what the file holds.
    OSError
        With the name of the file, where the operating system failed.
    """
    name = fspath(path)
    try:
        yield
    except (DataError, FileFormatError):
        raise
    except Exception as e:
        if isinstance(e, OSError) and e.filename is not None:
            raise
        if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno == errno.ENOMEM):
            cure = f"; {out_of_memory}" if out_of_memory else ""
            raise DataError(f"{name}: expected a file that fits into memory, got {_reason(e)}{cure}") from e
        # an argument that the system refuses came from the file, and what has no number is no error of the system
        if isinstance(e, OSError) and e.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
            raise OSError(e.errno, e.strerror, name) from e
        raise FileFormatError(name + message.format(reason=_reason(e))) from e


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return f"it lacks {error.args[0]!r}"
    text = " ".join(str(error).split())  # on one line
    if len(text) > 200:
        text = f"{text[:197]}..."
    return text or type(error).__name__
