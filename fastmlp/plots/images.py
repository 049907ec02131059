"""Pictures of images: what a network takes them for, and the weights with which it looks at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_count
from fastmlp.backends.foreign import host_array
from fastmlp.floating import quiet
from fastmlp.model import MLP
from fastmlp.plots.checks import class_numbers, finite, names_of_classes, several_axes, shape_of_images, short
from fastmlp.plots.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES_A_LETTER = 0.085
"""Of a title: so wide a figure is at least."""


@quiet
def mistakes(
    x: ArrayLike,
    y_true: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] = (28, 28),
    count: int = 25,
    *,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw the wrong predictions that the network was surest of, the surest first.

    Parameters
    ----------
    x : (n, I) real
        The images, a row each; the lowest value is drawn white, as paper, the highest black.
    y_true : (n,) int
        Their classes.
    probabilities : (n, K) float
        What `fastmlp.MLP.predict_proba` returned; (n, 1) for two classes.
    class_names : sequence of str, optional
        The numbers of the classes when not given.
    image_shape : (height, width)
        Of an image.
    count : int
        How many to draw at most.
    axes : sequence of Axes, optional
        Where to draw, one for each image; those left over are hidden.

    Returns
    -------
    list of Axes
        One for each image; a single one that says so where no prediction is wrong.

    Raises
    ------
    ValueError, TypeError
        Images, classes and probabilities differ in number, are none, or are not what they should be; or there are
        fewer axes than images.
    """
    count = check_count("count", count)
    images, true, given, names = _checked("mistakes", x, y_true, probabilities, class_names, image_shape)
    predicted, sure = given.argmax(axis=1), given.max(axis=1)
    wrong = np.flatnonzero(predicted != true)
    worst = wrong[np.argsort(-sure[wrong], kind="stable")][:count]
    if not len(worst):
        ax: Axes = new_figure(4.0, 1.0).subplots() if axes is None else several_axes("mistakes", axes)[0]
        ax.text(0.5, 0.5, f"all {len(true):,} predictions are right", ha="center", va="center")
        ax.set_axis_off()
        return [ax]
    grid = _grid(
        [images[i] for i in worst],
        f"the {len(worst)} surest of {len(wrong):,} wrong predictions among {len(true):,}",
        columns=int(np.ceil(np.sqrt(len(worst)))),
        size=(1.5, 1.8),
        axes=axes,
    )
    for ax, i in zip(grid, worst, strict=True):
        text = f"true {short(names[true[i]])}, predicted\n{short(names[predicted[i]])} ({100 * sure[i]:.1f} %)"
        ax.set_title(text, fontsize="small", parse_math=False)
    return grid


