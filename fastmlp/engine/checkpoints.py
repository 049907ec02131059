"""What files hold of a learner: a model as it predicts, or a run with all that it needs to go on to the same bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_count, check_dtype, check_integer, check_seed
from fastmlp.backends.choosing import chosen_backend
from fastmlp.engine.checks import check_class_names, check_feature_names
from fastmlp.engine.inputs import InputRules, InputScale
from fastmlp.engine.learner import Learner
from fastmlp.engine.progress import PausedRun, Progress
from fastmlp.files import safetensors
from fastmlp.files.reading import refused_by_name
from fastmlp.formulas.optimizers import optimizer_from_json, optimizer_to_json
from fastmlp.formulas.records import choose
from fastmlp.network.layout import Layout, layout_of
from fastmlp.network.spec import NetworkSpec
from fastmlp.network.state import TrainState
from fastmlp.preprocessing.record import Preprocessing

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.formulas.optimizers import Optimizer


class Stateful(Protocol):
    """What a checkpoint keeps besides the run: anything with a state, such as a callback."""

    same_on_resume: tuple[str, ...]

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
        Fingerprint of the data to train on.
    validation : str or None
        That of the data to validate with, where there are some.
    choices : dict
        What the bits depend on, see `Backend.choices`.
    """

    optimizer: Optimizer
    progress: Progress
    history: Mapping[str, list[float]]
    figures: list[str]
    callbacks: Sequence[Stateful]
    data: str
    validation: str | None
    choices: Mapping[str, Any]


def save_model(learner: Learner, path: str | PathLike[str]) -> None:
    """Write the network and the weights that predict; ValueError where one of these is not finite."""
    if spoilt := learner.state.spoilt(learner.to_numpy):
        raise ValueError(
            f"save: {spoilt} hold NaN or infinity, so the model predicts nothing; set or train weights that are finite"
        )
    arrays = learner.state.layout.named(learner.to_numpy(learner.state.evaluated))
    header, more = _header(learner)
    safetensors.write(path, {**header, "kind": "model"}, {**arrays, **more})


def save_run(learner: Learner, path: str | PathLike[str], run: RunContents) -> None:
    """Write everything that a run needs to go on to the same bits."""
    described, more = _header(learner)
    tensors = {**learner.state.named(learner.to_numpy, moments=True), **more}
    kept: list[dict[str, Any]] = []
    for callback in run.callbacks:
        values = callback.state()
        if not values:
            continue
        arrays = {k: v for k, v in values.items() if isinstance(v, np.ndarray)}
        tensors.update({f"callbacks.{len(kept)}.{k}": v for k, v in arrays.items()})
        plain = {k: v for k, v in values.items() if k not in arrays}
        same = {name: getattr(callback, name) for name in callback.same_on_resume}
        kept.append({"type": type(callback).__name__, "same": same, "state": plain, "arrays": sorted(arrays)})
    header = {
        **described,
        "kind": "checkpoint",
        "optimizer": optimizer_to_json(run.optimizer),
        "optimizer_step": learner.state.optimizer_step,
        "progress": run.progress.to_json(),
        "history": run.history,
        "figures": run.figures,
        "callbacks": kept,
        "data": run.data,
        "validation": run.validation,
        "platform": run.choices,  # the name that files of format 1 have for it
    }
    safetensors.write(path, header, tensors)


