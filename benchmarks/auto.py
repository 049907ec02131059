"""What `backend="auto"` gives away: ten shapes, beside every backend that runs here, each in processes of its own.

    python benchmarks/auto.py --write      # less than four minutes on two cores

Asked for is that a run on "auto" is never more than 10 % slower, after its first epoch, than one on the best backend,
and that what it tries takes at most 0.5 s, or 2 % of the run that is expected, without what a device needs before its
first steps, which stands beside it.  Nothing that was decided before is
known to the processes: compiled code lies in a folder of this script's own, and decisions are removed from it before
each.  "auto" takes a GPU only where its self-test has passed, which is noted beside its compiled kernels; so that is
run once first, in the same folder and in time that is not counted, and where it fails the text below the table says so.
A figure is the median of samples of 10 ms or more, all after the first epoch; slower is said by the rule of `fastmlp
bench`.  Exits with 1 where more is given away than that.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from race import raced

import fastmlp
from fastmlp.backends.cpu import trial
from fastmlp.backends.cuda import trial as cuda_trial
from fastmlp.bench.measures import LEAST
from fastmlp.bench.tables import NOTHING, figure, markdown_table
from fastmlp.bench.verdicts import FACTOR, SLOWER, compare, summarize
from fastmlp.bench.workloads import WORKLOADS, Rows, Workload, rows_of
from fastmlp.engine import runs
from fastmlp.engine.callbacks import Callback

SHAPES = {
    "tiny": Workload("tiny", (4, 8, 2), 32),
    **{name: WORKLOADS[name] for name in ("hidden16", "table", "narrow", "viblo", "hundred", "mid", "w512", "w2048")},
    "w4096": WORKLOADS["w4096"],
}
OPERATIONS = 5e9
"""Floating-point operations of an epoch at most."""
EXPECTED = 6.0
"""Seconds that a run would take on the CPU, about, which is ended before: long enough for a GPU to be tried."""
MOST_SECONDS, SHARE = 0.5, 0.02
"""What a trial may take: so many seconds, or that part of the run that is expected."""
TOTAL = 220.0
"""Seconds after which no further process is begun; the self-test of a GPU comes before."""
DECIDED = ("*steps-*.json", "*backends-*.json")
"""Files that keep decisions, on the CPU and on a GPU; that its self-test has passed is none."""


class Ran(NamedTuple):
    """A run in a process of its own.

    Attributes
    ----------
    backend : str
        On which it ended.
    steps : list of float
        Samples of the seconds of a step, all after the first epoch.
    trial : float
        Seconds that went into trying backends, and forms of products.
    started : float
        Seconds in which a device was started for that, beside them.
    expected : float
        Seconds that the whole run would have taken.
    """

    backend: str
    steps: list[float]
    trial: float
    started: float
    expected: float


class Ends(Callback):
    """When each epoch has ended; so many seconds after the first one, and two epochs or more, the run is stopped."""

    def __init__(self, seconds: float) -> None:
        self.at: list[float] = []
        self.seconds = seconds

    def on_epoch_end(self, run: Any, logs: Any) -> None:
        self.at.append(time.perf_counter())
        if len(self.at) > 2 and self.at[-1] - self.at[0] >= self.seconds:
            run.stop("enough is known")


def trained(workload: dict[str, Any], backend: str, seconds: float) -> Ran:
    """Train in this process until so many seconds are over after the first epoch, two epochs or more."""
    chosen = Workload.from_dict(workload)
    rows = rows_of(chosen, chosen.spec(), OPERATIONS, 0)
    options: dict[str, Any] = {"batch_size": chosen.batch, "optimizer": chosen.optimizer_record(), "verbose": 0}
    epochs = max(3, round(EXPECTED / epoch_seconds(chosen, rows, options)))
    model, ends = fastmlp.MLP(chosen.units, backend=backend, seed=0), Ends(seconds)
    with tried() as (spent, started):
        few = 2 * chosen.batch  # too few steps to try anything; what a first fit compiles is not what is asked for
        model.fit(rows.x[:few], rows.y[:few], epochs=1, **options)
        spent.clear()
        started.clear()
        model.fit(rows.x, rows.y, epochs=epochs, callbacks=[ends], **options)
    steps = samples(ends.at, rows.steps)
    expected = epochs * rows.steps * statistics.median(steps)
    return Ran(model.backend.name, steps, sum(spent), sum(started), expected)


def epoch_seconds(chosen: Workload, rows: Rows, options: dict[str, Any]) -> float:
    """Return the seconds of an epoch on the backend that "auto" begins with: so much longer a run is to be expected."""
    model = fastmlp.MLP(chosen.units, backend=fastmlp.get_backend("auto").name, seed=0)
    for _ in range(2):  # the first one may compile
        began = time.perf_counter()
        model.fit(rows.x, rows.y, epochs=1, **options)
        taken = time.perf_counter() - began
    return taken


@contextmanager
def tried() -> Iterator[tuple[list[float], list[float]]]:
    """Collect the seconds of all trials meanwhile, and those in which devices were started for them."""
    spent: list[float] = []
    started: list[float] = []
    settle = runs.settle

    def settled(*given: Any) -> float:
        began = time.perf_counter()
        took = settle(*given)
        spent.append(took)
        started.append(time.perf_counter() - began - took)
        return took

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*given)
            finally:
                spent.append(time.perf_counter() - began)

        return called

    with (
        mock.patch.object(runs, "settle", settled),
        mock.patch.object(trial, "decide", timed(trial.decide)),
        mock.patch.object(cuda_trial, "decide", timed(cuda_trial.decide)),
    ):
        yield spent, started


def samples(ends: Sequence[float], steps: int) -> list[float]:
    """Return the seconds of a step in samples of whole epochs after the first one, each `LEAST` long or longer."""
    found, begun, count = [], ends[0], 0
    for end in ends[1:]:
        count += 1
        if end - begun >= LEAST:
            found.append((end - begun) / (count * steps))
            begun, count = end, 0
    if not found:
        found.append((ends[-1] - ends[0]) / ((len(ends) - 1) * steps))
    return found


class Judged(NamedTuple):
    """What is given away on a shape: a row of the table, and whether it is more than was asked for."""

    cells: list[str]
    too_much: bool


def judged(name: str, found: dict[str, list[Ran]]) -> Judged:
    """Hold the runs of a shape on "auto" against those on the best backend; by name of backend, "auto" among them."""
    network = f"{'-'.join(map(str, SHAPES[name].units))}, {SHAPES[name].batch}"
    steps = {backend: [s for run in ran for s in run.steps] for backend, ran in found.items() if ran}
    own = steps.pop("auto", None)
    if own is None or not steps:
        return Judged([network, *[NOTHING] * (len(HEAD) - 1)], True)
    best = min(steps, key=lambda backend: summarize(steps[backend]).median)
    verdict = compare(own, steps[best], FACTOR)
    longest = max(found["auto"], key=lambda run: run.trial)
    most = max(MOST_SECONDS, SHARE * longest.expected)
    ended = ", ".join(dict.fromkeys(run.backend for run in found["auto"]))
    medians = [figure(summarize(samples).median) for samples in (own, steps[best])]
    cells = [network, ended, medians[0], f"{best} {medians[1]}", f"{verdict.ratio:.2f}", verdict.word]
    cells += [f"{figure(longest.trial)} of {figure(most)}", figure(max(run.started for run in found["auto"]))]
    return Judged(cells, verdict.word == SLOWER or longest.trial > most)


HEAD = [
    "units, batch",
    "auto took",
    "a step",
    "on the best backend",
    "ratio",
    "auto is",
    "trials, of what they may",
    "a device started in",
]


def tested() -> list[str]:
    """Run the self-test of the GPU, which notes that it has passed; return the stages that failed."""
    from fastmlp.doctor.selftest import run_all

    return [outcome.stage for outcome in run_all("cupy") if not outcome.passed]


def said_of_test(environment: dict[str, str | None]) -> str:
    """Have the GPU tested in a process with these variables; return in words why "auto" may not take it, if so."""
    failed = raced("auto:tested", environment)
    if failed == []:
        return ""
    stages = "ended with an error" if failed is None else f"failed: {', '.join(failed)}"
    return f"The self-test of the GPU {stages}; so auto does not take it."


def race(
    names: Sequence[str], rounds: int, seconds: float, total: float | None = None
) -> tuple[dict[str, dict[str, list[Ran]]], str]:
    """Return the runs of each shape, by backend, and in words what is to be known: what was left out, what failed."""
    able = [name for name, state in fastmlp.available_backends().items() if state.available]
    found: dict[str, dict[str, list[Ran]]] = {name: {who: [] for who in ("auto", *able)} for name in names}
    with tempfile.TemporaryDirectory() as cache:
        environment = {"NUMBA_CACHE_DIR": cache, "CUPY_CACHE_DIR": str(Path(cache, "cupy")), "FASTMLP_BACKEND": None}
        said = [said_of_test(environment)] if "cupy" in able else []
        end, left_out = time.monotonic() + (TOTAL if total is None else total), 0
        tiny = SHAPES["tiny"].to_dict()
        raced("auto:trained", environment, workload=tiny, backend="auto", seconds=0.1)  # compiles
        for _ in range(rounds):
            for name in names:
                for backend, ran in found[name].items():
                    if time.monotonic() > end:
                        left_out += 1
                        continue
                    for pattern in DECIDED:
                        for file in Path(cache).rglob(pattern):
                            file.unlink()
                    given = {"workload": SHAPES[name].to_dict(), "backend": backend, "seconds": seconds}
                    answer = raced("auto:trained", environment, **given)
                    ran += [] if answer is None else [Ran(*answer)]
    said += [f"{left_out} runs were left out, for which no time was left"] if left_out else []
    return found, "\n\n".join(part for part in said if part)


def table(names: Sequence[str], found: dict[str, dict[str, list[Ran]]], said: str) -> tuple[str, bool]:
    """Return the table of some shapes with what is to be known, and whether too much is given away."""
    rows = [judged(name, found[name]) for name in names]
    text = "\n\n".join(part for part in (markdown_table(HEAD, [row.cells for row in rows]), said) if part)
    return text, any(row.too_much for row in rows)


def main() -> int:
    """Race, print, and write; return whether too much is given away."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a run")
    parser.add_argument("--write", action="store_true", help="write a section of RESULTS.md")
    options = parser.parse_args()
    names = options.shapes.split(",")
    if unknown := [name for name in names if name not in SHAPES]:
        parser.error(f"--shapes: there is no shape {', '.join(unknown)}; there are {', '.join(SHAPES)}")
    text, too_much = table(names, *race(names, options.rounds, options.seconds))
    print(text)
    if options.write:
        from results import write_section

        write_section("What auto gives away", f"{options.rounds} rounds of fresh processes in turn.\n\n{text}")
    return int(too_much)


if __name__ == "__main__":
    sys.exit(main())
