"""Users' arrays, checked once where they enter: inputs, targets, row and class weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_names, check_sequence
from fastmlp.backends.data import HostData
from fastmlp.backends.foreign import host_array, refuse_gpu, refuse_masked
from fastmlp.backends.sparse import SparseRows
from fastmlp.engine.inputs import InputRules, as_trained, in_order, names_of
from fastmlp.engine.ranges import check_held
from fastmlp.engine.row_weights import check_sample_weight, in_range
from fastmlp.errors import DataError
from fastmlp.floating import quiet

if TYPE_CHECKING:
    from fastmlp._typing import Array
    from fastmlp.backends.base import Backend
    from fastmlp.formulas.losses import Loss
    from fastmlp.network.layout import Layout
    from fastmlp.network.spec import NetworkSpec
    from fastmlp.network.state import TrainState


SOON = 1 << 20
"""Numbers that are looked at in any case: that takes a tenth of a millisecond."""


def check_inputs(
    x: ArrayLike,
    features: int,
    backend: Backend,
    rules: InputRules,
    *,
    argument: str = "x",
    training: bool = False,
    may_wait: bool = True,
    later: bool = False,
) -> Array:
    """Return inputs as an (n, features) array in C order, copied only where its layout asks for it.

    What lies on a GPU stays there, as an array of the backend, in whatever layout it has.  To look at its values means
    to wait for the GPU, so where that must not be (`may_wait`) they are taken as they are.  To look at millions of
    numbers takes as long as some networks take for them: where the caller does that `later`, if a result is not finite,
    they are not looked at here.  The columns of a data frame are brought into the order of the network's inputs, and
    numbers to the scale that `as_trained` tells; where the network has a preprocessing, that makes its inputs.  SciPy's
    sparse matrices and arrays become `SparseRows`.

    Raises
    ------
    DataError
        Wrong shape or type, a value that is NaN or infinite, or a number that the network's type cannot hold (for
        `training`: a column of such); the message says what was got, what was expected and the cure.
    """
    if hasattr(x, "toarray") and rules.preprocessing is None:
        return _check_sparse(x, features, backend, rules, argument, training)
    x = in_order(x, rules.names, argument)
    if rules.preprocessing is not None:
        return _preprocessed(x, rules, argument)
    there = backend.take(x, argument)
    array = host_array(x, argument) if there is None else there
    _check_real(array.dtype, argument)
    if array.ndim != 2:
        if array.ndim == 0:
            cure = "pass a two-dimensional array"
        elif array.ndim > 1:
            cure = f"reshape it to ({len(array)}, -1)"
        elif features == 1:
            method = "to_frame()" if hasattr(x, "to_frame") else "reshape(-1, 1)"
            cure = f"examples of one input are {argument}.{method}"
        else:
            cure = f"one example is {argument}.reshape(1, -1)"
        raise DataError(f"{argument} must have shape (n, {features}), got {array.shape}; {cure}")
    _check_width(array.shape, features, argument)
    if (there is None or may_wait) and not (later and len(array) * features > SOON):
        refuse_nonfinite(array, backend, argument)
    if there is not None:
        if may_wait:
            check_held(there, rules.dtype, argument, training=training, names=rules.names, to_numpy=backend.to_numpy)
        return as_trained(there, rules, argument, may_look=may_wait)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    rows = np.require(array, requirements=["C", "A"])
    check_held(rows, rules.dtype, argument, training=training, names=rules.names)
    return _not_wider(as_trained(rows, rules, argument), rules.dtype)


@quiet
def _not_wider(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers in a type where theirs is wider than float64, which no device has."""
    return array.astype(dtype) if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array


def _preprocessed(x: Any, rules: InputRules, argument: str) -> NDArray[Any]:
    """Return the inputs that a network's preprocessing makes of raw rows."""
    assert rules.preprocessing is not None
    refuse_gpu(argument, x, "where preprocess works")
    refuse_masked(argument, x)
    return rules.preprocessing.transform(x, argument, rules.names, rules.dtype)


def _check_real(dtype: np.dtype[Any], argument: str) -> None:
    if dtype.kind not in "biuf":
        raise DataError(
            f"{argument} must hold real numbers, got dtype {dtype}; convert it, e.g. {argument}.astype('float32')"
        )


def _check_width(shape: tuple[int, ...], features: int, argument: str) -> None:
    if len(shape) != 2 or shape[1] != features:
        raise DataError(
            f"{argument} must have shape (n, {features}), because the network has {features} inputs; got {shape}"
        )


