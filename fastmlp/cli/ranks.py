"""Several processes of one command: ``mpiexec -n 4 fastmlp train ...``.

Rank 0 decides what could differ, such as a seed that is drawn, and alone writes and prints.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, TypeVar

import typer

from fastmlp.errors import BackendUnavailable

if TYPE_CHECKING:
    from fastmlp.parallel.group import Group

T = TypeVar("T")
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")
"""Where mpiexec says how many processes it has started: of MPICH and Intel, of Open MPI."""


def _group_here() -> Group | None:
    """Return the processes that mpiexec has started; None where it was not what started this one."""
    size = next((os.environ[name] for name in SIZES if name in os.environ), None)
    if size is None:
        return None
    from fastmlp.parallel import mpi

    group = mpi()
    if str(group.size) != size:  # each would be rank 0 of a job of its own
        raise BackendUnavailable(
            f"mpiexec has started {size} processes, and mpi4py finds {group.size}: they are of different MPIs; use the "
            "mpiexec of the MPI that mpi4py was built for (python -m mpi4py --mpi-library tells which)"
        )
    return group


@contextmanager
def together(plain: tuple[type[Exception], ...]) -> Iterator[Group | None]:
    """Lend the group of this command, None where it is one process: an error of one ends all, and is said once.

    Parameters
    ----------
    plain : tuple of types
        Errors that are told in a line, without a traceback.
    """
    group = _group_here()
    if group is None:
        yield None
        return
    group.tell_in_a_line(plain)
    if group.rank == 0:
        with group.guarded():
            yield group
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rank 0 they are told
        try:
            with group.guarded():
                yield group
        except Exception:  # all ranks have failed, and rank 0 says why
            raise typer.Exit(1) from None


def first_decides(group: Group | None, decide: Callable[[], T]) -> T:
    """Return what rank 0 decides; where it refuses, it says why, and the others end without a word."""
    if group is None:
        return decide()
    found: T | None = None
    if group.rank:
        found = group.share(found)[0]
        if found is None:
            raise typer.Exit(1)
        return found
    try:
        found = decide()
    finally:
        group.share(found)
    return found
