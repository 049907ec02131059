"""Where a run of training stands: with the state of the network, all that going on needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from fastmlp.arguments import check_count, check_flag, check_number


@dataclass
class Progress:
    """How far a run is, and what it was asked for.

    Attributes
    ----------
    epochs, batch_size, rows : int
        Of the whole run.
    shuffle : bool
    validation_split : float
    drawn : bool
        Whether the rows held out are drawn by the seed; runs of earlier versions hold out the last ones.
    horizon : int
        Steps of the run, for schedules that follow it.
    schedule_start : int
        Steps that the optimizer had done where such a schedule began.
    epoch : int
        Epochs finished.
    position : int
        Steps done in the epoch at hand.
    totals : list of float
        Sums over the rows of the epoch so far: weighted loss, weight, weighted hits.
    memory : dict
        What the schedule remembers.
    seconds : float
        Time that the epoch at hand has taken.
    shards : int or None
        Into how many parts each batch is cut; None where it is not.
    """

    epochs: int
    batch_size: int
    rows: int
    shuffle: bool
    validation_split: float
    horizon: int
    schedule_start: int
    epoch: int = 0
    position: int = 0
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    memory: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    drawn: bool = False
    shards: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(self)
        if self.shards is None:  # earlier versions know of none
            del values["shards"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Progress:
        """Return the record that `to_json` described; ValueError or TypeError names the field that makes no sense."""
        given = cls(**values)
        least = {"epochs": 1, "batch_size": 1, "rows": 1, "horizon": 1, "schedule_start": 0, "epoch": 0, "position": 0}
        counts = {name: check_count(name, getattr(given, name), bound) for name, bound in least.items()}
        if (high := next((name for name, count in counts.items() if count >= 2**63), None)) is not None:
            raise ValueError(f"{high} must be below 2**63, got {counts[high]}")
        if given.epoch > given.epochs or given.position > -(-given.rows // given.batch_size):
            raise ValueError(
                f"epoch {given.epoch} and position {given.position} lie beyond the run of {given.epochs} epochs"
            )
        totals = [check_number("totals", total) for total in given.totals]
        if len(totals) != 3:
            raise ValueError(f"totals needs 3 numbers, got {given.totals!r}")
        for name, value in given.memory.items():
            if not isinstance(value, (int, float)):  # infinity, and NaN, are what it remembers of some figures
                raise TypeError(f"memory {name!r} must be a number, got {value!r}")
        return cls(
            **counts,
            totals=totals,
            memory=dict(given.memory),
            shuffle=check_flag("shuffle", given.shuffle),
            validation_split=check_number("validation_split", given.validation_split, 0.0, 1.0),
            seconds=check_number("seconds", given.seconds, 0.0),
            drawn=check_flag("drawn", given.drawn),
            shards=None if given.shards is None else check_count("shards", given.shards),
        )


class PausedRun(NamedTuple):
    """A run as its checkpoint holds it.

    Attributes
    ----------
    path : str
        Of the checkpoint.
    header : mapping
        Its description, see `checkpoints`.
    tensors : mapping from name to array
        What its callbacks remember.
    """

    path: str
    header: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]
