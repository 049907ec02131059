"""What a network answers: outputs, figures and gradients, worked out in chunks of rows that fit."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.sparse import SparseRows
from fastmlp.engine import checks
from fastmlp.engine.bound import Bound
from fastmlp.network.plan import Plan, Precision

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.data import HostData
    from fastmlp.engine.metrics import Measure
    from fastmlp.engine.sessions import SessionPool
    from fastmlp.network.spec import NetworkSpec

FEW = 2**20
"""Rows times parameters up to which what a call costs beside its products is more than they are."""
SMALL_BYTES = 2**20
"""Up to which nobody asks whether data fits where the model is."""


class Inference:
    """Answers for one model on one backend; the flat parameters and the checked inputs come with each question.

    Parameters
    ----------
    pool : SessionPool
        Of the model.
    dtype : numpy.dtype
        In which the network computes.
    """

    def __init__(self, pool: SessionPool, dtype: np.dtype[Any]) -> None:
        self._pool, self._dtype = pool, dtype
        self._rows = 1
        self._last: tuple[NetworkSpec, Plan] | None = None
        self._bound: Bound | int = 0
        """For few rows, or how many they were the last time."""
        self._few_at_once = threading.Lock()

    def plan(self, spec: NetworkSpec, rows: int, batch_size: int | None = None) -> Plan:
        """Return the plan for so many rows, worked on `batch_size` at once or as many as fit."""
        width = self._dtype.itemsize * (spec.units[0] + 5 * max(spec.units[1:]))
        most = max(min(self._pool.backend.chunk_bytes // width, self._pool.backend.chunk_rows), 16)
        if batch_size is None:
            # grows by doubling, so that calls with more and more rows do not each need memory of their own
            while self._rows < min(rows, most):
                self._rows = min(2 * self._rows, most)
            batch_size = self._rows
        batch_size = min(batch_size, max(rows, most))  # rows that are not there need no memory
        last = self._last
        if last is None or last[0] is not spec or last[1].batch != batch_size:
            last = self._last = spec, Plan(spec.deterministic(), batch_size, Precision.of(self._dtype))
        return last[1]

    def prepare(self, spec: NetworkSpec, rows: int, check: Callable[[], None]) -> None:
        """Do what the first answer would wait for, such as compiling; `check` as in `Backend.prepare`."""
        with self._pool.use(self.plan(spec, rows)) as session:
            self._pool.backend.prepare(session, check)

    def outputs_of_few(self, spec: NetworkSpec, params: Array, x: NDArray[Any], most: float) -> NDArray[Any] | None:
        """Return the outputs for a few unchecked rows (n, I), to the bits of `outputs`; None where that is to be asked.

        That is so the first time for a number of rows, for numbers or outputs that are not finite and numbers above
        `most`, about which there is something to say, and while another thread is at it.
        """
        if len(x) * len(params) > FEW:
            return None
        plan, bound = self.plan(spec, len(x)), self._bound
        if not (isinstance(bound, Bound) and bound.fits(plan, params, len(x))):
            if bound == len(x):  # again: then it is worth being made ready for
                with self._pool.backend.working():
                    self._bound = Bound(self._pool.backend, plan, params, len(x))
            else:
                self._bound = len(x)
            return None
        if not self._few_at_once.acquire(blocking=False):
            return None
        try:
            bound.x[...] = x
            sound = math.isfinite(np.add.reduce(bound.x, axis=None)) and np.maximum.reduce(bound.x, axis=None) <= most
            if not sound:
                return None
            with self._pool.backend.working():
                bound.run()
            found: NDArray[Any] = bound.out.copy()
        finally:
            self._few_at_once.release()
        return found if math.isfinite(np.add.reduce(found, axis=None)) else None

    def outputs(self, spec: NetworkSpec, params: Array, x: Array, batch_size: int | None = None) -> Array:
        """Return the outputs for checked inputs, (n, K), where the inputs are."""
        plan = self.plan(spec, len(x), batch_size)
        width = spec.units[-1] * self._dtype.itemsize
        parts = self._parts(plan, x, x.nbytes // max(len(x), 1) + width)
        if parts is None:
            return self._outputs_there(plan, params, x)
        found = [self._pool.backend.to_numpy(self._outputs_there(plan, params, x, part)) for part in parts]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _outputs_there(self, plan: Plan, params: Array, x: Array, part: slice = slice(None)) -> Array:
        """Return the outputs on the backend; their memory is the caller's, so it is for its stream to free."""
        backend, rows = self._pool.backend, x[part]
        with backend.placed():
            out = backend.empty((len(rows), plan.spec.units[-1]), self._dtype)
        with self._pool.use(plan) as session:
            there = backend.asarray(rows)
            self._refuse_what_was_not_looked_at(x, there, part)
            backend.predict(session, params, there, out)
        return out

    def _refuse_what_was_not_looked_at(self, x: Array, there: Array, part: slice) -> None:
        """Raise DataError where many inputs that were sent elsewhere are not finite.

        Nothing else tells: a predicted row of the host's that has such an input is NaN, see `Backend.predict`.
        """
        if isinstance(x, np.ndarray) and x.size > checks.SOON and not isinstance(there, np.ndarray):
            checks.refuse_nonfinite(there, self._pool.backend, "x", np.arange(len(x))[part])

    def _parts(self, plan: Plan, x: Array, row_bytes: int) -> list[slice] | None:
        """Cut rows in host memory into parts that fit on the backend and, where sparse, here; None for those there."""
        rows = len(x)
        if isinstance(x, SparseRows):
            most = x.at_once(plan.batch)
        elif isinstance(x, np.ndarray):
            most = self._pool.backend.rows_at_once(row_bytes) if rows * row_bytes > SMALL_BYTES else max(rows, 1)
        else:
            return None
        return [slice(start, min(start + most, rows)) for start in range(0, max(rows, 1), most)]

    def totals(self, spec: NetworkSpec, params: Array, data: HostData, rows: int | None = None) -> NDArray[np.float64]:
        """Return the sums of the weighted losses without L2, of the weights, and of the weighted hits, (3,).

        `rows` are those to be ready for, where more may come of what these are a part of.
        """
        backend, totals = self._pool.backend, np.zeros(3)
        plan = self.plan(spec, rows or len(data))
        with self._pool.use(plan) as session:
            for part in self._parts(plan, data.x, data.row_bytes) or [slice(None)]:
                there = data.window(part).on(backend.asarray)
                self._refuse_what_was_not_looked_at(data.x, there.x, part)
                totals += backend.evaluate(session, params, there)
                del there  # before the next part is made dense
        return totals

    @staticmethod
    def figures_of(spec: NetworkSpec, totals: NDArray[np.float64]) -> dict[str, float]:
        """Return the loss and, where there is one, the accuracy: weighted means over the rows of such sums.

        Where the loss is NaN the accuracy is too: a row without a prediction is neither right nor wrong.
        """
        loss, weight, hits = totals.tolist()
        figures = {"loss": loss / weight}
        if spec.loss.has_accuracy:
            figures["accuracy"] = math.nan if math.isnan(loss) else hits / weight
        return figures

    def metric_values(
        self, spec: NetworkSpec, params: Array, data: HostData, metrics: Mapping[str, Measure]
    ) -> dict[str, float]:
        """Return the value of each metric, whose arrays are on the host; NaN where an output is not finite."""
        if not metrics:
            return {}
        outputs = self.outputs(spec, params, data.x)
        outputs = outputs if isinstance(outputs, np.ndarray) else self._pool.backend.to_numpy(outputs)
        if not np.isfinite(outputs).all():
            return dict.fromkeys(metrics, math.nan)
        return {name: metric.value(data.y, outputs) for name, metric in metrics.items()}

    def loss_and_gradients(self, spec: NetworkSpec, params: Array, data: HostData) -> tuple[float, list[Array]]:
        """Return the loss of all rows as one batch, L2 included and dropout left out, and [dW1, db1, ...]."""
        data = data.window(slice(None)) if isinstance(data.x, SparseRows) else data  # one batch has all rows
        backend, plan = self._pool.backend, Plan(spec.deterministic(), len(data), Precision.of(self._dtype), True)
        total = float(len(data)) if data.weights is None else float(data.weights.sum(dtype=np.float64))
        there = not isinstance(data.x, np.ndarray)
        with backend.placed():
            shapes = [a.shape for pair in plan.layout.views(params) for a in pair]
            results = [backend.empty(shape, self._dtype) for shape in shapes] if there else []
        with self._pool.use(plan) as session:
            loss = backend.loss_and_gradients(session, params, data.on(backend.asarray), 1 / total)
            found = [array for pair in plan.layout.views(session.grads) for array in pair]
            if not there:
                return loss, [backend.to_numpy(array).copy() for array in found]
            for result, array in zip(results, found, strict=True):
                result[...] = array
        return loss, results
