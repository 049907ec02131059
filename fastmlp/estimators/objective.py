"""What an estimator minimises, as scikit-learn states it and as fastmlp does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_sequence
from fastmlp.formulas.losses import LOSSES, Loss, Poisson, Quantile, SigmoidCrossEntropy, SoftmaxCrossEntropy

if TYPE_CHECKING:
    from collections.abc import Sequence

ACTIVATIONS = {"logistic": "sigmoid"}
"""scikit-learn's names of activations that fastmlp has under another; the rest are the same."""


class Objective(NamedTuple):
    """A loss with the factors that lie between scikit-learn's and fastmlp's.

    fastmlp's loss of a row is the mean over its outputs.  scikit-learn's gradients are ``outputs - targets``, those of
    a sum over the outputs (and of half a squared error), while the squared error that it reports is half of the mean.

    Attributes
    ----------
    loss : Loss
    out_activation : str
        scikit-learn's name of what the loss does to the outputs.
    value : float
        scikit-learn's loss over fastmlp's.
    gradient : float
        The same of their gradients.
    """

    loss: Loss
    out_activation: str
    value: float
    gradient: float

    @classmethod
    def of_classes(cls, loss: str | Loss, outputs: int, label_smoothing: float) -> Objective:
        """Return that of a classifier with so many outputs: ``"log_loss"``, or a loss of fastmlp's."""
        if not isinstance(loss, str) or loss != "log_loss":
            if label_smoothing:
                raise ValueError("label_smoothing: it is for loss='log_loss'; a record of a loss has its own")
            record = LOSSES.record(loss)
            if not record.has_accuracy:
                raise ValueError(f"loss must be one of classes, such as 'log_loss'; got {record.name!r}")
            return cls(record, _activation_of(record), 1.0, 1.0)
        if outputs > 1:
            return cls(SoftmaxCrossEntropy(label_smoothing), "softmax", 1.0, 1.0)
        if label_smoothing:
            raise ValueError("label_smoothing needs more than two classes: it is the softmax's; got two")
        return cls.of_labels(outputs)

    @classmethod
    def of_labels(cls, outputs: int) -> Objective:
        """Return that of a binary classifier, or of several labels a row."""
        return cls(SigmoidCrossEntropy(), "logistic", float(outputs), float(outputs))

    @classmethod
    def of_values(cls, loss: str | Loss, outputs: int, quantiles: Any) -> Objective:
        """Return that of a regressor: ``"squared_error"``, ``"poisson"``, ``"quantile"``, or a loss of fastmlp's."""
        named = LOSSES.name_of(loss) if isinstance(loss, str) and loss != "squared_error" else loss
        wanted = Quantile(quantiles)
        if named == Quantile.name:
            return cls(wanted, _activation_of(wanted), 1.0, 1.0)
        if wanted != Quantile():
            raise ValueError(
                f"quantiles={quantiles!r} would do nothing: it is for loss='quantile'; a record of a loss has its own"
            )
        if isinstance(loss, str) and loss == "squared_error":
            return cls(LOSSES.record("mean_squared_error"), "identity", 0.5, outputs / 2)
        if isinstance(loss, str) and loss == "poisson":
            return cls(Poisson(), "exp", float(outputs), float(outputs))
        record = LOSSES.record(loss)
        if record.has_accuracy:
            raise ValueError(f"loss must be one of values, such as 'squared_error'; got {record.name!r}")
        return cls(record, _activation_of(record), 1.0, 1.0)

    def offsets(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """Return, for each row of targets, what scikit-learn's loss has beside fastmlp's: Poisson's constant."""
        if self.out_activation != "exp":
            return np.zeros(len(y))
        from scipy.special import xlogy

        values = np.asarray(y, np.float64).reshape(len(y), -1)
        constants: NDArray[np.float64] = (xlogy(values, values) - values).sum(axis=1)
        return constants


def _activation_of(loss: Loss) -> str:
    found = {"softmax_cross_entropy": "softmax", "sigmoid_cross_entropy": "logistic", "poisson": "exp"}
    return found.get(loss.name, "identity")


def fastmlp_activation(activation: str | Sequence[str]) -> str | tuple[str, ...]:
    """Return fastmlp's name, or names, of an activation, or of several."""
    if isinstance(activation, str):
        return ACTIVATIONS.get(activation, activation)
    names = check_sequence("activation", activation, "a name, or a sequence of one a hidden layer")
    return tuple(ACTIVATIONS.get(name, name) if isinstance(name, str) else name for name in names)
