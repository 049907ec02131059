"""A whole run: limits and contenders in turn, round after round, each in a process of its own."""

from __future__ import annotations

import datetime
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmlp.bench.contenders import CACHES, contender
from fastmlp.bench.limits import pinned_threads
from fastmlp.bench.machine import commit, machine, versions
from fastmlp.bench.measures import TIMED, Effort
from fastmlp.bench.peers import NoCounterpartError
from fastmlp.bench.results import Case, Results
from fastmlp.bench.workloads import Workload, predicted_rows
from fastmlp.doctor.fresh import FreshProcessError, in_fresh_process

Said = Callable[[str], object]
"""Is told what is measured next."""
Asking = Callable[..., Any]
"""Calls a function in a process of its own, as `fresh.in_fresh_process` does."""


TYPICAL = 6.0
"""Seconds that a process of a quick run takes, about: it imports a library, trains a first epoch, takes its samples."""


class MeasuringError(RuntimeError):
    """Nothing was measured; the message says why."""


def processes_of(workloads: Sequence[Workload], entrants: Mapping[str, str | None], effort: Effort) -> int:
    """Return how many processes a run takes where nobody fails."""
    able = [name for name, missing in entrants.items() if missing is None]
    limits = {(contender(name).device, workload.dtype) for name in able for workload in workloads}
    prepared = sum(contender(name).is_prepared for name in able)
    return 2 * prepared + effort.rounds * (len(limits) + len(able) * len(workloads))


def affordable(
    workloads: Sequence[Workload], entrants: Mapping[str, str | None], effort: Effort
) -> tuple[list[Workload], list[str]]:
    """Return the first of some workloads, as many as there is time for, one at least; and in words what is left out."""
    count = len(workloads)
    while count > 1 and TYPICAL * processes_of(workloads[:count], entrants, effort) > effort.total:
        count -= 1
    left = ", ".join(workload.name for workload in workloads[count:])
    processes = processes_of(workloads, entrants, effort)
    said = f"left out: {left}: with it there would be {processes} processes, too many for {effort.total:g} s"
    return list(workloads[:count]), [f"{said}; --workload {left} measures it"] if left else []


def run(
    workloads: Sequence[Workload],
    entrants: Mapping[str, str | None],
    effort: Effort,
    *,
    seed: int,
    command: str,
    sweep: str | None = None,
    said: Said = lambda _: None,
    ask: Asking = in_fresh_process,
) -> Results:
    """Measure every contender on every workload.

    Parameters
    ----------
    workloads : sequence of Workload
    entrants : mapping
        Contenders by name, and None, or why they cannot run here; such ones are in the results too, with the reason.
    effort : Effort
    seed : int
        Of rows, weights and orders.
    command : str
        What repeats the run.
    sweep : str, optional
        Over what the workloads differ.
    said : callable
        Is told what is measured next.
    ask : callable
        Calls a function in a process of its own.

    Raises
    ------
    MeasuringError
        Nobody has measured anything; the message gives each reason.
    """
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = Results(made, command, seed, effort.rounds, sweep, machine(), versions(), commit())
    found.notes += _busy()
    chosen = {name: contender(name) for name in entrants}
    failing, asking = dict(entrants), _Asking(effort, ask)
    for name in [name for name, missing in entrants.items() if missing is None and chosen[name].is_prepared]:
        said(f"{chosen[name].label}: compiled code is made ready")
        failing[name] = _prepare(name, workloads[0], asking)
    for workload in workloads:
        moments = workload.optimizer_record().moments
        for name, one in chosen.items():
            many = predicted_rows(workload.units, effort.operations, one.device)
            found.cases.append(Case(workload, name, one.label, one.device, [], failing[name], moments, many))
    missed = _measure_rounds(found, effort, seed, said, asking)
    for case in found.of(workloads[0]):
        if case.rounds and chosen[case.contender].is_prepared:
            said(f"{case.label}: the first call, nothing compiled yet")
            missed |= _add_cold(case, seed, asking)
    if effort.of_compilers != TIMED:
        labels = dict.fromkeys(case.label for case in found.cases if case.rounds and chosen[case.contender].compiles)
        said_of = "training alone is measured with --quick, since each shape is compiled anew"
        found.notes += [f"{', '.join(labels)}: {said_of}"] if labels else []
    for reason in dict.fromkeys(missed.values()):
        found.notes.append(f"not measured: {', '.join(what for what in missed if missed[what] == reason)}: {reason}")
    if not any(case.rounds for case in found.cases):
        raise MeasuringError("; ".join(found.failures))
    return found


