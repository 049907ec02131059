"""Callbacks: what happens between steps and epochs of a training run."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastmlp.training import Training


class Callback:
    """Base of all callbacks; every method may be left as it is.

    The methods are given the `Training`, which tells the model, the epoch, the steps and the figures, and which
    ``stop(reason)`` ends after the step or epoch at hand.

    Attributes
    ----------
    runs_last : bool
        True for those that must see what the others made of an epoch, such as checkpoints.
    """

    runs_last = False

    def on_train_begin(self, run: Training) -> None:
        """Before the first step, also of a resumed run; an error here leaves the model as it was."""

    def on_epoch_begin(self, run: Training) -> None:
        """Before an epoch, or the rest of one."""

    def on_steps(self, run: Training) -> None:
        """After some steps; after exactly those that `next_step` asks for, and about five times a second."""

    def on_epoch_end(self, run: Training, logs: Mapping[str, float]) -> None:
        """After an epoch, with its figures; ``run.epoch`` counts it already."""

    def on_interrupt(self, run: Training) -> None:
        """After Ctrl-C, before `on_train_end`."""

    def on_train_end(self, run: Training) -> None:
        """At the end, after an error too (then ``run.failed``)."""

    def next_step(self, run: Training) -> int | None:
        """Return the next step of the run, counted from 1, after which `on_steps` must be called."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of this callback: numbers, strings and NumPy arrays by name."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""


def _lower_is_better(monitor: str, mode: str) -> bool:
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
    return mode == "min" or (mode == "auto" and "loss" in monitor)


class EarlyStopping(Callback):
    """Stop when a figure has not improved for some epochs, and go back to the weights of its best epoch.

    Parameters
    ----------
    monitor : str
        A figure of the history.
    patience : int
        Epochs without improvement before training stops.
    min_delta : float
        The least change that counts, in units of the figure.
    mode : {"auto", "min", "max"}
        Whether less or more is better; auto: less for losses, more for anything else.
    restore_best : bool
        Go back to the best epoch's weights at the end, also where training ended for another reason.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 0:
            raise ValueError(f"patience must be a number of epochs, at least 0; got {patience!r}")
        if not 0.0 <= min_delta < math.inf:
            raise ValueError(f"min_delta must be finite and at least 0, got {min_delta!r}")
        self.monitor, self.patience, self.min_delta, self.restore_best = (
            monitor,
            patience,
            min_delta,
            restore_best,
        )
        self._sign = 1.0 if _lower_is_better(monitor, mode) else -1.0
        self._reset()

    def _reset(self) -> None:
        self.best_epoch, self.best = 0, math.nan
        self._waited = 0
        self._weights: dict[str, Any] = {}

    def on_train_begin(self, run: Training) -> None:
        run.check_monitor("EarlyStopping", self.monitor)
        if run.epoch == 0:
            self._reset()

    def on_epoch_end(self, run: Training, logs: Mapping[str, float]) -> None:
        value = logs[self.monitor]
        if self.best_epoch == 0 or self._sign * value < self._sign * self.best - self.min_delta:
            self.best, self.best_epoch, self._waited = value, run.epoch, 0
            if self.restore_best:
                self._weights = run.model.snapshot()
        else:
            self._waited += 1
            if self._waited >= self.patience:
                run.stop(f"{self.monitor} has not improved since epoch {self.best_epoch}")

    def on_train_end(self, run: Training) -> None:
        if self._weights and not run.failed:
            run.model.restore_snapshot(self._weights)
            self._weights = {}

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self._waited, **self._weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch, self._waited = (
            state["best"],
            int(state["best_epoch"]),
            int(state["waited"]),
        )
        self._weights = {k: v for k, v in state.items() if k not in ("best", "best_epoch", "waited")}


class Checkpoint(Callback):
    """Write the whole state of the run to a file, from which `fastmlp.load` and `MLP.resume` go on to the same bits.

    Parameters
    ----------
    path : path
        May contain ``{epoch}`` and ``{step}``, numbers finished, to keep every checkpoint; else each replaces the one
        before, in one piece.
    every_epochs : int, optional
        After every so many epochs; the default is 1 where `every_steps` is not given.
    every_steps : int, optional
        After every so many steps.
    """

    runs_last = True

    def __init__(
        self, path: str | PathLike[str], *, every_epochs: int | None = None, every_steps: int | None = None
    ) -> None:
        if every_epochs is None and every_steps is None:
            every_epochs = 1
        for argument, value in (("every_epochs", every_epochs), ("every_steps", every_steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{argument} must be an integer, at least 1; got {value!r}")
        self.path, self.every_epochs, self.every_steps = fspath(path), every_epochs, every_steps

    def _save(self, run: Training) -> None:
        path = self.path.replace("{epoch}", str(run.epoch)).replace("{step}", str(run.steps_done))
        run.save_checkpoint(path)

    def on_train_begin(self, run: Training) -> None:
        if not Path(self.path).parent.is_dir():
            raise FileNotFoundError(f"Checkpoint: there is no folder {Path(self.path).parent}; create it first")
        run.check_checkpoint()

    def next_step(self, run: Training) -> int | None:
        if self.every_steps is None:
            return None
        return (run.steps_done // self.every_steps + 1) * self.every_steps

    def on_steps(self, run: Training) -> None:
        if self.every_steps is not None and run.steps_done % self.every_steps == 0:
            self._save(run)

    def on_epoch_end(self, run: Training, logs: Mapping[str, float]) -> None:
        if self.every_epochs is not None and run.epoch % self.every_epochs == 0:
            self._save(run)

    def on_interrupt(self, run: Training) -> None:
        self._save(run)


class CSVLog(Callback):
    """Write the figures of each epoch to a CSV file as soon as they are there; a resumed run goes on in it.

    Parameters
    ----------
    path : path
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)

    def on_train_begin(self, run: Training) -> None:
        rows: list[list[str]] = []
        if run.epoch and self.path.exists():  # of a resumed run, keep what was written up to the checkpoint
            with self.path.open(newline="") as file:
                rows = list(csv.reader(file))[: run.epoch + 1]
        with self.path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    def on_epoch_end(self, run: Training, logs: Mapping[str, float]) -> None:
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(["epoch", *logs])
            writer.writerow([run.epoch, *logs.values()])


