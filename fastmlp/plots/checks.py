"""What pictures are made of, checked; errors name the function, the argument, what was got and what was expected."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_count, check_names, check_sequence
from fastmlp.backends.foreign import host_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def class_numbers(who: str, argument: str, classes: NDArray[Any]) -> NDArray[np.int64]:
    """Return classes, an array, as integers from 0; whole numbers of any type will do."""
    if classes.dtype.kind not in "biuf":
        raise TypeError(
            f"{who}: {argument} must hold the numbers of classes, counted from 0, got {classes.dtype}; "
            "their names go into class_names"
        )
    if classes.dtype.kind == "f" and (wrong := classes != np.floor(classes)).any():
        raise ValueError(f"{who}: {argument} must hold whole numbers, got {classes[wrong][0]!s}")
    if (wrong := classes < 0).any():
        raise ValueError(f"{who}: {argument} must hold classes counted from 0, got {classes[wrong][0]!s}")
    return classes.astype(np.int64)


def names_of_classes(who: str, names: Sequence[str] | None, highest: int) -> list[str]:
    """Return the names of classes up to `highest`: those given, or numbers."""
    if names is None:
        return [str(i) for i in range(highest + 1)]
    found = check_names(f"{who}: class_names", names)
    if len(found) <= highest:
        raise ValueError(f"{who}: there are classes up to {highest}, but only {len(found)} class_names")
    return list(found)


def short(name: str) -> str:
    """Return a name that fits into a picture."""
    return name if len(name) <= 16 else f"{name[:15]}…"


def finite(who: str, argument: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return numbers of which none is infinite or NaN."""
    array = host_array(values, f"{who}: {argument}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{who}: {argument} must be real numbers, got {array.dtype}")
    if (wrong := ~np.isfinite(array)).any():
        raise ValueError(f"{who}: {argument} must be finite, got {array[wrong].flat[0]!s}")
    return array.astype(np.float64)


@contextmanager
def without_names() -> Iterator[None]:
    """Ask an estimator that was fitted on a data frame for places of a picture, and hear nothing of missing names."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        yield


def shape_of_images(who: str, image_shape: Sequence[int]) -> tuple[int, int]:
    """Return height and width."""
    sides = check_sequence(f"{who}: image_shape", image_shape, "(height, width)")
    if len(sides) != 2:
        raise ValueError(f"{who}: image_shape must be (height, width), got {image_shape!r}")
    height, width = (check_count(f"{who}: image_shape", side) for side in sides)
    return height, width


def words(who: str, **texts: Any) -> None:
    """Raise TypeError unless what is written into a picture, given by its arguments, is text."""
    for argument, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{who}: {argument} must be text, got {text!r}")


def one_axes(who: str, ax: Any) -> Axes:
    """Return axes that were given to draw on."""
    if not hasattr(ax, "imshow") or not hasattr(ax, "get_figure"):
        raise TypeError(f"{who}: ax must be matplotlib axes, got {type(ax).__name__}")
    given: Axes = ax
    return given


def several_axes(who: str, axes: Any) -> list[Axes]:
    """Return axes that were given one by one, as a sequence, or as the array that ``Figure.subplots`` makes."""
    return [one_axes(who, ax) for ax in np.ravel(np.asarray(axes, dtype=object))]
