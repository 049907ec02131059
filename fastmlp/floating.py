"""Floating-point arithmetic: how it goes on whatever a program asks of NumPy, and how far rounding may take it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

quiet = np.errstate(all="ignore")
"""Decorates what users call.  What underflows is 0, as it should be in an exponential; what overflows or is NaN is
looked for where it matters, and refused by name: ``np.seterr(all="raise")`` is for a program's own arithmetic."""


def negligible(dtype: Any) -> float:
    """Return the number of a type below which moments count as 0, so that their squares are no subnormal numbers."""
    return float(np.finfo(dtype).tiny) * 2**30


def rounding(unit: float, terms: int, size: Any) -> Any:
    """Return what rounding may do to a sum, ``unit * sqrt(terms) * size``.

    Rounding errors have either sign, so that they grow with the root of their number (Higham and Mary 2019).

    Parameters
    ----------
    unit : float
        The roundings that an element takes, about, times the type's epsilon.
    terms : int
        Of the longest sum.
    size : float or array
        Of what rounding acts on: the largest of the sums, or of their terms.
    """
    return unit * math.sqrt(terms) * size


def in_units_of(allowed: Any, found: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Return each element's difference in units of what is allowed.

    It is 0 where both are equal, or neither is finite; without bound where one alone is finite, or nothing is allowed.
    """
    a, b = found.astype(np.float64), expected.astype(np.float64)
    alike = (a == b) | ~(np.isfinite(a) | np.isfinite(b))
    with np.errstate(all="ignore"):
        off = np.where(alike, 0.0, np.abs(a - b) / allowed)
    return np.nan_to_num(off, nan=np.inf)
