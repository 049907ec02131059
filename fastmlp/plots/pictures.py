"""What all pictures share: figures without pyplot, one style for lines, and files."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from fastmlp.arguments import check_count, check_number, check_path
from fastmlp.files.atomic import atomic_writer
from fastmlp.floating import quiet
from fastmlp.warned import warn_caller

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# lines, in the order in which they are given out: each differs from the others in dash, marker and shade
_LINES: tuple[dict[str, Any], ...] = (
    {"color": "black", "linestyle": "-", "marker": "o", "markersize": 4},
    {"color": "0.4", "linestyle": "--", "marker": "s", "markersize": 4, "markerfacecolor": "white"},
    {"color": "0.2", "linestyle": ":", "marker": "^", "markersize": 5},
    {"color": "0.6", "linestyle": "-", "marker": "D", "markersize": 4, "markerfacecolor": "white"},
    {"color": "0.3", "linestyle": "-.", "marker": "v", "markersize": 5},
    {"color": "0.5", "linestyle": "--", "marker": "x", "markersize": 5},
)
_GLYPH = re.compile(r"Glyph (\d+) .*missing from")
MAX_MARKERS = 15
"""Points of a line that get a marker; on long runs they would run into each other."""


class MissingMatplotlibError(ImportError):
    """matplotlib is not installed; the message says how to install it."""


class MissingGlyphsWarning(UserWarning):
    """The fonts of a picture lack characters, which are drawn as boxes.

    Parameters
    ----------
    characters : iterable of str
    """

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = frozenset(characters)
        shown = "".join(sorted(self.characters)[:10])
        more = f" and {len(self.characters) - 10} more" if len(self.characters) > 10 else ""
        super().__init__(
            f"the fonts of pictures have no {shown!r}{more}, which are drawn as boxes; name one that has, such as "
            "font.family: Noto Sans CJK JP in a matplotlibrc, or in matplotlib.rcParams"
        )


@quiet
def new_figure(width: float, height: float) -> Figure:
    """Return a figure of that size in inches, which no display and no global state knows of."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingMatplotlibError(
            'pictures need matplotlib, which is not installed: pip install "fastmlp[plot]"', name=e.name
        ) from None
    return Figure(figsize=(width, height), layout="compressed")


@quiet
def panels(rows: int = 1, columns: int = 1, *, width: float = 3.2, height: float = 3.2) -> list[Axes]:
    """Return the axes of a new figure, row by row, for pictures side by side.

    Parameters
    ----------
    rows, columns : int
    width, height : float
        Of each, in inches.

    Returns
    -------
    list of Axes
    """
    rows, columns = check_count("rows", rows), check_count("columns", columns)
    width, height = (check_number(*side, 0.0, above=True) for side in (("width", width), ("height", height)))
    return list(new_figure(columns * width, rows * height).subplots(rows, columns, squeeze=False).flat)


def line_style(i: int) -> dict[str, Any]:
    """Return the look of the i-th line of a picture."""
    return _LINES[i % len(_LINES)]


def marks_every(points: int) -> int:
    """Return at which distance the points of a line get markers."""
    return max(1, -(-points // MAX_MARKERS))


def plain_frame(ax: Axes) -> None:
    """Give axes with lines their frame and grid."""
    ax.grid(True, color="0.9")
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def plain_legend(ax: Axes, **look: Any) -> None:
    """Say what is what; names are text, in which a dollar begins no formula."""
    for text in ax.legend(fontsize="small", **look).get_texts():
        text.set_parse_math(False)


def legend_of_lines(ax: Axes) -> None:
    """Say which line is which, with as much of each as shows its dashes on both sides of a marker."""
    plain_legend(ax, frameon=False, handlelength=3.2)


@dataclass(frozen=True)
class Picture:
    """A picture in two files; a notebook shows it where it is the last value of a cell.

    Attributes
    ----------
    png, svg : Path
    """

    png: Path
    svg: Path

    def _repr_png_(self) -> bytes:
        return self.png.read_bytes()

    def __iter__(self) -> Iterator[Path]:
        return iter((self.png, self.svg))


def save_both(drawn: Figure | Axes | Sequence[Axes], path: str | PathLike[str]) -> Picture:
    """Write a picture as PNG and as SVG.

    Parameters
    ----------
    drawn : Figure, Axes or sequence of Axes
        As for `save`.
    path : path
        Without the ending, or with either of the two; its folder is made where it is not there.

    Returns
    -------
    Picture
        Which a notebook shows.
    """
    stem = Path(check_path("save_both: path", path))
    if stem.suffix.lower() in (".png", ".svg"):
        stem = stem.with_suffix("")
    stem.parent.mkdir(parents=True, exist_ok=True)
    picture = Picture(stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg"))
    for file in picture:
        save(drawn, file)
    return picture


@quiet
def save(drawn: Figure | Axes | Sequence[Axes], path: str | PathLike[str]) -> None:
    """Write a picture as PNG or SVG, as its name says; the file appears whole or not at all.

    Parameters
    ----------
    drawn : Figure, Axes or sequence of Axes
        A figure, or what one of the functions here returned: the whole figure that it is in is written.
    path : path
        Its name ends in ``.png`` or ``.svg``.

    Raises
    ------
    ValueError, TypeError
        The name ends in something else, or there is nothing to write.
    OSError
        The file cannot be written; what was there before stays.
    """
    kind = check_path("save: path", path).lower().rpartition(".")[2]
    if kind not in ("png", "svg"):
        raise ValueError(f"save: the name of a picture ends in .png or .svg, got {fspath(path)!r}")
    # a figure, axes, or several of them however they are nested
    first: Any = next(iter(np.ravel(np.asarray(drawn, dtype=object))), None)
    figure: Any = first if hasattr(first, "savefig") else getattr(first, "get_figure", lambda: None)()
    if not hasattr(figure, "savefig"):
        raise TypeError(f"save: expected a figure, or axes in one, got {drawn!r}")
    with _missing_glyphs_told_once(), atomic_writer(path) as file:
        if kind == "svg":
            import matplotlib

            # without a date and names drawn by chance the same run gives the same picture
            with matplotlib.rc_context({"svg.hashsalt": "fastmlp"}):
                figure.savefig(file, format=kind, metadata={"Date": None})
        else:
            _write_png(figure, file)


@contextmanager
def _missing_glyphs_told_once() -> Iterator[None]:
    """Say in one warning which characters the fonts lack; matplotlib says it for each and each time it draws it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=_GLYPH.pattern)
        yield
    missing = set()
    for warning in caught:
        if glyph := _GLYPH.match(str(warning.message)):
            missing.add(chr(int(glyph[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        warn_caller(MissingGlyphsWarning(missing))


def _write_png(figure: Figure, file: BinaryIO) -> None:
    """Write a PNG; pictures without colour, as all here are, take a byte a pixel instead of four."""
    from PIL import Image  # which matplotlib brings along

    memory = io.BytesIO()
    figure.savefig(memory, format="png", dpi=150)
    picture = Image.open(memory).convert("RGB")
    red, green, blue = (band.tobytes() for band in picture.split())
    (picture.convert("L") if red == green == blue else picture).save(file, format="png", optimize=True, dpi=(150, 150))
