"""Test error on MNIST of published networks, trained by fastmlp, beside the error that was published.

    python benchmarks/accuracy.py --write             # every network: error at the last epoch, mean over three seeds
    python benchmarks/accuracy.py 784-800 --held-out  # the same on 10,000 training digits held out: to choose settings

Settings were chosen with --held-out alone; the test set is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from results import write_section

import fastmlp
from fastmlp.bench.tables import markdown_table as table

HELD_OUT = 10_000


@dataclass(frozen=True)
class Network:
    """A network, how it is trained, and the error to reach, in percent."""

    units: tuple[int, ...]
    target: float
    source: str
    epochs: int
    optimizer: fastmlp.Optimizer
    batch_size: int = 128
    options: dict[str, Any] = field(default_factory=dict)


NETWORKS = {
    "784-800": Network(
        (784, 800, 10),
        1.6,
        "Simard et al. 2003",
        epochs=20,
        optimizer=fastmlp.Adam(fastmlp.OneCycle(2e-3)),
        options={"dropout": (0.1, 0.4)},
    ),
    "784-100-100": Network(
        (784, 100, 100, 10),
        2.24,
        "scikit-learn's benchmark",
        epochs=20,
        optimizer=fastmlp.Adam(fastmlp.OneCycle(4e-3)),
        options={"dropout": (0.0, 0.1, 0.1)},
    ),
    "3x1024": Network(
        (784, 1024, 1024, 1024, 10),
        1.20,
        "Srivastava et al. 2014, 1.06 % after long training",
        epochs=80,
        optimizer=fastmlp.Adam(fastmlp.OneCycle(2e-3)),
        batch_size=256,
        options={"dropout": (0.2, 0.5, 0.5, 0.5), "max_norm": 2.0},
    ),
}


def error(network: Network, seed: int, backend: str, held_out: bool) -> float:
    """Return the percentage of wrong predictions after the last epoch."""
    (x, y), (x_test, y_test) = fastmlp.datasets.load_mnist()
    if held_out:
        (x, x_test), (y, y_test) = (x[:-HELD_OUT], x[-HELD_OUT:]), (y[:-HELD_OUT], y[-HELD_OUT:])
    model = fastmlp.MLP(network.units, backend=backend, seed=seed, **network.options)
    model.fit(x, y, epochs=network.epochs, batch_size=network.batch_size, optimizer=network.optimizer, verbose=0)
    return 100 * (1 - model.evaluate(x_test, y_test)["accuracy"])


def main() -> None:
    """Train, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--held-out", action="store_true", help="measure on 10,000 training digits instead")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md for each network")
    a = parser.parse_args()
    unknown = set(a.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"there is no network {sorted(unknown)[0]!r}; there are {', '.join(NETWORKS)}")
    where = "held-out" if a.held_out else "test"
    head = ("network", f"{where} error, mean of {a.seeds} seeds", "each", "published", "source", "minutes")
    for name in a.networks:
        network, started = NETWORKS[name], time.perf_counter()
        errors = [error(network, seed, a.backend, a.held_out) for seed in range(a.seeds)]
        minutes = (time.perf_counter() - started) / 60
        each = ", ".join(f"{e:.2f}" for e in errors)
        row = (name, f"{statistics.mean(errors):.2f} %", each, f"{network.target} %", network.source, f"{minutes:.1f}")
        text = table(head, [row])
        print(text, flush=True)
        if a.write:
            settings = ", ".join(f"{k} {v}" for k, v in network.options.items())
            trained = f"{network.epochs} epochs of batches of {network.batch_size} by {network.optimizer}; {settings}."
            write_section(f"Accuracy: {name} on the digits of MNIST, {where} set", f"{trained}\n\n{text}")


if __name__ == "__main__":
    main()
