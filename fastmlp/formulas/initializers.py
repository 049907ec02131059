"""Initial weights: records, each drawing a matrix (fan_in, fan_out) from the one random stream; biases start at 0."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_number
from fastmlp.formulas.random_bits import normals, uniforms
from fastmlp.formulas.records import RecordTypes, settle


@dataclass(frozen=True)
class Initializer:
    """What every initializer has: `draw`."""

    name: ClassVar[str]

    def draw(self, key: int, fan_in: int, fan_out: int, layer: int) -> NDArray[np.float64]:
        """Return the initial weights of a layer.

        Parameters
        ----------
        key : int
            The model's 64-bit seed.
        fan_in, fan_out, layer : int
            The layer's inputs, its units and its number from 0.

        Returns
        -------
        (fan_in, fan_out) float64
        """
        raise NotImplementedError


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Weights of mean 0 and variance ``gain / fan``.

    Attributes
    ----------
    gain : float
    average_fan : bool
        fan is (fan_in + fan_out) / 2 instead of fan_in.
    uniform : bool
        Uniform on ``+- sqrt(3 gain / fan)`` instead of normal.
    """

    gain: ClassVar[float]
    average_fan: ClassVar[bool] = False
    uniform: ClassVar[bool]

    def draw(self, key: int, fan_in: int, fan_out: int, layer: int) -> NDArray[np.float64]:
        fan = (fan_in + fan_out) / 2 if self.average_fan else fan_in
        variance = self.gain / fan
        if self.uniform:
            return math.sqrt(3 * variance) * (2 * uniforms(key, (fan_in, fan_out), layer) - 1)
        return math.sqrt(variance) * normals(key, (fan_in, fan_out), layer)


@dataclass(frozen=True)
class GlorotUniform(VarianceScaling):
    """Variance ``2 / (fan_in + fan_out)`` (Glorot, Bengio 2010)."""

    gain, average_fan, uniform, name = 1.0, True, True, "glorot_uniform"


@dataclass(frozen=True)
class GlorotNormal(VarianceScaling):
    """Variance ``2 / (fan_in + fan_out)`` (Glorot, Bengio 2010)."""

    gain, average_fan, uniform, name = 1.0, True, False, "glorot_normal"


@dataclass(frozen=True)
class HeUniform(VarianceScaling):
    """Variance ``2 / fan_in``, for rectifiers (He et al. 2015)."""

    gain, uniform, name = 2.0, True, "he_uniform"


@dataclass(frozen=True)
class HeNormal(VarianceScaling):
    """Variance ``2 / fan_in``, for rectifiers (He et al. 2015)."""

    gain, uniform, name = 2.0, False, "he_normal"


@dataclass(frozen=True)
class LecunUniform(VarianceScaling):
    """Variance ``1 / fan_in`` (LeCun et al. 1998)."""

    gain, uniform, name = 1.0, True, "lecun_uniform"


@dataclass(frozen=True)
class LecunNormal(VarianceScaling):
    """Variance ``1 / fan_in`` (LeCun et al. 1998)."""

    gain, uniform, name = 1.0, False, "lecun_normal"


@dataclass(frozen=True)
class Normal(Initializer):
    """Normal weights of a given standard deviation.

    Parameters
    ----------
    std : float
        At least 0.
    """

    std: float = 0.01

    name: ClassVar[str] = "normal"

    def __post_init__(self) -> None:
        settle(self, std=check_number("std", self.std, 0.0))

    def draw(self, key: int, fan_in: int, fan_out: int, layer: int) -> NDArray[np.float64]:
        return self.std * normals(key, (fan_in, fan_out), layer)


@dataclass(frozen=True)
class Zeros(Initializer):
    """All weights 0: right for a network of one layer, while hidden units that start equal stay equal."""

    name: ClassVar[str] = "zeros"

    def draw(self, key: int, fan_in: int, fan_out: int, layer: int) -> NDArray[np.float64]:
        return np.zeros((fan_in, fan_out))


INITIALIZERS: RecordTypes[Initializer] = RecordTypes(
    "initializer",
    Initializer,
    (GlorotUniform, GlorotNormal, HeUniform, HeNormal, LecunUniform, LecunNormal, Normal, Zeros),
)
"""All initializers by name."""
