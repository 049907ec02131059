"""The files that keep compiled kernels until one of them is edited: for each function and type one, with its hash."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile


def folder_stamp() -> str:
    """Return a hash of every kernel source and of the compiler's version.

    Numba stamps a cached function with the file it is in, and would go on using it after an edit in another file.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


STAMP = folder_stamp()
"""Of this process."""
_VERSION = f"{numba.__version__} {STAMP}\n".encode()
"""How every file in the cache begins; of other kernels nothing is unpickled, which may name modules that are gone."""

_told: set[str] = set()


def tell_once(trouble: str, message: str) -> None:
    """Warn, if a trouble of that kind was not told yet: every function has files of its own."""
    if trouble not in _told:
        _told.add(trouble)
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def tell_damaged(path: str, why: str) -> None:
    """Warn that what is kept cannot be used, once."""
    tell_once("damaged", f"{path}: what is kept of compiled kernels is damaged ({why}), so they are compiled anew")


class KernelFiles(IndexDataCacheFile):
    """The files that keep the code of a function, one for each type, each with a hash of what is in it.

    Numba's own have none: a damaged one ends every run in an error of pickle's, or is run.  They are numbered by an
    index, which of several processes that compile at once the last one writes: what the others kept is compiled again
    and again.  So there is no index here; a file's name tells its types, processor and version of Numba.
    """

    def save(self, key: Any, data: Any) -> None:
        self._write(self._path_of(key), (key, data))

    def load(self, key: Any) -> Any:
        kept = self._read(self._path_of(key))
        return kept[1] if kept is not None and kept[0] == key else None

    def _path_of(self, key: Any) -> str:
        digest = hashlib.sha256(f"{numba.__version__} {key}".encode()).hexdigest()[:16]
        return f"{self._index_path.removesuffix('.nbi')}.{digest}.nbc"

    def _read(self, path: str) -> Any:
        """Return what is in a file; None where there is none, it is of other kernels, or damaged, which is said."""
        try:
            with open(path, "rb") as file:
                whole = file.read()
        except FileNotFoundError:
            return None
        except OSError as e:
            tell_damaged(path, e.strerror or str(e))
            return None
        digest, contents = whole[:_DIGEST], whole[_DIGEST:]
        if hashlib.sha256(contents).digest() != digest:
            tell_damaged(path, "it was altered or cut short")
            return None
        return pickle.loads(contents[len(_VERSION) :]) if contents.startswith(_VERSION) else None

    def _write(self, path: str, kept: Any) -> None:
        contents = _VERSION + self._dump(kept)
        with self._open_for_write(path) as file:
            file.write(hashlib.sha256(contents).digest() + contents)


_DIGEST = hashlib.sha256().digest_size


def is_current(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file of the cache is whole, and of these kernels and this version of Numba."""
    try:
        whole = Path(path).read_bytes()
    except OSError:
        return False
    contents = whole[_DIGEST:]
    return contents.startswith(_VERSION) and hashlib.sha256(contents).digest() == whole[:_DIGEST]


def cache_folder() -> str | None:
    """Return where compiled code is kept, or None where no folder can be written."""
    try:
        path = FunctionCache(folder_stamp).cache_path
    except (RuntimeError, OSError):
        return None
    return os.fspath(path)
