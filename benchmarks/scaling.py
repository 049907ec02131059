"""How steps of several processes scale: a model, held against measured ones here, and drawn for up to 1,024 GPUs.

    python benchmarks/scaling.py                  # both parts, three minutes on two cores; needs fastmlp[mpi-test,plot]
    python benchmarks/scaling.py --write          # and two sections of RESULTS.md, with the picture
    python benchmarks/scaling.py check --workloads viblo,big --ranks 1,2
    python benchmarks/scaling.py plan --machine benchmarks/machines/h200.toml --overlap

`check` measures here: the parts of a rank's step, by one rank and by two at once; latency, messages and bandwidth
between two ranks; then whole steps of each number of ranks, of one thread each, beside what `scaling_model.py` makes of
the parts.  It ends with two ranks of one thread beside one process of two threads.  `plan` measures nothing: it draws
strong and weak scaling for the machine that a TOML file describes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from race import raced
from results import unpinned, write_section
from scaling_measure import fit_link
from scaling_model import Link, Machine, Step, Wires, Work, read_machine, step

from fastmlp.backends.cpu.limits import physical_cores
from fastmlp.bench.limits import pinned_threads
from fastmlp.bench.tables import markdown_table as table
from fastmlp.bench.workloads import FIRST, RATES, WORKLOADS, Workload
from fastmlp.parallel.choosing import CURE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HERE = Path(__file__).parent
MACHINE = HERE / "machines" / "h200.toml"
PICTURES = HERE / "pictures"
GPUS = tuple(2**i for i in range(11))
SHOWN = (1, 8, 64, 256, 1024)
"""GPUs of the table."""
SIZES = ("mid", "big", "w8192")
ASKED = 0.85
"""Of the speed of one process of two threads, by two ranks of one."""


# --- held against measured steps -------------------------------------------------------------------------------------


def measured(launcher: Sequence[str], ranks: int, workloads: Sequence[Workload], backend: str, seconds: float) -> Any:
    """Return what `scaling_measure.py` finds with so many ranks of one thread."""
    launch = [*launcher, str(ranks)] if ranks > 1 else []
    task = {"kind": "ranks", "ranks": ranks, "backend": backend, "seconds": seconds}
    return _measured(launch, 1, workloads, **task)


def plain(workload: Workload, backend: str, seconds: float, threads: int) -> float:
    """Return the seconds of a step of one process of so many threads, as `fit` trains without `parallel`."""
    task = {"kind": "plain", "ranks": 1, "backend": backend, "seconds": seconds}
    return float(_measured((), threads, [workload], **task))


def _measured(launch: Sequence[str], threads: int, workloads: Sequence[Workload], **task: Any) -> Any:
    given = {"workloads": [w.to_dict() for w in workloads], **task}
    answer = raced("scaling_measure:child", pinned_threads(threads), launch, task=given)
    if answer is None:
        raise SystemExit("a process has measured nothing, and said why above")
    return answer


def launcher() -> list[str]:
    """Return the command that starts ranks, but for their number: that of this environment, or of the machine."""
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise SystemExit(f"check starts ranks by mpiexec, which is not there: {CURE}")
    return [found, "-n"]


def middle(rounds: Sequence[Any]) -> Any:
    """Return the medians of what was found several times: numbers, in dictionaries and lists."""
    first = rounds[0]
    if isinstance(first, Mapping):
        return {name: middle([found[name] for found in rounds]) for name in first}
    if isinstance(first, list):
        return [middle(list(found)) for found in zip(*rounds, strict=True)]
    return statistics.median(rounds)


def predicted(workload: Workload, found: Mapping[int, Any], ranks: int, cores: int) -> Step:
    """Return what the model makes of measured parts: of one rank alone or, where there are several, of two at once."""
    parts = found[min(ranks, 2)][workload.name]
    seconds = (parts[name] for name in ("gradients", "call", "add", "update"))
    work = Work(workload.units, *seconds, at_once=bool(parts["at_once"]))
    link = Link(*fit_link(found[2]["links"]))
    in_common = bool(found[ranks][workload.name]["in_common"])
    return step(work, Wires(max(ranks, 2), link, link), ranks, crowd=max(1.0, ranks / cores), in_common=in_common)


def check(options: argparse.Namespace) -> str:
    """Measure, and return the model's figures beside those measured."""
    start, cores = launcher(), physical_cores()
    workloads = [replace(WORKLOADS[name], optimizer=options.optimizer) for name in options.workloads]
    last, counts = workloads[-1], sorted({1, 2, *options.ranks})
    rounds: dict[int, list[Any]] = {ranks: [] for ranks in counts}
    threaded = []
    for _ in range(options.rounds):
        for ranks in counts:
            rounds[ranks].append(measured(start, ranks, workloads, options.backend, options.seconds))
        threaded.append(plain(last, options.backend, options.seconds, 2))
    found = {ranks: middle(several) for ranks, several in rounds.items()}
    lines = []
    for workload in workloads:
        for ranks in options.ranks:
            model, real = predicted(workload, found, ranks, cores), found[ranks][workload.name]
            took, share = real["step"], real["reduction"] / real["step"]
            error = f"{model.seconds / took - 1:+.0%}"
            figures = f"{model.seconds * 1e6:.0f}", f"{took * 1e6:.0f}", error, f"{model.share:.0%}", f"{share:.0%}"
            lines.append([workload.name, ranks, *figures])
    head = ["workload", "ranks", "predicted, us", "measured, us", "error", "reduction, predicted", "measured"]
    link = Link(*fit_link(found[2]["links"]))
    means = "have memory in common" if found[2][last.name]["in_common"] else "send each other messages"
    both, one = found[2][last.name]["step"], statistics.median(threaded)
    return "\n\n".join(
        [
            f"Steps with {options.optimizer} on {options.backend}, ranks of one thread on {cores} cores; medians of "
            f"{options.rounds} rounds. Between two ranks: latency {link.latency * 1e6:.1f} us, a further message "
            f"{link.message * 1e6:.1f} us, {link.bandwidth / 1e9:.2f} GB/s. Where there are more ranks than cores the "
            f"model takes them to share these evenly. Ranks {means}. The reduction is the part of a step that this, "
            "waiting for each other, and the sums between them take; in the measured one these sums are left out.",
            table(head, lines),
            f"At {last.name} two ranks of one thread take {both * 1e3:.1f} ms a step, one process of two threads "
            f"{one * 1e3:.1f} ms: {one / both:.2f} of its speed (asked: {ASKED} or more).",
        ]
    )


