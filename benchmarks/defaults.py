"""Which initializer, learning rate and batch size serve best where nobody chooses: small tables at equal epochs.

    python benchmarks/defaults.py --write   # every setting on every task: a quarter of an hour of one core
    python benchmarks/defaults.py --quick   # a few settings on a few tasks, in seconds

The score of a task is that of the rows held out, a third: accuracy, or R2 (of values that were standardised; at least
0, that of a constant). The regret of a setting is what it loses on a task against the best setting there, its rank its
place among all, each a mean over the tasks.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from defaults_tasks import Task, split, tasks
from numpy.typing import NDArray
from results import write_section
from scipy.stats import rankdata

import fastmlp
from fastmlp.bench.tables import markdown_table as table
from fastmlp.engine.batches import default_batch_size
from fastmlp.formulas.initializers import INITIALIZERS, Initializer, VarianceScaling

Setting = tuple[str, str, str]
"""Names of an initializer, an optimizer and a batch size."""


@dataclass(frozen=True)
class TorchLinear(VarianceScaling):
    """The weights of PyTorch's ``Linear``: uniform on ``+- 1 / sqrt(fan_in)``."""

    gain, uniform = 1 / 3, True


@dataclass(frozen=True)
class ByLayer(Initializer):
    """One initializer for the hidden layers, and for the outputs another times a factor."""

    hidden: str
    output: str
    factor: float
    last: int

    name: ClassVar[str] = "by_layer"

    def draw(self, key: int, fan_in: int, fan_out: int, layer: int) -> NDArray[np.float64]:
        chosen = INITIALIZERS.record(self.output if layer == self.last else self.hidden)
        weights = chosen.draw(key, fan_in, fan_out, layer)
        return self.factor * weights if layer == self.last else weights


def _named(name: str, layers: int) -> str:
    return name


def by_layer(hidden: str, output: str, factor: float = 1.0) -> Callable[[int], ByLayer]:
    """Return what makes the initializer of a network of so many layers."""
    return lambda layers: ByLayer(hidden, output, factor, layers - 1)


STARTS: dict[str, Callable[[int], Any]] = {
    **{name: partial(_named, name) for name in ("glorot_uniform", "glorot_normal", "he_uniform", "he_normal")},
    **{name: partial(_named, name) for name in ("lecun_uniform", "lecun_normal")},
    "torch": lambda layers: TorchLinear(),
    "he_normal, outputs glorot_uniform": by_layer("he_normal", "glorot_uniform"),
    "lecun_uniform, outputs / 10": by_layer("lecun_uniform", "lecun_uniform", 0.1),
    "glorot_uniform, outputs / 10": by_layer("glorot_uniform", "glorot_uniform", 0.1),
}
OPTIMIZERS: dict[str, fastmlp.Optimizer] = {
    **{f"Adam({rate:g})": fastmlp.Adam(rate) for rate in (3e-4, 1e-3, 3e-3, 1e-2)},
    **{f"SGD({rate:g}, momentum=0.9)": fastmlp.SGD(rate, momentum=0.9) for rate in (0.01, 0.1)},
}
BATCHES: dict[str, Callable[[int], int]] = {
    "n / 32, 8 to 128": default_batch_size,
    "32": lambda n: min(32, n),
    "128": lambda n: min(128, n),
    "200": lambda n: min(200, n),
    "all": lambda n: n,
}
FORMER = "he_normal, outputs glorot_uniform"
DEFAULT: Setting = ("glorot_uniform", "Adam(0.001)", "n / 32, 8 to 128")
"""What `fastmlp.MLP` and its `fit` do where they are told nothing."""
KNOWN: dict[Setting, str] = {
    DEFAULT: "the default",
    (FORMER, "Adam(0.001)", "128"): "the default until 2026-11",
    ("glorot_uniform", "Adam(0.001)", "32"): "Keras",
    ("glorot_uniform", "Adam(0.001)", "200"): "scikit-learn",
}
EPOCHS = (20, 50)
QUICK = "iris", "friedman1"


def settings(quick: bool) -> list[Setting]:
    """Return what is tried: each initializer with each optimizer, and two of them with each batch size too."""
    if quick:
        return list(KNOWN)
    with_default = itertools.product(STARTS, OPTIMIZERS, [DEFAULT[2]])
    with_others = itertools.product([DEFAULT[0], FORMER], OPTIMIZERS, [b for b in BATCHES if b != DEFAULT[2]])
    return [*with_default, *with_others]


def scores(name: str, tried: Sequence[Setting], seeds: int) -> list[list[float]]:
    """Return the mean score on a task for each setting, after each number of `EPOCHS`."""
    task, backend = tasks()[name], fastmlp.get_backend("numba", threads=1)
    parts = [split(task, seed) for seed in range(seeds)]
    rows = len(parts[0][0])
    known: dict[tuple[str, str, int], list[float]] = {}  # batch sizes that are the same on few rows are tried once
    for start, optimizer, batch in tried:
        key = start, optimizer, BATCHES[batch](rows)
        if key not in known:
            each = [score(task, part, seed, backend, key) for seed, part in enumerate(parts)]
            known[key] = [statistics.mean(at) for at in zip(*each, strict=True)]
    return [known[start, optimizer, BATCHES[batch](rows)] for start, optimizer, batch in tried]


