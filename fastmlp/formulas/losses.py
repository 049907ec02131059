"""Loss functions: records with their parameters, and for each the NumPy definition of value and gradient in one pass.

The loss of a row is the mean over its outputs (for the cross-entropy of a softmax and for the hinge: of the row as a
whole), in nats for cross-entropies.  The loss of a batch is ``sum(w_i l_i) / sum(w_i)``; that weighting is the
backend's, not the record's.  Cross-entropies take logits: the softmax or sigmoid is part of the loss, which is what
makes it one stable pass.  Compiled backends implement each under the same name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastmlp.arguments import check_number
from fastmlp.errors import DataError
from fastmlp.floating import quiet
from fastmlp.formulas.records import RecordTypes, settle
from fastmlp.formulas.targets import as_labels, as_probabilities, as_values, holds_labels, not_negative

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmlp._typing import Array, Pair


@dataclass(frozen=True)
class Loss:
    """What every loss record has.

    Attributes
    ----------
    name : str
        The name it is asked for by, and under which compiled backends implement it.
    takes_labels : bool
        Targets are class labels (n,) or one row of class probabilities each; else values (n, K).
    has_accuracy : bool
        Whether a row can be right or wrong, so that accuracy is reported.
    from_logits : bool
        The link (softmax, sigmoid, exponential) is part of the loss, so the output layer must be the identity.
    """

    name: ClassVar[str]
    takes_labels: ClassVar[bool] = False
    has_accuracy: ClassVar[bool] = False
    from_logits: ClassVar[bool] = False

    @property
    def parameter(self) -> float:
        """The one number that compiled backends are told beside the name; 0 where there is none."""
        return 0.0

    @property
    def compiled(self) -> bool:
        """Whether it is fastmlp's own, which compiled backends implement; a class derived from one of these is not."""
        return type(self).__module__ == __name__

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        """Write the loss of each row and its gradient.

        Parameters
        ----------
        outputs : (N, K) float
            Outputs of the network: logits where `from_logits`.
        targets : (N,) int64 or (N, K) float
            Labels or values.
        d_outputs : (N, K) float
            Overwritten by the gradient of each row's own loss with respect to its outputs.
        row_losses : (N,) float
            Overwritten by the losses.
        scratch : pair of (N, K) float
            Overwritten.
        """
        raise NotImplementedError

    def hits(self, outputs: Array, targets: Array, out: Array) -> None:
        """Write 1 where a row is predicted rightly and 0 where not (a fraction for several binary outputs).

        Parameters
        ----------
        outputs : (N, K) float
        targets : (N,) int64 or (N, K) float
        out : (N,) float
            Overwritten.
        """
        out[...] = 0

    def check_units(self, outputs: int) -> None:
        """Raise ValueError where a network with that many outputs cannot have this loss."""

    def prepare_targets(self, y: NDArray[Any], outputs: int) -> NDArray[Any]:
        """Return targets as the backends take them, checked.

        Parameters
        ----------
        y : (n,) or (n, K) array
            A user's targets.
        outputs : int
            Number of outputs of the network, K.

        Returns
        -------
        (n,) int64 or (n, K) real

        Raises
        ------
        DataError
            The shape, the type or a value does not suit the loss.
        """
        return as_values(y, outputs, self.name)

    def predict(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Turn outputs (n, K) into what a user asks for: class, 0 or 1, rate or value; (n,) where K is 1."""
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def probabilities(self, outputs: NDArray[Any]) -> NDArray[Any]:
        """Turn outputs (n, K) into probabilities, (n, K)."""
        raise ValueError(
            f"predict_proba: the loss {self.name!r} has no probabilities; use predict, or train with "
            "softmax_cross_entropy or sigmoid_cross_entropy"
        )


@dataclass(frozen=True)
class ClassLoss(Loss):
    """What losses over K classes share: targets are labels (n,) or one-hot rows (n, K), one output a class."""

    takes_labels: ClassVar[bool] = True
    has_accuracy: ClassVar[bool] = True

    def check_units(self, outputs: int) -> None:
        if outputs < 2:
            raise ValueError(
                f"units: {self.name} needs one output a class, at least 2; got 1. "
                "For two classes with one output use loss='sigmoid_cross_entropy'"
            )

    def prepare_targets(self, y: NDArray[Any], outputs: int) -> NDArray[Any]:
        if holds_labels(y, outputs):
            return as_labels(y, outputs)
        y = as_values(y, outputs, self.name)
        labels: NDArray[Any] = y.argmax(axis=1)
        one_hot = y[np.arange(len(y)), labels] == 1
        one_hot &= np.count_nonzero(y, axis=1) == 1
        if not one_hot.all():
            row = int(np.argmin(one_hot))
            raise DataError(
                f"y: {self.name} needs labels (n,) or one-hot rows (n, {outputs}); row {row} is neither; for several "
                "labels a row use loss='sigmoid_cross_entropy'",
                row=row,
            )
        return labels

    def hits(self, outputs: Array, targets: Array, out: Array) -> None:
        right = targets if targets.ndim == 1 else targets.argmax(axis=1)
        np.equal(outputs.argmax(axis=1), right, out=out)

    def predict(self, outputs: NDArray[Any]) -> NDArray[Any]:
        classes: NDArray[Any] = outputs.argmax(axis=1)
        return classes


@dataclass(frozen=True)
class SoftmaxCrossEntropy(ClassLoss):
    """Cross-entropy of a softmax, from logits: ``l = log(sum_k exp(z_k)) sum_k t_k - sum_k t_k z_k``.

    The gradient is ``softmax(z) sum_k t_k - t``.  Targets are labels (n,) in 0..K-1, or rows of probabilities (n, K).

    Parameters
    ----------
    label_smoothing : float
        In [0, 1): the target becomes ``(1 - s) t + s / K`` (Szegedy et al. 2016).
    """

    label_smoothing: float = 0.0

    name: ClassVar[str] = "softmax_cross_entropy"
    from_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, label_smoothing=check_number("label_smoothing", self.label_smoothing, 0.0, 1.0))

    @property
    def parameter(self) -> float:
        return self.label_smoothing

    def prepare_targets(self, y: NDArray[Any], outputs: int) -> NDArray[Any]:
        if holds_labels(y, outputs):
            return as_labels(y, outputs)
        return as_probabilities(as_values(y, outputs, self.name), self.name)

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        s = self.label_smoothing
        shifted, probabilities = scratch[0], d_outputs
        np.maximum.reduce(outputs, axis=1, out=row_losses)
        np.subtract(outputs, row_losses[:, None], out=shifted)
        np.exp(shifted, out=probabilities)
        total = np.add.reduce(probabilities, axis=1)
        np.divide(probabilities, total[:, None], out=probabilities)
        np.log(total, out=row_losses)
        if targets.ndim == 1:
            # where the right class of each row lies in the flat array: faster than a pair of indices
            classes = outputs.shape[1]
            right = np.arange(0, outputs.size, classes)
            right += targets
            if s:
                row_losses -= (1 - s) * shifted.reshape(-1)[right] + s * shifted.mean(axis=1)
                d_outputs -= s / classes
            else:
                row_losses -= shifted.reshape(-1)[right]
            d_outputs.reshape(-1)[right] -= 1 - s
        else:
            smoothed = scratch[1]
            np.multiply(targets, 1 - s, out=smoothed)
            if s:
                smoothed += s / outputs.shape[1]
            mass = smoothed.sum(axis=1)
            row_losses *= mass
            row_losses -= np.einsum("nk,nk->n", smoothed, shifted)
            d_outputs *= mass[:, None]
            d_outputs -= smoothed

    @quiet
    def probabilities(self, outputs: NDArray[Any]) -> NDArray[Any]:
        e: NDArray[Any] = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        e /= e.sum(axis=1, keepdims=True)
        return e


@dataclass(frozen=True)
class SigmoidCrossEntropy(Loss):
    """Binary cross-entropy of independent sigmoids, from logits: the mean over k of ``log(1 + exp(z_k)) - t_k z_k``.

    The gradient is ``(sigmoid(z) - t) / K``.  Targets are in [0, 1]: (n,) for one output, (n, K) for several labels.
    """

    name: ClassVar[str] = "sigmoid_cross_entropy"
    has_accuracy: ClassVar[bool] = True
    from_logits: ClassVar[bool] = True

    def prepare_targets(self, y: NDArray[Any], outputs: int) -> NDArray[Any]:
        y = as_values(y, outputs, self.name)
        if y.size and not (y.min() >= 0 and y.max() <= 1):
            raise DataError(f"y: {self.name} needs targets in [0, 1], got values from {y.min()} to {y.max()}")
        return y

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        from scipy.special import expit

        terms, product = scratch
        np.logaddexp(outputs, 0, out=terms)
        np.multiply(outputs, targets, out=product)
        np.subtract(terms, product, out=terms)
        np.mean(terms, axis=1, out=row_losses)
        expit(outputs, out=d_outputs)
        d_outputs -= targets
        d_outputs /= outputs.shape[1]

    def hits(self, outputs: Array, targets: Array, out: Array) -> None:
        np.mean((outputs > 0) == (targets > 0.5), axis=1, out=out)

    def predict(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return super().predict((outputs > 0).astype(np.int64))

    @quiet
    def probabilities(self, outputs: NDArray[Any]) -> NDArray[Any]:
        if not isinstance(outputs, np.ndarray):  # of a GPU: SciPy's function is for NumPy's arrays
            elsewhere: Array = 1 / (1 + np.exp(-outputs))
            return elsewhere
        from scipy.special import expit

        result: NDArray[Any] = expit(outputs)
        return result


@dataclass(frozen=True)
class MeanSquaredError(Loss):
    """``l = mean over k of (z_k - t_k)^2``, without a factor 1/2; the gradient is ``2 (z - t) / K``."""

    name: ClassVar[str] = "mean_squared_error"

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        np.subtract(outputs, targets, out=d_outputs)
        np.multiply(d_outputs, d_outputs, out=scratch[0])
        np.mean(scratch[0], axis=1, out=row_losses)
        d_outputs *= 2 / outputs.shape[1]


@dataclass(frozen=True)
class MeanAbsoluteError(Loss):
    """``l = mean over k of |z_k - t_k|``; the gradient is ``sign(z - t) / K``, 0 where they are equal."""

    name: ClassVar[str] = "mean_absolute_error"

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        np.subtract(outputs, targets, out=d_outputs)
        np.abs(d_outputs, out=scratch[0])
        np.mean(scratch[0], axis=1, out=row_losses)
        np.sign(d_outputs, out=d_outputs)
        d_outputs /= outputs.shape[1]


@dataclass(frozen=True)
class Huber(Loss):
    """Mean over k of ``e^2 / 2`` where ``|e| <= delta``, else ``delta (|e| - delta / 2)``, e = z - t (Huber 1964).

    The gradient is ``clip(e, -delta, delta) / K``.

    Parameters
    ----------
    delta : float
        Positive; where the parabola becomes a line, in units of the targets.
    """

    delta: float = 1.0

    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        settle(self, delta=check_number("delta", self.delta, 0.0, above=True))

    @property
    def parameter(self) -> float:
        return self.delta

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        error, clipped = scratch[0], d_outputs
        np.subtract(outputs, targets, out=error)
        # np.minimum and np.maximum, unlike np.clip, pass NaN on from either side
        np.minimum(np.maximum(error, -self.delta, out=clipped), self.delta, out=clipped)
        # with c the clipped error, c (e - c / 2) is e^2 / 2 inside and delta (|e| - delta / 2) outside
        np.multiply(clipped, 0.5, out=scratch[1])
        np.subtract(error, scratch[1], out=error)
        np.multiply(error, clipped, out=error)
        np.mean(error, axis=1, out=row_losses)
        d_outputs /= outputs.shape[1]


@dataclass(frozen=True)
class Poisson(Loss):
    """Poisson deviance of counts from the logarithm of the rate: the mean over k of ``exp(z_k) - t_k z_k``.

    The gradient is ``(exp(z) - t) / K``.  `predict` returns the rates exp(z).  The term log(t!) does not depend on
    the network and is left out.
    """

    name: ClassVar[str] = "poisson"
    from_logits: ClassVar[bool] = True

    def prepare_targets(self, y: NDArray[Any], outputs: int) -> NDArray[Any]:
        return not_negative(as_values(y, outputs, self.name), self.name)

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        np.exp(outputs, out=d_outputs)
        np.multiply(outputs, targets, out=scratch[0])
        np.subtract(d_outputs, scratch[0], out=scratch[0])
        np.mean(scratch[0], axis=1, out=row_losses)
        d_outputs -= targets
        d_outputs /= outputs.shape[1]

    @quiet
    def predict(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return super().predict(np.exp(outputs))


@dataclass(frozen=True)
class CategoricalHinge(ClassLoss):
    """``l = max(0, 1 + max over k != y of z_k - z_y)`` (Crammer and Singer 2001).

    The gradient is +1 at the strongest wrong output and -1 at the right one, where the loss is positive.  Targets are
    labels (n,) or one-hot rows (n, K).
    """

    name: ClassVar[str] = "categorical_hinge"
    from_logits: ClassVar[bool] = True

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        rows = np.arange(len(targets))
        wrong = scratch[0]
        wrong[...] = outputs
        wrong[rows, targets] = -np.inf
        strongest = wrong.argmax(axis=1)
        np.subtract(outputs[rows, strongest], outputs[rows, targets], out=row_losses)
        row_losses += 1
        np.maximum(row_losses, 0, out=row_losses)
        active = np.sign(row_losses)
        d_outputs[...] = 0
        d_outputs[rows, strongest] = active
        d_outputs[rows, targets] = -active


@dataclass(frozen=True)
class MeanSquaredLogarithmicError(Loss):
    """``l = mean over k of (log(1 + max(z_k, 0)) - log(1 + t_k))^2``, for targets >= 0 that span orders of magnitude.

    The gradient is ``2 (log(1 + z) - log(1 + t)) / ((1 + z) K)`` where z > 0 and 0 elsewhere, so an output activation
    that stays positive, such as softplus, suits it.
    """

    name: ClassVar[str] = "mean_squared_logarithmic_error"

    def prepare_targets(self, y: NDArray[Any], outputs: int) -> NDArray[Any]:
        return not_negative(as_values(y, outputs, self.name), self.name)

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        positive, difference = scratch
        np.maximum(outputs, 0, out=positive)
        np.log1p(targets, out=d_outputs)
        np.log1p(positive, out=difference)
        np.subtract(difference, d_outputs, out=difference)
        np.multiply(difference, difference, out=d_outputs)
        np.mean(d_outputs, axis=1, out=row_losses)
        np.sign(positive, out=d_outputs)
        np.add(positive, 1, out=positive)
        np.divide(d_outputs, positive, out=d_outputs)
        np.multiply(d_outputs, difference, out=d_outputs)
        d_outputs *= 2 / outputs.shape[1]


LOSSES: RecordTypes[Loss] = RecordTypes(
    "loss",
    Loss,
    (
        SoftmaxCrossEntropy,
        SigmoidCrossEntropy,
        MeanSquaredError,
        MeanAbsoluteError,
        Huber,
        Poisson,
        CategoricalHinge,
        MeanSquaredLogarithmicError,
    ),
)
"""All losses by name, registered ones included."""


def loss_names() -> tuple[str, ...]:
    """Return the names of all losses, registered ones included."""
    return LOSSES.names()
