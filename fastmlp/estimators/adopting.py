"""An estimator of fastmlp's that stands where a fitted one of scikit-learn's does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state

from fastmlp.engine.inputs import InputScale
from fastmlp.estimators.classifier import MLPClassifier
from fastmlp.estimators.regressor import MLPRegressor
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
    adopted: MLPClassifier | MLPRegressor = made
    return adopted
