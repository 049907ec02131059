"""Raw rows in: scikit-learn's checks of shapes and names, and what `preprocess` learns of columns of any kind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _check_y, check_consistent_length, check_is_fitted, validate_data

from fastmlp.backends.foreign import refuse_gpu, refuse_masked
from fastmlp.estimators.devices import OnDevices
from fastmlp.estimators.parameters import Parameters
from fastmlp.preprocessing.columns import is_frame

if TYPE_CHECKING:
    from fastmlp.engine.learner import Learner
    from fastmlp.preprocessing.record import Preprocessing


@contextmanager
def named(what: str) -> Iterator[None]:
    """Let errors of scikit-learn's checks begin with what is checked, which they call X, y or sample_weight."""
    try:
        yield
    except (ValueError, TypeError) as e:
        e.args = (f"{what}: {e}", *e.args[1:])
        raise


class Preprocessed(Parameters, OnDevices):
    """What an estimator does with X: with `preprocess` raw rows stay what they are until they come to the network."""

    _learner: Learner

    def _check_preprocess(self, begins: bool, incremental: bool) -> None:
        """Raise ValueError where training cannot begin, or go on, with this `preprocess`."""
        if begins and incremental and self.preprocess is not None:
            raise ValueError(
                f"preprocess={self.preprocess!r} is learned of many rows at once, which a first partial_fit need not "
                "have; call fit with a good part of them first, and partial_fit goes on with what that has learned"
            )
        had = None if begins or self.preprocessing_ is None else self.preprocessing_.kind
        if not begins and had != self.preprocess:
            raise ValueError(
                f"preprocess={self.preprocess!r}, and the network that training goes on with was trained with "
                f"preprocess={had!r}; set that, or use fit with warm_start=False to begin anew"
            )

    def _fit_preprocessing(self, X: Any, train: Any) -> Preprocessing | None:
        """Return what the rows that train, all or some, tell of their columns; None without `preprocess`."""
        if self.preprocess is None:
            return None
        from fastmlp.preprocessing.fitting import fit_preprocessing

        rows = X if train is None else _safe_indexing(X, train)
        drawn = copy.deepcopy(check_random_state(self.random_state))  # the weights are drawn as without it
        return fit_preprocessing(rows, self.preprocess, names=self._column_names(), random_state=drawn)

    def _column_names(self) -> tuple[str, ...] | None:
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else tuple(map(str, names))

    def _preprocess_with(self, preprocessing: Preprocessing | None) -> None:
        """Let the network make its inputs of raw rows, whose columns it then knows by their names."""
        names = None if preprocessing is None else self._column_names()
        self._learner.rules = self._learner.rules._replace(preprocessing=preprocessing, names=names)

    @property
    def preprocessing_(self) -> Preprocessing | None:
        """What `preprocess` has learned, whose `transform` returns what the network is given; None without."""
        check_is_fitted(self)
        return self._learner.rules.preprocessing

    def _validated(self, X: Any, *y: Any, reset: bool, **options: Any) -> Any:
        """Return X and y as scikit-learn checks them; raw rows stay what they are."""
        raw = self.preprocess if y else self.preprocessing_
        if raw is None:
            more = {"multi_output": True} if y else {}
            return super()._validated(X, *y, reset=reset, **more, **options)
        X = self._raw_rows(X, reset)
        if not y:
            return X
        if y[0] is None:
            raise ValueError(f"This {type(self).__name__} estimator requires y to be passed, but the target y is None.")
        targets = _check_y(self._on_host(y[0], "y", reset), multi_output=True, estimator=self, **options)
        check_consistent_length(X, targets)
        return X, targets

    def _raw_rows(self, X: Any, reset: bool) -> Any:
        """Return raw rows as a frame or an array; an error where they are sparse, or of other columns."""
        refuse_gpu("X", X, "where preprocess works")
        if hasattr(X, "toarray"):
            raise TypeError(
                "X is sparse, and preprocess moves zeros; pass X.toarray(), or use preprocess=None and scale before, "
                "with sklearn.preprocessing.MaxAbsScaler or StandardScaler(with_mean=False), which keep them"
            )
        if is_frame(X):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if X.shape[0] == 0:
                raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
            return X
        refuse_masked("X", X)
        if not hasattr(X, "dtype") and np.asarray(X).dtype.kind in "US":
            X = np.asarray(X, dtype=object)  # NumPy has made text of the numbers in a list
        finite = "allow-nan" if np.asarray(X).dtype.kind == "f" else False
        return validate_data(self, X, dtype=None, ensure_all_finite=finite, reset=reset)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        raw = self.preprocess is not None
        tags.input_tags.sparse = not raw
        tags.input_tags.allow_nan = tags.input_tags.categorical = tags.input_tags.string = raw
        return tags
