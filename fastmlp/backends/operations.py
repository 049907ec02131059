"""The operations of a backend, each writing into arrays that it is given: memory, and what layers are made of.

A backend implements the fine operations; each returns None and fills the arrays that it is given.  What is composed of
them (`base`) is what the loop asks for.

Rows are examples: x (N, I), W (I, O), b (O,), outputs (N, O).  Arguments are checked at the faces that users meet, not
here.  Row weights may be None, which means 1 each.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.decisions import Decisions
from fastmlp.backends.foreign import lies_on_gpu
from fastmlp.backends.registry import restored_backend
from fastmlp.errors import DataError
from fastmlp.formulas.activations import get_activation

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.data import HostData
    from fastmlp.formulas.losses import Loss
    from fastmlp.formulas.optimizers import Optimizer, StepScalars
    from fastmlp.network.plan import Plan
    from fastmlp.parallel.group import Carrier, Group
    from fastmlp.parallel.tree import Share

_NOTHING: AbstractContextManager[object] = nullcontext()


class Operations(ABC):
    """What a backend does itself.  Holds compiled things and settings, never a model's numbers."""

    name: ClassVar[str]
    chunk_bytes: int = 16 * 2**20
    """Memory that the activations of a chunk of rows may take in prediction: of what stays in a cache."""
    chunk_rows: ClassVar[int] = 4096
    """Rows, at most, of such a chunk."""

    @property
    def options(self) -> dict[str, Any]:
        """What `fastmlp.get_backend` was given beside the name, defaults left out."""
        return {}

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: Any) -> Self:
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
                "there with model.to('cupy'), give backend='cupy' where it is made, or pass a copy in host memory"
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

    def marked(self, name: str) -> AbstractContextManager[object]:
        """Return a context that a profiler of the device shows under a name, where there is one: an NVTX range."""
        return _NOTHING

    def of_rank(self, group: Group) -> Self:
        """Return the backend on which this rank of a group trains: this one, or one like it on another device.

        All ranks call this alike.  ValueError where nothing carries arrays of this backend between them.
        """
        if not isinstance(self.empty((1,), np.dtype(np.float32)), np.ndarray):
            raise ValueError(
                f"parallel: nothing carries arrays of the {self.name} backend between ranks, only NumPy's and CuPy's; "
                "move the model with model.to('numba'), or leave out parallel"
            )
        return self

    def carrying(self, group: Group) -> AbstractContextManager[Carrier]:
        """Return a context that lends what carries arrays of this backend between the ranks of a group.

        All ranks call this alike, on the stream on which they train.
        """
        return nullcontext(group)

    def rows_at_once(self, row_bytes: int) -> int:
        """Return how many rows of an array in host memory may be brought to the backend at once."""
        return sys.maxsize

    def memory_estimate(self, plan: Plan, data: HostData, share: Share | None = None) -> dict[str, int]:
        """Return the bytes that training takes here, by what they are for; nothing is allocated.

        Parameters
        ----------
        plan : Plan
        data : HostData
            What would be trained on; neither read nor copied.
        share : Share, optional
            What this rank has of a run of several.
        """
        assert plan.optimizer is not None, "the plan was made for prediction"
        buffers = 1 + plan.optimizer.moments + (plan.optimizer.ema is not None)
        return {
            "parameters": buffers * plan.layout.size * plan.precision.weights.itemsize,
            "data": 0,
            "order": 8 * len(data),
            "workspace": self.workspace_bytes(plan, data, share),
        }

    @abstractmethod
    def workspace_bytes(self, plan: Plan, data: HostData, share: Share | None) -> int:
        """Return the bytes that training steps work in, one rank's share of them where it has one."""

    def check_memory(self, plan: Plan, data: HostData, more: int, share: Share | None = None) -> None:
        """Raise MemoryError, with the figures and what would fit, where training on some data does not fit.

        Parameters
        ----------
        plan : Plan
        data : HostData
        more : int
            Bytes of moments and the like that are to be made first.
        share : Share, optional
            What this rank has of a run of several.
        """
        return

    def zeros(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Return an array of zeros."""
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def staging(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return zeros in host memory, from and to which this backend copies fastest."""
        array: NDArray[Any] = self.zeros(shape, dtype)
        return array

    def copy(self, array: NDArray[Any] | Array) -> Array:
        """Return a copy of an array, NumPy's or this backend's, on this backend."""
        own = self.empty(array.shape, array.dtype)
        own[...] = self.asarray(array)
        return own

    def picked(self, array: Array, rows: NDArray[np.intp]) -> Array:
        """Return copies of some rows of an array of this backend."""
        if array.dtype.name not in ("float32", "float64"):  # to gather bytes is to divide them
            return self.asarray(self.to_numpy(array)[rows])
        found = self.empty((len(rows), *array.shape[1:]), array.dtype)
        self.gather_rows(array, self.asarray(rows), found)
        return found

    def synchronize(self) -> None:
        """Wait until everything that was asked for is done."""
        return

    def memory_info(self) -> dict[str, int]:
        """Return what is known of the memory that arrays live in, in bytes; may be empty."""
        return {}

    def decisions(self, what: str, dtype: np.dtype[Any]) -> Decisions:
        """Return what trials decided on this machine, by the first part of a file's name and a type."""
        return Decisions(None, {})

    def choices(self) -> dict[str, Any]:
        """Return what the bits of a result depend on besides the numbers put in: this backend, its threads, its BLAS.

        Checkpoints keep it, and warn where a run goes on under other choices.
        """
        return {"backend": self.name}

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

    def dense_activate(
        self, activation: str, x: Array, w: Array, b: Array, z: Array, slope: Array | None, scratch: tuple[Array, Array]
    ) -> None:
        """`dense_forward` into z, then `activate`, where there is anything to do; in as few passes as there can be."""
        self.dense_forward(x, w, b, z)
        if slope is not None or not get_activation(activation).is_identity:
            self.activate(activation, z, slope, scratch)

    @abstractmethod
    def activation_backward(self, activation: str, a: Array, slope: Array | None, d: Array, scratch: Array) -> None:
        """``d *= slope``: the gradient with respect to activations becomes that with respect to pre-activations.

        Where slope is None it is told by the activation: 1 for identity, [a > 0] for relu.  All (N, O); `scratch` is
        overwritten.
        """

    @abstractmethod
    def dropout(
        self,
        a: Array,
        slope: Array | None,
        rate: float,
        key: int,
        step: int,
        layer: int,
        scratch: Array,
        first_row: int = 0,
    ) -> None:
        """Multiply a, and slope where it is given, by ``mask / (1 - rate)``.

        The mask keeps the unit in row i and column j where the random word of the counter
        (j // 4, first_row + i, step, DROPOUT << 24 | layer) is at least `random_bits.keep_threshold`.

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
        first_row : int
            The place in the batch of the first of these rows.
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
    def totals(self, row_stats: Array, row_weights: Array | None, out: Array) -> None:
        """Write the sums over rows of ``w_i l_i``, ``w_i`` and ``w_i hit_i``; row_stats (2, N), out (3,) float64."""

    @abstractmethod
    def dense_backward(
        self, x: Array, dz: Array, w: Array, dw: Array | None, db: Array | None, dx: Array | None
    ) -> None:
        """``dw = x.T @ dz``, ``db = sum of dz over rows``, ``dx = dz @ w.T``; each only where it is given."""

    @abstractmethod
    def add_scaled(self, target: Array, source: Array, factor: float, scratch: Array) -> None:
        """``target += factor * source``, flat arrays; for L2."""

    def add(self, target: Array, source: Array) -> None:
        """``target += source``, flat arrays; for the gradients of shards."""
        np.add(target, source, out=target)

    @abstractmethod
    def squared_norm(self, array: Array) -> float:
        """Return the sum of squares of a flat array, in float64."""

    def all_finite(self, arrays: Sequence[Array]) -> bool:
        """Return whether all numbers of some flat arrays are finite; where it is False that has to be looked into."""
        return all(bool(np.isfinite(self.to_numpy(array)).all()) for array in arrays)

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
