"""What a run of the command line trains on: the rows, those held out, the loss that suits them, their scaling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_dtype
from fastmlp.cli.scaling import Scaling, kinds_of
from fastmlp.cli.settings import Settings
from fastmlp.datasets.cells import listed
from fastmlp.datasets.csv_files import line_of
from fastmlp.datasets.headers import is_index
from fastmlp.datasets.mnist import load_mnist
from fastmlp.datasets.table import Table, Task
from fastmlp.datasets.tables import load_table
from fastmlp.datasets.text_files import open_text, records
from fastmlp.engine.batches import Parts, split_rows
from fastmlp.engine.ranges import check_held
from fastmlp.engine.row_weights import row_classes
from fastmlp.errors import DataError, NonFiniteLossError
from fastmlp.formulas.losses import LOSSES, MeanSquaredError, SigmoidCrossEntropy

if TYPE_CHECKING:
    from fastmlp.formulas.losses import Loss
    from fastmlp.model import MLP

Examples = tuple[NDArray[Any], NDArray[Any]]
"""Inputs and targets."""

DIGITS = tuple("0123456789")
MAX_CLASSES = 100
"""Whole numbers with more different values than this are taken as values, not as classes."""
_SCALED_TARGETS = ("mean_squared_error", "mean_absolute_error", "huber", "quantile")


@dataclass(frozen=True)
class RunData:
    """Examples to train on and to measure with.

    Attributes
    ----------
    train, validation, test : (x, y), or None
        As they are in the file; the training alone sees them scaled.
    outputs : int
        Of the network.
    loss : str
    scaling : Scaling or None
    class_names, feature_names : tuple of str or None
    image_shape : tuple of int or None
        Height and width, where rows are images.
    description : str
        What was made of the data, a line.
    split : float
        Where rows stay in place on the disk `train` are all of them, and training holds out this fraction by itself:
        those that `validation` has.
    parts : Parts or None
        Which rows of the file train and are held out, where these were drawn and `train` is not all of them.
    """

    train: Examples
    validation: Examples | None
    test: Examples | None
    outputs: int
    loss: str
    scaling: Scaling | None
    class_names: tuple[str, ...] | None
    feature_names: tuple[str, ...] | None
    image_shape: tuple[int, int] | None
    description: str
    split: float = 0.0
    parts: Parts | None = None

    @property
    def training_rows(self) -> int:
        """How many rows train."""
        held_out = len(self.validation[0]) if self.validation is not None and self.split else 0
        return len(self.train[0]) - held_out

    @property
    def inputs(self) -> int:
        """Of the network."""
        columns: int = self.train[0].shape[1]
        return columns if self.scaling is None else self.scaling.features.width

    @property
    def measured(self) -> tuple[str, Examples]:
        """The rows that the final figures are taken on, and what to call them."""
        if self.test is not None:
            return "test", self.test
        return ("validation", self.validation) if self.validation is not None else ("training", self.train)

    def naming_lines(self, data: str, measuring: bool = False) -> AbstractContextManager[None]:
        """Add to errors about a row of `train`, or of `measured`, in which line of the file it is."""
        if self.parts is None:
            return naming_lines(data, len(self.train[0]))
        train, held_out = self.parts
        return naming_lines(data, len(train) + len(held_out), held_out if measuring else train, held_out)

    def scaled(self, rows: Examples) -> Examples:
        """Return rows as the training sees them."""
        return rows if self.scaling is None else self.scaling.apply(*rows)


@contextmanager
def naming_lines(
    data: str, count: int, rows: NDArray[np.intp] | None = None, held_out: NDArray[np.intp] | None = None
) -> Iterator[None]:
    """Add to errors about a row of a CSV file in which line it is.

    Parameters
    ----------
    data : str
        The file; of what is no CSV file nothing is added.
    count : int
        Its rows.
    rows : (n,) int, optional
        Which of them those are that errors count from 0; all of them, in their order, if not given.
    held_out : (m,) int, optional
        Those that errors about the validation data count.
    """
    try:
        yield
    except (DataError, NonFiniteLossError) as e:
        if e.row is not None and e.row >= 0 and data.lower().endswith(".csv"):
            given = held_out if " of validation_data" in str(e) else rows
            line = line_of(data, e.row if given is None else int(given[e.row]), count)
            e.args = (f"{str(e).rstrip('.')}; row {e.row} is line {line} of {data}",)
        raise


def load_run(settings: Settings, by_class: bool = True) -> RunData:
    """Read what a run needs.

    Parameters
    ----------
    settings : Settings
    by_class : bool
        Whether of each class the same share is held out. Runs that earlier versions began hold out any rows, and the
        last ones where rows stay in place on the disk; False holds out theirs.

    Raises
    ------
    DataError, FileFormatError, OSError
        The data cannot be used with these settings.
    ValueError
        The settings make no sense.
    """
    loss = LOSSES.record(settings.loss) if settings.loss else None
    if settings.data == "mnist":
        if loss and not loss.takes_labels:
            raise ValueError(f"--loss {loss.name} is not for classes, and mnist has ten of them")
        train, test = load_mnist(raw=True)
        rows = len(train[0])
        train, validation = _last_rows(train, settings)
        name, said = settings.loss or "softmax_cross_entropy", f"tested on {len(test[0]):,} more"
        said = _counts(rows, validation, said)
        return RunData(train, validation, test, 10, name, None, DIGITS, None, (28, 28), said)
    table, name, said = _table(settings)
    assert table.y is not None
    dtype, wider = check_dtype(settings.dtype), "use --dtype float64"
    outputs, scaling = _outputs(name, table, settings), None
    in_place = isinstance(table.x, np.memmap) and not _standardizes(settings, table)
    train, validation, parts = (table.x, table.y), None, None
    with naming_lines(settings.data, len(table.x)):
        check_held(table.x, dtype, settings.data, training=True, names=table.feature_names, cure=wider)
        check_held(table.y, dtype, f"{settings.data}: the target", training=True, cure=wider)
        if settings.validation and not (in_place and not by_class):
            parts = _parts(table.y, settings, name, outputs, by_class)
    if in_place and not by_class:
        train, validation = _last_rows(train, settings)
        in_place = False
    if parts is not None:
        validation = table.x[parts.held_out], table.y[parts.held_out]
        if not in_place:
            train = table.x[parts.train], table.y[parts.train]
    if _standardizes(settings, table):
        kind = settings.preprocess or "standard"
        scaling = Scaling.of(train, kind, name in _SCALED_TARGETS, table.feature_names, settings.seed)
        scaling.check_held(dtype, settings.data, name == MeanSquaredError.name)
        said += ", standardized for the training" if kind == "standard" else f", scaled ({kind}) for the training"
        if scaling.target is not None:
            said += " (and so are the losses of its epochs)"
    features = f"{table.x.shape[1]} features"
    if scaling is not None and scaling.features.width != table.x.shape[1]:
        features += f" that become {scaling.features.width} inputs"
    described = _counts(len(table.x), validation, f"{features}, {said}")
    names = table.class_names, table.names_of_file
    split = settings.validation if in_place else 0.0
    parts = None if in_place else parts
    return RunData(train, validation, None, outputs, name, scaling, *names, None, described, split, parts)


def _counts(rows: int, validation: Examples | None, rest: str) -> str:
    count = 0 if validation is None else len(validation[0])
    held = f", {count:,} held out" if count else ""
    return f"{rows - count:,} rows to train on{held}, {rest}"


def _standardizes(settings: Settings, table: Table) -> bool:
    """Decide whether columns are scaled: those of CSV files come in units of their own, arrays as they should be."""
    if settings.standardize is None and settings.preprocess is None:
        return settings.data.lower().endswith(".csv")
    asked = settings.standardize is not False
    if asked and table.x.dtype == np.uint8:
        option = "--standardize" if settings.preprocess is None else "--preprocess"
        raise ValueError(f"{option}: features of type uint8 are divided by 255 already")
    return asked


def _table(settings: Settings) -> tuple[Table, str, str]:
    """Return the table with classes numbered, the loss, and what the target was taken for."""
    loss = LOSSES.record(settings.loss) if settings.loss else None
    task: Task = "auto"
    if loss:
        task = "classification" if loss.takes_labels or _is_sigmoid(loss) else "regression"
    wanted = "expected a target to learn; name it with --target"
    _check_target_named(settings.data, settings.target, wanted)
    asked: dict[str, Any] = {"target": settings.target, "header": settings.header, "raw": settings.takes_raw_rows}
    table = load_table(settings.data, task=task, **asked)
    if table.y is None:
        where = "the array of an .npz file, for .npy and IDX the file with the targets"
        raise DataError(f"{settings.data}: {wanted} ({where})")
    names, cure = table.class_names, ""
    if loss is None and names is None and table.y.ndim == 1 and table.y.dtype.kind == "i":
        if len(np.unique(table.y)) <= MAX_CLASSES:
            task = "classification"
            table = load_table(settings.data, task=task, **asked)
            names, cure = table.class_names, " (for values, --loss mean_squared_error)"
        else:
            cure = " (for classes, --loss softmax_cross_entropy)"
    if names is not None:
        if len(names) < 2:
            raise DataError(f"{settings.data}: expected two classes or more in the target, got {names[0]!r} only")
        return table, loss.name if loss else "softmax_cross_entropy", f"{len(names)} classes{cure}"
    assert table.y is not None
    said = f"target in values{cure}" if table.y.ndim == 1 else _columns_said(table.y, loss)
    return table, loss.name if loss else "mean_squared_error", said


def _columns_said(y: NDArray[Any], loss: Loss | None) -> str:
    """Return what a target of several columns was taken for, and how to have rows of 0 and 1 taken otherwise."""
    count = y.shape[1]
    if loss is not None and loss.takes_labels:
        return f"probabilities of {count} classes"
    if loss is not None and _is_sigmoid(loss):
        return f"{count} label{'s'[: count != 1]} a row"
    cure = ""
    if loss is None and ((y == 0) | (y == 1)).all():
        one_each = (y.sum(axis=1) == 1).all()
        cure = " (for classes, --loss softmax_cross_entropy)" if one_each else ""
        cure = cure or " (for several labels a row, --loss sigmoid_cross_entropy)"
    return f"target in values{cure}"


def _is_sigmoid(loss: object) -> bool:
    return isinstance(loss, SigmoidCrossEntropy)


def _outputs(loss: str, table: Table, settings: Settings) -> int:
    assert table.y is not None
    if table.class_names is None:
        targets: int = table.y.shape[1] if table.y.ndim == 2 else 1
        return targets * len(settings.quantiles or (0.5,))
    if loss == SigmoidCrossEntropy.name:
        if len(table.class_names) != 2:
            raise DataError(
                f"{settings.data}: --loss {loss} is for two classes, the target has {len(table.class_names)}; use "
                "softmax_cross_entropy"
            )
        return 1
    return len(table.class_names)


def _parts(y: NDArray[Any], settings: Settings, loss: str, outputs: int, by_class: bool) -> Parts | None:
    """Return the rows that `validation_split` would hold out, and the others."""
    _held_out(settings, len(y))
    record = replace(settings, loss=loss).loss_record()
    labels = row_classes(record, record.prepare_targets(y, outputs)) if by_class else None
    return split_rows(len(y), settings.validation, settings.seed, labels)


def _last_rows(rows: Examples, settings: Settings) -> tuple[Examples, Examples | None]:
    """Split off the last rows of a file that is known to be in no order."""
    x, y = rows
    if settings.validation == 0.0:
        return rows, None
    count = _held_out(settings, len(x))
    return (x[:-count], y[:-count]), (x[-count:], y[-count:])


def _held_out(settings: Settings, rows: int) -> int:
    """Return how many rows are held out."""
    count = round(settings.validation * rows)
    if not 0 < count < rows:
        raise DataError(
            f"--validation {settings.validation:g} of {rows} rows leaves no row to "
            f"{'validate with' if count == 0 else 'train on'}; choose another fraction, or 0"
        )
    return count


def _check_target_named(data: str, target: str | None, wanted: str) -> None:
    """Refuse a CSV file of whose columns none is named as the target: its classes would be read as features."""
    if target is None and data.lower().endswith(".csv"):
        with open_text(data) as file:
            _, first = next(records(data, file), (0, []))
        columns = ", ".join(first[:8])[:200]
        raise DataError(f"{data}: {wanted}, a column by its name or number; the first row is {columns}")


def load_rows(
    model: MLP, data: str, target: str | None, *, with_target: bool, header: bool | None = None
) -> tuple[NDArray[Any], Any]:
    """Read rows for a model that is there: x, and y as its loss takes it (None where it is not asked for).

    Raises
    ------
    DataError, FileFormatError, OSError
        The data cannot be used with this model.
    ValueError
        The target to leave out is a feature of the model.
    """
    loss, raw = model.spec.loss, kinds_of(model.preprocessing)
    if data == "mnist":
        _, (x, y) = load_mnist(raw=True)
        table = Table(x, y, (), None)
    elif not with_target:
        table = _without_target(model, data, target, header)
    else:
        classes = model.class_names if loss.takes_labels or _is_sigmoid(loss) else None
        task: Task = "auto" if loss.takes_labels else "regression"
        names, wanted = model.feature_names, "expected a target to compare with; name it with --target"
        _check_target_named(data, target, wanted)
        asked: dict[str, Any] = {"feature_names": names, "header": header, "raw": raw}
        table = load_table(data, target=target, task=task, class_names=classes, **asked)
        if table.y is None:
            raise DataError(f"{data}: {wanted}")
    if table.x.shape[1] != _columns(model):
        raise _other_columns(model, data, table.x.shape[1], target)
    return table.x, table.y


def _other_columns(model: MLP, data: str, got: int, target: str | None) -> DataError:
    cure = "" if target is not None or data == "mnist" else "; if one of them is the target, name it with --target"
    return DataError(f"{data}: expected {_columns(model)} features, as the model has inputs; got {got}{cure}")


def _without_target(model: MLP, data: str, target: str | None, header: bool | None) -> Table:
    """Read features, leaving out the target column of a CSV file, whatever it holds, where the file has it."""
    names = model.feature_names
    asked: dict[str, Any] = {"header": header, "raw": kinds_of(model.preprocessing)}
    if not data.lower().endswith(".csv"):
        return load_table(data, feature_names=names, **asked)
    with open_text(data) as file:
        _, first = next(records(data, file), (0, []))
    if target is None:
        columns = len(first) - is_index(next(iter(first), ""))
        if names is None and columns > _columns(model):  # one of them may be words, which no number is
            raise _other_columns(model, data, columns, target)
        return load_table(data, feature_names=names, **asked)
    if names and target in names:
        raise ValueError(
            f"--target {target} is a feature of the model, which cannot be left out; its are {listed(names)}"
        )
    if target in first and header is not False:
        names = names or tuple(name for name in first if name not in (target, ""))
        return load_table(data, feature_names=names, **{**asked, "header": True})
    if len(first) > _columns(model) and target.lstrip("-").isdecimal():
        if names and header is not False and -len(first) <= int(target) < len(first) and first[int(target)] in names:
            raise ValueError(
                f"--target {target} is {first[int(target)]!r}, a feature of the model, which cannot be left out"
            )
        return load_table(data, target=target, feature_names=names, **asked)
    return load_table(data, feature_names=names, **asked)


def _columns(model: MLP) -> int:
    """Return how many columns the rows have that a model takes."""
    return model.spec.units[0] if model.preprocessing is None else model.preprocessing.columns
