"""What the command line reads: CSV, ``.npz``, ``.npy`` and IDX files as features, targets and their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from fastmlp.arguments import check_choice, check_flag, check_integer, check_names, check_path
from fastmlp.datasets.array_files import ARRAY_SUFFIXES, read_npz, read_single
from fastmlp.datasets.csv_files import read_csv
from fastmlp.datasets.table import Source, Table, Task
from fastmlp.datasets.words import Kind
from fastmlp.errors import FileFormatError
from fastmlp.floating import quiet
from fastmlp.warned import warn_caller


@quiet
def load_table(
    path: str | os.PathLike[str],
    *,
    target: str | int | None = None,
    task: Task = "auto",
    feature_names: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    header: bool | None = None,
    raw: bool | Sequence[Kind] = False,
) -> Table:
    """Read a table of numbers with, where asked for, a target for each row.

    The name's ending tells the format: ``.csv`` (separated by commas), ``.npz`` (arrays ``x`` and
    ``y``), ``.npy``, or IDX (``.idx``, ``-ubyte``; gzipped with ``.gz`` after it). Nothing is unpickled.

    Parameters
    ----------
    path : path
        The file.
    target : str or int, optional
        CSV: the target column, by its name in the header row or its index from 0 (negative ones count from
        the last column; an index as text does, if no column has that name). Without it every column is a
        feature and `y` is None. NPZ: the array to take as `y` instead of ``y``, which may be missing if
        `target` is not given. NPY and IDX: the file with the targets, itself NPY or IDX.
    task : {"auto", "classification", "regression"}
        What the targets are. "classification": text or whole numbers, that become indices into `class_names`
        (sorted, numbers by value). "regression": float64. "auto": text becomes classes, whole numbers stay
        what they are (int64, no `class_names`: they may be labels or counts), other numbers are float64.
    feature_names : sequence of str, optional
        The columns to take from a CSV file, in this order; others are ignored, whatever they hold. In a file
        without names only their number is checked. Usually those of a saved model.
    class_names : sequence of str, optional
        The classes, usually those of a saved model: targets are looked up in them rather than sorted anew, so
        that an index means the same class even if the file lacks some. Implies "classification".
    header : bool, optional
        Whether the first row of a CSV file holds names. None: told by the file, see the notes.
    raw : bool or sequence of Kind
        CSV: whether features may be words (text, or True and False) and be missing, as `MLPClassifier(preprocess=...)`
        and ``MLP.preprocessing`` take them. A sequence says what each of `feature_names` is, as a model's does.

    Returns
    -------
    table : Table
        At least one row and one feature.

    Raises
    ------
    FileFormatError
        Where the file is not of the format that its name says, is truncated or damaged.
    DataError
        Where it can be read but not used: no rows, ragged rows, text or nothing where a number is expected,
        NaN or infinity (each with its place), a missing column or array (with those that are there), an
        unknown class, the wrong rank, more or fewer targets than rows.
    OSError
        FileNotFoundError and its like, as Python raises them.

    Notes
    -----
    The first row of a CSV file is a header row if it has a cell that is text, and no number but whole ones
    such as 0, 1, 2 (a target given by index does not count). Numbers alone are read as names, and a warning says so,
    where they are 0, 1, 2, ... as pandas writes, or a scale such as wavelengths: growing or falling, and far from the
    numbers below. A first column without a name, as pandas and R write their index, is left out with a warning.
    Texts that stand for a missing value (``NA``, ``?``) are no classes; numbers and dates as people write them
    (``1,234.50``, ``$3``), more than twenty numbers with units (``3.5 kg``; fewer draw a warning) and more than twenty
    texts of which there is one for every other row are classes only if `task` says so. Whole numbers with a point
    (``1.0``) are whole numbers, and ``+1`` and ``01`` are the class ``1`` where that is another text of the target, or
    one of `class_names`; else a class has the name that is written, as codes with leading zeros need. Of raw rows the
    same texts stand for missing values; a column in which most of more than twenty different values are numbers has to
    hold numbers alone. CSV files are UTF-8, or UTF-16 with or without a mark, gzipped or not. Features of a ``.npy``
    file are scanned for NaN once, in pieces, never copied.

    Warns
    -----
    UserWarning
        Of each choice that was made by the look of the file, with how to have it otherwise.
    """
    name = check_path("path", path).lower()
    if target is not None and not isinstance(target, str):
        target = check_integer("target", target, also="the name of a column, or None")
    check_choice("task", task, get_args(Task))
    if header is not None:
        header = check_flag("header", header)
    if feature_names is not None:
        feature_names = check_names("feature_names", feature_names)
    if class_names is not None:
        class_names, task = check_names("class_names", class_names), "classification"
    if not isinstance(raw, Sequence):
        raw = check_flag("raw", raw)
    source = Source(path, task, feature_names, class_names, header, raw)
    if name.endswith(".csv"):
        table = read_csv(source, target)
    elif name.endswith(".npz"):
        table = read_npz(source, target)
    elif name.endswith(ARRAY_SUFFIXES):
        table = read_single(source, target)
    else:
        raise FileFormatError(
            f"{path}: expected a name that ends in .csv, .npz, .npy, .idx or -ubyte (IDX, also with .gz), "
            f"got {Path(path).name!r}"
        )
    for text in source.said:
        warn_caller(text)
    return table
