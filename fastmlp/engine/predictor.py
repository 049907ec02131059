"""Predictions for one example at a time, at the least cost a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.backends.foreign import host_array
from fastmlp.engine.bound import Bound
from fastmlp.engine.checks import check_inputs, check_outputs
from fastmlp.engine.inputs import FULL, InputRules, in_order
from fastmlp.errors import DataError
from fastmlp.floating import quiet
from fastmlp.network.plan import Plan, Precision

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.network.spec import NetworkSpec

_ONE = "x must be one example of shape ({},), got {}; several at once are for the model's predict"


class Predictor:
    """Predicts single examples with a copy of a model's weights; made by `MLP.predictor`.

    A call costs a few microseconds beside the network's products, because memory and arguments are made ready once.
    One thread uses a predictor at a time; several threads need one each, `copy.copy` of it for example.  Inputs that
    are NaN or infinite are refused, as by `MLP.predict`, and so are outputs from which no class follows; looking costs
    a product with zeros each, well under a microsecond.

    Parameters
    ----------
    backend : Backend
    spec : NetworkSpec
    rules : InputRules
        What the network knows of its inputs.
    params : (size,) array
        Flat parameters, on that backend or the host; copied.
    """

    def __init__(self, backend: Backend, spec: NetworkSpec, rules: InputRules, params: Any) -> None:
        dtype = rules.dtype
        self._loss, self._inputs, self._dtype, self._rules = spec.loss, spec.units[0], dtype, rules
        self._as_is = rules.preprocessing is None and rules.divisor == 1
        self._backend, self._spec = backend, spec
        with backend.working():
            bound = Bound(backend, Plan(spec.deterministic(), 1, Precision.of(dtype)), backend.copy(params), 1)
        self._bound, self._x, self._out, self._run = bound, bound.x, bound.out, bound.run
        self._no_input, self._no_output = np.zeros(self._inputs, dtype), np.zeros(spec.units[-1], dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # what is bound to memory works on that memory: a copy needs its own
        with self._backend.working():
            params = self._backend.to_numpy(self._bound.params)
        return type(self), (self._backend, self._spec, self._rules, params)

    def outputs(self, x: ArrayLike) -> Array:
        """Return the outputs of the network for one example (logits where the loss takes logits).

        Parameters
        ----------
        x : (I,) array_like
            Inputs, as for `MLP.predict`.

        Returns
        -------
        (K,) array, on the GPU where x is

        Raises
        ------
        DataError
            Another shape, numbers that are not finite, or one that the network's type cannot hold.
        """
        backend = self._backend
        there = None if isinstance(x, np.ndarray) else backend.take(x, "x")
        if there is not None:
            return self._outputs_there(there)
        if self._as_is and type(x) is np.ndarray and x.shape == (self._inputs,) and x.dtype == self._dtype:
            row: NDArray[Any] = x
            if not _finite(row, self._no_input):
                check_inputs(x[None], self._inputs, backend, self._rules)
        else:
            row = self._converted(x)
        self._x[0] = row
        self._run()  # with weights of its own and memory of the host nobody's stream has to be waited for
        outputs: NDArray[Any] = self._out[0].copy()
        return outputs

    @quiet
    def _outputs_there(self, x: Array) -> Array:
        if x.ndim != 1:
            raise DataError(_ONE.format(self._inputs, x.shape))
        rows = check_inputs(x[None], self._inputs, self._backend, self._rules, may_wait=False)
        with self._backend.placed():
            out = self._backend.empty(self._out.shape, self._dtype)
        with self._backend.working():
            self._backend.predict(self._bound.session, self._bound.params, rows, out)
        return out[0]

    def __call__(self, x: ArrayLike) -> Any:
        """Return what the network predicts for one example: ``model.predict(x[None])[0]``.

        Parameters
        ----------
        x : (I,) array_like

        Returns
        -------
        numpy scalar, or (K,) array
            A class, a value, or several, as `MLP.predict` returns them, and refuses them.
        """
        outputs = self.outputs(x)
        if isinstance(outputs, np.ndarray) and not _finite(outputs, self._no_output):
            check_outputs(self._loss, outputs[None], self._x, self._backend, self._dtype)
        with self._backend.placed():
            return self._loss.predict(outputs[None])[0]

    @quiet
    def _converted(self, x: ArrayLike) -> NDArray[Any]:
        given, made = in_order(x, self._rules.names, "x", "index"), self._rules.preprocessing
        array = host_array(given, "x") if made is None else np.asarray(given, dtype=object)  # text beside numbers
        if array.ndim != 1:
            raise DataError(_ONE.format(self._inputs if made is None else made.columns, array.shape))
        row = check_inputs(array[None], self._inputs, self._backend, self._rules)[0]
        if row.dtype == np.uint8:
            row = row / self._dtype.type(FULL)
        return np.asarray(row, self._dtype)


def _finite(row: NDArray[Any], zeros: NDArray[Any]) -> bool:
    """Return whether all of a row is finite: NaN and infinity times 0 are NaN.  The cheapest look there is."""
    try:
        return bool(row.dot(zeros) == 0)
    except (FloatingPointError, RuntimeWarning):  # infinity times 0, where the caller made that an error
        return False
