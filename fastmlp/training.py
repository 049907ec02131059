"""The training loop: epochs, steps, what happens between them, and how a run is stopped, saved and resumed."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp import files
from fastmlp.batching import HostData, inverse_totals, steps_per_epoch
from fastmlp.errors import NonFiniteLossError, TrainingInterrupted
from fastmlp.history import History
from fastmlp.optimizers import optimizer_to_json
from fastmlp.plan import Plan
from fastmlp.random_bits import epoch_order

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.callbacks import Callback
    from fastmlp.model import MLP
    from fastmlp.optimizers import Optimizer
    from fastmlp.session import Session

CALL_SECONDS = 0.2
"""How long a call to a backend should last: short enough for Ctrl-C and a moving progress bar."""

Metric = Callable[[NDArray[Any], NDArray[Any]], float]


@dataclass
class Progress:
    """Where a run stands; with the state of the network, all that going on needs.

    Attributes
    ----------
    epochs, batch_size, rows : int
        Of the whole run.
    shuffle : bool
    validation_split : float
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

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class _Order(NamedTuple):
    """The order of the rows in the epoch that begins with a step, on the host and on the backend."""

    begins: int
    host: NDArray[np.intp]
    device: Array


class Training:
    """One run of training, what callbacks are given.

    Attributes
    ----------
    model : MLP
    history : History
    failed : bool
        Whether an error is ending the run.
    """

    def __init__(
        self,
        model: MLP,
        data: HostData,
        validation: HostData | None,
        progress: Progress,
        *,
        history: History | None = None,
        metrics: Mapping[str, Metric] | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.model, self.history, self.failed = model, history or History(), False
        self._data, self._validation, self._progress = data, validation, progress
        self._metrics = dict(metrics or {})
        self.callbacks = sorted(callbacks, key=lambda c: c.runs_last)
        self._steps_per_epoch = steps_per_epoch(len(data), progress.batch_size)
        self._totals = np.array(progress.totals)
        self._interrupted = False
        self._fingerprint = ""
        self._validation_there: HostData | None = None
        self._session: Session | None = None
        self._order: _Order | None = None
        self._next_order: _Order | None = None

    # --- what callbacks may ask ---

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self._progress.epoch

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self._progress.epochs

    @property
    def steps_done(self) -> int:
        """Steps of the run finished."""
        return self._progress.epoch * self._steps_per_epoch + self._progress.position

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._progress.epochs * self._steps_per_epoch

    def figure_names(self) -> list[str]:
        """Return the names of the figures that the history will have."""
        names = ["loss", *(["accuracy"] if self.model.spec.loss.has_accuracy else []), *self._metrics]
        if self._validation is not None:
            names += [f"val_{name}" for name in names]
        return [*names, "learning_rate", "epoch_seconds"]

    def check_monitor(self, who: str, monitor: str) -> None:
        """Raise ValueError where there will be no figure called `monitor`."""
        if monitor not in self.figure_names():
            cure = "; give fit validation_data or validation_split" if monitor.startswith("val_") else ""
            raise ValueError(
                f"{who}(monitor={monitor!r}): there is no such figure; there are {', '.join(self.figure_names())}{cure}"
            )

    def running_figures(self) -> dict[str, float]:
        """Return the loss, and the accuracy where there is one, of the epoch at hand so far."""
        loss, weight, hits = self._totals.tolist()
        if not weight:
            return {}
        figures = {"loss": loss / weight}
        if self.model.spec.loss.has_accuracy:
            figures["accuracy"] = hits / weight
        return figures

    def stop(self, reason: str) -> None:
        """End the run after the step or epoch at hand."""
        if not self.history.stop_reason:
            self.history.stop_reason = reason

    # --- the loop ---

    def run(self) -> History:
        """Train to the end of the run, or until something stops it."""
        self._check_schedule()
        model = self.model
        data = self._data.on(model.backend)
        for callback in self.callbacks:
            callback.on_train_begin(self)
        try:
            with _CtrlC() as ctrl_c, model._pool.use(self._plan()) as session:
                self._session, session.meanwhile = session, self._order_ahead
                try:
                    self._prepare(session, ctrl_c)
                    while self.epoch < self.epochs and not self.history.stop_reason:
                        self._epoch(session, data, ctrl_c)
                finally:
                    self._session = session.meanwhile = self._validation_there = None
                    session.release()
            if self._interrupted:
                for callback in self.callbacks:
                    callback.on_interrupt(self)
        except BaseException:
            self.failed = True
            raise
        finally:
            for callback in self.callbacks:
                callback.on_train_end(self)
        if self._interrupted:
            warnings.warn(
                f"training was interrupted in epoch {self.epoch + 1} of {self.epochs}, after {self.steps_done} whole "
                "steps; the model is usable as it is, and fit goes on from here",
                TrainingInterrupted,
                stacklevel=3,
            )
        return self.history

    def _prepare(self, session: Session, ctrl_c: _CtrlC) -> None:
        """Let the backend compile; Ctrl-C ends that before it is done, since no step is at hand."""
        model = self.model
        try:
            model.backend.prepare(session, ctrl_c.check)
            if self._validation is not None:
                model._inference.prepare(model.spec, len(self._validation), ctrl_c.check)
        except KeyboardInterrupt:
            self._interrupted = True
            self.stop("interrupted")

    def check_memory(self, optimizer: Optimizer) -> None:
        """Raise MemoryError where the run does not fit on the backend, before anything is made for it."""
        state = self.model._state
        buffers = 0 if state.optimizer == optimizer else optimizer.moments + (optimizer.ema is not None)
        more = buffers * state.layout.size * self.model.dtype.itemsize
        self.model.backend.check_memory(self._plan(optimizer), self._data, more)

    def _plan(self, optimizer: Optimizer | None = None) -> Plan:
        model = self.model
        optimizer = optimizer or model._state.optimizer
        assert optimizer is not None
        return Plan(model.spec, self._progress.batch_size, model.dtype, True, optimizer.without_schedule())

    def adopt(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Make the choices of the run that goes on, as far as they are left open; return those of this run."""
        with self.model._pool.use(self._plan()) as session:
            session.adopt(choices)
            return session.choices()

    def _check_schedule(self) -> None:
        schedule = self.model._state.optimizer.schedule  # type: ignore[union-attr]
        monitor = getattr(schedule, "monitor", None)
        if monitor is not None:
            self.check_monitor(type(schedule).__name__, monitor)

    def _epoch(self, session: Session, data: Any, ctrl_c: _CtrlC) -> None:
        progress, state = self._progress, self.model._state
        began = time.perf_counter() - progress.seconds
        self._order = self._order_of(state.step - progress.position)
        for callback in self.callbacks:
            callback.on_epoch_begin(self)
        rate = math.nan
        while progress.position < self._steps_per_epoch:
            rate = self._steps(session, data, self._order)
            progress.seconds = time.perf_counter() - began
            for callback in self.callbacks:
                callback.on_steps(self)
            if ctrl_c.pressed:
                self._interrupted = True
                self.stop("interrupted")
            if self.history.stop_reason and progress.position < self._steps_per_epoch:
                return
        if math.isnan(rate):  # resumed just before the end of the epoch
            rate = float(self._rates(state.optimizer_step - 1, 1)[0])
        logs = self._figures(rate)
        logs["epoch_seconds"] = time.perf_counter() - began
        self.history.append(logs)
        progress.memory = state.optimizer.schedule.observe(progress.memory, logs)  # type: ignore[union-attr]
        progress.epoch, progress.position, progress.seconds = progress.epoch + 1, 0, 0.0
        self._totals[:] = 0
        progress.totals = self._totals.tolist()
        for callback in self.callbacks:
            callback.on_epoch_end(self, logs)

    def _order_of(self, begins: int) -> _Order:
        """Return the order of the rows in the epoch that begins with a step; one that was made ahead is taken."""
        for made in (self._next_order, self._order):
            if made is not None and (made.begins == begins or not self._progress.shuffle):
                return made
        rows = self._progress.rows
        host = epoch_order(self.model._state.key, begins, rows) if self._progress.shuffle else np.arange(rows)
        return _Order(begins, host, self.model.backend.asarray(host))

    def _order_ahead(self) -> None:
        """Make the order of the next epoch, and bring it to the device, while the device works on this one."""
        assert self._order is not None
        if self.epoch + 1 < self.epochs:
            self._next_order = self._order_of(self._order.begins + self._steps_per_epoch)

    def _rates(self, optimizer_step: int, count: int) -> NDArray[np.float64]:
        schedule = self.model._state.optimizer.schedule  # type: ignore[union-attr]
        first = optimizer_step - (self._progress.schedule_start if schedule.follows_call else 0)
        horizon = getattr(schedule, "steps", None) or self._progress.horizon
        return schedule.rates(first, count, horizon, self._progress.memory)

    def _steps(self, session: Session, data: Any, order: _Order) -> float:
        """Carry out as many steps as suit a call; return the learning rate of the last."""
        progress, state = self._progress, self.model._state
        count = self._steps_per_epoch - progress.position
        seconds = min(CALL_SECONDS, session.call_seconds)
        count = min(count, int(seconds / session.seconds_per_step) if session.seconds_per_step else 8)
        for callback in self.callbacks:
            due = callback.next_step(self)
            if due is not None:
                count = min(count, due - self.steps_done)
        count = max(count, 1)
        rates = self._rates(state.optimizer_step, count)
        inverse = inverse_totals(self._data.weights, order.host, progress.batch_size, progress.position, count)
        table = state.optimizer.table(rates, state.optimizer_step, inverse)  # type: ignore[union-attr]
        start = time.perf_counter()
        report = self.model.backend.train_steps(
            session, state, data, order.device, table, progress.position, self._totals
        )
        session.seconds_per_step = (time.perf_counter() - start) / max(report.done, 1)
        progress.position += report.done
        progress.totals = self._totals.tolist()
        if not report.finite:
            raise self._non_finite(session, data, order.device)
        return float(rates[-1])

    def _non_finite(self, session: Session, data: Any, order: Array) -> NonFiniteLossError:
        progress, state = self._progress, self.model._state
        row, where = self.model.backend.first_nonfinite(session, state, data, order, progress.position)
        whose = f", row {row} of the training data" if row >= 0 else ""
        if "input" in where:
            cure = "remove or fill in missing values"
        elif "weights" in where or "biases" in where:
            cure = "an earlier step made them so; lower the learning rate or set clip_norm"
        else:
            cure = "lower the learning rate, set clip_norm, or scale the inputs"
        return NonFiniteLossError(
            f"the loss is not finite in epoch {self.epoch + 1}, step {self.steps_done}{whose}: {where} went wrong "
            f"first. The model is as it was before that step. {cure[0].upper()}{cure[1:]}.",
            epoch=self.epoch + 1,
            step=self.steps_done,
            row=row,
            where=where,
        )

    def _figures(self, rate: float) -> dict[str, float]:
        logs = self.running_figures()
        if not logs:  # every batch of the epoch had weight 0
            logs = dict.fromkeys(self.figure_names()[: 1 + self.model.spec.loss.has_accuracy], math.nan)
        if self._metrics:
            logs.update(self.model._metric_values(self._data, self._metrics))
        validation = self._validation_data()
        if validation is not None:
            figures = self.model._figures(validation, self._metrics)
            logs.update({f"val_{name}": value for name, value in figures.items()})
        logs["learning_rate"] = rate
        return logs

    def _validation_data(self) -> HostData | None:
        """Return the validation data; brought to the backend once a run, where there is room beside the training."""
        given, backend = self._validation, self.model.backend
        if given is not None and self._validation_there is None:
            fits = backend.rows_at_once(given.row_bytes) >= len(given)
            self._validation_there = given.moved(backend) if fits else given
        return self._validation_there

    # --- checkpoints ---

    def check_checkpoint(self) -> None:
        """Raise ValueError where the run holds something that no file can: a schedule or an optimizer of one's own."""
        assert self.model._state.optimizer is not None
        json.dumps(optimizer_to_json(self.model._state.optimizer))

    def save_checkpoint(self, path: str | PathLike[str]) -> None:
        """Write everything that the run needs to go on to the same bits."""
        state = self.model._state
        assert state.optimizer is not None
        if not self._fingerprint:
            self._fingerprint = self._data.fingerprint(self.model.backend)
        header, tensors = self.model._contents()
        kept: list[dict[str, Any]] = []
        for callback in self.callbacks:
            values = callback.state()
            if not values:
                continue
            arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
            tensors.update({f"callbacks.{len(kept)}.{k}": v for k, v in arrays.items()})
            plain = {k: v for k, v in values.items() if k not in arrays}
            kept.append({"type": type(callback).__name__, "state": plain, "arrays": sorted(arrays)})
        header |= {
            "kind": "checkpoint",
            "optimizer": optimizer_to_json(state.optimizer),
            "optimizer_step": state.optimizer_step,
            "progress": self._progress.to_json(),
            "history": self.history.history,
            "figures": self.figure_names(),
            "callbacks": kept,
            "data": self._fingerprint,
            "platform": self.model.backend.choices() if self._session is None else self._session.choices(),
        }
        files.write(path, header, tensors)

    def restore_callbacks(self, path: str, header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
        """Give the callbacks back their states; ValueError where they are not those of the checkpoint."""
        stateful = [c for c in self.callbacks if c.state()]
        saved = header["callbacks"]
        if [type(c).__name__ for c in stateful] != [c["type"] for c in saved]:
            raise ValueError(
                f"callbacks must be those that the checkpoint {path} was made with: "
                f"{[c['type'] for c in saved]}; got {[type(c).__name__ for c in stateful]}"
            )
        for i, (callback, entry) in enumerate(zip(stateful, saved, strict=True)):
            arrays = {name: tensors[f"callbacks.{i}.{name}"] for name in entry["arrays"]}
            callback.restore({**entry["state"], **arrays})
        if header["figures"] != self.figure_names():
            raise ValueError(
                f"validation data and metrics must be those of the checkpoint {path}, whose figures are "
                f"{', '.join(header['figures'])}; they now are {', '.join(self.figure_names())}"
            )


class _CtrlC:
    """Notes Ctrl-C while training runs, so that the step at hand ends whole; a second one interrupts at once.

    Only where Python's own handler is in place and this is the main thread: elsewhere signals are someone else's.
    """

    def __init__(self) -> None:
        self.pressed = False
        self._installed = False

    def __enter__(self) -> _CtrlC:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt where Ctrl-C was pressed."""
        if self.pressed:
            raise KeyboardInterrupt

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True
