"""A history of runs: a file with a line of JSON a run, its medians and spreads, to which a scheduled run appends."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmlp.bench.measures import MEASURES
from fastmlp.bench.results import Results
from fastmlp.bench.verdicts import Summary, summarize
from fastmlp.bench.workloads import Workload
from fastmlp.errors import FileFormatError
from fastmlp.files.atomic import fcntl, refuse_missing_folder

FORMAT = "fastmlp bench history 1"
SUFFIX = ".jsonl"
MACHINE = ("processor", "cores", "memory", "GPU")
"""What makes a machine another one; a system that was updated does not."""


@dataclass(frozen=True)
class Figure:
    """What a contender reached in a run.

    Attributes
    ----------
    workload : Workload
    contender, label : str
    measures : mapping of str to Summary
        Seconds, or bytes, by the names of `MEASURES`.
    """

    workload: Workload
    contender: str
    label: str
    measures: Mapping[str, Summary]


@dataclass(frozen=True)
class Record:
    """A run, without its samples.

    Attributes
    ----------
    made, command : str
    commit : str, optional
    seed, rounds : int
    machine, versions : mapping of str to str
    figures : tuple of Figure
    """

    made: str
    command: str
    commit: str | None
    seed: int
    rounds: int
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    figures: tuple[Figure, ...]

    def is_like(self, other: Record) -> bool:
        """Return whether another run was on the same machine."""
        return all(self.machine.get(name) == other.machine.get(name) for name in MACHINE)

    def line(self) -> bytes:
        """Return it as the line of a file."""
        figures = [{**vars(f), "workload": f.workload.to_dict(), "measures": _plain(f.measures)} for f in self.figures]
        return (json.dumps({"format": FORMAT, **vars(self), "figures": figures}) + "\n").encode()


def _plain(measures: Mapping[str, Summary]) -> dict[str, dict[str, Any]]:
    return {name: summary._asdict() for name, summary in measures.items()}


def record_of(results: Results) -> Record:
    """Return what a history keeps of a run."""
    figures = []
    for case in results.cases:
        summaries = {name: case.summary(name) for name in MEASURES}
        found = {name: summary for name, summary in summaries.items() if summary is not None}
        if found:
            figures.append(Figure(case.workload, case.contender, case.label, found))
    given = {name: getattr(results, name) for name in ("made", "command", "commit", "seed", "rounds")}
    return Record(**given, machine=results.machine, versions=results.versions, figures=tuple(figures))


def is_history(path: Path) -> bool:
    """Return whether a file is one by its name."""
    return path.suffix == SUFFIX


def read(path: Path) -> list[Record]:
    """Return the runs of a history, the oldest first.

    Raises
    ------
    FileFormatError
        It is no history, or a line of it is damaged; the message says which.
    OSError
        It cannot be read.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            plain = json.loads(line)
            kind = plain.pop("format", None) if isinstance(plain, dict) else None
            if kind != FORMAT:
                raise FileFormatError(
                    f"{where}: expected a run of the format {FORMAT!r}, got {kind!r}; name another file for the history"
                )
            records.append(Record(**{**plain, "figures": tuple(_figure(**figure) for figure in plain["figures"])}))
        except FileFormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise FileFormatError(
                f"{where}: expected a run as fastmlp bench --history writes it, got something else "
                f"({type(e).__name__}: {e}); remove that line, or name another file"
            ) from e
    return records


def _figure(workload: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]], **rest: Any) -> Figure:
    found = {name: Summary(**summary) for name, summary in measures.items() if name in MEASURES}
    return Figure(workload=Workload.from_dict(workload), measures=found, **rest)


def refuse_other_files(path: Path) -> None:
    """Raise the error of a file that no run could be appended to, before any is measured."""
    if not is_history(path):
        raise ValueError(f"--history must be a file that ends in {SUFFIX}, got {str(path)!r}")
    refuse_missing_folder(path)
    if path.exists():
        read(path)


def append(path: Path, record: Record) -> None:
    """Write a run at the end of a history, which is made where there is none: the whole line, or nothing of it.

    Raises
    ------
    FileFormatError
        The file is no history.
    OSError
        It cannot be written; it is as it was then.
    """
    with open(path, "ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: another run may end at the same time
        read(path)
        before = os.fstat(file.fileno()).st_size
        try:
            file.write((b"" if _ends(path, before) else b"\n") + record.line())
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def _ends(path: Path, size: int) -> bool:
    """Return whether a file ends with a whole line."""
    with open(path, "rb") as file:
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def typical(records: Sequence[Record]) -> dict[tuple[Workload, str, str], tuple[Summary, Summary]]:
    """Return what is usual in some runs, by workload, contender and measure.

    Returns
    -------
    dict of (Summary, Summary)
        That of the medians, with their quartiles, one sample a run; and the medians of the medians and quartiles
        themselves, which tell the spread within a run.
    """
    found: dict[tuple[Workload, str, str], list[Summary]] = {}
    for record in records:
        for figure in record.figures:
            for measure, summary in figure.measures.items():
                found.setdefault((figure.workload, figure.contender, measure), []).append(summary)
    usual = {}
    for key, summaries in found.items():
        runs = summarize([s.median for s in summaries])
        low, high = (summarize([getattr(s, name) for s in summaries]).median for name in ("low", "high"))
        usual[key] = runs, Summary(runs.median, low, high, sum(s.samples for s in summaries))
    return usual
