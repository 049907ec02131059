"""How a run of training begins, and how one that was saved goes on: all refusals come before anything changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmlp.arguments import check_number
from fastmlp.backends.session import Ahead
from fastmlp.engine.backend_trial import settle
from fastmlp.engine.batches import DrawOrder, batch_of, split_rows, steps_per_epoch
from fastmlp.engine.checkpoints import restore_callbacks
from fastmlp.engine.checks import refuse_nonfinite
from fastmlp.engine.history import History
from fastmlp.engine.inputs import InputRules, InputScale
from fastmlp.engine.loop import Callback, Training
from fastmlp.engine.metrics import Measure, rehearsed
from fastmlp.engine.progress import Progress
from fastmlp.engine.row_weights import ClassWeight, check_parts, row_classes, with_class_weight
from fastmlp.engine.run_view import time_limit
from fastmlp.engine.together import SharedTraining, place, shards_of
from fastmlp.errors import DataError, NonFiniteLossError, ReproducibilityWarning
from fastmlp.formulas.optimizers import choose_optimizer
from fastmlp.parallel.group import Alone
from fastmlp.parallel.tree import Share
from fastmlp.warned import warn_caller

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from fastmlp._typing import Array
    from fastmlp.backends.data import HostData
    from fastmlp.engine.learner import Learner
    from fastmlp.engine.progress import PausedRun
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.parallel.group import Group


def take(
    learner: Learner,
    rows: tuple[ArrayLike, ArrayLike, ArrayLike | None],
    class_weight: ClassWeight | None,
    validation_data: tuple[ArrayLike, ...] | None,
    fraction: float,
    drawn: bool = True,
) -> tuple[HostData, HostData | None]:
    """Return the data to train on, and those to validate with: given ones, or rows held out of the others.

    Where these are not `drawn`, they are the last ones.  Class weights are for training alone: the same rows are
    validated alike, whichever way they were held out.
    """
    data = learner.data(*rows, training=True, later=True)
    fraction = check_number("validation_split", fraction, 0.0, 1.0)
    labels = row_classes(learner.spec.loss, data.y) if fraction else None
    parts = split_rows(len(data), fraction, learner.state.key, labels)
    train, validation = data, None
    if validation_data is not None:
        if parts is not None:
            raise ValueError("give either validation_data or validation_split, not both")
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
            raise ValueError("validation_data must be (x, y) or (x, y, sample_weight)")
        rules = _settled(learner, data)
        validation = learner.data(*validation_data, suffix=" of validation_data", rules=rules)
    elif parts is not None and drawn:
        # what trains stays where it is, and is picked row by row in the order of each epoch
        backend = learner.backend
        with backend.working():
            validation = data.taken(parts.held_out, backend.picked)
        train = replace(data, training=parts.train)
    elif parts is not None:
        cut = len(parts.train)
        train, validation = data.window(slice(0, cut)), data.window(slice(cut, None))
    if parts is not None and validation is not None:
        # training comes upon what is not finite in its own rows before it changes anything; upon these only afterwards
        refuse_nonfinite(validation.x, learner.backend, "x", parts.held_out)
    if parts is not None and data.weights is not None:
        cure = "hold out another part of the rows, or give validation_data"
        check_parts(data.weights, parts.train, parts.held_out, f"validation_split={fraction!r}", cure)
    return with_class_weight(learner.spec, learner.dtype, train, class_weight), validation


def _settled(learner: Learner, data: HostData) -> InputRules:
    """Return what is known of the inputs: by the learner or, where it knows nothing, by the data to train on."""
    rules = learner.rules
    return rules._replace(names=rules.names or data.names, scale=rules.scale or InputScale.of(data.x))


class Wanted(NamedTuple):
    """What a new run is asked for; of `fastmlp.MLP.fit`, checked.  The split has been made, and is kept for `go_on`."""

    epochs: int
    batch_size: int | None
    optimizer: Optimizer
    shuffle: bool
    validation_split: float


class Extras(NamedTuple):
    """What looks at a run: metrics by name, callbacks, and what these are shown as ``run.model``.

    And the ranks that train it together, where there are several; and where the orders of the rows come from, where
    that is not the seed: such a run has no checkpoints to go on from.
    """

    metrics: Mapping[str, Measure]
    callbacks: Sequence[Callback]
    model: Any
    group: Group | None = None
    draw: DrawOrder | None = None

    def training(
        self,
        learner: Learner,
        data: HostData,
        validation: HostData | None,
        progress: Progress,
        optimizer: Optimizer,
        history: History | None = None,
    ) -> Training:
        """Return the run that these look at."""
        metrics, callbacks, model, group, draw = self
        given = learner, data, validation, progress, optimizer, rehearsed(metrics, data, validation), callbacks, model
        if group is None:
            return Training(*given, draw, history=history)
        run = SharedTraining(group, *given, draw, history=history)
        run.agree()
        return run


def begin(learner: Learner, data: HostData, validation: HostData | None, wanted: Wanted, extras: Extras) -> History:
    """Train a learner on checked data, on from where it stands; see `fastmlp.MLP.fit`."""
    epochs, optimizer = wanted.epochs, wanted.optimizer
    rows = data.training_rows
    batch_size = batch_of(wanted.batch_size, rows)
    steps, tried = epochs * steps_per_epoch(rows, batch_size), 0.0
    if extras.group is None:  # ranks that tried by themselves might not agree
        tried = settle(learner, data, optimizer, batch_size, Ahead(steps, 0.0, time_limit(extras.callbacks)))
    with learner.exclusive():
        # all that can fail on the arguments is done before the state changes
        progress = Progress(
            epochs=epochs,
            batch_size=batch_size,
            rows=rows,
            shuffle=wanted.shuffle,
            validation_split=wanted.validation_split,
            drawn=True,
            horizon=steps,
            schedule_start=learner.state.optimizer_step if learner.state.optimizer == optimizer else 0,
            shards=None if extras.group is None else shards_of(extras.group),
        )
        run = extras.training(learner, data, validation, progress, optimizer)
        run.tried = tried
        run.check_memory()
        learner.paused = None
        before, rules = replace(learner.state), learner.rules
        learner.rules = _settled(learner, data)
        with _kept(learner):
            learner.state.begin(optimizer, learner.backend.zeros, learner.backend.copy)
            try:
                return run.run()
            except BaseException:
                if run.steps_done == 0:
                    learner.state, learner.rules = before, rules
                raise


def memory_estimate(
    learner: Learner,
    data: HostData,
    batch_size: int | None,
    optimizer: Optimizer | str | None,
    group: Group | None = None,
) -> dict[str, int]:
    """Return how many bytes a run takes beside what is there already; see `fastmlp.MLP.memory_estimate`."""
    share = None if group is None else Share(shards_of(group), group.size, group.rank)
    plan = learner.plan(batch_of(batch_size, len(data)), choose_optimizer(optimizer, learner.state.optimizer))
    found = learner.backend.memory_estimate(plan, data, share)
    return {**found, "total": sum(found.values())}


def paused_run(learner: Learner) -> tuple[PausedRun, Progress]:
    """Return the run that a learner was loaded with, and how far it is; RuntimeError where it cannot go on."""
    paused = learner.paused
    if paused is None:
        raise RuntimeError(
            "resume: this model was not just loaded from a checkpoint; load one with fastmlp.load, or use fit"
        )
    progress = Progress.from_json(paused.header["progress"])
    if progress.epoch >= progress.epochs and not paused.tensors:  # else callbacks have weights to go back to
        raise RuntimeError(
            f"resume: the run of {paused.path} was finished after {progress.epochs} epochs; use fit to go on"
        )
    return paused, progress


def go_on(
    learner: Learner,
    paused: PausedRun,
    progress: Progress,
    data: HostData,
    validation: HostData | None,
    extras: Extras,
) -> History:
    """Go on with a paused run, to the same bits; see `fastmlp.MLP.resume`."""
    header, optimizer = paused.header, learner.state.optimizer
    assert optimizer is not None, "a checkpoint has one"
    if data.fingerprint(learner.backend.to_numpy) != header["data"]:
        raise DataError(f"resume: x, y and the weights are not those that the checkpoint {paused.path} was trained on")
    if data.training_rows != progress.rows:  # of which an estimator held out some that it had drawn itself
        raise DataError(
            f"resume: the run of {paused.path} was begun by an estimator, which trained on {progress.rows} of these "
            f"{len(data)} rows; which they are is not in the checkpoint, so use fit to go on from its weights"
        )
    validated = header.get("validation")  # files of earlier versions say nothing of it
    if validated and validation is not None and validation.fingerprint(learner.backend.to_numpy) != validated:
        raise DataError(
            f"resume: validation_data are not those that the checkpoint {paused.path} was validated with, so that its "
            "figures could not be compared with those to come; give the same"
        )
    if progress.shards is not None:
        extras = extras._replace(group=extras.group or Alone(progress.shards))
        place(learner, extras.group)
    elif extras.group is not None:
        raise ValueError(f"parallel: the run of {paused.path} was begun without; go on without, in one process")
    if extras.group is not None:
        shards_of(extras.group, progress.shards)
    with learner.exclusive():
        run = extras.training(learner, data, validation, progress, optimizer, History(header["history"]))
        restore_callbacks(paused, run.callbacks, run.figure_names())
        run.check_memory()
        learner.paused = None
        learner.rules = _settled(learner, data)  # files of earlier versions say nothing of the inputs
        then, here = header["platform"], run.adopt(header["platform"])
        if changed := [name for name in {**here, **then} if here.get(name) != then.get(name)]:
            was = ", ".join(f"{name} {then.get(name)!r}, now {here.get(name)!r}" for name in sorted(changed))
            warn_caller(
                f"the checkpoint was made under other choices ({was}), so the run need not go on to the same bits",
                ReproducibilityWarning,
            )
        with _kept(learner):
            return run.run()


@contextmanager
def _kept(learner: Learner) -> Iterator[None]:
    """Give a learner back the weights that it had, and no optimizer, where training ends with some not finite."""
    before = replace(learner.state)
    kept = _on_host(learner, before.evaluated)
    params = kept if before.average is None else _on_host(learner, before.params)
    try:
        yield
    except NonFiniteLossError:
        if learner.state.spoilt(learner.to_numpy):
            learner.state = replace(before, moments=[], optimizer=None, optimizer_step=0)
            learner.set_parameters(params, kept)
        raise


def _on_host(learner: Learner, array: Array) -> NDArray[Any]:
    """Return a copy in host memory, made once."""
    return array.copy() if isinstance(array, np.ndarray) else learner.to_numpy(array)
