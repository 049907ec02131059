"""The numbers of a network: flat buffers of one layout, the step counter and the random key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.spec import NetworkSpec

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.optimizers import Optimizer

ALIGNMENT = 128
"""Bytes: every weight matrix and bias vector starts at a multiple of it, for wide loads on any device."""


@dataclass(frozen=True)
class Layout:
    """Where the parameters of each layer lie in a flat buffer: all weights first, then all biases.

    The gaps that alignment leaves hold zeros, always; they belong to no count and no norm.

    Parameters
    ----------
    units : tuple of int
        From the inputs to the outputs.
    itemsize : int
        Bytes an element.
    """

    units: tuple[int, ...]
    itemsize: int

    @cached_property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """(weights, biases) of each layer: where they start, in elements."""
        starts, at = [], 0
        for size in self._sizes:
            starts.append(at)
            at += self._padded(size)
        layers = len(self.units) - 1
        return tuple(zip(starts[:layers], starts[layers:], strict=True))

    @cached_property
    def size(self) -> int:
        """Elements of a buffer, padding included."""
        return sum(map(self._padded, self._sizes))

    @property
    def weights_size(self) -> int:
        """Elements of the part that holds the weights, padding included."""
        return self.offsets[0][1]

    @cached_property
    def _sizes(self) -> list[int]:
        return [i * o for i, o in zip(self.units[:-1], self.units[1:], strict=True)] + list(self.units[1:])

    def _padded(self, size: int) -> int:
        unit = ALIGNMENT // self.itemsize
        return -(-size // unit) * unit

    def views(self, buffer: Array) -> list[tuple[Array, Array]]:
        """Return (W (I, O), b (O,)) of each layer, as views into a flat buffer."""
        pairs = []
        for (w, b), i, o in zip(self.offsets, self.units[:-1], self.units[1:], strict=True):
            pairs.append((buffer[w : w + i * o].reshape(i, o), buffer[b : b + o]))
        return pairs

    def named(self, buffer: Array, prefix: str = "") -> dict[str, Array]:
        """Return the arrays of a flat buffer by their names in files: ``layers.0.weight``, ``layers.0.bias``."""
        names = {}
        for layer, (w, b) in enumerate(self.views(buffer)):
            names[f"{prefix}layers.{layer}.weight"], names[f"{prefix}layers.{layer}.bias"] = w, b
        return names

    def flat(self, arrays: Mapping[str, Array], prefix: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the flat NumPy buffer of arrays named as `named` names them."""
        buffer = np.zeros(self.size, dtype)
        for name, view in self.named(buffer, prefix).items():
            view[...] = arrays[name]
        return buffer

    def segments(self, frozen: tuple[bool, ...]) -> tuple[Segment, ...]:
        """Return the longest runs of the buffer that train, weights and biases apart.

        An optimizer's step is a pass over these; their padding is zero in parameters and gradients, so it stays zero.
        """
        found: list[Segment] = []
        for is_weight in (True, False):
            for layer, still in enumerate(frozen):
                if still:
                    continue
                start = self.offsets[layer][0 if is_weight else 1]
                size = self.units[layer + 1] * (self.units[layer] if is_weight else 1)
                stop = start + self._padded(size)
                if found and found[-1].is_weight == is_weight and found[-1].stop == start:
                    start = found.pop().start
                found.append(Segment(start, stop, is_weight))
        return tuple(found)


@dataclass(frozen=True)
class Segment:
    """A run of a flat buffer, in elements, that holds either weights or biases."""

    start: int
    stop: int
    is_weight: bool

    @property
    def slice(self) -> slice:
        """The run as an index."""
        return slice(self.start, self.stop)


@dataclass
class TrainState:
    """All that training changes: nothing else is needed to go on.

    Attributes
    ----------
    layout : Layout
    params : (size,) float array of a backend
        The weights and biases that train.
    moments : list of (size,) arrays
        The optimizer's, as many as it asks for.
    average : (size,) array or None
        The moving average of the parameters, where one is kept.
    optimizer : Optimizer or None
        Whose the moments are.
    optimizer_step : int
        Steps done since the moments began.
    step : int
        Steps done in all; part of every random number's counter.
    key : int
        64-bit seed.
    """

    layout: Layout
    params: Array
    key: int
    moments: list[Array] = field(default_factory=list)
    average: Array | None = None
    optimizer: Optimizer | None = None
    optimizer_step: int = 0
    step: int = 0

    @property
    def evaluated(self) -> Array:
        """The flat parameters that predict: the average where there is one."""
        return self.params if self.average is None else self.average

    def begin(self, optimizer: Optimizer, backend: Backend) -> None:
        """Begin with an optimizer: moments of zeros, unless the last one was equal to it."""
        if self.optimizer == optimizer:
            return
        self.moments = [backend.zeros(self.params.shape, self.params.dtype) for _ in range(optimizer.moments)]
        self.average = None if optimizer.ema is None else backend.copy(self.params)
        self.optimizer, self.optimizer_step = optimizer, 0

    def copied(self, copy: Callable[[Array], Array]) -> TrainState:
        """Return the state with every array replaced by what `copy` makes of it."""
        return replace(
            self,
            params=copy(self.params),
            moments=[copy(moment) for moment in self.moments],
            average=None if self.average is None else copy(self.average),
        )

    def named(self, numpy: Callable[[Array], NDArray[Any]], *, moments: bool = False) -> dict[str, NDArray[Any]]:
        """Return the parameters and their average, and the moments if asked, by their names in files."""
        arrays = self.layout.named(numpy(self.params))
        for i, moment in enumerate(self.moments if moments else []):
            arrays |= self.layout.named(numpy(moment), f"moment{i}.")
        if self.average is not None:
            arrays |= self.layout.named(numpy(self.average), "average.")
        return arrays


def initial_parameters(spec: NetworkSpec, layout: Layout, dtype: np.dtype[Any], key: int) -> NDArray[Any]:
    """Return the flat parameters of a new network: drawn weights, zero biases.

    Returns
    -------
    (layout.size,) `dtype`
    """
    params = np.zeros(layout.size, dtype)
    for layer, (w, _) in enumerate(layout.views(params)):
        w[...] = spec.initializer_of(layer).draw(key, spec.units[layer], spec.units[layer + 1], layer)
    return params
