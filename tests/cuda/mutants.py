"""Break the CUDA code on purpose, one small change at a time, and see that a test goes red.

    python tests/cuda/mutants.py [--sample 200] [--seed 0]

Every operator below is applied at every place that it fits; of all these mutants a sample is drawn by a fixed seed,
and the tests that look at the changed file are run on each, in a copy of the package.  Survivors are printed: each must
have a reason, in `EQUIVALENT`, or is a test that is missing.  Not part of the tests: it takes many minutes.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent

# kind: (pattern, replacement), for kernels
CUDA = {
    "a barrier dropped": (r"__syncthreads\(\);", ""),
    "a bound one too large": (r"(?<=[\w)]) < (?=\w)(?!\w+ \?)", " <= "),  # min(a, b) is the same either way
    "a comparison the other way": (r" > (?=\w)", " < "),
    "at least becomes more than": (r" >= ", " > "),
    "a sum started anew": (r" \+= ", " = "),
    "minus becomes plus": (r"(?<=[\w)\]]) - (?=[\w(])", " + "),
    "plus becomes minus": (r"(?<=[\w)\]]) \+ (?=[\w(])", " - "),
    "times becomes plus": (r"(?<=[\w)\]]) \* (?=[\w(])", " + "),
    "strides swapped": (r"(?<=row \* )o\b", "n"),
    "wide whatever the rows": (r"\bwide, count\)", "true, count)"),
    "and becomes or": (r" && ", " || "),
    "zero becomes one": (r"T\(0\)", "T(1)"),
    "thread axes swapped": (r"threadIdx\.x\b", "threadIdx.y"),
    "a way out dropped": (r"if \([^;{}]*\) return;", ";"),
    "block axes swapped": (r"blockIdx\.x\b", "blockIdx.y"),
    "a 32-bit product": (r"\(long long\)blockIdx", "blockIdx"),
    "a null pointer not looked for": (r"\w+ != nullptr", "true"),
    "a step of another row": (r"\+ index\b", "+ index + 1"),
}

# for the host
HOST = {
    "an assignment dropped": (r"^(\s+)(?:self\.[\w.]+|\w+)(?:\[[^\]]*\])? (?:\+|&)?= (?!=).*[^(\[{,]$", r"\1pass"),
    "a call dropped": (r"^(\s+)(?:self|caller|memory)[\w.\[\]\"]*\([^()]*(?:\([^()]*\))?[^()]*\)$", r"\1pass"),
    "a part of the key left out": (r" and \w+ is \w+\.\w+", ""),
    "another size of integer": (r"np\.int64\(", "np.int32("),
    "another size of number": (r"np\.float64\(", "np.float32("),
    "one off": (r"(?<=[\w)]) - 1\b", ""),
    "a bound one too large": (r"(?<=[\w)]) < (?=\w)", " <= "),
    "rounded down": (r"-\(-(\w[\w()]*) // (\w+)\)", r"(\1 // \2)"),
    "rounded down, too": (r"-(?=-\w[\w()]* // )", ""),
    "another slab": (r"slabs\[1 - is_weight\]|slabs\[layer\]\[1 - is_weight\]", "slabs[layer][is_weight]"),
    "a condition turned round": (r"\bif (?!not\b)(\w[\w.]*)(?= else|:)", r"if not \1"),
}

OPERATIONS = ("tests/test_operations.py", "tests/test_operations_training.py")
STEPS = ("tests/cuda/test_kernels.py", "tests/cuda/test_training_step.py", "tests/test_composition.py")
# file: (tests to run, which of them), quickest first
TESTS = {
    "gather.cu": (("tests/test_operations.py", *STEPS), "cupy or cuda"),
    "layers.cu": ((*STEPS, "tests/test_operations.py"), "cupy or cuda"),
    "losses.cu": ((OPERATIONS[1], *STEPS), "cupy or cuda"),
    "optimizers.cu": ((*STEPS, OPERATIONS[1]), "cupy or cuda"),
    "flat.cu": ((OPERATIONS[1], *STEPS), "cupy or cuda"),
    "products.cu": (("tests/cuda/test_products.py", *STEPS), "cupy or cuda"),
    "philox.cuh": (("tests/cuda/test_products.py", *STEPS), "cupy or cuda"),
    "activations.cuh": (("tests/test_operations.py", *STEPS), "cupy or cuda"),
    "step.cuh": (STEPS, "cupy or cuda"),
    "common.cuh": ((*STEPS, *OPERATIONS), "cupy or cuda"),
    "cupy_step.py": (STEPS, "cupy or cuda"),
    "cuda_products.py": (("tests/cuda/test_products.py", *STEPS), "cupy or cuda"),
    "cuda_blas.py": (("tests/test_operations.py", *STEPS), "cupy or cuda"),
    "cuda_kernels.py": (("tests/cuda/test_products.py", *STEPS, *OPERATIONS), "cupy or cuda"),
    "cupy_operations.py": ((*OPERATIONS, *STEPS), "cupy or cuda"),
}

EQUIVALENT: dict[str, str] = {}
"""``file:line: kind`` of survivors that no test can catch, each with the reason."""


class Mutant(NamedTuple):
    """A file, the number of a line (from 1), the kind of change, and the line as changed."""

    file: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}: {self.kind}: {self.text.strip()}"


def mutants() -> list[Mutant]:
    """Return all of them."""
    found = []
    for name in TESTS:
        folder = ROOT / ("fastmlp/backends" if name.endswith(".py") else "kernels/cuda")
        quoted = False
        for number, line in enumerate((folder / name).read_text().splitlines(), start=1):
            inside = quoted
            quoted ^= line.count('"""') % 2 == 1
            if inside or quoted or re.match(r"\s*(//|#|\"\"\"|import|from|template|static_assert)", line):
                continue
            code = line.split("  # ")[0].split("  //")[0]
            for kind, (pattern, replacement) in (HOST if name.endswith(".py") else CUDA).items():
                for place in re.finditer(pattern, code):
                    changed = code[: place.start()] + place.expand(replacement) + code[place.end() :]
                    found.append(Mutant(folder / name, number, kind, changed))
    return found


