"""What a training step launches, one method a part; `step.py` says when, and whether it is captured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.capture import Branch
from fastmlp.backends.cuda.kernels import column_grid, loss_grid, row_grid
from fastmlp.backends.cuda.memory import NORM_BLOCKS, Gradients
from fastmlp.backends.cuda.products import NO_MASKS, Masks, StepProducts
from fastmlp.formulas.activations import get_activation
from fastmlp.formulas.random_bits import keep_threshold

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastmlp._typing import Array
    from fastmlp.backends.cuda.operations import CupyOperations
    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.network.plan import Plan


class StepLaunches:
    """The launches of a step, on what a `TrainingStep` holds.

    Attributes
    ----------
    memory : dict of arrays
        The arena of a step, see `memory.step_arena`.
    gradients : list of Gradients or None
        Where those of each layer lie in it; None where they are not taken.
    """

    memory: dict[str, Array]
    gradients: list[Gradients | None]
    _operations: CupyOperations
    _products: StepProducts
    _plan: Plan
    _optimizer: Optimizer
    _key: int
    _params: Array
    _average: Array | None
    _moments: Any
    _side: Branch
    _x: Array
    _y: Array
    _weights: Array | None
    _chunks_on_host: NDArray[np.int64]

    def _launch(self, file: str, name: str, grid: tuple[Any, Any], args: tuple[Any, ...]) -> None:
        self._operations._launch(file, name, self._plan.precision.products, grid, args)

    @property
    def _left(self) -> Array:
        """Where the backward pass leaves the gradients of a layer, at the places of `gradients`."""
        return self.memory["grads"]

    def _masks(self, layer: int, first_row: int = 0) -> Masks | None:
        rate = self._plan.spec.dropout[layer] if layer < self._plan.spec.layers else 0.0
        return Masks(keep_threshold(rate), 1 / (1 - rate), self._key, layer, first_row) if rate else None

    def _gather(self, index: int, n: int, views: dict[str, Array], first_row: int = 0) -> None:
        """Gather n rows of a batch, from one of its rows on."""
        real = sources.REALS[self._plan.precision.products.name]
        types = ", ".join((*(sources.CTYPES[a.dtype.name] for a in (self._x, self._y)), real))
        masks = self._masks(0) or NO_MASKS
        args = (
            *(self._x, self._y, self._weights, self.memory["order"], self.memory["cursor"], np.int32(index)),
            *(np.int64(self._plan.batch), views["x"], views["y"], views["weights"], np.int64(n)),
            *(np.int64(self._x.shape[1]), np.int64(1 if self._y.ndim == 1 else self._y.shape[1])),
            *(np.uint32(masks.threshold), self._plan.precision.products.type(masks.scale), np.uint64(masks.key)),
            np.int64(first_row),
        )
        self._launch("gather.cu", f"gather_batch<{types}>", row_grid(n), args)

    def _forward(
        self, index: int, views: dict[str, Array], layers: list[tuple[Array, Array]], first_row: int = 0
    ) -> None:
        a = views["x"]
        for layer, (w, b) in enumerate(layers):
            z = views[f"z{layer}"]
            activation, masks = self._plan.spec.activations[layer], self._masks(layer + 1, first_row)
            cursor = self.memory["cursor"]
            self._products.forward(a, w, b, z, views.get(f"slope{layer}"), activation, masks, cursor, index)
            a = z

    def _loss(self, index: int, n: int, views: dict[str, Array]) -> None:
        plan, memory, loss = self._plan, self.memory, self._plan.spec.loss
        top = plan.spec.layers - 1
        outputs, real = views[f"z{top}"], sources.REALS[plan.precision.products.name]
        grid, warps = loss_grid(*outputs.shape)
        held = sources.CTYPES[self._y.dtype.name]
        weights = None if self._weights is None else views["weights"]
        where = (memory["table"], memory["cursor"], np.int32(index))
        rows = (views["row_losses"], views["row_hits"])
        args = (
            *(sources.code_of("loss", loss.name), memory.get("loss_parameters"), np.int64(len(loss.parameters))),
            *(outputs, views["y"], weights, np.float64(0), *where, views[f"dz{top}"], *rows, np.int64(n)),
            np.int64(outputs.shape[1]),
        )
        self._launch("losses.cu", f"loss_rows<{real}, {held}, {warps}>", grid, args)
        with self._side.beside():
            self._finish(index, n, (*rows, weights))

    def _finish(self, index: int, n: int, rows: tuple[Array | None, ...]) -> None:
        """Add up the losses, hits and weights of n rows, and tell whether the step counts."""
        memory = self.memory
        where = (memory["table"], memory["cursor"], np.int32(index))
        args = (*rows, *where, memory["report"], memory["frozen"], np.int64(n))
        self._launch("losses.cu", "finish_batch<{real}>", ((1,), (256,)), args)

    def _backward(
        self,
        views: dict[str, Array],
        layers: list[tuple[Array, Array]],
        ready: Callable[[int], object] | None = None,
    ) -> None:
        """Leave the gradients; `ready` is told of each layer from the top when its own are queued."""
        spec = self._plan.spec
        top, grads, beside = spec.layers - 1, self._left, False
        self._output_slope(views)
        for layer in range(top, spec.lowest_trainable - 1, -1):
            dz = views[f"dz{layer}"]
            below = views[f"z{layer - 1}"] if layer else views["x"]
            more, place = layer > spec.lowest_trainable, self.gradients[layer]
            alone = self._products.alone(*layers[layer][0].shape)
            if alone and beside:
                self._side.join()
            beside = more and not alone
            if place is not None:
                dw, db = grads[place.weights : place.stop], grads[place.biases : place.stop]
                with self._side.beside() if beside else contextlib.nullcontext():
                    self._products.weight_gradient(below, dz, dw, db, place.stride, place.slabs)
            if ready is not None:
                ready(layer)
            if more:
                slope, activation = views.get(f"slope{layer - 1}"), spec.activations[layer - 1]
                self._products.input_gradient(dz, layers[layer][0], views[f"dz{layer - 1}"], activation, below, slope)

    def _output_slope(self, views: dict[str, Array]) -> None:
        """Multiply by the slope of the outputs, where the loss is not one with their activation."""
        top = self._plan.spec.layers - 1
        activation, slope, d = self._plan.spec.activations[top], views.get(f"slope{top}"), views[f"dz{top}"]
        if slope is not None or not get_activation(activation).is_identity:
            self._operations.activation_backward(activation, views[f"z{top}"], slope, d, d)

    def _apply_gradients(self, index: int, layers: list[tuple[Array, Array]]) -> None:
        plan, memory, spec = self._plan, self.memory, self._plan.spec
        count = len(self._chunks_on_host)
        where = (memory["table"], memory["cursor"], np.int32(index))
        if not count:
            return
        grads, rule = memory["grads"], memory["rule"]
        parts = 0
        if self._optimizer.clip_norm is not None:
            parts = min(count, NORM_BLOCKS)
            norm = (memory["chunks"], np.int64(count), grads, self._params, rule, memory["partials"], *where)
            self._launch("optimizers.cu", "gradient_norm<{real}>", ((parts,), (256,)), norm)
        # where max-norm changes parameters after the update, the average is taken after both
        late = spec.max_norm is not None
        args = (
            sources.code_of("optimizer", self._optimizer.name),
            *(memory["chunks"], self._params, grads, *self._moments, None if late else self._average, rule),
            *(memory["partials"], np.int32(parts), *where, memory["frozen"]),
        )
        self._launch("optimizers.cu", "update_parameters<{real}>", ((count,), (256,)), args)
        if spec.max_norm is None:
            return
        for (w, _), still in zip(layers, spec.frozen, strict=True):
            if not still:
                i, o = w.shape
                sizes = plan.precision.weights.type(spec.max_norm), np.int64(i), np.int64(o)
                limit = (w, *sizes, *where, memory["frozen"])
                self._launch("optimizers.cu", "max_norm<{real}>", column_grid(o), limit)
        if self._average is not None:
            average = (memory["chunks"], self._params, self._average, *where, memory["frozen"])
            self._launch("optimizers.cu", "average_parameters<{real}>", ((count,), (256,)), average)
