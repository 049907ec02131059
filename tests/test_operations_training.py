"""Losses, and the parts of a training step, do on every backend what the slow oracle does."""

import math

import numpy as np
import oracle
import pytest
from compare import (
    DTYPES,
    SHAPES,
    assert_close,
    assert_same_bits,
    covers,
    loss_records,
    normal,
    on,
    optimizer_records,
    oracle_of,
    pair,
    spread,
    targets_for,
    unchanged,
    unset,
)

from fastmlp.backends.session import CHUNK
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import StepScalars

dtypes = pytest.mark.parametrize("dtype", DTYPES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
losses = pytest.mark.parametrize("loss", loss_records(), ids=repr)
targets_too = pytest.mark.parametrize(
    ("loss", "soft"),
    [(loss, False) for loss in loss_records()]
    + [(loss, True) for loss in loss_records() if loss.name == "softmax_cross_entropy"],
    ids=lambda value: {True: "soft", False: "plain"}.get(value) or repr(value),
)


# --- losses ---------------------------------------------------------------------------------------------------------


@covers("loss")
@targets_too
@dtypes
@shapes
@pytest.mark.parametrize(
    ("weighted", "layout"),  # weights or none, in either layout; by default each once
    [
        (True, spread),
        (False, on),
        pytest.param(True, on, marks=pytest.mark.thorough),
        pytest.param(False, spread, marks=pytest.mark.thorough),
    ],
)
def test_losses_give_rows_and_weighted_gradient(backend, dtype, shape, loss, weighted, soft, layout):
    compute = oracle_of(oracle.LOSSES, loss.name, "loss")
    (n, k), rng = shape, np.random.default_rng(len(loss.name))
    if loss.takes_labels and k == 1:
        k = 2
    z = normal((n, k), dtype, 5, size=2.0)
    t = targets_for(loss, n, k, rng, soft) * (rng.uniform(0.5, 1.5) if soft else 1)  # rows need not sum to 1
    t = t if t.ndim == 1 else t.astype(dtype)
    w = rng.uniform(0, 2, n).astype(dtype) if weighted else None
    outputs, targets = layout(backend, z), layout(backend, t)
    weights = None if w is None else layout(backend, w)
    d, rows = unset(backend, (n, k), dtype), unset(backend, (n,), dtype)
    with unchanged(backend, outputs, targets, *([] if weights is None else [weights])):
        backend.loss(loss, outputs, targets, weights, 0.25, d, rows, pair(backend, d))
    expected = [compute(loss, zr, tr) for zr, tr in zip(z.tolist(), t.tolist(), strict=True)]
    factor = [0.25 * (1.0 if w is None else float(w[i])) for i in range(n)]
    gradients = [[f * g for g in row[1]] for f, row in zip(factor, expected, strict=True)]
    size = 1 + np.abs(z).max() + np.exp(np.abs(z)).max() * (loss.name == "poisson") + np.abs(t).max() ** 2
    assert_close(backend.to_numpy(rows), [row[0] for row in expected], k=k, scale=size, c=8, what="row losses")
    size = np.multiply(size, factor)[:, None]
    assert_close(backend.to_numpy(d), gradients, k=k, scale=size, c=8, what="gradient")


@covers("loss")
@dtypes
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "sigmoid_cross_entropy"])
def test_cross_entropies_of_huge_logits_are_finite_and_right(backend, dtype, name):
    loss = LOSSES.record(name)
    z = np.array([[500.0, -500.0], [-3e4, 3e4], [1e4, 1e4]], dtype)
    t = np.array([1, 1, 0]) if loss.takes_labels else np.array([[0, 1], [0, 1], [1, 0]], dtype)
    d, rows = unset(backend, z.shape, dtype), unset(backend, (3,), dtype)
    backend.loss(loss, on(backend, z), on(backend, t), None, 1.0, d, rows, pair(backend, d))
    expected = [oracle.LOSSES[name](loss, zr, tr) for zr, tr in zip(z.tolist(), t.tolist(), strict=True)]
    assert_close(backend.to_numpy(rows), [e[0] for e in expected], c=8)
    assert_close(backend.to_numpy(d), [e[1] for e in expected], scale=1, c=8)


