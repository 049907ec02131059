"""Part 3 of `gpu_day`, why it is so: what NVIDIA's tools see of a few steps."""

from __future__ import annotations

import csv
import shutil
import statistics
import subprocess
import sys

from gpu_measure import HERE, Found, failing
from gpu_trial import PLANTED, TRAINED

from fastmlp.bench.tables import markdown_table as table

METRICS = (
    "gpu__time_duration.sum",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
)


def sanitized(tool: str, dry: bool) -> Found:
    """Train a little under a tool of compute-sanitizer; it must have trained, and the tool must see what is planted."""
    if dry or shutil.which("compute-sanitizer") is None:
        return {"text": "not in a dry run" if dry else "compute-sanitizer is not installed"}
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, str(HERE / "gpu_trial.py")]
    done = subprocess.run([*command, "small"], capture_output=True, text=True, check=False)
    print(done.stdout[-20000:], done.stderr[-20000:])
    lines = [line for line in done.stdout.splitlines() if "SUMMARY" in line or line.startswith(TRAINED)]
    found: Found = {"code": done.returncode, "text": "; ".join(lines) or done.stderr[-500:]}
    if done.returncode or TRAINED not in done.stdout:
        return failing(found, f"code {done.returncode}, or nothing was trained")
    if tool == "memcheck":  # the other tools look for faults of other kinds
        planted = subprocess.run([*command, PLANTED], capture_output=True, text=True, check=False)
        found["planted"] = planted.returncode
        return failing(found, "" if planted.returncode == 9 else "memcheck does not see a write beyond an array")
    return found


def memcheck(dry: bool) -> Found:
    """Look for accesses outside the arrays, each of which is an allocation by itself."""
    return sanitized("memcheck", dry)


def racecheck(dry: bool) -> Found:
    """Look for races in shared memory."""
    return sanitized("racecheck", dry)


def synccheck(dry: bool) -> Found:
    """Look for barriers that not all threads come to."""
    return sanitized("synccheck", dry)


def counters(dry: bool) -> Found:
    """Let Nsight Compute count what limits each kernel."""
    if dry or shutil.which("ncu") is None:
        return {"text": "not in a dry run" if dry else "ncu is not installed"}
    command = ["ncu", "--clock-control", "none", "--launch-count", "240", "--csv", "--page", "raw"]
    command += ["--metrics", ",".join(METRICS), sys.executable, str(HERE / "gpu_trial.py"), "large"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = counted(done.stdout)
    head = ["kernel", "grid", "launches", *(metric.split(".")[0] for metric in METRICS)]
    return failing(
        {"kernels": rows, "text": table(head, rows)}, "" if rows else f"ncu saw nothing: {done.stderr[-500:]}"
    )


def counted(output: str) -> list[list[object]]:
    """Return a row for each kernel and grid in what ncu prints: how often, and the medians of the metrics."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    found: dict[tuple[str, str], list[list[float]]] = {}
    for launch in list(csv.DictReader(lines))[1:]:  # the first has the units
        values = [float(launch[metric].replace(",", "")) for metric in METRICS]
        found.setdefault((launch["Kernel Name"].split("(")[0], launch["Grid Size"]), []).append(values)
    return [
        [*key, len(launches), *(f"{statistics.median(column):.4g}" for column in zip(*launches, strict=True))]
        for key, launches in found.items()
    ]
