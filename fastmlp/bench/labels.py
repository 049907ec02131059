"""Names in a picture where they cover no marker and no other name: places are tried against boxes, in pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

LONGEST = 24
"""Characters of a name; a longer one is cut."""
_LOOK: dict[str, Any] = {"fontsize": "x-small", "in_layout": False, "parse_math": False}
_UPRIGHT = {**_LOOK, "rotation": 90, "ha": "center", "va": "top", "color": "0.35"}
_GAP, _BEND, _ROW = 2.0, 12.0, 16.0
"""Points between names, of the bent part of a line to its name, and of a row of names above the highest line."""
_COVERED, _LINE, _FAINT = 100.0, 10.0, 1.0
"""What it costs to cover a marker or a name, a line, and one of the faint lines that lead to names."""


class Place(NamedTuple):
    """Where a name may stand beside a line.

    Attributes
    ----------
    x, y : float
        A point of the line, in the data's numbers.
    ha, va : str
        On which side of it, as matplotlib says it: "left" and "top" are below it to the right.
    rows : int
        How many rows of names further away.
    """

    x: float
    y: float
    ha: str
    va: str
    rows: int = 0


def short(name: str) -> str:
    """Return a name that is not too long."""
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def spread(at: Sequence[float], gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Return positions in the same order, `gap` apart at least and within limits, as near to those given as can be.

    Parameters
    ----------
    at : (n,) sequence of float
        In ascending order.
    gap : float
        So small that all fit: ``(n - 1) * gap <= high - low``.
    low, high : float
    """
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(at))
    near = isotonic_regression(np.asarray(at, np.float64) - steps).x
    return np.asarray(np.clip(near, low, high - steps[-1]) + steps)


def columns(axes: Sequence[Axes], names: Sequence[Callable[[float], list[tuple[float, str]]]]) -> None:
    """Name places along a logarithmic x axis above all else, with faint lines that lead down; limits grow upwards.

    Parameters
    ----------
    axes : sequence of Axes
        Of one figure, all else drawn; their layout is settled by this.
    names : sequence of callable
        For each, the places by x with their names, where such as are nearer than a share of the axis are one.
    """
    figure: Any = axes[0].figure
    figure.draw_without_rendering()
    points = _points(axes[0])
    shown = []
    for ax, named in zip(axes, names, strict=True):
        apart = 0.01
        while True:  # until they fit
            found = named(apart)
            texts = [ax.text(x, 1.0, short(name), **_UPRIGHT) for x, name in found]
            sizes = [text.get_window_extent().size for text in texts]
            gap, band = (float(size) + _GAP * points for size in np.max(sizes, axis=0))
            if len(found) * gap <= ax.bbox.width or len(found) == 1:
                break
            for text in texts:
                text.remove()
            apart *= 2
        share = (band + (_BEND + _ROW) * points) / ax.bbox.height
        low, high = ax.get_ylim()
        for minor in (False, True):  # there are no values where names stand
            ax.set_yticks([tick for tick in ax.get_yticks(minor=minor) if low <= tick <= high], minor=minor)
        ax.set_ylim(low, high * (high / low) ** (share / (1 - share)))
        shown.append((ax, found, texts, gap, band))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for ax, found, texts, gap, band in shown:
        _lead(ax, found, texts, gap, band)


def _lead(ax: Axes, found: list[tuple[float, str]], texts: Sequence[Any], gap: float, band: float) -> None:
    """Move names to where none covers another, and draw a line from each down to its place."""
    points, box = _points(ax), ax.bbox
    own = [float(ax.transData.transform((x, 1.0))[0]) for x, _ in found]
    moved = spread(own, gap, box.x0 + gap / 2, box.x1 - gap / 2)
    top = 1 - band / box.height
    bend = top - _BEND * points / box.height
    for (x, _), text, pixel in zip(found, texts, moved, strict=True):
        at = float(ax.transData.inverted().transform((pixel, box.y0))[0])
        text.set_transform(ax.get_xaxis_transform())
        text.set_position((at, 1.0))
        (line,) = ax.plot([x, x, at], [0, bend, top], color="0.85", linewidth=1, zorder=0)
        line.set_transform(ax.get_xaxis_transform())
        line.set_in_layout(False)


def place(ax: Axes, names: Iterable[tuple[str, Sequence[Place]]]) -> None:
    """Write each name at the first of its places where it covers nothing, or else where it covers the least.

    Parameters
    ----------
    ax : Axes
        With a layout that is settled; what is drawn there are lines and names.
    names : iterable of (str, sequence of Place)
        Places that are all outside of the axes leave a name out.
    """
    from matplotlib.transforms import Bbox

    points = _points(ax)
    for name, places in names:
        text = ax.text(0, 0, name, **_LOOK)
        width, height = text.get_window_extent().size
        text.remove()
        costs = _costs(ax)
        best: tuple[float, Place] | None = None
        for one in places:
            x, y = ax.transData.transform((one.x, one.y)) + points * np.array(_away(one, height / points))
            left, low = {"left": x, "right": x - width}[one.ha], {"bottom": y, "top": y - height}[one.va]
            cost = costs(Bbox.from_bounds(left, low, width, height).padded(points / 2))
            if best is None or cost < best[0]:
                best = cost, one
            if cost == 0:
                break
        if best is not None and best[0] < float("inf"):
            one = best[1]
            look = {"ha": one.ha, "va": one.va, "textcoords": "offset points", "annotation_clip": False, **_LOOK}
            plain = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            ax.annotate(name, (one.x, one.y), xytext=_away(one, height / points), bbox=plain, **look)


def _away(where: Place, row: float) -> tuple[float, float]:
    """Return how many points a name is away from the point of its place."""
    side, up = {"left": 4.0, "right": -4.0}[where.ha], {"bottom": 1.0, "top": -1.0}[where.va]
    return side, up * (3.0 + where.rows * (row + _GAP))


def _points(ax: Axes) -> float:
    """Return the pixels of a point."""
    figure = ax.get_figure(root=True)
    assert figure is not None, "it is drawn on one"
    return figure.dpi / 72


def boxes(ax: Axes) -> list[Bbox]:
    """Return in pixels what no name may cover: each marker, and each name."""
    from matplotlib.transforms import Bbox

    found = [text.get_window_extent() for text in ax.texts]
    for line in ax.lines:
        if _is_marked(line):
            half = (line.get_markersize() / 2 + 1) * _points(ax)
            centres = line.get_transform().transform(line.get_xydata())
            found += [Bbox([centre - half, centre + half]) for centre in centres]
    return found


def _is_marked(line: Any) -> bool:
    return line.get_marker() not in ("None", "", None)


def _costs(ax: Axes) -> Callable[[Bbox], float]:
    """Return what tells how much a box covers of all that is drawn so far; inf where it is not inside of the axes."""
    frame, there = ax.bbox, boxes(ax)
    paths = [
        (line.get_transform().transform_path(line.get_path()), _FAINT if line.get_zorder() == 0 else _LINE)
        for line in ax.lines
        if not _is_marked(line)
    ]

    def cost(box: Bbox) -> float:
        if not (frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1):
            return float("inf")
        crossed = sum(weight for path, weight in paths if path.intersects_bbox(box, filled=False))
        return _COVERED * box.count_overlaps(there) + crossed

    return cost
