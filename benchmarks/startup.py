"""How much longer importing fastmlp takes than importing NumPy: medians of fresh processes in turn, in milliseconds.

Two ways: `import fastmlp`, which looks its names up only when they are used, and `from fastmlp import MLP`.

    python benchmarks/startup.py

Exits with 1 where either adds more than 50 ms.
"""

from __future__ import annotations

import importlib
import sys
import time

LIMIT_MS = 50.0


def numpy_alone() -> float:
    """Return the milliseconds of an import, as the functions below do: each in a process that has imported nothing."""
    start = time.perf_counter()
    importlib.import_module("numpy")
    return (time.perf_counter() - start) * 1e3


def numpy_and_fastmlp() -> float:
    """Return those of `import numpy, fastmlp`."""
    start = time.perf_counter()
    importlib.import_module("numpy")
    importlib.import_module("fastmlp")
    return (time.perf_counter() - start) * 1e3


def numpy_and_mlp() -> float:
    """Return those of `import numpy; from fastmlp import MLP`."""
    start = time.perf_counter()
    importlib.import_module("numpy")
    name = "MLP"
    getattr(importlib.import_module("fastmlp"), name)
    return (time.perf_counter() - start) * 1e3


IMPORTS = {
    "import numpy": "numpy_alone",
    "import numpy, fastmlp": "numpy_and_fastmlp",
    "import numpy; from fastmlp import MLP": "numpy_and_mlp",
}


def main() -> int:
    """Measure, print, and compare with the limit."""
    import statistics  # what is timed must find nothing imported

    from fastmlp.doctor.fresh import in_fresh_process

    def milliseconds(function: str) -> float:
        # bytecode is kept, as it is for what pip installs
        kept = {"PYTHONDONTWRITEBYTECODE": None}
        return float(in_fresh_process(f"startup:{function}", timeout=60.0, environment=kept))

    for function in IMPORTS.values():
        milliseconds(function)
    rounds = [[milliseconds(function) for function in IMPORTS.values()] for _ in range(15)]
    alone, *others = IMPORTS
    print(f"{alone}: {statistics.median(r[0] for r in rounds):.1f} ms (median of {len(rounds)} rounds)")
    worst = 0.0
    for i, code in enumerate(others, start=1):
        added = statistics.median(r[i] - r[0] for r in rounds)
        worst = max(worst, added)
        print(f"{code}: {added:+.1f} ms (limit {LIMIT_MS:g})")
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
