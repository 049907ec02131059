"""What files hold of a learner: a model as it predicts, or a run with all that it needs to go on to the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_dtype, check_seed
from fastmlp.backends.choosing import resolve_backend
from fastmlp.engine.checks import check_class_names, check_feature_names
from fastmlp.engine.inputs import InputRules, InputScale
from fastmlp.engine.learner import Learner
from fastmlp.engine.progress import PausedRun
from fastmlp.errors import FileFormatError
from fastmlp.files import safetensors
from fastmlp.formulas.optimizers import optimizer_from_json, optimizer_to_json
from fastmlp.network.layout import layout_of
from fastmlp.network.spec import NetworkSpec
from fastmlp.network.state import TrainState

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.engine.progress import Progress
    from fastmlp.formulas.optimizers import Optimizer


class Stateful(Protocol):
    """What a checkpoint keeps besides the run: anything with a state, such as a callback."""

    def state(self) -> dict[str, Any]:
        """Return numbers, strings and NumPy arrays by name; nothing where there is nothing to keep."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""


class RunContents(NamedTuple):
    """What a checkpoint holds of a run, beside the network.

    Attributes
    ----------
    optimizer : Optimizer
    progress : Progress
    history : mapping from name to list of float
    figures : list of str
        Names of the figures of an epoch.
    callbacks : sequence of Stateful
    data : str
        Fingerprint of the data.
    choices : dict
        What the bits depend on, see `Backend.choices`.
    """

    optimizer: Optimizer
    progress: Progress
    history: Mapping[str, list[float]]
    figures: list[str]
    callbacks: Sequence[Stateful]
    data: str
    choices: Mapping[str, Any]


def save_model(learner: Learner, path: str | PathLike[str]) -> None:
    """Write the network and the weights that predict."""
    arrays = learner.state.layout.named(learner.to_numpy(learner.state.evaluated))
    safetensors.write(path, {**_header(learner), "kind": "model"}, arrays)


def save_run(learner: Learner, path: str | PathLike[str], run: RunContents) -> None:
    """Write everything that a run needs to go on to the same bits."""
    tensors = learner.state.named(learner.to_numpy, moments=True)
    kept: list[dict[str, Any]] = []
    for callback in run.callbacks:
        values = callback.state()
        if not values:
            continue
        arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
        tensors.update({f"callbacks.{len(kept)}.{k}": v for k, v in arrays.items()})
        plain = {k: v for k, v in values.items() if k not in arrays}
        kept.append({"type": type(callback).__name__, "state": plain, "arrays": sorted(arrays)})
    header = {
        **_header(learner),
        "kind": "checkpoint",
        "optimizer": optimizer_to_json(run.optimizer),
        "optimizer_step": learner.state.optimizer_step,
        "progress": run.progress.to_json(),
        "history": run.history,
        "figures": run.figures,
        "callbacks": kept,
        "data": run.data,
        "platform": run.choices,  # the name that files of format 1 have for it
    }
    safetensors.write(path, header, tensors)


def _header(learner: Learner) -> dict[str, Any]:
    """Return what files of both kinds say of a network; of the scale of its inputs once that is settled."""
    scale = learner.rules.scale
    return {
        "spec": learner.spec.to_json(),
        "dtype": learner.dtype.name,
        "class_names": learner.class_names,
        "feature_names": learner.rules.names,
        **({} if scale is None else {"inputs": scale._asdict()}),
        "key": learner.state.key,
        "step": learner.state.step,
    }


def load_learner(path: str | PathLike[str], backend: str | Backend) -> Learner:
    """Return the learner of a file; the run of a checkpoint is its `paused` one.

    Raises
    ------
    FileFormatError
        The file is foreign, truncated, altered, inconsistent or of a later version; the message says which.
    FileNotFoundError
        There is none.
    """
    header, tensors = safetensors.read(path)
    where = resolve_backend(backend)
    try:
        spec = NetworkSpec.from_json(header["spec"])
        dtype = check_dtype(header["dtype"])
        key, step = check_seed(header["key"]), int(header["step"])
        optimizer = optimizer_from_json(header["optimizer"]) if header["kind"] == "checkpoint" else None
        scale = InputScale.from_json(header.get("inputs"))  # files of before say nothing of it
    except (KeyError, ValueError, TypeError) as e:
        raise FileFormatError(f"{fspath(path)}: its description makes no sense: {e}") from None
    layout = layout_of(spec.units, dtype.itemsize)
    prefixes = [""]
    if optimizer is not None:
        prefixes += [f"moment{i}." for i in range(optimizer.moments)]
        prefixes += ["average."] if optimizer.ema is not None else []
    shapes = {name: view.shape for name, view in layout.named(np.empty(layout.size, np.bool_)).items()}
    safetensors.check_arrays(path, tensors, {p + name: shape for p in prefixes for name, shape in shapes.items()})
    with where.working():
        buffers = {prefix: where.copy(layout.flat(tensors, prefix, dtype)) for prefix in prefixes}
    state = TrainState(layout, buffers[""], key, step=step)
    learner = Learner(spec, dtype, where, state)
    learner.class_names = check_class_names(spec, header["class_names"])
    learner.rules = InputRules(dtype, check_feature_names(spec, header["feature_names"]), scale)
    if optimizer is not None:
        state.optimizer, state.optimizer_step = optimizer, int(header["optimizer_step"])
        state.moments = [buffers[f"moment{i}."] for i in range(optimizer.moments)]
        state.average = buffers.get("average.")
        kept = {name: array for name, array in tensors.items() if name.startswith("callbacks.")}
        learner.paused = PausedRun(fspath(path), header, kept)
    return learner


def restore_callbacks(paused: PausedRun, callbacks: Sequence[Stateful]) -> None:
    """Give callbacks back their states; ValueError where they are not those of the checkpoint."""
    stateful = [c for c in callbacks if c.state()]
    saved = paused.header["callbacks"]
    if [type(c).__name__ for c in stateful] != [c["type"] for c in saved]:
        raise ValueError(
            f"callbacks must be those that the checkpoint {paused.path} was made with: "
            f"{[c['type'] for c in saved]}; got {[type(c).__name__ for c in stateful]}"
        )
    for i, (callback, entry) in enumerate(zip(stateful, saved, strict=True)):
        arrays: dict[str, NDArray[Any]] = {n: paused.tensors[f"callbacks.{i}.{n}"] for n in entry["arrays"]}
        callback.restore({**entry["state"], **arrays})