@covers("loss")
@losses
@dtypes
def test_losses_of_nan_are_nan_in_their_row_alone(backend, dtype, loss):
    z = normal((4, 3), dtype)
    z[2, 1] = np.nan
    t = targets_for(loss, 4, 3, np.random.default_rng(0))
    t = np.array([0, 1, 1, 2]) if t.ndim == 1 else t.astype(dtype)
    d, rows = unset(backend, z.shape, dtype), unset(backend, (4,), dtype)
    with np.errstate(invalid="ignore"):
        backend.loss(loss, on(backend, z), on(backend, t), None, 1.0, d, rows, pair(backend, d))
    assert np.isnan(backend.to_numpy(rows)).tolist() == [False, False, True, False]
    assert np.isfinite(backend.to_numpy(d)[[0, 1, 3]]).all()


@covers("hits")
@targets_too
@dtypes
@shapes
def test_hits_tell_which_rows_are_right(backend, dtype, shape, loss, soft):
    (n, k), rng = shape, np.random.default_rng(1)
    k = max(k, 2) if loss.takes_labels else k
    z, t = normal((n, k), dtype), targets_for(loss, n, k, rng, soft)
    t = t if t.ndim == 1 else t.astype(dtype)
    outputs, targets, out = on(backend, z), on(backend, t), unset(backend, (n,), dtype)
    with unchanged(backend, outputs, targets):
        backend.hits(loss, outputs, targets, out)
    expected = [oracle.hit(loss.name, zr, tr) for zr, tr in zip(z.tolist(), t.tolist(), strict=True)]
    assert_close(backend.to_numpy(out), expected, scale=1, c=1)


@covers("totals")
@dtypes
@pytest.mark.parametrize("rows", [1, 3, 41])
@pytest.mark.parametrize("weighted", [True, False])
def test_totals_are_summed_in_float64(backend, dtype, rows, weighted):
    stats = np.abs(normal((2, rows + 3), dtype, 1))
    weights = np.abs(normal((rows,), dtype, 2))
    weights[0] = 0
    given, w = on(backend, stats)[:, :rows], on(backend, weights) if weighted else None
    with unchanged(backend, given):
        out = backend.empty((3,), np.dtype("f8"))
        backend.totals(given, w, out)
    found = backend.to_numpy(out)
    w = weights.tolist() if weighted else [1.0] * rows
    expected = [
        math.fsum(u * v for u, v in zip(w, column, strict=True))
        for column in (stats[0, :rows].tolist(), [1.0] * rows, stats[1, :rows].tolist())
    ]
    assert_close(found, expected, dtype="float64", k=rows)


# --- training -------------------------------------------------------------------------------------------------------


@covers("add_scaled", "squared_norm", "scale")
@dtypes
@pytest.mark.parametrize("size", [1, 41, CHUNK + 3])
def test_flat_arrays_are_added_scaled_and_measured(backend, dtype, size):
    target, source = normal((size,), dtype, 1), normal((size,), dtype, 2)
    t, s = on(backend, target), on(backend, source)
    with unchanged(backend, s):
        backend.add_scaled(t, s, 0.3, unset(backend, (size,), dtype))
        norm = backend.squared_norm(s)
    pairs = list(zip(target.tolist(), source.tolist(), strict=True))
    scale = np.abs(target.astype("f8")) + np.abs(source)
    assert_close(backend.to_numpy(t), [a + 0.3 * b for a, b in pairs], scale=scale, c=2)
    assert type(norm) is float
    assert_close(norm, math.fsum(b * b for _, b in pairs), dtype=dtype, k=min(size, CHUNK))
    backend.scale(s, 0.3)
    assert_close(backend.to_numpy(s), [0.3 * b for _, b in pairs], scale=np.abs(source), c=2)


