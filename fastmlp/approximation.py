"""The universal approximation theorem by construction: a network through given points, without any training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_dtype
from fastmlp.backends.foreign import host_array
from fastmlp.errors import DataError
from fastmlp.floating import quiet
from fastmlp.model import MLP

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend


@quiet
def relu_interpolant(
    x: ArrayLike,
    y: ArrayLike,
    *,
    backend: str | Backend = "auto",
    dtype: str | type | np.dtype[Any] = "float64",
) -> MLP:
    """Return the one-hidden-layer ReLU network that goes through all points and is linear between them.

    With the points sorted and ``s_i = (y_{i+1} - y_i) / (x_{i+1} - x_i)``, the slope of piece i, it is

        f(t) = y_1 + sum_i (s_i - s_{i-1}) relu(t - x_i),    s_0 = s_n = 0,

    one hidden unit a point: each bends the line where its point lies.  Left of the first and right of the last point
    it is constant, so that everywhere it is ``numpy.interp(t, x, y)``.  Where y samples a function f, with
    ``h = max(x_{i+1} - x_i)``, the error between the points is at most ``h**2 / 8 * max |f''|``.

    Parameters
    ----------
    x : (n,) or (n, 1) array_like
        At least two points, all different, in any order.
    y : (n,) or (n, 1) array_like
        The values there.
    backend : str or Backend
        As for `fastmlp.MLP`.
    dtype : {"float32", "float64"}
        Many points need double precision: what the units add cancels, and rounding grows with their number.

    Returns
    -------
    MLP
        Of the units (1, n, 1), its loss the mean squared error; it can be trained further like any other.

    Raises
    ------
    DataError
        There are fewer than two points, x and y differ in number, two x are equal in `dtype`, or a value is not
        finite.

    Examples
    --------
    >>> import numpy as np
    >>> from fastmlp.approximation import relu_interpolant
    >>> x = np.linspace(0, np.pi, 9)
    >>> model = relu_interpolant(x, np.sin(x))
    >>> bool(np.allclose(model.predict(x[:, None]), np.sin(x)))
    True
    """
    kind = check_dtype(dtype)
    points, values = _column("x", x, kind), _column("y", y, kind)
    if len(points) != len(values) or len(points) < 2:
        raise DataError(
            f"relu_interpolant: expected as many y as x, at least 2; got {len(points)} x and {len(values)} y"
        )
    order = np.argsort(points, kind="stable")
    points, values = points[order], values[order]
    steps = np.diff(points)
    if (equal := np.flatnonzero(steps == 0)).size:
        raise DataError(
            f"relu_interpolant: the points must differ in x, got {points[equal[0]]!r} twice (in {kind.name}); "
            "leave one of them out"
        )
    slopes = np.diff(values) / steps
    bends = np.diff(slopes, prepend=0.0, append=0.0)
    model = MLP((1, len(points), 1), loss="mean_squared_error", backend=backend, dtype=kind, seed=0)
    model.set_weights([np.ones((1, len(points))), -points, bends[:, None], values[:1]])
    return model


def _column(name: str, values: ArrayLike, dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """Return (n,) values as `dtype` holds them, in float64."""
    array = host_array(values, f"relu_interpolant: {name}")
    if array.dtype.kind not in "biuf" or not (array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)):
        raise DataError(
            f"relu_interpolant: {name} must hold real numbers, (n,) or (n, 1); got {array.dtype} {array.shape}"
        )
    column: NDArray[np.float64] = array.reshape(-1).astype(dtype).astype(np.float64)
    if not np.isfinite(column).all():
        raise DataError(f"relu_interpolant: {name} must be finite, got {column[~np.isfinite(column)][0]}")
    return column
