"""What a run has measured, with all that is needed to judge and to repeat it; as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmlp.bench.costs import Cost, of_rows, of_step
from fastmlp.bench.limits import Limits, best_of
from fastmlp.bench.verdicts import Summary, Verdict, compare, summarize
from fastmlp.bench.workloads import SCALES, Workload
from fastmlp.errors import FileFormatError
from fastmlp.files.atomic import atomic_writer

FORMAT = 1
NAME = "results.json"
_SAID = {False: "not measured", True: "measured in fewer rounds"}


@dataclass
class Case:
    """A workload, a contender, and what was measured.

    Attributes
    ----------
    workload : Workload
    contender, label, device : str
    rounds : list of dict
        For each process, samples by measure: seconds, or bytes.
    failure : str, optional
        Why nothing more was measured.
    moments : int
        Arrays as large as the parameters that the optimizer keeps.
    many : int
        Rows that are predicted at once.
    """

    workload: Workload
    contender: str
    label: str
    device: str
    rounds: list[dict[str, list[float]]] = field(default_factory=list)
    failure: str | None = None
    moments: int = 0
    many: int = SCALES["cpu"].many

    def samples(self, measure: str) -> list[float]:
        """Return all samples of a measure, of all rounds."""
        return [sample for found in self.rounds for sample in found.get(measure, ())]

    def summary(self, measure: str) -> Summary | None:
        """Return median and quartiles of a measure; None where it was not measured."""
        samples = self.samples(measure)
        return summarize(samples) if samples else None

    def cost(self, measure: str) -> Cost | None:
        """Return what a step, or a row of many, asks of the machine; None for other measures."""
        itemsize = {"float32": 4, "float64": 8}[self.workload.dtype]
        if measure == "train":
            return of_step(self.workload.units, self.workload.batch, itemsize, self.moments)
        if measure == "predict":
            whole = of_rows(self.workload.units, self.many, itemsize)
            return Cost(whole.operations / self.many, whole.bytes / self.many)
        return None

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Case:
        """Return the case that JSON has made plain."""
        return cls(**{**plain, "workload": Workload.from_dict(plain["workload"])})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "workload": self.workload.to_dict()}


@dataclass
class Results:
    """A whole run.

    Attributes
    ----------
    made : str
        When it began, by ISO 8601.
    command : str
        What repeats it.
    seed, rounds : int
    sweep : str, optional
        Over what the workloads differ.
    machine, versions : dict of str
    commit : str, optional
        Of fastmlp, where it runs from a checkout.
    notes : list of str
        What is to be known of the figures.
    limits : dict
        For each device and type, such as ``"cpu float32"``, what `limits.measure` found in each round.
    cases : list of Case
    """

    made: str
    command: str
    seed: int
    rounds: int
    sweep: str | None
    machine: dict[str, str]
    versions: dict[str, str]
    commit: str | None
    notes: list[str] = field(default_factory=list)
    limits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    @property
    def workloads(self) -> list[Workload]:
        """The workloads, in their order."""
        return list(dict.fromkeys(case.workload for case in self.cases))

    def of(self, workload: Workload) -> list[Case]:
        """Return the cases of a workload."""
        return [case for case in self.cases if case.workload == workload]

    @property
    def failures(self) -> list[str]:
        """Who measured less than was asked for, of which workloads and why, in words: a line for each reason."""
        reasons: dict[str, dict[bool, dict[tuple[str, ...], list[str]]]] = {}
        for name in dict.fromkeys(case.contender for case in self.cases):
            alike: dict[tuple[str, bool], list[Case]] = {}
            for case in self.cases:
                if case.contender == name and case.failure is not None:
                    alike.setdefault((case.failure, bool(case.rounds)), []).append(case)
            for (reason, begun), cases in alike.items():
                names = tuple(case.workload.name for case in cases)
                reasons.setdefault(reason, {}).setdefault(begun, {}).setdefault(names, []).append(cases[0].label)
        return [
            "; ".join(f"{_SAID[begun]}: {self._who(by)}" for begun, by in sorted(found.items())) + f": {reason}"
            for reason, found in reasons.items()
        ]

    def _who(self, labels: Mapping[tuple[str, ...], Sequence[str]]) -> str:
        """Return contenders by the workloads that they are named with; by none where these are all."""
        every = len(self.workloads)
        return ", ".join(
            ", ".join(who) + ("" if len(names) == every else f" ({', '.join(names)})") for names, who in labels.items()
        )

    def limits_of(self, case: Case) -> Limits | None:
        """Return the limits of the device and type of a case; None where they were not measured."""
        found = self.limits.get(f"{case.device} {case.workload.dtype}")
        return best_of(found) if found else None

    def share(self, case: Case, measure: str) -> tuple[float, str] | None:
        """Return the fraction of the machine's limit that a case reaches, and which limit it is.

        Parameters
        ----------
        case : Case
        measure : str
            "train" or "predict"; for others, and where something was not measured, None.
        """
        cost, limits, summary = case.cost(measure), self.limits_of(case), case.summary(measure)
        if cost is None or limits is None or summary is None:
            return None
        if measure == "predict":  # all rows are one call, whose bytes are not in a cache because those of a row are
            seconds, what = limits.least_seconds(Cost(cost.operations * case.many, cost.bytes * case.many))
            return seconds / case.many / summary.median, what
        seconds, what = limits.least_seconds(cost)
        return seconds / summary.median, what

    def fastest(self, workload: Workload, measure: str) -> Case | None:
        """Return the case of the least median; None where nobody has any."""
        cases = [case for case in self.of(workload) if case.samples(measure)]
        return min(cases, key=lambda case: summarize(case.samples(measure)).median, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as a file has them."""
        return {"format": FORMAT, **vars(self), "cases": [case.to_dict() for case in self.cases]}

    def write(self, path: Path) -> None:
        """Write all as JSON, in one piece."""
        with atomic_writer(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1) + "\n").encode())


