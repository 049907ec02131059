"""What a training run measured, epoch by epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from os import PathLike
from typing import Any

from fastmlp.arguments import check_sequence
from fastmlp.files.atomic import atomic_writer


class History:
    """The figures of a run.

    Attributes
    ----------
    history : dict of str to list of float
        One value an epoch: ``loss`` (mean over the rows as they were trained on, with dropout and without L2),
        ``accuracy`` where the loss has one, ``val_loss`` and ``val_accuracy`` where there are validation data,
        metrics that were asked for, ``learning_rate`` (of the epoch's last step) and ``epoch_seconds``.
    stop_reason : str
        Why the run ended before its last epoch; empty where it did not.
    """

    def __init__(self, history: Mapping[str, list[float]] | None = None, stop_reason: str = "") -> None:
        if history is not None and not isinstance(history, Mapping):
            raise TypeError(f"history must be a mapping from name to a value an epoch, or None; got {history!r}")
        self.history: dict[str, list[float]] = {
            name: check_sequence(f"history[{name!r}]", values, "a sequence of one value an epoch")
            for name, values in (history or {}).items()
        }
        self.stop_reason = stop_reason

    @property
    def epochs(self) -> int:
        """Number of epochs finished."""
        return len(self.history.get("loss", ()))

    def append(self, figures: Mapping[str, float]) -> None:
        """Add the figures of an epoch."""
        for name, value in figures.items():
            self.history.setdefault(name, []).append(value)

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a row for each epoch, with a header; the file is replaced in one piece or not at all."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["epoch", *self.history])
        for epoch, values in enumerate(zip(*self.history.values(), strict=True), start=1):
            writer.writerow([epoch, *values])
        with atomic_writer(path) as file:
            file.write(text.getvalue().encode())

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {"history": self.history, "stop_reason": self.stop_reason}

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={values[-1]:.4g}" for name, values in self.history.items() if values)
        stopped = f", stopped: {self.stop_reason}" if self.stop_reason else ""
        return f"History({self.epochs} epochs{': ' + last if last else ''}{stopped})"
