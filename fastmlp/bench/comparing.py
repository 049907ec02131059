"""Two runs beside each other: what has become faster or slower, by the rule of `verdicts`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fastmlp.bench.measures import MEASURES
from fastmlp.bench.results import Case, Results, against, matched, same_machine
from fastmlp.bench.tables import figure
from fastmlp.bench.verdicts import SLOWER, Verdict
from fastmlp.errors import DataError


class Change(NamedTuple):
    """A measure of a case, before and now."""

    old: Case
    new: Case
    measure: str
    verdict: Verdict

    def cells(self) -> list[str]:
        """Return it as a row of a table."""
        unit = MEASURES[self.measure].unit
        medians = []
        for case in (self.old, self.new):
            summary = case.summary(self.measure)
            assert summary is not None
            medians.append(figure(summary.median, unit))
        network, who = f"{self.new.workload.name}", self.new.label
        return [network, who, MEASURES[self.measure].title, *medians, f"{self.verdict.ratio:.2f}", self.verdict.word]


HEAD = ["workload", "contender", "measure", "before", "now", "ratio", "verdict"]


@dataclass(frozen=True)
class Comparison:
    """What has changed between two runs.

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
        return [change for change in self.changes if change.verdict.word == SLOWER]


def compare_results(old: Results, new: Results, factor: float) -> Comparison:
    """Compare all that two runs have in common.

    Parameters
    ----------
    old, new : Results
    factor : float
        How many times as long the slower one takes at least, to be called slower.

    Raises
    ------
    DataError
        They have nothing in common.
    """
    pairs, alone = matched(old, new)
    changes = []
    for before, now in pairs:
        for measure in MEASURES:
            verdict = against(before, now, measure, factor)
            if verdict is not None:
                changes.append(Change(before, now, measure, verdict))
    if not changes:
        raise DataError("the two runs have no workload and contender in common of which both have samples")
    notes = [f"differs: {what}" for what in same_machine(old, new)]
    for case in alone:
        where = "now" if case in new.cases else "before"
        notes.append(f"only {where}: {case.workload.name}, {case.label}")
    for before, now in pairs:
        if before.rounds and not now.rounds:
            notes.append(f"not measured any more: {now.workload.name}, {now.label}: {now.failure}")
    return Comparison(changes, notes)
