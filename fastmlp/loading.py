"""Reading a model back from its file."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING

import numpy as np

from fastmlp import files
from fastmlp.arguments import check_dtype, check_seed, resolve_backend
from fastmlp.errors import FileFormatError
from fastmlp.model import MLP
from fastmlp.optimizers import optimizer_from_json
from fastmlp.spec import NetworkSpec
from fastmlp.state import Layout, TrainState

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend


def load(path: str | PathLike[str], backend: str | Backend = "auto") -> MLP:
    """Return the model of a file that `MLP.save` or a `Checkpoint` wrote.

    A model from a checkpoint can go on with its run, see `MLP.resume`.

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
    header, tensors = files.read(path)
    where = resolve_backend(backend)
    try:
        spec = NetworkSpec.from_json(header["spec"])
        dtype = check_dtype(header["dtype"])
        key, step = check_seed(header["key"]), int(header["step"])
        optimizer = optimizer_from_json(header["optimizer"]) if header["kind"] == "checkpoint" else None
    except (KeyError, ValueError, TypeError) as e:
        raise FileFormatError(f"{fspath(path)}: its description makes no sense: {e}") from None
    layout = Layout(spec.units, dtype.itemsize)
    prefixes = [""]
    if optimizer is not None:
        prefixes += [f"moment{i}." for i in range(optimizer.moments)]
        prefixes += ["average."] if optimizer.ema is not None else []
    shapes = {name: view.shape for name, view in layout.named(np.empty(layout.size, np.bool_)).items()}
    files.check_arrays(path, tensors, {p + name: shape for p in prefixes for name, shape in shapes.items()})
    with where.working():
        buffers = {prefix: where.copy(layout.flat(tensors, prefix, dtype)) for prefix in prefixes}
    state = TrainState(layout, buffers[""], key, step=step)
    model = object.__new__(MLP)
    model._setup(spec, dtype, where, state)
    model.class_names, model.feature_names = header["class_names"], header["feature_names"]
    if optimizer is not None:
        state.optimizer, state.optimizer_step = optimizer, int(header["optimizer_step"])
        state.moments = [buffers[f"moment{i}."] for i in range(optimizer.moments)]
        state.average = buffers.get("average.")
        kept = {name: array for name, array in tensors.items() if name.startswith("callbacks.")}
        model._checkpoint = (fspath(path), header, kept)
    return model
