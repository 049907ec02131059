"""Whether a backend computes rightly on this machine: ``fastmlp selftest``, in half a minute.

Each stage runs in a process of its own, because a fault on a GPU poisons the process that it happens in: the stages
after it would fail too, and hide which one it was.  A stage holds the backend against NumPy, or against itself run
another way; of CuPy the graphs that it captures are looked at as well.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from fastmlp.activations import activation_names, get_activation
from fastmlp.backends import get_backend
from fastmlp.losses import LOSSES
from fastmlp.model import MLP
from fastmlp.optimizers import OPTIMIZERS, SGD, Adam, Optimizer, RMSprop

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend

ROWS = 200
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


class SelfTestError(AssertionError):
    """A backend has computed something wrong."""


def _data(outputs: int, rows: int = ROWS, features: int = 37) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, features)).astype(np.float32), rng.integers(0, outputs, rows)


def _trained(
    backend: Backend | str,
    dtype: str,
    optimizer: Optimizer | None = None,
    units: tuple[int, ...] = (37, 50, 21, 5),
    batch: int = 32,
    **network: Any,
) -> list[NDArray[Any]]:
    """Train a small network for an epoch; return its weights, its outputs and its loss."""
    x, y = _data(units[-1], features=units[0])
    model = MLP(units, backend=backend, dtype=dtype, seed=0, **({"activation": "tanh"} | network))
    takes_labels = model.spec.loss.takes_labels
    targets = y if takes_labels else np.abs(np.sin(np.outer(y + 1, np.arange(1, units[-1] + 1))))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "captured steps cannot be used")  # training would go on in another way
        history = model.fit(x, targets, epochs=1, batch_size=batch, optimizer=optimizer or Adam(epsilon=0.1), verbose=0)
    outputs = model.predict_proba(x) if model.spec.loss.name == "softmax_cross_entropy" else model.predict(x)
    return [*model.get_weights(), outputs, np.array(history.history["loss"])]


def _compare(found: list[NDArray[Any]], expected: list[NDArray[Any]], dtype: str, what: str) -> float:
    """Return the largest difference in units of what rounding allows; raise where it is above 1."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        scale = np.maximum(1.0, np.abs(b))
        allowed = 64 * np.finfo(dtype).eps * np.sqrt(50 * ROWS) * scale
        difference = np.abs(a.astype(np.float64) - b) / allowed
        if not (difference <= 1).all():
            raise SelfTestError(f"{what} in {dtype}: off by {difference.max():.3g} times what rounding allows")
        worst = max(worst, float(difference.max()))
    return worst


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
    for what, case in _cases():
        expected = _trained("numpy", "float64", **case)
        for dtype in ("float32", "float64"):
            worst = max(worst, _compare(_trained(backend, dtype, **case), expected, dtype, what))
            count += 1
    return f"{count:.0f} networks agree with NumPy; at worst {worst:.2f} of what rounding allows"


_STAGES_OF_A_STEP: dict[str, Any] = {"optimizer": Adam(clip_norm=0.5, epsilon=0.1, ema=0.9), "dropout": 0.2, "l2": 1e-3}
LAUNCHES_OF_A_STEP = 12
"""At most, of three dense layers with Adam; and one more a graph."""


@contextlib.contextmanager
def _launched_one_by_one() -> Iterator[None]:
    """Let captured steps be launched kernel by kernel instead."""
    from fastmlp.backends import cupy_backend, cupy_step

    def uncaptured(*args: Any, **options: Any) -> cupy_step.TrainingStep:
        return cupy_step.TrainingStep(*args, **{**options, "captured": False})

    with mock.patch.object(cupy_backend, "TrainingStep", uncaptured):
        yield


def compare_bits(backend: str) -> str:
    """Hold captured steps of the CuPy backend against the same kernels launched one by one, and against themselves."""
    for dtype in ("float32", "float64"):
        captured = _trained(get_backend(backend, way="captured"), dtype, **_STAGES_OF_A_STEP)
        again = _trained(get_backend(backend, way="captured"), dtype, **_STAGES_OF_A_STEP)
        with _launched_one_by_one():
            single = _trained(get_backend(backend, way="captured"), dtype, **_STAGES_OF_A_STEP)
        for others, what in ((again, "two captured runs"), (single, "captured steps and the same kernels uncaptured")):
            if any(a.tobytes() != b.tobytes() for a, b in zip(captured, others, strict=True)):
                raise SelfTestError(f"{what} in {dtype} differ in their bits")
    return "captured steps give the same bits twice, and those of the same kernels launched one by one"


