"""A training run of the command line, from the settings to a finished run folder."""

from __future__ import annotations

import platform
import shlex
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

from fastmlp import plots
from fastmlp._version import __version__
from fastmlp.cli.data import RunData, load_run
from fastmlp.cli.folder import RunFolder
from fastmlp.cli.output import extra_figures
from fastmlp.cli.settings import Settings
from fastmlp.engine.callbacks import Checkpoint
from fastmlp.engine.history import History
from fastmlp.errors import TrainingInterrupted
from fastmlp.files import safetensors
from fastmlp.formulas.losses import SoftmaxCrossEntropy
from fastmlp.formulas.optimizers import Optimizer
from fastmlp.loading import load
from fastmlp.model import MLP


@dataclass(frozen=True)
class Run:
    """A run that is ready to train, or to go on.

    Attributes
    ----------
    settings : Settings
        Complete ones.
    resumed : bool
        Whether `model` comes from the folder's checkpoint.
    began : float
        When its data were about to be read, by `time.perf_counter`.
    """

    folder: RunFolder
    settings: Settings
    data: RunData
    model: MLP
    optimizer: Optimizer
    resumed: bool
    began: float


def prepare(folder: RunFolder, settings: Settings) -> Run:
    """Read the data, make the network and, as the last of all, the folder with its ``config.toml``.

    A folder with a checkpoint is gone on with, and its model is that of the checkpoint.

    Raises
    ------
    DataError, FileFormatError, BackendUnavailable, OSError
        Data, files or machine cannot be used.
    ValueError
        The settings make no sense.
    """
    began = time.perf_counter()
    data = load_run(settings)
    standardize = None if settings.data == "mnist" else data.scaling is not None
    settings = settings.complete(data.loss, standardize, settings.backend)
    rows, features = data.training_rows, data.train[0].shape[1]
    optimizer = settings.optimizer_record(settings.epochs * -(-rows // settings.batch_size))
    model = MLP((features, *settings.hidden, data.outputs), **settings.network())
    settings = settings.complete(data.loss, standardize, model.backend.name)
    model.class_names, model.feature_names = data.class_names, data.feature_names
    print(f"{'MNIST' if settings.data == 'mnist' else settings.data}: {data.description}")
    print(repr(model))
    resumed = folder.checkpoint.exists()
    if resumed:
        model = load(folder.checkpoint, settings.backend)
        print(f"going on with the run in {folder.path} after {model.steps:,} steps", flush=True)
    else:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_config(settings, _made_with(model))
    return Run(folder, settings, data, model, optimizer, resumed, began)


def fit(run: Run) -> History:
    """Train, with a checkpoint after each epoch and at Ctrl-C."""
    if run.resumed:
        header, _ = safetensors.read(run.folder.checkpoint)
        if header["progress"]["epoch"] >= run.settings.epochs:  # killed between the last epoch and the end
            return History(header["history"])
    x, y = run.data.scaled(run.data.train)
    held_out = run.data.validation
    in_place = run.data.split > 0.0
    options: dict[str, Any] = {
        "validation_data": None if held_out is None or in_place else run.data.scaled(held_out),
        "callbacks": [Checkpoint(run.folder.checkpoint)],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingInterrupted)  # `finish` says it, with the command that goes on
        if run.resumed:
            return run.model.resume(x, y, **options)
        epochs, batch_size = run.settings.epochs, run.settings.batch_size
        options |= {"optimizer": run.optimizer, "validation_split": run.data.split}
        return run.model.fit(x, y, epochs=epochs, batch_size=batch_size, **options)


def finish(run: Run, history: History) -> bool:
    """Save the model, the history and the pictures and print the final figures; whether the run was not interrupted.

    The checkpoint of a run that came to its end is removed.
    """
    folder, model = run.folder, run.model
    if run.data.scaling is not None:
        run.data.scaling.fold(model)
    model.save(folder.model)
    seconds = time.perf_counter() - run.began
    name, (x, y) = run.data.measured
    figures = model.evaluate(x, y, metrics=extra_figures(model))
    result = {f"{name}_{figure}": value for figure, value in figures.items()}
    folder.write_history(history.to_json(), {**result, "seconds": seconds})
    if history.epochs:
        _draw(run, history)
    uninterrupted = history.stop_reason != "interrupted"
    if uninterrupted:
        folder.checkpoint.unlink(missing_ok=True)
    accurate = "accuracy" in figures
    quality = f"accuracy {100 * figures['accuracy']:.2f} %" if accurate else f"R2 {figures['r2_score']:.4f}"
    print(f"{name} {quality}, loss {figures['loss']:.5g}, after {seconds:.1f} s")
    print(f"{folder.path}: {', '.join(sorted(path.name for path in folder.path.iterdir()))}", flush=True)
    if not uninterrupted:
        again = shlex.join(["fastmlp", "train", run.settings.data, "--resume", "--out", str(folder.path)])
        print(f"interrupted; the model so far is saved. To go on: {again}", file=sys.stderr)
    return uninterrupted


def _draw(run: Run, history: History) -> None:
    model, data, folder = run.model, run.data, run.folder.path
    _, (x, y) = data.measured
    try:
        plots.save(plots.curves(history), folder / "curves.png")
        if data.class_names is None:
            return
        plots.save(plots.confusion(y, model.predict(x), data.class_names), folder / "confusion.png")
        if data.image_shape is not None and isinstance(model.spec.loss, SoftmaxCrossEntropy):
            wrong = plots.mistakes(x, y, model.predict_proba(x), data.class_names, data.image_shape)
            plots.save(wrong, folder / "mistakes.png")
    except plots.MissingMatplotlibError as e:
        print(f"no pictures: {e}", file=sys.stderr)


def _made_with(model: MLP) -> dict[str, str]:
    found = {"fastmlp": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name, value in model.backend.choices().items():
        found[name] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return found
