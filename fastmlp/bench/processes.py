"""Measuring in fresh processes, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from fastmlp.bench.limits import pinned_threads
from fastmlp.doctor.checkup import end_of


class MeasuringError(RuntimeError):
    """A process has measured nothing; the message says why."""


def in_process(
    task: Mapping[str, Any], timeout: float, threads: int | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what `fastmlp.bench.child` finds in a process of its own.

    Parameters
    ----------
    task : mapping
        What it is to measure.
    timeout : float
        Seconds after which it counts as hanging.
    threads : int, optional
        To which it is kept.
    environment : mapping, optional
        Variables that it has beside those of this process.

    Raises
    ------
    MeasuringError
        It raises, crashes or hangs.
    """
    command = [sys.executable, "-P", "-m", "fastmlp.bench.child", json.dumps({**task, "threads": threads})]
    variables = {**os.environ, **pinned_threads(threads), **(environment or {})}
    try:
        done = subprocess.run(
            command, env=variables, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise MeasuringError(f"took longer than {timeout:g} s") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise MeasuringError(end_of(done)) from None
    if "failed" in answer:
        raise MeasuringError(answer["failed"])
    found: dict[str, Any] = answer["found"]
    return found
