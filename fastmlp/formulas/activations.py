"""Activation functions: for each one its NumPy definition, value and slope in one call.

Every activation is one function that turns a layer's pre-activations z into a = f(z) in place and, where it is
asked to, writes the slope f'(z); the backward pass of every layer is then the same product, dz = da * slope.
Compiled backends implement each under the same name; `tests/oracle.py` holds the slow scalar form of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmlp.formulas.records import choose

if TYPE_CHECKING:
    from fastmlp._typing import Array, Pair

LEAK = 0.01
"""Slope of leaky_relu below zero (Maas, Hannun, Ng 2013)."""
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
"""The fixed point of Klambauer et al., "Self-normalizing neural networks", 2017."""

IDENTITY = "identity"
"""The name of f(z) = z, what outputs have unless another is chosen."""

# (z, slope, scratch) -> None: z becomes f(z); slope, unless it is None, becomes f'(z); scratch is two arrays like z.
ActivationFunction = Callable[["Array", "Array | None", "Pair"], None]


@dataclass(frozen=True)
class Activation:
    """What fastmlp knows of one activation function.

    Attributes
    ----------
    name : str
    function : callable
        ``function(z, slope, scratch)`` works in place on (N, O) arrays: `z` becomes f(z); `slope`, unless it is
        None, becomes f'(z); `scratch` is a pair of arrays like z that may be overwritten.
    initializer : str
        Name of the initializer that suits it.
    kinks : tuple of float
        Where f' jumps; gradient checks keep away from these.
    slope_of_output : callable or None
        ``slope_of_output(a, out)`` writes f'(z) where a = f(z) tells it, so that the forward pass need not write it;
        None where it does not.  Kernels of compiled backends know such a slope by themselves.
    compiled : bool
        True for fastmlp's own, which every compiled backend implements; False for a user's.
    """

    name: str
    function: ActivationFunction
    initializer: str = "glorot_uniform"
    kinks: tuple[float, ...] = ()
    slope_of_output: Callable[[Array, Array], None] | None = None
    compiled: bool = True

    @property
    def is_identity(self) -> bool:
        """Whether there is nothing to do: neither to z nor, on the way back, to a gradient."""
        return self.function is identity


def identity(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = z."""
    if slope is not None:
        _slope_of_identity(z, slope)


