"""An estimator of fastmlp's that stands where a fitted one of scikit-learn's does, or around a network."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state

from fastmlp.arguments import check_sequence
from fastmlp.engine.inputs import InputScale
from fastmlp.estimators.classifier import MLPClassifier
from fastmlp.estimators.regressor import MLPRegressor
from fastmlp.formulas.losses import Quantile, SoftmaxCrossEntropy
from fastmlp.model import MLP

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend

_CURVES = {"losses": "loss_curve_", "scores": "validation_scores_"}
_KEPT = ["n_features_in_", "feature_names_in_", "n_outputs_", "n_iter_", "t_", "loss_", "loss_curve_", "best_loss_"]
_KEPT += ["validation_scores_", "best_validation_score_"]


def adopted(theirs: Any, backend: str | Backend) -> MLPClassifier | MLPRegressor:
    """Return an estimator with the parameters, the weights and the curves of a fitted one of scikit-learn's.

    Parameters
    ----------
    theirs : MLPClassifier or MLPRegressor of scikit-learn
    backend : str or Backend
        As of `MLPClassifier`.
    """
    classifies = hasattr(theirs, "classes_")
    made: Any = MLPClassifier() if classifies else MLPRegressor()
    known = made.get_params(deep=False)
    given = {name: value for name, value in theirs.get_params(deep=False).items() if name in known}
    made.set_params(**given, backend=backend, dtype=theirs.coefs_[0].dtype.name)
    made._checked()
    for name in _KEPT:
        if hasattr(theirs, name):
            setattr(made, name, getattr(theirs, name))
    if classifies:
        made.classes_ = theirs.classes_
        several = theirs.out_activation_ == "logistic" and theirs.n_outputs_ > 1
        made._label_binarizer = LabelBinarizer().fit(np.eye(theirs.n_outputs_, dtype=int) if several else made.classes_)
    made._random_state = check_random_state(made.random_state)
    made._begin(made._spec((theirs.coefs_[0].shape[0], *(b.shape[0] for b in theirs.intercepts_))))
    learner, curves, made.temperature_ = made._learner, made._curves, 1.0
    learner.rules = learner.rules._replace(scale=InputScale(1, False))
    MLP.from_learner(learner).set_weights(
        [array for pair in zip(theirs.coefs_, theirs.intercepts_, strict=True) for array in pair]
    )
    for own, name in _CURVES.items():  # partial_fit goes on with them
        setattr(curves, own, None if getattr(theirs, name, None) is None else list(getattr(theirs, name)))
    curves.losses, curves.samples = curves.losses or [], int(getattr(theirs, "t_", 0))
    curves.best_loss = min(curves.losses, default=curves.best_loss)
    curves.best_score = max(curves.scores or [], default=curves.best_score)
    made.n_iter_, made.t_ = theirs.n_iter_, curves.samples
    if hasattr(theirs, "loss_curve_"):  # as it is after a fit of ours, by steps
        made.validation_loss_curve_ = made.history_ = None
    adopted: MLPClassifier | MLPRegressor = made
    return adopted


def around(who: str, model: MLP, classes: ArrayLike | None, backend: str | Backend) -> MLPClassifier | MLPRegressor:
    """Return an estimator with the weights of a network, a classifier where its loss is of classes.

    Parameters
    ----------
    who : str
        The function that was asked, for messages.
    model : MLP
    classes : (K,) array_like, optional
        What the outputs stand for, in their order (two for a single one); None: 0, 1, ...
    backend : str or Backend
        As of `MLPClassifier`.

    Raises
    ------
    ValueError
        The outputs have an activation of their own, or the classes do not suit.
    """
    spec, weights = model.spec, model.get_weights()
    loss, outputs = spec.loss, spec.units[-1]
    *hidden, last = spec.activations
    if last != "identity":
        raise ValueError(
            f"{who}: an estimator has no activation of the outputs but what the loss has as its part, got {last!r}; "
            "leave as_estimator out"
        )
    options: dict[str, Any] = {"hidden_layer_sizes": spec.units[1:-1], "dtype": model.dtype.name, "alpha": 0.0}
    options |= {"activation": hidden[0] if len(set(hidden)) == 1 else tuple(hidden)} if hidden else {}
    options |= {"dropout": spec.dropout} if any(spec.dropout) else {}
    made: Any
    if loss.has_accuracy:
        # with two outputs scikit-learn's log_loss is another network, of one output
        plain = loss == SoftmaxCrossEntropy() and outputs > 2
        made = MLPClassifier(loss="log_loss" if plain or loss.name == "sigmoid_cross_entropy" else loss, **options)
        several = loss.name == "sigmoid_cross_entropy" and outputs > 1
        if several and classes is not None:
            raise ValueError(f"{who}: rows of {outputs} labels each have no classes; leave classes out")
        made.classes_, weights[-2:] = _in_order(who, classes, outputs, weights[-2:])
        made._label_binarizer = LabelBinarizer().fit(np.eye(outputs, dtype=int) if several else made.classes_)
        made.n_outputs_ = outputs
    else:
        if classes is not None:
            raise ValueError(f"{who}: classes are of classifiers, and the loss is {loss.name!r}; leave them out")
        named = {"mean_squared_error": "squared_error", "poisson": "poisson"}.get(loss.name, loss)
        of_quantiles = {"loss": "quantile", "quantiles": loss.quantiles} if isinstance(loss, Quantile) else {}
        made = MLPRegressor(**{"loss": named, **options, **of_quantiles})
        made.n_outputs_ = outputs // loss.outputs_per_target
    made.set_params(backend=backend)
    made._checked()
    made.n_features_in_ = spec.units[0]
    made._random_state = np.random.RandomState()  # what is drawn is overwritten, and NumPy's own stream left alone
    made._begin(made._spec(spec.units))
    learner, made.temperature_ = made._learner, 1.0
    learner.spec = replace(learner.spec, frozen=spec.frozen)
    learner.rules = learner.rules._replace(scale=InputScale(model.input_divisor, False))
    MLP.from_learner(learner).set_weights(weights)
    made.loss_curve_, made.loss_, made.best_loss_ = [], math.inf, math.inf
    made.validation_scores_ = made.best_validation_score_ = made.validation_loss_curve_ = made.history_ = None
    estimator: MLPClassifier | MLPRegressor = made
    return estimator


def _in_order(
    who: str, classes: ArrayLike | None, outputs: int, last: list[NDArray[Any]]
) -> tuple[NDArray[Any], list[NDArray[Any]]]:
    """Return the classes sorted, as scikit-learn has them, and the last weights and biases with their outputs so."""
    count, (w, b) = max(outputs, 2), last
    if classes is None:
        return np.arange(count), last
    found = np.array(check_sequence("classes", classes, "a sequence of one label a class"))
    if found.shape != (count,) or len(np.unique(found)) != count:
        raise ValueError(f"{who}: classes must be {count} labels that differ, got {classes!r}")
    order = np.argsort(found)
    if outputs > 1:
        return found[order], [w[:, order], b[order]]
    return found[order], last if order[0] == 0 else [-w, -b]
