"""What callbacks may ask of a run: how far it is, its figures, and that it stops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.backends.sparse import SparseRows
from fastmlp.engine.batches import steps_per_epoch
from fastmlp.engine.history import History

if TYPE_CHECKING:
    from fastmlp.backends.data import HostData
    from fastmlp.engine.learner import Learner
    from fastmlp.engine.metrics import Measure
    from fastmlp.engine.progress import Progress
    from fastmlp.formulas.optimizers import Optimizer


def time_limit(callbacks: Iterable[Any]) -> float:
    """Return how many seconds a run with these callbacks lasts at most."""
    return min((callback.most_seconds for callback in callbacks), default=math.inf)


class RunView:
    """A run of training as callbacks see it.

    Attributes
    ----------
    model : MLP
        What `fit` was called on.
    learner : Learner
        Which is trained.
    optimizer : Optimizer
    history : History
    failed : bool
        Whether an error is ending the run.
    """

    def __init__(
        self,
        learner: Learner,
        validation: HostData | None,
        progress: Progress,
        optimizer: Optimizer,
        metrics: Mapping[str, Measure],
        model: Any,
        history: History | None,
    ) -> None:
        self.learner, self.model, self.optimizer = learner, model, optimizer
        self.history, self.failed = history or History(), False
        self._validation, self._progress, self._metrics = validation, progress, dict(metrics)
        self._validation_there: HostData | None = None
        self._steps_per_epoch = steps_per_epoch(progress.rows, progress.batch_size)
        self._totals = np.array(progress.totals)
        self._squared_norm: float | None = None
        """Of the weights after the epoch that callbacks are told of, where more have been trained since."""

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
        names = ["loss", *(["accuracy"] if self.learner.spec.loss.has_accuracy else []), *self._metrics]
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
        if self.learner.spec.loss.has_accuracy:
            figures["accuracy"] = hits / weight
        return figures

    def stop(self, reason: str) -> None:
        """End the run after the step or epoch at hand."""
        if not self.history.stop_reason:
            self.history.stop_reason = reason

    def squared_norm(self) -> float:
        """Return the sum of the squares of all weights, biases left out, at the end of the epoch at hand."""
        if self._squared_norm is not None:
            return self._squared_norm
        state = self.learner.state
        values = self.learner.to_numpy(state.params)[: state.layout.weights_size].astype(np.float64, copy=False)
        a, b, c, d = np.add.reduce((values * values).reshape(-1, 4), axis=0).tolist()  # row by row, as kernels do
        return float((a + b) + (c + d))

    def _validate(self, data: HostData) -> dict[str, float]:
        return self.learner.figures(data, self._metrics)

    def _validation_data(self) -> HostData | None:
        """Return the validation data; brought to the backend once a run, where there is room beside the training."""
        given, backend = self._validation, self.learner.backend
        if given is not None and self._validation_there is None:
            fits = not isinstance(given.x, SparseRows) and backend.rows_at_once(given.row_bytes) >= len(given)
            self._validation_there = given.moved(backend.asarray) if fits else given
        return self._validation_there
