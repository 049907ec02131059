"""A training run of the command line, from the settings to a finished run folder."""

from __future__ import annotations

import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastmlp import plots
from fastmlp._version import __version__
from fastmlp.cli.data import RunData, load_run
from fastmlp.cli.folder import RunFolder
from fastmlp.cli.output import D2, extra_figures
from fastmlp.cli.settings import Settings
from fastmlp.engine.callbacks import Checkpoint
from fastmlp.engine.history import History
from fastmlp.errors import FileFormatError, NonFiniteLossError, TrainingInterrupted
from fastmlp.files import safetensors
from fastmlp.formulas.losses import SoftmaxCrossEntropy
from fastmlp.formulas.optimizers import Optimizer, optimizer_to_json
from fastmlp.loading import load
from fastmlp.model import MLP
from fastmlp.parallel.group import Alone, Group

CHECKPOINT_SECONDS = 1.0
"""What a run that is killed loses at most, beside the epoch at hand; one costs some 10 ms, most of it the disk's."""


@dataclass(frozen=True)
class Run:
    """A run that is ready to train, or to go on.

    Attributes
    ----------
    settings : Settings
        Complete ones.
    resumed : bool
        Whether `model` comes from the folder's checkpoint.
    group : Group or None
        The processes that train together.
    began : float
        When its data were about to be read, by `time.perf_counter`.
    """

    folder: RunFolder
    settings: Settings
    data: RunData
    model: MLP
    optimizer: Optimizer
    resumed: bool
    group: Group | None
    began: float


