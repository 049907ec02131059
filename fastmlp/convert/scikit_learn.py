"""scikit-learn's MLPClassifier and MLPRegressor as networks of ours, and back.

Their ``coefs_[l]`` is (inputs, units) and ``intercepts_[l]`` (units,), as here.  The activation of their outputs,
``out_activation_``, is the logistic function for two classes, with one output, and for several labels a row; softmax
for more classes; the identity, or the exponential of a Poisson loss, for values
(`sklearn.neural_network._multilayer_perceptron`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_flag, check_sequence
from fastmlp.convert.stack import Dense, Stack, layers_of, network_of, undivided

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.estimators.base import BaseMLP
    from fastmlp.estimators.classifier import MLPClassifier
    from fastmlp.estimators.regressor import MLPRegressor
    from fastmlp.model import MLP

_ACTIVATIONS = {"identity": "identity", "sigmoid": "logistic", "tanh": "tanh", "relu": "relu"}
_OURS = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
_CLASSES = {"softmax_cross_entropy": "softmax", "sigmoid_cross_entropy": "logistic"}
_VALUES = {"mean_squared_error": "squared_error", "poisson": "poisson"}
_LOSSES = {"softmax": "softmax_cross_entropy", "logistic": "sigmoid_cross_entropy", "identity": "mean_squared_error"}
_LOSSES["exp"] = "poisson"


@overload
def from_sklearn(
    estimator: Any, *, as_estimator: Literal[False] = ..., backend: str | Backend = ..., seed: int | None = ...
) -> MLP: ...


@overload
def from_sklearn(
    estimator: Any, *, as_estimator: Literal[True], backend: str | Backend = ...
) -> MLPClassifier | MLPRegressor: ...


def from_sklearn(
    estimator: Any, *, as_estimator: bool = False, backend: str | Backend = "auto", seed: int | None = None
) -> MLP | MLPClassifier | MLPRegressor:
    """Return a fitted MLPClassifier or MLPRegressor of scikit-learn as a network with the same weights.

    The network computes in the type of the weights, takes inputs as they are, uint8 too, and predicts the number of a
    class; ``class_names`` are the classes as text, where they are not 0, 1, ... anyway.  What concerns training alone
    (``alpha``, solver, rates) stays behind, but for an estimator.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Fitted.
    as_estimator : bool
        Return `fastmlp.MLPClassifier` or `fastmlp.MLPRegressor`, fitted, with the same parameters, classes and curves:
        it predicts the classes themselves, and trains on, with a fresh optimizer, by `partial_fit` and `warm_start`.
    backend
        As for `fastmlp.MLP`.
    seed
        As for `fastmlp.MLP`; an estimator has ``random_state``.

    Raises
    ------
    TypeError
        It is no such estimator.
    ValueError
        A seed beside as_estimator=True.
    NotFittedError
        It is not fitted.
    """
    from sklearn import neural_network
    from sklearn.utils.validation import check_is_fitted

    if not isinstance(estimator, (neural_network.MLPClassifier, neural_network.MLPRegressor)):
        own = f"{type(estimator).__module__}.".startswith("fastmlp.")
        raise TypeError(
            "from_sklearn: estimator must be an MLPClassifier or an MLPRegressor of scikit-learn, got "
            f"{type(estimator).__name__}{' of fastmlp, whose network is its model_' if own else ''}"
        )
    check_is_fitted(estimator)
    if check_flag("as_estimator", as_estimator):
        from fastmlp.estimators.adopting import adopted

        if seed is not None:
            raise ValueError(
                f"from_sklearn: seed={seed!r} is of a network; an estimator has random_state, leave it out"
            )
        return adopted(estimator, backend)
    stack = Stack("from_sklearn")
    last = len(estimator.coefs_) - 1
    for layer, (w, b) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        stack.dense(f"coefs_[{layer}]", w, b)
        if layer < last:
            stack.activate("activation", _OURS[estimator.activation])
    several = estimator.out_activation_ == "logistic" and estimator.n_outputs_ > 1
    classes = None if several else getattr(estimator, "classes_", None)
    if classes is not None and len(classes) < 2:
        raise ValueError(f"from_sklearn: estimator must know two classes or more, got {classes!r}")
    if classes is not None and classes.dtype.kind in "iu" and np.array_equal(classes, np.arange(len(classes))):
        classes = None
    return stack.model(
        _LOSSES[estimator.out_activation_],
        backend=backend,
        seed=seed,
        class_names=None if classes is None else [str(name) for name in classes],
        feature_names=getattr(estimator, "feature_names_in_", None),
    )


def to_sklearn(model: MLP | BaseMLP, *, classes: ArrayLike | None = None) -> Any:
    """Return a network as a fitted MLPClassifier or MLPRegressor of scikit-learn that predicts the same.

    scikit-learn keeps classes sorted, so the outputs are put into the order of the sorted names, and has one output for
    two classes: of a softmax of two the difference of its outputs.  The first weights of a model of pixels are divided
    by 255, since its inputs are not.  Nothing is carried over that concerns training alone, but for an estimator of
    fastmlp's, of which scikit-learn gets its own parameters, where it has such values, and curves; ``partial_fit`` goes
    on from the weights, with a fresh optimizer.

    Parameters
    ----------
    model : MLP, or MLPClassifier or MLPRegressor of fastmlp's
    classes : (K,) array_like, optional
        What the estimator predicts, one an output (two for a single one), all different.  None: ``class_names``, or
        0, 1, ... where the model has none.  An estimator has its own, ``classes_``.

    Raises
    ------
    ValueError
        scikit-learn has no counterpart of the loss, of an activation, or of activations that differ by layer; or
        `classes` do not suit.
    TypeError
        It is none of these.
    """
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    given, model = model, network_of("to_sklearn", model)
    if given is not model:
        if classes is not None:
            raise ValueError("to_sklearn: an estimator has its own classes_; leave classes out")
        one = model.spec.units[-1] == 1 or model.spec.loss.name != "sigmoid_cross_entropy"
        classes = getattr(given, "classes_", None) if one else None
    layers = undivided(layers_of("to_sklearn", model, _ACTIVATIONS, "scikit-learn"), model.input_divisor)
    spec, loss = model.spec, model.spec.loss.name
    if loss not in _CLASSES and loss not in _VALUES:
        known = ", ".join(map(repr, [*_CLASSES, *_VALUES]))
        raise ValueError(f"to_sklearn: scikit-learn has no counterpart of the loss {loss!r}; only of {known}")
    *hidden, last = spec.activations
    if len(set(hidden)) > 1 or last != "identity":
        raise ValueError(
            "to_sklearn: scikit-learn has one activation for all hidden layers, and the identity for values; got "
            f"{spec.activations!r}"
        )
    options: dict[str, Any] = {
        "hidden_layer_sizes": spec.units[1:-1],
        "activation": _ACTIVATIONS[hidden[0]] if hidden else "identity",
        "random_state": model.seed % 2**32,  # or it would draw from NumPy's global stream
    }
    several = loss == "sigmoid_cross_entropy" and spec.units[-1] > 1
    if loss in _VALUES:
        if classes is not None:
            raise ValueError(f"to_sklearn: classes are of classifiers, and the loss is {loss!r}; leave them out")
        if loss == "poisson":
            options["loss"] = "poisson"
        estimator, y = _regressor(MLPRegressor, options), np.ones((2, spec.units[-1]))
        y = y[:, 0] if spec.units[-1] == 1 else y
        known_classes: dict[str, Any] = {}
    elif several:
        if classes is not None:
            raise ValueError("to_sklearn: scikit-learn has no names for several labels a row; leave classes out")
        estimator, y = MLPClassifier(**options), np.eye(spec.units[-1], dtype=np.int64)
        known_classes = {"classes": np.arange(spec.units[-1])}
    else:
        names, layers = _sorted(_classes(model, classes), layers)
        estimator, y = MLPClassifier(**options), names
        known_classes = {"classes": names}
    # what scikit-learn sets up for a network of this kind, whatever the release, is set up by it
    estimator.partial_fit(np.zeros((len(y), spec.units[0]), model.dtype), y, **known_classes)
    estimator.coefs_, estimator.intercepts_ = [layer.w for layer in layers], [layer.b for layer in layers]
    vars(estimator).pop("_optimizer", None)  # its moments are of other weights
    estimator.t_, estimator.n_iter_, estimator.loss_curve_ = 0, 0, []
    estimator.loss_, estimator.best_loss_ = np.inf, np.inf
    if model.feature_names is not None:
        estimator.feature_names_in_ = np.array(model.feature_names, object)
    if given is not model:
        _carry_over(given, estimator)
    return estimator


_ATTRIBUTES = ["feature_names_in_", "n_iter_", "t_", "loss_", "loss_curve_", "best_loss_", "validation_scores_"]
_ATTRIBUTES += ["best_validation_score_"]


def _carry_over(ours: Any, theirs: Any) -> None:
    """Give an estimator of scikit-learn the parameters of ours that it takes, and what ours tells of its training."""
    settled = theirs.get_params(deep=False)
    for name, value in ours.get_params(deep=False).items():
        if name in settled and name not in ("hidden_layer_sizes", "activation", "loss"):
            try:
                theirs.set_params(**{name: value})._validate_params()
            except ValueError:  # such as an optimizer in the place of a solver's name
                theirs.set_params(**{name: settled[name]})
    for name in _ATTRIBUTES:
        if hasattr(ours, name):
            setattr(theirs, name, getattr(ours, name))


def _regressor(kind: Any, options: dict[str, Any]) -> Any:
    try:
        return kind(**options)
    except TypeError:  # releases before 1.7
        raise ValueError(
            "to_sklearn: this scikit-learn has no counterpart of the loss 'poisson'; install 1.7 or newer"
        ) from None


def _classes(model: MLP, classes: ArrayLike | None) -> NDArray[Any]:
    count = max(model.spec.units[-1], 2)
    if classes is None:
        return np.arange(count) if model.class_names is None else np.array(model.class_names)
    found = np.array(check_sequence("classes", classes, "a sequence of one label a class"))
    if found.shape != (count,) or len(np.unique(found)) != count:
        raise ValueError(f"to_sklearn: classes must be {count} labels that differ, got {classes!r}")
    return found


def _sorted(classes: NDArray[Any], layers: Sequence[Dense]) -> tuple[NDArray[Any], list[Dense]]:
    """Return the classes sorted, and the layers with their outputs in that order; a single one for two classes."""
    order = np.argsort(classes)
    *below, last = layers
    w, b = last.w, last.b
    if len(classes) == 2 and w.shape[1] == 2:
        w, b = w[:, order[1:]] - w[:, order[:1]], b[order[1:]] - b[order[:1]]
    elif len(classes) == 2:
        w, b = (w, b) if order[0] == 0 else (-w, -b)
    else:
        w, b = w[:, order], b[order]
    return classes[order], [*below, last._replace(w=np.ascontiguousarray(w), b=b)]
