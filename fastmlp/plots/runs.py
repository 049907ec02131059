"""Pictures of runs: their figures epoch by epoch, lines side by side, which classes are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_choice
from fastmlp.backends.foreign import host_array
from fastmlp.engine.history import History
from fastmlp.floating import quiet
from fastmlp.plots.checks import class_numbers, names_of_classes, one_axes, several_axes, short, words
from fastmlp.plots.pictures import legend_of_lines, line_style, marks_every, new_figure, plain_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_NUMBERED = 25
"""Classes up to which the confusion matrix has room for numbers."""


@quiet
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

    Raises
    ------
    ValueError, TypeError
        There is no history, it has no epochs, its figures are not (n,), or there are too few axes.
    """
    figures = history.history if isinstance(history, History) else history
    if not isinstance(figures, Mapping):
        raise TypeError(f"curves: history must be what fit returned, or its .history, got {history!r}")
    shown = [name for name in ("loss", "accuracy") if len(figures.get(name, ()))]
    if not shown:
        raise ValueError("curves: the history has no epochs yet, so there is nothing to draw")
    width = 4.2 * len(shown)
    given = new_figure(width, 3.2).subplots(1, len(shown), squeeze=False) if axes is None else axes
    drawn = several_axes("curves", given)
    if len(drawn) < len(shown):
        raise ValueError(f"curves: needs axes for {' and '.join(shown)}, got {len(drawn)}")
    for ax, name in zip(drawn, shown, strict=False):
        _curve(ax, name, figures)
    return drawn[: len(shown)]


def _curve(ax: Axes, name: str, figures: Mapping[str, Sequence[float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    # an accuracy is shown as the percentage that people quote
    factor, form = (100.0, "{:.2f} %") if name == "accuracy" else (1.0, "{:.4g}")
    for i, (label, key) in enumerate([("training", name), ("validation", f"val_{name}")]):
        values = factor * np.asarray(figures.get(key, ()), np.float64)
        if values.ndim != 1:
            raise ValueError(f"curves: {key} must be a number for each epoch, (n,), got {values.shape}")
        if len(values):
            epochs = np.arange(1, len(values) + 1)
            last = form.format(values[-1])
            ax.plot(epochs, values, label=f"{label}, last {last}", markevery=marks_every(len(values)), **line_style(i))
    ax.set_xlabel("epoch")
    ax.set_ylabel("accuracy (%)" if name == "accuracy" else "loss")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_frame(ax)
    legend_of_lines(ax)


@quiet
def lines(
    series: Mapping[str, ArrayLike | tuple[ArrayLike, ArrayLike]],
    *,
    xlabel: str = "epoch",
    ylabel: str = "",
    xscale: str = "linear",
    yscale: str = "linear",
    ax: Axes | None = None,
) -> Axes:
    """Draw lines that are told apart without colour, such as one figure of several runs.

    Parameters
    ----------
    series : mapping
        For each line, by its label: values, which are then counted from 1, or (positions, values).
    xlabel, ylabel : str
    xscale, yscale : {"linear", "log"}
    ax : Axes, optional
        Where to draw.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError, TypeError
        There is no line, or one whose values are not (n,) numbers, n at least 1, with as many positions.
    """
    from matplotlib.ticker import MaxNLocator

    if not isinstance(series, Mapping):
        raise TypeError(f'lines: series must give the lines by their labels, such as {{"a": [1, 2]}}, got {series!r}')
    if not series:
        raise ValueError("lines: series is empty, so there is nothing to draw")
    words("lines", xlabel=xlabel, ylabel=ylabel)
    for argument, scale in (("xscale", xscale), ("yscale", yscale)):
        check_choice(f"lines: {argument}", scale, ("linear", "log"))
    found = {label: _line(label, given) for label, given in series.items()}
    ax = new_figure(4.6, 3.4).subplots() if ax is None else one_axes("lines", ax)
    for i, (label, (positions, values)) in enumerate(found.items()):
        ax.plot(positions, values, label=label, markevery=marks_every(len(values)), **line_style(i))
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    if xscale == "linear" and all(
        np.all(np.mod(np.asarray(line.get_xdata(), np.float64), 1) == 0) for line in ax.lines
    ):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no epoch 2.5
    plain_frame(ax)
    legend_of_lines(ax)
    return ax


def _line(label: str, given: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the positions and the values of a line."""
    pair = isinstance(given, tuple) and len(given) == 2
    values = host_array(given[1] if pair else given, f"lines: {label!r}")
    positions = host_array(given[0], f"lines: {label!r}") if pair else 1 + np.arange(values.size)
    if values.ndim != 1 or not values.size or positions.shape != values.shape:
        raise ValueError(
            f"lines: {label!r} needs (n,) values, n at least 1, and as many positions; got {values.shape} and "
            f"{positions.shape}"
        )
    for array in (positions, values):
        if array.dtype.kind not in "biuf":
            raise TypeError(f"lines: {label!r} must be real numbers, got {array.dtype}")
    return positions, values


@quiet
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

    Returns
    -------
    Axes

    Raises
    ------
    ValueError, TypeError
        The two differ in shape or are empty, hold something else than classes, or some class has no name.
    """
    true, predicted = host_array(y_true, "confusion: y_true"), host_array(y_predicted, "confusion: y_predicted")
    if true.ndim != 1 or true.shape != predicted.shape or len(true) == 0:
        raise ValueError(
            f"confusion: expected two (n,) arrays of classes, n at least 1; got {true.shape}, {predicted.shape}"
        )
    true = class_numbers("confusion", "y_true", true)
    predicted = class_numbers("confusion", "y_predicted", predicted)
    highest = int(max(true.max(), predicted.max()))
    names = names_of_classes("confusion", class_names, highest)
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (true, predicted), 1)
    size = 2.0 + 0.42 * min(len(names), 15 if len(names) > MAX_NUMBERED else MAX_NUMBERED)
    ax = new_figure(size + 0.4, size).subplots() if ax is None else one_axes("confusion", ax)
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
    shown = [short(names[i]) for i in ticks]
    tilted = max(map(len, shown)) > 3
    angle, side = (45, "right") if tilted else (0, "center")
    ax.set_xticks(ticks, shown, rotation=angle, ha=side, parse_math=False)
    ax.set_yticks(ticks, shown, parse_math=False)
    ax.tick_params(length=0)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
