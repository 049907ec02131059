"""The one place where what a parser of another library raises becomes an error of ours, with the name of the file."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike, fspath

from fastmlp.errors import DataError, FileFormatError


@contextmanager
def refused_by_name(path: str | PathLike[str], expected: str, cure: str = "") -> Iterator[None]:
    """Turn whatever the block raises into an error of ours that names the file and the reason.

    A parser given damaged bytes raises what its own parts happen to raise: a header of NumPy's alone gives ten kinds
    of exceptions, down to RecursionError.  So nothing is listed here but what is to stay as it is.

    Parameters
    ----------
    path : path
    expected : str
        What the file should be, for the message: ``"a whole NumPy file"``.
    cure : str
        How the message ends, where something can be done.

    Raises
    ------
    FileFormatError
        For everything but the following.
    DataError
        Where there is not enough memory for what the file holds.
    OSError
        With the name of the file, where the operating system failed.
    """
    name, then = fspath(path), f"; {cure}" if cure else ""
    try:
        yield
    except (DataError, FileFormatError):
        raise
    except Exception as e:
        if isinstance(e, OSError) and e.filename is not None:
            raise
        if isinstance(e, MemoryError) or (isinstance(e, OSError) and e.errno == errno.ENOMEM):
            raise DataError(f"{name}: expected {expected} that fits into memory, got {_reason(e)}{then}") from e
        # an argument that the system refuses came from the file, and what has no number is no error of the system
        if isinstance(e, OSError) and e.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
            raise OSError(e.errno, e.strerror, name) from e
        raise FileFormatError(f"{name}: expected {expected}, got one that cannot be read ({_reason(e)}){then}") from e


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args:
        return f"it lacks {error.args[0]!r}"
    text = " ".join(str(error).split())  # on one line
    if len(text) > 200:
        text = f"{text[:197]}..."
    return text or type(error).__name__
