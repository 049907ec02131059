"""The backend interface, and the reference: coarse operations composed of fine ones.

A backend implements the fine operations; each returns None and fills the arrays that it is given.  The coarse ones
(`predict`, `evaluate`, `loss_and_gradients`, `train_steps`) are composed of them here, and that composition is their
specification: a backend overrides one only to do the same faster.

Rows are examples: x (N, I), W (I, O), b (O,), outputs (N, O).  Arguments are checked at the faces that users meet, not
here.  Row weights may be None, which means 1 each.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends import restored_backend
from fastmlp.backends.exchange import lies_on_gpu
from fastmlp.errors import DataError
from fastmlp.optimizers import StepScalars
from fastmlp.session import RowViews, Session, training_bytes

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.batching import HostData
    from fastmlp.losses import Loss
    from fastmlp.optimizers import Optimizer
    from fastmlp.plan import Plan
    from fastmlp.state import TrainState


_NOTHING: AbstractContextManager[object] = nullcontext()


class Rows(Protocol):
    """Data on a backend: inputs (n, I), targets (n,) or (n, K), and row weights (n,) or None."""

    @property
    def x(self) -> Array:
        """The inputs."""

    @property
    def y(self) -> Array:
        """The targets."""

    @property
    def weights(self) -> Array | None:
        """The row weights."""


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


class Backend(ABC):
    """Where a network runs.  Holds compiled things and settings, never a model's numbers."""

    name: ClassVar[str]

    @property
    def options(self) -> dict[str, Any]:
        """What `fastmlp.get_backend` was given beside the name, defaults left out."""
        return {}

    def __copy__(self) -> Backend:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: Any) -> Backend:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # a model pickled where there is a GPU opens where there is none
        return restored_backend, (self.name, self.options)

    # --- memory ---

    @abstractmethod
    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of this backend, its contents undefined, its start aligned to 128 bytes."""

    @abstractmethod
    def asarray(self, array: Any) -> Array:
        """Return `array` on this backend, without a copy where that can be."""

    @abstractmethod
    def to_numpy(self, array: Array) -> NDArray[Any]:
        """Return an array of this backend as a NumPy array, without a copy where that can be."""

    def take(self, array: Any, argument: str) -> Array | None:
        """Return an array that lies on a GPU as one of this backend's, without a copy; None where NumPy can read it.

        Parameters
        ----------
        array : array of any library
        argument : str
            What it was given as.

        Raises
        ------
        DataError
            It lies where this backend cannot reach it; the message says where, and the cure.
        """
        if lies_on_gpu(array):
            whose = f"{type(array).__module__}.{type(array).__name__}"
            raise DataError(
                f"{argument} lies on a GPU, a {whose}, and the model runs on the {self.name} backend; move the model "
                "there with model.to('cupy'), or pass a copy in host memory"
            )
        return None

    def working(self) -> AbstractContextManager[object]:
        """Return a context for the work of a call: a stream of this backend's own, where there are streams.

        It begins after what the caller has queued, and ends before what the caller queues next.
        """
        return _NOTHING

    def placed(self) -> AbstractContextManager[object]:
        """Return a context in which arrays are made where this backend is, but belong to the caller."""
        return _NOTHING

    def rows_at_once(self, row_bytes: int) -> int:
        """Return how many rows of an array in host memory may be brought to the backend at once."""
        return sys.maxsize

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of zeros."""
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def copy(self, array: NDArray[Any] | Array) -> Array:
        """Return a copy of an array, NumPy's or this backend's, on this backend."""
        own = self.empty(array.shape, array.dtype)
        own[...] = self.asarray(array)
        return own

    def synchronize(self) -> None:
        """Wait until everything that was asked for is done."""
        return

    def memory_info(self) -> dict[str, int]:
        """Return what is known of the memory that arrays live in, in bytes; may be empty."""
        return {}

    def memory_estimate(self, plan: Plan, data: HostData) -> dict[str, int]:
        """Return the bytes that training takes here, by what they are for; nothing is allocated.

        Parameters
        ----------
        plan : Plan
        data : HostData
            What would be trained on; neither read nor copied.
        """
        assert plan.optimizer is not None, "the plan was made for prediction"
        buffers = 1 + plan.optimizer.moments + (plan.optimizer.ema is not None)
        return {
            "parameters": buffers * plan.layout.size * plan.dtype.itemsize,
            "data": 0,
            "order": 8 * len(data),
            "workspace": self.workspace_bytes(plan, data),
        }

    def workspace_bytes(self, plan: Plan, data: HostData) -> int:
        """Return the bytes that training steps work in."""
        return training_bytes(plan, data)

    def check_memory(self, plan: Plan, data: HostData, more: int) -> None:
        """Raise MemoryError, with the figures and what would fit, where training on some data does not fit.

        Parameters
        ----------
        plan : Plan
        data : HostData
        more : int
            Bytes of moments and the like that are to be made first.
        """
        return

    def choices(self) -> dict[str, Any]:
        """Return what the bits of a result depend on besides the numbers put in: this backend, its threads, its BLAS.

        Checkpoints keep it, and warn where a run goes on under other choices.
        """
        return {"backend": self.name}

    def open(self, plan: Plan) -> Session:
        """Return a session for `plan`."""
        return Session(self, plan)

    # --- fine operations ---

    @abstractmethod
    def gather_rows(self, source: Array, order: Array | slice, out: Array, scratch: Array | None = None) -> None:
        """``out[i] = source[order[i]]`` in the type of `out`; a uint8 source is divided by 255 where out is float.

        Parameters
        ----------
        source : (n, I) or (n,) array
            Of any real type; not changed.
        order : (N,) intp, or a slice
            Rows, all within the source.
        out : (N, I) or (N,) array
            Overwritten.
        scratch : like `out`, in the type of the source
            Overwritten; needed only where the types differ.
        """

    @abstractmethod
    def dense_forward(self, x: Array, w: Array, b: Array, out: Array) -> None:
        """``out = x @ w + b`` with x (N, I), w (I, O), b (O,), out (N, O)."""

    @abstractmethod
    def activate(self, activation: str, z: Array, slope: Array | None, scratch: tuple[Array, Array]) -> None:
        """Z becomes f(z); slope, where it is given, becomes f'(z); all (N, O)."""

    @abstractmethod
    def activation_backward(self, activation: str, a: Array, slope: Array | None, d: Array, scratch: Array) -> None:
        """``d *= slope``: the gradient with respect to activations becomes that with respect to pre-activations.

        Where slope is None it is told by the activation: 1 for identity, [a > 0] for relu.  All (N, O); `scratch` is
        overwritten.
        """

    @abstractmethod
    def dropout(
        self, a: Array, slope: Array | None, rate: float, key: int, step: int, layer: int, scratch: Array
    ) -> None:
        """Multiply a, and slope where it is given, by ``mask / (1 - rate)``.

        The mask keeps the unit in row i and column j where the random word of the counter
        (j // 4, i, step, DROPOUT << 24 | layer) is at least `random_bits.keep_threshold`; see `random_bits`.

        Parameters
        ----------
        a, slope : (N, O) float
            Overwritten.
        rate : float
            In (0, 1).
        key, step, layer : int
            The rest of the counter; layer 0 is the input of the network.
        scratch : (N, O) float
            Overwritten.
        """

    @abstractmethod
    def loss(
        self,
        loss: Loss,
        outputs: Array,
        targets: Array,
        row_weights: Array | None,
        inverse_total: float,
        d_outputs: Array,
        row_losses: Array,
        scratch: tuple[Array, Array],
    ) -> None:
        """Write each row's loss l_i, and the gradient of ``sum(w_i l_i) * inverse_total``, in one pass.

        outputs, d_outputs (N, K); targets (N,) int64 or (N, K); row_weights, row_losses (N,).
        """

    @abstractmethod
    def hits(self, loss: Loss, outputs: Array, targets: Array, out: Array) -> None:
        """Write 1 for each row that is predicted rightly, 0 for the others; out (N,)."""

    @abstractmethod
    def totals(self, row_stats: Array, row_weights: Array | None) -> tuple[float, float, float]:
        """Return the sums over rows of ``w_i l_i``, ``w_i`` and ``w_i hit_i``, in float64; row_stats (2, N)."""

    @abstractmethod
    def dense_backward(
        self, x: Array, dz: Array, w: Array, dw: Array | None, db: Array | None, dx: Array | None
    ) -> None:
        """``dw = x.T @ dz``, ``db = sum of dz over rows``, ``dx = dz @ w.T``; each only where it is given."""

    @abstractmethod
    def add_scaled(self, target: Array, source: Array, factor: float, scratch: Array) -> None:
        """``target += factor * source``, flat arrays; for L2."""

    @abstractmethod
    def squared_norm(self, array: Array) -> float:
        """Return the sum of squares of a flat array, in float64."""

    @abstractmethod
    def scale(self, array: Array, factor: float) -> None:
        """``array *= factor``."""

    @abstractmethod
    def update(
        self,
        optimizer: Optimizer,
        p: Array,
        g: Array,
        moments: Sequence[Array],
        decay: float,
        scalars: StepScalars,
        scratch: Array,
    ) -> None:
        """``p *= 1 - rate * decay``, then one step of the optimizer; flat arrays (n,), all overwritten."""

    @abstractmethod
    def max_norm(self, w: Array, limit: float) -> None:
        """Scale each column of w (I, O) down to the 2-norm `limit` where it exceeds it."""

    @abstractmethod
    def average(self, mean: Array, p: Array, decay: float, scratch: Array) -> None:
        """``mean = decay * mean + (1 - decay) * p``, flat arrays."""

    # --- coarse operations: composed here, and this is what they mean ---

    def predict(self, session: Session, params: Array, x: Array, out: Array) -> None:
        """Write the outputs of the network (logits where the loss takes logits).

        Parameters
        ----------
        session : Session
            Without gradients; its batch is how many rows are worked on at once.
        params : (size,) float
            Flat parameters.
        x : (n, I) array
            Not changed.
        out : (n, K) float
            Overwritten.
        """
        batch = session.plan.batch
        for start in range(0, len(x), batch):
            part = slice(start, min(start + batch, len(x)))
            views = session.rows(part.stop - start)
            self._load(session, x, part, views.x)
            self._forward(session, views, session.layers_of("predict", params))
            out[part] = views.z[-1]

    def bind_predict(self, session: Session, params: Array, x: Array, out: Array) -> Callable[[], object]:
        """Return a function that does `predict` on these arrays, whatever they hold when it is called."""
        return lambda: self.predict(session, params, x, out)

    def evaluate(self, session: Session, params: Array, data: Rows) -> tuple[float, float, float]:
        """Return the sums over the rows of ``w_i l_i``, ``w_i`` and ``w_i hit_i``, without L2.

        Parameters as for `predict`; `data` holds at least one row.
        """
        batch, totals = session.plan.batch, np.zeros(3)
        for start in range(0, len(data.x), batch):
            part = slice(start, min(start + batch, len(data.x)))
            views = session.rows(part.stop - start)
            self._load(session, data.x, part, views.x)
            self._forward(session, views, session.layers_of("evaluate", params))
            totals += self._losses(session, views, data, part, 1.0)
        loss, weight, hits = totals.tolist()
        return loss, weight, hits

    def loss_and_gradients(self, session: Session, params: Array, data: Rows, inverse_total: float) -> float:
        """Return the loss of all rows as one batch, L2 included, and leave its gradients in ``session.grads``.

        Parameters
        ----------
        session : Session
            With gradients, for at least as many rows as there are.
        params : (size,) float
            Flat parameters.
        data : Rows
        inverse_total : float
            1 over the sum of the row weights.
        """
        plan, part = session.plan, slice(0, len(data.x))
        views, layers = session.rows(part.stop), session.layers_of("params", params)
        self._load(session, data.x, part, views.x)
        self._forward(session, views, layers)
        loss, _, _ = self._losses(session, views, data, part, inverse_total)
        self._backward(session, views, layers)
        self._add_l2(session, params)
        norms = sum(self.squared_norm(params[s.slice]) for s in plan.segments if s.is_weight) if plan.spec.l2 else 0.0
        return loss * inverse_total + 0.5 * plan.spec.l2 * norms

    def prepare(self, session: Session, check: Callable[[], None]) -> None:  # noqa: B027 (most have nothing to do)
        """Do what the first step of a session would wait for, such as compiling.

        `check` is called every now and then; what it raises (KeyboardInterrupt) ends the preparation.
        """

    def train_steps(
        self,
        session: Session,
        state: TrainState,
        data: Rows,
        order: Array,
        table: NDArray[np.float64],
        first: int,
        totals: NDArray[np.float64],
    ) -> StepReport:
        """Train on consecutive batches of an epoch, as many as `table` has rows.

        Step i takes the rows ``order[(first + i) * batch:][:batch]``; the last batch of an epoch may be shorter.  A
        batch of total weight 0 changes nothing but the step counters.  A batch whose loss is not finite ends the call
        before it has changed anything.

        Parameters
        ----------
        session : Session
            Made for training; its batch is the batch size.
        state : TrainState
            Overwritten: parameters, moments, average, step counters.
        data : Rows
        order : (n,) intp
            The rows of the whole epoch, on this backend.
        table : (count, 5) float64
            One row a step, see `StepScalars`.
        first : int
            The number of the first step within the epoch.
        totals : (3,) float64
            The sums over rows of ``w_i l_i``, ``w_i`` and ``w_i hit_i`` are added, step by step.
        """
        batch = session.plan.batch
        for i, row in enumerate(table.tolist()):
            start = (first + i) * batch
            if not self._train_step(session, state, data, order[start : start + batch], StepScalars(*row), totals):
                return StepReport(i, False)
            state.step += 1
            state.optimizer_step += 1
        return StepReport(len(table), True)

    def first_nonfinite(
        self, session: Session, state: TrainState, data: Rows, order: Array, position: int
    ) -> tuple[int, str]:
        """Tell where the loss of a batch stops being finite: run its forward pass step by step and look.

        Returns
        -------
        (row, where)
            The row of the data, or -1 where no single row is to blame; and the first array that is not finite.
        """
        batch = session.plan.batch
        rows = order[position * batch : (position + 1) * batch]
        views, layers = session.rows(len(rows)), session.layers_of("params", state.params)
        index = self.to_numpy(rows)

        def bad_row(array: Array) -> int | None:
            finite = np.isfinite(self.to_numpy(array)).reshape(len(index), -1).all(axis=1)
            return None if finite.all() else int(index[np.argmin(finite)])

        self._load(session, data.x, rows, views.x)
        if (row := bad_row(views.x)) is not None:
            return row, "the input"
        for layer, (w, b) in enumerate(layers):
            for what, array in (("weights", w), ("biases", b)):
                if not np.isfinite(self.to_numpy(array)).all():
                    return -1, f"the {what} of layer {layer}"
        found: list[tuple[int, str]] = []

        def look(layer: int, what: str) -> None:
            row = bad_row(views.z[layer])
            if row is not None and not found:
                found.append((row, f"the {what} of layer {layer}"))

        self._forward(session, views, layers, key=state.key, step=state.step, look=look)
        if found:
            return found[0]
        self._losses(session, views, data, rows, 1.0)
        row = bad_row(views.row_stats[0])
        return (-1, "the sum of the row losses") if row is None else (row, "the loss of the row")

    # --- parts of the coarse operations ---

    def _load(self, session: Session, source: Array, rows: Array | slice, out: Array) -> None:
        """Gather rows of inputs, targets or row weights, with memory to convert in where the types differ."""
        scratch = None
        if source.dtype != out.dtype:
            whole = session.buffer("gather", (session.plan.batch, *out.shape[1:]), source.dtype)
            scratch = whole[: len(out)]
        self.gather_rows(source, rows, out, scratch)

    def _forward(
        self,
        session: Session,
        views: RowViews,
        layers: list[tuple[Array, Array]],
        *,
        key: int = 0,
        step: int = 0,
        look: Any = None,
    ) -> None:
        spec = session.plan.spec
        a = views.x
        if spec.dropout[0]:
            scratch = session.buffer("input dropout", session.x.shape, session.plan.dtype)[: len(a)]
            self.dropout(a, None, spec.dropout[0], key, step, 0, scratch)
        for layer, (w, b) in enumerate(layers):
            z, slope = views.z[layer], views.slopes[layer]
            self.dense_forward(a, w, b, z)
            if look is not None:
                look(layer, "pre-activations")
            if slope is not None or spec.activations[layer] != "identity":
                self.activate(spec.activations[layer], z, slope, views.scratch[layer])
            if look is not None:
                look(layer, "activations")
            if layer + 1 < spec.layers and spec.dropout[layer + 1]:
                self.dropout(z, slope, spec.dropout[layer + 1], key, step, layer + 1, views.scratch[layer][0])
            a = z

    def _losses(
        self, session: Session, views: RowViews, data: Rows, rows: Array | slice, inverse_total: float
    ) -> tuple[float, float, float]:
        """Fill the row losses, the hits and the gradient of the outputs; return the totals of the batch."""
        loss, n = session.plan.spec.loss, len(views.x)
        targets = session.targets(data.y)[:n]
        self._load(session, data.y, rows, targets)
        weights = None
        if data.weights is not None:
            weights = views.row_weights
            self._load(session, data.weights, rows, weights)
        outputs, d_outputs, scratch = views.z[-1], views.dz[-1], views.scratch[-1]
        self.loss(loss, outputs, targets, weights, inverse_total, d_outputs, views.row_stats[0], scratch)
        self.hits(loss, outputs, targets, views.row_stats[1])
        return self.totals(views.row_stats, weights)

    def _backward(self, session: Session, views: RowViews, layers: list[tuple[Array, Array]]) -> None:
        spec = session.plan.spec
        lowest = spec.lowest_trainable
        grads = session.layers_of("grads", session.grads)
        for layer in range(spec.layers - 1, lowest - 1, -1):
            dz = views.dz[layer]
            a, slope = views.z[layer], views.slopes[layer]
            if slope is not None or spec.activations[layer] != "identity":
                self.activation_backward(spec.activations[layer], a, slope, dz, views.scratch[layer][0])
            dw, db = (None, None) if spec.frozen[layer] else grads[layer]
            below = views.z[layer - 1] if layer else views.x
            dx = views.dz[layer - 1] if layer > lowest else None
            self.dense_backward(below, dz, layers[layer][0], dw, db, dx)

    def _add_l2(self, session: Session, params: Array) -> None:
        if session.plan.spec.l2:
            scratch = session.buffer("l2", session.grads.shape, session.plan.dtype)
            for s in session.plan.segments:
                if s.is_weight:
                    part = s.slice
                    self.add_scaled(session.grads[part], params[part], session.plan.spec.l2, scratch[part])

    def _train_step(
        self,
        session: Session,
        state: TrainState,
        data: Rows,
        rows: Array,
        scalars: StepScalars,
        totals: NDArray[np.float64],
    ) -> bool:
        """Take one step; return False, having changed nothing, where the loss is not finite."""
        if scalars.inverse_total == 0:
            return True
        spec = session.plan.spec
        views, layers = session.rows(len(rows)), session.layers_of("params", state.params)
        self._load(session, data.x, rows, views.x)
        self._forward(session, views, layers, key=state.key, step=state.step)
        inverse_total = scalars.inverse_total
        optimizer = session.plan.optimizer
        if optimizer is not None and optimizer.folds_rate and not spec.l2:
            # all gradients are multiples of those of the outputs: a few numbers to scale instead of all parameters'
            inverse_total *= scalars.rate
            scalars = scalars._replace(rate=1.0)
        sums = self._losses(session, views, data, rows, inverse_total)
        if not math.isfinite(sums[0]):
            return False
        self._backward(session, views, layers)
        self._add_l2(session, state.params)
        self._update(session, state, scalars)
        if spec.max_norm is not None:
            for (w, _), still in zip(layers, spec.frozen, strict=True):
                if not still:
                    self.max_norm(w, spec.max_norm)
        if state.average is not None:
            parts = session.segments_of("average", state.average), session.segments_of("params", state.params)
            for mean, p in zip(*parts, strict=True):
                self.average(mean, p, scalars.average_decay, session.update_scratch)
        for i, value in enumerate(sums):
            totals[i] += value
        return True

    def _update(self, session: Session, state: TrainState, scalars: StepScalars) -> None:
        plan, grads = session.plan, session.grads
        optimizer = plan.optimizer
        assert optimizer is not None and grads is not None, "the session was made for prediction"
        if optimizer.clip_norm is not None:
            norm = math.sqrt(sum(self.squared_norm(grads[s.slice]) for s in plan.segments))
            if norm > optimizer.clip_norm:
                for s in plan.segments:
                    self.scale(grads[s.slice], optimizer.clip_norm / norm)
        params, gradients = session.segments_of("params", state.params), session.segments_of("grads", grads)
        moments = [session.segments_of(f"moment{i}", m) for i, m in enumerate(state.moments)]
        for i, s in enumerate(plan.updates):
            decay = optimizer.weight_decay if s.is_weight else 0.0
            own = [m[i] for m in moments]
            self.update(optimizer, params[i], gradients[i], own, decay, scalars, session.update_scratch)
