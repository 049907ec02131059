"""Which way training steps may run on a device: own kernels proven there, at the first fit, and a rule; see `trial`.

Everything here runs on copies of the state, on the data that is about to be trained on, and changes neither.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.backends.cuda.blas import CUBLAS, TF32_EPS, rounds_to_tf32
from fastmlp.backends.cuda.products import BlasProducts, CapturedProducts, StepProducts
from fastmlp.backends.cuda.step import GRAPH_STEPS, TrainingStep
from fastmlp.backends.decisions import Decisions, steps_key
from fastmlp.errors import KernelError
from fastmlp.floating import in_units_of, rounding
from fastmlp.formulas.optimizers import StepScalars

if TYPE_CHECKING:
    from fastmlp.backends.cuda.operations import CupyOperations
    from fastmlp.backends.data import DeviceData
    from fastmlp.network.plan import Plan
    from fastmlp.network.state import TrainState

_log = logging.getLogger("fastmlp")

CROSSING = 4e10
"""Floating point operations of a step, from which steps run eagerly where neither way was timed on this GPU.

The host launches as fast as the device works then: on an H200 captured steps took 0.15 of the time of eager ones at 1e7
operations, 0.85 at 1.1e10 and 1.03 at 4.6e10 (float32).
"""
EAGER_FROM = 1e11
"""From so many operations on, steps run eagerly without proof or measurement, which take seconds there for nothing."""
STEPS = "steps"
"""The first part of the name of the file that keeps which way is the faster."""
_TOLERANCE = 64.0
_TF32_TOLERANCE = 8.0
"""Smaller, since more of so coarse a rounding would let wrong kernels pass."""


def step_operations(plan: Plan) -> float:
    """Return how many floating point operations the products of a step take."""
    return 6.0 * plan.batch * sum(i * o for i, o in pairwise(plan.spec.units))


def surely_eager(plan: Plan) -> bool:
    """Return whether a step takes so many operations that capturing it would gain nothing."""
    return step_operations(plan) >= EAGER_FROM


def make_step(
    operations: CupyOperations,
    plan: Plan,
    state: TrainState,
    data: DeviceData,
    *,
    captured: bool,
    own: bool | None = None,
) -> TrainingStep:
    """Return steps that run captured, or eagerly: with cuBLAS or, where `own` says so, as captured."""
    products: StepProducts = BlasProducts(operations, operations.multiprocessors)
    if captured or own:
        products = CapturedProducts(operations, operations.multiprocessors, plan)
    return TrainingStep(operations, products, plan, state, data, captured=captured)


# --- proof ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """Something that a step has computed: what it is, the kernel that wrote it, and the size of what it is made of.

    Where that is infinite, rounding may change it by anything, and only its bits can be compared.
    """

    what: str
    kernel: str
    array: NDArray[Any]
    scale: float


def prove(operations: CupyOperations, plan: Plan, state: TrainState, data: DeviceData) -> str:
    """Take a step with own kernels one by one, captured, and with cuBLAS; return what is wrong, or nothing.

    The graph must give the bits of its kernels launched one by one, and these what cuBLAS and the kernels around it
    give, as far as rounding allows: that of TF32, where NVIDIA's switch of the process lets cuBLAS round to it.  Then
    steps of every kind that a run has, in long graphs, in short ones and of a short batch, must leave the same bits.

    Raises
    ------
    KernelError
        A kernel has left CUDA past use in this process, or cuBLAS fails.
    """
    try:
        single = _single(operations, plan, state, data)
        graph = _step_results(operations, plan, state, data, captured=True)
        eager = _by_cublas(operations, plan, state, data, single)
    except operations.failures as e:
        if operations.poisoned() or (isinstance(e, KernelError) and e.kernel == CUBLAS):
            raise  # no way of steps goes without CUDA, nor eager ones without cuBLAS
        return str(e.__cause__ if isinstance(e.__cause__, KernelError) else e)
    for a, b in zip(graph, single, strict=True):
        if a.array.tobytes() != b.array.tobytes():
            return f"the kernel {a.kernel} computes {a.what} in a graph otherwise than by itself"
    unit = _TOLERANCE * float(np.finfo(plan.precision.products).eps)
    if rounds_to_tf32() and plan.precision.products == np.float32:
        unit = _TF32_TOLERANCE * TF32_EPS
        _log.warning(
            "cupy: NVIDIA_TF32_OVERRIDE=1 makes cuBLAS round factors in float32 to 11 bits: own kernels are held "
            "against it to that only, and eager steps and predictions are no more precise"
        )
    for b, c in zip(single, eager, strict=True):
        off = _difference(b, c, plan, unit)
        if off > 1:
            return f"the kernel {b.kernel} computes {b.what} off by {off:.3g} times what rounding allows"
    return _whole_epoch(operations, plan, state, data)


def _whole_epoch(operations: CupyOperations, plan: Plan, state: TrainState, data: DeviceData) -> str:
    """Take a long graph of steps, a short one and a short batch, where the data has them, as a run will; as `prove`."""
    whole, short = min(len(data.x) // plan.batch, GRAPH_STEPS + 1), len(data.x) % plan.batch
    order, table = _one_step(operations, plan, data, whole + (short > 0))

    def results(captured: bool) -> list[Result]:  # whose memory is free before another step takes as much
        copied = state.copied(operations.copy)
        step = make_step(operations, plan, copied, data, captured=captured, own=True)
        _, _, report = step.run(order[: whole * plan.batch + short], table, 0, state.step)
        return [Result("the sums of batches", "finish_batch", report, 0.0), *_left(copied, operations)]

    try:
        graphs, single = results(True), results(False)
    except operations.failures as e:
        if operations.poisoned():
            raise
        return str(e.__cause__ if isinstance(e.__cause__, KernelError) else e)
    for a, b in zip(graphs, single, strict=True):
        if a.array.tobytes() != b.array.tobytes():
            return f"{len(table)} steps in graphs compute {a.what} otherwise than their kernels one by one"
    return ""


def _single(operations: CupyOperations, plan: Plan, state: TrainState, data: DeviceData) -> list[Result]:
    """Launch the kernels of a captured step one by one, and wait after each, so that a fault is known by its name."""
    waiting: Any = operations.waiting()
    return _step_results(waiting, plan, state, data, captured=False)


def _step_results(
    operations: CupyOperations, plan: Plan, state: TrainState, data: DeviceData, *, captured: bool
) -> list[Result]:
    """Take a step with own products on a copy of the state; return what it computed, on the host."""
    copied = state.copied(operations.copy)
    step = make_step(operations, plan, copied, data, captured=captured, own=True)
    step.run(*_one_step(operations, plan, data), 0, state.step)
    return list(_results(step, plan, copied, operations))


def _one_step(
    operations: CupyOperations, plan: Plan, data: DeviceData, count: int = 1
) -> tuple[Any, NDArray[np.float64]]:
    """Return an order of rows and a table with which every stage of a step has something to do, each step another."""
    scalars = np.array(StepScalars(1e-3, 1.0, 1.0, 0.5, 1 / plan.batch), np.float64)
    return operations.asarray(np.arange(len(data.x))), np.linspace(1, 2, count)[:, None] * scalars


def largest(array: NDArray[Any]) -> float:
    """Return the largest absolute value; NaN where there is one."""
    return float(np.max(np.abs(array), initial=0.0))


def _results(step: TrainingStep, plan: Plan, state: TrainState, operations: CupyOperations) -> Iterator[Result]:
    """Yield what a step has computed, in its order."""
    spec, memory, top = plan.spec, step.memory, plan.spec.layers - 1
    host = operations.to_numpy
    x = host(memory["x"])
    a = [x, *(host(memory[f"z{layer}"]) for layer in range(spec.layers))]
    yield Result("the inputs of the batch", "gather_batch", x, 0.0)
    layers = plan.layout.views(host(step.trained[0]))
    for layer in range(spec.layers):
        size = largest(a[layer]) * largest(layers[layer][0])
        yield Result(f"the activations of layer {layer}", "product_forward", a[layer + 1], size)
        if f"slope{layer}" in memory:
            slope = host(memory[f"slope{layer}"])
            yield Result(f"the slopes of layer {layer}", "product_forward", slope, math.inf)
    yield Result("the losses of the rows", "loss_rows", host(memory["row_losses"]), largest(a[-1]))
    yield Result("the sums of the batch", "finish_batch", host(memory["report"][:1]), 0.0)
    grads = host(memory["grads"])
    for layer in range(top, spec.lowest_trainable - 1, -1):
        dz = host(memory[f"dz{layer}"])
        kernel = "loss_rows" if layer == top else "product_input_gradient"
        above = 0.0 if layer == top else largest(host(memory[f"dz{layer + 1}"])) * largest(layers[layer + 1][0])
        yield Result(f"the gradients of the pre-activations of layer {layer}", kernel, dz, above)
        place = step.gradients[layer]
        if place is None:
            continue
        (w, b), (w_slabs, b_slabs) = layers[layer], place.slabs
        for what, start, size, count, below in (
            ("weights", place.weights, w.size, w_slabs, largest(a[layer])),
            ("biases", place.biases, b.size, b_slabs, 1.0),
        ):
            parts = [grads[at : at + size] for at in range(start, start + count * place.stride, place.stride)]
            summed = np.stack(parts).sum(axis=0, dtype=np.float64)
            yield Result(
                f"the gradients of the {what} of layer {layer}", "product_weight_gradient", summed, below * largest(dz)
            )
    yield from _left(state, operations)


def _left(state: TrainState, operations: CupyOperations) -> Iterator[Result]:
    """Yield what steps leave behind."""
    named = [("parameters", state.params), *((f"moments {i}", m) for i, m in enumerate(state.moments))]
    for what, array in [*named, *([("average", state.average)] if state.average is not None else [])]:
        # of a gradient that is nearly nothing, Adam makes a whole step
        yield Result(f"the {what}", "update_parameters", operations.to_numpy(array), math.inf)


def _by_cublas(
    operations: CupyOperations, plan: Plan, state: TrainState, data: DeviceData, single: list[Result]
) -> list[Result]:
    """Take the step with cuBLAS, the backward pass from the activations found; return what it computed.

    From its own activations, a rectifier near its kink might go the other way.
    """
    copied = state.copied(operations.copy)
    step = make_step(operations, plan, copied, data, captured=False)
    found = {r.what: r.array for r in single}
    forward: dict[str, NDArray[Any]] = {}

    def between() -> None:
        for layer in range(plan.spec.layers):
            for what, name in ((f"the activations of layer {layer}", "z"), (f"the slopes of layer {layer}", "slope")):
                if what in found:
                    forward[what] = operations.to_numpy(step.memory[f"{name}{layer}"])
                    operations.fill(step.memory[f"{name}{layer}"], found[what])

    step.halves(*_one_step(operations, plan, data), state.step, between)
    return [replace(r, array=forward.get(r.what, r.array)) for r in _results(step, plan, copied, operations)]


def _difference(found: Result, expected: Result, plan: Plan, unit: float) -> float:
    """Return the largest difference in units of what rounding allows; what is not finite in both is alike."""
    if math.isinf(found.scale):
        return 0.0
    finite = np.abs(expected.array[np.isfinite(expected.array)])
    scale = max(float(finite.max(initial=0.0)), 0.0 if math.isnan(found.scale) else found.scale)
    allowed = rounding(unit, max(plan.batch, *plan.spec.units), scale)
    return float(in_units_of(allowed, found.array, expected.array).max())


# --- choice ---------------------------------------------------------------------------------------------------------


def other_way(way: str) -> str:
    """Return the way that a trial of steps has beside this one."""
    return "eager" if way == "captured" else "captured"


def kept_way(made: Decisions, plan: Plan) -> str | None:
    """Return the way that was the faster for such steps on this GPU, if that was found out and makes sense."""
    way = made.all().get(steps_key(plan), {}).get("way")
    return way if way in ("captured", "eager") else None


def choose_way(
    operations: CupyOperations, plan: Plan, state: TrainState, data: DeviceData, wanted: str
) -> tuple[str, bool]:
    """Return ``"captured"`` or ``"eager"``, and whether it is settled: else a trial of steps may find the other faster.

    Parameters
    ----------
    operations : CupyOperations
    plan : Plan
    state : TrainState
        Copied, not changed.
    data : DeviceData
    wanted : str
        ``"captured"``, ``"eager"``, or ``"auto"``: the faster one where it is kept which that is, else the rule's.

    Warns
    -----
    RuntimeWarning
        Captured steps were a choice, and do not compute rightly on this device.
    """
    kept = kept_way(operations.decisions(STEPS, plan.precision.products), plan) if wanted == "auto" else wanted
    if kept == "eager":
        return "eager", True
    if wanted == "auto" and surely_eager(plan):
        _log.info("cupy: steps of %.3g operations run eagerly: captured ones would gain nothing", step_operations(plan))
        return "eager", True
    try:
        doubt = _doubt(operations, plan, state, data)
    except MemoryError as e:
        if wanted == "captured":
            raise
        _log.info("cupy: steps run eagerly, since %s", str(e))  # a record with the error would keep its frames alive
        return "eager", True
    if doubt:
        text = (
            f"captured steps cannot be used on this GPU: {doubt}. Training goes on eagerly; please report this with "
            "the output of fastmlp selftest --backend cupy. way='eager' avoids the attempt"
        )
        warnings.warn(text, RuntimeWarning, stacklevel=2)
        return "eager", True
    if kept is None:
        return ("captured" if step_operations(plan) < CROSSING else "eager"), False
    return kept, True


def _doubt(operations: CupyOperations, plan: Plan, state: TrainState, data: DeviceData) -> str:
    """Prove the kernels of a captured step, unless they were all proven on this device before."""
    step = make_step(operations, plan, state, data, captured=True)
    kernels = set(step.kernels())
    del step  # its memory is free before the proof takes as much
    if kernels <= operations.proven:
        return ""
    try:
        doubt = prove(operations, plan, state, data)
    except MemoryError as e:
        _log.warning("cupy: there is no memory to prove captured steps on this GPU before they train (%s)", str(e))
        return ""
    if not doubt:
        operations.proven |= kernels
    return doubt
