"""What the Numba backend keeps for one plan: the network as numbers, and the memory that kernels work in."""

from __future__ import annotations

import functools
import math
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cpu.choices import Choices
from fastmlp.backends.cpu.scratch import level2_bytes, scratch_size
from fastmlp.backends.session import Session
from fastmlp.floating import negligible
from fastmlp.formulas.random_bits import keep_threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastmlp.backends.base import Backend
    from fastmlp.backends.cpu.forms import Forms
    from fastmlp.backends.data import DeviceData
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState

CHUNK_BYTES = 512 * 1024
"""What the activations of a chunk of rows may take in prediction: half a second-level cache."""


class NumbaSession(Session):
    """A session whose memory is laid out for compiled calls; that of composed operations is there when it is needed."""

    def __init__(self, backend: Backend, plan: Plan, most_now: Callable[[], int], forms: Forms) -> None:
        super().__init__(backend, plan)
        self.takes_epochs = plan.compiled
        most = most_now()
        self.chosen = Choices(plan, self.chunk, most, forms)
        self._most, self._most_now = most, most_now

    def current(self) -> bool:
        # in prediction a limit counts once a second thread would be started
        return self.plan.optimizer is None or self._most == self._most_now()

    def choices(self) -> dict[str, Any]:
        return {**super().choices(), **self.chosen.described()}

    def adopt(self, choices: Mapping[str, Any]) -> None:
        if choices.get("backend") == self.backend.name and self.chosen.adopt(choices):
            self._forget()

    def choose_again(self) -> None:
        """Choose again where more is known of the machine now, but for a run that goes on."""
        if self.chosen.again():
            self._forget()

    def _forget(self) -> None:
        """Forget what was made for other choices."""
        for made_for_them in ("network", "memory", "_inference", "_networks"):
            self.__dict__.pop(made_for_them, None)

    @cached_property
    def network(self) -> Any:
        """The network as numbers, `kernels.cpu.structures.Network`."""
        from fastmlp.kernels.cpu import codes, structures

        plan, spec = self.plan, self.plan.spec
        real = plan.precision.products.type
        outputs = spec.units[1:]
        return structures.Network(
            units=np.array(spec.units, np.int64),
            weight_at=np.array([w for w, _ in plan.layout.offsets], np.int64),
            bias_at=np.array([b for _, b in plan.layout.offsets], np.int64),
            z_at=np.concatenate(([0], np.cumsum(outputs)))[:-1].astype(np.int64),
            activations=np.array([codes.code_of(a, codes.ACTIVATIONS) for a in spec.activations], np.int64),
            needs_slope=np.array(plan.needs_slope, np.bool_),
            frozen=np.array(spec.frozen, np.bool_),
            lowest=spec.lowest_trainable,
            thresholds=np.array([keep_threshold(rate) if rate else 0 for rate in spec.dropout], np.uint64),
            scales=np.array([1 / (1 - rate) for rate in spec.dropout], plan.precision.products),
            loss=codes.code_of(spec.loss.name, codes.LOSSES),
            loss_parameters=np.array(spec.loss.parameters, plan.precision.products),
            l2=real(spec.l2),
            max_norm=real(spec.max_norm or 0.0),
            forms=self.chosen.forms,
        )

    def network_of(self, rows: int) -> Any:
        """Return the network for a prediction of so many rows, which decide the forms of its products."""
        forms = self.chosen.forms_of(rows)
        networks: dict[bytes, Any] = self.__dict__.setdefault("_networks", {})
        found = networks.get(key := forms.tobytes())
        if found is None:
            found = networks[key] = self.network._replace(forms=forms)
        return found

    @cached_property
    def rule(self) -> Any:
        """The optimizer as numbers, `kernels.cpu.structures.Rule`."""
        assert self.plan.optimizer is not None
        return network_rule(self.plan.optimizer, self.plan.precision.weights)

    def _gradients_at_once(self) -> int:
        """How many gradients a thread writes down before it uses them: none where product and update are one."""
        from fastmlp.kernels.cpu import train
        from fastmlp.kernels.cpu.codes import DIRECT, GRADIENT

        optimizer, spec = self.plan.optimizer, self.plan.spec
        if optimizer is None or (optimizer.plain and not spec.l2):
            return 0
        pairs = list(zip(spec.units, spec.units[1:], strict=False))
        most = [int(train.IN_CACHE if f == DIRECT else train.IN_BLOCKS) for f in self.chosen.forms[:, GRADIENT]]
        return max(max(8 * o, min(size, i * o)) for (i, o), size in zip(pairs, most, strict=True))

    def buffers(self, state: TrainState) -> Any:
        """Return the flat buffers of a state, `kernels.cpu.structures.Buffers`."""
        from fastmlp.kernels.cpu import structures

        none, optimizer = self.buffer("none", (0,), self.plan.precision.weights), self.plan.optimizer
        assert optimizer is not None, "the session was made for prediction"
        grads = None if optimizer.clip_norm is None else self.grads
        buffers = structures.Buffers(state.params, grads, *optimizer.by_role(state.moments), state.average)
        return structures.Buffers(*(none if b is None else b for b in buffers))

    def memory_for(
        self,
        batch: int,
        threads: int,
        panels: int,
        *,
        training: bool,
        gradients: int = 0,
        parts: int = 1,
        sums: int = 0,
    ) -> Any:
        """Return memory to work on so many rows, `kernels.cpu.structures.Memory`.

        Parameters
        ----------
        batch, threads : int
        panels, gradients : int
            Numbers of each thread.
        training : bool
        parts : int, optional
            Into how many the work is divided.
        sums : int, optional
            Numbers of each part, of the lowest layer's products.
        """
        from fastmlp.kernels.cpu import structures
        from fastmlp.kernels.cpu.losses import work_size
        from fastmlp.kernels.cpu.threads import counters

        spec, allocate = self.plan.spec, self._allocate
        # a barrier's counter and a lane of scratch each on cache lines of their own
        widest = max(max(spec.units) + 32, 64)
        return structures.Memory(
            x=allocate(batch * spec.units[0]),
            z=allocate(batch * sum(spec.units[1:])),
            slopes=allocate(batch * sum(spec.units[1:]) if training and any(self.plan.needs_slope) else 0),
            dz=allocate(batch * (sum(spec.units[1:]) if training else spec.units[-1])),
            row_losses=allocate(batch),
            row_hits=allocate(batch),
            scratch=allocate(threads, 4, widest),
            gradients=allocate(threads, gradients),
            losses=allocate(threads, work_size(spec.units[-1])),
            parts=allocate(parts, sums),
            panels=allocate(threads, panels),
            counting=np.arange(batch, dtype=np.int64),
            order=np.empty(0 if training else batch, np.int64),
            norms=self.backend.empty((parts,), np.dtype(np.float64)),
            arrivals=self.backend.zeros((counters(threads),), np.dtype(np.int64)),
        )

    def _shares_features(self) -> bool:
        """Tell whether threads share out the lowest layer's products by input features instead of rows.

        What a thread fetches from the others is then a sum for each row and output, not the weights that they changed:
        that is less where a batch is small beside the inputs, for any number of threads (it is even at a third, with
        two threads and with sixteen, a part each: each sum is also written, and added up).  A thread's own sums have to
        stay in its second-level cache beside the weights that it multiplies.
        """
        from fastmlp.kernels.cpu.codes import BLAS, FORWARD

        inputs, outputs = self.plan.spec.units[:2]
        sums = self.plan.batch * outputs * self.plan.precision.products.itemsize
        small = 10 * self.plan.batch < 3 * inputs and 2 * sums <= level2_bytes()
        by_tiles = self.chosen.forms[0, FORWARD] != BLAS
        return bool(self.chosen.parts > 1 and small and self.plan.spec.lowest_trainable == 0 and by_tiles)

    def _scratch_size(self, rows: int) -> int:
        """How many numbers a thread needs for copies of what it multiplies."""
        units, dtype = self.plan.spec.units, self.plan.precision.products
        forms = self.chosen.forms
        if self.plan.optimizer is None:
            forms = np.concatenate((forms, self.chosen.forms_of(1)), axis=1)  # none has a third
        pairs = zip(units, units[1:], forms.tolist(), strict=False)
        return max(scratch_size(form, rows, i, o, dtype) for i, o, forms in pairs for form in forms)

    @cached_property
    def memory(self) -> Any:
        """The memory of a batch in training, shared by all threads, `kernels.cpu.structures.Memory`."""
        return self._training_memory()

    def _training_memory(self) -> Any:
        batch, parts = self.plan.batch, self.chosen.parts
        sums = batch * self.plan.spec.units[1] if self._shares_features() else 0
        sizes = {"gradients": self._gradients_at_once(), "parts": parts, "sums": sums}
        return self.memory_for(batch, self.chosen.threads, self._scratch_size(batch), training=True, **sizes)

    def training_bytes(self) -> int:
        """Return the bytes that training would allocate here; none is."""
        work = bytes_allocated(self, lambda counting: counting._training_memory())
        clips = self.plan.optimizer is not None and self.plan.optimizer.clip_norm is not None
        grads = self.plan.layout.size * self.plan.precision.weights.itemsize if clips else 0
        return work + 8 * self.plan.batch + grads

    @cached_property
    def chunk(self) -> int:
        """Rows that a thread works on at once in prediction: a whole packed block, for which W is copied, of many."""
        from fastmlp.kernels.cpu.products import MANY_ROWS

        width = self.plan.precision.products.itemsize * (self.plan.spec.units[0] + sum(self.plan.spec.units[1:]))
        return int(max(16, min(self.plan.batch, max(MANY_ROWS, CHUNK_BYTES // width // 16 * 16))))

    def inference_memory(self, threads: int) -> list[Any]:
        """Return memory for prediction, one for each thread."""
        found: list[Any] = self.__dict__.setdefault("_inference", [])
        while len(found) < threads:
            found.append(self.memory_for(self.chunk, 1, self._scratch_size(self.chunk), training=False))
        return found

    def inputs(self, x: NDArray[Any]) -> Any:
        """Return inputs alone as `kernels.cpu.structures.Data`."""
        from fastmlp.kernels.cpu import codes, structures

        labels = self.buffer("no labels", (0,), np.int64)
        none = self.buffer("none", (0,), self.plan.precision.products)
        nothing = self.buffer("no targets", (0,), np.uint8)
        x, kind = rows_as_bytes(x)
        return structures.Data(x, kind, labels, nothing, codes.UINT8, none)

    def data(self, data: DeviceData) -> Any:
        """Return data as `kernels.cpu.structures.Data`."""
        record = self.inputs(data.x)
        if data.y.ndim == 1:
            record = record._replace(labels=_writable(np.ascontiguousarray(data.y, np.int64)))
        else:
            targets, kind = rows_as_bytes(data.y)
            record = record._replace(targets=targets, targets_kind=kind)
        if data.weights is not None:
            record = record._replace(
                weights=_writable(np.ascontiguousarray(data.weights, self.plan.precision.products))
            )
        return record


def network_rule(optimizer: Optimizer, dtype: np.dtype[Any]) -> Any:
    """Return an optimizer as numbers, `kernels.cpu.structures.Rule`."""
    from fastmlp.kernels.cpu import codes, structures

    real, constants = dtype.type, optimizer.constants
    return structures.Rule(
        optimizer=codes.code_of(optimizer.name, codes.OPTIMIZERS),
        mean_decay=real(constants.mean_decay),
        square_decay=real(constants.square_decay),
        mean_share=real(1 - constants.mean_decay),
        square_share=real(1 - constants.square_decay),
        epsilon=real(constants.epsilon),
        nesterov=constants.nesterov,
        weight_decay=real(optimizer.weight_decay),
        clip_norm=real(optimizer.clip_norm or 0.0),
        smallest=real(negligible(dtype)),
        has_average=optimizer.ema is not None,
    )


class _Alias:
    """The memory of an array under another type; NumPy keeps this object, and it the array, alive."""

    def __init__(self, array: NDArray[Any], shape: tuple[int, ...], dtype: str) -> None:
        self._array = array
        self.__array_interface__ = {
            "data": (array.ctypes.data, False),
            "shape": shape,
            "typestr": dtype,
            "version": 3,
        }


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that says it may be written, so that compiled code has one type for it; nothing writes to it."""
    if array.flags.writeable:
        return array
    return np.asarray(_Alias(array, array.shape, array.dtype.str))


def rows_as_bytes(array: NDArray[Any]) -> tuple[NDArray[np.uint8], int]:
    """Return an array's memory as bytes, and the number of its type in `kernels.cpu.codes.SOURCES`."""
    array = np.ascontiguousarray(array)
    kind = _kinds().get(array.dtype)
    if kind is None:
        array = array.astype(np.float32 if array.dtype.itemsize < 4 else np.float64)
        kind = _kinds()[array.dtype]
    if array.flags.writeable:
        return array.reshape(-1).view(np.uint8), kind
    return np.asarray(_Alias(array, (array.nbytes,), "|u1")), kind


@functools.cache
def _kinds() -> dict[np.dtype[Any], int]:
    from fastmlp.kernels.cpu import codes

    return {np.dtype(name): kind for kind, name in enumerate(codes.SOURCES)}


def bytes_allocated(session: NumbaSession, make: Callable[[NumbaSession], object]) -> int:
    """Return the bytes that a function of a session would allocate of it; none is."""
    sizes: list[int] = []

    def note(*shape: int) -> Any:
        sizes.append(math.prod(shape) * session.plan.precision.products.itemsize)

    counting = copy(session)
    counting._allocate = note  # type: ignore[method-assign]
    make(counting)
    return sum(sizes)
