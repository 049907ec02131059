"""The scaling of a run of the command line: its features by a `Preprocessing`, the values to learn by their moments."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.datasets.words import Kind
from fastmlp.errors import DataError
from fastmlp.preprocessing.record import Preprocessing
from fastmlp.preprocessing.scales import Affine

if TYPE_CHECKING:
    from fastmlp.model import MLP

MAX_RATIO = 10_000
"""Of a column's mean to its deviation; beyond it the weights of the saved model lose too many digits in float32."""
MAX_WEIGHT = 2.0**10
"""Up to which the weights of a network trained on scaled rows must be held in the units of the file too."""


def kinds_of(made: Preprocessing | None) -> bool | list[Kind]:
    """Return as what the columns of a CSV file are to be read for a model that has this; `raw` of `load_table`."""
    if made is None:
        return False
    kinds = [Kind(None)] * made.columns
    for column in made.numbers:
        kinds[column] = Kind("number")
    for categories in made.categories:
        kinds[categories.column] = Kind(categories.holds, categories.known)
    return kinds


@dataclass(frozen=True)
class Scaling:
    """Features scaled for the training, and the target of a regression with mean 0 and standard deviation 1.

    Attributes
    ----------
    features : Preprocessing
    target : Affine or None
        That of a constant target has the scale 1.
    names : sequence of str
        Of the columns.
    """

    features: Preprocessing
    target: Affine | None
    names: Sequence[str]

    @classmethod
    def of(
        cls,
        rows: tuple[NDArray[Any], NDArray[Any]],
        kind: str,
        with_target: bool,
        names: Sequence[str],
        seed: int = 0,
    ) -> Scaling:
        """Return the scaling of some rows, of one of the kinds of `fit_preprocessing`."""
        from fastmlp.preprocessing.fitting import fit_preprocessing  # and with it scikit-learn, which takes its time

        x, y = rows
        features = fit_preprocessing(x, kind, argument="x", names=names, random_state=seed % 2**32)
        if not with_target:
            return cls(features, None, names)
        found = fit_preprocessing(y.reshape(len(y), -1), "standard", argument="y").affine
        assert found is not None, "there are numbers alone"
        return cls(features, Affine(found.center, np.where(np.isinf(found.scale), 1.0, found.scale)), names)

    def apply(self, x: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return scaled copies, float64."""
        if self.target is not None:
            y = self.target.apply(y.reshape(len(y), -1), slice(None))
        return self.features.transform(x, names=self.names), y

    def check_held(self, dtype: np.dtype[Any], data: str, squared: bool) -> None:
        """Raise DataError where the network's type is likely not to hold the weights that `fold` makes, or the loss.

        Parameters
        ----------
        dtype : numpy.dtype
        data : str
            What the columns are of, for messages.
        squared : bool
            Whether the loss is of the square of the target's unit.

        Warns
        -----
        UserWarning
            A column varies by so little of its size that the weights lose digits.
        """
        limits, affine = np.finfo(dtype), self.features.affine
        low, high = MAX_WEIGHT / float(limits.max), 1 / (MAX_WEIGHT * float(limits.tiny))
        bounds = (math.sqrt(low), math.sqrt(high)) if squared else (low, high)
        of_features = [] if affine is None else list(zip(self.names, affine.scale, strict=True))
        checked = [(f"column {name!r}", scale, low, high) for name, scale in of_features if np.isfinite(scale)]
        checked += [] if self.target is None else [("the target", scale, *bounds) for scale in self.target.scale]
        what = "range between the quartiles" if self.features.kind == "robust" else "standard deviation"
        for who, scale, least, most in checked:
            if not least <= scale <= most:
                cure = "" if dtype == np.float64 else ", or use --dtype float64"
                measure = "standard deviation" if who == "the target" else what
                raise DataError(
                    f"{data}: the {measure} of {who} is {scale:.3g}, and a {dtype} network can be scaled "
                    f"by {least:.1g} to {most:.1g}; take another unit for it{cure}"
                )
        if affine is None or dtype != np.float32:
            return
        ratios = np.abs(affine.center) / affine.scale
        if ratios.max() > MAX_RATIO:
            warnings.warn(
                f"column {self.names[int(ratios.argmax())]!r} varies by less than a {MAX_RATIO:,}th of its size, which "
                "leaves few of the digits of float32: subtract a constant from it, or use --dtype float64",
                stacklevel=3,
            )

    def fold(self, model: MLP) -> None:
        """Change a network trained on scaled rows so that it takes and gives the original units.

        What is a product and a sum for each column goes into the first layer; anything else the model keeps as its
        preprocessing.  The last layer is multiplied by the deviation of the target and moved by its mean, its outputs
        being linear.

        Raises
        ------
        DataError
            A weight is more than the network's type holds; the network is as it was.
        """
        weights, affine = [array.astype(np.float64) for array in model.get_weights()], self.features.affine
        if affine is not None:
            weights[:2] = affine.folded(*weights[:2])
        if self.target is not None:
            each = model.spec.loss.outputs_per_target  # which stand beside each other
            scale, center = (array.repeat(each) for array in (self.target.scale, self.target.center))
            weights[-2] *= scale
            weights[-1] = weights[-1] * scale + center
        try:
            model.set_weights(weights)
        except ValueError as e:
            raise DataError(
                f"the network cannot be saved in the units of the file: {e}; take others for the columns, or use "
                "--dtype float64"
            ) from None
        if affine is None:
            model.preprocessing = self.features
