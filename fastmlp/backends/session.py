"""Sessions: the memory (and, in compiled backends, the threads and graphs) that one model holds on one backend."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.data import HostData
    from fastmlp.backends.operations import Operations
    from fastmlp.network.plan import Plan

CHUNK = 65536
"""Elements that the NumPy optimizers work on at once, so that a chunk's passes stay in a second-level cache."""
_KEPT_VIEWS = 4
_APART = 64
"""Numbers that buffers begin at a multiple of: what a product may be chosen by."""


@dataclass(frozen=True)
class BatchViews:
    """The workspace of a batch of n rows: views into a session's memory, n rows each.

    Attributes
    ----------
    x : (n, I)
        The inputs.
    row_weights : (n,)
    z : list of (n, O) arrays
        For each layer the pre-activations, then the activations in their place.
    slopes : list of (n, O) arrays or None
        For each layer, where the plan needs it.
    dz : list of (n, O) arrays or None
        For each layer the gradient with respect to its pre-activations; without gradients only the last, which
        losses need to work in.
    row_stats : (2, n)
        The loss of each row, and 1 where the row was predicted rightly.
    scratch : list of pairs of (n, O) arrays
        For each layer; all layers share the memory.
    """

    x: Array
    row_weights: Array
    z: list[Array]
    slopes: list[Array | None]
    dz: list[Array | None]
    row_stats: Array
    scratch: list[tuple[Array, Array]]


class StepReport(NamedTuple):
    """What `train_steps` did.

    Attributes
    ----------
    done : int
        Steps carried out.
    finite : bool
        False where the loss of the next step was not finite; that step changed nothing.
    """

    done: int
    finite: bool


class Ahead(NamedTuple):
    """A run that is about to begin, as trials of ways to take its steps see it.

    Attributes
    ----------
    steps : int
        How many it has, as far as is known; 0 where nothing is to be tried.
    tried : float
        Seconds that other trials have taken for it: all of them together are bounded.
    seconds : float
        How long it may last at most.
    """

    steps: int
    tried: float = 0.0
    seconds: float = math.inf

    def expected(self, step: float) -> float:
        """Return how many seconds it is expected to last, where a step takes so many."""
        return min(self.steps * step, self.seconds)


