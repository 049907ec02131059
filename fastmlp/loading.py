"""Reading a model back from its file."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from fastmlp.engine.checkpoints import load_learner
from fastmlp.model import MLP

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend


def load(path: str | PathLike[str], backend: str | Backend = "auto") -> MLP:
    """Return the model of a file that `MLP.save` or a `Checkpoint` wrote.

    A model from a checkpoint can go on with its run, see `MLP.resume`.  An activation or a loss of your own has to be
    registered before, as it was where the file was written, see `register_activation` and `register_loss`.

    Parameters
    ----------
    path : path
    backend : str or Backend

    Raises
    ------
    FileFormatError
        The file is foreign, truncated, altered, inconsistent or of a later version; the message says which.
    FileNotFoundError
        There is none.
    """
    return MLP.from_learner(load_learner(path, backend))
