"""How long several libraries take to a test accuracy on MNIST: the same network, optimizer, batch and learning rate.

    python benchmarks/time_to_accuracy.py --write      # to 98 %, five seeds, every contender that is installed
    python benchmarks/time_to_accuracy.py --seeds 15 --contenders jax,fastmlp-numba   # less by luck
    python benchmarks/time_to_accuracy.py --target 95 --seeds 1 --workload viblo

By MLPerf's rules (Mattson et al. 2020, MLPerf Training Benchmark): the clock runs from the first touch of the data to
the evaluation that finds the target, of the whole test set after each epoch.  Before it are imports (a network is made,
and not trained), the images as plain arrays on the disk, which every contender then reads, and an epoch of each in
another process, for what a library keeps on the disk (fastmlp its kernels); what one compiles anew in each process
(JAX) is after it.  Each run has a seed of its own and is a process of its own, the contenders in turn; the fastest and
the slowest run of each are dropped, and of the others median and mean are told.  A run that does not get there in some
epochs counts as infinitely long.  Initial weights and the order of rows are as each contender of `race.py` has them, so
that one needs 3 to 11 epochs, by luck: of five seeds medians differ by an epoch for nothing, of fifteen by less.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from race import CONTENDERS, named, raced

from fastmlp.bench.workloads import RATES, WORKLOADS, Rows


class Run(NamedTuple):
    """One way to the target.

    Attributes
    ----------
    seconds : float
        inf where it was not reached.
    epochs : int
    accuracy : float
        The last one, in percent.
    """

    seconds: float
    epochs: int
    accuracy: float


def prepare(folder: Path) -> None:
    """Write MNIST as arrays: float32 images in [0, 1], int64 labels."""
    from fastmlp.datasets import load_mnist

    for part, (x, y) in zip(("train", "test"), load_mnist(), strict=True):
        np.save(folder / f"{part}-x.npy", x)
        np.save(folder / f"{part}-y.npy", y)


def reach(
    target: float,
    most: int,
    load: Callable[[str], Any],
    begin: Callable[[Any, Any, Any], Any],
    clock: Callable[[], float],
) -> Run:
    """Train until the target is reached.

    Parameters
    ----------
    target : float
        Of the accuracy, in percent.
    most : int
        Epochs.
    load : callable
        Reads an array by its name.
    begin : callable
        Returns, for the rows to train on and those to predict, what trains so many epochs and what predicts classes.
    clock : callable
        Tells seconds.
    """
    began = clock()
    train, predict = begin(load("train-x"), load("train-y"), load("test-x"))
    y, accuracy = load("test-y"), 0.0
    for epoch in range(1, most + 1):
        train(1)
        accuracy = 100 * float(np.mean(np.asarray(predict()) == y))
        if accuracy >= target:
            return Run(clock() - began, epoch, accuracy)
    return Run(math.inf, most, accuracy)


def run(folder: str, contender: str, workload: str, optimizer: str, seed: int, target: float, most: int) -> Run:
    """Let a contender train in this process."""
    chosen = replace(WORKLOADS[workload], optimizer=optimizer)
    units, batch = chosen.units, chosen.batch

    def begin(x: Any, y: Any, many: Any) -> Any:
        running = named(contender).make(chosen, chosen.spec(), Rows(x, y, many, len(x) // batch), seed)
        return running.train, running.predict

    nothing = np.zeros((batch, units[0]), np.float32)
    begin(nothing, np.arange(batch) % units[-1], nothing)  # imports all that it needs
    return reach(target, most, lambda name: np.load(Path(folder, f"{name}.npy")), begin, time.perf_counter)


def scored(seconds: Sequence[float]) -> tuple[float, float]:
    """Return median and mean of the seconds of some runs, the fastest and the slowest dropped where there are three."""
    kept = sorted(seconds)[1:-1] if len(seconds) > 2 else list(seconds)
    return statistics.median(kept), statistics.fmean(kept)


def main() -> None:
    """Race to the target, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=98.0, help="test accuracy in percent")
    parser.add_argument("--workload", choices=[n for n, w in WORKLOADS.items() if w.units[0] == 784], default="mid")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--optimizer", choices=list(RATES), default="adam")
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, ...: a run of each contender with each")
    parser.add_argument("--most", type=int, default=30, help="epochs of a run")
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    options = parser.parse_args()
    names = [c for c in options.contenders.split(",") if importlib.util.find_spec(named(c).module.partition(".")[0])]
    found: dict[str, list[Run]] = {name: [] for name in names}
    asked = {name: getattr(options, name) for name in ("workload", "optimizer", "target", "most")}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for name in names:
            raced("time_to_accuracy:run", folder=folder, contender=name, seed=0, **{**asked, "most": 1})
        for seed in range(options.seeds):
            for name in names:
                given = raced("time_to_accuracy:run", folder=folder, contender=name, seed=seed, **asked)
                found[name] += [] if given is None else [Run(*given)]
    text = report(found)
    print(text)
    if options.write:
        from results import write_section

        workload = WORKLOADS[options.workload]
        network = f"{'-'.join(map(str, workload.units))}, {workload.activation}"
        rate, seeds = RATES[options.optimizer], ", ".join(map(str, range(options.seeds)))
        settings = f"{network}; {options.optimizer} at {rate:g}, batches of {workload.batch}; seeds {seeds}."
        write_section(f"Time to {options.target:g} % on MNIST with {options.optimizer}", f"{settings}\n\n{text}")


def report(found: dict[str, list[Run]]) -> str:
    """Return the table of all runs."""
    from fastmlp.bench.tables import markdown_table as table

    scores = {name: scored([r.seconds for r in runs]) for name, runs in found.items() if runs}
    peer = min((score[0] for name, score in scores.items() if not name.startswith("fastmlp")), default=math.inf)
    rows = []
    for name, (median, mean) in scores.items():
        runs = found[name]
        ratio = f"{peer / median:.2f}" if math.isfinite(peer) and math.isfinite(median) else ""
        each = ", ".join(f"{r.seconds:.2f}" for r in runs)
        epochs, last = ", ".join(str(r.epochs) for r in runs), ", ".join(f"{r.accuracy:.2f}" for r in runs)
        rows.append([name, f"{median:.2f}", f"{mean:.2f}", ratio, each, epochs, last])
    head = [
        "contender",
        "median, s",
        "mean, s",
        "x the fastest peer (medians)",
        "each seed, s",
        "epochs",
        "accuracy, %",
    ]
    return table(head, rows)


if __name__ == "__main__":
    main()