class Session:
    """What one model needs on one backend to carry out one plan; made by `Backend.open`.

    It outlives a call of `fit` or `predict`, so that a second one allocates nothing.  One thread uses it at a time.

    Attributes
    ----------
    call_seconds : float
        How long a call to `train_steps` should last at most.
    takes_epochs : bool
        Whether several short epochs are faster as one call, of `train_epochs`.
    meanwhile : callable or None
        What the host may do while a device works; a backend that waits for one calls it before it does.

    Parameters
    ----------
    backend : Operations
    plan : Plan
    """

    call_seconds: ClassVar[float] = math.inf
    takes_epochs = False

    def __init__(self, backend: Operations, plan: Plan) -> None:
        self.backend, self.plan = backend, plan
        self.meanwhile: Callable[[], object] | None = None
        self.seconds_per_step = 0.0
        """How long a training step took last; the loop chooses by it how many to ask for at once."""
        self.ahead = Ahead(0)
        """What is left of a run, where that is known; a backend that tries ways to take steps goes by it, once."""
        self._buffers: dict[object, Array] = {}
        self._targets: Array | None = None
        self._views: dict[int, BatchViews] = {}
        self._bound: dict[object, tuple[Array, Any]] = {}

    def choices(self) -> dict[str, Any]:
        """Return `Backend.choices`, those made for this plan included."""
        return self.backend.choices()

    def shared_choices(self) -> dict[str, Any]:
        """Return the same of a run of several ranks, without what trials of whole steps have found."""
        return self.backend.choices()

    def adopt(self, choices: Mapping[str, Any]) -> None:
        """Make the choices of a run that goes on, as far as they are left open."""
        return

    def current(self) -> bool:
        """Tell whether the backend would make the same session now, so that it may be used again."""
        return True

    def release(self) -> None:
        """Let go of what is needed only while a run lasts."""
        return

    # The memory of the composed operations, each part allocated when it is first asked for.

    def _allocate(self, *shape: int) -> Array:
        return self.backend.empty(shape, self.plan.precision.products)

    @cached_property
    def x(self) -> Array:
        """The inputs of a batch, (batch, I)."""
        return self._allocate(self.plan.batch, self.plan.spec.units[0])

    @cached_property
    def grads(self) -> Array:
        """The gradients of all parameters, (size,)."""
        return self.backend.zeros((self.plan.layout.size,), self.plan.precision.weights)

    @cached_property
    def totals(self) -> Array:
        """The totals of a batch, (3,) float64."""
        return self.backend.empty((3,), np.dtype(np.float64))

    @cached_property
    def update_scratch(self) -> Array:
        """What an update of CHUNK parameters works in."""
        return self.backend.empty((CHUNK,), self.plan.precision.weights)

    @cached_property
    def _row_weights(self) -> Array:
        return self._allocate(self.plan.batch)

    @cached_property
    def _row_stats(self) -> Array:
        return self._allocate(2, self.plan.batch)

    @cached_property
    def _scratch(self) -> Array:
        return self._allocate(2, self.plan.batch * max(self.plan.spec.units[1:]))

    @cached_property
    def _z(self) -> list[Array]:
        batch, outputs = self.plan.batch, self.plan.spec.units[1:]
        if self.plan.gradients:
            return [self._allocate(batch * o) for o in outputs]
        # two buffers in turn are enough: what a layer reads, and what it fills; both begin where the first may
        pair = self._allocate(2, -(-batch * max(outputs) // _APART) * _APART)
        return [pair[layer % 2] for layer in range(len(outputs))]

    @cached_property
    def _dz(self) -> list[Array | None]:
        outputs = self.plan.spec.units[1:]
        lowest = self.plan.spec.lowest_trainable if self.plan.gradients else len(outputs)
        lowest = min(lowest, len(outputs) - 1)  # losses need the last to work in
        return [self._allocate(self.plan.batch * o) if layer >= lowest else None for layer, o in enumerate(outputs)]

    @cached_property
    def _slopes(self) -> list[Array | None]:
        pairs = zip(self.plan.spec.units[1:], self.plan.needs_slope, strict=True)
        return [self._allocate(self.plan.batch * o) if needed else None for o, needed in pairs]

    def views(self, n: int) -> BatchViews:
        """Return the workspace of a batch of n rows."""
        views = self._views.get(n)
        if views is None:
            if len(self._views) >= _KEPT_VIEWS:
                self._views.clear()
            outputs = self.plan.spec.units[1:]

            def cut(buffers: list[Any]) -> list[Any]:
                return [None if b is None else b[: n * o].reshape(n, o) for b, o in zip(buffers, outputs, strict=True)]

            first, second = (cut([part] * len(outputs)) for part in self._scratch)
            views = self._views[n] = BatchViews(
                self.x[:n],
                self._row_weights[:n],
                cut(self._z),
                cut(self._slopes),
                cut(self._dz),
                self._row_stats[:, :n],
                list(zip(first, second, strict=True)),
            )
        return views

    def buffer(self, name: object, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return memory that is needed only by some data or operations; the same at every call."""
        key = (name, shape, np.dtype(dtype))
        if key not in self._buffers:
            self._buffers[key] = self.backend.empty(shape, np.dtype(dtype))
        return self._buffers[key]

    def targets(self, y: Array) -> Array:
        """Return memory for the targets of a batch: labels as they are, values in the type computed in."""
        if self._targets is None or self._targets.shape[1:] != y.shape[1:]:
            dtype = y.dtype if y.ndim == 1 else self.plan.precision.products
            self._targets = self.backend.empty((self.plan.batch, *y.shape[1:]), dtype)
        return self._targets

    def layers_of(self, name: str, buffer: Array) -> list[tuple[Array, Array]]:
        """Return (W, b) of each layer in a flat buffer, made anew only when `name` stands for another buffer."""
        bound = self._bound.get(name)
        if bound is None or bound[0] is not buffer:
            bound = self._bound[name] = (buffer, self.plan.layout.views(buffer))
        views: list[tuple[Array, Array]] = bound[1]
        return views

    def segments_of(self, name: str, buffer: Array) -> list[Array]:
        """Return the parts of a flat buffer that `Plan.updates` names, made anew only for another buffer."""
        bound = self._bound.get((name, "segments"))
        if bound is None or bound[0] is not buffer:
            parts = [buffer[s.slice] for s in self.plan.updates]
            bound = self._bound[name, "segments"] = (buffer, parts)
        segments: list[Array] = bound[1]
        return segments

    def close(self) -> None:
        """Let go of all memory; the session cannot be used again."""
        self.__dict__.clear()


def training_bytes(plan: Plan, data: HostData) -> int:
    """Return the bytes that a `Session` allocates for training steps composed of fine operations."""
    spec, batch, products = plan.spec, plan.batch, plan.precision.products
    units = spec.units
    flat = plan.layout.size + CHUNK + (plan.layout.size if spec.l2 else 0)
    numbers = batch * units[0] + 3 * batch + 2 * batch * max(units[1:])
    numbers += batch * sum(units[1:]) + batch * sum(units[min(spec.lowest_trainable, spec.layers - 1) + 1 :])
    numbers += batch * sum(o for o, needed in zip(units[1:], plan.needs_slope, strict=True) if needed)
    numbers += batch * units[0] if spec.dropout[0] else 0
    targets = batch * (data.y.itemsize if data.y.ndim == 1 else units[-1] * products.itemsize)
    sources = [(data.x, units[0]), *([(data.y, units[-1])] if data.y.ndim == 2 else [])]
    converted = sum(batch * width * a.dtype.itemsize for a, width in sources if a.dtype != products)
    return int(flat * plan.precision.weights.itemsize + numbers * products.itemsize + targets + converted)
