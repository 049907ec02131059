"""``fastmlp parity``: a model of the user's, or random ones, on every backend: rounding, or a bug."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from fastmlp.cli.tables import show_table

if TYPE_CHECKING:
    from fastmlp.doctor.parity import Parity
    from fastmlp.model import MLP


def add_to(app: typer.Typer, load: Callable[[str], MLP], options: Callable[[], AbstractContextManager[None]]) -> None:
    """Make the command known; `load` opens a model, and within `options` a ValueError is a mistake in the options."""

    @app.command()
    def parity(
        model: Annotated[
            str | None,
            typer.Argument(metavar="MODEL", help="A model.safetensors, or a run folder; none: random networks."),
        ] = None,
        data: Annotated[
            str | None,
            typer.Argument(metavar="DATA", help="mnist (its test images), or a .csv, .npz, .npy or IDX file."),
        ] = None,
        target: Annotated[
            str | None, typer.Option(help="Column of a CSV file, array of an .npz file, or file, to learn.")
        ] = None,
        header: Annotated[
            bool | None, typer.Option("--header/--no-header", help="Whether the first row of a CSV file holds names.")
        ] = None,
        backends: Annotated[
            str | None, typer.Option(help="Such as numpy,numba. Default: all that can run here.")
        ] = None,
        steps: Annotated[int, typer.Option(min=0, help="Of training; 0 for none.")] = 5,
        networks: Annotated[int, typer.Option(min=1, help="How many random networks, where no MODEL is given.")] = 8,
    ) -> None:
        """Compute a model on every backend from the same numbers: rounding, or a bug, and where it begins."""
        names = None if backends is None else [name.strip() for name in backends.split(",")]
        if model is None:
            agree = _random(names, steps, networks, options)
        elif data is None:
            raise typer.BadParameter("DATA is missing: the rows to compute the model on")
        else:
            from fastmlp.cli.data import load_rows
            from fastmlp.doctor.parity import parity as compare

            network = load(model)
            x, y = load_rows(network, data, target, with_target=True, header=header)
            with options():
                found = compare(network, x, y, backends=names, steps=steps)
            _show(found)
            agree = found.agree
        if not agree:
            raise typer.Exit(1)


def _random(
    names: Sequence[str] | None, steps: int, networks: int, options: Callable[[], AbstractContextManager[None]]
) -> bool:
    """Compare random networks, in a line each; show all of those that part by more than rounding."""
    from fastmlp.doctor.parity import parity as compare
    from fastmlp.doctor.random_networks import random_network

    wrong = 0
    for seed in range(networks):
        drawn = random_network(seed)
        with options():
            found = compare(*drawn[:4], backends=names, steps=steps, optimizer=drawn.optimizer)
        figures = ", ".join(f"{name} {found.largest(name):.2g}" for name in found.backends)
        kind = "rounding" if found.agree else "A BUG   "
        print(f"{kind}  {figures} of what {found.dtype} allows: {found.network}", flush=True)
        if not found.agree:
            wrong += 1
            _show(found)
    print(f"{networks - wrong} of {networks} random networks differ by rounding alone")
    return not wrong


def _show(found: Parity) -> None:
    """Print all rows as a table, and the verdicts."""
    title = f"differences, in units of what rounding in {found.dtype} allows"
    wrong = [any(not off <= 1 for off in row.off.values()) for row in found.rows]
    show_table(title, ("step", "layer", "what", *found.backends), found.table(), left=("what",), striking=wrong)
    for name in found.backends:
        print(f"{name}: {found.verdict(name)}")
    for name, why in found.skipped.items():
        print(f"{name}: not compared, {why}")