@dtypes
@pytest.mark.parametrize("size", [1, 41, CHUNK + 3])
def test_flat_arrays_are_added_with_one_rounding(backend, dtype, size):
    target, source = normal((size,), dtype, 1), normal((size,), dtype, 2)
    t, s = on(backend, target), on(backend, source)
    with unchanged(backend, s):
        backend.add(t, s)
    assert_same_bits(backend.to_numpy(t), target + source)


@covers("update")
@pytest.mark.parametrize("optimizer", optimizer_records(), ids=repr)
@dtypes
@pytest.mark.parametrize("size", [1, 41, CHUNK + 3])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_updates_follow_the_papers_step_by_step(backend, dtype, optimizer, size, decay):
    oracle_of(oracle.OPTIMIZERS, optimizer.name, "optimizer")
    looked_at = sorted({0, size // 2, size - 1} | set(range(min(size, 8))))
    params = normal((size,), dtype, 1)
    steps = [oracle.OPTIMIZERS[optimizer.name](optimizer) for _ in looked_at]
    expected = [float(params[i]) for i in looked_at]
    p, moments = (
        on(backend, params),
        [backend.zeros((size,), params.dtype) for _ in range(optimizer.moments)],
    )
    scratch = unset(backend, (max(size, CHUNK),), dtype)
    rates = np.array([0.1, 0.05, 0.0, 0.2, 0.1])
    table = optimizer.table(rates, 0, np.ones(5))
    for t, (rate, row) in enumerate(zip(rates, table.tolist(), strict=True), start=1):
        g = normal((size,), dtype, 10 + t)
        backend.update(optimizer, p, on(backend, g), moments, decay, StepScalars(*row), scratch)
        shrunk = [v * (1 - rate * decay) for v in expected]
        expected = [step(v, float(g[i]), rate, t) for step, v, i in zip(steps, shrunk, looked_at, strict=True)]
        # errors of the steps so far add up; a step of RMSprop is at most rate / sqrt(1 - rho) long
        assert_close(backend.to_numpy(p)[looked_at], expected, k=t, scale=1 + np.abs(expected), c=8)


@covers("update")
@dtypes
def test_updates_leave_zeros_zero(backend, dtype):
    for optimizer in optimizer_records():
        arrays = [backend.zeros((41,), np.dtype(dtype)) for _ in range(2 + optimizer.moments)]
        backend.update(
            optimizer,
            arrays[0],
            arrays[1],
            arrays[2:],
            0.1,
            StepScalars(0.1),
            unset(backend, (CHUNK,), dtype),
        )
        assert all((backend.to_numpy(a) == 0).all() for a in arrays)


@covers("max_norm")
@dtypes
@shapes
def test_max_norm_shortens_long_columns_and_no_others(backend, dtype, shape):
    w = normal(shape, dtype, 4)
    w[:, 0] = 0  # no direction
    norms = np.sqrt((w.astype("f8") ** 2).sum(axis=0))
    limit = float(np.median(norms)) or 0.5
    limit = limit if (np.abs(norms - limit) > 1e-3).all() else limit * 0.99
    out = on(backend, w)
    backend.max_norm(out, limit)
    out = backend.to_numpy(out)
    expected = np.array(oracle.max_norm(w.tolist(), limit))
    assert_close(out, expected, k=shape[0], scale=np.abs(expected))
    assert_same_bits(out[:, norms <= limit], w[:, norms <= limit])


@covers("average")
@dtypes
@pytest.mark.parametrize("size", [1, 41, CHUNK + 3])
def test_average_moves_towards_the_parameters(backend, dtype, size):
    mean, p = normal((size,), dtype, 1), normal((size,), dtype, 2)
    m, given = on(backend, mean), on(backend, p)
    with unchanged(backend, given):
        backend.average(m, given, 0.9, unset(backend, (CHUNK,), dtype))
    pairs = zip(mean.tolist(), p.tolist(), strict=True)
    expected = [0.9 * a + 0.1 * b for a, b in pairs]
    assert_close(backend.to_numpy(m), expected, scale=np.abs(mean.astype("f8")) + np.abs(p))
