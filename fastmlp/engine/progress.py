"""Where a run of training stands: with the state of the network, all that going on needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray


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

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


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
