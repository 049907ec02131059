"""A backend as the loop sees it, and the reference: coarse operations composed of the fine ones of `operations`.

The composition is the specification: a backend overrides a coarse operation (`predict`, `evaluate`,
`loss_and_gradients`, `apply_gradients`, `train_steps`, `train_epochs`) only to do the same faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.operations import Operations
from fastmlp.backends.session import BatchViews, Session, StepReport, training_bytes
from fastmlp.floating import quiet
from fastmlp.formulas.activations import get_activation
from fastmlp.formulas.optimizers import StepScalars

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.data import DeviceData, HostData
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState
    from fastmlp.parallel.group import Carrier
    from fastmlp.parallel.tree import Share, TreeSum

    SharedSteps = Callable[
        [TrainState, DeviceData, Array, NDArray[np.float64], int, NDArray[np.float64]], StepReport | None
    ]
    AddUp = Callable[[TrainState, DeviceData, Array, Sequence[int], StepScalars, Array], None]


class Backend(Operations):
    """Where a network runs: what is asked of a backend as a whole."""

    def workspace_bytes(self, plan: Plan, data: HostData, share: Share | None) -> int:
        shared = 0 if share is None else share.nbytes(plan.layout.size, plan.precision.weights.itemsize)
        return training_bytes(plan, data) + shared

    def open(self, plan: Plan) -> Session:
        """Return a session for `plan`."""
        return Session(self, plan)

    # --- coarse operations: composed here, and this is what they mean ---

    def predict(self, session: Session, params: Array, x: Array, out: Array) -> None:
        """Write the outputs of the network (logits where the loss takes logits).

        Where inputs of a row in host memory are NaN or infinite, all its outputs are NaN: of infinity, some activations
        make a number like any other.  What lies on a device is not looked at, since that would be to wait for it.

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
            views = session.views(part.stop - start)
            self._load(session, x, part, views.x)
            self._answer(session, views, session.layers_of("predict", params))
            out[part] = views.z[-1]

    def bind_predict(self, session: Session, params: Array, x: NDArray[Any], out: NDArray[Any]) -> Callable[[], object]:
        """Return a function that does `predict` on arrays that `staging` made, whatever they hold when it is called.

        The outputs are there when it returns.  It comes after what this backend was asked for, in `working`.
        """
        return lambda: self.predict(session, params, x, out)

    def evaluate(self, session: Session, params: Array, data: DeviceData) -> tuple[float, float, float]:
        """Return the sums over the rows of ``w_i l_i``, ``w_i`` and ``w_i hit_i``, without L2.

        Parameters as for `predict`; `data` holds at least one row.
        """
        batch, totals = session.plan.batch, np.zeros(3)
        for start in range(0, len(data.x), batch):
            part = slice(start, min(start + batch, len(data.x)))
            views = session.views(part.stop - start)
            self._load(session, data.x, part, views.x)
            self._answer(session, views, session.layers_of("evaluate", params))
            self._losses(session, views, data, part, 1.0)
            totals += self.to_numpy(session.totals)
        loss, weight, hits = totals.tolist()
        return loss, weight, hits

    def loss_and_gradients(self, session: Session, params: Array, data: DeviceData, inverse_total: float) -> float:
        """Return the loss of all rows as one batch, L2 included, and leave its gradients in ``session.grads``.

        Parameters
        ----------
        session : Session
            With gradients, for at least as many rows as there are.
        params : (size,) float
            Flat parameters.
        data : DeviceData
        inverse_total : float
            1 over the sum of the row weights.
        """
        plan = session.plan
        share = float(plan.spec.l2_share(inverse_total))
        self._gradients(session, params, data, slice(0, len(data.x)), inverse_total, share)
        loss = float(self.to_numpy(session.totals)[0])
        norms = sum(self.squared_norm(params[s.slice]) for s in plan.segments if s.is_weight) if plan.spec.l2 else 0.0
        return loss * inverse_total + 0.5 * plan.spec.l2 * share * norms

    def prepare(self, session: Session, check: Callable[[], None]) -> None:
        """Do what the first step of a session would wait for, such as compiling.

        `check` is called every now and then; what it raises (KeyboardInterrupt) ends the preparation.
        """

    def train_steps(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
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
        data : DeviceData
        order : (n,) intp
            The rows of the whole epoch, on this backend.
        table : (count, 6) float64
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

    def train_epochs(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
        orders: Array,
        table: NDArray[np.float64],
        totals: NDArray[np.float64],
        norms: NDArray[np.float64],
    ) -> StepReport:
        """Train on whole epochs that follow each other: what `train_steps` does with each, to the bit.

        Parameters
        ----------
        session, state, data
            As for `train_steps`.
        orders : (epochs, n) intp
            The rows of each epoch, on this backend.
        table : (epochs * steps, 6) float64
        totals : (epochs, 3) float64
            The sums of each epoch are added.
        norms : (epochs,) or (0,) float64
            Overwritten, where there is room, with the squared norm of the weights, biases left out, after each epoch.
        """
        steps, done = len(table) // len(orders), 0
        for epoch in range(len(orders)):
            part = table[epoch * steps : (epoch + 1) * steps]
            report = self.train_steps(session, state, data, orders[epoch], part, 0, totals[epoch])
            done += report.done
            if not report.finite:
                return StepReport(done, False)
            if norms.size:
                norms[epoch] = self.squared_norm(state.params[: state.layout.weights_size])
        return StepReport(done, True)

    def batch_gradients(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
        rows: Array,
        scalars: StepScalars,
        first_row: int = 0,
    ) -> None:
        """Leave what some rows of a batch add to its gradients in ``session.grads``, and in ``session.totals``.

        L2 is left out: `finish_step` adds it once.  `first_row` is the place of the first of these rows in the batch,
        by which dropout numbers them; the other parameters are those of `train_steps`.  No device is waited for.
        """
        # all gradients are multiples of those of the outputs: a few numbers to scale instead of all parameters'
        scale = scalars.inverse_total * (scalars.rate if session.plan.folds_rate else 1.0)
        numbered = {"key": state.key, "step": state.step, "first_row": first_row}
        self._gradients(session, state.params, data, rows, scale, 0.0, **numbered)

    def open_shards(self, session: Session, tree: TreeSum, bounds: Sequence[int]) -> AddUp | None:
        """Return what adds up the gradients of several shards of a batch in one call; None where they are taken singly.

        That is ``add_up(state, data, rows, bounds, scalars, totals)``, for the rows of a batch.  It overwrites the sums
        of the tree, L2 left out, and the totals of the rank's own shards, (shards, 3) float64.  The session is made for
        training and prepared; `bounds` are those of the shards, here in a whole batch.
        """
        return None

    def open_shared(self, session: Session, carrier: Carrier, share: Share) -> SharedSteps | None:
        """Return what takes whole steps of several ranks; None where these are composed of what is above and below.

        It is called with all that `train_steps` takes but the session, by all ranks alike, and returns a report, or
        None, having done nothing, where the ranks have agreed to compose their steps after all.
        """
        return None

    def finish_step(self, session: Session, state: TrainState, scalars: StepScalars) -> None:
        """Take a step on from the gradients of its whole batch, as `batch_gradients` leaves them; not the counters."""
        self._add_l2(session, state.params, scalars.l2_share)
        if session.plan.optimizer is not None:
            rest = scalars._replace(rate=1.0) if session.plan.folds_rate else scalars
            self.apply_gradients(session, state, rest)

    def apply_gradients(self, session: Session, state: TrainState, scalars: StepScalars) -> None:
        """Take the rest of a step, from gradients that are there: clip, update, max-norm, average.

        Steps of a plan without an optimizer end before it, with the gradients in their session's ``grads``.  Whoever
        does something with these first, such as adding up those of several devices, hands them to a session of the
        same plan with the optimizer, and calls this.

        Parameters
        ----------
        session : Session
            Made for training; its ``grads`` are read, and overwritten.
        state : TrainState
            Overwritten: parameters, moments, average; not the step counters.
        scalars : StepScalars
        """
        plan, spec, grads = session.plan, session.plan.spec, session.grads
        optimizer = plan.optimizer
        assert optimizer is not None, "the session was not made for training"
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
        if spec.max_norm is not None:
            for (w, _), still in zip(session.layers_of("params", state.params), spec.frozen, strict=True):
                if not still:
                    self.max_norm(w, spec.max_norm)
        if state.average is not None:
            for mean, p in zip(session.segments_of("average", state.average), params, strict=True):
                self.average(mean, p, scalars.average_decay, session.update_scratch)

    def first_nonfinite(
        self, session: Session, state: TrainState, data: DeviceData, order: Array, position: int
    ) -> tuple[int, str]:
        """Tell where the loss of a batch stops being finite: run its forward pass step by step and look.

        Returns
        -------
        (row, where)
            The row of the data, or -1 where no single row is to blame; and the first array that is not finite.
        """
        batch = session.plan.batch
        rows = order[position * batch : (position + 1) * batch]
        views, layers = session.views(len(rows)), session.layers_of("params", state.params)
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
        views: BatchViews,
        layers: list[tuple[Array, Array]],
        *,
        key: int = 0,
        step: int = 0,
        first_row: int = 0,
        look: Any = None,
    ) -> None:
        spec = session.plan.spec
        a = views.x
        if spec.dropout[0]:
            room = session.buffer("input dropout", session.x.shape, session.plan.precision.products)[: len(a)]
            self.dropout(a, None, spec.dropout[0], key, step, 0, room, first_row)
        for layer, (w, b) in enumerate(layers):
            z, slope, scratch = views.z[layer], views.slopes[layer], views.scratch[layer]
            if look is not None:
                self.dense_forward(a, w, b, z)
                look(layer, "pre-activations")
            self.dense_activate(spec.activations[layer], a, w, b, z, slope, scratch)
            if look is not None:
                look(layer, "activations")
            if layer + 1 < spec.layers and spec.dropout[layer + 1]:
                self.dropout(z, slope, spec.dropout[layer + 1], key, step, layer + 1, scratch[0], first_row)
            a = z

    @quiet
    def _answer(self, session: Session, views: BatchViews, layers: list[tuple[Array, Array]]) -> None:
        """Run rows forward; the outputs of those whose inputs are not finite are NaN, see `predict`."""
        self._forward(session, views, layers)
        x = views.x
        if isinstance(x, np.ndarray) and not math.isfinite(np.add.reduce(x, axis=None)):
            views.z[-1][~np.isfinite(x).all(axis=1)] = np.nan

    def _losses(
        self, session: Session, views: BatchViews, data: DeviceData, rows: Array | slice, inverse_total: float
    ) -> None:
        """Fill the row losses, the hits, the gradient of the outputs, and ``session.totals``."""
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
        self.totals(views.row_stats, weights, session.totals)

    def _backward(self, session: Session, views: BatchViews, layers: list[tuple[Array, Array]]) -> None:
        spec, lowest = session.plan.spec, session.plan.spec.lowest_trainable
        grads = session.layers_of("grads", session.grads)
        for layer in range(spec.layers - 1, lowest - 1, -1):
            dz = views.dz[layer]
            a, slope = views.z[layer], views.slopes[layer]
            if slope is not None or not get_activation(spec.activations[layer]).is_identity:
                self.activation_backward(spec.activations[layer], a, slope, dz, views.scratch[layer][0])
            dw, db = (None, None) if spec.frozen[layer] else grads[layer]
            below = views.z[layer - 1] if layer else views.x
            dx = views.dz[layer - 1] if layer > lowest else None
            self.dense_backward(below, dz, layers[layer][0], dw, db, dx)

    def _add_l2(self, session: Session, params: Array, share: float) -> None:
        if session.plan.spec.l2 and share:
            scratch = session.buffer("l2", session.grads.shape, session.plan.precision.weights)
            for s in session.plan.segments:
                if s.is_weight:
                    part = s.slice
                    self.add_scaled(session.grads[part], params[part], session.plan.spec.l2 * share, scratch[part])

    def _gradients(
        self,
        session: Session,
        params: Array,
        data: DeviceData,
        rows: Array | slice,
        inverse_total: float,
        l2_share: float,
        *,
        key: int = 0,
        step: int = 0,
        first_row: int = 0,
    ) -> None:
        """Leave the gradients of a batch in ``session.grads``, L2 included, and its totals in ``session.totals``."""
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        views, layers = session.views(count), session.layers_of("params", params)
        self._load(session, data.x, rows, views.x)
        self._forward(session, views, layers, key=key, step=step, first_row=first_row)
        self._losses(session, views, data, rows, inverse_total)
        self._backward(session, views, layers)
        self._add_l2(session, params, l2_share)

    def _train_step(
        self,
        session: Session,
        state: TrainState,
        data: DeviceData,
        rows: Array,
        scalars: StepScalars,
        totals: NDArray[np.float64],
    ) -> bool:
        """Take one step; return False, having changed nothing, where the loss is not finite."""
        if scalars.inverse_total == 0:
            return True
        self.batch_gradients(session, state, data, rows, scalars)
        sums = self.to_numpy(session.totals)
        if not math.isfinite(sums[0]):
            return False
        self.finish_step(session, state, scalars)
        totals += sums
        return True