def score(
    task: Task,
    part: tuple[NDArray[Any], ...],
    seed: int,
    backend: fastmlp.backends.base.Backend,
    setting: tuple[str, str, int],
) -> list[float]:
    """Return the score of one network after each number of `EPOCHS`; that of a constant once it has overflowed."""
    (x, y, x_test, y_test), (start, optimizer, batch) = part, setting
    outputs, loss = (y.shape[1], "mean_squared_error") if task.values else (int(y.max()) + 1, "softmax_cross_entropy")
    units = (x.shape[1], *task.hidden, outputs)
    model = fastmlp.MLP(units, loss=loss, initializer=STARTS[start](len(units) - 1), backend=backend, seed=seed)
    found: list[float] = []
    try:
        for more in np.diff((0, *EPOCHS)):
            model.fit(x, y, epochs=more, batch_size=batch, optimizer=OPTIMIZERS[optimizer], verbose=0)
            outcome = model.predict(x_test).reshape(y_test.shape)  # one output is predicted without its axis
            wrong = (outcome - y_test) ** 2 / y_test.var(axis=0) if task.values else outcome != y_test
            found.append(max(1.0 - float(np.mean(wrong)), 0.0))
    except fastmlp.NonFiniteLossError:
        found += [0.0] * (len(EPOCHS) - len(found))
    return found


def report(figures: dict[str, list[list[float]]], tried: list[Setting]) -> str:
    """Return the tables: settings by regret, initializers and batch sizes by optimizer, and each task."""
    by_task = np.array(list(figures.values())).transpose(2, 1, 0)  # epochs, settings, tasks
    regret = 100 * (by_task.max(axis=1, keepdims=True) - by_task).mean(axis=2)
    ranks = rankdata(-by_task, axis=1).mean(axis=2)
    where = {setting: i for i, setting in enumerate(tried)}
    means = 100 * by_task.mean(axis=2)

    def figures_of(i: int) -> list[str]:
        return [f"{of[at, i]:.2f}" for at in range(len(EPOCHS)) for of in (means, regret, ranks)]

    best = [tried[i] for i in np.argsort(regret.mean(axis=0), kind="stable")]
    shown = [s for s in best if s in KNOWN or s in best[:12]]
    of_epochs = [f"{what}, {epochs} epochs" for epochs in EPOCHS for what in ("score", "regret", "rank")]
    text = table(
        ["initializer", "optimizer", "batch size", "", *of_epochs],
        [[*s, KNOWN.get(s, ""), *figures_of(where[s])] for s in shown],
    )
    for what, names, at in (("initializer", STARTS, 0), ("batch size", BATCHES, 2)):
        rows = []
        for name in names:
            of = [tuple(name if i == at else o if i == 1 else DEFAULT[i] for i in range(3)) for o in OPTIMIZERS]
            if any(s in where for s in of):
                rows.append([name, *(f"{regret[:, where[s]].mean():.2f}" if s in where else "" for s in of)])
        other = f"batch size {DEFAULT[2]}" if at == 0 else DEFAULT[0]
        text += f"\n\nMean regret by {what} and optimizer ({other}):\n\n{table([what, *OPTIMIZERS], rows)}"
    rows = []
    for i, name in enumerate(figures):
        last = by_task[-1, :, i]
        each = [f"{100 * last[where[s]]:.1f}" for s in KNOWN]
        rows.append([name, *each, f"{100 * last.max():.1f}", ", ".join(tried[int(last.argmax())])])
    head = ["task", *KNOWN.values(), "best", "of the setting"]
    return f"{text}\n\nMean score of each task after {EPOCHS[-1]} epochs:\n\n{table(head, rows)}"


def main() -> None:
    """Train, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--quick", action="store_true", help=f"known settings on {'; '.join(QUICK)} with one seed")
    parser.add_argument("--out", type=Path, help="a JSON file for the score of every task and setting")
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    a = parser.parse_args()
    names, tried = list(QUICK) if a.quick else list(tasks()), settings(a.quick)
    seeds = 1 if a.quick else a.seeds
    if a.jobs == 1:
        found = [scores(name, tried, seeds) for name in names]
    else:
        with ProcessPoolExecutor(a.jobs, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(scores, names, [tried] * len(names), [seeds] * len(names)))
    figures = dict(zip(names, found, strict=True))
    text = report(figures, tried)
    print(text)
    if a.out:
        a.out.write_text(json.dumps({"settings": tried, "epochs": EPOCHS, "seeds": seeds, "scores": figures}))
    if a.write:
        write_section(
            "Defaults: initializers, learning rates and batch sizes on small tables",
            f"{len(names)} tasks, {seeds} seeds, a third of the rows held out. Score: accuracy or R2, in percent; "
            f"regret: what is lost against the best setting of a task; both means.\n\n{text}",
        )


if __name__ == "__main__":
    main()
