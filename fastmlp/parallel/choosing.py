"""What ``fit(..., parallel=...)`` takes, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastmlp.arguments import check_count, check_number
from fastmlp.errors import BackendUnavailable
from fastmlp.parallel.group import TIMEOUT, Group

if TYPE_CHECKING:
    from mpi4py import MPI

    Ranks = Group | MPI.Intracomm

CURE = "pip install 'fastmlp[mpi]', with an MPI on the machine, or 'mpi4py mpich', which brings one"


def mpi(comm: MPI.Intracomm | None = None, *, shards: int | None = None, timeout: float = TIMEOUT) -> Group:
    """Return the processes that ``mpiexec -n 4 python program.py`` has started, for ``fit(..., parallel=...)``.

    An error that this program does not catch ends all of them from now on.  Called by all ranks alike.  What lies on
    GPUs goes from one to the other by NCCL, for which each rank needs a GPU of its own.

    Parameters
    ----------
    comm : mpi4py.MPI.Intracomm, optional
        None: ``MPI.COMM_WORLD``.
    shards : int, optional
        Into how many parts a batch is cut, at least as many as there are ranks: the numbers depend on it, and on the
        ranks not.  None: 8, or as many as the run that goes on has.
    timeout : float
        Seconds that a rank waits for the others before it ends all.

    Returns
    -------
    Group
        Which has the ``rank``, from 0, and the ``size``.

    Raises
    ------
    BackendUnavailable
        mpi4py, or its MPI, cannot be used; the message gives the reason and the cure.
    TypeError, ValueError
        An argument makes no sense.
    """
    if comm is not None and not _is_communicator(comm):
        raise TypeError(f"comm must be a communicator of mpi4py such as MPI.COMM_WORLD, or None; got {comm!r}")
    parts = None if shards is None else check_count("shards", shards, also="or None")
    limit = check_number("timeout", timeout, 0.0, above=True)
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as e:  # the second where it finds no MPI
        raise BackendUnavailable(f"parallel: mpi4py cannot be used ({e}); {CURE}") from e
    from fastmlp.parallel.processes import Processes

    return Processes(MPI.COMM_WORLD if comm is None else comm, parts, limit)


def _is_communicator(comm: Any) -> bool:
    """Tell what mpi4py made, without importing it; its communicators between groups, and none at all, are left out."""
    if type(comm).__module__.partition(".")[0] != "mpi4py" or not hasattr(comm, "Is_inter"):
        return False
    return bool(comm) and not comm.Is_inter()


@contextmanager
def grouped(parallel: Any) -> Iterator[Group | None]:
    """Lend the group that `parallel` stands for; None for none.  An error within ends the other ranks too."""
    if parallel is None:
        yield None
        return
    if not isinstance(parallel, Group) and not _is_communicator(parallel):
        raise TypeError(
            "parallel must be None, a communicator of mpi4py such as MPI.COMM_WORLD, or what fastmlp.parallel.mpi "
            f"returns; got {parallel!r}"
        )
    group = parallel if isinstance(parallel, Group) else mpi(parallel)
    with group.guarded():
        yield group
