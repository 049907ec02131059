"""What can happen between steps and epochs of a training run; `loop.Callback` is what they all are."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.arguments import check_count, check_flag, check_number, check_path, check_sequence
from fastmlp.engine.loop import Callback
from fastmlp.engine.one_run import OfOneRun
from fastmlp.files.atomic import atomic_writer, refuse_missing_folder
from fastmlp.formulas.figures import lower_is_better
from fastmlp.formulas.names import explains_keywords

if TYPE_CHECKING:
    from fastmlp.engine.loop import Training


@explains_keywords(__init__="callback")
class EarlyStopping(OfOneRun):
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
        Whether less or more is better; auto: as is known of the loss, the accuracy and scikit-learn's metrics.
    restore_best : bool
        Go back to the best epoch's weights at the end, also where training ended for another reason.

    Notes
    -----
    An epoch whose figure is NaN is no improvement and never the best one.

    A resumed run may have another `patience` or `min_delta`.  One that had ended, by this or by its last epoch, takes
    no more steps and goes back to the best epoch's weights: it may have been killed before it did so itself.

    Raises
    ------
    ValueError
        Which way the figure is better is not known, and `mode` does not say; or another argument makes no sense.
    """

    same_on_resume = ("monitor", "mode", "restore_best")

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best: bool = True,
    ) -> None:
        self.monitor, self.restore_best = monitor, check_flag("restore_best", restore_best)
        self.patience, self.min_delta = check_count("patience", patience, 0), check_number("min_delta", min_delta, 0.0)
        self.mode = "min" if lower_is_better("EarlyStopping", monitor, mode) else "max"
        self._sign = 1.0 if self.mode == "min" else -1.0
        self._reset()

    def _reset(self) -> None:
        self.best_epoch, self.best = 0, math.nan
        self._waited = 0
        self._weights: dict[str, Any] = {}

    def on_train_begin(self, run: Training) -> None:
        run.check_monitor("EarlyStopping", self.monitor)
        super().on_train_begin(run)
        if run.epoch == 0:
            self._reset()
        self._stop_if_due(run)  # at the checkpoint of the epoch that ended the run it was so already

    def on_epoch_end(self, run: Training, figures: Mapping[str, float]) -> None:
        value = figures[self.monitor]
        first = self.best_epoch == 0 and not math.isnan(value)
        if first or self._sign * value < self._sign * self.best - self.min_delta:
            self.best, self.best_epoch, self._waited = value, run.epoch, 0
            if self.restore_best:
                self._weights = run.learner.snapshot()
        else:
            self._waited += 1
        self._stop_if_due(run)

    def _stop_if_due(self, run: Training) -> None:
        if self._waited and self._waited >= self.patience:
            since = f"has not improved since epoch {self.best_epoch}" if self.best_epoch else "has been nan so far"
            run.stop(f"{self.monitor} {since}")

    def on_train_end(self, run: Training) -> None:
        if self._weights and not run.failed:
            run.learner.restore(self._weights)
            self._weights = {}
        super().on_train_end(run)  # the last thing: from here on another run may begin with it

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self._waited, **self._weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch, self._waited = (
            state["best"],
            int(state["best_epoch"]),
            int(state["waited"]),
        )
        self._weights = {k: v for k, v in state.items() if k not in ("best", "best_epoch", "waited")}