def prepare(folder: RunFolder, settings: Settings, group: Group | None = None) -> Run:
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
    header = safetensors.read(folder.checkpoint)[0] if folder.checkpoint.exists() else None
    earlier = header is not None and _is_earlier(header)
    data = load_run(settings, by_class=not earlier)
    standardize = None if settings.data == "mnist" else data.scaling is not None
    settings = settings.complete(data.loss, standardize, settings.backend)
    rows = data.training_rows
    optimizer = settings.optimizer_record(settings.epochs * -(-rows // settings.batch_size))
    model = MLP((data.inputs, *settings.hidden, data.outputs), **settings.network())
    settings = settings.complete(data.loss, standardize, model.backend.name)
    model.class_names = data.class_names
    if data.inputs == data.train[0].shape[1]:  # else it knows the columns when it makes its inputs of them, at the end
        model.feature_names = data.feature_names
    print(f"{'MNIST' if settings.data == 'mnist' else settings.data}: {data.description}")
    print(repr(model))
    if header is not None:
        model = _gone_on_with(folder, settings, optimizer, model, header)
        if earlier and data.validation is not None and settings.data != "mnist":
            print(
                "an earlier version began this run: it goes on with the rows held out that it drew, which are not "
                "as many of each class"
            )
        print(f"going on with the run in {folder.path} after {model.steps:,} steps", flush=True)
    elif group is None or group.rank == 0:
        folder.begin(settings, _made_with(model))
    if settings.shards is not None:
        group = group or Alone(settings.shards)
        group.shards = settings.shards
    return Run(folder, settings, data, model, optimizer, header is not None, group, began)


def _is_earlier(header: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of a run that began before the rows held out were drawn from each class."""
    progress = header.get("progress")
    return isinstance(progress, Mapping) and not progress.get("drawn")


def _gone_on_with(
    folder: RunFolder, settings: Settings, optimizer: Optimizer, begun: MLP, header: Mapping[str, Any]
) -> MLP:
    """Return the model of the checkpoint, which must be of the run that the settings describe and `begun` began."""
    model = load(folder.checkpoint, settings.backend)
    described = (
        ("network", begun.spec, model.spec),
        ("dtype", begun.dtype, model.dtype),
        ("seed", begun.seed, model.seed),
    )
    trained: dict[str, Any] = {"epochs": settings.epochs, "optimizer": optimizer_to_json(optimizer)}
    kept: dict[str, Any] = {}
    if progress := header.get("progress"):
        kept = {name: progress[name] for name in ("epochs", "batch_size")} | {"optimizer": header["optimizer"]}
        trained["batch_size"] = min(settings.batch_size, progress["rows"])  # no batch has more rows than there are
    differ = [name for name, here, there in described if here != there]
    if differ := differ + [name for name, value in trained.items() if kept.get(name) != value]:
        raise FileFormatError(
            f"{folder.config} and {folder.checkpoint} are not of one run, they differ in {', '.join(differ)}; put back "
            "the settings that the run began with, or start a new run in another folder"
        )
    return model


def fit(run: Run) -> History:
    """Train, with checkpoints on the way, at the end and at Ctrl-C; an error before the first one frees the folder."""
    try:
        return _trained(run)
    except Exception as e:
        run.folder.withdraw(hopeless=isinstance(e, NonFiniteLossError))
        raise


def _trained(run: Run) -> History:
    if run.resumed:
        header, _ = safetensors.read(run.folder.checkpoint)
        if header["progress"]["epoch"] >= run.settings.epochs:  # killed between the last epoch and the end
            return History(header["history"])
    x, y = run.data.scaled(run.data.train)
    held_out = run.data.validation
    in_place = run.data.split > 0.0
    options: dict[str, Any] = {
        "validation_data": None if held_out is None or in_place else run.data.scaled(held_out),
        "callbacks": [Checkpoint(run.folder.checkpoint, every_seconds=CHECKPOINT_SECONDS)],
        "parallel": run.group,
    }
    with warnings.catch_warnings(), run.data.naming_lines(run.settings.data):
        warnings.simplefilter("ignore", TrainingInterrupted)  # `finish` says it, with the command that goes on
        if run.resumed:
            return run.model.resume(x, y, **options)
        epochs, batch_size = run.settings.epochs, run.settings.batch_size
        options |= {"optimizer": run.optimizer, "validation_split": run.data.split}
        return run.model.fit(x, y, epochs=epochs, batch_size=batch_size, **options)


def finish(run: Run, history: History) -> bool:
    """Save the model, the history and the pictures and print the final figures; whether the run was not interrupted.

    The checkpoint of a run that came to its end is removed.  Of several processes rank 0 does so.
    """
    folder, model = run.folder, run.model
    uninterrupted = history.stop_reason != "interrupted"
    if run.group is not None:
        run.group.share(None)  # all have read the checkpoint
        if run.group.rank:
            return uninterrupted
    if run.data.scaling is not None:
        run.data.scaling.fold(model)
        model.feature_names = run.data.feature_names
    model.save(folder.model)
    seconds = time.perf_counter() - run.began
    name, (x, y) = run.data.measured
    with run.data.naming_lines(run.settings.data, measuring=True):
        figures = model.evaluate(x, y, metrics=extra_figures(model))
    result = {f"{name}_{figure}": value for figure, value in figures.items()}
    folder.write_history(history.to_json(), {**result, "seconds": seconds})
    if history.epochs:
        _draw(run, history)
    if uninterrupted:
        folder.checkpoint.unlink(missing_ok=True)
    if "accuracy" in figures:
        quality = f"accuracy {100 * figures['accuracy']:.2f} %"
    else:
        quality = f"D2 {figures[D2]:.4f}" if D2 in figures else f"R2 {figures['r2_score']:.4f}"
    print(f"{name} {quality}, loss {figures['loss']:.5g}, after {seconds:.1f} s")
    print(f"{folder.path}: {', '.join(sorted(path.name for path in folder.path.iterdir()))}", flush=True)
    if not uninterrupted:
        print(f"interrupted; the model so far is saved. To go on: {_again(folder, run.settings)}", file=sys.stderr)
    return uninterrupted


def interrupted(folder: RunFolder, settings: Settings) -> str:
    """Return what to say where Ctrl-C ended a run outside of the training: how it goes on, if there is one yet."""
    if folder.checkpoint.exists() or (folder.config.exists() and not folder.model.exists()):
        return f"interrupted. To go on: {_again(folder, settings)}"
    return f"interrupted; the run in {folder.path} is finished" if folder.model.exists() else "interrupted"


def _again(folder: RunFolder, settings: Settings) -> str:
    return shlex.join(["fastmlp", "train", settings.data, "--resume", "--out", str(folder.path)])


def _draw(run: Run, history: History) -> None:
    """Draw the pictures of a run, each by itself: what cannot be drawn is said in a line, and is worth no run."""
    missing: set[str] = set()
    for name, draw in _pictures(run, history).items():
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", plots.MissingGlyphsWarning)
                plots.save(draw(), run.folder.path / name)
            for warning in caught:
                if isinstance(warning.message, plots.MissingGlyphsWarning):
                    missing |= warning.message.characters
                else:
                    warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        except plots.MissingMatplotlibError as e:
            print(f"no pictures: {e}", file=sys.stderr)
            return
        except Exception as e:
            reason = " ".join(str(e).split())
            print(f"no {name}: {type(e).__name__}{f': {reason[:200]}' if reason else ''}", file=sys.stderr)
    if missing:  # of all pictures at once
        warnings.warn(plots.MissingGlyphsWarning(missing), stacklevel=2)


def _pictures(run: Run, history: History) -> dict[str, Callable[[], Any]]:
    """Return what draws each picture of a run, by the name of its file."""
    model, data = run.model, run.data
    _, (x, y) = data.measured
    found: dict[str, Callable[[], Any]] = {"curves.png": lambda: plots.curves(history)}
    if data.class_names is not None:
        found["confusion.png"] = lambda: plots.confusion(y, model.predict(x), data.class_names)
        if data.image_shape is not None and isinstance(model.spec.loss, SoftmaxCrossEntropy):
            shape = data.image_shape
            found["mistakes.png"] = lambda: plots.mistakes(x, y, model.predict_proba(x), data.class_names, shape)
    return found


def _made_with(model: MLP) -> dict[str, str]:
    found = {"fastmlp": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name, value in model.backend.choices().items():
        found[name] = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return found
