"""Pictures of a run, as matplotlib figures that need no display and read well in black and white.

matplotlib comes with ``pip install "fastmlp[plot]"`` and is imported when a picture is asked for; pyplot, with its
global state, never is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.atomic import atomic_writer
from fastmlp.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_MARKERS = 15
"""Points of a line that get a marker; on long runs they would run into each other."""
MAX_NUMBERED = 25
"""Classes up to which the confusion matrix has room for numbers."""
_TRAIN = {"color": "black", "linestyle": "-", "marker": "o", "markersize": 4}
_VALIDATION = {"color": "0.4", "linestyle": "--", "marker": "s", "markersize": 4, "markerfacecolor": "white"}


class MissingMatplotlibError(ImportError):
    """matplotlib is not installed; the message says how to install it."""


def curves(history: History | Mapping[str, Sequence[float]], *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Draw the loss and, where there is one, the accuracy of each epoch, for training and validation.

    Parameters
    ----------
    history : History or mapping
        What `fastmlp.MLP.fit` returned, or its ``history``.
    axes : sequence of Axes, optional
        Where to draw: for the loss, and for the accuracy.

    Returns
    -------
    list of Axes
        One, or two with an accuracy.
    """
    figures = history.history if isinstance(history, History) else history
    shown = [name for name in ("loss", "accuracy") if figures.get(name)]
    if not shown:
        raise ValueError("curves: the history has no epochs yet, so there is nothing to draw")
    if axes is None:
        axes = list(_figure(4.2 * len(shown), 3.2).subplots(1, len(shown), squeeze=False)[0])
    if len(axes) < len(shown):
        raise ValueError(f"curves: needs axes for {' and '.join(shown)}, got {len(axes)}")
    for ax, name in zip(axes, shown, strict=False):
        _curve(ax, name, figures)
    return list(axes[: len(shown)])


