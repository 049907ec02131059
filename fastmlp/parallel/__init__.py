"""Training by several processes: who they are (`group`), how they add up (`tree`), and what carries their numbers.

Nothing here knows a network or a backend; `fastmlp.engine.together` trains by it.
"""

from __future__ import annotations

from fastmlp.parallel.choosing import mpi as mpi
from fastmlp.parallel.threads import in_threads as in_threads

__all__ = ["in_threads", "mpi"]