def compare_ways(backend: str) -> str:
    """Hold captured steps of the CuPy backend against eager ones, whose products are cuBLAS's."""
    worst = 0.0
    for dtype in ("float32", "float64"):
        captured = _trained(get_backend(backend, way="captured"), dtype, **_STAGES_OF_A_STEP)
        eager = _trained(get_backend(backend, way="eager"), dtype, **_STAGES_OF_A_STEP)
        worst = max(worst, _compare(captured, eager, dtype, "captured steps against eager ones"))
    return f"captured steps are within {worst:.2f} of what rounding allows of eager ones, with products by cuBLAS"


def count_nodes(backend: str) -> str:
    """Count the nodes of the graphs that are captured: each launch is one, and there are no others."""
    from fastmlp.backends import cupy_step

    graphs: dict[tuple[int, int], tuple[Any, int]] = {}
    launches: list[tuple[str, bool]] = []
    steps_of: list[Any] = []
    where: Any = get_backend(backend, way="captured")
    capture, launched = cupy_step.TrainingStep._graph, where._launch

    def counted(file: str, name: str, *rest: Any) -> None:
        launches.append((name, where._cupy.cuda.get_current_stream().is_capturing()))
        launched(file, name, *rest)

    def kept(self: Any, steps: int, rows: int) -> Any:
        before = len(launches)
        graph = capture(self, steps, rows)
        captured = sum(capturing for _, capturing in launches[before:])
        graphs.setdefault((steps, rows), (graph, captured))
        steps_of.append(self)
        return graph

    x, y = _data(10, rows=2 * 32 + 5, features=50)
    with mock.patch.object(where, "_launch", counted), mock.patch.object(cupy_step.TrainingStep, "_graph", kept):
        MLP((50, 32, 16, 10), backend=where, seed=0).fit(x, y, epochs=1, batch_size=32, optimizer=Adam(), verbose=0)
        if not graphs:
            raise SelfTestError("no graph was captured")
        with steps_of[0]._own_stream():
            steps_of[0]._graph(cupy_step.GRAPH_STEPS, 32)  # which a fit as short as this may not have needed
        found = []
        for (steps, rows), (graph, captured) in graphs.items():
            nodes = nodes_of(graph)
            if nodes != captured or nodes > LAUNCHES_OF_A_STEP * steps + 1:
                raise SelfTestError(
                    f"the graph of {steps} steps of {rows} rows has {nodes} nodes; {captured} kernels were launched "
                    f"while it was captured, and at most {LAUNCHES_OF_A_STEP * steps + 1} are expected"
                )
            found.append(f"{nodes} for {steps} steps of {rows} rows")
    return "nodes of a graph: " + ", ".join(found)


def nodes_of(graph: Any) -> int:
    """Return how many nodes a captured graph has.

    CuPy has no call for it, but CUDA's own picture of a graph (`cupy.cuda.Graph.debug_dot_str`, in the language of
    Graphviz) has a line ``"graph_1_node_7"[...`` for each.
    """
    return len(set(re.findall(r'^\s*"(graph_\d+_node_\d+)"\s*\[', graph.debug_dot_str(), re.MULTILINE)))


def leave_memory_alone(backend: str) -> str:
    """Fit and predict in a loop, and look whether memory grows."""
    x, y = _data(5)
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
    x, y = _data(10, rows=20000, features=784)
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


def run_stage(stage: str, backend: str) -> Outcome:
    """Run a stage in a process of its own."""
    began = time.perf_counter()
    command = [sys.executable, "-P", "-m", "fastmlp.selftest", stage, backend]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(stage, False, float(SECONDS), f"took longer than {SECONDS} s: it hangs")
    seconds = time.perf_counter() - began
    if done.returncode == 0:
        return Outcome(stage, True, seconds, done.stdout.strip())
    text = done.stderr.strip() or f"the process ended with code {done.returncode}"
    return Outcome(stage, False, seconds, text)


def run_all(backend: str) -> Iterator[Outcome]:
    """Run all stages, one after another.

    Raises
    ------
    BackendUnavailable
        The backend cannot run here.
    """
    get_backend(backend)
    for stage in stages_of(backend):
        yield run_stage(stage, backend)


def main(stage: str, backend: str) -> int:
    """Run a stage in this process; print what it found, or why it failed."""
    try:
        print(STAGES[stage](backend))
    except Exception:  # reported by the parent, whatever it is
        traceback.print_exc(limit=-4)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
