"""Users' arrays, checked once where they enter: inputs, targets, row and class weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.backends.data import HostData
from fastmlp.backends.foreign import host_array
from fastmlp.engine.inputs import InputRules, as_trained, in_order, names_of
from fastmlp.errors import DataError

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.formulas.losses import Loss
    from fastmlp.network.layout import Layout
    from fastmlp.network.spec import NetworkSpec


def check_inputs(x: ArrayLike, features: int, backend: Backend, rules: InputRules, *, argument: str = "x") -> Array:
    """Return inputs as an (n, features) array in C order, copied only where its layout asks for it.

    What lies on a GPU stays there, as an array of the backend, in whatever layout it has.  The columns of a data frame
    are brought into the order of the network's inputs, and numbers to the scale that `as_trained` tells.

    Raises
    ------
    DataError
        Wrong shape or type; the message says what was got, what was expected and the cure.
    """
    if hasattr(x, "toarray"):
        raise DataError(f"{argument} must be a dense array, got {type(x).__name__}; pass {argument}.toarray()")
    x = in_order(x, rules.names, argument)
    there = backend.take(x, argument)
    array = host_array(x, argument) if there is None else there
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
        return as_trained(there, rules, argument)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return as_trained(np.require(array, requirements=["C", "A"]), rules, argument)


def check_data(
    spec: NetworkSpec,
    rules: InputRules,
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
    rules : InputRules
        What the network knows of its inputs.
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
    dtype = rules.dtype
    inputs = check_inputs(x, spec.units[0], backend, rules, argument=f"x{suffix}")
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
        names=names_of(x),
    )


def _on_host(array: Any, backend: Backend, argument: str) -> tuple[NDArray[Any], Array | None]:
    """Return what can be checked here; and the array itself, where it lies on the backend."""
    there = backend.take(array, argument)
    return (host_array(array, argument), None) if there is None else (backend.to_numpy(there), there)


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
    labels, classes = row_classes(spec.loss, targets), max(spec.units[-1], 2)
    if labels is None:
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


def row_classes(loss: Loss, targets: NDArray[Any]) -> NDArray[Any] | None:
    """Return the class of each row of checked targets, (n,) int64; None where a row has no single one."""
    if targets.ndim == 1:
        return targets
    if loss.takes_labels:
        labels: NDArray[Any] = targets.argmax(axis=1)
        return labels
    if loss.has_accuracy and targets.shape[1] == 1:
        return (targets[:, 0] > 0.5).astype(np.int64)
    return None


def check_weights(
    layout: Layout, dtype: np.dtype[Any], weights: Sequence[ArrayLike], *, backend: Backend
) -> NDArray[Any]:
    """Return the flat buffer of [W1 (I, O), b1 (O,), W2, ...], NumPy's.

    Raises
    ------
    ValueError
        There are too many or too few, or one has another shape or is not finite.
    """
    flat = np.zeros(layout.size, dtype)
    targets = [array for pair in layout.views(flat) for array in pair]
    given = [_on_host(w, backend, "weights")[0] for w in weights]
    if [w.shape for w in given] != [t.shape for t in targets]:
        raise ValueError(
            f"weights must be arrays of the shapes {[t.shape for t in targets]} (W1, b1, W2, ...), "
            f"got {[w.shape for w in given]}"
        )
    for i, (target, value) in enumerate(zip(targets, given, strict=True)):
        if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
            raise ValueError(f"weights: {'Wb'[i % 2]}{i // 2 + 1} must hold finite real numbers")
        target[...] = value
    return flat


def check_class_names(spec: NetworkSpec, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return a name for each output, or two for a single one; None where none are given."""
    return _names("class_names", names, max(spec.units[-1], 2))


def check_feature_names(spec: NetworkSpec, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return a name for each input; None where none are given."""
    return _names("feature_names", names, spec.units[0])


def _names(argument: str, names: Sequence[str] | None, expected: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or len(names) != expected:
        raise ValueError(f"{argument} needs {expected} names, got {names!r}")
    return tuple(str(name) for name in names)
