"""``fastmlp profile``: where a training step's time goes, by operation and layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmlp.cli.tables import show_table
from fastmlp.files.atomic import refuse_missing_folder

if TYPE_CHECKING:
    from fastmlp.doctor.profile import StepProfile
    from fastmlp.model import MLP

BATCH = 128


def add_to(
    app: typer.Typer, load: Callable[[str, str], MLP], options: Callable[[], AbstractContextManager[None]]
) -> None:
    """Make the command known; `load` opens a model, and within `options` a ValueError is a mistake in the options."""

    @app.command()
    def profile(
        data: Annotated[
            str | None,
            typer.Argument(metavar="DATA", help="For --model: mnist (its test images), or a file; none: random rows."),
        ] = None,
        model: Annotated[str | None, typer.Option(help="A model.safetensors, or a run folder.")] = None,
        units: Annotated[str | None, typer.Option(help="A new network instead, such as 784,512,10.")] = None,
        activation: Annotated[str | None, typer.Option(help="Of --units: of the hidden layers. Default: relu.")] = None,
        loss: Annotated[str | None, typer.Option(help="Of --units. Default: softmax_cross_entropy.")] = None,
        dtype: Annotated[str | None, typer.Option(help="Of --units: float32 or float64. Default: float32.")] = None,
        target: Annotated[
            str | None, typer.Option(help="Column of a CSV file, array of an .npz file, or file, to learn.")
        ] = None,
        header: Annotated[
            bool | None, typer.Option("--header/--no-header", help="Whether the first row of a CSV file holds names.")
        ] = None,
        batch: Annotated[int, typer.Option("--batch", "--batch-size", min=1, help="Rows a step.")] = BATCH,
        optimizer: Annotated[
            str | None, typer.Option(help="sgd, adam, adamw or rmsprop. Default: the model's, or adam.")
        ] = None,
        backend: Annotated[str, typer.Option(help="auto, numpy, numba or cupy.")] = "auto",
        steps: Annotated[int, typer.Option(min=1, help="Of each of five rounds.")] = 20,
        trace: Annotated[
            str | None, typer.Option(help="File to write: .json for chrome://tracing and ui.perfetto.dev.")
        ] = None,
    ) -> None:
        """Time a training step by operation and layer; single operations beside the step as it trains."""
        from fastmlp.doctor.profile import profile as measure

        asked = {"activation": activation, "loss": loss, "dtype": dtype}
        own: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        _refuse_what_contradicts(data, model, units, {**own, "target": target, "header": header})
        if trace is not None:
            refuse_missing_folder(trace)
        if model is not None:
            network = load(model, backend)
        else:
            from fastmlp.model import MLP

            with options():
                network = MLP(_numbers(units), backend=backend, seed=0, **own)
        x, y = _rows(network, data, target, header, steps * batch)
        with options():
            found = measure(network, x, y, batch_size=batch, optimizer=optimizer, steps=steps)
        _show(found)
        if trace is not None:
            found.to_trace(trace)
            print(f"trace: {trace}")


def _refuse_what_contradicts(data: str | None, model: str | None, units: str | None, others: Mapping[str, Any]) -> None:
    """Refuse options that would say nothing where they are."""
    if (model is None) == (units is None):
        raise typer.BadParameter("what to profile? give --units 784,512,10, or --model FILE, and not both")
    if data is not None and model is None:
        raise typer.BadParameter(f"DATA ({data}) is for --model; a network of --units is profiled on random rows")
    of_units = [f"--{name}" for name in ("activation", "loss", "dtype") if others.get(name) is not None]
    if model is not None and of_units:
        raise typer.BadParameter(f"{', '.join(of_units)}: of --units; a model has its own")
    of_data = [f"--{name}" for name in ("target", "header") if others.get(name) is not None]
    if data is None and of_data:
        raise typer.BadParameter(f"{', '.join(of_data)}: of DATA, and there is none")


def _numbers(units: str | None) -> list[int]:
    """Return the units as numbers."""
    try:
        return [int(part) for part in str(units).split(",")]
    except ValueError:
        raise ValueError(f"--units: expected such as 784,512,10, got {units!r}") from None


def _rows(network: MLP, data: str | None, target: str | None, header: bool | None, rows: int) -> tuple[Any, Any]:
    """Return rows of the user's, or random ones."""
    if data is not None:
        from fastmlp.cli.data import load_rows

        return load_rows(network, data, target, with_target=True, header=header)
    import numpy as np

    from fastmlp.doctor.random_networks import random_targets

    if network.preprocessing is not None:
        raise typer.BadParameter("DATA is missing: this model takes raw columns, which random numbers are not")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, network.spec.units[0]), np.float32)
    return x, random_targets(network.spec, rows, rng)


def _show(found: StepProfile) -> None:
    """Print the tables, and which time is which."""
    print(f"{found.network}, batches of {found.batch} rows")
    show_table(
        "a step by operation and layer",
        ("operation", "layer", "calls", "us", "share"),
        found.table(),
        left=("operation",),
    )
    layers = [
        ("none" if layer is None else str(layer), f"{s * 1e6:.1f}", f"{found.share(s):.1%}")
        for layer, s in found.layers.items()
    ]
    show_table("the same by layer", ("layer", "us", "share"), layers, left=())
    for note in found.notes():
        print(note)
