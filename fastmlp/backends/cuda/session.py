"""What a model keeps on a GPU from call to call: its training steps, and its forward passes, made ready once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cuda.choice import make_step
from fastmlp.backends.cuda.forward import Forward, can_be_ready, is_aligned
from fastmlp.backends.cuda.update import Update
from fastmlp.backends.session import Session

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.cuda.backend import CupyBackend
    from fastmlp.backends.cuda.step import TrainingStep
    from fastmlp.backends.data import DeviceData
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState

_KEPT_FORWARD = 4


class CupySession(Session):
    """A session that also keeps its training steps, with their memory and graphs; those on much data for one run."""

    call_seconds = 0.05

    def __init__(self, backend: CupyBackend, plan: Plan) -> None:
        super().__init__(backend, plan)
        self._cupy_backend = backend
        self._training: TrainingStep | None = None
        self._forwards: dict[int, Forward] = {}
        self._way: str | None = None
        self._settled = False
        """Whether its way stays as it is."""
        self.resumed: str | None = None
        """The way of the run that goes on."""
        self.shared_way: str | None = None
        """The way that the steps of its run of several ranks have."""

    def choices(self) -> dict[str, Any]:
        choices = self._cupy_backend.choices()
        return {**choices, "way": self._way or self.resumed or choices["way"]}

    def shared_choices(self) -> dict[str, Any]:
        choices = self._cupy_backend.choices()
        return {**choices, "way": self.shared_way or self.resumed or choices["way"]}

    def adopt(self, choices: Mapping[str, Any]) -> None:
        own = self._cupy_backend.choices()
        alike = all(choices.get(name) == own[name] for name in ("backend", "tf32"))
        if alike and own["way"] == "auto" and choices.get("way") in ("captured", "eager"):
            self.resumed, self._way, self._training = choices["way"], None, None

    @property
    def way(self) -> str:
        """The way that its steps run."""
        assert self._way is not None, "it is chosen by the first steps"
        return self._way

    def fix(self, way: str) -> None:
        """Let its steps run in this way from now on, and no other any more."""
        if way != self._way:
            self._training = None  # whose graphs, or lists of launches, are of no use any more
        self._way, self._settled = way, True

    def settle(self, state: TrainState, data: DeviceData, table: NDArray[np.float64]) -> None:
        """Try the ways of steps at the first ones of a run, if that is left open; the table tells of them."""
        expected, self.expected_steps = self.expected_steps, 0
        if self._way is None:
            self._choose(state, data)
        if expected and not self._settled:
            found = self._cupy_backend.try_ways(self, state, data, table, expected)
            if found is not None:
                self.fix(found)

    def _choose(self, state: TrainState, data: DeviceData) -> None:
        self._way, self._settled = self._cupy_backend.way_of(self.plan, state, data, self.resumed)

    @cached_property
    def update(self) -> Update:
        """The end of a step, from the gradients in ``grads``."""
        return Update(self._cupy_backend, self.plan, self.grads)

    def training(self, state: TrainState, data: DeviceData) -> TrainingStep:
        """Return the steps that train these buffers on this data; made anew for others, where they have to be."""
        step = self._training
        if step is not None and step.trains(state) and not step.reads(data) and step.can_read(data):
            step.read(data)
        if step is None or not step.fits(state, data):
            step = self._training = None  # its memory is free before more is taken
            if self._way is None:
                self._choose(state, data)
            captured = self._way == "captured"
            step = self._training = make_step(self._cupy_backend, self.plan, state, data, captured=captured)
        return step

    @cached_property
    def numbers(self) -> Array:
        """The numbers of the rows of a batch, (batch,)."""
        return self.backend.asarray(np.arange(self.plan.batch))

    @cached_property
    def can_be_ready(self) -> bool:
        """Whether `forward` does what `Backend.predict` is."""
        return can_be_ready(self.plan.spec)

    def inputs(self, x: Array) -> Array:
        """Return rows in the type and the layout that `forward` takes: as they lie, or in memory of the session's."""
        if x.dtype == self.plan.precision.products and is_aligned(x):
            return x
        held = self.x[: len(x)]
        self.backend.gather_rows(x, self.numbers[: len(x)], held)
        return held

    def forward(self, params: Array, rows: int) -> Forward:
        """Return the forward pass of so many rows, no more than a batch, by these parameters."""
        found = self._forwards.get(rows)
        if found is None or found.params is not params:
            if len(self._forwards) >= _KEPT_FORWARD:
                self._forwards.clear()
            outputs = self.plan.spec.units[1:]
            room = [z[: rows * o].reshape(rows, o) for z, o in zip(self._z, outputs, strict=True)]
            found = Forward(self._cupy_backend, self.plan, params, self.layers_of("predict", params), room)
            self._forwards[rows] = found
        return found

    def release(self) -> None:
        if self._training is not None and not self._training.let_go():
            self._training = None
