"""Arrays of other libraries: whether they lie on a GPU, and how NumPy reads those that do not.

Two protocols tell: DLPack (``__dlpack__``, ``__dlpack_device__``) and ``__cuda_array_interface__``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.errors import DataError

# dlpack.h: DLDeviceType
_CUDA, _CUDA_MANAGED = 2, 13


def lies_on_gpu(array: Any) -> bool:
    """Return whether an array of any library is in the memory of a CUDA device."""
    if isinstance(array, (np.ndarray, list, tuple)):
        return False
    if speaks_dlpack(array):
        return int(array.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def speaks_dlpack(array: Any) -> bool:
    """Return whether an array can be handed over by DLPack."""
    return hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__")


def refuse_gpu(argument: str, array: Any, what: str) -> None:
    """Raise DataError where an array is on a GPU, but must be in host memory, as in ``"where preprocess works"``."""
    if lies_on_gpu(array):
        raise DataError(f"{argument} must be in host memory, {what}; pass {argument}.get() or .cpu()")


def refuse_sparse(argument: str, array: Any) -> None:
    """Raise DataError where an array is one of SciPy's sparse ones, of which NumPy makes a single object."""
    if hasattr(array, "toarray"):
        raise DataError(f"{argument} must be a dense array, got {type(array).__name__}; pass {argument}.toarray()")


def host_array(array: Any, argument: str) -> NDArray[Any]:
    """Return what is in host memory as a NumPy array, without a copy where that can be; masked values are refused."""
    refuse_masked(argument, array)
    refuse_sparse(argument, array)
    if not isinstance(array, np.ndarray) and not hasattr(array, "__array__") and speaks_dlpack(array):
        return np.from_dlpack(array)
    try:
        found = np.asarray(array)
    except Exception as e:  # rows of several lengths, or whatever an object's own way to become an array raises
        raise DataError(f"{argument} cannot be made into an array: {e}") from e
    if found.dtype.kind not in "OmMUST" or found.ndim != 2 or not hasattr(array, "columns"):
        return found
    if hasattr(array, "iloc"):
        return _of_columns(array, argument)
    for label in array.columns:  # of polars and others that are made into arrays whole
        if (kind := np.asarray(array[label]).dtype).kind not in "biufc":
            raise DataError(f"{argument} must hold real numbers, and column {label!r} holds {kind}; encode it")
    return found


def _of_columns(frame: Any, argument: str) -> NDArray[Any]:
    """Return the numbers of a data frame of pandas', which gives objects where some column is of a type of its own.

    Such are nullable numbers; a value that is missing there becomes NaN.
    """
    columns = []
    for i, label in enumerate(frame.columns):
        given = frame.iloc[:, i]
        column = np.asarray(given)
        if column.dtype == object and getattr(given.dtype, "kind", "O") in "biuf":
            column = given.to_numpy(dtype=np.float64, na_value=np.nan)
        if column.dtype.kind not in "biufc":
            if getattr(given.dtype, "kind", "") in ("m", "M"):
                cure = "make numbers of it, of days for example"
            else:
                cure = (
                    f"encode it, with pandas.get_dummies for example, or, where it holds numbers, pass "
                    f"{argument}.astype({{{label!r}: float}})"
                )
            raise DataError(f"{argument} must hold real numbers, and column {label!r} holds {given.dtype}; {cure}")
        columns.append(column)
    return np.column_stack(columns)


def refuse_masked(argument: str, array: Any) -> None:
    """Raise DataError where values of an array, or of a list of arrays, are masked: NumPy would take what is below."""
    if type(array) is np.ndarray:
        return
    if isinstance(array, (list, tuple)):
        parts = [(f"[{i}]", part) for i, part in enumerate(array) if isinstance(part, np.ma.MaskedArray)]
    else:
        parts = [("", array)] if isinstance(array, np.ma.MaskedArray) else []
    for place, part in parts:
        mask = np.ma.getmaskarray(part)
        if mask.any():
            index = ", ".join(map(str, np.argwhere(mask)[0]))
            raise DataError(
                f"{argument}{place} has masked values, {np.count_nonzero(mask)} of them, the first at [{index}]; fill "
                f"them in, {argument}.filled(value), or leave their rows out"
            )
