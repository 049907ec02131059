"""Whether a backend computes rightly on this machine: ``fastmlp selftest``, in half a minute.

Each stage runs in a process of its own, because a fault on a GPU poisons the process that it happens in: the stages
after it would fail too, and hide which one it was.  A stage holds the backend against NumPy, or against itself run
another way; of CuPy the graphs that it captures are looked at as well (`captured`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fastmlp.backends.choosing import get_backend
from fastmlp.backends.cuda.tested import note_selftest
from fastmlp.doctor.captured import compare_bits, compare_ways, count_nodes
from fastmlp.doctor.fresh import FreshProcessError, TooLongError, in_fresh_process
from fastmlp.doctor.trials import ROWS, SelfTestError, compare, data, precisions, trained
from fastmlp.formulas.activations import activation_names, get_activation
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS, SGD, Adam, RMSprop
from fastmlp.model import MLP

SECONDS = 120
"""What a stage may take before it counts as hanging."""


@dataclass(frozen=True)
class Outcome:
    """What became of a stage.

    Attributes
    ----------
    stage : str
    passed : bool
    seconds : float
    text : str
        What it found, or why it failed.
    """

    stage: str
    passed: bool
    seconds: float
    text: str


def _cases() -> Iterator[tuple[str, dict[str, Any]]]:
    for name in activation_names():
        if get_activation(name).compiled and not get_activation(name).kinks:  # a kink may fall on either side
            yield f"activation {name}", {"activation": name}
    for name in LOSSES.names():
        if LOSSES.record(name).compiled:
            yield f"loss {name}", {"loss": name, "optimizer": SGD(1e-3)}
    rules = [OPTIMIZERS.record(name) for name in OPTIMIZERS.names()]
    for rule in (*rules, SGD(momentum=0.9, nesterov=True), RMSprop(momentum=0.5, epsilon=0.1)):
        if rule.name in ("sgd", "rmsprop") or rule.compiled:
            small = {"epsilon": 0.1} if hasattr(rule, "epsilon") else {}
            yield f"optimizer {rule}", {"optimizer": type(rule)(**{**vars(rule), **small})}
    stages = Adam(epsilon=0.1, clip_norm=0.1, ema=0.9, weight_decay=0.01)
    everything = {"optimizer": stages, "dropout": (0.1, 0.2, 0.3), "l2": 1e-3, "max_norm": 1.0}
    yield "everything at once", everything
    yield "wide", {"units": (37, 130, 600), "batch": 77, "optimizer": SGD()}


def compare_with_numpy(backend: str) -> str:
    """Train small networks of every kind, in both precisions, and hold them against NumPy in double precision."""
    worst = count = 0.0
    dtypes = precisions(backend)
    for what, case in _cases():
        expected = trained("numpy", "float64", **case)
        for dtype in dtypes:
            worst = max(worst, compare(trained(backend, dtype, **case), expected, dtype, what))
            count += 1
    return f"{count:.0f} networks agree with NumPy; at worst {worst:.2f} of what rounding allows"


def leave_memory_alone(backend: str) -> str:
    """Fit and predict in a loop, and look whether memory grows."""
    x, y = data(5)
    model = MLP((37, 64, 5), backend=backend, seed=0)
    device = get_backend(backend)
    used = []
    for _ in range(12):
        model.fit(x, y, epochs=1, verbose=0)
        for rows in (1, 77, ROWS):
            model.predict(x[:rows])
        device.synchronize()
        used.append(device.memory_info().get("used", 0))
    if used[-1] > used[2]:
        raise SelfTestError(f"memory in use grew from {used[2]:,} to {used[-1]:,} bytes over ten fits")
    return (
        f"{used[-1]:,} bytes in use, no more after ten fits" if used[-1] else "nothing is known of the device's memory"
    )


def race(backend: str) -> str:
    """Train an MNIST-sized network for a moment; the figure is for comparison, and cannot fail."""
    x, y = data(10, rows=20000, features=784)
    parts = []
    ways = (
        [get_backend(backend, way=way) for way in ("captured", "eager")]
        if backend == "cupy"
        else [get_backend(backend)]
    )
    for where in ways:
        model = MLP((784, 64, 10), backend=where, seed=0)
        model.fit(x, y, epochs=1, verbose=0)
        began = time.perf_counter()
        model.fit(x, y, epochs=2, verbose=0)
        microseconds = (time.perf_counter() - began) / (2 * -(-len(x) // 32)) * 1e6
        parts.append(f"{microseconds:.0f} us a step {getattr(where, '_way', '')}".strip())
    return "784-64-10, 32 rows: " + ", ".join(parts)


STAGES: dict[str, Callable[[str], str]] = {
    "against NumPy": compare_with_numpy,
    "captured, bit for bit": compare_bits,
    "captured, and cuBLAS": compare_ways,
    "nodes of graphs": count_nodes,
    "memory": leave_memory_alone,
    "race": race,
}
_OF_CUPY_ALONE = (compare_bits, compare_ways, count_nodes)


def stages_of(backend: str) -> tuple[str, ...]:
    """Return the names of the stages that a backend has."""
    return tuple(name for name, stage in STAGES.items() if backend == "cupy" or stage not in _OF_CUPY_ALONE)


def in_this_process(stage: str, backend: str) -> str:
    """Run a stage; return what it found."""
    return STAGES[stage](backend)


def run_stage(stage: str, backend: str) -> Outcome:
    """Run a stage in a process of its own."""
    began, given = time.perf_counter(), {"stage": stage, "backend": backend}
    try:
        text = in_fresh_process("fastmlp.doctor.selftest:in_this_process", given, timeout=SECONDS)
    except TooLongError as e:
        return Outcome(stage, False, float(SECONDS), f"{e}: it hangs")
    except FreshProcessError as e:
        return Outcome(stage, False, time.perf_counter() - began, e.said if e.kind else f"{e}\n{e.said}".strip())
    return Outcome(stage, True, time.perf_counter() - began, text)


def run_all(backend: str) -> Iterator[Outcome]:
    """Run all stages, one after another.

    Raises
    ------
    BackendUnavailable
        The backend cannot run here.
    """
    get_backend(backend)
    passed = True
    for stage in stages_of(backend):
        outcome = run_stage(stage, backend)
        passed &= outcome.passed
        yield outcome
    if backend == "cupy":
        note_selftest(passed)
