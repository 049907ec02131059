"""Train, or predict with, one network in several libraries in turn, and print how each stands to the fastest peer.

    python benchmarks/race.py                                      # five workloads, every contender that is installed
    python benchmarks/race.py --workloads tanh,batch1 --optimizer adam --rounds 5
    python benchmarks/race.py --task predict
    python benchmarks/race.py --avx2                               # as on a laptop: no AVX-512, for every contender

Each contender of each round is a process of its own, so a machine that slows down slows all of them.  A figure is the
best of some epochs after one of warm-up, in microseconds per training step; for predictions, the best of some calls
with 60,000 rows, in milliseconds.  An epoch of a large network is cut to some steps, since a step takes as long in
all of them.  With --write the table becomes a section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from results import PINNED, write_section

from fastmlp.bench.contenders import Contender, contender
from fastmlp.bench.workloads import FIRST, RATES, WORKLOADS, Rows, Workload, steps_of_an_epoch
from fastmlp.doctor.fresh import FreshProcessError, in_fresh_process

CONTENDERS = ("torch", "jax", "sklearn", "fastmlp-numpy", "fastmlp-numba")
MOST_OPERATIONS = 1.5e11
"""Operations of an epoch at most: about a second."""
AVX2 = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+64bit,+avx,+avx2,+bmi,+bmi2,+cmov,+cx16,+cx8,+f16c,+fma,+fxsr,+lzcnt,+mmx,+movbe,+popcnt,"
    "+sahf,+sse,+sse2,+sse3,+sse4.1,+sse4.2,+ssse3,+xsave",
    "OPENBLAS_CORETYPE": "Haswell",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
"""What tells each library to use AVX2 at most, as on most laptops; JAX's products escape it in part."""
RESTRICTED: dict[str, str] = {}
SECONDS = 1800.0
"""After which a process counts as hanging."""


def data(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 inputs and labels of 60,000 rows."""
    if workload.units[0] == 784:
        from fastmlp.datasets import load_mnist

        (x, y), _ = load_mnist()
        return x, y
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60_000, workload.units[0])).astype(np.float32)
    return x, rng.integers(0, workload.units[-1], 60_000)


def named(name: str) -> Contender:
    """Return a contender of `fastmlp bench`; a backend of fastmlp is called fastmlp-NAME here."""
    return contender(name.removeprefix("fastmlp-"))


def measure(task: str, workload: str, contender: str, optimizer: str, repeats: int) -> float:
    """Return the seconds of a step, or of a prediction of all rows, in this process."""
    given = WORKLOADS[workload]
    x, y = data(given)
    steps = steps_of_an_epoch(given.units, given.batch, MOST_OPERATIONS)
    rows = Rows(x[: steps * given.batch], y[: steps * given.batch], x, steps)
    chosen = replace(given, optimizer=optimizer)
    running = named(contender).make(chosen, chosen.spec(), rows, 0)
    if task == "predict":
        running.train(1)  # scikit-learn has no network before
    work, count = (lambda: running.train(1), steps) if task == "train" else (running.predict, 1)
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / count


def raced(
    target: str,
    variables: Mapping[str, str | None] = MappingProxyType({}),
    launcher: Sequence[str] = (),
    /,
    **arguments: Any,
) -> Any:
    """Return what a function returns in a fresh process; None where it fails, with the reason on stderr."""
    environment = {**dict.fromkeys(PINNED), **RESTRICTED, **variables}
    try:
        return in_fresh_process(target, arguments, timeout=SECONDS, environment=environment, launcher=launcher)
    except FreshProcessError as e:
        said = [e.said] if launcher else []  # of what a launcher starts the message has the launcher's last words alone
        print(f"{arguments}: {e}", *said, sep="\n", file=sys.stderr)
        return None


def main() -> None:
    """Race, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["train", "predict"], default="train")
    parser.add_argument("--workloads", default=",".join(FIRST))
    parser.add_argument("--contenders", default=",".join(c for c in CONTENDERS if c != "sklearn"))
    parser.add_argument("--optimizer", choices=list(RATES), default="sgd")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="epochs, or predictions, of a process")
    parser.add_argument("--avx2", action="store_true", help="tell every contender to use AVX2 at most")
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    options = parser.parse_args()
    if options.avx2:
        RESTRICTED.update(AVX2)
        os.environ.update(AVX2)
    names = [c for c in options.contenders.split(",") if importlib.util.find_spec(named(c).module.partition(".")[0])]
    workloads = options.workloads.split(",")
    found: dict[str, dict[str, list[float]]] = {w: {c: [] for c in names} for w in workloads}
    for _ in range(options.rounds):
        for workload in workloads:
            for name in names:
                common = {"task": options.task, "optimizer": options.optimizer, "repeats": options.repeats}
                seconds = raced("race:measure", workload=workload, contender=name, **common)
                found[workload][name] += [] if seconds is None else [seconds]

    from fastmlp.bench.tables import markdown_table as table

    unit, scale = ("us a step", 1e6) if options.task == "train" else ("ms for 60,000 rows", 1e3)
    rows = []
    for workload, by in found.items():
        medians = {c: statistics.median(s) for c, s in by.items() if s}
        peer = min((m for c, m in medians.items() if not c.startswith("fastmlp")), default=None)
        for name, median in medians.items():
            ratio = "" if peer is None else f"{peer / median:.2f}"
            network = "-".join(map(str, WORKLOADS[workload].units))
            best = f"{min(by[name]) * scale:.1f}"
            rows.append(
                [workload, f"{network}, {WORKLOADS[workload].batch}", name, best, f"{median * scale:.1f}", ratio]
            )
    head = ["workload", "units, batch", "contender", f"best, {unit}", "median", "x the fastest peer (medians)"]
    text = table(head, rows)
    print(text)
    if options.write:
        title = "Race: predictions" if options.task == "predict" else f"Race: training with {options.optimizer}"
        title += "" if tuple(workloads) == FIRST else ", other shapes"
        write_section(title, f"{options.rounds} rounds of fresh processes in turn.\n\n{text}")


if __name__ == "__main__":
    main()
