"""Row weights: those of the rows themselves and the factors of their classes, brought into what a network's type holds.

A loss is ``sum(w_i l_i) / sum(w_i)``, so only the ratios of weights say anything: weights that are all very large or
very small are multiplied by a power of 2, which changes no bit of any result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_number
from fastmlp.errors import DataError

if TYPE_CHECKING:
    from fastmlp.backends.data import HostData
    from fastmlp.formulas.losses import Loss
    from fastmlp.network.spec import NetworkSpec

ClassWeight = Mapping[Any, float] | Sequence[float] | NDArray[Any] | str
"""Factors by class, one for each class in order, or "balanced"."""
_ORDINARY = 64
"""Exponents of 2 up to which the largest weight is left as it is: float32 holds sums of such, and 1 over them."""
_MARGIN = 2.0**20
"""Times the smallest normal number: the least weight, so that 1 over it can be held and multiplied by a rate."""


def check_sample_weight(sample_weight: ArrayLike, rows: int, argument: str) -> NDArray[np.float64]:
    """Return a weight for each row, as given; DataError for anything else."""
    given = np.asarray(sample_weight)
    if given.dtype.kind not in "biuf":
        raise DataError(f"{argument} must hold real numbers, got dtype {given.dtype}")
    with np.errstate(over="ignore"):  # of wider types, which are infinite then
        weights = given.astype(np.float64, copy=False)
    if weights.shape != (rows,):
        raise DataError(f"{argument} must have shape ({rows},), one weight a row; got {weights.shape}")
    right = np.isfinite(weights) & (weights >= 0)
    if not right.all():
        row = int(np.argmin(right))
        raise DataError(f"{argument} must be finite and not negative, got {weights[row]} in row {row}", row=row)
    if not weights.any():
        raise DataError(f"{argument}: all weights are 0, so nothing can be learned or measured")
    return weights


def check_parts(
    weights: NDArray[Any], train: NDArray[np.intp], held_out: NDArray[np.intp], split: str, cure: str
) -> None:
    """Raise DataError where the rows that train, or those held out by a split, all have weight 0."""
    for part, what in ((train, "to train on"), (held_out, "to validate with")):
        if not weights[part].any():
            raise DataError(f"sample_weight: the weights of all {len(part)} rows {what} are 0 ({split}); {cure}")


def in_range(weights: NDArray[np.float64], dtype: np.dtype[Any], argument: str, place: str) -> NDArray[np.float64]:
    """Return weights, multiplied by a power of 2 where the network's type asks for it.

    Raises
    ------
    DataError
        One is so small beside the largest that the type cannot hold both; `place` says what each belongs to.
    """
    largest = float(weights.max())
    exponent = math.frexp(largest)[1]
    moved = weights
    if abs(exponent) > _ORDINARY:
        with np.errstate(under="ignore"):
            moved = np.ldexp(weights, -exponent)
    lost = (weights > 0) & (moved < _MARGIN * float(np.finfo(dtype).tiny))
    if lost.any():
        at = int(np.argmax(lost))
        cure = "" if dtype == np.float64 else " or use dtype='float64'"
        raise DataError(
            f"{argument}: {weights[at]:.6g} ({place} {at}) is too small beside the largest, {largest:.6g}: {dtype} "
            f"cannot hold both; make it 0, or larger,{cure or ' or the largest smaller'}"
        )
    return moved


def with_class_weight(
    spec: NetworkSpec, dtype: np.dtype[Any], data: HostData, class_weight: ClassWeight | None
) -> HostData:
    """Return the data with the weight of each row multiplied by the factor of its class.

    Parameters
    ----------
    spec : NetworkSpec
    dtype : numpy.dtype
        In which the network computes.
    data : HostData
        What is trained on: "balanced" counts these rows, and no others are given factors.
    class_weight : mapping, sequence, "balanced" or None
        See `fastmlp.MLP.fit`.

    Raises
    ------
    DataError, ValueError, TypeError
        It names no class of the network, leaves nothing to learn, or is no such thing.
    """
    if class_weight is None:
        return data
    labels, classes = row_classes(spec.loss, data.y), max(spec.units[-1], 2)
    if labels is None:
        raise DataError(f"class_weight: the loss {spec.loss.name!r} has no single class a row; use sample_weight")
    trains = slice(None) if data.training is None else data.training
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ValueError(f"class_weight must be {_expected(classes)}, got {class_weight!r}")
        counts = np.bincount(labels[trains], minlength=classes)
        factors = data.training_rows / (np.count_nonzero(counts) * np.maximum(counts, 1))
    else:
        factors = in_range(_factors(class_weight, classes), dtype, "class_weight", "class")
    weights = np.zeros(len(data))  # rows that are held out have none
    weights[trains] = factors[labels[trains]]
    argument = "class_weight"
    if data.weights is not None:
        weights *= data.weights
        argument = "class_weight times sample_weight"
    if not weights.any():
        raise DataError(
            f"{argument}: the weights of all {data.training_rows} rows to train on are 0, so nothing can be learned"
        )
    return replace(data, weights=in_range(weights, dtype, argument, "row").astype(dtype), weights_there=None)


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


def _factors(class_weight: Any, classes: int) -> NDArray[np.float64]:
    """Return the factor of each class, 1 where none is named."""
    factors = np.ones(classes)
    if not hasattr(class_weight, "items"):
        for label, factor in enumerate(_one_a_class(class_weight, classes)):
            factors[label] = check_number(f"class_weight[{label}]", factor, 0.0)
        return factors
    # numbers that are equal hash alike, whatever their types
    places = {label: label for label in range(classes)}
    named: set[int] = set()
    for key, factor in class_weight.items():  # of a pandas Series too, whose index says more than its order
        if key not in places:
            raise DataError(f"class_weight: there is no class {key!r}; the classes are 0..{classes - 1}")
        label = places[key]
        if label in named:
            raise DataError(f"class_weight: class {label} has more than one factor")
        named.add(label)
        factors[label] = check_number(f"class_weight[{key!r}]", factor, 0.0)
    return factors


def _expected(classes: int) -> str:
    return f"a dict from class to factor, a sequence of {classes} factors or 'balanced'"


def _one_a_class(class_weight: Any, classes: int) -> list[Any]:
    in_order = isinstance(class_weight, Iterable) and hasattr(class_weight, "__getitem__")
    if not in_order or isinstance(class_weight, bytes) or getattr(class_weight, "ndim", 1) != 1:
        got = f"shape {class_weight.shape}" if hasattr(class_weight, "shape") else repr(class_weight)
        raise TypeError(f"class_weight must be {_expected(classes)}, got {got}")
    found = list(class_weight)
    if len(found) != classes:
        raise DataError(f"class_weight must have a factor for each of the {classes} classes, got {len(found)}")
    return found
