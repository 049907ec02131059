"""Figures by name: what each is computed from, and whether more of it is better.  The one place that knows.

Beside the loss and the accuracy, which are fastmlp's own, they are scikit-learn's: its scorers tell both.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any, NamedTuple

from fastmlp.arguments import check_choice
from fastmlp.formulas.names import answer

_HIGHER_IS_BETTER = {"loss": False, "accuracy": True}
_TARGETS = ("y_true", "labels_true", "y1")
# the second parameter of functions of sklearn.metrics that no scorer is made of, and what it stands for
_ANSWERS = {
    "y_pred": ("predict",),
    "labels_pred": ("predict",),
    "y2": ("predict",),
    "y_score": ("decision_function", "predict_proba"),
    "y_proba": ("predict_proba",),
    "y_prob": ("predict_proba",),
    "pred_decision": ("decision_function",),
}


class Figure(NamedTuple):
    """A function of scikit-learn.

    Attributes
    ----------
    function : callable
        ``function(y, answer, **options)``.
    options : mapping
    needs : tuple of str
        Which answers it takes, by the names of estimators' methods.
    sign : int
        The figure is that times what the function returns.
    higher_is_better : bool or None
        None where that is not known.
    """

    function: Callable[..., Any]
    options: Mapping[str, Any]
    needs: tuple[str, ...]
    sign: int
    higher_is_better: bool | None


def lower_is_better(who: str, monitor: str, mode: str) -> bool:
    """Return whether less of a figure of the history is better.

    Parameters
    ----------
    who : str
        Who asks, for messages.
    monitor : str
        The figure, such as ``"val_loss"``.
    mode : {"auto", "min", "max"}
        ``"min"`` and ``"max"`` settle it, whatever the figure.

    Raises
    ------
    ValueError
        The mode is another, or the figure is none of those whose direction is known.
    TypeError
        `monitor` is no text.
    """
    if not isinstance(monitor, str):
        raise TypeError(f"{who}: monitor must be the name of a figure, such as 'val_loss', got {monitor!r}")
    if check_choice(f"{who}: mode", mode, ("auto", "min", "max")) != "auto":
        return mode == "min"
    name = monitor.removeprefix("val_")
    higher = _HIGHER_IS_BETTER.get(name)
    if higher is None and (figure := sklearn_figure(name)) is not None:
        higher = figure.higher_is_better
    if higher is None:
        use = f"{said}, or " if (said := answer("figure", name)) else ""
        raise ValueError(
            f"{who}(monitor={monitor!r}): whether more or less of this figure is better is not known, as it is of the "
            f"loss, the accuracy and the metrics of scikit-learn; {use}add mode='max' or mode='min'"
        )
    return not higher


@functools.cache
def sklearn_figure(name: str) -> Figure | None:
    """Return what a scorer or a function of `sklearn.metrics` is called by that name; None where there is neither."""
    import sklearn.metrics

    if name in _scorers():
        return figure_of(_scorers()[name])
    return figure_of(getattr(sklearn.metrics, name)) if name in sklearn.metrics.__all__ else None


@functools.cache
def _scorers() -> dict[str, Any]:
    """Return scikit-learn's scorers by name; it copies one at each question."""
    import sklearn.metrics

    return {name: sklearn.metrics.get_scorer(name) for name in sklearn.metrics.get_scorer_names()}


def scorers_of(function: Callable[..., Any]) -> list[str]:
    """Return the names of scikit-learn's scorers that a function is behind."""
    return [name for name, scorer in _scorers().items() if scorer._score_func is function]


def figure_of(value: Any) -> Figure | None:
    """Return what is known of a scorer, or of a function of `sklearn.metrics` of targets and answers; else None."""
    import sklearn.metrics

    if hasattr(value, "_score_func") and hasattr(value, "_response_method"):  # what make_scorer returns
        method = value._response_method
        needs = (method,) if isinstance(method, str) else tuple(method)
        return Figure(value._score_func, value._kwargs, needs, value._sign, True)
    theirs = isinstance(value, FunctionType) and getattr(sklearn.metrics, value.__name__, None) == value
    if not theirs:
        return None
    if (scorers := scorers_of(value)) and (found := sklearn_figure(scorers[0])) is not None:
        return found._replace(options={}, sign=1, higher_is_better=found.sign > 0)
    targets, answer = [*inspect.signature(value).parameters, "", ""][:2]
    if targets not in _TARGETS or answer not in _ANSWERS:
        return None
    # scikit-learn's rule: what ends in _score is to be maximised, what ends in _error, _loss or _deviance minimised
    ending = value.__name__.rpartition("_")[2]
    higher = True if ending == "score" else False if ending in ("error", "loss", "deviance") else None
    return Figure(value, {}, _ANSWERS[answer], 1, higher)
