"""What is said where numbers of a run are no longer finite: when, where it began, and the cure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.engine.checks import refuse_nonfinite
from fastmlp.errors import DataError, NonFiniteLossError
from fastmlp.warned import warn_caller

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend


def loss_error(epoch: int, step: int, row: int, where: str) -> NonFiniteLossError:
    """Return the error of a loss that is not finite; see `NonFiniteLossError` for the arguments."""
    whose = f", row {row} of the training data" if row >= 0 else ""
    if "input" in where:
        cure = "Remove or fill in missing values"
    else:
        cure = "Lower the learning rate, set clip_norm, or scale the inputs and targets"
    return NonFiniteLossError(
        f"the loss is not finite in epoch {epoch}, step {step}{whose}: {where} went wrong first. The model is as it "
        f"was before that step. {cure}.",
        epoch=epoch,
        step=step,
        row=row,
        where=where,
    )


def weights_error(epoch: int, step: int, where: str, x: Array, backend: Backend) -> NonFiniteLossError:
    """Return the error of weights that a step on inputs x (n, I) has spoilt.

    An infinite input may pass through the network as a finite number, but not through a step.
    """
    why, cure = "a step made them overflow", "Lower the learning rate, or set clip_norm"
    try:
        refuse_nonfinite(x, backend, "x")
    except DataError:
        why, cure = "inputs of the training data are NaN or infinite", "Remove or fill in missing values"
    return NonFiniteLossError(
        f"{where} are not finite in epoch {epoch}, after step {step}: {why}. The model has the weights again that it "
        f"had before this call, and its optimizer begins anew. {cure}.",
        epoch=epoch,
        step=step,
        row=-1,
        where=where,
    )


def warn_of_stalled(stalled: str, dtype: np.dtype[Any]) -> None:
    """Warn of a moment that is not finite, as `TrainState.stalled` names it; of nothing where it names none."""
    if stalled:
        warn_caller(
            f"gradients were so large that their squares overflowed {dtype}: some of {stalled} and perhaps others no "
            "longer train. Scale the inputs and targets, or set clip_norm"
        )
