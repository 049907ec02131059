"""The command line: ``fastmlp train``, ``evaluate``, ``predict``, ``summary``, ``export`` and others.

Exit codes: 0; 1 for data, files or a machine that cannot be used (one line on stderr); 2 for options that make no
sense; 130 after Ctrl-C.  Any other error is a bug and keeps its traceback.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from fastmlp._version import __version__
from fastmlp.cli import bench, doctor, machine, parity, profile, ranks
from fastmlp.cli import settings as run_settings
from fastmlp.cli.ctrl_c import INTERRUPTED, leaving_at_ctrl_c
from fastmlp.cli.folder import RunFolder, model_file
from fastmlp.cli.settings import Settings
from fastmlp.cli.tables import print_table
from fastmlp.errors import BackendUnavailable, DataError, FileFormatError, NonFiniteLossError, ParallelError
from fastmlp.files.atomic import refuse_missing_folder
from fastmlp.parallel.tree import SHARDS

if TYPE_CHECKING:
    from fastmlp.model import MLP
    from fastmlp.parallel.group import Group

_Function = TypeVar("_Function", bound=Callable[..., Any])
_USERS = (DataError, FileFormatError, BackendUnavailable, NonFiniteLossError, ParallelError, OSError)


class _Group(TyperGroup):
    """Turns what a user can mend into one line and an exit code; other errors are left alone."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except BrokenPipeError:
                raise  # `| head` is no mistake
            except _USERS as e:
                _say_error("error", e)
                raise typer.Exit(1) from None
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                raise typer.Exit(INTERRUPTED) from None


class _Command(TyperCommand):
    """Refuses empty text, which is what a variable of the shell leaves that is not set."""

    def invoke(self, ctx: Any) -> Any:
        parameters: list[Any] = self.params
        for parameter in parameters:
            given = ctx.params.get(parameter.name)
            if "" in (given if isinstance(given, tuple) else (given,)) and parameter.name != "hidden":
                raise typer.BadParameter("expected a text, got an empty one; is a variable not set?", ctx, parameter)
        return super().invoke(ctx)


class _Typer(typer.Typer):
    def command(self, *names: Any, **options: Any) -> Callable[[_Function], _Function]:
        return super().command(*names, **{"cls": _Command, **options})


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say_error("warning", message)


def _say_error(kind: str, error: Warning | Exception | str) -> None:
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    print(f"{kind}: {text}".replace("\n", " "), file=sys.stderr)


@contextmanager
def _options() -> Iterator[None]:
    """Report a ValueError of the library about an argument as a mistake in the options."""
    try:
        yield
    except _USERS:
        raise
    except (ValueError, TypeError) as e:
        raise typer.BadParameter(str(e)) from None


# without rich's boxes messages stay whole lines, whatever they are piped into
app = _Typer(
    cls=_Group,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train multi-layer perceptrons and use them.",
)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="fastmlp")


def _version(value: bool) -> None:
    if value:
        print(f"fastmlp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


# --- train --------------------------------------------------------------------------------------------------------


def _default(name: str) -> str:
    mnist, table = (
        ",".join(map(str, v)) if isinstance(v, tuple) else v
        for v in (run_settings.MNIST[name], run_settings.TABLE[name])
    )
    return f"Default: {mnist} for mnist, {table} for a file."


_Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether the first row of a CSV file holds names. Default: by its look."),
]
_RATES = ", ".join(f"{rate:g} for {name}" for name, rate in run_settings.RATES.items())


