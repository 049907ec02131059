"""``fastmlp bench``: what is faster on this machine, by how much, and how near it is to what the machine can do."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmlp.bench.measures import FULL, QUICK, Effort
from fastmlp.bench.workloads import FIRST, QUICK_FIRST, RATES, SWEEPS, WORKLOADS, Workload, sweep

if TYPE_CHECKING:
    from fastmlp.bench.comparing import Comparison
    from fastmlp.bench.results import Results

WIDE = 160
"""Columns where the output is no terminal, so that no line is broken."""
OWN_BATCH = 128

Options = Callable[[], AbstractContextManager[None]]


def add_to(app: typer.Typer, options: Options) -> None:
    """Make the command known; within `options` a ValueError is a mistake in the options."""

    @app.command()
    def bench(
        ctx: typer.Context,
        workload: Annotated[
            str | None,
            typer.Option(help=f"Names, of: {', '.join(WORKLOADS)}. Default: {','.join(FIRST)}."),
        ] = None,
        units: Annotated[str | None, typer.Option(help="A network of your own, such as 784,512,10.")] = None,
        model: Annotated[
            str | None, typer.Option(help="A model.safetensors, or a run folder, whose network is taken.")
        ] = None,
        batch: Annotated[
            int | None, typer.Option(min=1, help="Rows of a training step. Default: the workload's.")
        ] = None,
        optimizer: Annotated[str, typer.Option(help=f"{', '.join(RATES)}.")] = "adam",
        dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
        backends: Annotated[
            str | None, typer.Option(help="Of fastmlp, such as numpy,numba. Default: all that can run here.")
        ] = None,
        peers: Annotated[
            bool, typer.Option("--peers", help="PyTorch (eager, compiled, CUDA graph), JAX and scikit-learn beside.")
        ] = False,
        quick: Annotated[
            bool,
            typer.Option(
                "--quick",
                help=f"Three minutes at most; by default {' and '.join(QUICK_FIRST)} alone, or, where many take part, "
                "the first of them.",
            ),
        ] = False,
        over: Annotated[
            str | None,
            typer.Option("--sweep", help=f"See how times grow over {', '.join(SWEEPS)}, of one network."),
        ] = None,
        rounds: Annotated[
            int | None,
            typer.Option(min=1, help=f"Processes of each. Default: {FULL.rounds}; {QUICK.rounds} with --quick."),
        ] = None,
        seed: Annotated[int, typer.Option(min=0, help="Of rows, weights and orders.")] = 0,
        out: Annotated[
            str | None, typer.Option(help="Folder for results.json, report.html and pictures (PNG, SVG).")
        ] = None,
        history: Annotated[
            str | None,
            typer.Option(
                metavar="FILE.jsonl", help="Append this run to a history, and compare it with the former ones there."
            ),
        ] = None,
        compare: Annotated[
            tuple[str, str] | None,
            typer.Option(
                metavar="OLD NEW",
                help="Compare two results.json, their folders, or histories (of a new one the last run, of an old one "
                "the others on the same machine); measure nothing.",
            ),
        ] = None,
        fail_slower: Annotated[
            str | None,
            typer.Option(
                help="Of --compare and --history: end with 1 where something is slower by so much, such as 5%."
            ),
        ] = None,
        markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    ) -> None:
        """Measure what trains and predicts the fastest here: every backend and, with --peers, other libraries.

        A training step, prediction, the first call, import and memory: medians of processes in turn, with their
        spread, beside what this machine can do at best.
        """
        if compare is not None:
            from fastmlp.bench.comparing import compare_files

            _refuse_beside_compare(ctx)
            factor = _factor(fail_slower, options)
            slower = _tell(compare_files(Path(compare[0]), Path(compare[1]), factor), factor, markdown)
            raise typer.Exit(int(slower and fail_slower is not None))
        if fail_slower is not None and history is None:
            raise typer.BadParameter("--fail-slower is an option of --compare OLD NEW and --history FILE.jsonl")
        factor = _factor(fail_slower, options)
        with options():
            if history is not None:
                from fastmlp.bench.history import refuse_other_files

                refuse_other_files(Path(history))
            chosen = _workloads(workload, units, model, batch, optimizer, dtype, quick)
            chosen = chosen if over is None else _swept(chosen, over, batch)
        effort = QUICK if quick else FULL
        effort = effort if rounds is None else effort._replace(rounds=rounds)
        names = None if backends is None else [name.strip() for name in backends.split(",")]
        unnamed = quick and not (workload or units or model)
        with _folder_for_results(out):
            results = _run(chosen, names, peers, effort, seed, over, options, unnamed)
        _show(results, markdown)
        if out is not None:
            from fastmlp.bench.report import write

            for file in write(results, Path(out)):
                print(file)
        if history is not None:
            slower = _add_to_history(results, Path(history), factor, markdown)
            raise typer.Exit(int(slower and fail_slower is not None))


def _refuse_beside_compare(ctx: typer.Context) -> None:
    for name, parameter in {p.name: p for p in ctx.command.params}.items():
        typed = ctx.get_parameter_source(str(name))
        if typed is not None and typed.name == "COMMANDLINE" and name not in ("compare", "fail_slower", "markdown"):
            raise typer.BadParameter(f"{parameter.opts[0]} has no meaning beside --compare, which measures nothing")


def _workloads(
    names: str | None,
    units: str | None,
    model: str | None,
    batch: int | None,
    optimizer: str,
    dtype: str,
    quick: bool,
) -> list[Workload]:
    """Return what is to be measured; ValueError for options that make no sense."""
    from fastmlp.arguments import check_choice, check_dtype

    given = [option for option, value in (("--workload", names), ("--units", units), ("--model", model)) if value]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: each says what to measure; leave all out but one")
    check_choice("--optimizer", optimizer, list(RATES))
    common: dict[str, Any] = {"optimizer": optimizer, "dtype": str(check_dtype(dtype))}
    if units is not None:
        return [Workload("own", _own_units(units), batch or OWN_BATCH, **common)]
    if model is not None:
        from fastmlp.cli.folder import model_file
        from fastmlp.loading import load

        path = model_file(model)
        spec = load(path, "numpy").spec
        hidden = spec.activations[0] if len(spec.activations) > 1 else "identity"
        return [Workload(path.stem, spec.units, batch or OWN_BATCH, hidden, model=str(path), **common)]
    wanted = [name.strip() for name in names.split(",")] if names else list(QUICK_FIRST if quick else FIRST)
    for name in wanted:
        if name not in WORKLOADS:
            raise ValueError(f"--workload must be of {', '.join(WORKLOADS)}; got {name!r}")
    if batch is not None:
        common["batch"] = batch
    return [replace(WORKLOADS[name], **common) for name in dict.fromkeys(wanted)]


def _own_units(text: str) -> tuple[int, ...]:
    try:
        units = tuple(int(part) for part in text.split(","))
    except ValueError:
        units = ()
    if len(units) < 2 or min(units) < 1:
        raise ValueError(f"--units must be two or more numbers of units, such as 784,512,10; got {text!r}")
    return units


def _swept(workloads: Sequence[Workload], over: str, batch: int | None) -> list[Workload]:
    from fastmlp.arguments import check_choice
    from fastmlp.backends.cpu.limits import physical_cores

    check_choice("--sweep", over, SWEEPS)
    if len(workloads) > 1:
        raise ValueError("--sweep takes one network; name it with --workload, --units or --model")
    if over == "batch" and batch is not None:
        raise ValueError("--sweep batch takes batches of its own; leave --batch out")
    return sweep(workloads[0], over, physical_cores())


@contextmanager
def _folder_for_results(out: str | None) -> Iterator[None]:
    """Make the folder before anything is measured for it; where that ends in an error, what was made goes again.

    Raises
    ------
    OSError
        It holds results, is a file, or cannot be made or written into.
    """
    from fastmlp.bench.results import NAME

    if out is None:
        yield
        return
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{out} is a file; --out names a folder")
    if (folder / NAME).exists():
        raise FileExistsError(f"{out} holds results already; choose another folder, or remove it first")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{out}: expected a folder to write into, got one that lets nothing be written")
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def _run(
    workloads: Sequence[Workload],
    backends: Sequence[str] | None,
    peers: bool,
    effort: Effort,
    seed: int,
    over: str | None,
    options: Options,
    few: bool,
) -> Results:
    """Measure, with a bar on stderr where that is a terminal; `few`: as many workloads as there is time for."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from fastmlp.bench.contenders import entrants
    from fastmlp.bench.running import MeasuringError, affordable, processes_of, run
    from fastmlp.bench.tables import command_line
    from fastmlp.doctor.looks import gpus

    with options():
        found = entrants(backends, peers, bool(gpus()))
    notes: list[str] = []
    if few:
        workloads, notes = affordable(workloads, found, effort)
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=processes_of(workloads, found, effort))
        begun = False

        def said(text: str) -> None:
            nonlocal begun
            progress.update(task, advance=int(begun), description=text)
            begun = True

        command = command_line(sys.argv[2:])
        try:
            results = run(workloads, found, effort, seed=seed, command=command, sweep=over, said=said)
        except MeasuringError as e:
            print(f"error: {e}", file=sys.stderr)
            raise typer.Exit(1) from None
    results.notes += notes
    return results


