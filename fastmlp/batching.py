"""Users' arrays, checked once and ready for a backend: inputs, targets, row weights, splits, batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.backends.exchange import host_array
from fastmlp.errors import DataError

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.spec import NetworkSpec

FINGERPRINT_ROWS = 256


@dataclass(frozen=True)
class HostData:
    """Checked data, not copied where that can be.

    Attributes
    ----------
    x : (n, I) real
        NumPy's, or of the backend where it came from a GPU.
    y : (n,) int64 labels, or (n, K) floating targets
        NumPy's.
    weights : (n,) float or None
        NumPy's; row weights, class weights included.
    y_there, weights_there : array or None
        The same on the backend, where they came from there as they are.
    """

    x: Array
    y: NDArray[Any]
    weights: NDArray[Any] | None
    y_there: Array | None = None
    weights_there: Array | None = None

    def __len__(self) -> int:
        return len(self.x)

    def on(self, backend: Backend) -> DeviceData:
        """Return the data on a backend."""
        y, weights = (b if there is None else there for b, there in self._pairs())
        return DeviceData(
            backend.asarray(self.x), backend.asarray(y), None if weights is None else backend.asarray(weights)
        )

    def moved(self, backend: Backend) -> HostData:
        """Return the same data, with what a backend works on there."""
        there = self.on(backend)
        return HostData(there.x, self.y, self.weights, there.y, there.weights)

    def _pairs(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        return (self.y, self.y_there), (self.weights, self.weights_there)

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes on a backend."""
        return sum(a.nbytes for a in (self.x, self.y, self.weights) if a is not None) // max(len(self), 1)

    def rows(self, part: slice) -> HostData:
        """Return some of the rows."""

        def cut(array: Array | None) -> Array | None:
            return None if array is None else array[part]

        return HostData(self.x[part], self.y[part], cut(self.weights), cut(self.y_there), cut(self.weights_there))

    def fingerprint(self, backend: Backend) -> str:
        """Return a short hash that tells other data apart: shapes, types, targets, and evenly spaced rows of x."""
        digest = hashlib.blake2b(digest_size=16)
        sample = np.unique(np.linspace(0, len(self) - 1, FINGERPRINT_ROWS).astype(np.intp))
        if isinstance(self.x, np.ndarray):
            rows = self.x[sample]
        else:
            rows = np.stack([backend.to_numpy(self.x[int(row)]) for row in sample])
        for array in (rows, self.y, self.weights):
            if array is not None:
                digest.update(f"{array.shape} {array.dtype.str}".encode())
                digest.update(np.ascontiguousarray(array).data)
        digest.update(str(self.x.shape).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class DeviceData:
    """The same on a backend; what the coarse operations take."""

    x: Array
    y: Array
    weights: Array | None


def check_inputs(x: ArrayLike, features: int, backend: Backend, *, argument: str = "x") -> Array:
    """Return inputs as an (n, features) array in C order, copied only where its layout asks for it.

    What lies on a GPU stays there, as an array of the backend, in whatever layout it has.

    Raises
    ------
    DataError
        Wrong shape or type; the message says what was got, what was expected and the cure.
    """
    if hasattr(x, "toarray"):
        raise DataError(f"{argument} must be a dense array, got {type(x).__name__}; pass {argument}.toarray()")
    there = backend.take(x, argument)
    array = host_array(x) if there is None else there
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{argument} must hold real numbers, got dtype {array.dtype}; convert it, e.g. {argument}.astype('float32')"
        )
    if array.ndim != 2:
        if array.ndim == 0:
            cure = "pass a two-dimensional array"
        elif array.ndim > 1:
            cure = f"reshape it to ({len(array)}, -1)"
        elif features == 1:
            cure = f"examples of one input are {argument}.reshape(-1, 1)"
        else:
            cure = f"one example is {argument}.reshape(1, -1)"
        raise DataError(f"{argument} must have shape (n, {features}), got {array.shape}; {cure}")
    if array.shape[1] != features:
        raise DataError(
            f"{argument} must have shape (n, {features}), because the network has {features} inputs; got {array.shape}"
        )
    if there is not None:
        return there
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.require(array, requirements=["C", "A"])


