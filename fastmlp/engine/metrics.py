"""Figures that a user asks for beside the loss: functions of the targets and of what is predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

Metric = Callable[[NDArray[Any], NDArray[Any]], float]


def check_metrics(metrics: Sequence[str | Metric] | Mapping[str, Metric]) -> dict[str, Metric]:
    """Return metrics by name; a name stands for a function of `sklearn.metrics`."""
    if isinstance(metrics, Mapping):
        return dict(metrics)
    if isinstance(metrics, str):
        metrics = (metrics,)
    found: dict[str, Metric] = {}
    for metric in metrics:
        if callable(metric):
            found[getattr(metric, "__name__", type(metric).__name__)] = metric
            continue
        import sklearn.metrics

        function = getattr(sklearn.metrics, metric, None)
        if not callable(function):
            raise ValueError(
                f"metrics: sklearn.metrics has no function {metric!r}; name one, such as 'balanced_accuracy_score', "
                "or pass a callable f(y, predicted)"
            )
        found[metric] = function
    return found
