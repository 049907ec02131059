"""Where a run's time goes, epoch by epoch; nothing of it runs where no callback asks for it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from fastmlp.arguments import check_path
from fastmlp.backends.timing import Clock, Span
from fastmlp.engine.loop import Callback
from fastmlp.engine.one_run import OfOneRun
from fastmlp.files.atomic import refuse_missing_folder
from fastmlp.files.chrome_trace import Event, write_trace
from fastmlp.formulas.names import explains_keywords

if TYPE_CHECKING:
    from fastmlp.engine.feed import Feed
    from fastmlp.engine.loop import Training

_PARTS = (
    ("_prepare", "preparation"),
    ("_steps", "training"),
    ("_take_epochs", "training"),
    ("_figures", "evaluation"),
)
"""The methods of a run that take time, and the kind of each."""
_EVENTS = ("on_epoch_begin", "on_steps", "next_step", "on_epoch_end", "on_interrupt", "on_train_end")


@dataclass(frozen=True)
class EpochTimes:
    """Seconds that an epoch took, and what for.

    Attributes
    ----------
    epoch : int or None
        Counted from 1; None for what came before the first one, or after the last.
    data : float
        To bring rows, and the order of an epoch, to where training runs.
    preparation : float
        To compile and to measure.
    training, evaluation, callbacks : float
        In steps; in figures of the epoch, such as those of validation data and metrics; in what the callbacks do.
    other : float
        The rest.
    """

    epoch: int | None
    data: float = 0.0
    preparation: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0
    callbacks: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        """Of all together."""
        return float(sum(getattr(self, kind) for kind in KINDS))


KINDS = tuple(field.name for field in fields(EpochTimes))[1:]
"""What time is taken for."""


@explains_keywords(__init__="callback")
class EpochTimer(OfOneRun):
    """Take the time of each epoch: data, training, evaluation, callbacks; ``print`` it after `fit`.

    It changes nothing in how a run is carried out; epochs that are trained several in one call have equal shares of
    its time.  On a GPU each part is a range for NVIDIA's profilers (NVTX).

    Parameters
    ----------
    trace : path, optional
        File to write at the end: a Chrome trace, which chrome://tracing and ui.perfetto.dev show.

    Attributes
    ----------
    times : list of EpochTimes
        Of the run so far, what came before the first epoch and after the last one too.

    Examples
    --------
    >>> import numpy as np, fastmlp
    >>> timer = fastmlp.EpochTimer()
    >>> model = fastmlp.MLP((3, 4, 2), backend="numpy", seed=0)
    >>> _ = model.fit(np.eye(3), [0, 1, 1], epochs=2, callbacks=[timer], verbose=0)
    >>> [row.epoch for row in timer.times]
    [None, 1, 2, None]
    """

    sees_model = False

    def __init__(self, trace: str | PathLike[str] | None = None) -> None:
        self.trace = None if trace is None else check_path("trace", trace)
        self.times: list[EpochTimes] = []
        self._spans: list[Span] = []
        self._since = 0.0
        self._clock: Clock | None = None

    def on_train_begin(self, run: Training) -> None:
        if run._told is not run.callbacks:
            raise ValueError("callbacks must hold one EpochTimer at most, since it counts what the others take")
        if self.trace is not None:
            refuse_missing_folder(self.trace)
        super().on_train_begin(run)
        if run.epoch == 0:
            self.times = []
        self._spans, self._since = [], time.perf_counter()
        clock = self._clock = Clock(run.learner.backend)
        for name, kind in _PARTS:
            setattr(run, name, clock.around(kind, getattr(run, name)))
        orders: Any = run._orders
        for name in ("of_epoch", "of_epochs"):
            setattr(orders, name, clock.around("data", getattr(orders, name)))
        make, prepare, short_epochs = clock.around("data", run._feed), run._prepare, run._short_epochs

        def fed() -> Feed:
            feed: Any = make()
            feed.steps = clock.around("data", feed.steps)
            return cast("Feed", feed)

        def prepared(*args: Any) -> None:
            prepare(*args)
            self._end_row(None)

        def levelled(*args: Any) -> None:
            first = len(self.times)
            short_epochs(*args)
            self.times[first:] = _levelled(self.times[first:])

        run.__dict__.update(_feed=fed, _prepare=prepared, _short_epochs=levelled)
        around = (
            SimpleNamespace(**{event: clock.around("callbacks", getattr(callback, event)) for event in _EVENTS})
            for callback in run.callbacks
        )
        run._told = [*around, _Last(self)]

    def on_train_end(self, run: Training) -> None:
        """Wait for `_Last`: the ends of other callbacks are counted too."""

    def _end_row(self, epoch: int | None) -> None:
        """Note what has taken time since the last row."""
        assert self._clock is not None
        now, spans = time.perf_counter(), self._clock.taken()
        took = dict.fromkeys(KINDS, 0.0)
        for span in spans:
            took[span.name] += span.own
        took["other"] = max(now - self._since - sum(took.values()), 0.0)
        self.times.append(EpochTimes(epoch, **took))
        if self.trace is not None:
            name = "before and after" if epoch is None else f"epoch {epoch}"
            self._spans += [*spans, Span(name, None, self._since, now - self._since, took["other"])]
        self._since = now

    def _end(self, run: Training) -> None:
        """Take the clock away, and write what is asked for."""
        try:
            self._write(run)
        finally:
            super().on_train_end(run)

    def _write(self, run: Training) -> None:
        self._end_row(None)
        self._clock, run._told = None, run.callbacks
        for name in ("_feed", "_short_epochs", *(name for name, _ in _PARTS)):
            delattr(run, name)
        for name in ("of_epoch", "of_epochs"):
            delattr(run._orders, name)
        if self.trace is not None:
            events = (Event(s.name, "a run", s.start, s.seconds, {}) for s in self._spans)
            write_trace(self.trace, f"fastmlp, {run.epoch} epochs on {run.learner.backend.name}", events)
        self._spans = []

    def __str__(self) -> str:
        epochs = [row for row in self.times if row.epoch is not None]
        if not epochs:
            return "EpochTimer: no epoch yet"
        first = next(i for i, row in enumerate(self.times) if row.epoch is not None)
        slowest = max(epochs, key=lambda row: row.total)
        lines = {
            "before": _summed(self.times[:first]),
            f"an epoch, mean of {len(epochs)}": _summed(epochs, len(epochs)),
            f"slowest epoch, {slowest.epoch}": slowest,
            "all": _summed(self.times),
        }
        cells = [("seconds", *KINDS, "total")]
        cells += [(what, *(f"{getattr(row, kind):.3g}" for kind in (*KINDS, "total"))) for what, row in lines.items()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(
            "  ".join([what.ljust(widths[0]), *(c.rjust(w) for c, w in zip(figures, widths[1:], strict=True))])
            for what, *figures in cells
        )


class _Last(Callback):
    """Is told of everything after all callbacks of a run, and of no interest to its checkpoints."""

    def __init__(self, timer: EpochTimer) -> None:
        self._timer = timer

    def on_epoch_end(self, run: Training, figures: Mapping[str, float]) -> None:
        self._timer._end_row(run.epoch)

    def on_train_end(self, run: Training) -> None:
        self._timer._end(run)


def _summed(rows: Sequence[EpochTimes], parts: int = 1) -> EpochTimes:
    """Return the sum of some times, or an equal part of it."""
    return EpochTimes(None, **{kind: sum(getattr(row, kind) for row in rows) / parts for kind in KINDS})


def _levelled(rows: list[EpochTimes]) -> list[EpochTimes]:
    """Return times of epochs that were trained in one call, which the first of them has: an equal share for each."""
    if not rows:
        return rows
    mean = _summed(rows, len(rows))
    return [replace(row, data=mean.data, training=mean.training, other=mean.other) for row in rows]