def _show(results: Results, as_markdown: bool) -> None:
    from rich.console import Console

    from fastmlp.bench.tables import markdown, rendered

    if as_markdown:
        print(markdown(results))
        return
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    for part in rendered(results):
        console.print(part)


def _factor(fail_slower: str | None, options: Options) -> float:
    """Return how many times as long something takes at least, to be called slower."""
    from fastmlp.bench.verdicts import FACTOR

    with options():
        return FACTOR if fail_slower is None else 1 + _part(fail_slower)


def _add_to_history(results: Results, path: Path, factor: float, as_markdown: bool) -> bool:
    """Append a run to a history, and tell it beside the former ones; return whether something is slower."""
    from fastmlp.bench.comparing import compare_with_former
    from fastmlp.bench.history import append, read, record_of

    record = record_of(results)
    append(path, record)
    former = [other for other in read(path) if other.is_like(record) and other != record]
    if not former:
        print(f"{path}: the first run on this machine")
        return False
    return _tell(compare_with_former(former, record, factor), factor, as_markdown)


def _tell(found: Comparison, factor: float, as_markdown: bool) -> bool:
    """Print what has changed; return whether something is slower."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fastmlp.bench.comparing import HEAD
    from fastmlp.bench.tables import markdown_table

    rows = [change.cells() for change in found.changes]
    if as_markdown:
        print(markdown_table(HEAD, rows))
    else:
        table = Table(box=box.SIMPLE)
        for title in HEAD:
            table.add_column(title, justify="right" if title in ("before", "now", "ratio") else "left")
        for change, cells in zip(found.changes, rows, strict=True):
            table.add_row(*cells, style="bold red" if change in found.slower else None)
        Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)
    for note in found.notes:
        print(note)
    count = len(found.slower)
    print(
        f"{count} of {len(rows)} slower by {factor - 1:.0%} or more"
        if count
        else f"nothing is slower by {factor - 1:.0%}"
    )
    return bool(found.slower)


def _part(text: str) -> float:
    """Return a share given as 5% or 0.05; ValueError for anything else."""
    if not re.fullmatch(r"\d+(\.\d*)?%|0?\.\d+|0", text):
        raise ValueError(f"--fail-slower must be a share such as 5% or 0.05, got {text!r}")
    return float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
