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
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Workload(NamedTuple):
    """A network and a batch size, on MNIST or on random numbers where it has other inputs."""

    units: tuple[int, ...]
    batch: int
    activation: str = "relu"


WORKLOADS = {
    "viblo": Workload((784, 64, 32, 10), 32),
    "keras": Workload((784, 32, 128, 10), 600),
    "hundred": Workload((784, 100, 10), 200),
    "mid": Workload((784, 512, 256, 10), 128),
    "big": Workload((784, 1024, 1024, 10), 1024),
    "w512": Workload((784, 512, 512, 10), 256),
    "w768": Workload((784, 768, 768, 10), 512),
    "w1000": Workload((784, 1000, 1000, 10), 1000),
    "w2048": Workload((784, 2048, 10), 256),
    "w4096": Workload((784, 4096, 10), 64),
    "odd": Workload((784, 1023, 1025, 10), 257),
    "narrow": Workload((784, 10, 10), 64),
    "hidden16": Workload((16, 64, 64, 4), 512),
    "deep": Workload((784, *[48] * 8, 10), 64),
    "wide": Workload((784, 3000, 10), 256),
    "table": Workload((54, 128, 64, 7), 256),
    "batch1": Workload((784, 32, 10), 1),
    "batch37": Workload((784, 128, 64, 10), 37),
    "batch4096": Workload((784, 128, 64, 10), 4096),
    "tanh": Workload((784, 128, 64, 10), 128, "tanh"),
    "gelu": Workload((784, 128, 64, 10), 128, "gelu"),
}
FIRST = ("viblo", "keras", "hundred", "mid", "big")
RATES = {"sgd": 0.01, "momentum": 0.01, "adam": 1e-3}
MOST_STEPS, MOST_OPERATIONS = 2000, 1.5e11
"""Steps, and operations, of an epoch at most: enough to time, also with a batch of 1, and about a second."""
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
Contender = tuple[Callable[[], Any], Callable[..., Any]]
"""Trains for an epoch; predicts the classes of some rows, by default of those that it trains on."""


