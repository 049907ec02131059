"""Activations and losses of a user's own: checked against central differences, then known like fastmlp's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastmlp.arguments import check_callable, check_flag, check_number, check_sequence
from fastmlp.floating import quiet
from fastmlp.formulas.activations import ACTIVATIONS, Activation
from fastmlp.formulas.differences import check_loss_gradient, check_slope
from fastmlp.formulas.initializers import INITIALIZERS
from fastmlp.formulas.losses import LOSSES, ClassLoss, Loss
from fastmlp.formulas.records import check_new_name

if TYPE_CHECKING:
    from fastmlp._typing import Array, Pair


@quiet
def register_activation(
    name: str,
    function: Callable[[Array], tuple[Array, Array]],
    *,
    initializer: str = "glorot_uniform",
    kinks: tuple[float, ...] = (),
) -> None:
    """Make an activation of your own known under `name`, after checking its slope.

    Parameters
    ----------
    name : str
        A new name.
    function : callable
        ``function(z) -> (a, slope)`` with a = f(z) and slope = f'(z), both shaped like z (N, O), elementwise, and
        not changing z.
    initializer : str
        Name of the initializer for layers that use it.
    kinks : tuple of float
        Points where f' jumps; the check keeps away from them.

    Raises
    ------
    ValueError
        The name is taken, or the slope is not the derivative (the message says where and by how much).
    """
    check_new_name("activation", name, ACTIVATIONS)
    INITIALIZERS.type_of(initializer)
    check_callable("function", function, "a function(z) that returns (a, slope)")
    given = check_sequence("kinks", kinks, "a sequence of the points where the slope jumps")
    kinks = tuple(check_number(f"kinks[{i}]", kink) for i, kink in enumerate(given))
    check_slope(name, function, kinks)

    def in_place(z: Array, slope: Array | None, scratch: Pair) -> None:
        a, s = function(z)
        if slope is not None:
            slope[...] = s
        z[...] = a

    ACTIVATIONS[name] = Activation(name, in_place, initializer, kinks, compiled=False)


@quiet
def register_loss(
    name: str,
    function: Callable[[Array, Array], tuple[Array, Array]],
    *,
    takes_labels: bool = False,
) -> type[Loss]:
    """Make a loss of your own known under `name`, after checking its gradient.

    Parameters
    ----------
    name : str
        A new name.
    function : callable
        ``function(outputs, targets) -> (row_losses, d_outputs)``: outputs (N, K) float; targets (N, K) float, or
        (N,) int64 where `takes_labels`; row_losses (N,); d_outputs (N, K), the gradient of each row's own loss.
    takes_labels : bool
        Targets are class labels; prediction then is the class of the largest output, and accuracy is reported.

    Returns
    -------
    type of Loss
        The record's class; an instance of it is what ``loss=`` takes, as it takes the name.

    Raises
    ------
    ValueError
        The name is taken, or the gradient is wrong (the message says by how much).
    """
    check_new_name("loss", name, LOSSES.types)
    check_callable("function", function, "a function(outputs, targets) that returns (row_losses, d_outputs)")
    takes_labels = check_flag("takes_labels", takes_labels)
    check_loss_gradient(name, function, takes_labels)

    def compute(self: Loss, outputs: Array, targets: Array, d_outputs: Array, row_losses: Array, scratch: Pair) -> None:
        rows, gradient = function(outputs, targets)
        row_losses[...] = rows
        d_outputs[...] = gradient

    body = {"name": name, "__module__": function.__module__, "compute": compute, "__doc__": function.__doc__ or name}
    made: type[Loss] = dataclass(frozen=True)(type(name, (ClassLoss if takes_labels else Loss,), body))
    LOSSES.types[name] = made
    return made
