"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence

WIDE = 200
"""Columns where the output is no terminal, so that no line is broken."""


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as plain text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        # columns of numbers line up on the right; the others, the first and those without a title, on the left
        cells = [
            cell.rjust(width) if i and header[i] else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def show_table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    left: Sequence[str],
    striking: Sequence[bool] | None = None,
) -> None:
    """Print a table with a title and, on a terminal, in colours.

    Parameters
    ----------
    title : str
    header, rows : sequences of str
    left : sequence of str
        Those of the header whose columns are text; the others line up on the right.
    striking : sequence of bool, optional
        For each row, whether it is to be seen at once.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE)
    for column in header:
        table.add_column(column, justify="left" if column in left else "right")
    for number, cells in enumerate(rows):
        table.add_row(*cells, style="bold red" if striking is not None and striking[number] else None)
    Console(width=None if sys.stdout.isatty() else WIDE, highlight=False).print(table)
