"""A process that does one thing: run as a file by `fresh`, it calls a function and leaves the answer in a file.

Of what costs time or memory it imports nothing before the function's own module: that may be what is measured.
"""

from __future__ import annotations

import importlib
import os
import sys


def main(target: str, arguments: str, answer: str, several: str, *path: str) -> None:
    """Call ``module:function`` with arguments, write what it returns or raises, and end the process.

    Parameters
    ----------
    target : str
    arguments : str
        By name, as JSON; empty where there are none.
    answer : str
        The file for the answer, as JSON.
    several : str
        Not empty for one of several processes: those of which the function returns None have no answer.
    *path : str
        Where modules are found.
    """
    sys.path[:] = path
    try:
        given = importlib.import_module("json").loads(arguments) if arguments else {}
        module, _, name = target.partition(":")
        found = getattr(importlib.import_module(module), name)(**given)
        import json

        if several and found is None:
            return
        text = json.dumps({"found": found})
    except BaseException as e:  # what a broken package raises on import may be anything
        import json
        import traceback

        traceback.print_exc()
        missing = e.name if isinstance(e, ModuleNotFoundError) else None
        several = ""  # the others do not wait for it
        text = json.dumps({"kind": type(e).__name__, "text": str(e), "missing": missing})
    with open(f"{answer}.part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(f"{answer}.part", answer)
    if several:
        return  # mpi4py waits on its way out until all are there: an mpiexec may kill the rest when one has gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # some libraries crash on their way out, when all is said


if __name__ == "__main__":
    main(*sys.argv[1:])
