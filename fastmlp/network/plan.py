"""A plan: everything about a run of steps that is known before the first number is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastmlp.formulas.activations import get_activation
from fastmlp.formulas.optimizers import Optimizer
from fastmlp.network.layout import Layout, Segment, layout_of
from fastmlp.network.spec import NetworkSpec


@dataclass(frozen=True)
class Precision:
    """In which types a plan computes; one for both today.

    Parameters
    ----------
    weights : numpy.dtype
        Of parameters, gradients, moments and averages: float32 or float64.
    products : numpy.dtype
        Of what products are taken of and give: inputs of layers, activations and their gradients.
    """

    weights: np.dtype[Any]
    products: np.dtype[Any]

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> Precision:
        """Return the precision that has one type for everything."""
        return cls(dtype, dtype)


@dataclass(frozen=True)
class Plan:
    """What is to be computed, on how many rows at once, in which precision; the key of a `Session`.

    Parameters
    ----------
    spec : NetworkSpec
    batch : int
        The most rows that are worked on at once.
    precision : Precision
    gradients : bool
        Whether gradients are wanted, or outputs and losses alone.
    optimizer : Optimizer, optional
        For training: the record without its learning rate, which reaches each step as a number.
    """

    spec: NetworkSpec
    batch: int
    precision: Precision
    gradients: bool = False
    optimizer: Optimizer | None = None

    @cached_property
    def layout(self) -> Layout:
        """Where the parameters lie."""
        return layout_of(self.spec.units, self.precision.weights.itemsize)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The parts of the flat buffers that train."""
        return self.layout.segments(self.spec.frozen)

    @cached_property
    def updates(self) -> tuple[Segment, ...]:
        """The parts that an optimizer passes over: without weight decay, weights and biases together."""
        if self.optimizer is not None and self.optimizer.weight_decay:
            return self.segments
        joined: list[Segment] = []
        for s in self.segments:
            if joined and joined[-1].stop == s.start:
                s = Segment(joined.pop().start, s.stop, False)
            joined.append(s)
        return tuple(joined)

    @cached_property
    def compiled(self) -> bool:
        """Whether every function is fastmlp's own, the optimizer's too, so that compiled backends know it."""
        return self.spec.compiled and (self.optimizer is None or self.optimizer.compiled)

    @property
    def folds_rate(self) -> bool:
        """Whether the gradient of the outputs may hold the learning rate already, since nothing else follows."""
        return self.optimizer is not None and self.optimizer.folds_rate and not self.spec.l2

    @cached_property
    def needs_slope(self) -> tuple[bool, ...]:
        """For each layer, whether the forward pass must write the slope of its activation.

        It need not where the output of the activation tells it (unless dropout has changed that), and below the lowest
        layer that trains.
        """
        spec = self.spec
        dropped = (*spec.dropout[1:], 0.0)
        return tuple(
            self.gradients
            and layer >= spec.lowest_trainable
            and (dropped[layer] > 0 or get_activation(spec.activations[layer]).slope_of_output is None)
            for layer in range(spec.layers)
        )
