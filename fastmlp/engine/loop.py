"""The training loop: epochs, steps, what happens between them, and how a run is stopped and saved."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.session import Ahead, Session, StepReport
from fastmlp.engine.batches import DrawOrder, Order, Orders, inverse_totals, inverse_totals_of_epochs
from fastmlp.engine.checkpoints import RunContents, save_run
from fastmlp.engine.feed import Fed, Feed, feed_of
from fastmlp.engine.history import History
from fastmlp.engine.interrupts import CtrlC
from fastmlp.engine.nonfinite import loss_error, warn_of_stalled, weights_error
from fastmlp.engine.run_view import RunView, time_limit
from fastmlp.errors import TrainingInterrupted
from fastmlp.formulas.optimizers import Optimizer, optimizer_to_json
from fastmlp.formulas.schedules import Schedule
from fastmlp.warned import warn_caller

if TYPE_CHECKING:
    from fastmlp.backends.data import DeviceData, HostData
    from fastmlp.engine.learner import Learner
    from fastmlp.engine.metrics import Measure
    from fastmlp.engine.progress import Progress
    from fastmlp.errors import NonFiniteLossError
    from fastmlp.network.plan import Plan
    from fastmlp.parallel.tree import Share

CALL_SECONDS = 0.2
"""How long a call to a backend should last: short enough for Ctrl-C and a moving progress bar."""
AT_ONCE_SECONDS, MOST_AT_ONCE = 0.01, 64
"""How long epochs are trained at once, and how many at most: so long is lost where something ends the run before."""
SHORT_EPOCH = 1 << 27
"""Rows times parameters of an epoch without a look at Ctrl-C, which is less than `CALL_SECONDS` on a slow core too."""


class Callback:
    """Base of all callbacks; every method may be left as it is.

    The methods are given the `Training`, which tells the model, the epoch, the steps and the figures, and which
    ``stop(reason)`` ends after the step or epoch at hand.

    Attributes
    ----------
    runs_last : bool
        True for those that must see what the others made of an epoch, such as checkpoints.
    sees_model : bool
        False for those that go by figures alone, and look neither at the model nor at its learner before the end: where
        no callback does, epochs of a few milliseconds are trained several at once, and told one after the other.
    writes : bool
        True for those that write files or to a terminal: of several ranks that train together, rank 0 alone has them.
    same_on_resume : tuple of str
        Names of attributes, numbers or text, that what it keeps goes by: a run is not gone on with by others.
    most_seconds : float
        How long a run lasts with it at most, as far as it knows.
    """

    runs_last = False
    sees_model = True
    writes = False
    same_on_resume: tuple[str, ...] = ()
    most_seconds = math.inf

    def on_train_begin(self, run: Training) -> None:
        """Before the first step, also of a resumed run; an error here leaves the model as it was."""

    def on_epoch_begin(self, run: Training) -> None:
        """Before an epoch, or the rest of one."""

    def on_steps(self, run: Training) -> None:
        """After some steps; after exactly those that `next_step` asks for, and about five times a second."""

    def on_epoch_end(self, run: Training, figures: Mapping[str, float]) -> None:
        """After an epoch, with its figures; ``run.epoch`` counts it already."""

    def on_interrupt(self, run: Training) -> None:
        """After Ctrl-C, before `on_train_end`."""

    def on_train_end(self, run: Training) -> None:
        """At the end of what began, after an error too (then ``run.failed``), also of another's `on_train_begin`."""

    def next_step(self, run: Training) -> int | None:
        """Return the next step of the run, counted from 1, after which `on_steps` must be called."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of this callback: numbers, strings and NumPy arrays by name."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""


class Training(RunView):
    """One run of training, what callbacks are given; see `RunView` for what they may ask."""

    _share: Share | None = None
    tried = 0.0  # seconds that trials have taken for this run before it begins

    def __init__(
        self,
        learner: Learner,
        data: HostData,
        validation: HostData | None,
        progress: Progress,
        optimizer: Optimizer,
        metrics: Mapping[str, Measure],
        callbacks: Sequence[Callback],
        model: Any,
        draw: DrawOrder | None = None,
        history: History | None = None,
    ) -> None:
        super().__init__(learner, validation, progress, optimizer, metrics, model, history)
        self._data, self._schedule = data, optimizer.schedule
        self.callbacks = sorted(callbacks, key=lambda c: c.runs_last)
        self._told: Sequence[Any] = self.callbacks  # what an `EpochTimer` puts its clock around
        order = learner.state.key, progress.rows, progress.shuffle, learner.backend.asarray, data.training
        self._orders, self._draws = Orders(*order, draw), draw is not None
        self._order: Order | None = None
        self._interrupted, self._epoch_told = False, -1
        self._session: Session | None = None
        self._used: Session | None = None
        """The session of the steps, also after them: what is saved then has to go on in the same way."""

    # --- the loop ---

    def run(self) -> History:
        """Train to the end of the run, or until something stops it."""
        monitor = getattr(self._schedule, "monitor", None)
        if monitor is not None:
            self.check_monitor(type(self._schedule).__name__, monitor)
        learner, begun = self.learner, 0
        try:
            for callback in self.callbacks:
                callback.on_train_begin(self)
                begun += 1
            feed = self._feed()
            with CtrlC() as ctrl_c:
                while not self._ends_in_a_session(feed, ctrl_c):
                    pass
            if self._interrupted:
                for callback in self._told:
                    callback.on_interrupt(self)
        except BaseException:
            self.failed = True
            raise
        finally:
            # those that have not begun have nothing to end; what follows the callbacks is an `EpochTimer` that has
            for callback in [*self._told[:begun], *self._told[len(self.callbacks) :]]:
                callback.on_train_end(self)
        if not learner.state.sound(learner.backend.all_finite):
            self._check_weights()
            warn_of_stalled(learner.state.stalled(learner.to_numpy), learner.dtype)
        if self._interrupted:
            warn_caller(
                f"training was interrupted in epoch {self.epoch + 1} of {self.epochs}, after {self.steps_done} whole "
                "steps; the model is usable as it is, and fit goes on from here",
                TrainingInterrupted,
            )
        return self.history

    def _ends_in_a_session(self, feed: Feed, ctrl_c: CtrlC) -> bool:
        """Train until the run ends, or a callback freezes layers or lets them train; tell which."""
        with self.learner.sessions.use(self._plan()) as session:
            self._session = self._used = session
            session.meanwhile = self._order_ahead
            session.ahead = Ahead(self.total_steps - self.steps_done, self.tried, time_limit(self.callbacks))
            try:
                self._prepare(session, ctrl_c)
                several = feed.whole if self._may_take_several(session) else None
                while self.epoch < self.epochs and not self.history.stop_reason:
                    if session.plan.spec != self.learner.spec:
                        return False
                    asked = several is None or any(c.next_step(self) is not None for c in self.callbacks)
                    if several is not None and self._progress.position == 0 and not asked:
                        self._short_epochs(session, several, ctrl_c)
                    else:
                        self._epoch(session, feed, ctrl_c)
            finally:
                self._session = session.meanwhile = self._validation_there = None
                session.release()
        return True

    def _feed(self) -> Feed:
        return feed_of(self._data, self.learner.backend, self._progress.batch_size)

    def _prepare(self, session: Session, ctrl_c: CtrlC) -> None:
        """Let the backend compile; Ctrl-C ends that before it is done, since no step is at hand."""
        learner = self.learner
        try:
            learner.backend.prepare(session, ctrl_c.check)
            if self._validation is not None:
                learner.inference.prepare(learner.spec, len(self._validation), ctrl_c.check)
        except KeyboardInterrupt:
            self._interrupted = True
            self.stop("interrupted")

    def _plan(self) -> Plan:
        """Return the plan of a step as the network is now: callbacks may freeze layers, and let them train."""
        return self.learner.plan(self._progress.batch_size, self.optimizer)

    def check_memory(self) -> None:
        """Raise MemoryError where the run does not fit on the backend, before anything is made for it."""
        learner, optimizer = self.learner, self.optimizer
        buffers = 0 if learner.state.optimizer == optimizer else optimizer.moments + (optimizer.ema is not None)
        more = buffers * learner.state.layout.size * learner.dtype.itemsize
        learner.backend.check_memory(self._plan(), self._data, more, self._share)

    def adopt(self, choices: Mapping[str, Any]) -> dict[str, Any]:
        """Make the choices of the run that goes on, as far as they are left open; return those of this run."""
        with self.learner.sessions.use(self._plan()) as session:
            session.adopt(choices)
            return self._choices(session)

    def _choices(self, session: Session | None) -> dict[str, Any]:
        return self.learner.backend.choices() if session is None else session.choices()

    def _epoch(self, session: Session, feed: Feed, ctrl_c: CtrlC) -> None:
        progress, state = self._progress, self.learner.state
        began = time.perf_counter() - progress.seconds
        self._order = self._orders.of_epoch(state.step - progress.position)
        if self._epoch_told != self.epoch:
            self._epoch_told = self.epoch
            for callback in self._told:
                callback.on_epoch_begin(self)
        rate = math.nan
        while progress.position < self._steps_per_epoch:
            rate = self._steps(session, feed, self._order)
            progress.seconds = time.perf_counter() - began
            for callback in self._told:
                callback.on_steps(self)
            if ctrl_c.pressed:
                self._interrupted = True
                self.stop("interrupted")
            self._settle_stop()
            ends = self.history.stop_reason or session.plan.spec != self.learner.spec
            if ends and progress.position < self._steps_per_epoch:
                return
        if math.isnan(rate):  # resumed just before the end of the epoch
            rate = float(self._rates(state.optimizer_step - 1, 1)[0])
        figures = self._figures(rate)
        figures["epoch_seconds"] = time.perf_counter() - began
        self._end_epoch(figures)

    def _end_epoch(self, figures: dict[str, float]) -> None:
        progress = self._progress
        self.history.append(figures)
        progress.memory = self._schedule.observe(progress.memory, figures)
        progress.epoch, progress.position, progress.seconds = progress.epoch + 1, 0, 0.0
        self._totals[:] = 0
        progress.totals = self._totals.tolist()
        for callback in self._told:
            callback.on_epoch_end(self, figures)

    # --- several epochs at once ---

    def _may_take_several(self, session: Session) -> bool:
        """Tell whether epochs may be trained before the ones before them are looked at; the same on every machine."""
        blind = not any(c.sees_model for c in self.callbacks) and self._validation is None and not self._metrics
        steady = type(self._schedule).observe is Schedule.observe  # its rates do not depend on figures
        work = self._progress.rows * self.learner.state.layout.size
        return session.takes_epochs and blind and steady and not self._draws and work <= SHORT_EPOCH

    def _short_epochs(self, session: Session, data: DeviceData, ctrl_c: CtrlC) -> None:
        """Carry out as many epochs as last some milliseconds in one call, then tell of each as if it had just ended.

        Where something ends the run at one of them, the model goes back to the beginning and trains up to there again:
        the same seed gives the same bits.
        """
        progress, learner, steps = self._progress, self.learner, self._steps_per_epoch
        count = self.epochs - self.epoch
        if session.seconds_per_step:
            count = min(count, int(AT_ONCE_SECONDS / (session.seconds_per_step * steps)), MOST_AT_ONCE)
        else:
            count = 1
        count = max(count, 1)
        before = learner.state.copied(learner.backend.copy) if count > 1 else learner.state
        orders = self._orders.of_epochs(range(before.step, before.step + count * steps, steps))
        began = time.perf_counter()
        report, rates, sums, norms = self._take_epochs(session, data, orders)
        seconds = time.perf_counter() - began
        session.seconds_per_step = seconds / max(report.done, 1)
        whole = report.done // steps
        told, ended = 0, True
        try:
            for epoch in range(whole):
                told = epoch + 1
                self._totals[:], self._squared_norm = sums[epoch], float(norms[epoch])
                for callback in self._told:
                    callback.on_epoch_begin(self)
                progress.position, progress.totals = steps, self._totals.tolist()
                progress.seconds = seconds / count
                for callback in self._told:
                    callback.on_steps(self)
                if ctrl_c.pressed and epoch == whole - 1:
                    self._interrupted = True
                    self.stop("interrupted")
                figures = self._figures(float(rates[told * steps - 1]))
                figures["epoch_seconds"] = seconds / count
                self._end_epoch(figures)
                if self.history.stop_reason:
                    break
            else:
                ended = False
        finally:  # after an error of a callback's too
            if ended and report.done > told * steps:
                learner.state.go_back(before)
                self._take_epochs(session, data, orders[:told])
        if not report.finite and not ended:
            for callback in self._told:
                callback.on_epoch_begin(self)
            progress.position = report.done - whole * steps
            self._totals[:] = sums[whole]
            progress.totals = self._totals.tolist()
            raise self._non_finite(session, Fed(data, orders[whole], progress.position, None))

    def _take_epochs(
        self, session: Session, data: DeviceData, orders: NDArray[np.intp]
    ) -> tuple[StepReport, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Train on epochs; return the report, the rate of each step, the sums and the norm of the weights of each."""
        state, batch, weights = self.learner.state, self._progress.batch_size, self._data.weights
        count, steps = len(orders), self._steps_per_epoch
        rates = self._rates(state.optimizer_step, count * steps)
        inverse = inverse_totals_of_epochs(weights, orders, batch, steps)
        table = self.optimizer.table(rates, state.optimizer_step, inverse, self.learner.spec.l2_share(inverse))
        sums, norms = np.zeros((count, 3)), np.full(count, math.nan)
        report = self.learner.backend.train_epochs(session, state, data, orders, table, sums, norms)
        return report, rates, sums, norms

    def _order_ahead(self) -> None:
        """Make the order of the next epoch, and bring it to the device, while the device works on this one."""
        if self._order is not None and self.epoch + 1 < self.epochs:
            self._orders.of_epoch(self._order.begins + self._steps_per_epoch)

    def _rates(self, optimizer_step: int, count: int) -> NDArray[np.float64]:
        schedule = self._schedule
        first = optimizer_step - (self._progress.schedule_start if schedule.follows_call else 0)
        horizon = getattr(schedule, "steps", None) or self._progress.horizon
        return schedule.rates(first, count, horizon, self._progress.memory)

    def _steps(self, session: Session, feed: Feed, order: Order) -> float:
        """Carry out as many steps as suit a call; return the learning rate of the last."""
        progress, state = self._progress, self.learner.state
        count = self._steps_per_epoch - progress.position
        seconds = min(CALL_SECONDS, session.call_seconds)
        count = min(count, int(seconds / session.seconds_per_step) if session.seconds_per_step else 8)
        for callback in self._told:
            due = callback.next_step(self)
            if due is not None:
                count = min(count, due - self.steps_done)
        count = self._at_once(min(max(count, 1), feed.most_steps))
        rates = self._rates(state.optimizer_step, count)
        inverse = inverse_totals(self._data.weights, order.host, progress.batch_size, progress.position, count)
        shares = self.learner.spec.l2_share(inverse)
        table = self.optimizer.table(rates, state.optimizer_step, inverse, shares)
        fed = feed.steps(order, progress.position, count)
        start = time.perf_counter()
        report = self._train(session, fed, table)
        session.seconds_per_step = (time.perf_counter() - start) / max(report.done, 1)
        progress.position += report.done
        progress.totals = self._totals.tolist()
        if not report.finite:
            raise self._non_finite(session, fed._replace(first=fed.first + report.done))
        return float(rates[-1])

    # --- where several ranks have to agree, see `together` ---

    def _at_once(self, count: int) -> int:
        return count

    def _train(self, session: Session, fed: Fed, table: NDArray[np.float64]) -> StepReport:
        given = session, self.learner.state, fed.data, fed.order, table, fed.first, self._totals
        return self.learner.backend.train_steps(*given)

    def _settle_stop(self) -> None:
        return

    def _non_finite(self, session: Session, fed: Fed) -> NonFiniteLossError:
        state = self.learner.state
        row, where = self.learner.backend.first_nonfinite(session, state, fed.data, fed.order, fed.first)
        row = row if row < 0 or fed.numbers is None else int(fed.numbers[row])
        if where.startswith(("the weights", "the biases")):
            return weights_error(self.epoch + 1, self.steps_done, where, self._data.x, self.learner.backend)
        return loss_error(self.epoch + 1, self.steps_done, row, where)

    def _check_weights(self) -> None:
        """Raise NonFiniteLossError where the last step spoilt the weights: no loss has been worked out with them."""
        if where := self.learner.state.spoilt(self.learner.to_numpy):
            epoch = self.epoch + (self._progress.position > 0)
            raise weights_error(epoch, self.steps_done, where, self._data.x, self.learner.backend)

    def _figures(self, rate: float) -> dict[str, float]:
        learner, figures = self.learner, self.running_figures()
        if not figures:  # every batch of the epoch had weight 0
            figures = dict.fromkeys(self.figure_names()[: 1 + learner.spec.loss.has_accuracy], math.nan)
        if self._metrics:
            asked = learner.spec, learner.state.evaluated, self._trained, self._metrics
            figures.update(learner.inference.metric_values(*asked))
        validation = self._validation_data()
        if validation is not None:
            found = self._validate(validation)
            figures.update({f"val_{name}": value for name, value in found.items()})
        figures["learning_rate"] = rate
        return figures

    @cached_property
    def _trained(self) -> HostData:
        """The rows that train, for metrics; a copy where others of the data are held out."""
        data, backend = self._data, self.learner.backend
        if data.training is None:
            return data
        with backend.working():
            return data.taken(data.training, backend.picked)

    # --- checkpoints ---

    @cached_property
    def _fingerprints(self) -> tuple[str, str | None]:
        to_numpy, validation = self.learner.backend.to_numpy, self._validation
        return self._data.fingerprint(to_numpy), None if validation is None else validation.fingerprint(to_numpy)

    def check_checkpoint(self) -> None:
        """Raise ValueError where the run holds something that no file can: a schedule or an optimizer of one's own."""
        if self._draws:
            raise ValueError("a checkpoint cannot hold random_state, from which the orders of the rows are drawn")
        json.dumps(optimizer_to_json(self.optimizer))

    def save_checkpoint(self, path: str | PathLike[str]) -> None:
        """Write everything that the run needs to go on to the same bits; never weights that are not finite."""
        self._check_weights()
        contents = RunContents(
            optimizer=self.optimizer,
            progress=self._progress,
            history=self.history.history,
            figures=self.figure_names(),
            callbacks=self.callbacks,
            data=self._fingerprints[0],
            validation=self._fingerprints[1],
            choices=self._choices(self._used),
        )
        save_run(self.learner, path, contents)
