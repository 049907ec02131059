"""What a run of the command line is told: its settings, as options and as records."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmlp.arguments import check_choice, check_count, check_flag, check_integer, check_number, check_seed
from fastmlp.formulas.records import settle
from fastmlp.preprocessing.record import KINDS

if TYPE_CHECKING:
    from fastmlp.formulas.losses import Loss
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.formulas.schedules import Schedule

MNIST: dict[str, Any] = {
    "hidden": (512,),
    "epochs": 10,
    "batch_size": 128,
    "dropout": (0.2,),
    "validation": 0.1,
}
"""Defaults of ``fastmlp train mnist``, chosen on 10,000 held-out training images."""
TABLE: dict[str, Any] = {
    "hidden": (64, 64),
    "epochs": 50,
    "batch_size": 32,
    "dropout": (0.0,),
    "validation": 0.2,
}
"""Defaults of ``fastmlp train FILE``."""
RATES = {"sgd": 0.1, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3}
"""Default learning rate by optimizer; that of the schedule's highest point."""


@dataclass(frozen=True)
class Settings:
    """Everything that decides what a run computes; a field is called as its option.

    Parameters
    ----------
    data : str
        ``"mnist"`` or the absolute path of a file.
    target, header, loss, quantiles, standardize, preprocess, weight_decay, momentum, label_smoothing, clip_norm, ema
        None where the data or the optimizer decide, or where there is none.
    dropout : tuple of float
        One rate for all hidden layers, or (input, hidden 1, ...).
    seed : int
    shards : int or None
        Into how many parts a batch is cut, for several processes; None where one trains on whole batches.
    """

    data: str
    hidden: tuple[int, ...]
    epochs: int
    batch_size: int
    dropout: tuple[float, ...]
    validation: float
    seed: int
    target: str | None = None
    header: bool | None = None
    loss: str | None = None
    quantiles: tuple[float, ...] | None = None
    standardize: bool | None = None
    preprocess: str | None = None
    activation: str = "relu"
    optimizer: str = "adam"
    lr: float | None = None
    schedule: str = "one_cycle"
    l2: float = 0.0
    weight_decay: float | None = None
    momentum: float | None = None
    label_smoothing: float | None = None
    clip_norm: float | None = None
    ema: float | None = None
    backend: str = "auto"
    dtype: str = "float32"
    shards: int | None = None

    def __post_init__(self) -> None:
        # options come in their types; what a config.toml says that was edited by hand does not
        checked: dict[str, Any] = {
            "hidden": tuple(check_count("--hidden", size) for size in _numbers("hidden", self.hidden)),
            "dropout": tuple(check_number("--dropout", rate) for rate in _numbers("dropout", self.dropout)),
            "epochs": check_count("--epochs", self.epochs),
            "batch_size": check_count("--batch-size", self.batch_size),
            "seed": check_seed(check_integer("--seed", self.seed)),
            "l2": check_number("--l2", self.l2, 0.0),
            "lr": None if self.lr is None else check_number("--lr", self.lr, 0.0),
        }
        for name in ("weight_decay", "momentum", "label_smoothing", "clip_norm", "ema"):
            given = getattr(self, name)
            checked[name] = None if given is None else check_number(option_of(name), given)
        if self.quantiles is not None:
            numbers = _numbers("quantiles", self.quantiles)
            checked["quantiles"] = tuple(check_number("--quantiles", level) for level in numbers)
            if self.loss != "quantile":
                asked = "none" if self.loss is None else f"--loss {self.loss}"
                raise ValueError(f"--quantiles: they are of --loss quantile, got {asked}")
        if self.shards is not None:
            checked["shards"] = check_count("--shards", self.shards)
        if self.standardize is not None:
            checked["standardize"] = check_flag("--standardize", self.standardize)
        if self.preprocess is not None:
            check_choice("--preprocess", self.preprocess, KINDS)
            if self.standardize is False:
                raise ValueError(
                    f"--preprocess {self.preprocess} scales columns, --no-standardize does not; leave out one of them"
                )
        settle(self, **checked)
        for name in ("data", "activation", "optimizer", "schedule", "backend", "dtype", "target", "loss"):
            given = getattr(self, name)
            if not isinstance(given, str) and not (given is None and name in ("target", "loss")):
                raise TypeError(f"{option_of(name)} must be text, got {given!r}")
        if not 0.0 <= check_number("--validation", self.validation) < 1.0:
            raise ValueError(f"--validation is a fraction of the rows, in [0, 1); got {self.validation!r}")
        names = self.activation.split(",")
        if len(names) > 1 and len(names) != len(self.hidden):
            raise ValueError(
                f"--activation needs one name, or one for each of the {len(self.hidden)} hidden layers; "
                f"got {self.activation!r}"
            )

    def optimizer_record(self, steps: int) -> Optimizer:
        """Return the optimizer with its schedule, for a run of so many steps; ValueError where options do not fit."""
        from fastmlp.formulas.optimizers import OPTIMIZERS

        kind: type[Any] = OPTIMIZERS.type_of(self.optimizer)
        if self.momentum is not None and not hasattr(kind, "momentum"):
            raise ValueError(f"--momentum: the optimizer {self.optimizer!r} has none; use --optimizer sgd or rmsprop")
        names = ("weight_decay", "momentum", "clip_norm", "ema")
        options = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        record: Optimizer = kind(learning_rate=self._schedule(steps), **options)
        return record

    def _schedule(self, steps: int) -> Schedule:
        from fastmlp.formulas.schedules import SCHEDULES

        kind = SCHEDULES.type_of(self.schedule)
        extra: dict[str, Any] = {}
        if self.schedule == "step":
            extra = {"every": max(-(-steps // 3), 1)}
        elif self.schedule == "reduce_on_plateau":
            extra = {"monitor": "val_loss" if self.validation else "loss"}
        return kind(learning_rate=self.rate, **extra)  # type: ignore[call-arg]  # each has one

    @property
    def takes_raw_rows(self) -> bool:
        """Whether columns of words and missing values are made into numbers: where scaling was asked for."""
        return self.preprocess is not None or self.standardize is True

    @property
    def rate(self) -> float:
        """The learning rate, given or the optimizer's default."""
        return RATES[self.optimizer] if self.lr is None else self.lr

    def loss_record(self) -> Loss:
        """Return the loss; ValueError where an option does not fit it."""
        from fastmlp.formulas.losses import LOSSES, Quantile, SoftmaxCrossEntropy

        assert self.loss is not None
        loss = LOSSES.record(self.loss) if self.quantiles is None else Quantile(self.quantiles)
        if self.label_smoothing is None:
            return loss
        if not isinstance(loss, SoftmaxCrossEntropy):
            raise ValueError(f"--label-smoothing: the loss {self.loss!r} has none; use --loss softmax_cross_entropy")
        return SoftmaxCrossEntropy(self.label_smoothing)

    def network(self) -> dict[str, Any]:
        """Return the arguments of `fastmlp.MLP` other than units."""
        names = self.activation.split(",")
        return {
            "activation": names if len(names) > 1 else self.activation,
            "loss": self.loss_record(),
            "dropout": self.dropout[0] if len(self.dropout) == 1 else self.dropout,
            "l2": self.l2,
            "backend": self.backend,
            "dtype": self.dtype,
            "seed": self.seed,
        }

    def complete(self, loss: str, standardize: bool | None, backend: str) -> Settings:
        """Return the settings with everything filled in that data, machine and optimizer have decided."""
        kind = (self.preprocess or "standard") if standardize else None
        full = replace(self, loss=loss, standardize=standardize, preprocess=kind, backend=backend, lr=self.rate)
        return replace(full, weight_decay=full.optimizer_record(1).weight_decay)

    def command(self) -> str:
        """Return the command line that repeats the run."""
        words = ["fastmlp", "train", self.data]
        for name, value in asdict(self).items():
            option = option_of(name)
            if name == "data" or value is None:
                continue
            if isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-", 1))
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                words += [option, text]
        return shlex.join(words)


def _numbers(name: str, given: Any) -> tuple[Any, ...]:
    if not isinstance(given, tuple) or (name != "hidden" and not given):
        raise TypeError(f"{option_of(name)} must be a list of numbers, got {given!r}")
    return given


def option_of(name: str) -> str:
    """Return the command-line option of a setting."""
    return f"--{name.replace('_', '-')}" if name != "data" else "DATA"


def contradictions(given: Mapping[str, Any], settings: Settings) -> list[str]:
    """Return, for each option given that is not as the run has it, what it is and what it should be."""
    had = asdict(settings)
    differ = [name for name, value in had.items() if name in given and given[name] != value]
    return [f"{option_of(name)} {_text(given[name])} (the run has {_text(had[name])})" for name in differ]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def parse(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn options as typed into values of settings; ValueError names the one that makes no sense."""
    values = dict(given)
    examples = ("hidden", int, "256,128"), ("dropout", float, "0.2 or 0.1,0.2,0.2"), ("quantiles", float, "0.1,0.5,0.9")
    for name, kind, example in examples:
        if name in values:
            try:
                values[name] = tuple(kind(part) for part in values[name].split(",") if part.strip())
            except ValueError:
                raise ValueError(f"--{name}: expected such as {example}, got {values[name]!r}") from None
        if values.get(name) == () and name != "hidden":
            raise ValueError(f"--{name}: expected such as {example}, got nothing")
    values |= _names_here(values)
    _refuse_without_hidden_layers(values)
    if values["data"] == "mnist":
        known = ("target", "its labels are known"), ("header", "it is no CSV file")
        divided = "pixels are divided by 255"
        for name, why in (*known, ("standardize", divided), ("preprocess", divided)):
            if name in values:
                raise ValueError(f"{option_of(name)} has no meaning for mnist: {why}")
    else:
        values["data"] = fspath(Path(values["data"]).resolve())
        if "target" in values and not values["data"].lower().endswith((".csv", ".npz")):
            values["target"] = fspath(Path(values["target"]).resolve())
    return values


def _refuse_without_hidden_layers(values: Mapping[str, Any]) -> None:
    """Raise ValueError for options of hidden layers where there are none."""
    if values.get("hidden") != ():
        return
    for name, nothing in (("activation", "relu"), ("dropout", (0.0,))):  # these are in the command of such a run
        given = values.get(name, nothing)
        if given != nothing:
            raise ValueError(f"--{name} {_text(given)}: it is of hidden layers, and --hidden '' has none; leave it out")


def defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what holds for a new run where options were not given."""
    found = MNIST if given["data"] == "mnist" else TABLE
    return {**found, "dropout": (0.0,)} if given.get("hidden") == () else found


def _names_here(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the names that files have of what was asked for by name, which may be another library's."""
    from fastmlp.formulas.activations import ACTIVATIONS
    from fastmlp.formulas.losses import LOSSES
    from fastmlp.formulas.optimizers import OPTIMIZERS
    from fastmlp.formulas.records import as_named_here
    from fastmlp.formulas.schedules import SCHEDULES

    kinds = {"loss": LOSSES.name_of, "optimizer": OPTIMIZERS.name_of, "schedule": SCHEDULES.name_of}
    found = {name: name_of(values[name]) for name, name_of in kinds.items() if name in values}
    if "activation" in values:
        names = values["activation"].split(",")
        found["activation"] = ",".join(as_named_here("activation", name, ACTIVATIONS) for name in names)
    return found
