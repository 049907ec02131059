"""Random features: a fixed map of the inputs after which a linear model can do what it could not do before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from fastmlp.arguments import check_count, check_number, check_sequence
from fastmlp.backends.foreign import refuse_masked
from fastmlp.floating import quiet
from fastmlp.model import MLP


class RandomFourierFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Random Fourier features ``phi(x) = cos(x W + b)``, W and b drawn once and fixed (Rahimi, Recht 2007).

    W is normal with variance ``2 gamma``, b uniform in [0, 2 pi).  Then ``2 / D * phi(x) . phi(x')`` tends to the
    Gaussian kernel ``exp(-gamma |x - x'|^2)`` as the number D of features grows, so that a linear model of them comes
    close to one with that kernel.  A scikit-learn transformer; `network` gives the same map as the frozen first layer
    of a network.

    Parameters
    ----------
    n_components : int
        Number of features, D.
    gamma : float or "scale"
        Positive, in 1 / (units of x)^2: large for functions that vary fast.  ``"scale"``: ``1 / (I * variance of
        x)``, I the number of inputs, as in scikit-learn's support vector machines.
    random_state : int, RandomState or None
        Of W and b.

    Attributes
    ----------
    weights_ : (I, D) float64
        W.
    offset_ : (D,) float64
        b.
    gamma_ : float
        As given, or found.
    n_features_in_ : int
        I.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from fastmlp.features import RandomFourierFeatures
    >>> x = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    >>> y = (x**2).sum(axis=1) < 0.5
    >>> model = make_pipeline(RandomFourierFeatures(100, gamma=2.0, random_state=0), LogisticRegression())
    >>> bool(model.fit(x, y).score(x, y) > 0.95)
    True
    """

    def __init__(self, n_components: int = 100, *, gamma: float | str = "scale", random_state: Any = None) -> None:
        self.n_components = n_components
        self.gamma = gamma
        self.random_state = random_state

    @quiet
    def fit(self, X: ArrayLike, y: object = None) -> Self:  # noqa: N803 - scikit-learn's name
        """Draw the projection for inputs like these.

        Parameters
        ----------
        X : (n, I) array_like
            Of it only the number of columns and, for ``gamma="scale"``, the variance counts.
        y : ignored
            There for pipelines.

        Raises
        ------
        ValueError, TypeError
            An argument does not make sense.
        """
        refuse_masked("X", X)
        x = validate_data(self, X, dtype=(np.float64, np.float32))
        components = check_count("n_components", self.n_components)
        if components >= 2**31:
            raise ValueError(f"n_components must be below 2**31, got {self.n_components!r}")
        self.gamma_: float = self._gamma(x)
        random = check_random_state(self.random_state)
        shape = (x.shape[1], components)
        self.weights_: NDArray[np.float64] = random.normal(scale=np.sqrt(2 * self.gamma_), size=shape)
        self.offset_: NDArray[np.float64] = random.uniform(0, 2 * np.pi, size=shape[1])
        return self

    @quiet
    def transform(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """Return ``cos(X W + b)``.

        Parameters
        ----------
        X : (n, I) array_like

        Returns
        -------
        (n, D) float
            float32 for float32 inputs, else float64.
        """
        check_is_fitted(self)
        refuse_masked("X", X)
        x = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        z: NDArray[Any] = x @ self.weights_.astype(x.dtype)
        z += self.offset_.astype(x.dtype)
        np.cos(z, out=z)
        return z

    @quiet
    def network(self, units: Sequence[int], *, activation: str | Sequence[str] = "relu", **options: Any) -> MLP:
        """Return a network whose first layer is this map, frozen.

        Parameters
        ----------
        units : sequence of int
            What follows the features: ``(10,)`` is a linear model of them with ten outputs, ``(32, 10)`` has a hidden
            layer.
        activation : str or sequence of str
            Of the layers after the first, as for `fastmlp.MLP`.
        **options
            More arguments of `fastmlp.MLP`, such as ``loss``, ``backend``, ``seed``.

        Returns
        -------
        MLP
            Of the units (I, D) and then `units`.  ``unfreeze(0)`` lets the projection train too.

        Raises
        ------
        NotFittedError
            There is no projection yet.
        ValueError, TypeError
            An argument does not make sense.
        """
        check_is_fitted(self)
        following = check_sequence("network: units", units, "a sequence such as (10,)")
        if not following:
            raise ValueError("network: units needs the number of outputs at least, such as (10,); got ()")
        if isinstance(activation, str):
            rest = [activation] * (len(following) - 1)
        else:
            rest = check_sequence("network: activation", activation, "a name, or a sequence of one a layer")
        inputs, features = self.weights_.shape
        model = MLP((inputs, features, *following), activation=("cos", *rest), **options)
        model.set_weights([self.weights_, self.offset_, *model.get_weights()[2:]])
        model.freeze(0)
        return model

    def _gamma(self, x: NDArray[Any]) -> float:
        if isinstance(self.gamma, str) and self.gamma == "scale":
            if x.min() == x.max():
                return 1.0  # inputs that are all equal give no scale
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                variance = float(x.var(dtype=np.float64))
            if not np.finfo(np.float64).tiny <= variance < math.inf:
                raise ValueError(
                    f"gamma: 'scale' needs the variance of X, which float64 does not hold (from {x.min():.3g} to "
                    f"{x.max():.3g}); scale X"
                )
            return 1.0 / (int(x.shape[1]) * variance)
        return check_number("gamma", self.gamma, 0.0, above=True, also='or "scale"')

    @property
    def _n_features_out(self) -> int:
        features: int = self.weights_.shape[1]
        return features

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
