"""``fastmlp doctor`` among the other commands; `fastmlp.cli.main` takes it before any of them has to be imported."""

from __future__ import annotations

import typer

from fastmlp.doctor.__main__ import main


def doctor(ctx: typer.Context) -> None:
    """Say what is installed and usable here, what is wrong, and the command that mends it."""
    raise typer.Exit(main(ctx.args))


def add_to(app: typer.Typer) -> None:
    """Make the command known; it parses its options itself, since it has to do so without typer too."""
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=anything, add_help_option=False)(doctor)
