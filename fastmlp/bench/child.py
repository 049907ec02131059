"""What a fresh process does for a run: measure one contender, or the machine.

A process of its own for each: what one library has loaded, allocated or pinned is no other's burden.  Nothing that
costs time or memory is imported before the contender's own library, whose import is timed.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastmlp.bench.contenders import Running, contender
from fastmlp.bench.limits import measure, pin
from fastmlp.bench.measures import TIMED, Effort, peak_memory, samples_of, take_samples
from fastmlp.bench.workloads import SCALES, Rows, Workload, rows_of


def measure_contender(
    name: str, workload: Workload, effort: Effort, seed: int, first_alone: bool = False
) -> dict[str, list[float]]:
    """Return samples of each measure, taken in this process.

    Parameters
    ----------
    name : str
        Of a contender.
    workload : Workload
    effort : Effort
    seed : int
        Of rows, weights and orders.
    first_alone : bool
        Whether nothing follows the first call.
    """
    chosen = contender(name)
    start = time.perf_counter()
    import numpy as np  # every contender needs it

    importlib.import_module(chosen.module)
    found = {"import": [time.perf_counter() - start]}
    spec = workload.spec()
    rows = rows_of(workload, spec, effort.operations, seed, chosen.device)
    start = time.perf_counter()
    running = chosen.make(workload, spec, rows, seed)
    running.train(1)
    found["first"] = [time.perf_counter() - start]
    if first_alone:
        return found
    wanted = effort.of_compilers if chosen.compiles else TIMED
    found |= _timed(running, rows, effort, wanted, SCALES[chosen.device].trained)
    memory = peak_memory()
    if memory is not None:
        found["memory"] = [float(memory)]
    if running.device_memory is not None:
        found["device"] = [float(running.device_memory())]
    assert all(np.isfinite(samples).all() for samples in found.values())
    return found


def _timed(running: Running, rows: Rows, effort: Effort, wanted: Sequence[str], least: float) -> dict[str, list[float]]:
    found = {}
    if "train" in wanted:
        running.train(1)
        samples = samples_of(running.train, effort.samples, effort.seconds, least=least)
        found["train"] = [seconds / rows.steps for seconds in samples]
    for name, call, count in (("predict", running.predict, len(rows.many)), ("row", running.row, 1)):
        if name in wanted:
            call()
            found[name] = [seconds / count for seconds in take_samples(call, effort.samples, effort.seconds)]
    return found


def of_contender(
    contender: str,
    workload: Mapping[str, Any],
    effort: Sequence[Any],
    seed: int,
    threads: int | None = None,
    first_alone: bool = False,
) -> dict[str, list[float]]:
    """Return `measure_contender` of what JSON has made plain, kept to so many threads."""
    pin(threads)
    return measure_contender(contender, Workload.from_dict(workload), Effort(*effort), seed, first_alone)


def of_device(device: str, dtype: str, effort: Sequence[Any]) -> dict[str, Any]:
    """Return `limits.measure` of what JSON has made plain."""
    return measure(device, dtype, Effort(*effort))
