"""Loss functions: records with their parameters, and for each the NumPy definition of value and gradient in one pass.

The loss of a row is the mean over its outputs (for the cross-entropy of a softmax and for the hinge: of the row as a
whole), in nats for cross-entropies.  The loss of a batch is ``sum(w_i l_i) / sum(w_i)``; that weighting is the
backend's, not the record's.  Cross-entropies take logits: the softmax or sigmoid is part of the loss, which is what
makes it one stable pass.  Compiled backends implement each under the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastmlp.arguments import check_number, check_sequence
from fastmlp.errors import DataError
from fastmlp.floating import quiet
from fastmlp.formulas.loss_base import ClassLoss as ClassLoss
from fastmlp.formulas.loss_base import Loss as Loss
from fastmlp.formulas.records import RecordTypes, settle
from fastmlp.formulas.targets import as_labels, as_probabilities, as_values, holds_labels, not_negative

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmlp._typing import Array, Pair


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
    def parameters(self) -> tuple[float, ...]:
        # none where nothing is smoothed, so that a GPU need not be sent any
        return (self.label_smoothing,) if self.label_smoothing else ()

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
    def parameters(self) -> tuple[float, ...]:
        return (self.delta,)

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


@dataclass(frozen=True)
class Quantile(Loss):
    """Pinball loss of quantiles: the mean over k of ``max(q_k e_k, (q_k - 1) e_k)``, e = t - z (Koenker, Bassett 1978).

    The gradient is ``-q / K`` where z < t, ``(1 - q) / K`` where z > t, and 0, a subgradient, where they are equal.

    The network has an output for each quantile of each target: first all quantiles of the first target, in order, then
    those of the second.  Targets are given once, (n,) or (n, K / quantiles); metrics are given them as the outputs
    are, a column for each.  Nothing holds the outputs in order, so quantiles can cross: for some rows a higher one may
    be predicted lower.

    Parameters
    ----------
    quantiles : float or sequence of float
        In (0, 1), strictly rising; kept as a tuple.  0.5 is the median, of which the loss is half the absolute error.
    """

    quantiles: float | Sequence[float] = 0.5

    name: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        given = self.quantiles
        found: tuple[float, ...]
        if isinstance(given, Real) or getattr(given, "shape", None) == ():
            found = (check_number("quantiles", given, 0.0, 1.0, above=True),)
        else:
            several = check_sequence("quantiles", given, "a number in (0, 1), or a sequence of such")
            found = tuple(check_number(f"quantiles[{i}]", q, 0.0, 1.0, above=True) for i, q in enumerate(several))
        if not found or any(low >= high for low, high in pairwise(found)):
            raise ValueError(f"quantiles must be one number at least, or several that rise strictly; got {given!r}")
        settle(self, quantiles=found)

    @property
    def parameters(self) -> tuple[float, ...]:
        assert isinstance(self.quantiles, tuple)
        return self.quantiles

    @property
    def outputs_per_target(self) -> int:
        return len(self.parameters)

    def check_units(self, outputs: int) -> None:
        if outputs % (each := self.outputs_per_target):
            raise ValueError(
                f"units: {self.name} of {each} quantiles needs {each} outputs for each target, so {each} or a "
                f"multiple of it; got {outputs}"
            )

    def prepare_targets(self, y: NDArray[Any], outputs: int) -> NDArray[Any]:
        each = self.outputs_per_target
        targets = as_values(y, outputs, self.name, each)
        return targets if each == 1 else targets.repeat(each, axis=1)

    def compute(self, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        error, terms = scratch
        levels = np.array(self.parameters * (outputs.shape[1] // self.outputs_per_target), outputs.dtype)
        np.subtract(outputs, targets, out=error)
        # 0 below the target, 1 above, and the level itself where both are equal, so that the slope there is 0
        np.heaviside(error, levels, out=d_outputs)
        d_outputs -= levels
        np.multiply(error, d_outputs, out=terms)
        np.mean(terms, axis=1, out=row_losses)
        d_outputs /= outputs.shape[1]


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
        Quantile,
    ),
)
"""All losses by name, registered ones included."""


def loss_names() -> tuple[str, ...]:
    """Return the names of all losses, registered ones included."""
    return LOSSES.names()