def _measure_rounds(found: Results, effort: Effort, seed: int, said: Said, ask: _Asking) -> dict[str, str]:
    """Measure limits and cases round after round; return which limits are not known, and why.

    Where time is scarce, all that compile nothing come first.  Others, who may take a minute for each shape, are the
    last of a round, and have the time alone that the rounds to come do not need, each as long as this one.
    """
    limits = {(case.device, case.workload.dtype): "" for case in found.cases if case.failure is None}

    def measure(case: Case, turn: int, spare: float = 0.0) -> None:
        if case.failure is None:
            said(f"round {turn + 1} of {effort.rounds}: {case.workload.name}, {case.label}")
            _measure(case, seed, ask, spare)

    def measure_limits() -> None:
        for device, dtype in limits:
            said(f"limits of the machine: {device}, {dtype}")
            limits[device, dtype] = _add_limits(found, device, dtype, ask)

    for turn in range(effort.rounds):
        began = time.monotonic()
        if turn == 0:
            measure_limits()
        for workload in found.workloads:
            cases = [case for case in found.of(workload) if not contender(case.contender).compiles]
            at = turn % max(len(cases), 1)
            for case in cases[at:] + cases[:at]:  # nobody is always the first, or always after the same one
                measure(case, turn)
        if turn > 0:  # they are known by then, if not at their best
            measure_limits()
        spare = (time.monotonic() - began) * (effort.rounds - turn - 1)
        for case in found.cases:
            if contender(case.contender).compiles:
                measure(case, turn, spare)
    return {
        f"limits of the {device} in {dtype}": reason
        for (device, dtype), reason in limits.items()
        if f"{device} {dtype}" not in found.limits
    }


class _Asking:
    """Has what is measured measured in processes of their own, as long as there is time."""

    def __init__(self, effort: Effort, ask: Asking) -> None:
        self.effort, self.ask, self.end = effort, ask, time.monotonic() + effort.total

    def __call__(
        self,
        function: str,
        arguments: dict[str, Any],
        longer: float = 1.0,
        environment: Mapping[str, str] | None = None,
        spare: float = 0.0,
    ) -> Any:
        """Return what a function of `child` returns; `spare` seconds before the end are kept for others."""
        over, end = f"no time was left of {self.effort.total:g} s", self.end - spare
        left, timeout = end - time.monotonic(), longer * self.effort.timeout
        if left < 1.0:
            raise MeasuringError(over)
        target, given = f"fastmlp.bench.child:{function}", {**arguments, "effort": self.effort}
        try:
            return self.ask(target, given, timeout=min(timeout, left), environment=environment)
        except FreshProcessError as e:
            if left < timeout and time.monotonic() >= end:  # it was ended because of the others, not by itself
                raise MeasuringError(over) from None
            # what a contender cannot do it says in its own words
            raise MeasuringError(e.text if e.kind == NoCounterpartError.__name__ else str(e)) from None


def _busy() -> list[str]:
    """Return, in words, that other programs want the processors too, where they do."""
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load < 0.5 * cores:
        return []
    return [
        f"the machine was busy when the run began (load average {load:.1f} on {cores} processors): times are longer"
    ]


def _prepare(name: str, workload: Workload, ask: _Asking) -> str | None:
    """Have what a first fit on a machine compiles and measures done once, so that no round has it; return a failure."""
    tiny = Workload("tiny", (2, 2, 2), 2, dtype=workload.dtype)
    try:
        ask("of_contender", {"contender": name, "workload": tiny.to_dict(), "seed": 0}, 10.0)
    except MeasuringError as e:
        return str(e)
    return None


def _task(case: Case, seed: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a process is asked to measure, and the variables that it needs."""
    threads = case.workload.threads
    task = {"contender": case.contender, "workload": case.workload.to_dict(), "seed": seed, "threads": threads}
    return task, {**pinned_threads(threads), **contender(case.contender).environment}


def _measure(case: Case, seed: int, ask: _Asking, spare: float) -> None:
    task, environment = _task(case, seed)
    try:
        case.rounds.append(ask("of_contender", task, environment=environment, spare=spare))
    except MeasuringError as e:
        case.failure = str(e)


def _add_cold(case: Case, seed: int, ask: _Asking) -> dict[str, str]:
    """Measure the first call where nothing is compiled yet, in empty folders; return what is not known, and why."""
    task, environment = _task(case, seed)
    with tempfile.TemporaryDirectory(prefix="fastmlp-", ignore_cleanup_errors=True) as folder:
        empty = {name: str(Path(folder, name)) for name in CACHES}
        try:
            found = ask("of_contender", {**task, "first_alone": True}, 10.0, {**environment, **empty})
        except MeasuringError as e:
            return {f"the first call of {case.label} with nothing compiled": str(e)}
    case.rounds[0]["cold"] = found["first"]
    return {}


def _add_limits(found: Results, device: str, dtype: str, ask: _Asking) -> str:
    """Measure the limits of a device; return why not, where that fails, and no fraction is told then."""
    try:
        limits = ask("of_device", {"device": device, "dtype": dtype})
    except MeasuringError as e:
        return str(e)
    found.limits.setdefault(f"{device} {dtype}", []).append(limits)
    return ""
