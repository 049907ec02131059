"""Arrays whose columns are examples: on which backend they are, in which type they meet, and whether shapes fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.arguments import check_count, check_sequence
from fastmlp.backends.choosing import get_backend
from fastmlp.backends.foreign import refuse_masked

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend


def backend_of(**arrays: Array) -> Backend:
    """Return the backend whose arrays these are, given by their names; TypeError unless they hold real numbers."""
    libraries = {name: type(array).__module__.partition(".")[0] for name, array in arrays.items()}
    for name, array in arrays.items():
        if libraries[name] not in ("numpy", "cupy") or not hasattr(array, "dtype"):
            raise TypeError(
                f"{name} must be a NumPy array or a CuPy array, got {type(array).__name__} of "
                f"{type(array).__module__}; pass numpy.asarray({name})"
            )
        refuse_masked(name, array)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} must hold real numbers, up to float64; got {array.dtype}")
    if len(found := set(libraries.values())) > 1:
        raise TypeError(
            f"{', '.join(arrays)} must be NumPy arrays or CuPy arrays, all of one kind; got {', '.join(sorted(found))}"
        )
    return get_backend(found.pop())


def float_type(*arrays: Array) -> np.dtype[Any]:
    """Return the float type in which these arrays meet: float64 wherever there is doubt."""
    kind: np.dtype[Any] = np.result_type(*(array.dtype for array in arrays), np.float32)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"expected arrays of real numbers, up to float64; got {[str(a.dtype) for a in arrays]}")
    return kind


def as_rows(*arrays: Array) -> list[Array]:
    """Return the transposes in one float type: where the mathematics is done, rows are examples."""
    kind = float_type(*arrays)
    return [array.T.astype(kind, copy=False) for array in arrays]


def row_copies(backend: Backend, *arrays: Array) -> list[Array]:
    """Return copies of the transposes with two axes, for operations that work in place."""
    shapes = [(math.prod(array.shape[1:]), array.shape[0] if array.ndim else 1) for array in arrays]
    return [backend.copy(rows.reshape(shape)) for rows, shape in zip(as_rows(*arrays), shapes, strict=True)]


def outputs_and_targets(AL: Array, Y: Array) -> tuple[Array, Array]:
    """Return outputs (n, m) and targets shaped like them, given as that or, for one output, as (m,); as floats."""
    backend_of(AL=AL, Y=Y)
    expect_matrix(None, "AL", AL)
    if Y.ndim == 1 and AL.shape[0] == 1:
        Y = Y[None, :]
    expect_shape(None, "Y", Y, AL.shape, f"AL is {AL.shape}")
    expect_examples(None, "AL", AL)
    kind = float_type(AL)
    return AL.astype(kind, copy=False), Y.astype(kind, copy=False)


def layers_of(parameters: Mapping[str, Array], **others: Any) -> int:
    """Return the number of layers of W1, b1, ..., WL, bL; TypeError unless these, and others, are mappings."""
    for argument, value in {"parameters": parameters, **others}.items():
        if not isinstance(value, Mapping):
            raise TypeError(f"{argument} must be a mapping from name to array, got {value!r}")
    last = max(sum(str(name)[:1] == "W" for name in parameters), 1)
    for layer in range(1, last + 1):
        for name in (f"W{layer}", f"b{layer}"):
            if name not in parameters:
                raise ValueError(
                    f"layer {layer}: parameters has no {name!r}; there are {', '.join(parameters) or 'none'}"
                )
    return last


def layer_units(argument: str, dims: Sequence[int]) -> list[int]:
    """Return the numbers of units from the inputs to the outputs."""
    given = check_sequence(argument, dims, "numbers of units such as (2, 4, 1)")
    units = [check_count(argument, n) for n in given]
    if len(units) < 2:
        raise ValueError(f"{argument} needs the numbers of inputs and outputs at least, got {tuple(units)}")
    return units


def parts_of(layer: int | None, cache: Any, names: str, maker: str) -> tuple[Any, ...]:
    """Return what a cache holds; TypeError unless it is a tuple of as many as there are names."""
    wanted = names.count(",") + 1
    if not isinstance(cache, tuple | list) or len(cache) != wanted:
        got = f"{type(cache).__name__} of {len(cache)}" if isinstance(cache, tuple | list) else type(cache).__name__
        raise TypeError(f"{_where(layer)}cache is a {got}, expected ({names}), what {maker} returned")
    return tuple(cache)


def expect_examples(layer: int | None, name: str, array: Array) -> None:
    """Raise ValueError where there are no columns to take a mean over."""
    if not array.shape[1]:
        raise ValueError(f"{_where(layer)}{name} is {array.shape}, expected at least one column: columns are examples")


def expect_matrix(layer: int | None, name: str, array: Array) -> None:
    """Raise ValueError unless the array has two axes; `layer` is named where it is known."""
    if array.ndim != 2:
        raise ValueError(f"{_where(layer)}{name} is {array.shape}, expected a matrix; columns are examples")


def expect_shape(layer: int | None, name: str, array: Array, shape: tuple[int, ...], because: str) -> None:
    """Raise ValueError unless the array has the shape that follows from another."""
    if array.shape != shape:
        raise ValueError(f"{_where(layer)}{name} is {array.shape}, expected {shape}, since {because}")


def _where(layer: int | None) -> str:
    return f"layer {layer}: " if layer else ""
