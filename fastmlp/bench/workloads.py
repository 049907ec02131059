"""What is measured: networks, batch sizes, optimizers, and rows for them.  Importing it costs nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fastmlp.formulas.optimizers import Optimizer
    from fastmlp.network.spec import NetworkSpec

RATES = {"sgd": 0.01, "momentum": 0.01, "adam": 1e-3, "adamw": 1e-3, "rmsprop": 1e-3}
"""The optimizers that contenders are measured with, and their learning rates; momentum is SGD's, of 0.9."""
ROWS, MOST_STEPS, LEAST_STEPS = 60_000, 2000, 8
"""Rows of a data set, and steps of an epoch."""
FEW = 100
"""Rows to predict at once, at least."""


class Scale(NamedTuple):
    """How much is computed at once on a device: what CPU and GPU compute in the same time differs a hundredfold.

    Attributes
    ----------
    operations : float
        How many times the floating-point operations that a CPU is given.
    least : float
        Operations that a step is counted as at least: those of the time that its launches take whatever it computes.
    many : int
        Rows to predict at once, at most.
    trained : float
        Seconds that a call trains at least, in as many epochs: what it costs beside its steps is nothing of theirs.
    """

    operations: float
    least: float
    many: int
    trained: float


SCALES = {
    "cpu": Scale(1.0, 0.0, 10_000, 0.1),
    # An H200 has trained at 6e12 operations a second where a step has 4e8 of them, and no step took less than half of
    # its time; 16 cores beside it at 3e11.  So an epoch lasts tens of milliseconds where it did 0.3, and is not much
    # longer for those who launch every kernel by itself.  A call of `fit` costs 5 ms there, and 20 with data of which
    # captured steps keep no copy.
    "cuda": Scale(100.0, 4e8, ROWS, 0.5),
}
"""By device, so that all contenders of one have the same rows."""


@dataclass(frozen=True)
class Workload:
    """A network and how it is trained.

    Parameters
    ----------
    name : str
    units : tuple of int
        From the inputs to the outputs.
    batch : int
        Rows of a step.
    activation : str
        Of the hidden layers.
    optimizer : str
        A key of `RATES`.
    dtype : {"float32", "float64"}
    model : str, optional
        A file whose network is taken: its units, activations, loss, dropout and penalties.
    threads : int, optional
        Of the process that measures; None: as many as it takes by itself.
    swept : int, optional
        The batch, width, depth or number of threads that a sweep has come to.
    """

    name: str
    units: tuple[int, ...]
    batch: int
    activation: str = "relu"
    optimizer: str = "adam"
    dtype: str = "float32"
    model: str | None = None
    threads: int | None = None
    swept: int | None = None

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Workload:
        """Return the workload that `dataclasses.asdict` and JSON have made plain."""
        return cls(**{**plain, "units": tuple(plain["units"])})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def describe(self) -> str:
        """Return in a few words what it is."""
        activation = "" if self.activation == "relu" or self.model else f" {self.activation},"
        threads = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads != 1)}"
        units = "-".join(map(str, self.units))
        network = f"{self.model} ({units})" if self.model else units
        return f"{network},{activation} batch {self.batch}, {self.optimizer}, {self.dtype}{threads}"

    def spec(self) -> NetworkSpec:
        """Return the network."""
        if self.model is not None:
            from fastmlp.loading import load

            return load(self.model, "numpy").spec
        from fastmlp.network.spec import make_spec

        return make_spec(self.units, self.activation, "softmax_cross_entropy", 0.0, 0.0, None, None)

    def optimizer_record(self) -> Optimizer:
        """Return the optimizer."""
        from fastmlp.formulas.optimizers import OPTIMIZERS, SGD

        rate = RATES[self.optimizer]
        if self.optimizer == "momentum":
            return SGD(rate, momentum=0.9)
        kind: Any = OPTIMIZERS.type_of(self.optimizer)
        made: Optimizer = kind(learning_rate=rate)
        return made


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("viblo", (784, 64, 32, 10), 32),
        Workload("keras", (784, 32, 128, 10), 600),
        Workload("hundred", (784, 100, 10), 200),
        Workload("mid", (784, 512, 256, 10), 128),
        Workload("big", (784, 1024, 1024, 10), 1024),
        Workload("w512", (784, 512, 512, 10), 256),
        Workload("w768", (784, 768, 768, 10), 512),
        Workload("w1000", (784, 1000, 1000, 10), 1000),
        Workload("w2048", (784, 2048, 10), 256),
        Workload("w4096", (784, 4096, 10), 64),
        Workload("w8192", (784, 8192, 8192, 10), 1024),
        Workload("odd", (784, 1023, 1025, 10), 257),
        Workload("narrow", (784, 10, 10), 64),
        Workload("hidden16", (16, 64, 64, 4), 512),
        Workload("deep", (784, *[48] * 8, 10), 64),
        Workload("wide", (784, 3000, 10), 256),
        Workload("table", (54, 128, 64, 7), 256),
        Workload("batch1", (784, 32, 10), 1),
        Workload("batch37", (784, 128, 64, 10), 37),
        Workload("batch4096", (784, 128, 64, 10), 4096),
        Workload("tanh", (784, 128, 64, 10), 128, "tanh"),
        Workload("gelu", (784, 128, 64, 10), 128, "gelu"),
    )
}
FIRST = ("viblo", "keras", "hundred", "mid", "big")
"""Those of published tutorials and two larger ones, which are measured where nobody says what."""
QUICK_FIRST = ("viblo", "mid")
"""The same of a quick run."""

BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
WIDTHS = (16, 64, 256, 1024, 2048)
DEPTHS = (1, 2, 4, 8, 16)
SWEEPS = ("batch", "width", "depth", "threads")


def sweep(workload: Workload, what: str, cores: int) -> list[Workload]:
    """Return a workload at several batch sizes, widths or depths of its hidden layers, or numbers of threads.

    Parameters
    ----------
    workload : Workload
    what : str
        One of `SWEEPS`.
    cores : int
        How many threads there may be.

    Raises
    ------
    ValueError
        The network has no hidden layers to make wider or deeper, or is that of a file.
    """
    inputs, hidden, outputs = workload.units[0], workload.units[1:-1], workload.units[-1]
    changed: dict[int, dict[str, Any]]
    if what in ("width", "depth"):
        if not hidden or workload.model is not None:
            why = "is that of a file" if workload.model is not None else "has no hidden layers"
            raise ValueError(f"a sweep over {what} needs hidden layers to change; the network {why}")
        if what == "width":
            changed = {w: {"units": (inputs, *[w] * len(hidden), outputs)} for w in WIDTHS}
        else:
            changed = {d: {"units": (inputs, *[hidden[0]] * d, outputs)} for d in DEPTHS}
    elif what == "batch":
        changed = {b: {"batch": b} for b in BATCHES}
    else:
        steps = sorted({2**i for i in range(cores.bit_length()) if 2**i <= cores} | {cores})
        changed = {t: {"threads": t} for t in steps}
    return [
        replace(workload, name=f"{workload.name}, {what} {value}", swept=value, **fields)
        for value, fields in changed.items()
    ]


def products(units: Sequence[int]) -> int:
    """Return how many weights there are, each of which costs a multiply-add a row."""
    return sum(i * o for i, o in itertools.pairwise(units))


class Rows(NamedTuple):
    """The rows of a workload.

    Attributes
    ----------
    x : (n, I) array
        To train on, n a whole number of batches.
    y : (n,) int64, or (n, K) array
        Labels, or targets where the loss asks for them.
    many : (m, I) array
        To predict.
    steps : int
        Batches of an epoch.
    """

    x: NDArray[Any]
    y: NDArray[Any]
    many: NDArray[Any]
    steps: int


def steps_of_an_epoch(units: Sequence[int], batch: int, operations: float, device: str = "cpu") -> int:
    """Return how many steps are trained at once: so many that they take some time, and no more operations than that."""
    scale = SCALES[device]
    step = max(6 * batch * products(units), scale.least)
    most = max(LEAST_STEPS, int(scale.operations * operations / step))
    return max(1, min(ROWS // batch, MOST_STEPS, most))


def predicted_rows(units: Sequence[int], operations: float, device: str = "cpu") -> int:
    """Return how many rows are predicted at once: as many as suit the size of a network."""
    scale = SCALES[device]
    return max(FEW, min(scale.many, int(scale.operations * operations / (2 * products(units)))))


def rows_of(workload: Workload, spec: NetworkSpec, operations: float, seed: int, device: str = "cpu") -> Rows:
    """Return rows drawn from a seed.

    Parameters
    ----------
    workload : Workload
    spec : NetworkSpec
        Its network.
    operations : float
        How many floating-point operations an epoch, or a prediction, may take on a CPU.
    seed : int
    device : {"cpu", "cuda"}
        Where they are computed with.
    """
    import numpy as np

    units = spec.units
    steps = steps_of_an_epoch(units, workload.batch, operations, device)
    many = predicted_rows(units, operations, device)
    rng = np.random.default_rng(seed)
    kind: np.dtype[Any] = np.dtype(workload.dtype)
    n = steps * workload.batch
    drawn = rng.random((max(n, many), units[0]), np.float32).astype(kind, copy=False)
    if spec.loss.takes_labels:
        y: NDArray[Any] = rng.integers(0, units[-1], n)
    else:
        y = rng.uniform(size=(n, units[-1])).astype(kind)
    return Rows(drawn[:n], y, drawn[:many], steps)