# --- drawn for machines that are described ---------------------------------------------------------------------------


def speedup(machine: Machine, workload: Workload, batch: int, ranks: int, overlap: bool) -> float:
    """Return how many times as fast so many GPUs take a step on a batch as one does without `parallel`."""
    return machine.plain(workload.units, batch) / machine.sharded(workload.units, batch, ranks, overlap).seconds


def efficiency(machine: Machine, workload: Workload, ranks: int, overlap: bool) -> float:
    """Return which part of its speed each GPU keeps, where each has the workload's batch to itself."""
    whole = machine.sharded(workload.units, workload.batch * ranks, ranks, overlap).seconds
    return machine.plain(workload.units, workload.batch) / whole


def draw(machine: Machine, workloads: Sequence[Workload], batch: int, overlap: bool) -> list[Axes]:
    """Draw strong scaling, one batch for all GPUs, and weak scaling, a batch for each."""
    from fastmlp.plots.pictures import line_style, panels, plain_frame, plain_legend

    axes = panels(1, 2, width=4.6, height=3.8)
    strong, weak = axes
    for i, workload in enumerate(workloads):
        name = "-".join(map(str, workload.units))
        strong.plot(GPUS, [speedup(machine, workload, batch, n, overlap) for n in GPUS], label=name, **line_style(i))
        each = f"{name}, {workload.batch}"
        weak.plot(GPUS, [efficiency(machine, workload, n, overlap) for n in GPUS], label=each, **line_style(i))
    strong.plot(GPUS, GPUS, color="0.8", linewidth=1, zorder=0, label="nothing lost")
    how = "layers overlapped" if overlap else "nothing overlapped"
    strong.set(yscale="log", ylim=(0.01, 2000), ylabel="times as fast as one", title=f"{batch:,} rows a step, {how}")
    weak.set(ylim=(0, 1.05), ylabel="part of its speed that each keeps", title=f"as many rows for each, {how}")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(GPUS[::2], [f"{n:,}" for n in GPUS[::2]])
        ax.set_xlabel(f"GPUs ({machine.name}, {machine.wires.node} a node; model)")
        plain_frame(ax)
        plain_legend(ax)
    return axes


