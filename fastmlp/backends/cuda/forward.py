"""The forward pass of a prediction: its launches made ready once, for other rows of as many at each call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.kernels import is_wide, tile_grid
from fastmlp.formulas.activations import get_activation

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.cuda.operations import CupyOperations
    from fastmlp.network.plan import Plan
    from fastmlp.network.spec import NetworkSpec

ALIGNED = 256
"""Bytes: cuBLAS chooses how to multiply by where arrays begin too, so all that a product is taken of begins there."""


class _Layer(NamedTuple):
    """A layer made ready: its product, and what follows it with its arguments before and after those of the rows."""

    multiply: Callable[[Array, Array], None]
    follow: Callable[[tuple[Any, ...]], None]
    before: tuple[Any, ...]
    bias: Array
    sizes: tuple[Any, ...]
    units: int


class Forward:
    """What a network makes of rows on the device: a product and one launch a layer, the same bits as the composition.

    Parameters
    ----------
    operations : CupyOperations
    plan : Plan
        One that `can_be_ready` tells.
    params : (size,) array
        Flat parameters; read at each call.
    layers : list of (W, b)
        Views of them.
    room : list of (n, O) arrays
        What the layers may fill; each is aligned.
    """

    def __init__(
        self,
        operations: CupyOperations,
        plan: Plan,
        params: Array,
        layers: Sequence[tuple[Array, Array]],
        room: Sequence[Array],
    ) -> None:
        self.params, self._room = params, room
        self._layers = []
        for activation, (w, b), z in zip(plan.spec.activations, layers, room, strict=True):
            n, o = z.shape
            follow = operations.ready("layers.cu", "bias_activation<{real}>", z.dtype, tile_grid(n, o))
            sizes = np.int64(n), np.int64(o)
            before = sources.code_of("activation", activation), b
            self._layers.append(_Layer(operations._blas.ready_forward(n, w), follow, before, b, sizes, o))

    def run(self, x: Array, out: Array) -> None:
        """Write the outputs of rows (n, I), in the type computed in, whose memory `is_aligned`.

        Parameters
        ----------
        x : (n, I)
        out : (n, K)
            Overwritten.
        """
        for call in self.calls(x, out):
            call()

    def calls(self, x: Array, out: Array) -> Iterator[Callable[[], object]]:
        """Yield what `run` does one after the other; all of it may be done again, on what the arrays hold then."""
        last = out if is_aligned(out) else self._room[-1]
        a = x
        for layer, room in zip(self._layers, [*self._room[:-1], last], strict=True):
            yield partial(layer.multiply, a, room)
            args = *layer.before, room, None, *layer.sizes, is_wide(layer.units, (layer.bias, room))
            yield partial(layer.follow, args)
            a = room
        if a is not out:
            yield partial(out.__setitem__, ..., a)


def can_be_ready(spec: NetworkSpec) -> bool:
    """Return whether predictions are products and launches alone: no function of a user's own, and no dropout."""
    return not any(spec.dropout) and all(get_activation(a).compiled for a in spec.activations)


def is_aligned(array: Array) -> bool:
    """Return whether the rows of an array lie side by side, from where products may be taken of them."""
    return bool(array.flags.c_contiguous and array.data.ptr % ALIGNED == 0)
