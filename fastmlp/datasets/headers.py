"""Whether the first row of a CSV file holds the names of the columns, also where these are numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmlp.datasets.cells import WHOLE, is_missing, is_number

OTHERWISE = "header=False (--no-header) reads it as data"
_FEWEST_ROWS = 3
"""Below so many rows their numbers tell nothing about the first one."""


def is_named(cells: Sequence[str]) -> bool:
    """Return whether cells are names beyond doubt: some text, and no number but whole ones."""
    names = [cell for cell in cells if not is_number(cell) and not is_missing(cell)]
    return bool(names) and all(cell.isdecimal() for cell in cells if is_number(cell))


def is_counted(first: Sequence[str], second: Sequence[str], target: int | None) -> bool:
    """Return whether a row is 0, 1, 2, ..., the names that pandas gives; the target and an index may have others.

    Not where the second row goes on counting (of two columns: the first of them), as rows of data do that begin so.
    """
    start = 1 if first[0] == "" and target != 0 else 0
    cells = {column: cell for column, cell in enumerate(first) if column >= start and is_number(cell)}
    if len(cells) < 2 or set(range(start, len(first))) - set(cells) - {target}:
        return False
    if any(float(cell) != column - start for column, cell in cells.items()):
        return False
    going_on = list(cells)[: 1 if len(cells) == 2 else None]
    return len(second) != len(first) or any(second[column] != str(column - start + 1) for column in going_on)


def is_scale(cells: Sequence[str]) -> bool:
    """Return whether the numbers in a row, two or more, only grow or only fall, as wavelengths and years do."""
    numbers = np.array([float(cell) for cell in cells if is_number(cell)])
    steps = np.diff(numbers)
    return len(numbers) > 1 and bool((steps > 0).all() or (steps < 0).all())


def is_apart(table: npt.NDArray[np.float64]) -> bool:
    """Return whether the first row is another kind of number than those below.

    It is a scale of three numbers or more, and each lies further from the others of its column than these do from
    each other.
    """
    first, others = table[0], table[1:]
    steps = np.diff(first)
    if len(first) < 3 or len(others) < _FEWEST_ROWS or not ((steps > 0).all() or (steps < 0).all()):
        return False
    low, high = others.min(axis=0), others.max(axis=0)
    distance = np.maximum(low - first, first - high)
    return bool((distance > high - low).all())


def is_title(texts: Sequence[str], codes: npt.NDArray[Any], first: Sequence[str], others: npt.NDArray[Any]) -> bool:
    """Return whether the first of a column of classes is its name: there only, above a scale of numbers.

    Either all other classes occur again, or the numbers beside it are outside the range of those below.

    Parameters
    ----------
    texts : sequence of str
        The classes, in the order of their first row.
    codes : (n,) float
        The class of each row.
    first : sequence of str
        The other cells of the first row.
    others : (n, d) float64
        The other columns.
    """
    counts = Counter(codes.tolist())
    if is_number(texts[0]) or counts[0.0] > 1 or len(codes) < 3 or not is_scale(first):
        return False
    if all(count > 1 for code, count in counts.items() if code):
        return True
    low, high = others[1:].min(axis=0), others[1:].max(axis=0)
    return bool(((others[0] < low) | (others[0] > high)).all())


def is_mixed(cells: Sequence[str]) -> bool:
    """Return whether a row of text and fractions is one of names: three numbers of a scale, no value missing."""
    numbers = [cell for cell in cells if is_number(cell)]
    return len(numbers) > 2 and is_scale(numbers) and not any(map(is_missing, cells[1:]))


def is_index(name: str) -> bool:
    """Return whether a column, the first of a file, is the index that pandas and R write."""
    return name == "" or (name.startswith("Unnamed: ") and WHOLE.fullmatch(name[9:]) is not None)
