"""Learning of the columns of training rows, with scikit-learn's transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import QuantileTransformer, RobustScaler, StandardScaler

from fastmlp.arguments import check_choice
from fastmlp.errors import DataError
from fastmlp.floating import quiet
from fastmlp.preprocessing.columns import Column, Holds, Rows
from fastmlp.preprocessing.record import KINDS, Categories, Preprocessing
from fastmlp.preprocessing.scales import Affine, Quantiles, Scale
from fastmlp.warned import warn_caller

MOST_CATEGORIES = 1000
"""Of a column; each is an input of the network."""
_FAR = 30
"""Powers of 2 from which on numbers are brought near 1 before they are looked at: squares of large ones overflow, and
scikit-learn takes a spread below 1e-15, in whatever unit, for none."""


@quiet
def fit_preprocessing(
    x: ArrayLike, kind: str, *, argument: str = "X", names: Sequence[str] | None = None, random_state: Any = None
) -> Preprocessing:
    """Return what training rows tell of their columns.

    Parameters
    ----------
    x : (n, columns) array_like or data frame
        Numbers may be missing: NaN, None, or null.
    kind : {"standard", "robust", "quantile"}
        What numbers become: mean 0 and deviation 1; median 0 and interquartile range 1; or normally distributed, by
        their ranks.  Constant columns become 0 in each.
    argument, names
        What the rows, and their columns, are called in messages.
    random_state : int, RandomState or None
        Of "quantile", which looks at 10,000 rows of more.

    Raises
    ------
    DataError
        A column holds what is neither number nor category, values of several kinds, infinity or too many categories.

    Warns
    -----
    UserWarning
        All values of a column are missing; it is left out.
    """
    check_choice("preprocess", kind, KINDS)
    rows = Rows.of(x, argument, names)
    numbers: list[int] = []
    categories: list[Categories] = []
    parts: list[NDArray[np.float64]] = []
    matrix, empty = rows.matrix, []
    if matrix is not None:
        values = matrix.astype(np.float64)
        gone = np.isnan(values).all(axis=0)
        numbers, empty = np.flatnonzero(~gone).tolist(), np.flatnonzero(gone).tolist()
        values = values if not empty else values[:, numbers]
    else:
        for at in range(rows.shape[1]):
            column = rows.column(at)
            if column.numbers is not None and not np.isnan(column.numbers).all():
                numbers.append(at)
                parts.append(column.numbers)
            elif column.keys is not None and column.holds is not None:
                categories.append(_categories_of(rows, at, column, column.holds))
            else:
                empty.append(at)
        values = np.stack(parts, axis=1) if parts else np.empty((rows.shape[0], 0))
    for at in empty:
        warn_caller(f"{argument}: {rows.name(at)} holds no value in the training rows, and is left out")
    if not numbers and not categories:
        raise DataError(f"{argument} must hold a value in some column of the training rows, got none")
    if np.isinf(values).any():
        row, i = np.argwhere(np.isinf(values))[0].tolist()
        raise rows.refuse(numbers[i], f"holds {values[row, i]} in row {row}; it must be finite", row)
    fill, scale, flagged = _of_numbers(values, kind, random_state)
    places = np.array(numbers, dtype=np.intp)
    return Preprocessing(kind, rows.shape[1], places, fill, scale, flagged, tuple(categories))


def _categories_of(rows: Rows, at: int, column: Column, holds: Holds) -> Categories:
    assert column.keys is not None
    found = set(column.keys)
    missing = None in found
    known = sorted((key for key in found if key is not None), key=float if holds == "number" else str)
    if len(known) > MOST_CATEGORIES:
        raise rows.refuse(
            at,
            f"holds {len(known):,} categories in {rows.shape[0]:,} rows, expected {MOST_CATEGORIES:,} at most; "
            "leave the column out where it names the rows, group the rare ones, or encode it",
        )
    return Categories(at, holds, tuple(known), missing)


def _of_numbers(
    values: NDArray[np.float64], kind: str, random_state: Any
) -> tuple[NDArray[np.float64], Scale, NDArray[np.intp]]:
    """Return the medians, the scale, and which columns miss values, of numbers; they are changed."""
    if values.shape[1] == 0:
        none = np.empty(0)
        return none, Quantiles(np.empty((1, 0))) if kind == "quantile" else Affine(none, none), np.empty(0, np.intp)
    missing = np.isnan(values)
    high, low = np.fmax.reduce(values, axis=0), np.fmin.reduce(values, axis=0)
    exponent = np.frexp(np.maximum(np.abs(high), np.abs(low)))[1]
    exponent = np.where(np.abs(exponent) > _FAR, exponent, 0)  # a power of 2 changes no digit
    if exponent.any():
        values = np.ldexp(values, -exponent)
    flagged = np.flatnonzero(missing.any(axis=0))
    imputer = SimpleImputer(strategy="median").fit(values)
    fill: NDArray[np.float64] = np.asarray(imputer.statistics_, np.float64)
    if len(flagged):
        values = np.where(missing, fill, values)
    scale: Scale
    if kind == "quantile":
        count = min(1000, len(values))
        ranks = QuantileTransformer(n_quantiles=count, output_distribution="normal", random_state=random_state)
        scale = Quantiles(np.ldexp(ranks.fit(values).quantiles_, exponent))
    else:
        scaler = (StandardScaler() if kind == "standard" else RobustScaler()).fit(values)
        center = scaler.mean_ if kind == "standard" else scaler.center_
        least = np.nextafter(0, 1)  # what is above 0 stays so
        spread = np.where(high == low, np.inf, np.maximum(np.ldexp(scaler.scale_, exponent), least))
        scale = Affine(np.ldexp(np.where(high == low, values[0], center), exponent), spread)
    return np.ldexp(fill, exponent), scale, flagged
