"""Pictures of functions: the regions that a classifier cuts the plane into, an approximation beside its function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_count, check_flag, check_sequence
from fastmlp.backends.foreign import host_array
from fastmlp.floating import quiet
from fastmlp.plots.checks import class_numbers, finite, names_of_classes, one_axes, short, without_names, words
from fastmlp.plots.pictures import legend_of_lines, new_figure, plain_legend
from fastmlp.preprocessing.columns import is_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHADES = (1.0, 0.72, 0.86, 0.6, 0.93, 0.78, 0.66, 0.52)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LEVELS = 64
"""Of grey between black and white."""
TOLERANCE = 1e-6
"""Of rounding in probabilities."""
MARGIN = 0.08
"""Of the picture around the points, as a part of their extent."""


@quiet
def regions(
    model: Any,
    x: ArrayLike,
    y: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    title: str = "",
    resolution: int = 200,
    legend: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw the regions into which a classifier of two inputs cuts the plane, with points of each class.

    Each class has a shade of grey, which is the fainter the less sure the classifier is, and a kind of marker; the
    black lines are where it changes its mind.

    Parameters
    ----------
    model : MLP, classifier with ``predict_proba``, or callable
        A callable takes (n, 2) and returns the probability of class 1 (n,) or (n, 1), or of each class (n, K).
    x : (n, 2) real, or data frame
        Points; their columns are taken by their names where the model knows them so.
    y : (n,) int
        Their classes, from 0.
    class_names : sequence of str, optional
        For the legend.
    title : str
    resolution : int
        Points along each side at which the classifier is asked.
    legend : bool
        Say which marker is which class.
    ax : Axes, optional
        Where to draw; they become square.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError, TypeError
        The points are not (n, 2), finite and at least one, their classes do not fit, or the model answers with
        something else than probabilities.
    """
    points, classes = finite("regions", "x", x), host_array(y, "regions: y")
    words("regions", title=title)
    legend = check_flag("regions: legend", legend)
    if points.ndim != 2 or points.shape[1] != 2 or classes.shape != points.shape[:1] or not len(points):
        raise ValueError(
            f"regions: expected points (n, 2) and classes (n,), n at least 1; got {points.shape}, {classes.shape}"
        )
    classes, resolution = class_numbers("regions", "y", classes), check_count("resolution", resolution, least=2)
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * np.maximum(high - low, 1e-12)
    sides = [np.linspace(a, b, resolution) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = np.stack(np.meshgrid(*sides), axis=-1).reshape(-1, 2)
    chances = _chances(model, _with_names(model, x, grid))
    count = max(chances.shape[1], int(classes.max()) + 1)
    names = names_of_classes("regions", class_names, count - 1)
    ax = new_figure(3.6, 3.6).subplots() if ax is None else one_axes("regions", ax)
    _shade(ax, chances.reshape(resolution, resolution, -1), sides)
    for k in range(count):
        where = classes == k
        look: dict[str, Any] = {"facecolor": "black" if k % 2 == 0 else "white", "edgecolor": "black", "linewidth": 0.7}
        marker = _MARKERS[k % len(_MARKERS)]
        ax.scatter(points[where, 0], points[where, 1], s=13, marker=marker, label=short(names[k]), zorder=3, **look)
    ax.set(xticks=[], yticks=[], xlim=sides[0][[0, -1]], ylim=sides[1][[0, -1]], box_aspect=1)
    ax.set_title(title, fontsize="medium")
    if legend:
        plain_legend(ax, loc="upper right", framealpha=0.9)
    return ax


def _with_names(model: Any, x: Any, grid: NDArray[np.float64]) -> Any:
    """Return places as a frame of the points' kind, where those are one and the model knows its columns by name."""
    named = any(getattr(model, name, None) is not None for name in ("feature_names_in_", "feature_names"))
    if not (named and is_frame(x) and len(set(x.columns)) == grid.shape[1]):
        return grid
    return type(x)(dict(zip(x.columns, grid.T, strict=True)))


def _chances(model: Any, grid: Any) -> NDArray[np.float64]:
    """Return the probability of each class (n, K)."""
    ask = getattr(model, "predict_proba", model)
    if not callable(ask):
        raise TypeError(f"regions: model must have predict_proba or be callable, got {model!r}")
    with without_names():
        chances = np.asarray(ask(grid), np.float64)
    if chances.ndim == 1 or (chances.ndim == 2 and chances.shape[1] == 1):
        one = chances.reshape(-1)
        chances = np.stack([1 - one, one], axis=1)
    if chances.ndim != 2 or len(chances) != len(grid):
        raise ValueError(
            f"regions: for {len(grid)} points expected probabilities ({len(grid)},) or ({len(grid)}, K); "
            f"got {chances.shape}"
        )
    if not (chances.min() >= -TOLERANCE and chances.max() <= 1 + TOLERANCE):
        raise ValueError(
            f"regions: expected probabilities, from 0 to 1; the model gave {chances.min():.4g} to {chances.max():.4g}"
        )
    return chances


def _shade(ax: Axes, chances: NDArray[np.float64], sides: list[NDArray[np.float64]]) -> None:
    from matplotlib import colormaps

    shades = np.array([_SHADES[k % len(_SHADES)] for k in range(chances.shape[2])])
    extent = (sides[0][0], sides[0][-1], sides[1][0], sides[1][-1])
    # the mean of the shades by probability: pure where the classifier is sure; few levels, so that files stay small
    ax.imshow(
        chances @ shades,
        cmap=colormaps["gray"].resampled(LEVELS),
        vmin=0.0,
        vmax=1.0,
        origin="lower",
        extent=extent,
        aspect="auto",
        interpolation="bilinear",
    )
    for k in range(chances.shape[2] if chances.shape[2] > 2 else 1):
        lead = chances[:, :, k] - np.delete(chances, k, axis=2).max(axis=2)
        if lead.min() < 0 < lead.max():
            ax.contour(*sides, lead, levels=[0.0], colors="black", linewidths=1.2)


@quiet
def approximation(
    function: Callable[[NDArray[np.float64]], ArrayLike],
    model: Any,
    interval: tuple[float, float],
    points: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    title: str | None = None,
    resolution: int = 1000,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a function of one variable, an approximation of it, and what lies between them.

    Parameters
    ----------
    function : callable
        Takes and returns (n,) arrays.
    model : MLP, regressor with ``predict``, or callable
        ``predict``, or the callable, takes (n, 1) and returns (n,) or (n, 1).
    interval : (low, high)
        Two numbers, the first below the second.
    points : (x, y), optional
        (n,) arrays: points that the approximation is made from.
    title : str, optional
        When not given, the largest difference between the two.
    resolution : int
        Points at which both are taken.
    legend : bool
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError, TypeError
        The interval is none, or the function, the model or the points give something else than (n,) finite values.
    """
    ends = finite("approximation", "interval", interval)
    if ends.shape != (2,) or not ends[0] < ends[1]:
        raise ValueError(f"approximation: interval must be (low, high), low below high, got {interval!r}")
    t = np.linspace(ends[0], ends[1], check_count("resolution", resolution, least=2))
    ask = getattr(model, "predict", model)
    if not callable(ask):
        raise TypeError(f"approximation: model must have predict or be callable, got {model!r}")
    if not callable(function):
        raise TypeError(f"approximation: function must be callable, got {function!r}")
    true = finite("approximation", "values of the function", function(t))
    with without_names():
        found = finite("approximation", "values of the model", ask(t[:, None]))
    found = found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
    if not true.shape == found.shape == t.shape:
        raise ValueError(
            f"approximation: for {t.shape} places expected as many values; function gave {true.shape}, "
            f"model {found.shape}"
        )
    legend = check_flag("approximation: legend", legend)
    if title is not None:
        words("approximation", title=title)
    samples = []
    if points is not None:
        pair = check_sequence("approximation: points", points, "(x, y), two (n,) arrays")
        samples = [finite("approximation", "points", side) for side in pair]
        if len(samples) != 2 or samples[0].ndim != 1 or samples[0].shape != samples[1].shape:
            raise ValueError(
                f"approximation: points must be (x, y), two (n,) arrays, got {[side.shape for side in samples]}"
            )
    ax = new_figure(4.2, 3.0).subplots() if ax is None else one_axes("approximation", ax)
    ax.fill_between(t, true, found, color="0.8", linewidth=0)
    ax.plot(t, true, color="0.6", linewidth=3.0, label="function")
    ax.plot(t, found, color="black", linewidth=1.2, label="network")
    if samples:
        ax.plot(*samples, "o", color="black", markerfacecolor="white", markersize=4.5, label="samples")
    largest = np.abs(true - found).max()
    ax.set_title(f"largest difference {largest:.3g}" if title is None else title, fontsize="medium")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    if legend:
        legend_of_lines(ax)
    return ax