def check_data(
    spec: NetworkSpec,
    dtype: np.dtype[Any],
    x: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    class_weight: Mapping[int, float] | str | None = None,
    *,
    backend: Backend,
    suffix: str = "",
) -> HostData:
    """Return data fit for a network, or raise DataError saying what is wrong with which argument.

    Parameters
    ----------
    spec : NetworkSpec
    dtype : numpy.dtype
        The type in which the network computes.
    x : (n, I) array_like
    y : (n,) or (n, K) array_like
    sample_weight : (n,) array_like, optional
    class_weight : mapping or "balanced", optional
        Factor of the weight of each row by its class; 1 for classes that are not named.
    backend : Backend
        Where the model is: arrays that lie there too stay there.
    suffix : str
        Appended to the names of the arguments in messages.
    """
    inputs = check_inputs(x, spec.units[0], backend, argument=f"x{suffix}")
    if len(inputs) == 0:
        raise DataError(f"x{suffix} has no rows; at least one is needed")
    given, y_there = _on_host(y, backend, f"y{suffix}")
    targets = given
    if targets.ndim == 0 or len(targets) != len(inputs):
        count = "a single value" if targets.ndim == 0 else f"{len(targets)}"
        raise DataError(f"x{suffix} has {len(inputs)} rows and y{suffix} {count}; they must have as many")
    targets = spec.loss.prepare_targets(targets, spec.units[-1])
    weights, weights_there = _class_weights(spec, targets, class_weight), None
    if sample_weight is not None:
        values, there = _on_host(sample_weight, backend, f"sample_weight{suffix}")
        if weights is None and there is not None and there.dtype == dtype:
            weights_there = there
        factors = _check_weights(values, len(inputs), f"sample_weight{suffix}")
        weights = factors if weights is None else weights * factors
    if weights is not None and not weights.any():
        raise DataError(f"sample_weight{suffix}: all weights are 0, so nothing can be learned or measured")
    if targets.ndim == 2 and targets.dtype.kind != "f":
        targets = targets.astype(dtype)
    if targets.shape != given.shape or targets.dtype != given.dtype or not np.shares_memory(targets, given):
        y_there = None  # it has been made into something else
    return HostData(
        inputs,
        np.require(targets, requirements=["C", "A"]),
        None if weights is None else weights.astype(dtype),
        y_there,
        weights_there,
    )


def _on_host(array: Any, backend: Backend, argument: str) -> tuple[NDArray[Any], Array | None]:
    """Return what can be checked here; and the array itself, where it lies on the backend."""
    there = backend.take(array, argument)
    return (host_array(array), None) if there is None else (backend.to_numpy(there), there)


def _check_weights(sample_weight: ArrayLike, rows: int, argument: str) -> NDArray[np.float64]:
    try:
        weights = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{argument} must hold real numbers, got {sample_weight!r}") from None
    if weights.shape != (rows,):
        raise DataError(f"{argument} must have shape ({rows},), one weight a row; got {weights.shape}")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        row = int(np.argmin(np.isfinite(weights) & (weights >= 0)))
        raise DataError(f"{argument} must be finite and not negative, got {weights[row]} in row {row}")
    return weights


def _class_weights(
    spec: NetworkSpec, targets: NDArray[Any], class_weight: Mapping[int, float] | str | None
) -> NDArray[np.float64] | None:
    if class_weight is None:
        return None
    classes = spec.units[-1]
    if targets.ndim == 1:
        labels = targets
    elif spec.loss.takes_labels:
        labels = targets.argmax(axis=1)
    elif spec.loss.has_accuracy and classes == 1:
        labels, classes = (targets[:, 0] > 0.5).astype(np.int64), 2
    else:
        raise DataError(f"class_weight: the loss {spec.loss.name!r} has no single class a row; use sample_weight")
    factors = np.ones(classes)
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight must be a dict from class to weight or 'balanced', got {class_weight!r}")
        counts = np.bincount(labels, minlength=classes)
        factors = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    else:
        for label, factor in class_weight.items():
            if label not in range(classes):
                raise DataError(f"class_weight: there is no class {label!r}; the classes are 0..{classes - 1}")
            if not 0 <= factor < math.inf:
                raise DataError(f"class_weight: weights must be finite and not negative, got {factor!r} for {label!r}")
            factors[label] = factor
    chosen: NDArray[np.float64] = factors[labels]
    return chosen


def split_rows(data: HostData, fraction: float) -> tuple[HostData, HostData | None]:
    """Return the first part and, where `fraction` is not 0, the last part of the data, in the order given.

    Raises
    ------
    ValueError
        The fraction is not in [0, 1), or leaves one of the parts without a row.
    """
    if isinstance(fraction, bool) or not 0.0 <= fraction < 1.0:
        raise ValueError(f"validation_split must be at least 0 and below 1, got {fraction!r}")
    if fraction == 0.0:
        return data, None
    held_out = round(len(data) * fraction)
    if not 0 < held_out < len(data):
        raise ValueError(
            f"validation_split={fraction!r} of {len(data)} rows leaves {len(data) - held_out} to train on and "
            f"{held_out} to validate; both need at least one"
        )
    cut = len(data) - held_out
    return data.rows(slice(0, cut)), data.rows(slice(cut, None))


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches of an epoch; the last may be shorter."""
    return -(-rows // batch_size)


def inverse_totals(
    weights: NDArray[Any] | None, order: NDArray[np.intp], batch_size: int, first: int, count: int
) -> NDArray[np.float64]:
    """Return 1 over the total row weight of each of `count` batches from batch `first` on; 0 where that is 0.

    Parameters
    ----------
    weights : (n,) float or None
        None means 1 each.
    order : (n,) intp
        The rows of the epoch.
    batch_size, first, count : int

    Returns
    -------
    (count,) float64
    """
    rows = order[first * batch_size : (first + count) * batch_size]
    starts = np.arange(0, len(rows), batch_size)
    if weights is None:
        sums = np.diff(np.append(starts, len(rows))).astype(np.float64)
    else:
        sums = np.add.reduceat(weights[rows].astype(np.float64), starts)
    return np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
