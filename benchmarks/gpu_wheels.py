"""Wheels for a GPU machine that reaches no registry: fastmlp, and what that machine lacks of what it needs.

    python3 -m pip list --format=freeze > there.txt               # there; or names alone, one a line
    python benchmarks/gpu_wheels.py --there there.txt --out wheels  # here, once
    pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=$PWD/site    # there

What is there is kept as it is: other releases are taken only of what is not.  Nothing of CUDA is brought, nor CuPy:
a machine with a GPU has them, or they are named with ``--also``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (34, 28, 27, 24, 17)] + ["manylinux2014_x86_64"]
"""Of wheels that run there; pip takes each by its very name."""


def canonical(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def there(text: str) -> set[str]:
    """Return the names of what a machine has.

    Parameters
    ----------
    text : str
        Of ``pip list --format=freeze``, or names, one a line.
    """
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return {canonical(re.split("[=@ ]", line)[0]) for line in lines if line and not line.startswith("-")}


def missing(report: dict[str, Any], have: set[str]) -> list[str]:
    """Return what pip would install and a machine has not, as ``name==version``, sorted; fastmlp itself left out."""
    wanted = [item["metadata"] for item in report["install"]]
    absent = [m for m in wanted if canonical(m["name"]) not in {*have, "fastmlp"}]
    return sorted(f"{canonical(m['name'])}=={m['version']}" for m in absent)


def pip(*arguments: str) -> None:
    """Run pip of this Python, and end with its own words where it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"], check=False)
    if done.returncode:
        sys.exit(f"pip {arguments[0]} failed; its own words are above")


def collect(out: Path, have: set[str], python: str, extras: str, also: list[str]) -> list[str]:
    """Put the wheels into a folder; return what was brought beside fastmlp."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("fastmlp-*.whl"):
        old.unlink()
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(ROOT))
    wheel = next(out.glob("fastmlp-*.whl"))
    target = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    target += [word for name in PLATFORMS for word in ("--platform", name)]
    with tempfile.TemporaryDirectory() as work:
        # not constrained to what is there: such machines have what their own resolver would refuse
        report = Path(work) / "report.json"
        options = ["--quiet", "--dry-run", "--ignore-installed", "--target", work, "--report", str(report)]
        pip("install", *options, *target, f"{wheel}[{extras}]", *also)
        brought = missing(json.loads(report.read_text()), have)
    if brought:
        pip("download", "--quiet", "--no-deps", "--dest", str(out), *target, *brought)
    return brought


def main() -> None:
    """Collect, and say what was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheels; made if it is not there")
    parser.add_argument("--there", type=Path, help="file of what the machine has, as pip lists it; by default nothing")
    parser.add_argument("--python", default="3.12", help="version of Python there (default: %(default)s)")
    parser.add_argument("--extras", default="test", help="of fastmlp (default: %(default)s, which the suite needs)")
    parser.add_argument("--also", action="append", default=[], metavar="REQUIREMENT", help="may be repeated")
    options = parser.parse_args()
    have = there(options.there.read_text(encoding="utf-8")) if options.there else set()
    brought = collect(options.out, have, options.python, options.extras, options.also)
    size = sum(path.stat().st_size for path in options.out.glob("*.whl"))
    print(f"{options.out}: fastmlp and {len(brought)} more, {size / 1e6:.1f} MB: {', '.join(brought) or 'it has all'}")


if __name__ == "__main__":
    main()
