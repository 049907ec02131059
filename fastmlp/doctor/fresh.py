"""Calling a function in a fresh Python process: one that may crash or hang, or must not share what others have loaded.

All that fastmlp and its benchmarks measure or try in processes of their own goes this way.  Nothing is imported but
what Python brings, since the doctor looks at packages that cannot be imported.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_CHILD = Path(__file__).with_name("fresh_child.py")
_running: set[subprocess.Popen[bytes]] = set()
GRACE = 2.0
"""Seconds that a process has, once it is told to end, to end those that it has started."""


class FreshProcessError(RuntimeError):
    """A fresh process has given no answer; the message says why, and a note has what it said.

    Parameters
    ----------
    message : str
    kind : str
        The name of the exception that was raised in it; empty where it crashed or was ended.
    text : str
        The words of that exception.
    missing : str, optional
        The module that it did not find.
    said : str
        All that it wrote to stdout and stderr, its traceback included.
    """

    def __init__(
        self, message: str, kind: str = "", text: str = "", missing: str | None = None, said: str = ""
    ) -> None:
        super().__init__(message)
        self.kind, self.text, self.missing, self.said = kind, text, missing, said
        if said:
            self.add_note(said)


class TooLongError(FreshProcessError):
    """A fresh process took longer than it may, and was ended with all that it had started."""


def in_fresh_process(
    target: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    timeout: float,
    environment: Mapping[str, str | None] | None = None,
    log: Path | None = None,
    launcher: Sequence[str] = (),
) -> Any:
    """Return what a function returns in a Python process of its own, which finds the modules that this one finds.

    Parameters
    ----------
    target : str
        Such as ``"package.module:function"``.
    arguments : mapping, optional
        By name; plain values, as JSON has them, and so is the answer.
    timeout : float
        Seconds after which the process is ended, with those that it has started.
    environment : mapping, optional
        Variables that it has beside those of this process; those that are None it has not.
    log : Path, optional
        A file for all that it writes to stdout and stderr, while it does; a temporary one where there is none.
    launcher : sequence of str, optional
        What starts it, such as ``("mpiexec", "-n", "2")``; of several processes one must answer, and the function
        returns None in the others.

    Raises
    ------
    FreshProcessError
        The function raised, or the process crashed.
    TooLongError
        It took longer than `timeout`.
    """
    variables = {**os.environ, **(environment or {})}
    given = {name: value for name, value in variables.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="fastmlp-", ignore_cleanup_errors=True) as folder:
        answer, said = Path(folder, "answer"), log or Path(folder, "said")
        several = "several" if launcher else ""
        words = [target, json.dumps(dict(arguments)) if arguments else "", str(answer), several, *sys.path]
        with open(said, "wb") as stream, _told_to_end():
            # a session of its own, so that what it has started can be ended with it
            child = subprocess.Popen(
                [*launcher, sys.executable, "-P", str(_CHILD), *words],
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = _waited(child, timeout)
        text = said.read_text(encoding="utf-8", errors="replace").strip()
        if code is None:
            raise TooLongError(f"took longer than {timeout:g} s", said=text)
        if not answer.exists():
            raise FreshProcessError(_end_of(code, text), said=text)
        found = json.loads(answer.read_text(encoding="utf-8"))
    if "found" in found:
        return found["found"]
    first = next(iter(found["text"].strip().splitlines()), "")
    raise FreshProcessError(f"{found['kind']}: {first}".rstrip(": "), said=text, **found)


def _waited(child: subprocess.Popen[bytes], timeout: float) -> int | None:
    """Return the code that a process ends with; None where it takes too long.  It has ended in any case."""
    _running.add(child)
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            _end(child)
        _running.discard(child)


def end_all() -> None:
    """Kill what other threads have started, whom neither Ctrl-C nor SIGTERM reaches."""
    for child in list(_running):
        with contextlib.suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started: they are told first, for those in sessions of their own."""
    if not hasattr(os, "killpg"):
        child.kill()
    else:
        end = time.monotonic() + GRACE
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGTERM)
            # not waited for, so that its number is no other's when it is killed
            look = os.WEXITED | os.WNOHANG | os.WNOWAIT
            while os.waitid(os.P_PID, child.pid, look) is None and time.monotonic() < end:
                time.sleep(0.01)
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """Let a SIGTERM raise SystemExit meanwhile, so that who is told to end ends what it has started before."""
    alone = threading.current_thread() is threading.main_thread()  # others cannot be told
    if not alone or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end_of(code: int, said: str) -> str:
    """Return in words how a process ended that should have answered."""
    if code < 0:
        return f"ends the process by {signal.Signals(-code).name}, {signal.strsignal(-code)}"
    last = said.splitlines()[-1:]
    return f"ends the process with code {code}" + (f" ({last[0].strip()})" if last else "")
