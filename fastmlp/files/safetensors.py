"""Model and checkpoint files: safetensors, with everything that is not an array as JSON in the metadata.

Nothing in a file is ever executed.  A file is written beside its name, synced and renamed, so it is there whole or not
at all; it carries a hash of its own contents, so that one that was altered or cut short is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_count, check_path
from fastmlp.errors import FileFormatError
from fastmlp.files.atomic import atomic_writer
from fastmlp.files.reading import refused_by_name

FORMAT = 1
"""Of what is written, unless it says otherwise."""
NEWEST = 2
"""Of files whose network has a preprocessing, and the latest that is read."""
_KEY = "fastmlp"


def write(path: str | PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a file in one piece.

    Parameters
    ----------
    path : path
    header : mapping
        Plain values; numbers keep all their digits.
    tensors : mapping from name to array
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    whole = {"format": FORMAT, **header}
    # one entry, because safetensors writes several in any order, and the same model should give the same bytes
    text = json.dumps({"header": whole, "sha256": _digest(whole, arrays)}, sort_keys=True)
    contents = save(arrays, {_KEY: text})
    with atomic_writer(path) as file:
        file.write(contents)


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the header and the arrays of a file that `write` wrote.

    Raises
    ------
    FileFormatError
        It is not one, or not whole, or from a later version; the message says which.
    FileNotFoundError
        There is none.
    """
    from safetensors import safe_open

    name = check_path("path", path)
    with open(name, "rb"):  # the errors of the operating system are clearer than the library's
        pass
    with refused_by_name(
        path,
        " is no fastmlp file, or it was cut short: it cannot be read as safetensors ({reason}); a model is written by "
        "MLP.save or by a Checkpoint",
    ):
        with safe_open(name, framework="np") as file:
            # what this tells is known before any array is read
            header, digest = _described(name, file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        if digest != _digest(header, tensors):
            raise FileFormatError(f"{name} was altered after it was written: its sha256 does not match; use a copy")
    return header, tensors


def _described(name: str, metadata: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Return the header of a file and its hash; FileFormatError where the file is not ours, or of a later version."""
    if _KEY not in metadata:
        raise FileFormatError(
            f"{name} is a safetensors file, but not one of fastmlp: its metadata has no {_KEY!r} entry"
        )
    with refused_by_name(name, " was altered: its description cannot be read ({reason}); use a copy of the file"):
        described = json.loads(metadata[_KEY])
        header, digest = dict(described["header"]), str(described["sha256"])
        version = check_count("format", header["format"])
    if version > NEWEST:
        raise FileFormatError(
            f"{name} has format {version}, this fastmlp reads up to {NEWEST}: install a newer fastmlp"
        )
    return header, digest


def _digest(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes() if not array.flags.c_contiguous else array.data)
    return digest.hexdigest()


def check_arrays(
    path: str | PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    expected: Mapping[str, tuple[int, ...]],
    dtype: np.dtype[Any],
) -> None:
    """Raise FileFormatError unless every expected array is there in its shape, in the type that the file names."""
    for name, shape in expected.items():
        if name not in tensors:
            raise FileFormatError(
                f"{fspath(path)} is inconsistent: its spec asks for the array {name!r}, which is missing"
            )
        if tensors[name].shape != shape:
            raise FileFormatError(
                f"{fspath(path)} is inconsistent: {name!r} has shape {tensors[name].shape}, its spec asks for {shape}"
            )
        if tensors[name].dtype != dtype:
            raise FileFormatError(
                f"{fspath(path)} is inconsistent: {name!r} holds {tensors[name].dtype}, its description says {dtype}"
            )


def check_numbers(path: str | PathLike[str], tensors: Mapping[str, NDArray[Any]], *, infinite: bool = False) -> None:
    """Raise FileFormatError where an array holds NaN, or infinity unless that may be."""
    for name, array in tensors.items():
        wrong = np.isnan(array) if infinite else ~np.isfinite(array)
        if wrong.any():
            place = tuple(map(int, np.argwhere(wrong)[0]))
            raise FileFormatError(
                f"{fspath(path)} cannot be used: {name!r} holds {array[place]} at {list(place)}, and a network of it "
                "would predict nothing; use a copy from before"
            )