class TimeLimit(Callback):
    """Stop after the step at hand when the run, counted over all its parts, has taken so long.

    Parameters
    ----------
    seconds : float
        Positive.
    """

    def __init__(self, seconds: float) -> None:
        if not 0.0 < seconds < math.inf:
            raise ValueError(f"seconds must be positive and finite, got {seconds!r}")
        self.seconds = seconds
        self._before = self._began = 0.0

    def on_train_begin(self, run: Training) -> None:
        if run.steps_done == 0:
            self._before = 0.0
        self._began = time.perf_counter()

    def _used(self) -> float:
        return self._before + time.perf_counter() - self._began

    def on_steps(self, run: Training) -> None:
        if self._used() >= self.seconds:
            run.stop(f"the time limit of {self.seconds:g} s was reached")

    def on_epoch_end(self, run: Training, logs: Mapping[str, float]) -> None:
        self.on_steps(run)

    def state(self) -> dict[str, Any]:
        return {"used": self._used()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._before = float(state["used"])


class ProgressBar(Callback):
    """Show the epoch, the time left and the figures in the terminal; fit adds one by itself where ``verbose`` is not 0.

    Parameters
    ----------
    bar : bool
        Show a moving bar; where the output is no terminal there is only a line for each epoch.
    """

    def __init__(self, *, bar: bool = True) -> None:
        self.bar = bar
        self._progress: Any = None

    def on_train_begin(self, run: Training) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(highlight=False)
        if self.bar and self._console.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task(
                "",
                total=run.total_steps,
                completed=run.steps_done,
                epoch=run.epoch + 1,
                epochs=run.epochs,
                figures="",
            )
            self._progress.start()

    def on_steps(self, run: Training) -> None:
        if self._progress is not None:
            figures = _figures(run.running_figures())
            epoch = min(run.epoch + 1, run.epochs)
            self._progress.update(self._task, completed=run.steps_done, epoch=epoch, figures=figures)

    def on_epoch_end(self, run: Training, logs: Mapping[str, float]) -> None:
        width = len(str(run.epochs))
        self._console.print(f"epoch {run.epoch:>{width}}/{run.epochs}  {_figures(logs)}", soft_wrap=True)

    def on_train_end(self, run: Training) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if run.history.stop_reason and not run.failed:
            self._console.print(f"stopped: {run.history.stop_reason}", soft_wrap=True)


def _figures(logs: Mapping[str, float]) -> str:
    parts = []
    for name, value in logs.items():
        if name == "epoch_seconds":
            parts.append(f"{value:.1f} s")
        elif name == "learning_rate":
            parts.append(f"rate {value:.2g}")
        else:
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts)
