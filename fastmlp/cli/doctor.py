"""``fastmlp doctor`` and ``fastmlp info``: all that is known of a machine, or in short.

`fastmlp.cli.main` takes ``fastmlp doctor`` before any other command has to be imported.
"""

from __future__ import annotations

import typer

from fastmlp.cli.tables import print_table
from fastmlp.doctor.__main__ import main


def doctor(ctx: typer.Context) -> None:
    """Say what is installed and usable here, what is wrong, and the command that mends it."""
    raise typer.Exit(main(ctx.args))


def info() -> None:
    """Print versions, BLAS libraries, threads, and which backends can run here and, if not, why and the cure."""
    print_info()


def print_info() -> None:
    """Print what is asked for most often of what a doctor finds."""
    from fastmlp.doctor.checkup import in_short

    for title, rows in in_short().items():
        print_table((title, ""), rows)
        print()


def add_to(app: typer.Typer) -> None:
    """Make the commands known; the doctor parses its options itself, since it has to do so without typer too."""
    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(context_settings=anything, add_help_option=False)(doctor)
    app.command()(info)