def read(path: Path) -> Results:
    """Return the results of a file, or of a folder that holds one.

    Raises
    ------
    FileFormatError
        It is no such file.
    OSError
        It cannot be read.
    """
    file = path / NAME if path.is_dir() else path
    text = file.read_bytes()
    try:
        plain = json.loads(text)
        if plain["format"] != FORMAT:
            raise FileFormatError(
                f"{file}: expected results of format {FORMAT}, got {plain['format']!r}; measure anew with this version"
            )
        del plain["format"]
        plain["cases"] = [Case.from_dict(case) for case in plain["cases"]]
        return Results(**plain)
    except FileFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        kind = f"{type(e).__name__}: {e}"
        raise FileFormatError(
            f"{file}: expected what fastmlp bench --out has written, got another file ({kind})"
        ) from e


def against(base: Case, case: Case, measure: str, factor: float) -> Verdict | None:
    """Compare a case with another by one measure; None where one of them lacks it."""
    one, other = case.samples(measure), base.samples(measure)
    return compare(one, other, factor) if one and other else None


def matched(old: Results, new: Results) -> tuple[list[tuple[Case, Case]], list[Case]]:
    """Return the cases that both have, and those that only one has, by workload and contender."""
    before: dict[tuple[Workload, str], Case] = {(case.workload, case.contender): case for case in old.cases}
    pairs, alone = [], []
    for case in new.cases:
        found = before.pop((case.workload, case.contender), None)
        pairs += [(found, case)] if found else []
        alone += [] if found else [case]
    return pairs, [*alone, *before.values()]


def differences(
    machine: Mapping[str, str],
    machine_now: Mapping[str, str],
    versions: Mapping[str, str],
    versions_now: Mapping[str, str],
) -> Sequence[str]:
    """Return what differs of machine and versions between two runs, in words."""
    found = []
    for one, other in ((machine, machine_now), (versions, versions_now)):
        for name in dict.fromkeys([*one, *other]):
            if one.get(name) != other.get(name):
                found.append(f"{name}: {one.get(name, 'none')} before, {other.get(name, 'none')} now")
    return found
