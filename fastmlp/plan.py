"""A plan: everything about a run of steps that is known before the first number is computed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastmlp.optimizers import Optimizer
from fastmlp.spec import NetworkSpec
from fastmlp.state import Layout, Segment


@dataclass(frozen=True)
class Plan:
    """What is to be computed, on how many rows at once, in which precision; the key of a `Session`.

    Parameters
    ----------
    spec : NetworkSpec
    batch : int
        The most rows that are worked on at once.
    dtype : numpy.dtype
        float32 or float64.
    gradients : bool
        Whether gradients are wanted, or outputs and losses alone.
    optimizer : Optimizer, optional
        For training: the record without its learning rate, which reaches each step as a number.
    """

    spec: NetworkSpec
    batch: int
    dtype: np.dtype[Any]
    gradients: bool = False
    optimizer: Optimizer | None = None

    @cached_property
    def layout(self) -> Layout:
        """Where the parameters lie."""
        return Layout(self.spec.units, self.dtype.itemsize)

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
    def needs_slope(self) -> tuple[bool, ...]:
        """For each layer, whether the forward pass must write the slope of its activation.

        It need not where the slope is 1 (identity), where the activation itself tells it (relu, unless dropout
        has changed it), and below the lowest layer that trains.
        """
        spec = self.spec
        dropped = (*spec.dropout[1:], 0.0)
        return tuple(
            self.gradients
            and layer >= spec.lowest_trainable
            and (dropped[layer] > 0 or spec.activations[layer] not in ("identity", "relu"))
            for layer in range(spec.layers)
        )
