"""What compiled backends know of an optimizer: its moments and its numbers by role, one role for all optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastmlp.optimizers import SGD, Adam, RMSprop

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.optimizers import Optimizer


def moments_by_role(optimizer: Optimizer, moments: Sequence[Array]) -> tuple[Array | None, Array | None]:
    """Return the running means of gradients and of their squares, each where the optimizer keeps one.

    The first is also the momentum of SGD, and that of RMSprop, whose gradients are divided by the second before.
    """
    if isinstance(optimizer, RMSprop):
        return (moments[1] if optimizer.momentum else None), moments[0]
    mean, square, *_ = (*moments, None, None)
    return mean, square


def decays_by_role(optimizer: Optimizer) -> tuple[float, float, float]:
    """Return what the two means are multiplied by in each step, 0 where there is none, and epsilon."""
    if isinstance(optimizer, Adam):
        return optimizer.beta1, optimizer.beta2, optimizer.epsilon
    if isinstance(optimizer, RMSprop):
        return optimizer.momentum, optimizer.rho, optimizer.epsilon
    return (optimizer.momentum if isinstance(optimizer, SGD) else 0.0), 0.0, 1.0
