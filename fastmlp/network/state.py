"""The numbers of a network: flat buffers of one layout, the step counter and the random key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.network.layout import Layout

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.network.spec import NetworkSpec


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

    def begin(
        self,
        optimizer: Optimizer,
        zeros: Callable[[tuple[int, ...], np.dtype[Any]], Array],
        copy: Callable[[Array], Array],
    ) -> None:
        """Begin with an optimizer: moments of zeros, unless the last one was equal to it.

        Parameters
        ----------
        optimizer : Optimizer
        zeros, copy : callable
            `Backend.zeros` and `Backend.copy` of where the arrays are.
        """
        if self.optimizer == optimizer:
            return
        self.moments = [zeros(self.params.shape, self.params.dtype) for _ in range(optimizer.moments)]
        self.average = None if optimizer.ema is None else copy(self.params)
        self.optimizer, self.optimizer_step = optimizer, 0

    def copied(self, copy: Callable[[Array], Array]) -> TrainState:
        """Return the state with every array replaced by what `copy` makes of it."""
        return replace(
            self,
            params=copy(self.params),
            moments=[copy(moment) for moment in self.moments],
            average=None if self.average is None else copy(self.average),
        )

    def go_back(self, before: TrainState) -> None:
        """Take the numbers and counters of a state that was copied from this one, into the same arrays."""
        pairs = [(self.params, before.params), *zip(self.moments, before.moments, strict=True)]
        for now, then in [*pairs, *([] if self.average is None else [(self.average, before.average)])]:
            now[...] = then
        self.step, self.optimizer_step = before.step, before.optimizer_step

    def named(self, numpy: Callable[[Array], NDArray[Any]], *, moments: bool = False) -> dict[str, NDArray[Any]]:
        """Return the parameters and their average, and the moments if asked, by their names in files."""
        arrays = self.layout.named(numpy(self.params))
        for i, moment in enumerate(self.moments if moments else []):
            arrays |= self.layout.named(numpy(moment), f"moment{i}.")
        if self.average is not None:
            arrays |= self.layout.named(numpy(self.average), "average.")
        return arrays

    def sound(self, finite: Callable[[Sequence[Array]], bool]) -> bool:
        """Return whether all numbers are finite, as `Backend.all_finite` tells it."""
        return finite([self.params, *([] if self.average is None else [self.average]), *self.moments])

    def spoilt(self, numpy: Callable[[Array], NDArray[Any]]) -> str:
        """Return the first array that is not finite, such as ``"the weights of layer 0"``; nothing where all are."""
        found = self._not_finite(numpy(self.params))
        if not found and self.average is not None and (found := self._not_finite(numpy(self.average))):
            found += " in the average"
        return found

    def stalled(self, numpy: Callable[[Array], NDArray[Any]]) -> str:
        """Return the first array, as `spoilt` does, of which a moment is not finite: such an element trains no more."""
        return next(filter(None, (self._not_finite(numpy(moment)) for moment in self.moments)), "")

    def _not_finite(self, flat: NDArray[Any]) -> str:
        if np.isfinite(flat).all():
            return ""
        for layer, pair in enumerate(self.layout.views(flat)):
            for what, array in zip(("weights", "biases"), pair, strict=True):
                if not np.isfinite(array).all():
                    return f"the {what} of layer {layer}"
        return ""


def initial_parameters(spec: NetworkSpec, layout: Layout, dtype: np.dtype[Any], key: int) -> NDArray[Any]:
    """Return the flat parameters of a new network: drawn weights, zero biases.

    Returns
    -------
    (layout.size,) `dtype`

    Raises
    ------
    ValueError
        The initializer draws weights that the type cannot hold.
    """
    params = np.zeros(layout.size, dtype)
    with np.errstate(over="ignore"):
        for layer, (w, _) in enumerate(layout.views(params)):
            w[...] = spec.initializer_of(layer).draw(key, spec.units[layer], spec.units[layer + 1], layer)
    if spec.initializer is not None and not np.isfinite(params).all():  # those chosen here are small
        raise ValueError(f"initializer: {spec.initializer!r} draws weights that {dtype} cannot hold")
    return params
