"""Every fine operation of every backend does what the slow oracle does; items and backends are found by themselves.

Losses and the parts of a training step are in `test_operations_training.py`.
"""

import ast
import math
from pathlib import Path

import numpy as np
import oracle
import pytest
from compare import (
    DTYPES,
    SHAPES,
    assert_close,
    assert_same_bits,
    covers,
    normal,
    on,
    oracle_of,
    pair,
    spread,
    unchanged,
    unset,
)

from fastmlp.backends.base import Backend
from fastmlp.formulas.activations import activation_names, get_activation
from fastmlp.formulas.losses import LOSSES
from fastmlp.formulas.optimizers import OPTIMIZERS

dtypes = pytest.mark.parametrize("dtype", DTYPES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
activations = pytest.mark.parametrize("name", activation_names())


def loop(function, array):
    """Apply a scalar function to each element."""
    return np.array([function(float(v)) for v in array.ravel()]).reshape(array.shape)


def test_every_abstract_operation_is_covered():
    covered = set()
    for path in Path(__file__).parent.glob("test_operations*.py"):
        for test in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in getattr(test, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "covers":
                    operations = {a.value for a in mark.args}
                    covered |= operations
                    for operation in operations:
                        assert f"backend.{operation}(" in ast.unparse(test), f"{test.name}: {operation}"
    assert covered == Backend.__abstractmethods__


@pytest.mark.parametrize(
    ("kind", "names", "table"),
    [
        ("activation", activation_names(), oracle.ACTIVATIONS),
        ("loss", LOSSES.names(), oracle.LOSSES),
        ("optimizer", OPTIMIZERS.names(), oracle.OPTIMIZERS),
    ],
    ids=["activations", "losses", "optimizers"],
)
def test_every_item_has_an_oracle_and_every_oracle_an_item(kind, names, table):
    for name in names:
        oracle_of(table, name, kind)
    assert set(table) == set(names)


def test_an_item_without_an_oracle_fails_with_a_message():
    with pytest.raises(pytest.fail.Exception, match=r"loss 'new' has no oracle: write its slow form"):
        oracle_of(oracle.LOSSES, "new", "loss")


# --- memory ---------------------------------------------------------------------------------------------------------


@covers("empty", "asarray", "to_numpy")
@dtypes
@shapes
def test_arrays_survive_the_way_to_a_backend_and_back(backend, dtype, shape):
    array = normal(shape, dtype)
    own = backend.empty(shape, np.dtype(dtype))
    own[...] = backend.asarray(array)
    assert_same_bits(backend.to_numpy(own), array)
    assert own.shape == shape
    copy = backend.copy(array)
    copy[...] = 0
    assert_same_bits(backend.to_numpy(own), array)
    assert not np.shares_memory(backend.to_numpy(copy), array)
    assert not backend.to_numpy(backend.zeros(shape, np.dtype(dtype))).any()


@covers("empty")
@dtypes
def test_memory_starts_at_a_multiple_of_128_bytes(backend, dtype):
    for size in (1, 3, 33, 1000):
        array = backend.empty((size,), np.dtype(dtype))
        address = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
        assert address["data"][0] % 128 == 0


# --- gather ---------------------------------------------------------------------------------------------------------


@covers("gather_rows")
@dtypes
@pytest.mark.parametrize("source_dtype", ["uint8", "int8", "int32", "int64", "uint64", "float32", "float64", "bool"])
@pytest.mark.parametrize("way", ["order", "slice"])
@pytest.mark.parametrize("layout", [on, spread])
def test_gather_rows_takes_rows_in_order_and_scales_bytes(backend, dtype, source_dtype, way, layout):
    values = np.random.default_rng(0).integers(0, 256, (9, 7)).astype(source_dtype)
    source = layout(backend, values)
    order = np.array([8, 0, 0, 3, 5, 2]) if way == "order" else np.arange(2, 8)
    index = backend.asarray(order.astype(np.intp)) if way == "order" else slice(2, 8)
    out, scratch = unset(backend, (6, 7), dtype), backend.empty((6, 7), values.dtype)
    with unchanged(backend, source, *([index] if way == "order" else [])):
        backend.gather_rows(source, index, out, None if source_dtype == dtype else scratch)
    divisor = 255 if source_dtype == "uint8" else 1
    expected = [[float(values[row, j]) / divisor for j in range(7)] for row in order]
    assert_close(backend.to_numpy(out), expected, scale=np.abs(expected), c=1)


@covers("gather_rows")
@pytest.mark.parametrize(("source_dtype", "dtype"), [("int64", "int64"), ("float64", "float32")])
def test_gather_rows_takes_labels_and_weights(backend, source_dtype, dtype):
    values = np.arange(10, 20).astype(source_dtype)
    out = backend.empty((3,), np.dtype(dtype))
    scratch = None if source_dtype == dtype else backend.empty((3,), values.dtype)
    backend.gather_rows(on(backend, values), backend.asarray(np.array([9, 0, 4], np.intp)), out, scratch)
    assert backend.to_numpy(out).tolist() == [19, 10, 14]


# --- layers ---------------------------------------------------------------------------------------------------------


@covers("dense_forward")
@dtypes
@shapes
@pytest.mark.parametrize("layout", [on, spread])
def test_dense_forward_is_x_w_plus_b(backend, dtype, shape, layout):
    outputs = shape[0] + 2
    x, w, b = normal(shape, dtype, 1), normal((shape[1], outputs), dtype, 2), normal((outputs,), dtype, 3)
    out = unset(backend, (shape[0], outputs), dtype)
    given = [layout(backend, a) for a in (x, w, b)]
    with unchanged(backend, *given):
        backend.dense_forward(*given, out)
    expected = [
        [math.fsum(float(x[n, i]) * float(w[i, o]) for i in range(shape[1])) + float(b[o]) for o in range(outputs)]
        for n in range(shape[0])
    ]
    size = np.sqrt(x.astype("f8") ** 2 @ w.astype("f8") ** 2 + b.astype("f8") ** 2)
    assert_close(backend.to_numpy(out), expected, k=shape[1] + 1, scale=size)


@covers("dense_backward")
@dtypes
@shapes
@pytest.mark.parametrize("wanted", ["dw db dx", "dw db", "dx"])
@pytest.mark.parametrize("layout", [on, spread])
def test_dense_backward_gives_the_gradients_asked_for(backend, dtype, shape, wanted, layout):
    (n, i), o = shape, shape[0] + 2
    x, dz, w = normal((n, i), dtype, 1), normal((n, o), dtype, 2), normal((i, o), dtype, 3)
    out = {
        name: unset(backend, size, dtype) if name in wanted.split() else None
        for name, size in (("dw", (i, o)), ("db", (o,)), ("dx", (n, i)))
    }
    given = [layout(backend, a) for a in (x, dz, w)]
    with unchanged(backend, *given):
        backend.dense_backward(*given, out["dw"], out["db"], out["dx"])
    x, dz, w = (a.astype("f8") for a in (x, dz, w))
    sizes = {"dw": np.sqrt((x**2).T @ dz**2), "db": np.sqrt((dz**2).sum(0)), "dx": np.sqrt(dz**2 @ (w**2).T)}
    x, dz, w = x.tolist(), dz.tolist(), w.tolist()
    expected = {
        "dw": [[math.fsum(x[m][a] * dz[m][c] for m in range(n)) for c in range(o)] for a in range(i)],
        "db": [math.fsum(dz[m][c] for m in range(n)) for c in range(o)],
        "dx": [[math.fsum(dz[m][c] * w[a][c] for c in range(o)) for a in range(i)] for m in range(n)],
    }
    for name in wanted.split():
        length = o if name == "dx" else n
        got = backend.to_numpy(out[name])
        assert_close(got, expected[name], k=length, scale=sizes[name], what=name)


@covers("activate")
@activations
@dtypes
@shapes
def test_activations_give_value_and_slope(backend, dtype, shape, name):
    value, slope_of = oracle_of(oracle.ACTIVATIONS, name, "activation")
    start = normal(shape, dtype, len(name), size=3.0)
    z, slope = on(backend, start), unset(backend, shape, dtype)
    backend.activate(name, z, slope, pair(backend, z))
    size = 1 + np.abs(start)  # products with z carry their factor's rounding, as 1 - tanh(z)^2 carries that of 1
    assert_close(backend.to_numpy(z), loop(value, start), scale=size, c=8, what=name)
    assert_close(backend.to_numpy(slope), loop(slope_of, start), scale=size, c=8, what=f"slope of {name}")
    alone = on(backend, start)
    backend.activate(name, alone, None, pair(backend, alone))
    assert_same_bits(backend.to_numpy(alone), backend.to_numpy(z), f"{name} without its slope")


@covers("activate")
@activations
@dtypes
def test_activations_hold_at_their_kinks_and_far_out(backend, dtype, name):
    value, slope_of = oracle_of(oracle.ACTIVATIONS, name, "activation")
    ends = [-1e4, -500.0, -100.0, 100.0, 500.0, 1e4] if name not in ("sin", "cos") else [-30.0, 30.0]
    start = np.array([[0.0, *get_activation(name).kinks, -1e-6, 1e-6, *ends]]).astype(dtype)
    z, slope = on(backend, start), unset(backend, start.shape, dtype)
    backend.activate(name, z, slope, pair(backend, z))
    size = 1 + np.abs(start)
    assert_close(backend.to_numpy(z), loop(value, start), scale=size, c=8, what=name)
    assert_close(backend.to_numpy(slope), loop(slope_of, start), scale=size, c=8, what=f"slope of {name}")


@covers("activate")
@pytest.mark.parametrize("name", ["sin", "cos"])
@dtypes
def test_waves_of_far_arguments_are_right(backend, dtype, name):
    value, slope_of = oracle_of(oracle.ACTIVATIONS, name, "activation")
    start = np.array([[0.5, -3e6, 1.5e7, 2.0**40]]).astype(dtype)
    z, slope = on(backend, start), unset(backend, start.shape, dtype)
    backend.activate(name, z, slope, pair(backend, z))
    assert_close(backend.to_numpy(z), loop(value, start), scale=1, c=8, what=name)
    assert_close(backend.to_numpy(slope), loop(slope_of, start), scale=1, c=8, what=f"slope of {name}")


@covers("activate")
@pytest.mark.parametrize("name", sorted(set(activation_names()) - {"cos"}))
@dtypes
def test_activations_keep_relative_accuracy_where_they_are_small(backend, dtype, name):
    value, _ = oracle_of(oracle.ACTIVATIONS, name, "activation")
    start = np.array([[-8.0, -5.0, -2.5, -1e-3, -1e-5, 1e-5, 1e-3]]).astype(dtype)
    z = on(backend, start)
    backend.activate(name, z, None, pair(backend, z))
    expected = loop(value, start)
    # the normal distribution function turns the rounding of z / sqrt(2) into z^2 / 2 times as much
    size = np.abs(expected) * (1 + start**2 / 2 * (name == "gelu"))
    assert_close(backend.to_numpy(z), expected, scale=size, c=8, what=name)


@covers("activate")
@activations
@dtypes
def test_activations_pass_nan_on_and_only_where_it_is(backend, dtype, name):
    start = normal((3, 5), dtype)
    start[1, 2] = np.nan
    z = on(backend, start)
    with np.errstate(invalid="ignore"):
        backend.activate(name, z, None, pair(backend, z))
    assert (np.isnan(backend.to_numpy(z)) == np.isnan(start)).all()


@covers("activation_backward")
@activations
@dtypes
@shapes
def test_activation_backward_multiplies_by_the_slope(backend, dtype, shape, name):
    a, d, slope = normal(shape, dtype, 1), normal(shape, dtype, 2), normal(shape, dtype, 3)
    out = on(backend, d)
    given = on(backend, a), on(backend, slope)
    with unchanged(backend, *given):
        backend.activation_backward(name, *given, out, unset(backend, shape, dtype))
    products = [float(u) * float(v) for u, v in zip(d.ravel(), slope.ravel(), strict=True)]
    expected = np.reshape(products, shape)
    assert_close(backend.to_numpy(out), expected, scale=np.abs(expected), c=1)
    if get_activation(name).slope_of_output is not None:
        function, derivative = oracle.ACTIVATIONS[name]
        out, given = on(backend, d), on(backend, loop(function, a).astype(dtype))
        with unchanged(backend, given):
            backend.activation_backward(name, given, None, out, unset(backend, shape, dtype))
        expected = d.astype("f8") * loop(derivative, a)
        assert_close(backend.to_numpy(out), expected, dtype=dtype, scale=np.abs(d), c=1)


@covers("dropout")
@dtypes
@pytest.mark.parametrize("shape", [*SHAPES, (3, 16 * 1024 + 5)], ids=str)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("with_slope", "first_row"), [(True, 0), (False, 37)])
def test_dropout_uses_the_specified_bits_and_keeps_the_mean(backend, dtype, shape, rate, with_slope, first_row):
    key, step, layer = 0xFEDCBA9876543210, 2**32 + 3, 2
    a, s = normal(shape, dtype, 1), normal(shape, dtype, 2)
    out, slope = on(backend, a), on(backend, s) if with_slope else None
    backend.dropout(out, slope, rate, key, step, layer, unset(backend, shape, dtype), first_row)
    # of long rows the ends and the seams between blocks of 4 * 4096 columns are looked at
    columns = [j for j in range(shape[1]) if j < 9 or j >= shape[1] - 9]
    rows = range(first_row, first_row + shape[0])
    factors = [[oracle.dropout_factor(rate, key, step, layer, i, j) for j in columns] for i in rows]
    for got, given in ((out, a), (slope, s))[: 1 + with_slope]:
        got, given = backend.to_numpy(got)[:, columns], given[:, columns]
        assert_close(got, given.astype("f8") * factors, scale=np.abs(given.astype("f8") * factors), c=2)