def plan(options: argparse.Namespace) -> tuple[str, Machine]:
    """Draw, and return the figures of the picture in a table; and how far the given rates are from measured steps."""
    machine = read_machine(options.machine)
    workloads = [WORKLOADS[name] for name in options.sizes]
    PICTURES.mkdir(exist_ok=True)
    lines, pictures = [], []
    for overlap in (False, True) if options.overlap else (False,):
        picture = options.pictures / f"scaling{'-overlap' if overlap else ''}.png"
        draw(machine, workloads, options.batch, overlap)[0].figure.savefig(picture, dpi=120)
        pictures.append(picture)
        for workload in workloads:
            name = f"{workload.name}{', overlapped' if overlap else ''}"
            times = [f"{speedup(machine, workload, options.batch, n, overlap):.2f}" for n in SHOWN]
            kept = [f"{efficiency(machine, workload, n, overlap):.0%}" for n in SHOWN]
            share = machine.sharded(workload.units, workload.batch * 8, 8, overlap).share
            lines.append([name, f"{options.batch:,} together", *times, ""])
            lines.append([name, f"{workload.batch:,} each", *kept, f"{share:.0%}"])
    gpus = [f"{n:,} GPU{'s' * (n > 1)}" for n in SHOWN]
    text = table(["workload", "rows", *gpus, "reduction, 8 GPUs"], lines)
    said = (
        f"Predicted, not measured, for nodes of {machine.wires.node} (`{options.machine.name}`). Rows together: times "
        "as fast as one GPU without `parallel`; rows each: the part of its speed that each keeps. A batch has eight "
        "shards, or one for each GPU where these are more."
    )
    text = f"{said}\n\n{text}"
    errors = [
        ["-".join(map(str, units)), rows, f"{rates * 1e6:.0f}", f"{took * 1e6:.0f}", f"{rates / took - 1:+.0%}"]
        for units, found in machine.steps.items()
        for rows, took in found.items()
        for rates in (machine.plain(units, rows, measured=False),)
    ]
    if errors:
        head = ["units", "rows", "one GPU by its rates, us", "measured, us", "error"]
        text += "\n\nNetworks without measured steps go by rates; how far these are from steps that were measured:\n\n"
        text += table(head, errors)
    shown = "\n".join(f"![Strong and weak scaling]({PICTURES.name}/{picture.name})" for picture in pictures)
    return f"{text}\n\n{shown}", machine


def main() -> None:
    """Check, plan, print, and write."""

    def names(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in WORKLOADS]:
            raise argparse.ArgumentTypeError(f"there is no workload {', '.join(unknown)}; of {', '.join(WORKLOADS)}")
        return text.split(",")

    def counts(text: str) -> list[int]:
        found = [int(n) for n in text.split(",")]
        if min(found) < 1 or max(found) > 8:
            raise argparse.ArgumentTypeError(f"ranks must be from 1 to 8, the shards of a batch; got {text}")
        return found

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["check", "plan"], help="both where none is named")
    parser.add_argument("--workloads", type=names, default=list(FIRST), help="to check; the last one by threads too")
    parser.add_argument("--ranks", type=counts, default=[1, 2, 4])
    parser.add_argument("--optimizer", choices=list(RATES), default="sgd")
    parser.add_argument("--backend", choices=["numpy", "numba"], default="numba")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.6, help="for the steps of a workload, and as many for parts")
    parser.add_argument("--machine", type=Path, default=MACHINE, help="to plan for")
    parser.add_argument("--sizes", type=names, default=list(SIZES), help="workloads to plan")
    parser.add_argument("--batch", type=int, default=16_384, help="rows of a step of all GPUs together")
    parser.add_argument("--overlap", action="store_true", help="also as if layers were reduced while others go on")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder for the pictures")
    parser.add_argument("--write", action="store_true", help="write sections of RESULTS.md")
    options = parser.parse_args()
    unpinned()
    if options.part != "plan":
        text = check(options)
        print(text)
        if options.write:
            write_section("Scaling: steps of several ranks, predicted and measured", text)
    if options.part != "check":
        text, machine = plan(options)
        print(text)
        if options.write:
            given = f"predicted from what `machines/{options.machine.name}` gives"
            write_section("Scaling: to 1,024 GPUs, by a model", text, machine.name, given)


if __name__ == "__main__":
    main()