def _check_sparse(
    x: Any, features: int, backend: Backend, rules: InputRules, argument: str, training: bool
) -> SparseRows:
    """Return sparse inputs, whose numbers are looked at where they lie, in a type that batches can have.

    That is the network's, or bytes where they are pixels.  Errors as of `check_inputs`.
    """
    if not SparseRows.can_hold(x):
        raise DataError(f"{argument} must be an array, or a sparse one of SciPy, got {type(x).__name__}")
    _check_real(x.dtype, argument)
    _check_width(x.shape, features, argument)
    rows = SparseRows(x)
    refuse_nonfinite(rows, backend, argument)
    if len(rows) and rows.dtype.kind == "f" and rows.dtype.itemsize > rules.dtype.itemsize:
        try:
            check_held(rows.largest(), rules.dtype, argument, training=training, names=rules.names)
        except DataError:
            for column in range(features):  # which row it is, found column by column
                name: list[Any] = [column if rules.names is None else rules.names[column]]
                numbers = rows.matrix[:, [column]].toarray()
                check_held(numbers, rules.dtype, argument, training=training, names=name)
            raise
    if len(rows):
        numbers = np.concatenate([rows.range()[::-1], rows.matrix.data[:, None]])  # zeros are of the range too
        taken = as_trained(numbers, rules, argument)
        rows = rows if taken is numbers else rows.with_numbers(taken[2:, 0])
    return rows if rows.dtype == np.uint8 else rows.astype(rules.dtype)


def refuse_nonfinite(inputs: Array, backend: Backend, argument: str, rows: NDArray[np.intp] | None = None) -> None:
    """Raise DataError where inputs (n, I) hold NaN or infinity; `rows` are the user's own numbers of their rows."""
    if isinstance(inputs, SparseRows):
        numbers, most = np.arange(len(inputs)) if rows is None else rows, inputs.at_once(1)
        sound = np.isfinite(inputs.matrix.data).all()
        for start in range(0, 0 if sound else len(inputs), most):  # which it is
            part = slice(start, start + most)
            refuse_nonfinite(inputs[part], backend, argument, numbers[part])
        return
    if inputs.dtype.kind == "f" and (at := nonfinite_at(inputs, backend)) is not None:
        row = at[0] if rows is None else int(rows[at[0]])
        raise DataError(
            f"{argument} must be finite, got {float(inputs[at])} in row {row}, column {at[1]}; remove or fill in "
            "missing values",
            row=row,
        )


@quiet
def nonfinite_at(array: Array, backend: Backend) -> tuple[int, ...] | None:
    """Return where the first value is that is NaN or infinite; None where there is none.  One pass, without a copy."""
    # one such value makes the sum one; a sum that overflows is looked into
    if isinstance(array, np.ndarray):
        if math.isfinite(np.add.reduce(array, axis=None)):
            return None
    else:
        with backend.placed():
            if math.isfinite(float(array.sum())):
                return None
    found = np.argwhere(~np.isfinite(array if isinstance(array, np.ndarray) else backend.to_numpy(array)))
    return tuple(found[0].tolist()) if len(found) else None


def check_outputs(loss: Loss, outputs: Array, inputs: Array, backend: Backend, dtype: np.dtype[Any]) -> None:
    """Raise DataError where an output of the network is NaN or infinite, and inputs are or no class follows from it.

    Parameters
    ----------
    loss : Loss
        One that predicts values lets them pass where inputs are finite: they say themselves what they are.
    outputs : (n, K) float
    inputs : (n, I)
    backend : Backend
    dtype : numpy.dtype
        In which the network computes.
    """
    at = nonfinite_at(outputs, backend)
    if at is not None:
        refuse_nonfinite(inputs, backend, "x")
    if at is not None and loss.has_accuracy:
        wider = " or use dtype='float64'" if dtype == np.float32 else ""
        raise DataError(
            f"x: output {at[1]} of the network is {float(outputs[at])} for row {at[0]}, whose inputs are finite but "
            f"too large for {dtype} and these weights; scale the inputs as those of training{wider}",
            row=at[0],
        )


def check_data(
    spec: NetworkSpec,
    rules: InputRules,
    x: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    *,
    backend: Backend,
    suffix: str = "",
    training: bool = False,
    later: bool = False,
) -> HostData:
    """Return data fit for a network, or raise DataError saying what is wrong with which argument.

    Parameters
    ----------
    spec : NetworkSpec
    rules : InputRules
        What the network knows of its inputs.
    x : (n, I) array_like
    y : (n,) or (n, K) array_like
    sample_weight : (n,) array_like, optional
    backend : Backend
        Where the model is: arrays that lie there too stay there.
    suffix : str
        Appended to the names of the arguments in messages.
    training : bool
        Whether columns that the network's type loses are refused.
    later : bool
        See `check_inputs`.
    """
    dtype = rules.dtype
    inputs = check_inputs(x, spec.units[0], backend, rules, argument=f"x{suffix}", training=training, later=later)
    if len(inputs) == 0:
        raise DataError(f"x{suffix} has no rows; at least one is needed")
    given, y_there = _on_host(y, backend, f"y{suffix}")
    targets = given
    if targets.ndim == 0 or len(targets) != len(inputs):
        count = "a single value" if targets.ndim == 0 else f"{len(targets)}"
        raise DataError(f"x{suffix} has {len(inputs)} rows and y{suffix} {count}; they must have as many")
    targets = _prepared(spec, targets, f"y{suffix}")
    check_held(targets, dtype, f"y{suffix}", training=training)
    weights, weights_there = None, None
    if sample_weight is not None:
        argument = f"sample_weight{suffix}"
        values, there = _on_host(sample_weight, backend, argument)
        given_weights = check_sample_weight(values, len(inputs), argument)
        weights = in_range(given_weights, dtype, argument, "row")
        if training and spec.l2_over_rows and spec.l2 and weights is not given_weights:  # more than their ratios counts
            raise DataError(
                f"{argument}: the largest weight is {given_weights.max():.6g}, beside which alpha, that is divided by "
                "the sum of the weights, would not count as it should; multiply weights and alpha by one factor that "
                "brings them nearer to 1, or set alpha=0"
            )
        if weights is given_weights and there is not None and there.dtype == dtype:
            weights_there = there
    if targets.ndim == 2 and targets.dtype.kind != "f":
        targets = targets.astype(dtype)
    targets = _not_wider(targets, np.dtype(np.float64))  # metrics are computed of these
    if targets.shape != given.shape or targets.dtype != given.dtype or not np.shares_memory(targets, given):
        y_there = None  # it has been made into something else
    return HostData(
        inputs,
        np.require(targets, requirements=["C", "A"]),
        None if weights is None else weights.astype(dtype),
        y_there,
        weights_there,
        names=names_of(x),
    )


