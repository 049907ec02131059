"""Break the CUDA code on purpose, one small change at a time, and see that a test goes red.

    python tests/cuda/mutants.py --sample 200                                all at once: a quarter of an hour
    python tests/cuda/mutants.py --sample 200 --minutes 3                    until time is up; say it again to go on
    python tests/cuda/mutants.py --sample 200 --only kernels/cuda/flat.cu    of one file
    python tests/cuda/mutants.py --sample 80 --families named                of the kinds that are not mechanical

`mutation.py` applies every kind of change at every place where it fits; of all these mutants a sample is drawn by a
fixed seed, from each family of kinds and either half of the code in turn, and the tests that look at the changed file
are run on each, in a copy of the tree, until one fails.  Which were caught is written down, and they are not tried
again (tests are only ever added; `--afresh` forgets); survivors are, once anything has changed.  Each survivor stands
in `survivors.txt` with the reason why no test tells it from the original, or a test is missing.  Not part of the tests.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import mutation
from mutated import TESTS
from mutation import DRAWS, ROOT, Mutant, family, mutants, sample

SURVIVORS = Path(__file__).parent / "survivors.txt"

SECONDS = 240
"""What the tests of one mutant may take; a kernel that never ends is noticed too."""


class Laboratory:
    """A copy of the tree in which one file at a time is changed, with compiled files kept from run to run."""

    def __init__(self) -> None:
        self.root = Path(tempfile.gettempdir()) / f"fastmlp-mutants-{os.getuid()}"
        self.tree = self.root / "tree"
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        for source in _tracked():
            copy, text = self.tree / self._place(source), source.read_bytes()
            digest.update(text)
            if not copy.exists() or copy.read_bytes() != text:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(text)
        self._green = self.root / f"green-{digest.hexdigest()[:16]}"
        self.survived = self.root / f"survived-{digest.hexdigest()[:16]}"

    @staticmethod
    def _place(source: Path) -> Path:
        """Return where a file of the working tree is put: kernels where an installed package has them."""
        relative = source.relative_to(ROOT)
        return Path("fastmlp") / relative if relative.parts[0] == "kernels" else relative

    def check(self, tests: Iterable[str]) -> bool:
        """Return whether tests pass as things are: else nothing can be learned from their failing."""
        known = set(self._green.read_text().split()) if self._green.exists() else set()
        missing = [t for t in tests if t not in known]
        if missing and not self.passes(missing):
            return False
        self._green.write_text("\n".join(known.union(tests)))
        return True

    def passes(self, tests: Iterable[str], mutant: Mutant | None = None) -> bool:
        """Return whether all tests pass with the change in it, or as it is."""
        environment = {**os.environ, "PYTHONPATH": str(self.tree), "TMPDIR": str(self.root / "tmp")}
        if mutant is not None:  # else Python's compiled files are written, and serve all that follows
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        command = [sys.executable, "-P", "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider", "--cuda-host"]
        command += ["--thorough"]
        chosen = "(cupy or cuda or shared_parts) and not on_other_backends"
        command += ["-o", "timeout=40", "-o", "timeout_method=thread", *tests, "-k", chosen]
        with self._changed(mutant):
            options = {"cwd": self.tree, "env": environment, "capture_output": True, "text": True}
            try:
                done = subprocess.run(command, timeout=SECONDS, check=False, **options)
            except subprocess.TimeoutExpired:
                print(f"no answer in {SECONDS} s")
                return False
        if mutant is None and done.returncode:
            print(done.stdout[-3000:], done.stderr[-2000:])
        return done.returncode == 0

    @contextlib.contextmanager
    def _changed(self, mutant: Mutant | None) -> Iterator[None]:
        if mutant is None:
            yield
            return
        file = self.tree / self._place(mutant.file)
        kept, before = file.read_text(), file.stat()
        compiled = list(file.parent.glob(f"__pycache__/{file.stem}.*"))
        bytecode = {p: p.read_bytes() for p in compiled}
        for p in compiled:
            p.unlink()
        file.write_text(mutant.applied())
        try:
            yield
        finally:
            file.write_text(kept)
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # compiled files are told by it
            for p, content in bytecode.items():
                p.write_bytes(content)


def _tracked() -> list[Path]:
    """Return the files that the tests need, in order."""
    found = [ROOT / "pyproject.toml"]
    for folder in ("fastmlp", "kernels", "tests"):
        found += (p for p in sorted((ROOT / folder).rglob("*")) if p.is_file() and "__pycache__" not in p.parts)
    own = (__file__, mutation.__file__, SURVIVORS)
    return [p for p in found if p not in map(Path, own)]


def reasons() -> dict[str, str]:
    """Return the reason of each known survivor: a line with its name, and the reason in indented lines below."""
    found: dict[str, str] = {}
    name = ""
    for line in SURVIVORS.read_text().splitlines():
        if line.startswith("  "):
            found[name] += line.strip() + " "
        elif line and not line.startswith("#"):
            name = line
            found[name] = ""
    return found


def main() -> int:
    """Run a sample; return 1 where less than 95 % are caught, or a survivor has no reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", choices=DRAWS, default="all", help="see FAMILIES in mutation.py")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop then, and go on at the next call")
    parser.add_argument("--only", choices=TESTS, metavar="FILE", help="a path from the repository's root")
    parser.add_argument("--afresh", action="store_true", help="forget what was caught before")
    parser.add_argument("--list", action="store_true", help="print the sample, run nothing")
    arguments = parser.parse_args()
    kinds = Counter(m.kind for m in mutants())
    print(f"{kinds.total()} mutants of {len(kinds)} kinds: " + ", ".join(f"{n} {k}" for k, n in kinds.most_common()))
    drawn = sample(arguments.sample, arguments.seed, arguments.families)
    drawn = [m for m in drawn if arguments.only in (None, m.path)]
    drawn.sort(key=lambda m: (m.file.suffix == ".py", m.file, m.start))
    if arguments.list:
        print(*(m.name for m in drawn), sep="\n")
        return 0
    return try_all(drawn, arguments.minutes, arguments.afresh)


