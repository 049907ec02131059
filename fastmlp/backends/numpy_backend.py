"""The NumPy backend: every operation written to be read, and the reference that the others are held against."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from ctypes import addressof, c_char
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.base import Backend
from fastmlp.backends.session import CHUNK
from fastmlp.floating import quiet
from fastmlp.formulas.activations import get_activation
from fastmlp.formulas.random_bits import BLOCK, Purpose, draw_scratch, draws, keep_threshold
from fastmlp.network.layout import ALIGNMENT

if TYPE_CHECKING:
    from fastmlp.formulas.losses import Loss
    from fastmlp.formulas.optimizers import Optimizer, StepScalars

Floats = NDArray[Any]
SUMMED_ROWS = 1024
"""Rows of one sum: one of millions of terms that are alike loses some percent in float32."""
WORDS = 4 * BLOCK
"""Random words drawn at once for dropout."""


class NumpyBackend(Backend):
    """Runs on NumPy alone, with as many threads as NumPy's own BLAS uses."""

    name: ClassVar[str] = "numpy"

    def __init__(self) -> None:
        self._own = threading.local()

    def __repr__(self) -> str:
        return "NumpyBackend()"

    # --- memory ---

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Floats:
        size = math.prod(shape) * dtype.itemsize
        raw = np.empty(size + ALIGNMENT, np.uint8)
        address = addressof(c_char.from_buffer(raw.data))  # a third of the time that `raw.ctypes` takes
        return np.ndarray(shape, dtype, raw, -address % ALIGNMENT)

    def asarray(self, array: Any) -> Floats:
        return np.asarray(array)

    def to_numpy(self, array: Floats) -> Floats:
        return array

    def choices(self) -> dict[str, Any]:
        from threadpoolctl import threadpool_info

        blas = [p for p in threadpool_info() if p["user_api"] == "blas"]
        return {
            "backend": self.name,
            "numpy": np.__version__,
            "blas": sorted(f"{p['internal_api']} {p['version']} {p.get('architecture', '')}".strip() for p in blas),
            "threads": max((p["num_threads"] for p in blas), default=1),
        }

    # --- coarse operations: as composed, without NumPy's warnings ---

    # NumPy warns of every overflow and NaN on its way; whether a loss is finite is looked at, and told, by the callers
    predict = quiet(Backend.predict)
    evaluate = quiet(Backend.evaluate)
    loss_and_gradients = quiet(Backend.loss_and_gradients)
    train_steps = quiet(Backend.train_steps)
    first_nonfinite = quiet(Backend.first_nonfinite)

    # --- fine operations ---

    def gather_rows(
        self, source: Floats, order: NDArray[np.intp] | slice, out: Floats, scratch: Floats | None = None
    ) -> None:
        if isinstance(order, slice):
            rows = source[order]
        else:
            # with mode="raise" take would gather into a copy of `out` first; the rows are known to be there
            rows = out if source.dtype == out.dtype or scratch is None else scratch
            source.take(order, axis=0, out=rows, mode="clip")
        if source.dtype == np.uint8 and out.dtype.kind == "f":
            np.divide(rows, out.dtype.type(255), out=out)
        elif rows is not out:
            out[...] = rows

    def dense_forward(self, x: Floats, w: Floats, b: Floats, out: Floats) -> None:
        np.matmul(x, w, out=out)
        np.add(out, b, out=out)

    def activate(self, activation: str, z: Floats, slope: Floats | None, scratch: tuple[Floats, Floats]) -> None:
        get_activation(activation).function(z, slope, scratch)

    def activation_backward(self, activation: str, a: Floats, slope: Floats | None, d: Floats, scratch: Floats) -> None:
        record = get_activation(activation)
        if slope is None and record.is_identity:
            return
        if slope is None:
            assert record.slope_of_output is not None, "the plan has the forward pass write the slopes of others"
            record.slope_of_output(a, scratch)
            slope = scratch
        np.multiply(d, slope, out=d)

    def dropout(
        self,
        a: Floats,
        slope: Floats | None,
        rate: float,
        key: int,
        step: int,
        layer: int,
        scratch: Floats,
        first_row: int = 0,
    ) -> None:
        columns = a.shape[1]
        height = max(1, WORDS // columns)
        words, draw_memory = self._random_memory(height * columns)
        for top in range(0, len(a), height):
            factor = scratch[top : top + height]
            part = words[: factor.size].reshape(factor.shape)
            numbered = {"first_row": first_row + top, "step": step, "layer": layer}
            draws(key, Purpose.DROPOUT, part, **numbered, scratch=draw_memory)
            np.greater_equal(part, keep_threshold(rate), out=factor)
        np.multiply(scratch, 1 / (1 - rate), out=scratch)
        np.multiply(a, scratch, out=a)
        if slope is not None:
            np.multiply(slope, scratch, out=slope)

    def _random_memory(self, words: int) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """Return memory for random words and for drawing them, each thread's own, kept from call to call."""
        own = self._own
        if getattr(own, "words", None) is None or own.words.size < words:
            own.words, own.draws = np.empty(words, np.uint32), draw_scratch()
        return own.words, own.draws

    def loss(
        self,
        loss: Loss,
        outputs: Floats,
        targets: NDArray[Any],
        row_weights: Floats | None,
        inverse_total: float,
        d_outputs: Floats,
        row_losses: Floats,
        scratch: tuple[Floats, Floats],
    ) -> None:
        loss.compute(outputs, targets, d_outputs, row_losses, scratch)
        if row_weights is None:
            np.multiply(d_outputs, inverse_total, out=d_outputs)
        else:
            np.multiply(d_outputs, (row_weights * inverse_total)[:, None], out=d_outputs)

    def hits(self, loss: Loss, outputs: Floats, targets: NDArray[Any], out: Floats) -> None:
        loss.hits(outputs, targets, out)

    def totals(self, row_stats: Floats, row_weights: Floats | None, out: NDArray[np.float64]) -> None:
        if row_weights is None:
            np.add.reduce(row_stats, axis=1, dtype=np.float64, out=out[::2])
            out[1] = row_stats.shape[1]
        else:
            np.multiply(row_stats, row_weights, dtype=np.float64).sum(axis=1, out=out[::2])
            out[1] = row_weights.sum(dtype=np.float64)

    def dense_backward(
        self, x: Floats, dz: Floats, w: Floats, dw: Floats | None, db: Floats | None, dx: Floats | None
    ) -> None:
        if dw is not None:
            np.matmul(x.T, dz, out=dw)
        if db is not None:
            np.add.reduce(dz[:SUMMED_ROWS], axis=0, out=db)
            for start in range(SUMMED_ROWS, len(dz), SUMMED_ROWS):
                np.add(db, np.add.reduce(dz[start : start + SUMMED_ROWS], axis=0), out=db)
        if dx is not None:
            np.matmul(dz, w.T, out=dx)

    def add_scaled(self, target: Floats, source: Floats, factor: float, scratch: Floats) -> None:
        np.multiply(source, factor, out=scratch)
        np.add(target, scratch, out=target)

    def squared_norm(self, array: Floats) -> float:
        # chunks summed in float64 keep a long float32 sum accurate
        total = 0.0
        for chunk in (array[i : i + CHUNK] for i in range(0, len(array), CHUNK)):
            found = float(np.dot(chunk, chunk))
            if not math.isfinite(found):  # squares may overflow where no number does
                wide = chunk.astype(np.float64)
                found = float(np.dot(wide, wide))
            total += found
        return total

    def scale(self, array: Floats, factor: float) -> None:
        np.multiply(array, factor, out=array)

    def update(
        self,
        optimizer: Optimizer,
        p: Floats,
        g: Floats,
        moments: Sequence[Floats],
        decay: float,
        scalars: StepScalars,
        scratch: Floats,
    ) -> None:
        for start in range(0, len(p), CHUNK):
            part = slice(start, min(start + CHUNK, len(p)))
            chunk = p[part]
            if decay:
                np.multiply(chunk, 1 - scalars.rate * decay, out=chunk)
            optimizer.update(chunk, g[part], [m[part] for m in moments], scalars, scratch[: len(chunk)])

    def max_norm(self, w: Floats, limit: float) -> None:
        norms = np.sqrt(np.einsum("io,io->o", w, w))
        # a column of zeros has no direction to scale, and gives no division by zero
        np.multiply(w, np.where(norms > limit, limit / np.maximum(norms, limit), 1).astype(w.dtype), out=w)

    def average(self, mean: Floats, p: Floats, decay: float, scratch: Floats) -> None:
        for start in range(0, len(p), CHUNK):
            part = slice(start, min(start + CHUNK, len(p)))
            difference = scratch[: part.stop - start]
            np.subtract(p[part], mean[part], out=difference)
            np.multiply(difference, 1 - decay, out=difference)
            np.add(mean[part], difference, out=mean[part])
