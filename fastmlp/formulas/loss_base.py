"""What loss records have in common; `losses` has the records themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastmlp.errors import DataError
from fastmlp.formulas.targets import as_labels, as_values, holds_labels

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
    def parameters(self) -> tuple[float, ...]:
        """The numbers that compiled backends are told beside the name: one for all outputs, or for each in turn."""
        return ()

    @property
    def outputs_per_target(self) -> int:
        """How many outputs of the network each column of the targets is for."""
        return 1

    @property
    def compiled(self) -> bool:
        """Whether it is fastmlp's own, which compiled backends implement; a class derived from one of these is not."""
        return type(self).__module__ == f"{__package__}.losses"

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
