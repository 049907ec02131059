"""Two runs beside each other, or a run beside those before it: what has become faster or slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastmlp.bench import history
from fastmlp.bench.history import MACHINE, Record, is_history, record_of, typical
from fastmlp.bench.measures import MEASURES
from fastmlp.bench.results import Results, against, differences, matched, read
from fastmlp.bench.tables import figure
from fastmlp.bench.verdicts import SLOWER, beside_usual
from fastmlp.errors import DataError


class Change(NamedTuple):
    """A measure of a contender and a workload, before and now, and the verdict on it."""

    workload: str
    label: str
    measure: str
    before: float
    now: float
    word: str

    def cells(self) -> list[str]:
        """Return it as a row of a table."""
        measure = MEASURES[self.measure]
        medians = [figure(value, measure.unit) for value in (self.before, self.now)]
        return [self.workload, self.label, measure.title, *medians, f"{self.now / self.before:.2f}", self.word]


HEAD = ["workload", "contender", "measure", "before", "now", "ratio", "verdict"]


@dataclass(frozen=True)
class Comparison:
    """What has changed between two runs, or since those of a history.

    Attributes
    ----------
    changes : list of Change
    notes : list of str
        What differs besides: machine, versions, and who is in one of them alone.
    """

    changes: list[Change]
    notes: list[str]

    @property
    def slower(self) -> list[Change]:
        """What has become slower, or larger."""
        return [change for change in self.changes if change.word == SLOWER]


def compare_files(old: Path, new: Path, factor: float) -> Comparison:
    """Compare what two files hold, results or histories: of a new history its last run, of an old one all the others.

    Parameters
    ----------
    old, new : Path
        Results, a folder that holds them, or a history; the two may be the same one.
    factor : float
        How many times as long the slower one takes at least, to be called slower.

    Raises
    ------
    DataError
        They have nothing in common.
    FileFormatError
        A file is neither.
    OSError
        A file cannot be read.
    """
    if not is_history(old) and not is_history(new):
        return compare_results(read(old), read(new), factor)
    before, now = (history.read(path) if is_history(path) else [record_of(read(path))] for path in (old, new))
    if not now:
        raise DataError(f"{new}: expected a history with a run, got an empty one")
    return compare_with_former(before, now[-1], factor)


def compare_results(old: Results, new: Results, factor: float) -> Comparison:
    """Compare all that two runs have in common, by the rule of `verdicts.compare`; parameters as of `compare_files`."""
    pairs, alone = matched(old, new)
    changes = []
    for before, now in pairs:
        for measure in MEASURES:
            verdict = against(before, now, measure, factor)
            medians = [case.summary(measure) for case in (before, now)]
            if verdict is not None and medians[0] is not None and medians[1] is not None:
                values = medians[0].median, medians[1].median
                changes.append(Change(now.workload.name, now.label, measure, *values, verdict.word))
    if not changes:
        raise DataError("the two runs have no workload and contender in common of which both have samples")
    notes = [f"differs: {what}" for what in differences(old.machine, new.machine, old.versions, new.versions)]
    for case in alone:
        where = "now" if case in new.cases else "before"
        notes.append(f"only {where}: {case.workload.name}, {case.label}")
    for before, now in pairs:
        if before.rounds and not now.rounds:
            notes.append(f"not measured any more: {now.workload.name}, {now.label}: {now.failure}")
    return Comparison(changes, notes)


def compare_with_former(records: Sequence[Record], latest: Record, factor: float) -> Comparison:
    """Compare a run with the medians of those before it on the same machine, by the rule of `verdicts.beside_usual`.

    Parameters
    ----------
    records : sequence of Record
        The run itself among them is left out.
    latest : Record
    factor : float
        How many times as long the slower one takes at least, to be called slower.

    Raises
    ------
    DataError
        No other run was on this machine, or none has anything in common with it.
    """
    former = [record for record in records if record.is_like(latest) and record != latest]
    if not former:
        asked = ", ".join(f"{name} {latest.machine.get(name, 'none')}" for name in MACHINE)
        raise DataError(f"none of the {len(records)} runs of the history is another one on this machine: {asked}")
    usual, changes, seen = typical(former), [], set()
    for one in latest.figures:
        for measure, summary in one.measures.items():
            key = one.workload, one.contender, measure
            if key in usual:
                seen.add(key[:2])
                runs, within = usual[key]
                word = beside_usual(summary, runs, within, factor)
                changes.append(Change(one.workload.name, one.label, measure, runs.median, summary.median, word))
    if not changes:
        raise DataError("the run has no workload and contender in common with the former ones on this machine")
    last = former[-1]
    notes = [f"before: the medians of {len(former)} runs on this machine, from {former[0].made} to {last.made}"]
    notes += [f"differs: {what}" for what in differences(last.machine, latest.machine, last.versions, latest.versions)]
    for word, figures in (("now", latest.figures), ("before", last.figures)):
        alone = [f for f in figures if (f.workload, f.contender) not in seen]
        notes += [f"only {word}: {f.workload.name}, {f.label}" for f in alone]
    return Comparison(changes, notes)