def _prepared(spec: NetworkSpec, y: NDArray[Any], argument: str) -> NDArray[Any]:
    """Return targets as the loss takes them; losses, a user's own too, know them as y, and errors as `argument`."""
    try:
        return spec.loss.prepare_targets(y, spec.units[-1])
    except DataError as e:
        text = str(e)
        if argument == "y" or not text.startswith("y:"):
            raise
        raise DataError(argument + text.removeprefix("y"), row=e.row) from None


def _on_host(array: Any, backend: Backend, argument: str) -> tuple[NDArray[Any], Array | None]:
    """Return what can be checked here; and the array itself, where it lies on the backend."""
    there = backend.take(array, argument)
    return (host_array(array, argument), None) if there is None else (backend.to_numpy(there), there)


@quiet
def check_weights(
    layout: Layout, dtype: np.dtype[Any], weights: Sequence[ArrayLike], *, backend: Backend
) -> NDArray[Any]:
    """Return the flat buffer of [W1 (I, O), b1 (O,), W2, ...], NumPy's.

    Raises
    ------
    ValueError
        There are too many or too few, or one has another shape or is not finite.
    """
    flat = np.zeros(layout.size, dtype)
    targets = [array for pair in layout.views(flat) for array in pair]
    arrays = check_sequence("weights", weights, "a sequence of arrays W1, b1, W2, ...")
    given = [_on_host(w, backend, "weights")[0] for w in arrays]
    if [w.shape for w in given] != [t.shape for t in targets]:
        raise ValueError(
            f"weights must be arrays of the shapes {[t.shape for t in targets]} (W1, b1, W2, ...), "
            f"got {[w.shape for w in given]}"
        )
    for i, (target, value) in enumerate(zip(targets, given, strict=True)):
        name = f"{'Wb'[i % 2]}{i // 2 + 1}"
        if value.dtype.kind not in "biuf" or not np.isfinite(value).all():
            raise ValueError(f"weights: {name} must hold finite real numbers")
        with np.errstate(over="ignore"):
            target[...] = value
        if not np.isfinite(target).all():
            raise ValueError(
                f"weights: {name} must hold numbers up to {np.finfo(dtype).max:.3g}, as {dtype} does; got "
                f"{np.abs(value).max():.6g}"
            )
    return flat


def check_snapshot(
    state: TrainState, dtype: np.dtype[Any], arrays: Mapping[str, ArrayLike], *, backend: Backend
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the flat buffers, NumPy's, of the parameters and of their average where one is kept.

    Raises
    ------
    ValueError, TypeError
        It is no snapshot of such a network, or an array is not as `check_weights` has it.
    """
    prefixes = ("",) if state.average is None else ("", "average.")
    names = [list(state.layout.named(state.params, prefix)) for prefix in prefixes]
    if not isinstance(arrays, Mapping):
        raise TypeError(f"a snapshot must be a mapping from name to array, got {type(arrays).__name__}")
    if (expected := {name for part in names for name in part}) != set(arrays):
        missing, more = sorted(expected - set(arrays)), sorted(map(str, set(arrays) - expected))
        raise ValueError(f"a snapshot of this network has other arrays: missing {missing}, not expected {more}")
    # the order of `named` is that of `check_weights`
    flat = [check_weights(state.layout, dtype, [arrays[name] for name in part], backend=backend) for part in names]
    return flat[0], flat[-1]


def check_class_names(spec: NetworkSpec, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return a name for each output, or two for a single one; None where none are given."""
    return _names("class_names", names, max(spec.units[-1], 2))


def check_feature_names(columns: int, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return a name for each column that a network is given; None where none are given."""
    return _names("feature_names", names, columns)


def _names(argument: str, names: Sequence[str] | None, expected: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    found = check_names(argument, names)
    if len(found) != expected:
        raise ValueError(f"{argument} needs {expected} names, got {len(found)}: {found!r}")
    return found