@quiet
def samples(
    x: ArrayLike,
    y_true: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str] | None = None,
    image_shape: Sequence[int] = (28, 28),
    columns: int = 20,
    *,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw images with what they are taken for and how surely; wrong ones stand out by a black ground and frame.

    Parameters
    ----------
    x, y_true, probabilities, class_names, image_shape
        As for `mistakes`; all images are drawn, so give some of them.
    columns : int
        Images in a row.
    axes : sequence of Axes, optional
        As for `mistakes`.

    Returns
    -------
    list of Axes
        One for each image.

    Raises
    ------
    ValueError, TypeError
        As for `mistakes`.
    """
    columns = check_count("columns", columns)
    images, true, given, names = _checked("samples", x, y_true, probabilities, class_names, image_shape)
    predicted, sure = given.argmax(axis=1), given.max(axis=1)
    right = int((predicted == true).sum())
    title = f"{right} of {len(true)} right; each with what it is taken for and how surely"
    grid = _grid(images, title, columns=min(columns, len(images)), size=(0.62, 0.75), axes=axes)
    for ax, t, p, s in zip(grid, true, predicted, sure, strict=True):
        ax.set_title(f"{short(names[p])}  {100 * s:.0f} %", fontsize=6.5, pad=2, parse_math=False)
        if p != t:
            ax.images[0].set_cmap("gray")
            ax.spines[:].set(color="black", linewidth=2.5)
            wrong = f"not {short(names[p])}: {short(names[t])}"
            ax.set_title(wrong, fontsize=6.5, pad=2, fontweight="bold", parse_math=False)
    return grid


@quiet
def first_layer(
    weights: MLP | ArrayLike,
    image_shape: Sequence[int] = (28, 28),
    count: int = 32,
    columns: int = 8,
    *,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw what the units of the first layer look for: the weights into each as an image.

    Parameters
    ----------
    weights : MLP, fitted estimator with ``coefs_``, or (I, O) float
        A network, or the weights of its first layer.
    image_shape : (height, width)
        Of the inputs.
    count : int
        Units to draw at most: those with the largest weights, in their order.
    columns : int
        Images in a row.
    axes : sequence of Axes, optional
        As for `mistakes`.

    Returns
    -------
    list of Axes
        One for each unit.  Grey is 0, black the largest weight and white as far below 0, for each unit by itself.

    Raises
    ------
    ValueError, TypeError
        The weights are not finite or do not belong to such images, or there are fewer axes than units.
    """
    count, columns = check_count("count", count), check_count("columns", columns)
    if isinstance(weights, list | tuple) and weights and np.ndim(weights[0]) == 2:
        weights = weights[0]  # all that `MLP.get_weights` returned
    given: Any = weights
    if isinstance(given, MLP):
        given = given.get_weights()[0]
    elif hasattr(type(given), "coefs_") or hasattr(given, "coefs_"):
        given = given.coefs_[0]
    w = finite("first_layer", "weights", given)
    height, width = shape_of_images("first_layer", image_shape)
    if w.ndim != 2 or len(w) != height * width:
        raise ValueError(
            f"first_layer: for images of {height}x{width} expected weights ({height * width}, units), got {w.shape}"
        )
    units = np.sort(np.argsort(-np.square(w).sum(axis=0), kind="stable")[:count])
    title = f"weights into {len(units)} of {w.shape[1]} units" if len(units) < w.shape[1] else "weights into each unit"
    images = [w[:, unit].reshape(height, width) for unit in units]
    grid = _grid(
        images, f"{title}: black adds, white takes away", columns=min(columns, len(units)), size=(0.95, 0.95), axes=axes
    )
    for ax, image in zip(grid, images, strict=True):
        largest = max(float(np.abs(image).max()), float(np.finfo(np.float32).tiny))
        ax.images[0].set_clim(-largest, largest)
    return grid


def _checked(
    who: str,
    x: ArrayLike,
    y_true: ArrayLike,
    probabilities: ArrayLike,
    class_names: Sequence[str] | None,
    image_shape: Sequence[int],
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[str]]:
    """Return images (n, height, width), classes, probabilities and the names of the classes."""
    inputs, true = host_array(x, f"{who}: x"), host_array(y_true, f"{who}: y_true")
    given = finite(who, "probabilities", probabilities)
    if inputs.dtype.kind not in "biuf":
        raise TypeError(f"{who}: x must be real numbers, got {inputs.dtype}")
    if given.ndim != 2 or true.ndim != 1 or not inputs.ndim or not len(inputs) == len(true) == len(given) > 0:
        raise ValueError(
            f"{who}: expected as many images, classes (n,) and rows of probabilities (n, K), at least one; got "
            f"{inputs.shape}, {true.shape}, {given.shape}"
        )
    true = class_numbers(who, "y_true", true)
    height, width = shape_of_images(who, image_shape)
    if inputs[0].size != height * width:
        raise ValueError(f"{who}: images of {height}x{width} have {height * width} values, these have {inputs[0].size}")
    if given.shape[1] == 1:  # of one sigmoid output
        given = np.concatenate([1 - given, given], axis=1)
    names = names_of_classes(who, class_names, max(given.shape[1] - 1, int(true.max())))
    return inputs.reshape(len(inputs), height, width), true, given, names


def _grid(
    images: Sequence[NDArray[Any]] | NDArray[Any],
    title: str,
    columns: int,
    size: tuple[float, float],
    axes: Sequence[Axes] | None,
) -> list[Axes]:
    """Draw images, on axes given or in a new figure, each of that size in inches; return an axes for each."""
    if axes is None:
        rows = -(-len(images) // columns)
        figure = new_figure(max(size[0] * columns, INCHES_A_LETTER * len(title)), size[1] * rows + 0.4)
        figure.suptitle(title, fontsize="medium")
        drawn = list(figure.subplots(rows, columns, squeeze=False).flat)
        for ax in drawn[len(images) :]:
            ax.remove()
        drawn = drawn[: len(images)]
    else:
        drawn = several_axes("axes", axes)
    if len(drawn) < len(images):
        raise ValueError(f"axes: {len(images)} images need as many axes, got {len(drawn)}")
    for ax, image in zip(drawn, images, strict=False):
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("0.7")
        ax.imshow(image, cmap="gray_r", interpolation="nearest")
    for ax in drawn[len(images) :]:
        ax.set_axis_off()
    return drawn[: len(images)]
