"""Holding arrays against each other with a tolerance that is a formula, and the cases that several files share."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

from fastmlp.formulas.losses import LOSSES, Huber, Quantile, SoftmaxCrossEntropy
from fastmlp.formulas.optimizers import OPTIMIZERS, SGD, Adam, RMSprop

DTYPES = ("float32", "float64")
# one row and one feature, one of the two, few of both, and 7 x 41: no multiple of any vector width
SHAPES = ((1, 1), (1, 5), (6, 1), (3, 4), (7, 41))


def assert_close(actual, expected, *, dtype=None, k=1, scale=None, c=4.0, what="values"):
    """Assert ``|actual - expected| <= c * eps(dtype) * sqrt(k) * scale`` for each element.

    Parameters
    ----------
    actual, expected : array_like
        Of one shape; `expected` is taken as exact.  Where it is not finite, `actual` must be the same.
    dtype : optional
        The type computed in; that of `actual` when not given.
    k : int
        Length of the longest reduction.
    scale : array_like
        Size of the terms that rounding acts on; the largest magnitude in `expected` when not given.
    c : float
        Roundings an element takes, about.
    what : str
        What is compared, for the message.
    """
    a = np.asarray(actual)
    dtype = np.dtype(dtype if dtype is not None else a.dtype)
    a, b = a.astype(np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    if a.size == 0:
        return
    if scale is None:
        scale = np.abs(np.where(np.isfinite(b), b, 0.0)).max()
    tolerance = np.broadcast_to(c * np.finfo(dtype).eps * np.sqrt(k) * np.asarray(scale, np.float64), b.shape)
    exact = ~np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(a - b))
    good = np.where(exact, same, error <= tolerance)  # a NaN error compares false
    if good.all():
        return
    with np.errstate(over="ignore"):  # where nothing but equality will do, the tolerance is 0
        excess = np.where(np.isnan(error), np.inf, error) / np.maximum(tolerance, np.finfo(np.float64).tiny)
    excess = np.where(good, -1, excess)
    worst = np.unravel_index(int(np.argmax(excess)), b.shape)
    raise AssertionError(
        f"{what}: {np.count_nonzero(~good)} of {good.size} elements are off; shape {b.shape}, dtype {dtype}; "
        f"worst at {tuple(int(i) for i in worst)}: got {a[worst]!r}, expected {b[worst]!r}, "
        f"error {error[worst]:.3g} against tolerance {tolerance[worst]:.3g}"
    )


def assert_same_bits(actual, expected, what="values"):
    """Assert that two arrays have one type, one shape and the same bytes."""
    a, b = np.ascontiguousarray(actual), np.ascontiguousarray(expected)
    assert (a.dtype, a.shape) == (b.dtype, b.shape), f"{what}: {a.dtype}{a.shape}, expected {b.dtype}{b.shape}"
    different = np.argwhere(a != b)
    assert a.tobytes() == b.tobytes(), f"{what}: {len(different)} of {a.size} elements differ, first at {different[:1]}"


@contextlib.contextmanager
def unchanged(backend, *arrays):
    """Assert that the arrays hold the same bytes after the block as before."""
    before = [np.array(backend.to_numpy(a)) for a in arrays]
    yield
    for i, (old, array) in enumerate(zip(before, arrays, strict=True)):
        assert_same_bits(backend.to_numpy(array), old, f"argument {i}, which must not change")


def on(backend, array, dtype=None):
    """Return a copy of an array on a backend, in its own memory."""
    return backend.copy(np.asarray(array, dtype=dtype))


def spread(backend, array):
    """Return the values of an array in a non-contiguous array of the backend: every other row and column."""
    array = np.asarray(array)
    view = backend.zeros(tuple(2 * n for n in array.shape), array.dtype)[(slice(None, None, 2),) * array.ndim]
    view[...] = backend.asarray(array)
    return view


def unset(backend, shape, dtype):
    """Return an array full of NaN, which nothing that is computed may show."""
    array = backend.empty(shape, np.dtype(dtype))
    array[...] = np.nan
    return array


def pair(backend, like):
    """Return scratch memory for an operation on an array: two of its kind, full of NaN."""
    return unset(backend, like.shape, like.dtype), unset(backend, like.shape, like.dtype)


def normal(shape, dtype, seed=0, size=1.0):
    """Return normal numbers of mean 0 and standard deviation `size`, the same for a seed."""
    return (size * np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def covers(*operations):
    """Mark a test as the one of these operations of a backend; `test_operations.py` looks for those without one."""
    return lambda test: test


def oracle_of(table, name, kind):
    """Return the slow form of an item, or fail with what is to be done."""
    if name not in table:
        pytest.fail(f"{kind} {name!r} has no oracle: write its slow form into tests/oracle.py")
    return table[name]


def optimizer_records():
    """Return a record of every optimizer there is, and those whose parameters change the formula."""
    return [
        *(OPTIMIZERS.record(name) for name in OPTIMIZERS.names()),
        SGD(momentum=0.9),
        SGD(momentum=0.9, nesterov=True),
        Adam(beta1=0.5, beta2=0.9, epsilon=1e-3),
        RMSprop(momentum=0.5),
    ]


def loss_records():
    """Return a record of every loss there is, and those whose parameters change the formula."""
    return [LOSSES.record(name) for name in LOSSES.names()] + [
        SoftmaxCrossEntropy(label_smoothing=0.1),
        Huber(delta=0.3),
        Quantile(0.9),
    ]


def targets_for(loss, rows, outputs, rng, soft=False):
    """Return targets that suit a loss: labels (n,), or values (n, K) in float64."""
    if loss.takes_labels:
        if not soft:
            return rng.integers(0, outputs, rows)
        t = rng.uniform(size=(rows, outputs))
        return t / t.sum(axis=1, keepdims=True)
    if loss.name == "sigmoid_cross_entropy":
        certain = rng.integers(0, 2, (rows, outputs)).astype(np.float64)
        return np.where(rng.uniform(size=certain.shape) < 0.5, certain, rng.uniform(size=certain.shape))
    if loss.name == "poisson":
        return rng.poisson(2.0, (rows, outputs)).astype(np.float64)
    if loss.name == "mean_squared_logarithmic_error":
        return rng.exponential(2.0, (rows, outputs))
    return rng.normal(size=(rows, outputs))
