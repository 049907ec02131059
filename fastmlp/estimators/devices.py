"""Arrays on a GPU in an estimator: X stays where it is, and what scikit-learn checks number by number comes here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

from fastmlp.backends.foreign import lies_on_gpu, refuse_masked

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.engine.learner import Learner


class OnDevices:
    """What an estimator takes, wherever it lies.

    Subclasses have `predict`, and `_backend`, which returns where a network to come runs.
    """

    _learner: Learner
    predict: Any

    def _backend(self) -> Backend:
        raise NotImplementedError

    def _on_host(self, array: Any, argument: str, begins: bool = False) -> Any:
        """Return an array of a GPU as NumPy's, and anything else as it is.

        Parameters
        ----------
        array : array of any library
        argument : str
        begins : bool
            Whether the network is still to come.
        """
        refuse_masked(argument, array)
        if not lies_on_gpu(array):
            return array
        backend = self._backend() if begins else self._learner.backend
        return backend.to_numpy(backend.take(array, argument))

    def _validated(self, X: Any, *y: Any, reset: bool, **options: Any) -> Any:
        """Return what scikit-learn's `validate_data` returns.

        X on a GPU is an array of the backend, floating, whose numbers nobody has looked at: `Learner.data` does.
        """
        options = {"accept_sparse": ["csr", "csc"], "dtype": (np.float64, np.float32), "reset": reset, **options}
        targets = [self._on_host(array, "y", reset) for array in y]
        refuse_masked("X", X)
        if not lies_on_gpu(X):
            return validate_data(self, X, *targets, **options)
        backend = self._backend() if reset else self._learner.backend
        there: Any = backend.take(X, "X")
        if there.dtype.kind in "biu" or there.dtype.itemsize < 4:  # bytes are numbers here, as scikit-learn has it
            with backend.placed():
                there = there.astype(np.promote_types(there.dtype, np.float32))
        like = np.broadcast_to(np.float32(0), there.shape)  # takes no memory
        found = validate_data(self, like, *targets, ensure_all_finite=False, **options)
        return (there, found[1]) if y else there

    def _predicted(self, X: Any) -> NDArray[Any]:
        """Return what is predicted, on the host."""
        found: NDArray[Any] = self._on_host(self.predict(X), "X")
        return found
