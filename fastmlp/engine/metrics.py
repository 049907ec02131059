"""Figures that a user asks for beside the loss: functions of the targets and of what the network answers."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_sequence
from fastmlp.formulas.figures import Figure, figure_of, scorers_of, sklearn_figure
from fastmlp.formulas.names import answer
from fastmlp.warned import warn_caller

if TYPE_CHECKING:
    from fastmlp.backends.data import HostData
    from fastmlp.network.spec import NetworkSpec

Metric = Callable[[NDArray[Any], NDArray[Any]], float]
Metrics = Sequence[str | Metric] | Mapping[str, str | Metric] | str | Metric
"""What a user may give: one, several, or several by name."""
_PREDICTIONS = ("predict",)
_BASELESS = 1e9
"""So far below 0 is a score whose baseline has no loss."""
_TAKEN = ("loss", "learning_rate", "epoch_seconds")


@dataclass(frozen=True)
class Measure:
    """A metric, ready to be computed from the outputs of a network.

    Attributes
    ----------
    name : str
    figure : Figure
        Its function, and which answers that takes.
    spec : NetworkSpec
        Whose loss makes answers of outputs.
    forgiving : bool
        A value that cannot be computed is a warning and NaN, and no error.
    """

    name: str
    figure: Figure
    spec: NetworkSpec
    forgiving: bool = False

    def value(self, targets: NDArray[Any], outputs: NDArray[Any]) -> float:
        """Return the metric of some rows.

        Parameters
        ----------
        targets : (n,) or (n, K) array
            As losses take them.
        outputs : (n, K) array
            NumPy's, finite.

        Raises
        ------
        ValueError
            It cannot be computed; the message names it and says why.
        """
        y = targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets
        if y.ndim == 2 and self.spec.loss.takes_labels:
            y = y.argmax(axis=1)
        try:
            found = self.figure.function(y, self._answer(outputs), **self._options(y, outputs))
            if np.ndim(found) != 0:
                raise TypeError(f"it gives {type(found).__name__} of shape {np.shape(found)}, not a number")
            return self.figure.sign * float(found)
        except Exception as e:
            related = [name for name in scorers_of(self.figure.function) if name != self.name]
            cure = f"; of the same function there are {', '.join(related)}" if len(related) > 1 else ""
            message = f"metrics: {self.name!r} cannot be computed: {str(e).rstrip('.')}{cure}"
            if not self.forgiving or not isinstance(e, ValueError):
                raise ValueError(message) from e
            warn_caller(f"{message}. It is nan in this epoch")
            return math.nan

    def _answer(self, outputs: NDArray[Any]) -> NDArray[Any]:
        needs, loss = self.figure.needs, self.spec.loss
        if "predict" in needs:
            return loss.predict(outputs)
        wide = outputs.astype(np.float64)  # probabilities near 1 tie in float32, and ties count in a ranking
        if "decision_function" in needs and not loss.has_accuracy:
            return loss.predict(wide)
        answer = wide
        if "predict_proba" in needs:
            try:
                answer = loss.probabilities(wide)
            except ValueError:
                if "decision_function" not in needs:
                    raise ValueError(f"it needs probabilities, and the loss {loss.name!r} has none") from None
        if answer.shape[1] == 1:
            return answer[:, 0]
        if loss.takes_labels and answer.shape[1] == 2:  # of two classes scikit-learn takes the score of the second
            second: NDArray[Any] = answer[:, 1] - answer[:, 0] if answer is wide else answer[:, 1]
            return second
        return answer

    def _options(self, y: NDArray[Any], outputs: NDArray[Any]) -> Mapping[str, Any]:
        """Return the options, and the classes where scores of classes come in columns: rows may lack some."""
        options = self.figure.options
        if y.ndim == 2 or "predict" in self.figure.needs or "labels" in options or not self.spec.loss.has_accuracy:
            return options
        if "labels" not in inspect.signature(self.figure.function).parameters:
            return options
        return {**options, "labels": np.arange(max(outputs.shape[1], 2))}


def check_metrics(metrics: Metrics, spec: NetworkSpec) -> dict[str, Measure]:
    """Return metrics by name, each with what it needs.

    Parameters
    ----------
    metrics : sequence, mapping from name, str or callable
        Names of scorers or functions of `sklearn.metrics`, these themselves, also with arguments by
        `functools.partial`, or callables of one's own.
    spec : NetworkSpec

    Raises
    ------
    ValueError, TypeError
        There is no such metric, or two figures would have one name.
    """
    if isinstance(metrics, str) or callable(metrics):
        metrics = (metrics,)
    if isinstance(metrics, Mapping):
        given = list(metrics.items())
    else:
        several = check_sequence("metrics", metrics, "a sequence of names or callables, or a mapping to these")
        given = [(_name_of(m), m) for m in several]
    found: dict[str, Measure] = {}
    for name, metric in given:
        if not isinstance(name, str):
            raise TypeError(f"metrics: names must be text, got {name!r}")
        if name in _TAKEN or (name == "accuracy" and spec.loss.has_accuracy) or name.startswith("val_"):
            raise ValueError(f"metrics: a figure called {name!r} is there anyway; leave it out or give it another name")
        if name in found:
            raise ValueError(
                f"metrics: two are called {name!r}; give them names of their own, as in metrics={{'a': ..., 'b': ...}}"
            )
        found[name] = Measure(name, _figure(metric), spec)
    return found


def _name_of(metric: Any) -> str:
    if isinstance(metric, str):
        return metric
    if isinstance(metric, functools.partial):
        return _name_of(metric.func)
    known = figure_of(metric) if hasattr(metric, "_score_func") else None
    return str(getattr(metric if known is None else known.function, "__name__", type(metric).__name__))


def _figure(metric: Any) -> Figure:
    if isinstance(metric, str):
        known = sklearn_figure(metric)
        if known is None:
            use = said if (said := answer("figure", metric)) else "name one, such as 'balanced_accuracy_score'"
            raise ValueError(
                f"metrics: sklearn.metrics has no scorer and no function of targets and predictions {metric!r}; "
                f"{use}, or pass a callable f(y, predicted)"
            )
        return known
    if not callable(metric):
        raise TypeError(f"metrics: each must be a name or a callable f(y, predicted), got {metric!r}")
    inner = figure_of(metric.func) if isinstance(metric, functools.partial) and not metric.args else None
    if inner is not None:
        return inner._replace(options={**inner.options, **metric.keywords})
    return figure_of(metric) or Figure(metric, {}, _PREDICTIONS, 1, None)


def rehearsed(metrics: Mapping[str, Measure], train: HostData, validation: HostData | None) -> dict[str, Measure]:
    """Return metrics that are known to work, so that none is found out only after an epoch.

    Each is computed once for the targets of training and of validation and made-up answers: those that would be right
    for the row before.  What fails on answers later is a warning.

    Raises
    ------
    ValueError
        One cannot be computed, or is not defined for these targets; the message names it and says why.

    Warns
    -----
    UserWarning
        What scikit-learn has to say of a metric for these targets, such as that it is set to 0.
    """
    for data, purpose in ((train, "train on"), (validation, "validate with")) if metrics else ():
        if data is not None:
            y = data.y if data.training is None else data.y[data.training]
            for metric in metrics.values():
                _rehearse(metric, y, purpose)
    return {name: replace(metric, forgiving=True) for name, metric in metrics.items()}


def _rehearse(metric: Measure, y: NDArray[Any], purpose: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = metric.value(y, _plausible(metric.spec, y))
    said = list(dict.fromkeys(str(warning.message) for warning in caught))
    where = f"for the targets to {purpose}"
    of_class = y.ndim == 1 and y.dtype.kind in "iu" and len(y) > 0 and bool((y == y[0]).all())
    theirs = getattr(metric.figure.function, "__module__", "").startswith("sklearn.")
    # a score is 1 at most; beside a baseline that is always right, as of one class, it is this or minus infinity
    if theirs and not (-_BASELESS if of_class else -math.inf) < value < math.inf:
        why = "; ".join([*([f"all are of class {y[0]}"] if of_class else []), *(text.rstrip(".") for text in said)])
        raise ValueError(
            f"metrics: {metric.name!r} is {value:g} {where}{f' ({why})' if why else ''}; leave it out, or give rows "
            "for which it is defined"
        )
    for text in said:
        warn_caller(f"metrics: {metric.name!r} {where}: {text}")


def _plausible(spec: NetworkSpec, targets: NDArray[Any]) -> NDArray[Any]:
    """Return outputs (n, K) that a network might give: what would be right for the row before, but not certain."""
    shifted = np.roll(targets, 1, axis=0)
    if spec.loss.takes_labels:
        labels = shifted if shifted.ndim == 1 else shifted.argmax(axis=1)
        return np.where(labels[:, None] == np.arange(spec.units[-1]), 1.0, -1.0)
    if spec.loss.has_accuracy:
        return 2.0 * shifted - 1.0
    values = np.abs(shifted) + 1.0  # some deviances take positive values alone
    return np.log(values) if spec.loss.from_logits else np.asarray(values)