@explains_keywords(__init__="callback")
class Checkpoint(OfOneRun):
    """Write the whole state of the run to a file, from which `fastmlp.load` and `MLP.resume` go on to the same bits.

    A model loaded from it predicts by the weights of the moment of the checkpoint; to those of the best epoch, which
    `EarlyStopping` keeps in it, `MLP.resume` goes back.

    Parameters
    ----------
    path : path
        May contain ``{epoch}`` and ``{step}``, numbers finished, to keep every checkpoint; else each replaces the one
        before, in one piece.
    every_epochs : int, optional
        After every so many epochs; the default is 1 where nothing else is given.
    every_steps : int, optional
        After every so many steps.
    every_seconds : float, optional
        After the first epoch that ends so long after the last one was written, and where training ends or is stopped:
        short epochs would take less time than their checkpoints.
    """

    runs_last = True
    writes = True

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        every_epochs: int | None = None,
        every_steps: int | None = None,
        every_seconds: float | None = None,
    ) -> None:
        if every_epochs is None and every_steps is None and every_seconds is None:
            every_epochs = 1
        self.path = check_path("path", path)
        self.every_epochs = None if every_epochs is None else check_count("every_epochs", every_epochs)
        self.every_steps = None if every_steps is None else check_count("every_steps", every_steps)
        self.every_seconds = None if every_seconds is None else check_number("every_seconds", every_seconds, 0.0)
        self.sees_model = every_epochs is not None or every_steps is not None  # else it waits until the model is there
        self._before, self._written, self._owed = 0, 0.0, False

    def _save(self, run: Training) -> None:
        path = self.path.replace("{epoch}", str(run.epoch)).replace("{step}", str(run.steps_done))
        run.save_checkpoint(path)
        self._written, self._owed = time.perf_counter(), False

    def on_train_begin(self, run: Training) -> None:
        refuse_missing_folder(self.path)
        run.check_checkpoint()
        super().on_train_begin(run)
        self._before = run.learner.state.step - run.steps_done
        self._written, self._owed = time.perf_counter(), False

    def _in_time(self, run: Training) -> bool:
        """Tell whether seconds ask for one; that of an epoch from which the model has gone on already has to wait."""
        if self.every_seconds is None:
            return False
        ends = bool(run.history.stop_reason) or run.epoch == run.epochs
        there = run.learner.state.step - run.steps_done == self._before
        self._owed = ends and not there
        return there and (ends or time.perf_counter() - self._written >= self.every_seconds)

    def next_step(self, run: Training) -> int | None:
        if self.every_steps is None:
            return None
        return (run.steps_done // self.every_steps + 1) * self.every_steps

    def on_steps(self, run: Training) -> None:
        within = run.steps_done % (run.total_steps // run.epochs) > 0
        asked = self.every_steps is not None and run.steps_done % self.every_steps == 0
        if asked or (within and run.history.stop_reason and self._in_time(run)):
            self._save(run)

    def on_epoch_end(self, run: Training, figures: Mapping[str, float]) -> None:
        if self._in_time(run) or (self.every_epochs is not None and run.epoch % self.every_epochs == 0):
            self._save(run)

    def on_interrupt(self, run: Training) -> None:
        self._save(run)

    def on_train_end(self, run: Training) -> None:
        if self._owed and not run.failed:
            self._save(run)
        super().on_train_end(run)


@explains_keywords(__init__="callback")
class CSVLog(OfOneRun):
    """Write the figures of each epoch to a CSV file as soon as they are there; a resumed run goes on in it.

    Parameters
    ----------
    path : path
        What another run wrote to it is there until the first epoch has ended.
    """

    sees_model = False
    writes = True

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(check_path("path", path))
        self._kept: list[list[str]] | None = []

    def on_train_begin(self, run: Training) -> None:
        # that it can be written has to be known before the first step, but what it holds may be all there is: others
        # may still refuse the run, so that it is given up, or cut, with the first epoch and not before
        new, kept = not os.path.lexists(self.path), []
        with self.path.open("a"):
            pass
        if new:
            self.path.unlink(missing_ok=True)  # another run, that begins now too, may have done so
        if run.epoch and self.path.is_file():  # of a resumed run, keep what was written up to the checkpoint
            with self.path.open(newline="", encoding="utf-8") as file:
                kept = list(csv.reader(file))[: run.epoch + 1]
        super().on_train_begin(run)
        self._kept = kept

    def on_epoch_end(self, run: Training, figures: Mapping[str, float]) -> None:
        header, row = ["epoch", *figures], [run.epoch, *figures.values()]
        if self._kept:
            text = io.StringIO(newline="")
            csv.writer(text).writerows([*self._kept, row])
            with atomic_writer(self.path) as whole:
                whole.write(text.getvalue().encode())
        else:
            with self.path.open("a" if self._kept is None else "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([row] if file.tell() else [header, row])
        self._kept = None


@explains_keywords(__init__="callback")
class TimeLimit(OfOneRun):
    """Stop after the step at hand when the run, counted over all its parts, has taken so long.

    What is compiled before the first step, once on a machine, is not counted.

    Parameters
    ----------
    seconds : float
        Positive.
    """

    sees_model = False

    def __init__(self, seconds: float) -> None:
        self.seconds = self.most_seconds = check_number("seconds", seconds, 0.0, above=True)
        self._before, self._began = 0.0, math.nan

    def on_train_begin(self, run: Training) -> None:
        super().on_train_begin(run)
        if run.steps_done == 0:
            self._before = 0.0
        self._began = math.nan

    def on_epoch_begin(self, run: Training) -> None:
        if math.isnan(self._began):
            self._began = time.perf_counter()

    def _used(self) -> float:
        return self._before + (0.0 if math.isnan(self._began) else time.perf_counter() - self._began)

    def on_steps(self, run: Training) -> None:
        if self._used() >= self.seconds:
            run.stop(f"the time limit of {self.seconds:g} s was reached")

    def on_epoch_end(self, run: Training, figures: Mapping[str, float]) -> None:
        self.on_steps(run)

    def state(self) -> dict[str, Any]:
        return {"used": self._used()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._before = float(state["used"])


@explains_keywords(__init__="callback")
class ProgressBar(Callback):
    """Show the epoch, the time left and the figures in the terminal; fit adds one by itself where ``verbose`` is not 0.

    Parameters
    ----------
    bar : bool
        Show a moving bar; where the output is no terminal there is only a line for each epoch.
    """

    sees_model = False
    writes = True

    def __init__(self, *, bar: bool = True) -> None:
        self.bar = check_flag("bar", bar)
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
            figures = _in_words(run.running_figures())
            epoch = min(run.epoch + 1, run.epochs)
            self._progress.update(self._task, completed=run.steps_done, epoch=epoch, figures=figures)

    def on_epoch_end(self, run: Training, figures: Mapping[str, float]) -> None:
        width = len(str(run.epochs))
        self._console.print(f"epoch {run.epoch:>{width}}/{run.epochs}  {_in_words(figures)}", soft_wrap=True)

    def on_train_end(self, run: Training) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        if run.history.stop_reason and not run.failed:
            self._console.print(f"stopped: {run.history.stop_reason}", soft_wrap=True)


def _in_words(figures: Mapping[str, float]) -> str:
    parts = []
    for name, value in figures.items():
        if name == "epoch_seconds":
            parts.append(f"{value:.1f} s")
        elif name == "learning_rate":
            parts.append(f"rate {value:.2g}")
        else:
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts)


def check_callbacks(callbacks: Sequence[Callback], verbose: int) -> list[Callback]:
    """Return the callbacks of a run, with the progress bar that `verbose` asks for."""
    if not isinstance(verbose, (int, np.integer, np.bool_)) or verbose not in (0, 1, 2):
        raise ValueError(f"verbose must be 0, 1 or 2, got {verbose!r}")
    found = check_sequence("callbacks", callbacks, "a sequence of Callback objects such as [EarlyStopping()]")
    for callback in found:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks must be Callback objects such as EarlyStopping(), got {callback!r}")
    if verbose and not any(isinstance(c, ProgressBar) for c in found):
        found.append(ProgressBar(bar=verbose == 1))
    return found