def _header(learner: Learner) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what files of both kinds say of a network; of the scale of its inputs once that is settled.

    And the arrays of its preprocessing.  Earlier versions would take raw rows for its inputs, and refuse by the format.
    """
    scale, preprocessing = learner.rules.scale, learner.rules.preprocessing
    more, arrays = ({}, {}) if preprocessing is None else preprocessing.to_file()
    return {
        "spec": learner.spec.to_json(),
        "dtype": learner.dtype.name,
        "class_names": learner.class_names,
        "feature_names": learner.rules.names,
        **({} if scale is None else {"inputs": scale._asdict()}),
        **({"preprocessing": more, "format": safetensors.NEWEST} if more else {}),
        "key": learner.state.key,
        "step": learner.state.step,
    }, arrays


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
    where, choice = chosen_backend(backend)
    with refused_by_name(path, ": its description makes no sense: {reason}"):
        spec = NetworkSpec.from_json(header["spec"])
        dtype = check_dtype(header["dtype"])
        key, step = check_seed(check_integer("key", header["key"])), _check_step("step", header["step"])
        class_names = check_class_names(spec, header["class_names"])
        scale = InputScale.from_json(header.get("inputs"))  # files of before say nothing of it
        made = Preprocessing.from_file(header["preprocessing"], tensors) if "preprocessing" in header else None
        rules = InputRules(dtype, None, scale).preprocessed(made, spec.units[0])
        rules = rules._replace(names=check_feature_names(rules.columns(spec.units[0]), header["feature_names"]))
        optimizer, optimizer_step = None, 0
        if choose("kind", header["kind"], {"model": False, "checkpoint": True}):
            optimizer = optimizer_from_json(header["optimizer"])
            optimizer_step = _check_step("optimizer_step", header["optimizer_step"])
            _check_run(header, tensors)
    layout = layout_of(spec.units, dtype.itemsize)
    moments = [f"moment{i}." for i in range(optimizer.moments)] if optimizer else []
    predicting = ["", "average."] if optimizer and optimizer.ema is not None else [""]
    _check_arrays(path, tensors, layout, dtype, predicting, moments)
    with where.working():
        buffers = {prefix: where.copy(layout.flat(tensors, prefix, dtype)) for prefix in predicting + moments}
    state = TrainState(layout, buffers[""], key, step=step)
    learner = Learner(spec, dtype, where, state)
    learner.choice, learner.class_names, learner.rules = choice, class_names, rules
    if optimizer is not None:
        state.optimizer, state.optimizer_step = optimizer, optimizer_step
        state.moments = [buffers[prefix] for prefix in moments]
        state.average = buffers.get("average.")
        kept = {name: array for name, array in tensors.items() if name.startswith("callbacks.")}
        learner.paused = PausedRun(fspath(path), header, kept)
    return learner


def _check_step(name: str, value: Any) -> int:
    """Return a number of steps, which kernels count in 64 bits."""
    step = check_count(name, value, 0)
    if step >= 2**63:
        raise ValueError(f"{name} must be below 2**63, got {value!r}")
    return step


def _check_run(header: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Raise an error where what a checkpoint says of its run makes no sense; that of its optimizer left out."""
    progress = Progress.from_json(header["progress"])
    for name, values in header["history"].items():
        if len(values) < progress.epoch or not all(isinstance(v, (int, float)) for v in values):
            raise ValueError(f"history: {name!r} must be a number for each of {progress.epoch} epochs, got {values!r}")
    if not all(isinstance(name, str) for name in [*header["figures"], header["data"]]):
        raise TypeError(f"figures and data must be text, got {header['figures']!r} and {header['data']!r}")
    if not isinstance(header.get("validation"), (str, NoneType)):  # files of before say nothing of it
        raise TypeError(f"validation must be text or null, got {header['validation']!r}")
    if not isinstance(header["platform"], Mapping):
        raise TypeError(f"platform must be choices by their names, got {header['platform']!r}")
    for i, entry in enumerate(header["callbacks"]):
        values = entry["state"], entry.get("same", {})
        if not isinstance(entry["type"], str) or not all(isinstance(v, Mapping) for v in values):
            raise TypeError(f"callbacks: each has the name of its type and its state, got {entry!r}")
        if missing := [name for name in entry["arrays"] if f"callbacks.{i}.{name}" not in tensors]:
            raise ValueError(f"callbacks: the arrays {missing} of {entry['type']} are not in the file")


def _check_arrays(
    path: str | PathLike[str],
    tensors: Mapping[str, NDArray[Any]],
    layout: Layout,
    dtype: np.dtype[Any],
    predicting: list[str],
    moments: list[str],
) -> None:
    """Raise FileFormatError unless the arrays are those of the network, before anything of its size is allocated."""
    # the weights to which early stopping goes back are a network's too, and nothing looks at them later
    weights = {name: shape for prefix in predicting for name, shape in layout.shapes(prefix).items()}
    for name in tensors:
        kept = name.split(".", 2)
        if kept[0] == "callbacks" and kept[-1] in weights:
            weights[name] = weights[kept[-1]]
    rest = {name: shape for prefix in moments for name, shape in layout.shapes(prefix).items()}
    safetensors.check_arrays(path, tensors, {**weights, **rest}, dtype)
    safetensors.check_numbers(path, {name: tensors[name] for name in weights})
    # what moments sum may be too large for their type, and trains on
    safetensors.check_numbers(path, {name: tensors[name] for name in rest}, infinite=True)


def restore_callbacks(paused: PausedRun, callbacks: Sequence[Stateful], figures: list[str]) -> None:
    """Give callbacks back their states; ValueError where they or the figures are not those of the checkpoint."""
    stateful = [c for c in callbacks if c.state()]
    saved = paused.header["callbacks"]
    if [type(c).__name__ for c in stateful] != [c["type"] for c in saved]:
        raise ValueError(
            f"callbacks must be those that the checkpoint {paused.path} was made with: "
            f"{[c['type'] for c in saved]}; got {[type(c).__name__ for c in stateful]}"
        )
    if paused.header["figures"] != figures:
        raise ValueError(
            f"validation data and metrics must be those of the checkpoint {paused.path}, whose figures are "
            f"{', '.join(paused.header['figures'])}; they now are {', '.join(figures)}"
        )
    for callback, entry in zip(stateful, saved, strict=True):
        then = entry.get("same", {})  # files of earlier versions say nothing of it
        here = {name: getattr(callback, name) for name in callback.same_on_resume if name in then}
        if differ := [f"{name}={then[name]!r}, not {value!r}" for name, value in here.items() if value != then[name]]:
            raise ValueError(
                f"callbacks: the {entry['type']} of the checkpoint {paused.path} has {', '.join(differ)}; give resume "
                "the same"
            )
    for i, (callback, entry) in enumerate(zip(stateful, saved, strict=True)):
        arrays: dict[str, NDArray[Any]] = {n: paused.tensors[f"callbacks.{i}.{n}"] for n in entry["arrays"]}
        with refused_by_name(paused.path, f": the state of {entry['type']} makes no sense: {{reason}}"):
            callback.restore({**entry["state"], **arrays})