def _curve(ax: Axes, name: str, figures: Mapping[str, Sequence[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    # an accuracy is shown as the percentage that people quote
    factor, form = (100.0, "{:.2f} %") if name == "accuracy" else (1.0, "{:.4g}")
    lines = [("training", name, _TRAIN), ("validation", f"val_{name}", _VALIDATION)]
    for label, key, style in lines:
        values = factor * np.asarray(figures.get(key, ()), np.float64)
        if len(values):
            epochs = np.arange(1, len(values) + 1)
            every = -(-len(values) // MAX_MARKERS)
            last = form.format(values[-1])
            ax.plot(epochs, values, label=f"{label}, last {last}", markevery=every, **style)  # type: ignore[arg-type]
    ax.set_xlabel("epoch")
    ax.set_ylabel("accuracy (%)" if name == "accuracy" else "loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(True, color="0.9")
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.legend(frameon=False, fontsize="small")


def confusion(
    y_true: ArrayLike,
    y_predicted: ArrayLike,
    class_names: Sequence[str] | None = None,
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often each class was taken for which: rows are the true classes, columns the predicted ones.

    The shade is the share of the row, on a scale that shows rare mistakes too; the numbers are counts.

    Parameters
    ----------
    y_true, y_predicted : (n,) int
        Classes, counted from 0.
    class_names : sequence of str, optional
        The numbers of the classes when not given.
    ax : Axes, optional
        Where to draw.
    """
    true, predicted = np.asarray(y_true), np.asarray(y_predicted)
    if true.ndim != 1 or true.shape != predicted.shape or len(true) == 0:
        raise ValueError(
            f"confusion: expected two (n,) arrays of classes, n at least 1; got {true.shape}, {predicted.shape}"
        )
    highest = int(max(true.max(), predicted.max()))
    names = _class_names("confusion", class_names, highest)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (true, predicted), 1)
    size = 2.0 + 0.42 * min(len(names), 15 if len(names) > MAX_NUMBERED else MAX_NUMBERED)
    ax = ax or _figure(size + 0.4, size).subplots()
    _matrix(ax, counts, names)
    wrong = len(true) - int(np.trace(counts))
    ax.set_title(f"{wrong:,} of {len(true):,} wrong ({100 * wrong / len(true):.2f} %)", fontsize="medium")
    return ax


def _matrix(ax: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    from matplotlib.colors import PowerNorm

    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    norm = PowerNorm(0.4, vmin=0.0, vmax=1.0)
    image = ax.imshow(shares, cmap="gray_r", norm=norm)
    if len(names) <= MAX_NUMBERED:
        for row, column in np.argwhere(counts):
            tone = "white" if norm(shares[row, column]) > 0.5 else "black"
            # narrower digits for long numbers, so that they stay in their cells
            text = str(counts[row, column])
            size = min(9.0, 34.0 / len(text))
            ax.text(column, row, text, ha="center", va="center", color=tone, fontsize=size)
    elif (figure := ax.get_figure()) is not None:
        figure.colorbar(image, ax=ax, label="share of the true class", shrink=0.8)
    every = -(-len(names) // MAX_NUMBERED)
    ticks = range(0, len(names), every)
    shown = [_short(names[i]) for i in ticks]
    tilted = max(map(len, shown)) > 3
    ax.set_xticks(ticks, shown, rotation=45 if tilted else 0, ha="right" if tilted else "center")
    ax.set_yticks(ticks, shown)
    ax.tick_params(length=0)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")


def mistakes(
    x: ArrayLike,
    y_true: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] = (28, 28),
    count: int = 25,
) -> list[Axes]:
    """Draw the wrong predictions that the network was surest of, the surest first.

    Parameters
    ----------
    x : (n, I) real
        The images, a row each; the lowest value is drawn white, as paper, the highest black.
    y_true : (n,) int
        Their classes.
    probabilities : (n, K) float
        What `fastmlp.MLP.predict_proba` returned.
    class_names : sequence of str, optional
        The numbers of the classes when not given.
    image_shape : (height, width)
        Of an image.
    count : int
        How many to draw at most.

    Returns
    -------
    list of Axes
        One for each image; a single one that says so where no prediction is wrong.
    """
    inputs, true, given = np.asarray(x), np.asarray(y_true), np.asarray(probabilities)
    if given.ndim != 2 or not len(inputs) == len(true) == len(given) > 0:
        raise ValueError(
            "mistakes: expected as many images, classes and rows of probabilities (n, K), at least one; got "
            f"{inputs.shape}, {true.shape}, {given.shape}"
        )
    height, width = image_shape
    if inputs[0].size != height * width:
        raise ValueError(
            f"mistakes: images of {height}x{width} have {height * width} values, these have {inputs[0].size}"
        )
    names = _class_names("mistakes", class_names, max(given.shape[1] - 1, int(true.max())))
    predicted = given.argmax(axis=1)
    sure = given[np.arange(len(given)), predicted]
    wrong = np.flatnonzero(predicted != true)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:count]
    if not len(worst):
        ax: Axes = _figure(4.0, 1.0).subplots()
        ax.text(0.5, 0.5, f"all {len(true):,} predictions are right", ha="center", va="center")
        ax.set_axis_off()
        return [ax]
    columns = int(np.ceil(np.sqrt(len(worst))))
    rows = -(-len(worst) // columns)
    figure = _figure(1.5 * columns, 1.8 * rows + 0.4)
    figure.suptitle(
        f"the {len(worst)} surest of {len(wrong):,} wrong predictions among {len(true):,}", fontsize="medium"
    )
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in grid:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("0.7")
    for ax, i in zip(grid, worst, strict=False):
        ax.imshow(inputs[i].reshape(height, width), cmap="gray_r", interpolation="nearest")
        text = f"true {_short(names[true[i]])}, predicted\n{_short(names[predicted[i]])} ({100 * sure[i]:.1f} %)"
        ax.set_title(text, fontsize="small")
    for ax in grid[len(worst) :]:
        ax.remove()
    return grid[: len(worst)]


def save(drawn: Figure | Axes | Sequence[Axes], path: str | PathLike[str]) -> None:
    """Write a picture as PNG or SVG, as its name says; the file appears whole or not at all.

    Parameters
    ----------
    drawn : Figure, Axes or sequence of Axes
        A figure, or what one of the functions here returned: the whole figure that it is in is written.
    path : path
        Its name ends in ``.png`` or ``.svg``.
    """
    kind = fspath(path).lower().rpartition(".")[2]
    if kind not in ("png", "svg"):
        raise ValueError(f"save: the name of a picture ends in .png or .svg, got {fspath(path)!r}")
    first: Any = drawn if hasattr(drawn, "get_figure") or hasattr(drawn, "savefig") else drawn[0]
    figure = first if hasattr(first, "savefig") else first.get_figure()
    with atomic_writer(path) as file:
        # without a date the same run gives the same picture
        figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {})


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] != "matplotlib":
            raise
        raise MissingMatplotlibError(
            'pictures need matplotlib, which is not installed: pip install "fastmlp[plot]"', name=e.name
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def _class_names(who: str, names: Sequence[str] | None, highest: int) -> list[str]:
    if names is None:
        return [str(i) for i in range(highest + 1)]
    if len(names) <= highest:
        raise ValueError(f"{who}: there are classes up to {highest}, but only {len(names)} class_names")
    return [str(name) for name in names]


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
