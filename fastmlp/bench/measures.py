"""What is measured of a contender, and how long and how often.  Importing it costs nothing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LEAST = 0.01
"""Seconds that a sample lasts at least: so long that no clock and no interrupt decides."""

FEWEST = 4
"""Samples of a process at least: those of two processes are enough for a verdict."""


class Measure(NamedTuple):
    """A figure: its title, what it is, and its unit."""

    title: str
    meaning: str
    unit: str = "s"


MEASURES = {
    "train": Measure(
        "training step", "a step of training: forward, backward, optimizer; the mean of the epochs of a call"
    ),
    "predict": Measure(
        "a row of many", "prediction of many rows in one call, a row: of up to 10,000 on a CPU, 60,000 on a GPU"
    ),
    "row": Measure("one row", "prediction of one row, from the host's memory and back"),
    "first": Measure(
        "first call", "the network is made and trained for its first epoch; compiled code that is kept on disk is there"
    ),
    "cold": Measure("first call, cold", "the first call where no compiled code is kept yet; of one workload"),
    "import": Measure("import", "importing the library in a new process, NumPy included"),
    "memory": Measure("peak memory", "of the process: interpreter, libraries, rows and network, on the host", "B"),
    "device": Measure(
        "peak device memory",
        "on the GPU, rows and network: what CuPy's pool has taken for fastmlp, what PyTorch and JAX count as in use "
        "at a time; the context, and what libraries take by themselves, are not in it",
        "B",
    ),
}
TIMED = ("train", "predict", "row")
"""Measures that a process takes many samples of; of the others it is one."""


class Effort(NamedTuple):
    """How much is measured.

    Attributes
    ----------
    rounds : int
        Processes of each contender.
    samples : int
        Of each timed measure and process.
    seconds : float
        That the samples of a measure may take in a process; `FEWEST` are taken whatever they take.
    operations : float
        Floating-point operations of an epoch, or a prediction, at most.
    timeout : float
        Seconds after which a process counts as hanging.
    total : float
        Seconds after which no further process is begun, and one that runs is ended.
    of_compilers : tuple of str
        The timed measures of contenders that compile each shape anew, which takes many seconds.
    """

    rounds: int
    samples: int
    seconds: float
    operations: float
    timeout: float
    total: float
    of_compilers: tuple[str, ...]


FULL = Effort(5, 10, seconds=3.0, operations=6e10, timeout=600.0, total=math.inf, of_compilers=TIMED)
QUICK = Effort(2, 8, seconds=0.5, operations=2e9, timeout=60.0, total=170.0, of_compilers=("train",))
"""Ends within three minutes, whatever happens."""


def take_samples(
    work: Callable[[], Any],
    count: int,
    seconds: float,
    *,
    least: float = LEAST,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return how long a call takes, several times: each the mean over so many calls that they last `least` together.

    Parameters are those of `samples_of`.
    """

    def repeated(calls: int) -> None:
        for _ in range(calls):
            work()

    return samples_of(repeated, count, seconds, least=least, clock=clock)


def samples_of(
    work: Callable[[int], Any],
    count: int,
    seconds: float,
    *,
    least: float = LEAST,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return how long one of many takes, several times: each the mean of so many that they last `least` together.

    Parameters
    ----------
    work : callable
        What is timed, does so many at once; it was called before.
    count : int
        Samples.
    seconds : float
        They end after so long too, with `FEWEST` samples at least.
    least : float
        Seconds of a sample.
    clock : callable
        Gives seconds.
    """
    calls, begun = 1, clock()
    found: list[float] = []
    while len(found) < count and (len(found) < FEWEST or clock() - begun < seconds):
        start = clock()
        work(calls)
        lasted = clock() - start
        if lasted < least:  # too short to tell, and so were those before
            wanted = 1.2 * calls * least / lasted if lasted > 0 else math.inf
            calls, found = math.ceil(min(max(calls + 1, wanted), 100 * calls)), []
        else:
            found.append(lasted / calls)
    return found


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process has held at a time; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells on Linux is that of the process which has started this one, if larger
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(found[0]) * 1024 if found else None
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
