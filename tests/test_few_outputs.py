"""Products of up to four outputs in the Numba backend, and some more: sums along the inputs, and rows of W'."""

import numpy as np
import pytest

numba = pytest.importorskip("numba")
if numba.config.DISABLE_JIT:
    pytest.skip("the JIT is off, and NumPy multiplies", allow_module_level=True)

from fastmlp.kernels.cpu import compiling, dots, few, packing, products, vectors  # noqa: E402

from fastmlp import get_backend  # noqa: E402

if len(products.available_forms()) == 1:
    pytest.skip("this processor has no tiles", allow_module_level=True)

dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
OUTPUTS = (1, 2, 3, 4, 5)


def multiply(form, which, x, w, d, index, out_columns):
    """Return one of the three products for the rows of x that an index finds, and hold what it must not write to."""
    from fastmlp.kernels.cpu.codes import FORMS
    from fastmlp.kernels.cpu.operations import product

    get_backend("numba")  # binds the BLAS
    code, dtype, rows = FORMS.index(form), w.dtype, len(index)
    inputs, outputs = w.shape
    size = products.scratch_size(code, packing.panel_width(dtype), rows, inputs, outputs)
    scratch, out = np.full(size + 1000, 7.5, dtype), np.full(rows * out_columns + 1000, np.nan, dtype)
    product(code, which, 1, x.ravel(), w.ravel(), d.ravel(), rows, inputs, outputs, index, out, scratch[:size])
    assert (scratch[size:] == 7.5).all() and np.isnan(out[rows * out_columns :]).all()
    return out[: rows * out_columns].reshape(rows, out_columns)


def lanes_of(dtype):
    return vectors.VECTOR_BYTES // np.dtype(dtype).itemsize


@dtypes
def test_forward_sums_along_the_inputs(dtype):
    """A vector of inputs, less, and some more; whole tiles of rows and not; rows by an index, beside NaN."""
    rng, lanes = np.random.default_rng(0), lanes_of(dtype)
    for outputs in OUTPUTS:
        for inputs in (lanes // 2, lanes - 1, lanes, lanes + 1, 2 * lanes - 1, 2 * lanes, 3 * lanes + 2, 100):
            for rows in (1, 2, 3, 4, 5, 8, 9, 17):
                x, w = rng.normal(size=(40, inputs)).astype(dtype), rng.normal(size=(inputs, outputs)).astype(dtype)
                index = rng.permutation(40)[:rows]
                wanted = x[index].astype(float) @ w
                others = np.setdiff1d(np.arange(40), index)
                x[others] = np.nan
                found = multiply("direct", 0, x, w, w, index, outputs)
                np.testing.assert_allclose(found, wanted, atol=200 * np.finfo(dtype).eps)


@dtypes
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_a_row_forward_has_the_same_bits_beside_any_others_and_in_any_form(outputs, dtype):
    rng, inputs = np.random.default_rng(0), 5 * lanes_of(dtype) + 3
    x, w = rng.normal(size=(23, inputs)).astype(dtype), rng.normal(size=(inputs, outputs)).astype(dtype)
    together = multiply("direct", 0, x, w, w, np.arange(23), outputs)
    assert (multiply("packed", 0, x, w, w, np.arange(23), outputs) == together).all()
    for row in range(23):
        assert (multiply("direct", 0, x, w, w, np.array([row]), outputs) == together[row]).all()


@dtypes
@pytest.mark.parametrize("outputs", (1, 2, 4))
def test_an_infinite_input_is_counted_once(outputs, dtype):
    """The last vector goes over some of the inputs again, by which nothing may be multiplied."""
    lanes = lanes_of(dtype)
    inputs = 2 * lanes + 1
    for place in range(inputs):
        x, w = np.ones((8, inputs), dtype), np.ones((inputs, outputs), dtype)
        x[3, place] = np.inf
        found = multiply("direct", 0, x, w, w, np.arange(8), outputs)
        assert (found[3] == np.inf).all() and (np.delete(found, 3, 0) == inputs).all()


@dtypes
@pytest.mark.parametrize("form", ["direct", "packed"])
def test_gradients_of_the_inputs_row_by_row(form, dtype):
    """Fewer inputs than a vector has, as many, some more, and more than pass by at once."""
    rng, lanes = np.random.default_rng(0), lanes_of(dtype)
    most = few.ROWS_BYTES // np.dtype(dtype).itemsize
    for outputs in OUTPUTS:
        many = most // outputs
        for inputs in (
            lanes - 1,
            lanes,
            lanes + 1,
            3 * lanes,
            3 * lanes + 5,
            many,
            many + 1,
            many + lanes,
            2 * many + 3,
        ):
            for rows in (1, 2, 9):
                d, w = rng.normal(size=(rows, outputs)).astype(dtype), rng.normal(size=(inputs, outputs)).astype(dtype)
                found = multiply(form, 1, d, w, d, np.arange(rows), inputs)
                np.testing.assert_allclose(found, d.astype(float) @ w.T, atol=20 * np.finfo(dtype).eps)


@dtypes
@pytest.mark.parametrize("count", (2, 3, 4))
def test_transposes_of_a_few_columns_and_into_them(count, dtype):
    @numba.njit(**compiling.WHOLE)
    def transposed(source, rows, columns, out):
        packing.transpose(source, 0, columns, rows, columns, out, 0, rows)

    rng = np.random.default_rng(0)
    for long in (1, 2, 7, 8, 33, 100):
        for shape in ((long, count), (count, long)):
            source, out = rng.normal(size=shape).astype(dtype), np.full(shape[::-1], np.nan, dtype)
            transposed(source.ravel(), *shape, out.ravel())
            assert (out == source.T).all()


def test_where_sums_along_the_inputs_pay():
    """Up to four outputs, where a vector has twice as many numbers, of no fewer inputs than a vector has."""
    are = dots.are_dots.py_func
    assert are(16, 1, 16) and not are(15, 1, 16) and are(16, 4, 16) and are(100, 4, 8)
    assert not are(16, 3, 16) and are(32, 3, 16)  # three take as long as four
    assert not are(100, 5, 16) and not are(100, 3, 4) and are(100, 2, 4)
