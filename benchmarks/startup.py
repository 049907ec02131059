"""How much longer importing fastmlp takes than importing NumPy: medians of fresh processes in turn, in milliseconds.

Two ways: `import fastmlp`, which looks its names up only when they are used, and `from fastmlp import MLP`.

    python benchmarks/startup.py

Exits with 1 where either adds more than 50 ms.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

LIMIT_MS = 50.0
CODE = "import time; s = time.perf_counter(); {0}; print((time.perf_counter() - s) * 1e3)"
IMPORTS = ("import numpy", "import numpy, fastmlp", "import numpy; from fastmlp import MLP")


def import_ms(code: str) -> float:
    """Return how long a fresh process takes to run an import."""
    # bytecode is kept, as it is for what pip installs
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-P", "-c", CODE.format(code)]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    """Measure, print, and compare with the limit."""
    for code in IMPORTS:
        import_ms(code)
    rounds = [[import_ms(code) for code in IMPORTS] for _ in range(15)]
    print(f"{IMPORTS[0]}: {statistics.median(r[0] for r in rounds):.1f} ms (median of {len(rounds)} rounds)")
    worst = 0.0
    for i, code in enumerate(IMPORTS[1:], start=1):
        added = statistics.median(r[i] - r[0] for r in rounds)
        worst = max(worst, added)
        print(f"{code}: {added:+.1f} ms (limit {LIMIT_MS:g})")
    return int(worst > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
