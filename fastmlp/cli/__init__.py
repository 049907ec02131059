"""The command line, ``fastmlp``."""

from __future__ import annotations

import sys

from fastmlp.cli.ctrl_c import INTERRUPTED, leave_at_the_next, leaving_at_ctrl_c


def main() -> None:
    """Run the command line in a process of its own; the entry point ``fastmlp``."""
    try:
        with leaving_at_ctrl_c():
            if sys.argv[1:2] == ["doctor"]:  # before anything is imported that it may have to find broken
                from fastmlp.doctor.__main__ import main as examine

                sys.exit(examine(sys.argv[2:]))
            try:
                from fastmlp.cli import app
            except ImportError as e:
                print(f"error: fastmlp cannot start ({type(e).__name__}: {e})".replace("\n", " "), file=sys.stderr)
                print("fastmlp doctor tells what is wrong here, and what mends it", file=sys.stderr)
                sys.exit(1)
        app.main()
    except KeyboardInterrupt:  # one more, while the first was being answered
        leave_at_the_next()
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as e:
        if e.code == INTERRUPTED:
            leave_at_the_next()
        raise
