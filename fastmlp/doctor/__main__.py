"""``python -m fastmlp.doctor``, and ``fastmlp doctor``: Python alone must do to get here, whatever else is broken."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastmlp.doctor.checkup import examine


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; return 1 where something stops work, else 0."""
    parser = argparse.ArgumentParser(
        prog="fastmlp doctor",
        description="Say what is installed and usable, what is wrong, and the command that mends it.",
        epilog="The exit code is 1 where a package that fastmlp needs cannot be used, else 0.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--markdown", action="store_true", help="print a block to paste into an issue, without user name or home folder"
    )
    form.add_argument("--json", action="store_true", help="print all as JSON")
    options = parser.parse_args(arguments)
    found = examine()
    print(found.markdown() if options.markdown else found.as_json() if options.json else found)
    return int(found.stops)


if __name__ == "__main__":
    sys.exit(main())
