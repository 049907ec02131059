"""What becomes of numbers: scikit-learn's scalers as arrays that a file holds, in one pass over a block of columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Columns = NDArray[np.intp] | slice
_EDGE = 1e-7 - np.spacing(1)
"""How near to 0 and 1 a quantile is taken before the normal distribution is asked for it; scikit-learn's."""


class Scale(Protocol):
    """A map of numbers, column by column."""

    def apply(self, values: NDArray[np.float64], at: Columns) -> NDArray[np.float64]:
        """Return finite values (n, m), of the columns `at`, as the network takes them."""

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return what a file keeps, by name."""


@dataclass(frozen=True, eq=False)
class Affine:
    """``(x - center) / scale``.

    Attributes
    ----------
    center, scale : (M,) float64
        The scale of a column that was constant is infinite: what it holds later means nothing.
    """

    names: ClassVar[tuple[str, ...]] = ("center", "scale")

    center: NDArray[np.float64]
    scale: NDArray[np.float64]

    def apply(self, values: NDArray[np.float64], at: Columns) -> NDArray[np.float64]:
        """Return finite values (n, m), of the columns `at`, scaled."""
        found: NDArray[np.float64] = values - self.center[at]
        found /= self.scale[at]
        return found

    def folded(self, w: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the weights (M, O) and biases of a layer that takes what is not scaled: ``x (W/s) + (b - c W/s)``."""
        weights = w.astype(np.float64) / self.scale[:, None]
        return weights, b.astype(np.float64) - self.center @ weights

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return what a file keeps, by name."""
        return {"center": self.center, "scale": self.scale}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], columns: int) -> Self:
        """Return what a file kept; ValueError where that makes no sense."""
        center, scale = (_checked(name, arrays[name], (columns,)) for name in cls.names)
        if not np.isfinite(center).all() or not (scale > 0).all():
            raise ValueError("center must be finite, and scale above 0")
        return cls(center, scale)


@dataclass(frozen=True, eq=False)
class Quantiles:
    """The normal distribution's quantile of the part of the training rows that was below ``x``.

    Linear between the quantiles that are known, as scikit-learn's `QuantileTransformer` has it; what lies at the
    ends or beyond is the end, whatever the unit of the column.

    Attributes
    ----------
    quantiles : (Q, M) float64
        Of each column, at Q evenly spaced parts from 0 to 1.
    """

    names: ClassVar[tuple[str, ...]] = ("quantiles",)

    quantiles: NDArray[np.float64]

    def apply(self, values: NDArray[np.float64], at: Columns) -> NDArray[np.float64]:
        """Return finite values (n, m), of the columns `at`, as quantiles."""
        from scipy.special import ndtri

        chosen = self.quantiles[:, at]
        parts, found = np.linspace(0, 1, len(chosen)), np.empty(values.shape)
        for i in range(values.shape[1]):
            x, known = values[:, i], chosen[:, i]
            if known[0] == known[-1]:
                found[:, i] = 0.5  # what was constant in training means nothing
                continue
            # of a value that many rows had, the middle of their parts
            rising, falling = np.interp(x, known, parts), np.interp(-x, -known[::-1], -parts[::-1])
            found[:, i] = 0.5 * (rising - falling)
            found[x >= known[-1], i], found[x <= known[0], i] = 1.0, 0.0
        np.clip(found, _EDGE, 1 - _EDGE, out=found)
        turned: NDArray[np.float64] = ndtri(found)
        return turned

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return what a file keeps, by name."""
        return {"quantiles": self.quantiles}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], columns: int) -> Self:
        """Return what a file kept; ValueError where that makes no sense."""
        (quantiles,) = (arrays[name] for name in cls.names)
        quantiles = _checked("quantiles", quantiles, (len(quantiles) if quantiles.ndim else 0, columns))
        if len(quantiles) == 0 or not np.isfinite(quantiles).all() or (np.diff(quantiles, axis=0) < 0).any():
            raise ValueError("quantiles must be finite, and not fall")
        return cls(quantiles)


SCALES: dict[str, type[Affine] | type[Quantiles]] = {"standard": Affine, "robust": Affine, "quantile": Quantiles}
"""What each kind of preprocessing makes of numbers."""


def _checked(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    if array.dtype != np.float64 or array.shape != shape:
        raise ValueError(f"{name} must be float64 of the shape {shape}, got {array.dtype} of {array.shape}")
    return array
