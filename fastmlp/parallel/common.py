"""Memory that the processes of one machine have in common, so that what one writes the others read where it lies."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmlp.parallel.group import Group

FOLDER = "/dev/shm"
"""Where Linux keeps files that are memory and nothing else; containers may have little of it."""


def common_memory(group: Group, nbytes: int) -> mmap.mmap | None:
    """Return memory that all processes of a group map, each to an address of its own; None where they cannot.

    It has a name only until all have opened it: then it goes with the last process that holds it, however that ends.
    Called by all ranks, with the same number of bytes, at least one.

    Returns
    -------
    mmap or None
        None, on all ranks alike, where they are on several machines or in several containers, the system is none that
        has such files, or there is no room.
    """
    path = group.share(os.path.join(FOLDER, f"fastmlp-{secrets.token_hex(16)}"))[0]
    memory = _made(path, nbytes) if group.rank == 0 else None
    try:
        if not group.share(memory is not None)[0]:
            return None
        if group.rank:
            memory = _opened(path, nbytes)
        everywhere = all(group.share(memory is not None))
    finally:
        if group.rank == 0:
            with contextlib.suppress(OSError):
                os.unlink(path)
    return memory if everywhere else None


def _made(path: str, nbytes: int) -> mmap.mmap | None:
    if not hasattr(os, "posix_fallocate"):
        return None
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return None
    try:
        # all of it now: to write into a page for which there is no room would end the process
        os.posix_fallocate(file, 0, nbytes)
        return mmap.mmap(file, nbytes)
    except OSError:
        return None
    finally:
        os.close(file)


def _opened(path: str, nbytes: int) -> mmap.mmap | None:
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return mmap.mmap(file, nbytes)
    except (OSError, ValueError):
        return None
    finally:
        os.close(file)
