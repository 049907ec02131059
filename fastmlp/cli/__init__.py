"""The command line, ``fastmlp``."""

from __future__ import annotations

import sys

from fastmlp.cli.ctrl_c import INTERRUPTED, leave_at_the_next, leaving_at_ctrl_c


def main() -> None:
    """Run the command line in a process of its own; the entry point ``fastmlp``."""
    try:
        with leaving_at_ctrl_c():
            from fastmlp.cli import app
        app.main()
    except KeyboardInterrupt:  # one more, while the first was being answered
        leave_at_the_next()
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except SystemExit as e:
        if e.code == INTERRUPTED:
            leave_at_the_next()
        raise