@app.command()
def train(
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(help="mnist, or a .csv, .npz, .npy or IDX file.", metavar="DATA")],
    target: Annotated[
        str | None,
        typer.Option(help="Column of a CSV file to learn, array of an .npz file; for .npy and IDX another file."),
    ] = None,
    header: _Header = None,
    hidden: Annotated[
        str | None,
        typer.Option(help=f"Units of the hidden layers, such as 256,128; '' for none. {_default('hidden')}"),
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="Of the hidden layers: one name, or one each. Default: relu.")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="Default: softmax_cross_entropy for classes, mean_squared_error for values."),
    ] = None,
    quantiles: Annotated[
        str | None,
        typer.Option(help="Of --loss quantile: those to predict, such as 0.1,0.5,0.9. Default: 0.5."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help=_default("epochs"))] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help=_default("batch_size"))] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam, adamw or rmsprop. Default: adam.")] = None,
    lr: Annotated[float | None, typer.Option(help=f"Learning rate, at its highest. Default: {_RATES}.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="constant, step (a tenth after each third of the run), exponential, inverse_scaling, cosine, "
            "one_cycle or reduce_on_plateau. Default: one_cycle."
        ),
    ] = None,
    dropout: Annotated[
        str | None,
        typer.Option(help=f"A rate for all hidden layers, or input,hidden1,... {_default('dropout')}"),
    ] = None,
    l2: Annotated[float | None, typer.Option(help="Adds 0.5 * L2 * ||W||^2 to the loss. Default: 0.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Decoupled decay. Default: 0.01 for adamw, else 0.")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd and rmsprop. Default: 0.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Of softmax_cross_entropy. Default: 0.")] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Largest norm of a gradient. Default: none.")] = None,
    ema: Annotated[
        float | None, typer.Option(help="Decay of an average of the weights, which the model then uses.")
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the rows to hold out and measure on after each epoch: drawn by the seed, of each class "
            f"alike; of mnist the last ones. {_default('validation')}"
        ),
    ] = None,
    standardize: Annotated[
        bool | None,
        typer.Option(
            help="Train on features (and values to learn) with mean 0 and deviation 1; the saved model takes and gives "
            "the units of the file. Default: for CSV files only."
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            help="How features are scaled: standard (as --standardize), robust (median 0, quartiles 1 apart) or "
            "quantile (normally distributed). Columns of a CSV file may then be words, and values missing."
        ),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="auto, numpy, numba or cupy. Default: auto.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float64. Default: float32.")] = None,
    seed: Annotated[int | None, typer.Option(help="Drawn, and kept in config.toml, when not given.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the run. Default: runs/NAME-DATE-TIME.")] = None,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help=f"Parts of a batch that several processes share. Default: {SHARDS} under mpiexec."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder --out.")] = False,
) -> None:
    """Train a network on MNIST or on a file, and leave a run folder.

    The folder holds model.safetensors, history.json, config.toml (every setting, the seed too, and the command that
    repeats the run) and pictures; checkpoint.safetensors, written between epochs, about once a second where they are
    short, and at Ctrl-C, is removed when the run is finished.  A run that was interrupted or killed goes on from there,
    to the same numbers, with --resume --out DIR.  Several processes train one network where mpiexec starts them, to the
    same numbers however many there are.
    """
    with leaving_at_ctrl_c():
        from fastmlp.cli import run as running

    typed = {k: v for k, v in ctx.params.items() if v is not None and k not in ("out", "resume")}
    with _options():
        given = run_settings.parse(typed)
    with ranks.together(_USERS) as group:
        folder, settings = ranks.first_decides(group, lambda: _begun(given, out, resume, group))
        try:
            with folder.blaming_config() if resume else _options():
                run = running.prepare(folder, settings, group)
            whole = running.finish(run, running.fit(run))
        except KeyboardInterrupt:
            print(running.interrupted(folder, settings), file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    if not whole:
        raise typer.Exit(INTERRUPTED)


def _begun(given: dict[str, Any], out: str | None, resume: bool, group: Group | None) -> tuple[RunFolder, Settings]:
    """Return the folder and the settings of the run, a new one or one that goes on."""
    if not resume:
        if group is not None:
            given = {"shards": SHARDS, **given}
        folder, settings = RunFolder.new(out, given["data"]), _new_settings(given)
    elif out is None:
        raise typer.BadParameter("--resume needs --out DIR, the folder of the run to go on with")
    else:
        folder = RunFolder.existing(out)
        settings = folder.settings()
        if given.get("backend") == "auto":
            del given["backend"]  # the run has found out already what that is
        if differ := run_settings.contradictions(given, settings):
            raise typer.BadParameter(f"--resume goes on with the same settings; not {'; '.join(differ)}")
        if group is not None and settings.shards is None:
            raise typer.BadParameter("--resume: the run was begun without --shards, in one process; leave out mpiexec")
    if group is not None and settings.shards is not None and group.size > settings.shards:
        raise typer.BadParameter(
            f"--shards: {group.size} processes have no more than {settings.shards} to share; start fewer"
            + ("" if resume else f", or give --shards {group.size} or more")
        )
    return folder, settings


def _new_settings(given: Mapping[str, Any]) -> Settings:
    import secrets

    with _options():
        # 32 bits are few enough to be typed
        settings = Settings(**{"seed": secrets.randbits(32), **run_settings.defaults(given), **given})
        settings.optimizer_record(1)
    return settings


# --- using a model ------------------------------------------------------------------------------------------------

_Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model.safetensors, or a run folder.")]
_Data = Annotated[str, typer.Argument(metavar="DATA", help="mnist (test images), or a .csv, .npz, .npy or IDX file.")]
_Backend = Annotated[str, typer.Option(help="auto, numpy, numba or cupy.")]


def _load(model: str, backend: str = "auto") -> MLP:
    with leaving_at_ctrl_c():
        from fastmlp.files import safetensors
        from fastmlp.loading import load

    path = model_file(model)
    if safetensors.read(path)[0].get("kind") == "checkpoint":
        # its weights may be those for scaled columns, which nothing here would scale
        raise FileFormatError(
            f"{path} is a checkpoint, from which --resume goes on; use the model.safetensors that a run leaves at its "
            "end or at Ctrl-C"
        )
    with _options():
        return load(path, backend)


@app.command()
def evaluate(
    model: _Model,
    data: _Data,
    target: Annotated[
        str | None, typer.Option(help="Column of a CSV file, array of an .npz file, or file, to compare with.")
    ] = None,
    header: _Header = None,
    backend: _Backend = "auto",
) -> None:
    """Print the loss of a model on some data and, for classes, accuracy, precision, recall and F1."""
    from fastmlp.cli.data import load_rows, naming_lines
    from fastmlp.cli.output import class_scores, extra_figures

    _refuse_target(data, target)
    network = _load(model, backend)
    with _options():
        x, y = load_rows(network, data, target, with_target=True, header=header)
    with naming_lines(data, len(x)):
        figures = network.evaluate(x, y, metrics=extra_figures(network))
    print_table(("figure", "value"), [(name, f"{value:.6g}") for name, value in figures.items()])
    if "accuracy" in figures:
        print()
        print_table(("class", "precision", "recall", "F1", "rows"), class_scores(network, x, y))


@app.command()
def predict(
    model: _Model,
    data: _Data,
    out: Annotated[str, typer.Option(help="File to write: .csv, .npy or .npz; one that is there is replaced.")],
    target: Annotated[str | None, typer.Option(help="Column of a CSV file to leave out, where there is one.")] = None,
    header: _Header = None,
    proba: Annotated[bool, typer.Option("--proba", help="Write probabilities too (.npy: only them).")] = False,
    backend: _Backend = "auto",
) -> None:
    """Write what a model predicts for some data, classes by their names."""
    from fastmlp.cli.data import load_rows, naming_lines
    from fastmlp.cli.output import write_predictions

    if not out.lower().endswith((".csv", ".npy", ".npz")):
        raise typer.BadParameter(f"--out: the name of the file ends in .csv, .npy or .npz; got {out!r}")
    refuse_missing_folder(out)
    if Path(data).exists() and Path(out).exists() and Path(out).samefile(data):
        raise typer.BadParameter(f"--out: {out} is the file of the data, which would be lost; choose another name")
    _refuse_target(data, target, csv_only=True)
    network = _load(model, backend)
    with _options():
        x, _ = load_rows(network, data, target, with_target=False, header=header)
    with _options(), naming_lines(data, len(x)):
        chances = network.predict_proba(x) if proba else None
        predicted = network.predict(x)
    write_predictions(out, network, predicted, chances)
    print(f"{len(x):,} predictions in {out}")


def _refuse_target(data: str, target: str | None, csv_only: bool = False) -> None:
    if target is not None and (data == "mnist" or (csv_only and not data.lower().endswith(".csv"))):
        raise typer.BadParameter(f"--target has no meaning for {data}: its features are known without it")


@app.command()
def summary(model: _Model) -> None:
    """Print the layers of a model."""
    network = _load(model, "numpy")
    network.summary()
    if network.class_names is not None:
        print(f"classes {', '.join(network.class_names)}")


@app.command()
def export(
    model: _Model,
    out: Annotated[str, typer.Argument(metavar="OUT", help="File to write: .onnx; it must not be there.")],
) -> None:
    """Write a model as an ONNX file, the scaling of its inputs inside; needs fastmlp[onnx]."""
    if not out.lower().endswith(".onnx"):
        raise typer.BadParameter(f"OUT: the name of the file ends in .onnx; got {out!r}")
    if Path(out).exists():
        raise FileExistsError(f"{out} is there already; choose another name, or remove it first")
    refuse_missing_folder(out)
    network = _load(model, "numpy")
    from fastmlp.convert import to_onnx

    try:
        with _options():
            proto = to_onnx(network, out)
    except ImportError as e:
        _say_error("error", e)
        raise typer.Exit(1) from None
    outputs = ", ".join(output.name for output in proto.graph.output)
    kind = "double" if network.dtype == "float64" else "float"
    print(f"{out}: X (n, {network.spec.units[0]}) {kind}; {outputs}")


doctor.add_to(app)
machine.add_to(app, _options)
parity.add_to(app, _load, _options)
profile.add_to(app, _load, _options)
bench.add_to(app, _options)
