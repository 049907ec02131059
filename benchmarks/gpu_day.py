"""A day with a GPU, or ten minutes of one: is it right, how fast, and why; on a machine that reaches nothing else.

    python benchmarks/gpu_day.py --out day                    # all that is installed allows, half an hour at most
    python benchmarks/gpu_day.py --part 1 --out day           # is it right?  2: how fast?  3: why?
    python benchmarks/gpu_day.py --stages proof,steps --out day
    python benchmarks/gpu_day.py --dry-run --out day          # without a GPU, on the double of CuPy that the tests have

Each stage is a process of its own with a limit of its own, because a fault on a GPU poisons the process that it
happens in.  What a stage found is written when it ends, as ``STAGE.json`` (its figures) and ``STAGE.log`` (what it
printed), and ``summary.md`` is written anew: a day that is killed loses the stage at hand and nothing else.  ``GPU.md``
beside this script says how to read each stage, and which constant, branch or sentence of the README it decides.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.doctor.fresh import FreshProcessError, TooLongError, in_fresh_process

PART_SECONDS = 540
"""What a part may take, all its stages together."""


class Stage(NamedTuple):
    """A stage: to which part it belongs, and the seconds after which it is killed."""

    part: int
    seconds: int


STAGES = {
    "environment": Stage(1, 60),
    "ceilings": Stage(1, 60),
    "selftest": Stage(1, 240),
    "selftest_warm": Stage(1, 120),
    "proof": Stage(1, 150),
    "ranks": Stage(1, 60),
    "suite": Stage(1, 240),
    "steps": Stage(2, 150),
    "products": Stage(2, 100),
    "kernels": Stage(2, 60),
    "race": Stage(2, 300),
    "limits": Stage(2, 120),
    "auto": Stage(2, 180),
    "bench": Stage(2, 185),
    "memcheck": Stage(3, 150),
    "racecheck": Stage(3, 150),
    "synccheck": Stage(3, 100),
    "counters": Stage(3, 120),
}
"""In the order in which they run; each is a function of the module of its part."""
MODULES = {1: "gpu_right", 2: "gpu_speed", 3: "gpu_why"}


def stage(name: str, dry: bool) -> dict[str, Any]:
    """Run a stage in this process; return what it found."""
    import gpu_measure

    if dry:
        gpu_measure.use_the_double()
    found: dict[str, Any] = getattr(importlib.import_module(MODULES[STAGES[name].part]), name)(dry)
    return found


def run_stage(name: str, out: Path, seconds: float, dry: bool) -> dict[str, Any]:
    """Run a stage in a process of its own; write and return what it found."""
    result, began, given = out / f"{name}.json", time.monotonic(), {"name": name, "dry": dry}
    result.unlink(missing_ok=True)
    try:
        answer = in_fresh_process("gpu_day:stage", given, timeout=seconds, log=out / f"{name}.log")
    except TooLongError:
        answer = {"failed": f"stopped after {seconds:.0f} s"}
    except FreshProcessError as e:
        answer = {"failed": str(e)}
    found = {"stage": name, "seconds": round(time.monotonic() - began, 1), **answer}
    result.write_text(json.dumps(found, indent=1))
    return found


def summary(out: Path) -> str:
    """Return what the stages that have ended found, as Markdown, and write it."""
    parts = []
    for name, stage in STAGES.items():
        path = out / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text())
            text = f"**failed**: {found['failed']}" if "failed" in found else found.get("text", "")
            parts.append(f"## {name} (part {stage.part}, {found['seconds']} s)\n\n{text}\n")
    text = "# A day with a GPU\n\n" + "\n".join(parts)
    (out / "summary.md").write_text(text)
    return text


def write(out: Path) -> None:
    """Put what was measured into RESULTS.md, under the kind of GPU that it was measured on."""
    from results import write_section

    here = json.loads((out / "environment.json").read_text())
    name, driver = [part.strip() for part in here["gpu"].splitlines()[-1].split(",")[:2]]
    packages = ", ".join(f"{package} {version}" for package, version in here["versions"].items())
    versions = f"{name}, driver {driver}, {here['cpus']} processors; Python {here['python']}, {packages}"
    for stage in ("ceilings", "proof", "steps", "products", "kernels", "race", "limits", "auto", "bench"):
        path = out / f"{stage}.json"
        found = json.loads(path.read_text()) if path.exists() else {"failed": "not run"}
        if "text" in found:
            said = found.get("failed", found["text"])  # in front of it, why it failed
            text = re.sub("^### ", "#### ", said, flags=re.M)  # what it is put under has three
            write_section(f"A day with a GPU: {stage}", text, name, versions)


def main() -> int:
    """Run the stages that are asked for; return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found; made if it is not there")
    parser.add_argument("--part", type=int, choices=[1, 2, 3])
    parser.add_argument("--stages", help="names, with commas between them: " + ", ".join(STAGES))
    parser.add_argument("--dry-run", action="store_true", help="on the double of CuPy, with sizes that it can do")
    parser.add_argument("--write", action="store_true", help="run nothing; put what DIR holds into RESULTS.md")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.write:
        write(options.out)
        return 0
    wanted = options.stages.split(",") if options.stages else list(STAGES)
    unknown = [name for name in wanted if name not in STAGES]
    if unknown:
        parser.error(f"--stages: there is no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    failed, left = 0, dict.fromkeys((1, 2, 3), float(PART_SECONDS))
    for name in STAGES:
        part, seconds = STAGES[name]
        if name not in wanted or options.part not in (None, part):
            continue
        found = run_stage(name, options.out, min(seconds, left[part]), options.dry_run)
        left[part] = max(left[part] - found["seconds"], 5.0)
        failed += "failed" in found
        summary(options.out)
        print(f"== {name}: {found['seconds']} s\n{found.get('failed') or found.get('text', '')}\n", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
