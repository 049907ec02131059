"""The sessions that one model keeps on its backend, so that a second call finds its memory and threads ready."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.backends.session import Session
    from fastmlp.network.plan import Plan

_KEPT = 4


class SessionPool:
    """The sessions of one model on one backend: taken while in use, kept while their plan recurs.

    Several threads may predict at once: each then has a session of its own.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._idle: list[Session] = []
        self._lock = threading.Lock()

    @contextmanager
    def use(self, plan: Plan) -> Iterator[Session]:
        """Lend a session for `plan`; one that fits is used again."""
        with self._lock:
            found = next((s for s in self._idle if s.plan == plan and s.current()), None)
            if found is not None:
                self._idle.remove(found)
        try:
            with self.backend.working():
                session = found = found or self.backend.open(plan)
                yield session
        finally:
            with self._lock:
                self._idle += [] if found is None else [found]
                dropped = self._idle[:-_KEPT]
                del self._idle[:-_KEPT]
            for old in dropped:
                old.close()

    def close(self) -> None:
        """End all sessions that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()
