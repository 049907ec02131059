"""Whether the CUDA graphs of the CuPy backend compute what their kernels compute one by one, and hold nothing else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

from fastmlp.backends.choosing import get_backend
from fastmlp.doctor.trials import SelfTestError, compare, data, precisions, trained
from fastmlp.formulas.optimizers import Adam
from fastmlp.model import MLP

_STAGES_OF_A_STEP: dict[str, Any] = {"optimizer": Adam(clip_norm=0.5, epsilon=0.1, ema=0.9), "dropout": 0.2, "l2": 1e-3}
LAUNCHES_OF_A_STEP = 12
"""At most, of three dense layers with Adam; and one more a graph."""


@contextlib.contextmanager
def launched_one_by_one() -> Iterator[None]:
    """Let captured steps be launched kernel by kernel instead."""
    from fastmlp.backends.cuda import choice, step

    def uncaptured(*args: Any, **options: Any) -> step.TrainingStep:
        return step.TrainingStep(*args, **{**options, "captured": False})

    with mock.patch.object(choice, "TrainingStep", uncaptured):  # `choice.make_step` makes all steps
        yield


def compare_bits(backend: str) -> str:
    """Hold captured steps of the CuPy backend against the same kernels launched one by one, and against themselves."""
    many: dict[str, Any] = {**_STAGES_OF_A_STEP, "batch": 9}  # long graphs of steps, short ones, and a short batch
    for dtype in ("float32", "float64"):
        captured = trained(get_backend(backend, way="captured"), dtype, **many)
        again = trained(get_backend(backend, way="captured"), dtype, **many)
        with launched_one_by_one():
            single = trained(get_backend(backend, way="captured"), dtype, **many)
        for others, what in ((again, "two captured runs"), (single, "captured steps and the same kernels uncaptured")):
            if any(a.tobytes() != b.tobytes() for a, b in zip(captured, others, strict=True)):
                raise SelfTestError(f"{what} in {dtype} differ in their bits")
    return "captured steps give the same bits twice, and those of the same kernels launched one by one"


def compare_ways(backend: str) -> str:
    """Hold captured steps of the CuPy backend against eager ones, whose products are cuBLAS's."""
    worst = 0.0
    for dtype in precisions(backend):
        captured = trained(get_backend(backend, way="captured"), dtype, **_STAGES_OF_A_STEP)
        eager = trained(get_backend(backend, way="eager"), dtype, **_STAGES_OF_A_STEP)
        worst = max(worst, compare(captured, eager, dtype, "captured steps against eager ones"))
    return f"captured steps are within {worst:.2f} of what rounding allows of eager ones, with products by cuBLAS"


def count_nodes(backend: str) -> str:
    """Count the nodes of the graphs that are captured: each launch is one, and there are no others."""
    from fastmlp.backends.cuda import step as cuda_step

    graphs: dict[tuple[int, int], tuple[Any, int]] = {}
    launches: list[tuple[str, bool]] = []
    steps_of: list[Any] = []
    where: Any = get_backend(backend, way="captured")
    capture, launched = cuda_step.TrainingStep._graph, where._launch

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

    x, y = data(10, rows=2 * 32 + 5, features=50)
    with mock.patch.object(where, "_launch", counted), mock.patch.object(cuda_step.TrainingStep, "_graph", kept):
        MLP((50, 32, 16, 10), backend=where, seed=0).fit(x, y, epochs=1, batch_size=32, optimizer=Adam(), verbose=0)
        if not graphs:
            raise SelfTestError("no graph was captured")
        with steps_of[0]._own_stream():
            steps_of[0]._graph(cuda_step.GRAPH_STEPS, 32)  # which a fit as short as this may not have needed
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