def relu(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = max(z, 0); the slope at 0 is 0."""
    np.maximum(z, 0, out=z)
    if slope is not None:
        _slope_of_relu(z, slope)


def leaky_relu(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = max(z, 0.01 z); the slope at 0 is 0.01."""
    if slope is not None:
        np.greater(z, 0, out=slope)
        np.maximum(slope, LEAK, out=slope)
    np.multiply(z, LEAK, out=scratch[0])
    np.maximum(z, scratch[0], out=z)


def elu(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = z where z > 0, else exp(z) - 1 (Clevert, Unterthiner, Hochreiter 2015, alpha = 1)."""
    below = np.minimum(z, 0, out=scratch[0])
    np.expm1(below, out=below)
    if slope is not None:
        np.add(below, 1, out=slope)
    np.maximum(z, 0, out=z)
    np.add(z, below, out=z)


def selu(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = scale * (z where z > 0, else alpha (exp(z) - 1)); constants of Klambauer et al. 2017."""
    below, positive = scratch
    np.minimum(z, 0, out=below)
    np.expm1(below, out=below)
    np.maximum(z, 0, out=z)
    if slope is not None:
        # exp(min(z, 0)) is 1 where z > 0, so alpha * exp(.) + (1 - alpha) * [z > 0] is 1 there.
        np.greater(z, 0, out=positive)
        np.multiply(positive, SELU_SCALE * (1 - SELU_ALPHA), out=positive)
        np.add(below, 1, out=slope)
        np.multiply(slope, SELU_SCALE * SELU_ALPHA, out=slope)
        np.add(slope, positive, out=slope)
    np.multiply(below, SELU_ALPHA, out=below)
    np.add(z, below, out=z)
    np.multiply(z, SELU_SCALE, out=z)


def gelu(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = z Phi(z), Phi the normal distribution function, in the exact erf form (Hendrycks, Gimpel 2016)."""
    from scipy.special import ndtr  # here, because importing it takes longer than importing fastmlp

    cumulative, density = scratch
    ndtr(z, out=cumulative)
    if slope is not None:
        np.multiply(z, z, out=density)
        np.multiply(density, -0.5, out=density)
        np.exp(density, out=density)
        np.multiply(density, 1 / math.sqrt(2 * math.pi), out=density)
        np.multiply(z, density, out=slope)
        np.add(slope, cumulative, out=slope)
    np.multiply(z, cumulative, out=z)


def silu(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = z sigmoid(z), also called swish (Ramachandran, Zoph, Le 2017)."""
    s = scratch[0]
    _sigmoid(z, s)
    if slope is not None:  # s (1 + z (1 - s))
        np.subtract(1, s, out=slope)
        np.multiply(slope, z, out=slope)
        np.add(slope, 1, out=slope)
        np.multiply(slope, s, out=slope)
    np.multiply(z, s, out=z)


def mish(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = z tanh(log(1 + exp(z))) (Misra 2019)."""
    t, rest = scratch
    np.logaddexp(z, 0, out=t)
    np.tanh(t, out=t)
    if slope is not None:  # t + z (1 - t^2) sigmoid(z)
        _sigmoid(z, slope)
        np.multiply(slope, z, out=slope)
        np.multiply(t, t, out=rest)
        np.subtract(1, rest, out=rest)
        np.multiply(slope, rest, out=slope)
        np.add(slope, t, out=slope)
    np.multiply(z, t, out=z)


def softplus(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = log(1 + exp(z)), without overflow."""
    if slope is not None:
        _sigmoid(z, slope)
    np.logaddexp(z, 0, out=z)


def sigmoid(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = 1 / (1 + exp(-z))."""
    _sigmoid(z, z)
    if slope is not None:
        np.subtract(1, z, out=slope)
        np.multiply(slope, z, out=slope)


def tanh(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = tanh(z)."""
    np.tanh(z, out=z)
    if slope is not None:
        np.multiply(z, z, out=slope)
        np.subtract(1, slope, out=slope)


def sin(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = sin(z)."""
    if slope is not None:
        np.cos(z, out=slope)
    np.sin(z, out=z)


def cos(z: Array, slope: Array | None, scratch: Pair) -> None:
    """f(z) = cos(z)."""
    if slope is not None:
        np.sin(z, out=slope)
        np.negative(slope, out=slope)
    np.cos(z, out=z)


def _slope_of_identity(a: Array, out: Array) -> None:
    out[...] = 1


def _slope_of_relu(a: Array, out: Array) -> None:
    np.greater(a, 0, out=out)  # on mixed signs three times as fast as np.sign


def _sigmoid(z: Array, out: Array) -> None:
    from scipy.special import expit

    expit(z, out=out)


ACTIVATIONS: dict[str, Activation] = {
    a.name: a
    for a in (
        Activation(IDENTITY, identity, slope_of_output=_slope_of_identity),
        Activation("relu", relu, kinks=(0.0,), slope_of_output=_slope_of_relu),
        Activation("leaky_relu", leaky_relu, kinks=(0.0,)),
        Activation("elu", elu, kinks=(0.0,)),  # its second derivative jumps, which central differences feel
        Activation("selu", selu, "lecun_normal", kinks=(0.0,)),
        Activation("gelu", gelu),
        Activation("silu", silu),
        Activation("mish", mish),
        Activation("softplus", softplus),
        Activation("sigmoid", sigmoid),
        Activation("tanh", tanh),
        Activation("sin", sin),
        Activation("cos", cos),
    )
}


def activation_names() -> tuple[str, ...]:
    """Return the names of all activations, registered ones included."""
    return tuple(ACTIVATIONS)


def get_activation(name: str) -> Activation:
    """Return the activation called `name`.

    Raises
    ------
    ValueError
        No activation has that name; the message lists those there are.
    """
    return choose("activation", name, ACTIVATIONS)