def try_all(drawn: list[Mutant], minutes: float, afresh: bool) -> int:
    """Run the tests on mutants not yet caught, until all are done or time is up; print what was found."""
    began, laboratory, known = time.monotonic(), Laboratory(), reasons()
    record = laboratory.root / "caught.json"
    caught = set() if afresh or not record.exists() else set(json.loads(record.read_text()))
    alive = set(laboratory.survived.read_text().split("\n")) if laboratory.survived.exists() and not afresh else set()
    survivors, left = [], 0
    for number, mutant in enumerate(drawn, start=1):
        key = f"{mutant.line} {mutant.name}"
        if key in caught:
            continue
        if key in alive or mutant.name in known:  # those with a reason count as survivors without being tried
            survivors.append(mutant)
            continue
        if time.monotonic() - began > 60 * minutes:
            left += 1
            continue
        tests = TESTS[mutant.path]
        if not laboratory.check(tests):
            print(f"the tests of {mutant.path} fail as things are")
            return 1
        if laboratory.passes(tests, mutant):
            survivors.append(mutant)
            alive.add(key)
            laboratory.survived.write_text("\n".join(sorted(alive)))
        else:
            caught.add(key)
            record.write_text(json.dumps(sorted(caught)))
        where = f"{mutant.path}:{mutant.line}: {mutant.kind}"
        fate = ("SURVIVES" if mutant in survivors else "caught").ljust(8)
        print(f"{time.monotonic() - began:5.0f} s  {number:3} of {len(drawn)}  {fate}  {where}", flush=True)
    for mutant in survivors:
        print(f"\nsurvives: {mutant.name}\n  line {mutant.line}; {known.get(mutant.name, 'NO REASON GIVEN')}")
    print("\ncaught of tried:")
    for group in (family, lambda m: m.kind):
        dead = Counter(group(m) for m in drawn if m not in survivors and f"{m.line} {m.name}" in caught)
        lived = Counter(map(group, survivors))
        print("; ".join(f"{n} {dead[n]} of {dead[n] + lived[n]}" for n in sorted(dead | lived)))
    done = len(drawn) - left
    share = (done - len(survivors)) / max(done, 1)
    print(f"\n{done - len(survivors)} of {done} caught, {share:.1%}; {left} left to try")
    return int(left > 0 or share < 0.95 or any(m.name not in known for m in survivors))


if __name__ == "__main__":
    sys.exit(main())
