"""What inputs mean, whatever type they come in: the names of their columns, and the scale of their numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.sparse import SparseRows
from fastmlp.errors import DataError
from fastmlp.preprocessing.record import Preprocessing
from fastmlp.warned import warn_caller

if TYPE_CHECKING:
    from fastmlp._typing import Array

FULL = 255
"""The largest byte; what pixels are divided by."""
SEEN = 1 << 20
"""Numbers of which all are looked at for their range; of more, some rows, where at most a warning is misled."""
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_FAR = 16
"""Numbers so large are of another scale than those of a network that was trained on numbers up to 1."""


class InputScale(NamedTuple):
    """What the inputs of a network are divided by, settled by those that it was first trained on; files keep it.

    Attributes
    ----------
    divisor : int
        255 where those were uint8, pixels; 1 for all other types, and for uint8 that holds 0 and 1 alone, which is no
        picture but a one-hot or a binary matrix.
    unit : bool
        Whether they lay in 0..1.
    """

    divisor: int
    unit: bool

    @classmethod
    def of(cls, x: Array) -> InputScale:
        """Return the scale that inputs settle which `as_trained` has returned for a network without one."""
        x = x.range() if isinstance(x, SparseRows) else x
        if x.dtype == np.uint8:
            return cls(FULL, False)
        if x.dtype == np.bool_:
            return cls(1, True)
        lowest, highest = range_of(_some(x))
        return cls(1, lowest >= 0 and 0 < highest <= 1)

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> InputScale | None:
        """Return what a file says; None where it says nothing.  ValueError where that makes no sense."""
        if values is None:
            return None
        if values["divisor"] not in (1, FULL) or not isinstance(values["unit"], bool):
            raise ValueError(f"the scale of the inputs must be 1 or 255 and tell the range, got {values!r}")
        return cls(int(values["divisor"]), values["unit"])


class InputRules(NamedTuple):
    """What a network knows of its inputs.

    Attributes
    ----------
    dtype : numpy.dtype
        In which it computes.
    names : tuple of str, or None
        Of the columns that it is given.
    scale : InputScale, or None
        None before the first training.
    preprocessing : Preprocessing, or None
        What makes its inputs of these columns.
    """

    dtype: np.dtype[Any]
    names: tuple[str, ...] | None
    scale: InputScale | None
    preprocessing: Preprocessing | None = None

    @property
    def divisor(self) -> int:
        """What inputs are divided by; 1 where that is not settled yet."""
        return 1 if self.scale is None else self.scale.divisor

    def take_as_is(self, x: Any, inputs: int) -> TypeGuard[NDArray[Any]]:
        """Return whether rows, if they are finite, are taken as they are, with nothing to be said but of large ones."""
        plain = type(x) is np.ndarray and x.ndim == 2 and x.dtype in _FLOATS
        settled = self.scale is not None and self.scale.divisor == 1 and self.preprocessing is None
        return plain and settled and len(x) > 0 and x.shape[1] == inputs

    @property
    def largest(self) -> float:
        """The largest number about which there is nothing to say."""
        return 1.0 if self.scale is not None and self.scale.unit else math.inf

    def columns(self, inputs: int) -> int:
        """Return how many columns the rows have that a network of so many inputs is given."""
        return inputs if self.preprocessing is None else self.preprocessing.columns

    def preprocessed(self, fitted: Preprocessing | None, inputs: int) -> InputRules:
        """Return the rules of a network of so many inputs that are made by this; ValueError where they cannot be."""
        if fitted is not None and not isinstance(fitted, Preprocessing):
            raise TypeError(f"preprocessing must be None or what an estimator has as preprocessing_, got {fitted!r}")
        if fitted is not None and self.divisor != 1:
            raise ValueError(
                "preprocessing cannot be that of a network that divides its inputs by 255, as it was first trained "
                "on uint8; train a new one"
            )
        if fitted is not None and fitted.width != inputs:
            raise ValueError(f"preprocessing must make the {inputs} inputs of the network, got one of {fitted.width}")
        found = self._replace(preprocessing=fitted)
        named = self.names is None or len(self.names) == found.columns(inputs)
        return found if named else found._replace(names=None)

    def describe(self) -> str:
        """Return the line that tells of the scale."""
        if (made := self.preprocessing) is not None:
            return f"preprocess={made.kind!r}: {made.columns} columns of any kind become {made.width} inputs"
        if self.scale is None:
            return "inputs as they are, uint8 with values above 1 divided by 255; the first fit settles which"
        return f"inputs {'divided by 255' if self.scale.divisor == FULL else 'as they are'}, whatever their type"


def names_of(x: Any, axis: str = "columns") -> tuple[str, ...] | None:
    """Return the names of a data frame's columns; None for anything else, and where they are numbers from 0 on.

    With `axis` ``"index"`` those of a series that is one row of a frame.
    """
    labels = _labels(x, axis)
    return None if labels is None or _are_positions(labels) else tuple(map(str, labels))


def in_order(x: Any, names: tuple[str, ...] | None, argument: str, axis: str = "columns") -> Any:
    """Return a data frame with its columns in the order of a network's inputs; anything else as it is.

    Columns that are numbered from 0 on have no names, and stand where their numbers say.

    Raises
    ------
    DataError
        It lacks a column, has others, or two of one name; the message names them.
    """
    labels = _labels(x, axis)
    if labels is None:
        return x
    if _are_positions(labels):
        return x if labels == sorted(labels) else x[sorted(labels)]
    found = tuple(map(str, labels))
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise DataError(
            f"{argument} must have columns whose names differ, got {twice!r} more than once; rename them, or pass "
            f"{argument}.to_numpy() to take them as they stand"
        )
    if names is None or found == names:
        return x
    missing, more = [name for name in names if name not in found], [name for name in found if name not in names]
    if not missing and not more:
        return x[[labels[found.index(name)] for name in names]]
    differ = [f"no {', '.join(map(repr, missing[:5]))}"] if missing else []
    differ += [f"{', '.join(map(repr, more[:5]))} more"] if more else []
    raise DataError(
        f"{argument} must have the columns of model.feature_names, got {' and '.join(differ)}; "
        f"pass {argument}[list(model.feature_names)], or set model.feature_names = None to take columns as they stand"
    )


def _labels(x: Any, axis: str) -> list[Any] | None:
    if isinstance(x, (np.ndarray, list, tuple)):
        return None
    labels = getattr(x, axis, None)
    return None if labels is None or callable(labels) or len(labels) == 0 else list(labels)


def _are_positions(labels: Sequence[Any]) -> bool:
    return all(isinstance(label, (int, np.integer)) for label in labels) and set(labels) == set(range(len(labels)))


def range_of(x: Array) -> tuple[float, float]:
    """Return the smallest, 0 where the type has no sign, and the largest number of inputs, wherever they are."""
    if x.dtype.kind in "bu":
        return 0.0, float(x.max())
    # one function of a GPU's arrays less to rely on
    return float(x.min()) if isinstance(x, np.ndarray) else -float((-x).max()), float(x.max())


def _some(x: Array) -> Array:
    """Return all rows of not too many numbers, else some that are evenly spaced."""
    return x[:: -(-len(x) * x.shape[1] // SEEN)] if len(x) * x.shape[1] > SEEN else x


def as_trained(x: Array, rules: InputRules, argument: str, *, may_look: bool = True) -> Array:
    """Return checked inputs as the backends take them: they divide uint8 by 255, and no other type.

    Where what lies on a GPU must not be waited for (not `may_look`), the range of a trained network's inputs is not
    looked at, and nothing is said of it.

    Warns
    -----
    UserWarning
        The numbers are of another range than those that the network was trained on.
    """
    scale, is_bytes = rules.scale, x.dtype == np.uint8
    if len(x) == 0 or (scale is None and not is_bytes):
        return x
    if scale is None:
        return x.view(np.bool_) if float(_some(x).max()) <= 1 and float(x.max()) <= 1 else x
    if not may_look and not isinstance(x, np.ndarray):
        if scale.divisor == 1:
            return x.astype(np.int16) if is_bytes else x
        return x if is_bytes else _divided(x, rules.dtype)
    if scale.divisor == 1:
        if not is_bytes and not scale.unit:
            return x
        highest = float((x if is_bytes else _some(x)).max())
        if scale.unit and highest >= _FAR:
            warn_caller(
                f"{argument} has values up to {highest:g}, and the model takes them as they are, since it was trained "
                f"on values in 0..1; pass {argument} / 255 if they are pixels"
            )
        if not is_bytes:
            return x
        return x.view(np.bool_) if highest <= 1 else x.view(np.int8) if highest < 128 else x.astype(np.int16)
    is_whole = x.dtype.kind in "iu" and not is_bytes
    lowest, highest = range_of(x if is_whole else _some(x))
    if highest > FULL or lowest < 0 or 0 < highest <= 1:
        cure = f"; pass {argument} * 255 if it is divided already" if 0 < highest <= 1 and lowest >= 0 else ""
        warn_caller(
            f"{argument} has values in {lowest:g}..{highest:g}, and the model divides its inputs by 255, since it was "
            f"trained on bytes{cure}"
        )
    if is_bytes:
        return x
    if is_whole and 0 <= lowest and highest <= FULL:
        return x.astype(np.uint8)
    return _divided(x, rules.dtype)


def _divided(x: Array, dtype: np.dtype[Any]) -> Array:
    divided: Array = x.astype(dtype) / dtype.type(FULL)
    return divided