def survives(mutant: Mutant, seconds: int) -> bool:
    """Return whether all tests pass on a copy of the package with the change in it."""
    with tempfile.TemporaryDirectory() as work:
        copy = Path(work) / "fastmlp"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "fastmlp", copy, ignore=ignored)
        shutil.copytree(ROOT / "kernels", copy / "kernels", ignore=ignored)
        relative = mutant.file.relative_to(ROOT)
        changed = copy.parent / (relative if relative.parts[0] == "fastmlp" else Path("fastmlp") / relative)
        lines = changed.read_text().splitlines()
        lines[mutant.line - 1] = mutant.text
        changed.write_text("\n".join(lines) + "\n")
        files, which = TESTS[mutant.file.name]
        command = [sys.executable, "-P", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files, "-k", which]
        lint = [*command[:8], "tests/cuda/test_compile.py", "-k", "forbidden"]
        environment = {**os.environ, "PYTHONPATH": work, "PYTHONDONTWRITEBYTECODE": "1"}
        for run in (lint, command):
            try:
                done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                return False  # a kernel that never ends is noticed too
            if done.returncode:
                return False
    return True


def main() -> int:
    """Run a sample; return 1 where less than 95 % are caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many of the sample")
    arguments = parser.parse_args()
    everything = mutants()
    kinds = Counter(m.kind for m in everything)
    print(f"{len(everything)} mutants of {len(kinds)} kinds: " + ", ".join(f"{k} {n}" for k, n in kinds.items()))
    sample = random.Random(arguments.seed).sample(everything, min(arguments.sample, len(everything)))[arguments.skip :]
    caught = counted = 0
    for mutant in sample:
        where = f"{mutant.file.name}:{mutant.line}: {mutant.kind}"
        if where in EQUIVALENT:
            continue
        counted += 1
        alive = survives(mutant, 150)
        caught += not alive
        if alive:
            print(f"SURVIVES {mutant}", flush=True)
        if counted % 10 == 0:
            print(f"{caught} of {counted} caught so far", flush=True)
    print(f"{caught} of {counted} caught")
    return int(caught < 0.95 * counted)


if __name__ == "__main__":
    sys.exit(main())
