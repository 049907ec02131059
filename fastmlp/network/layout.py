"""Where the parameters of each layer lie in a flat buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastmlp._typing import Array

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

    def shapes(self, prefix: str = "") -> dict[str, tuple[int, ...]]:
        """Return the shapes of the arrays of `named`, without any array."""
        found: dict[str, tuple[int, ...]] = {}
        for layer, (i, o) in enumerate(zip(self.units[:-1], self.units[1:], strict=True)):
            found[f"{prefix}layers.{layer}.weight"], found[f"{prefix}layers.{layer}.bias"] = (i, o), (o,)
        return found

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


@lru_cache(maxsize=64)
def layout_of(units: tuple[int, ...], itemsize: int) -> Layout:
    """Return the layout of some units, the same record each time, so that networks alike work it out once."""
    return Layout(units, itemsize)


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
