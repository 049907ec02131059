"""`Preprocessing`: what was learned of the columns of the training rows, and what it makes of other rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_choice, check_count, check_flag, check_integer
from fastmlp.errors import DataError
from fastmlp.floating import quiet
from fastmlp.preprocessing.columns import HOLDS, Holds, Rows, as_keys, as_numbers
from fastmlp.preprocessing.scales import SCALES, Affine, Columns, Scale

KINDS = tuple(SCALES)
BLOCK = 1 << 19
"""Numbers that are worked on at a time, so that a large array is never there a second time in float64."""
PREFIX = "preprocessing."
"""Of the names that its arrays have in files."""


class Categories(NamedTuple):
    """A column of categories, which becomes a column of 0 and 1 for each of them.

    Attributes
    ----------
    column : int
    holds : {"text", "boolean", "number"}
    known : tuple of str
        Those of the training rows, in their order.
    missing : bool
        Whether values were missing among them; that is one more, the last.
    """

    column: int
    holds: Holds
    known: tuple[str, ...]
    missing: bool

    @property
    def width(self) -> int:
        """How many columns of 0 and 1 there are."""
        return len(self.known) + self.missing


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Turns raw rows into a network's inputs, by what was learned of the training rows; `transform` does it.

    The inputs are the numbers, imputed and scaled, in the order of their columns; a flag for each column of numbers in
    which training rows had none; and for each category of the other columns whether it is the row's.

    Attributes
    ----------
    kind : {"standard", "robust", "quantile"}
    columns : int
        Of raw rows.
    numbers : (M,) int array
        The columns of numbers.  A column in which all training rows lack a value is in none of these, and is not read.
    fill : (M,) float64 array
        Their medians, which stand in for missing values.
    scale : Affine or Quantiles
    flagged : (F,) int array
        Those of the M in which values were missing.
    categories : tuple of Categories
    """

    kind: str
    columns: int
    numbers: NDArray[np.intp]
    fill: NDArray[np.float64]
    scale: Scale
    flagged: NDArray[np.intp]
    categories: tuple[Categories, ...]

    @cached_property
    def width(self) -> int:
        """How many inputs it makes."""
        return len(self.numbers) + len(self.flagged) + sum(column.width for column in self.categories)

    @property
    def affine(self) -> Affine | None:
        """What it is where it is ``(x - center) / scale`` of each column and no more; None where it is not."""
        plain = isinstance(self.scale, Affine) and len(self.numbers) == self.width == self.columns
        return self.scale if plain and isinstance(self.scale, Affine) else None

    def get_feature_names_out(self, input_features: Sequence[str] | None = None) -> NDArray[Any]:
        """Return the names of the inputs that it makes, as scikit-learn's transformers name them.

        Parameters
        ----------
        input_features : sequence of str, optional
            Names of the raw columns; None: ``x0, x1, ...``.

        Returns
        -------
        (width,) array of str objects
        """
        if input_features is not None and len(input_features) != self.columns:
            raise ValueError(f"input_features must be {self.columns} names, got {len(input_features)}")

        def name(column: int) -> str:
            return f"x{column}" if input_features is None else str(input_features[column])

        found = [name(i) for i in self.numbers]
        found += [f"missingindicator_{name(i)}" for i in self.numbers[self.flagged]]
        for column, _, known, missing in self.categories:
            found += [f"{name(column)}_{category}" for category in known]
            found += [f"{name(column)}_nan"] if missing else []
        return np.array(found, dtype=object)

    @quiet
    def transform(
        self,
        x: ArrayLike,
        argument: str = "x",
        names: Sequence[str] | None = None,
        dtype: np.dtype[Any] | type = np.float64,
    ) -> NDArray[Any]:
        """Return the network's inputs for raw rows.

        Parameters
        ----------
        x : (n, columns) array_like or data frame
        argument : str
            What `x` is called in messages.
        names : sequence of str, optional
            What the columns are called in messages.
        dtype : dtype
            float32 or float64.

        Returns
        -------
        (n, width) array

        Raises
        ------
        DataError
            Another number of columns, a column of another kind than in training, or a number that is infinite or too
            large; the message names the column.
        """
        rows = Rows.of(x, argument, names)
        if rows.shape[1] != self.columns:
            raise DataError(
                f"{argument} must have shape (n, {self.columns}), the columns that preprocess was fitted on; got "
                f"{rows.shape}"
            )
        out = np.zeros((rows.shape[0], self.width), dtype)
        if rows.matrix is not None:
            self._fill_from_matrix(rows, rows.matrix, out)
        else:
            self._fill_from_columns(rows, out)
        first = len(self.numbers) + len(self.flagged)
        for column in self.categories:
            self._fill_one_hot(rows, column, out[:, first : first + column.width])
            first += column.width
        return out

    def _fill_from_matrix(self, rows: Rows, x: NDArray[Any], out: NDArray[Any]) -> None:
        step = max(BLOCK // max(self.columns, 1), 1)
        every: Columns = slice(None) if len(self.numbers) == self.columns else self.numbers
        for start in range(0, len(x), step):
            block = slice(start, start + step)
            self._fill_numbers(rows, x[block, every].astype(np.float64), out[block], slice(0, len(self.numbers)), start)

    def _fill_from_columns(self, rows: Rows, out: NDArray[Any]) -> None:
        step = max(BLOCK // max(len(out), 1), 1)
        for start in range(0, len(self.numbers), step):
            at = slice(start, min(start + step, len(self.numbers)))
            self._fill_numbers(rows, numbers_of(rows, self.numbers[at]), out, at, 0)

    def _fill_numbers(
        self, rows: Rows, values: NDArray[np.float64], out: NDArray[Any], at: slice, first_row: int
    ) -> None:
        """Fill in some rows what becomes of the numbers in some columns; `values` are changed."""
        place = np.arange(len(self.numbers))[at]
        missing = np.isnan(values)
        if missing.any():
            np.copyto(values, self.fill[place], where=missing)
            for i in np.flatnonzero((place[0] <= self.flagged) & (self.flagged <= place[-1])) if len(place) else ():
                out[:, len(self.numbers) + i] = missing[:, self.flagged[i] - place[0]]
        scaled = self.scale.apply(values, at)
        out[:, at] = scaled
        if not np.isfinite(np.add.reduce(out[:, at], axis=None)):
            self._refuse(rows, values, out[:, at], place, first_row)

    def _refuse(
        self, rows: Rows, values: NDArray[np.float64], scaled: NDArray[Any], place: NDArray[np.intp], first_row: int
    ) -> None:
        """Raise DataError where a number is infinite, or is so once it is scaled."""
        wrong = np.argwhere(~np.isfinite(values) | ~np.isfinite(scaled))
        if len(wrong) == 0:
            return  # the sum alone was
        row, i = wrong[0].tolist()
        value, column = values[row, i], int(self.numbers[place[i]])
        if np.isinf(value):
            raise rows.refuse(column, f"holds {value} in row {first_row + row}; it must be finite", first_row + row)
        wider = "" if scaled.dtype == np.float64 else ", or use dtype='float64'"
        raise rows.refuse(
            column,
            f"holds {value:.3g} in row {first_row + row}, too far from the training rows to be scaled in "
            f"{scaled.dtype}; take that row out{wider}",
            first_row + row,
        )

    def _fill_one_hot(self, rows: Rows, column: Categories, out: NDArray[Any]) -> None:
        places: dict[str | None, int] = {category: i for i, category in enumerate(column.known)}
        if column.missing:
            places[None] = len(column.known)
        keys = as_keys(rows, column.column, column.holds)
        at = np.fromiter((places.get(key, -1) for key in keys), np.intp, len(keys))
        there = np.flatnonzero(at >= 0)
        out[there, at[there]] = 1

    # --- files ---

    def to_file(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return plain values and arrays, by their names in files."""
        described = {
            "kind": self.kind,
            "columns": self.columns,
            "numbers": self.numbers.tolist(),
            "flagged": self.flagged.tolist(),
            "categories": [{**column._asdict(), "known": list(column.known)} for column in self.categories],
        }
        arrays = {"fill": self.fill, **self.scale.arrays()}
        return described, {f"{PREFIX}{name}": array for name, array in arrays.items()}

    @classmethod
    def from_file(cls, described: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Preprocessing:
        """Return what a file kept; ValueError, TypeError or KeyError where that makes no sense."""
        kind = check_choice("preprocessing", described["kind"], KINDS)
        columns = check_count("columns", described["columns"])
        numbers = _places("numbers", described["numbers"], columns)
        flagged = _places("flagged", described["flagged"], len(numbers))
        categories = tuple(map(_categories, described["categories"]))
        of_categories = _places("categories", [column.column for column in categories], columns)
        if np.intersect1d(numbers, of_categories).size:
            raise ValueError("preprocessing: a column holds numbers or categories, not both")
        arrays = {name.removeprefix(PREFIX): array for name, array in tensors.items() if name.startswith(PREFIX)}
        fill = arrays["fill"]
        if fill.dtype != np.float64 or fill.shape != numbers.shape or not np.isfinite(fill).all():
            raise ValueError(f"preprocessing: fill must be {len(numbers)} finite numbers in float64")
        scale = SCALES[kind].from_arrays(arrays, len(numbers))
        return cls(kind, columns, numbers, fill, scale, flagged, categories)


def numbers_of(rows: Rows, columns: Sequence[int] | NDArray[np.intp]) -> NDArray[np.float64]:
    """Return columns of numbers, (n, m), NaN where a value is missing."""
    out = np.empty((rows.shape[0], len(columns)))
    for i, column in enumerate(columns):
        out[:, i] = as_numbers(rows, int(column))
    return out


def _places(name: str, given: Any, below: int) -> NDArray[np.intp]:
    """Return numbers of columns, which grow; ValueError where they do not, or there are no such columns."""
    places = [check_integer(name, place) for place in given]
    if any(not 0 <= place < below for place in places) or sorted(set(places)) != places:
        raise ValueError(f"preprocessing: {name} must be growing numbers of columns below {below}")
    return np.array(places, dtype=np.intp)


def _categories(values: Mapping[str, Any]) -> Categories:
    holds: Any = check_choice("holds", values["holds"], HOLDS)
    known = list(values["known"])
    if not all(isinstance(category, str) for category in known) or len(set(known)) < len(known):
        raise ValueError("preprocessing: known must be texts that differ")
    found = Categories(
        check_integer("column", values["column"]), holds, tuple(known), check_flag("missing", values["missing"])
    )
    if found.width == 0:
        raise ValueError("preprocessing: known must be one category at least")
    return found