def steps_of_an_epoch(workload: Workload, rows: int) -> int:
    """Return how many steps are timed at once."""
    multiplied = sum(i * o for i, o in zip(workload.units[:-1], workload.units[1:], strict=True))
    return min(rows // workload.batch, MOST_STEPS, max(8, int(MOST_OPERATIONS / (6 * workload.batch * multiplied))))


def data(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 inputs and labels of 60,000 rows."""
    if workload.units[0] == 784:
        from fastmlp.datasets import load_mnist

        return load_mnist()[0]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60_000, workload.units[0])).astype(np.float32)
    return x, rng.integers(0, workload.units[-1], 60_000)


def with_fastmlp(backend: str) -> Callable[..., Any]:
    """Return the contender that is fastmlp on a backend, through its public face."""

    def contender(workload: Workload, optimizer: str, x: Any, y: Any, seed: int = 0) -> Contender:
        import fastmlp

        rate = RATES[optimizer]
        record = {
            "sgd": fastmlp.SGD(rate),
            "momentum": fastmlp.SGD(rate, momentum=0.9),
            "adam": fastmlp.Adam(rate),
        }[optimizer]
        model = fastmlp.MLP(workload.units, activation=workload.activation, backend=backend, seed=seed)
        steps = {"epochs": 1, "batch_size": workload.batch, "optimizer": record, "verbose": 0}
        return lambda: model.fit(x, y, **steps), lambda rows=x: model.predict(rows)

    return contender


def with_torch(workload: Workload, optimizer: str, x: Any, y: Any, seed: int = 0) -> Contender:
    """PyTorch, eager, with tensors in memory and no loader."""
    import torch

    torch.manual_seed(seed)
    own = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh, "gelu": torch.nn.GELU}[workload.activation]
    layers: list[Any] = []
    for i, o in zip(workload.units[:-1], workload.units[1:], strict=True):
        layers += [torch.nn.Linear(i, o), own()]
    net, loss_of = torch.nn.Sequential(*layers[:-1]), torch.nn.CrossEntropyLoss()
    rate, params = RATES[optimizer], list(net.parameters())
    if optimizer == "adam":
        rule: Any = torch.optim.Adam(params, lr=rate, fused=True)
    else:
        rule = torch.optim.SGD(params, lr=rate, momentum=0.9 if optimizer == "momentum" else 0.0)
    inputs, labels, batch = torch.from_numpy(x), torch.from_numpy(y), workload.batch

    def epoch() -> None:
        order = torch.randperm(len(inputs))
        for start in range(0, len(inputs), batch):
            rows = order[start : start + batch]
            rule.zero_grad(set_to_none=True)
            loss_of(net(inputs[rows]), labels[rows]).backward()
            rule.step()

    def predict(rows: Any = x) -> Any:
        with torch.inference_mode():
            return net(torch.from_numpy(rows)).argmax(dim=1)

    return epoch, predict


def with_jax(workload: Workload, optimizer: str, x: Any, y: Any, seed: int = 0) -> Contender:
    """JAX: an epoch is one compiled scan."""
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(seed)
    pairs = list(zip(workload.units[:-1], workload.units[1:], strict=True))
    scaled = [rng.standard_normal((i, o)).astype(np.float32) * np.float32(np.sqrt(2 / i)) for i, o in pairs]
    params = [(jnp.asarray(w), jnp.zeros(w.shape[1], jnp.float32)) for w in scaled]
    inputs, labels, rate, batch = jnp.asarray(x), jnp.asarray(y), RATES[optimizer], workload.batch
    own = {"relu": jax.nn.relu, "tanh": jnp.tanh, "gelu": lambda z: jax.nn.gelu(z, approximate=False)}
    activation, steps = own[workload.activation], len(x) // batch

    def outputs(params: Any, rows: Any) -> Any:
        for w, b in params[:-1]:
            rows = activation(rows @ w + b)
        return rows @ params[-1][0] + params[-1][1]

    def loss(params: Any, rows: Any, wanted: Any) -> Any:
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs(params, rows)), wanted[:, None], 1))

    def step(carry: Any, rows: Any) -> Any:
        params, m, v, t = carry
        value, grads = jax.value_and_grad(loss)(params, inputs[rows], labels[rows])
        if optimizer == "sgd":
            params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        elif optimizer == "momentum":
            m = jax.tree.map(lambda m, g: 0.9 * m + g, m, grads)
            params = jax.tree.map(lambda p, m: p - rate * m, params, m)
        else:
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
            c1, c2 = 1 - 0.9**t, 1 - 0.999**t
            params = jax.tree.map(lambda p, m, v: p - rate * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), params, m, v)
        return (params, m, v, t), value

    @jax.jit
    def run(carry: Any, key: Any, number: Any) -> Any:
        order = jax.random.permutation(jax.random.fold_in(key, number), len(inputs))[: steps * batch].reshape(
            steps, batch
        )
        return jax.lax.scan(step, carry, order)

    zeros = jax.tree.map(jnp.zeros_like, params)
    state, key, numbers = [(params, zeros, zeros, jnp.float32(0))], jax.random.key(seed), itertools.count()

    def epoch() -> None:
        state[0], losses = run(state[0], key, next(numbers))
        losses.block_until_ready()

    classes = jax.jit(lambda params, rows: outputs(params, rows).argmax(axis=1))
    return epoch, lambda rows=inputs: np.asarray(classes(state[0][0], rows))


def with_sklearn(workload: Workload, optimizer: str, x: Any, y: Any, seed: int = 0) -> Contender:
    """scikit-learn's MLPClassifier; it has no gelu."""
    import warnings

    from sklearn.neural_network import MLPClassifier

    warnings.filterwarnings("ignore")
    solver, momentum = ("adam", 0.0) if optimizer == "adam" else ("sgd", 0.9 if optimizer == "momentum" else 0.0)
    options = {"solver": solver, "momentum": momentum, "batch_size": workload.batch, "alpha": 0, "random_state": seed}
    options["learning_rate_init"] = RATES[optimizer]
    net, classes = MLPClassifier(workload.units[1:-1], activation=workload.activation, **options), np.unique(y)

    def predict(rows: Any = x) -> Any:
        if not hasattr(net, "coefs_"):
            net.partial_fit(x[: workload.batch], y[: workload.batch], classes=classes)
        return net.predict(rows)

    return lambda: net.partial_fit(x, y, classes=classes), predict


CONTENDERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "torch": ("torch", with_torch),
    "jax": ("jax", with_jax),
    "sklearn": ("sklearn", with_sklearn),
    "fastmlp-numpy": ("fastmlp", with_fastmlp("numpy")),
    "fastmlp-numba": ("fastmlp", with_fastmlp("numba")),
}


def measure(task: str, workload: Workload, contender: str, optimizer: str, repeats: int) -> float:
    """Return the seconds of a step, or of a prediction of all rows, in this process."""
    x, y = data(workload)
    if task == "train":
        steps = steps_of_an_epoch(workload, len(x))
        x, y = x[: steps * workload.batch], y[: steps * workload.batch]
    train, predict = CONTENDERS[contender][1](workload, optimizer, x, y)
    work, count = (train, steps) if task == "train" else (predict, 1)
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / count


def in_process(script: str, **arguments: Any) -> Any:
    """Return what a script prints last, as JSON, in a fresh process; None where it fails, with the reason on stderr."""
    pinned = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    environment = {k: v for k, v in os.environ.items() if k not in pinned} | RESTRICTED
    command = [sys.executable, script, "--child", json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{arguments}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


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
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.avx2:
        RESTRICTED.update(AVX2)
        os.environ.update(AVX2)
    if options.child:
        arguments = json.loads(options.child)
        print(measure(arguments.pop("task"), WORKLOADS[arguments.pop("workload")], **arguments))
        return
    names = [c for c in options.contenders.split(",") if importlib.util.find_spec(CONTENDERS[c][0])]
    workloads = options.workloads.split(",")
    found: dict[str, dict[str, list[float]]] = {w: {c: [] for c in names} for w in workloads}
    for _ in range(options.rounds):
        for workload in workloads:
            for name in names:
                common = {"task": options.task, "optimizer": options.optimizer, "repeats": options.repeats}
                seconds = in_process(__file__, workload=workload, contender=name, **common)
                found[workload][name] += [] if seconds is None else [seconds]
    from results import table, write_section

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
