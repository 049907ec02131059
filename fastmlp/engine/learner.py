"""A network with its numbers and the place where it runs: what is trained, asked, saved and moved.

It lies under every face: `fastmlp.MLP` documents and checks, and hands on to a learner; the training loop, checkpoints
and files know learners alone.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_integer
from fastmlp.backends.choosing import BackendChoice
from fastmlp.engine.batches import check_batch_size
from fastmlp.engine.checks import check_data, check_inputs, check_outputs, refuse_nonfinite
from fastmlp.engine.inference import Inference
from fastmlp.engine.inputs import InputRules
from fastmlp.engine.predictor import Predictor
from fastmlp.engine.sessions import SessionPool
from fastmlp.floating import quiet
from fastmlp.network.layout import layout_of
from fastmlp.network.plan import Plan, Precision
from fastmlp.network.state import TrainState, initial_parameters

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.backends.data import HostData
    from fastmlp.engine.metrics import Measure
    from fastmlp.engine.progress import PausedRun
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.network.spec import NetworkSpec


class _Made(NamedTuple):
    """The plan of training that was made last, and what for: the next fit most often asks for the same."""

    spec: NetworkSpec
    optimizer: Optimizer
    plan: Plan


class Learner:
    """A network, its numbers, and what it keeps where it runs.

    One thread at a time may change it, see `exclusive`; several may ask it at once.

    Attributes
    ----------
    spec : NetworkSpec
    dtype : numpy.dtype
        In which it computes.
    state : TrainState
        On the backend.
    backend : Backend
    sessions : SessionPool
        On that backend.
    inference : Inference
        By these sessions.
    class_names : tuple of str or None
        Of the outputs; files keep them.
    rules : InputRules
        What it knows of its inputs: names and scale, which files keep too.
    paused : PausedRun or None
        The run of the checkpoint that it was loaded from, until something changes it.

    Parameters
    ----------
    spec, dtype, backend, state
    """

    def __init__(self, spec: NetworkSpec, dtype: np.dtype[Any], backend: Backend, state: TrainState) -> None:
        self.spec, self.dtype, self.state = spec, dtype, state
        self.class_names: tuple[str, ...] | None = None
        self.rules = InputRules(dtype, None, None)
        self.paused: PausedRun | None = None
        self._changing, self._changed_by = threading.Lock(), 0
        self._made: _Made | None = None
        self._settle(backend)

    @classmethod
    @quiet
    def drawn(cls, spec: NetworkSpec, dtype: np.dtype[Any], backend: Backend, key: int) -> Learner:
        """Return a new network, its weights drawn from a 64-bit seed."""
        layout = layout_of(spec.units, dtype.itemsize)
        with backend.working():
            params = backend.copy(initial_parameters(spec, layout, dtype, key))
        return cls(spec, dtype, backend, TrainState(layout, params, key))

    def _settle(self, backend: Backend) -> None:
        """Work on this backend from now on."""
        self.backend, self.sessions = backend, SessionPool(backend)
        self.choice = BackendChoice(backend.name, "asked for")
        self.inference = Inference(self.sessions, self.dtype)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Let only one thread train or move it, on the backend's own stream and quietly; a second one is told so."""
        if not self._changing.acquire(blocking=False):
            if self._changed_by not in (0, os.getpid()):  # 0: by a thread of this process that is just beginning
                raise RuntimeError(
                    "this process was forked off while this model was being trained, and its weights here may be of no "
                    "step; load the model from a file here, or start the process by 'spawn'"
                )
            raise RuntimeError(
                "this model is being trained already (in another thread, or by the fit whose callback this is); "
                "wait for it, or train a copy.deepcopy of the model"
            )
        self._changed_by = os.getpid()
        try:
            with self.backend.working(), np.errstate(all="ignore"):
                yield
        finally:
            self._changed_by = 0
            self._changing.release()

    # --- what training needs ---

    def plan(self, batch: int, optimizer: Optimizer) -> Plan:
        """Return the plan of training steps on so many rows."""
        made = self._made
        if made is None or made.spec is not self.spec or made.optimizer is not optimizer or made.plan.batch != batch:
            plan = Plan(self.spec, batch, Precision.of(self.dtype), True, optimizer.without_schedule())
            made = self._made = _Made(self.spec, optimizer, plan)
        return made.plan

    @quiet
    def data(
        self,
        x: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        suffix: str = "",
        training: bool = False,
        later: bool = False,
        rules: InputRules | None = None,
    ) -> HostData:
        """Return checked data for this network, see `check_data`; `rules` where those of its inputs are others."""
        # where the lowest layer rests no gradient is multiplied by the inputs, and an activation may bound its outputs
        later = later and self.spec.lowest_trainable == 0
        options: dict[str, Any] = {"backend": self.backend, "suffix": suffix, "training": training, "later": later}
        return check_data(self.spec, rules or self.rules, x, y, sample_weight, **options)

    # --- asking ---

    @quiet
    def answer(self, turn: Callable[[Array], Array], x: ArrayLike, batch_size: int | None = None) -> Array:
        """Return what a function makes of the outputs (n, K) for a user's inputs, where the inputs are."""
        outputs = None
        if batch_size is None and self.rules.take_as_is(x, self.spec.units[0]):
            outputs = self.inference.outputs_of_few(self.spec, self.state.evaluated, x, self.rules.largest)
        if outputs is None:
            rows = check_inputs(x, self.spec.units[0], self.backend, self.rules, may_wait=False, later=True)
            size = check_batch_size(batch_size)
            outputs = self.inference.outputs(self.spec, self.state.evaluated, rows, size)
            if isinstance(outputs, np.ndarray):  # elsewhere to look would be to wait
                check_outputs(self.spec.loss, outputs, rows, self.backend, self.dtype)
        with self.backend.placed():
            return turn(outputs)

    @quiet
    def predictor(self) -> Predictor:
        """Return a function that predicts one example at a time, with a copy of the weights."""
        return Predictor(self.backend, self.spec, self.rules, self.state.evaluated)

    @quiet
    def figures(
        self, data: HostData, metrics: Mapping[str, Measure], totals: Callable[[HostData], Any] | None = None
    ) -> dict[str, float]:
        """Return loss, accuracy where there is one, and metrics, of checked data; no loss is NaN because inputs are.

        `totals` adds the losses up, see `Inference.totals`, where others have a part in that.
        """
        asked = self.spec, self.state.evaluated, data
        found = self.inference.figures_of(self.spec, totals(data) if totals else self.inference.totals(*asked))
        if math.isnan(found["loss"]):
            refuse_nonfinite(data.x, self.backend, "x")
        return {**found, **self.inference.metric_values(*asked, metrics)}

    @quiet
    def loss_and_gradients(self, data: HostData) -> tuple[float, list[Array]]:
        """Return the loss of all rows as one batch, L2 included and dropout left out, and [dW1, db1, ...]."""
        return self.inference.loss_and_gradients(self.spec, self.state.params, data)

    # --- its numbers ---

    def to_numpy(self, array: Array) -> NDArray[Any]:
        """Return an array of its own as NumPy's."""
        with self.backend.working():
            return self.backend.to_numpy(array)

    @quiet
    def set_parameters(self, params: NDArray[Any], average: NDArray[Any]) -> None:
        """Set the flat parameters, and their average where one is kept; the moments stay.

        Parameters
        ----------
        params, average : (size,) array
            NumPy's.
        """
        self.paused = None
        with self.backend.working():
            self.state.params[...] = self.backend.asarray(params)
            if self.state.average is not None:
                self.state.average[...] = self.backend.asarray(average)

    def freeze(self, layers: Iterable[int], frozen: bool) -> None:
        """Let layers, counted from 0 or back from -1, keep their weights and biases, or train."""
        flags = list(self.spec.frozen)
        for layer in layers:
            number = check_integer("layers", layer)
            if not -len(flags) <= number < len(flags):
                raise ValueError(
                    f"layers: there is no layer {layer}; the network has {len(flags)}, 0..{len(flags) - 1}"
                )
            flags[number] = frozen
        self.spec = replace(self.spec, frozen=tuple(flags))

    def weights(self) -> list[NDArray[Any]]:
        """Return copies of the weights that predict, [W1 (I, O), b1 (O,), ...]."""
        flat = self.to_numpy(self.state.evaluated)
        return [array.copy() for pair in self.state.layout.views(flat) for array in pair]

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters, and of their average if there is one, by the names they have in files."""
        return {name: array.copy() for name, array in self.state.named(self.to_numpy).items()}

    @quiet
    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Set the parameters, and their average if there is one, from a `snapshot`."""
        layout, prefix = self.state.layout, "" if self.state.average is None else "average."
        self.set_parameters(layout.flat(arrays, "", self.dtype), layout.flat(arrays, prefix, self.dtype))

    # --- where it is ---

    def move(self, backend: Backend, choice: BackendChoice | None = None) -> None:
        """Go to another backend, moments and all; `choice` tells why, where it was not asked for."""
        with self.exclusive():
            self.sessions.close()
            there = self.state.copied(self.backend.to_numpy)
            with backend.working():
                self.state = there.copied(backend.copy)
            self._settle(backend)
            self.choice = choice or self.choice

    def __getstate__(self) -> dict[str, Any]:
        return {
            "spec": self.spec,
            "dtype": self.dtype.name,
            "backend": self.backend,
            "choice": self.choice,
            "class_names": self.class_names,
            "rules": self.rules,
            "state": self.state.copied(self.to_numpy),
        }

    def __setstate__(self, values: dict[str, Any]) -> None:
        backend: Backend = values["backend"]
        with backend.working():
            state = values["state"].copied(backend.copy)
        Learner.__init__(self, values["spec"], np.dtype(values["dtype"]), backend, state)
        self.class_names, self.rules = values["class_names"], values["rules"]
        choice = values.get("choice", self.choice)  # pickles of earlier versions have none
        self.choice = choice if choice.name == backend.name else self.choice
