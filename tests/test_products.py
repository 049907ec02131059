"""Matrix products of the Numba backend: tiles of registers, for every vector there is, and the BLAS."""

import itertools
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

numba = pytest.importorskip("numba")
if numba.config.DISABLE_JIT:
    pytest.skip("the JIT is off, and NumPy multiplies", allow_module_level=True)

from fastmlp.kernels.cpu import blocks, few, products  # noqa: E402

import fastmlp  # noqa: E402
from fastmlp import get_backend  # noqa: E402

# edges of a tile: rows 8 or 4, vectors of 16, 8 or 4, three of them side by side, a quarter of one
ROWS, COLUMNS, DEPTHS = (1, 2, 7, 8, 9, 25), (1, 3, 4, 5, 15, 16, 17, 31, 33, 49, 53, 67, 100), (1, 2, 15, 16, 40)


forms = pytest.mark.parametrize("form", ["blas", "direct", "packed"])


def check_products(dtype, form):
    """Hold the three products of a layer against NumPy in float64, at the edges of a tile, beside NaN outside."""
    backend, rng = get_backend("numba", products=form), np.random.default_rng(0)
    for n in ROWS:
        for o in COLUMNS:
            for i in DEPTHS:
                x, w, d = (rng.normal(size=s).astype(dtype) for s in ((n, i), (i, o), (n, o)))
                z, dw, dx, db = (np.full(s, np.nan, dtype) for s in ((n, o), (i, o), (n, i), o))
                backend.dense_forward(x, w, np.zeros(o, dtype), z)
                backend.dense_backward(x, d, w, dw, db, dx)
                x, w, d = (a.astype(float) for a in (x, w, d))
                for found, wanted, k in ((z, x @ w, i), (dw, x.T @ d, n), (dx, d @ w.T, o), (db, d.sum(0), n)):
                    error = np.abs(found - wanted).max()
                    assert error <= 8 * np.finfo(dtype).eps * k**0.5 * (1 + np.abs(wanted).max()), (n, i, o, error)


@forms
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_at_the_edges_of_a_tile(dtype, form):
    check_products(dtype, form)


@pytest.mark.other_processors
def test_products_with_the_vectors_of_avx2(tmp_path):
    if not {"avx2", "fma"} <= products.vectors.FEATURES:
        pytest.skip("this processor has no AVX2")
    if not products.vectors.MASKS:
        pytest.skip("these are the vectors of this processor, tested above")
    environment = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2"}
    check_in_a_process_of_its_own(
        tmp_path,
        environment,
        """
        assert not products.vectors.MASKS and len(products.available_forms()) == 3
        for form in ("direct", "packed"):
            test_products.check_products("float32", form)
    """,
    )


def test_a_processor_that_is_told_by_its_name_alone_has_the_hosts_vectors(tmp_path):
    """As Numba has it, which then compiles for these."""
    code = f"assert products.vectors.FEATURES == {products.vectors.FEATURES}"
    check_in_a_process_of_its_own(tmp_path, {"NUMBA_CPU_NAME": "nehalem"}, code)


@pytest.mark.other_processors
def test_without_multiply_adds_all_products_are_the_blas_s(tmp_path):
    check_in_a_process_of_its_own(
        tmp_path,
        {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": ""},
        """
        assert len(products.available_forms()) == 1
        test_products.check_products("float32", "auto")
    """,
    )


@pytest.mark.other_processors
def test_products_with_the_vectors_and_masks_of_avx512(tmp_path):
    """Longer vectors and masks are computed by what there is, slowly; the tiles are those of AVX-512."""
    if not {"avx2", "fma"} <= products.vectors.FEATURES:
        pytest.skip("this processor has no AVX2")
    check_in_a_process_of_its_own(
        tmp_path,
        {},
        """
        assert products.tiles.ROWS == 8 and products.vectors.MASKS
        for form in ("direct", "packed"):
            for dtype in ("float32", "float64"):
                test_products.check_products(dtype, form)
    """,
        avx512=True,
    )


def check_in_a_process_of_its_own(tmp_path, environment, code, avx512=False):
    head = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from fastmlp.kernels.cpu import vectors
        if sys.argv[2] == "True":
            vectors.VECTOR_BYTES, vectors.REGISTERS, vectors.MASKS = 64, 32, True
        import test_products
        from test_products import products
    """
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **environment}
    text = textwrap.dedent(head) + textwrap.dedent(code)
    command = [sys.executable, "-P", "-c", text, os.path.dirname(__file__), str(avx512)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("columns", [1, 5, 15, 16, 17, 32, 33, 64, 65, 150])
@pytest.mark.parametrize("filled", [0, 3, 20, 21, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_single_row_of_zeros_leaves_out_the_rows_it_does_not_ask_for(columns, filled, dtype):
    """From half of its 40 inputs on; gradients are summed in the update (SGD), or written down first (decay, Adam)."""
    rng = np.random.default_rng(filled)
    x = np.zeros((3, 40))
    for row in x:
        row[rng.permutation(40)[:filled]] = rng.normal(size=filled)
    for optimizer in (fastmlp.SGD(0.1), fastmlp.SGD(0.1, weight_decay=0.5), fastmlp.Adam(0.1, epsilon=0.1)):
        pair = []
        for backend in (get_backend("numba", products="direct"), get_backend("numpy")):
            model = fastmlp.MLP((40, columns, 3), activation="tanh", backend=backend, dtype=dtype, seed=0)
            model.fit(x, [0, 1, 2], epochs=3, batch_size=1, optimizer=optimizer, verbose=0)
            pair.append((*model.get_weights(), model.predict_proba(x[:1])))
        for found, wanted in zip(*pair, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5 if dtype == "float32" else 1e-13)


@forms
@pytest.mark.parametrize(
    "shape",
    [
        (5, 1300, 1000),
        (700, 300, 150),
        (400, 1100, 200),
        (1200, 130, 40),
        (300, 900, 100),
        (400, 130, 400),
        (200, 200, 2400),
        (200, 2000, 2400),
        (200, 190, 21800),
        (1300, 130, 200),
    ],
)
def test_products_of_more_than_one_block(form, shape):
    """Of rows, of depth, of panels, more than are kept: a block after the first adds to what is there."""
    backend, rng = get_backend("numba", products=form), np.random.default_rng(0)
    n, i, o = shape
    x, w, d = (rng.normal(size=s).astype("float32") for s in ((n, i), (i, o), (n, o)))
    z, dw, dx, db = (np.full(s, np.nan, "float32") for s in ((n, o), (i, o), (n, i), o))
    backend.dense_forward(x, w, np.zeros(o, "float32"), z)
    backend.dense_backward(x, d, w, dw, db, dx)
    for found, wanted in ((z, x @ w), (dw, x.T @ d), (dx, d @ w.T)):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(200, 900, 130), (9, 390, 7), (25, 1200, 53), (200, 2000, 2400)])
def test_packed_products_have_the_bits_of_direct_ones(shape, dtype):
    """Whatever the blocks: a sum goes on where the block before ended, and so predictions do not depend on a form."""
    if len(products.available_forms()) == 1:
        pytest.skip("this processor has no tiles")
    rng = np.random.default_rng(0)
    n, i, o = shape
    assert i > products.DEEPEST
    x, w, d = (rng.normal(size=s).astype(dtype) for s in ((n, i), (i, o), (n, o)))
    found = []
    for form in ("direct", "packed"):
        backend = get_backend("numba", products=form)
        z, dx, dw, db = (np.full(s, np.nan, dtype) for s in ((n, o), (n, i), (i, o), o))
        backend.dense_forward(x, w, np.zeros(o, dtype), z)
        backend.dense_backward(x, d, w, dw, db, dx)
        found.append((z, dx))
    for direct, packed in zip(*found, strict=True):
        assert (direct == packed).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [120, 1600])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_that_are_read_in_place_by_blocks_have_the_bits_of_few_rows(transposed, k, dtype):
    if len(products.available_forms()) == 1:
        pytest.skip("this processor has no tiles")
    from fastmlp.kernels.cpu.codes import BACKWARD, DIRECT, FORWARD
    from fastmlp.kernels.cpu.operations import product

    get_backend("numba")  # binds the BLAS
    rng, columns, few_rows = np.random.default_rng(0), 53, 20
    block = products._rows_in_place(10**6, k, products.FEWEST_ROWS_OF_COPY if transposed else products.FEWEST_ROWS)
    count = 3 * block // few_rows * few_rows
    a, b = rng.normal(size=(count, k)).astype(dtype), rng.normal(size=(k, columns)).astype(dtype)
    w = np.ascontiguousarray(b.T if transposed else b).ravel()
    # where it is the transpose of the weights, rows of A follow each other
    order = np.arange(count) if transposed else rng.permutation(count)
    inputs, outputs = (columns, k) if transposed else (k, columns)
    scratch = np.zeros(products.scratch_size(DIRECT, 3 * 16, count, inputs, outputs), dtype)

    def multiplied(rows, index):
        which, x, d = (BACKWARD, w, rows.ravel()) if transposed else (FORWARD, rows.ravel(), w)
        out = np.full((len(index), columns), np.nan, dtype)
        product(DIRECT, which, 1, x, w, d, len(index), inputs, outputs, index, out.ravel(), scratch)
        return out

    wanted = np.concatenate([multiplied(a[part], np.arange(few_rows)) for part in order.reshape(-1, few_rows)])
    np.testing.assert_allclose(wanted, a[order] @ b, atol=2e-3)
    for rows in (block - 1, block, block + 1, 2 * block + 1, count):
        assert (multiplied(a, order[:rows]) == wanted[:rows]).all(), rows


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows", [few.MANY_SUMMED - 1, few.MANY_SUMMED, blocks.DEPTH + 1])
def test_gradients_of_few_outputs(rows, dtype):
    """As many as one or two vectors hold, one more, fewer, four or five at once; no vector of inputs to two blocks."""
    rng, backend = np.random.default_rng(0), get_backend("numba", products="direct")
    lanes = products.vectors.VECTOR_BYTES // np.dtype(dtype).itemsize
    block = few.VECTORS_OF_INPUTS * lanes
    several = [n * lanes + rest for n, rest in ((1, 0), (2, 0), (2, 1), (3, 1), (4, 1), (6, 5), (7, 1), (8, 0))]
    for inputs in (3, *several, block, block + 1, block + lanes, 2 * block + 3):
        for outputs in (1, 3, 5, 10, 12, 13, lanes, lanes + 1, 2 * lanes + 1):
            x, w, d = (rng.normal(size=s).astype(dtype) for s in ((rows, inputs), (inputs, outputs), (rows, outputs)))
            dw, db = np.full(w.shape, np.nan, dtype), np.empty(outputs, dtype)
            backend.dense_backward(x, d, w, dw, db, None)
            np.testing.assert_allclose(dw, x.T @ d, atol=1e-4 if dtype == "float32" else 1e-12)
    x, y = rng.normal(size=(2 * rows, 21)).astype(dtype), rng.integers(0, 3, 2 * rows)
    for optimizer in (fastmlp.SGD(0.1, weight_decay=0.1), fastmlp.SGD(0.5, weight_decay=2.0), fastmlp.SGD(0.1, 0.9)):
        weights = []
        for name in ("numba", "numpy"):  # rows found by an index; the product and the update in one
            model = fastmlp.MLP((21, 3), backend=name, dtype=dtype, seed=0)
            model.fit(x, y, epochs=2, batch_size=rows, optimizer=optimizer, verbose=0)
            weights.append(model.get_weights())
        for found, wanted in zip(*weights, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5 if dtype == "float32" else 1e-12)


@pytest.mark.parametrize("registers", [16, 32])
def test_a_small_tile_sums_over_the_rows_whose_pages_are_at_hand(monkeypatch, registers):
    monkeypatch.setattr(blocks.vectors, "REGISTERS", registers)
    if numba.config.DISABLE_JIT:
        rows_at_once = blocks.rows_at_once
    else:
        rows_at_once = blocks.rows_at_once.py_func
    apart = (1, 10, 64, 784, 1023, 1024, 1025, 10**6)
    for lda, ldb, itemsize in itertools.product(apart, apart, (4, 8)):
        found = rows_at_once(lda, ldb, itemsize)
        assert found == blocks.DEPTH or registers == 16
        assert 32 <= found <= blocks.DEPTH and found % 8 == 0
        pages = found * sum(min(n * itemsize / blocks.PAGE_BYTES, 1) for n in (lda, ldb))
        assert pages <= blocks.PAGES or registers == 32
        assert pages > blocks.PAGES - 16 or found == blocks.DEPTH


@pytest.mark.parametrize("form", ["direct", "packed"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_product_writes_beyond_its_scratch(form, dtype):
    """Many outputs of few inputs, more panels than are kept, more rows than a block, and the other way round."""
    if len(products.available_forms()) == 1:
        pytest.skip("this processor has no tiles")
    from fastmlp.kernels.cpu.codes import FORMS, PRODUCTS
    from fastmlp.kernels.cpu.operations import product

    get_backend("numba")  # binds the BLAS
    rng, code = np.random.default_rng(0), FORMS.index(form)
    width = products.vectors.VECTOR_BYTES // np.dtype(dtype).itemsize * products.tiles.VECTORS
    for n, i, o in (
        (5, 10, 3000),
        (200, 7, 2500),
        (3, 1000, 7),
        (500, 300, 60),
        (1, 3, 2),
        (2, 200, 2400),
        (200, 999, 7),
        (200, 999, 10),
    ):
        x, w, d = (rng.normal(size=s).astype(dtype) for s in ((n, i), (i, o), (n, o)))
        size = products.scratch_size(code, width, n, i, o)
        for which, wanted in enumerate((x @ w, d @ w.T, x.T @ d)):
            scratch, out = np.full(size + 10_000, 7.5, dtype), np.full(wanted.shape, np.nan, dtype)
            product(
                *(code, which, 1, x.ravel(), w.ravel(), d.ravel(), n, i, o, np.arange(max(n, i)), out.ravel()),
                scratch[:size],
            )
            assert (scratch[size:] == 7.5).all(), (PRODUCTS[which], n, i, o)
            np.testing.assert_allclose(out, wanted, atol=2e-3)


@pytest.mark.parametrize(
    ("shape", "whole"), [((512, 1024, 1024), True), ((512, 4096, 4096), False), ((512, 8, 10**6), False)]
)
def test_copies_of_b_are_kept_as_far_as_there_is_room(shape, whole):
    """All of it, as many blocks along k as fit, or some of its columns."""
    (_, k, columns), width = shape, products.tiles.VECTORS * products.vectors.VECTOR_BYTES // 4
    deep, many, room, panels, layers = products._blocks(width, *shape)
    assert many % products.ROWS == 0 and deep <= room
    assert (panels * width >= columns and layers * deep >= k) == whole
    kept = panels * layers * room * width
    assert kept <= products.KEPT
    assert whole or kept > products.KEPT // 2


@pytest.mark.parametrize("columns", [1, 40, 500, 30_000])
@pytest.mark.parametrize("k", [1, 8, 9, 97, 193, 200, 385, 777, 2000])
@pytest.mark.parametrize("rows", [1, 9, 144, 145, 200, 289, 784])
def test_scratch_for_a_product_is_enough_for_any_smaller_one(rows, k, columns):
    """A short batch, and a thread's share of rows: blocks of less may be the larger ones."""
    width = products.tiles.VECTORS * products.vectors.VECTOR_BYTES // 4
    room = products._packed_size(width, rows, k, columns)
    for fewer in {*range(max(1, rows - 150), rows + 1), *range(1, min(rows, 150))}:
        for less in {k, *(n for n in (k - 1, k - 7, k - 10, k // 2 + 1, 192, 96) if 0 < n <= k)}:
            for some in {columns, (columns + 1) // 2}:
                _, many, depth, panels, layers = products._blocks(width, fewer, less, some)
                assert depth * (layers * panels * width + many) + products.vectors.VECTOR_BYTES <= room


@pytest.mark.parametrize("form", ["direct", "packed"])
def test_no_tile_multiplies_what_old_memory_holds(form):
    """Which may be subnormal, and then take twenty times as long: the copy of the last columns of A' ends in what comes
    after them, or in zeros."""
    if len(products.available_forms()) == 1:
        pytest.skip("this processor has no tiles")
    from fastmlp.kernels.cpu.codes import FORMS, GRADIENT
    from fastmlp.kernels.cpu.operations import product

    get_backend("numba")  # binds the BLAS
    n, i, o, subnormal = 8, products.ROWS + 3, 5, np.float32(1e-40)
    assert n < few.MANY_SUMMED  # else there is no such copy
    rng = np.random.default_rng(0)
    x, w, d = (rng.normal(size=s).astype("float32") for s in ((n, i), (i, o), (n, o)))
    width = products.vectors.VECTOR_BYTES // 4 * products.tiles.VECTORS
    code = FORMS.index(form)
    scratch = np.full(products.scratch_size(code, width, n, i, o), subnormal)
    out = np.full((i, o), np.nan, "float32")
    product(code, GRADIENT, 1, x.ravel(), w.ravel(), d.ravel(), n, i, o, np.arange(n), out.ravel(), scratch)
    np.testing.assert_allclose(out, x.T @ d, rtol=1e-5)
    # the copy of A' comes after a panel of B
    copy_at = n * width if form == "direct" else (n | 8) * width
    first = 0 if form == "direct" else products.ROWS * (n | 8)
    rest = scratch[copy_at + first :][: n * products.ROWS].reshape(n, products.ROWS)
    np.testing.assert_array_equal(rest[:, :3], x[:, -3:])
    np.testing.assert_array_equal(rest[:-1, 3:], x[1:, : products.ROWS - 3])
    assert not rest[-1, 3:].any()


OPTIMIZERS = {"SGD": fastmlp.SGD(0.1, weight_decay=0.1), "momentum": fastmlp.SGD(0.1, momentum=0.5)}
OPTIMIZERS["nothing kept"] = fastmlp.SGD(0.5, weight_decay=2.0)  # sums are scaled, and what was there is not looked at
NETWORKS = [((1300, 1000, 3), 8), ((3, 1300, 1000), 8), ((300, 70, 130, 5), 8), ((30, 70, 9), 1)]


@forms
@pytest.mark.parametrize(
    ("units", "batch", "optimizer"),  # each network with two optimizers, by default with one
    [
        pytest.param(*network, optimizer, id=f"{network[0]}-{name}", marks=[] if i % 2 == j else pytest.mark.thorough)
        for i, network in enumerate(NETWORKS)
        for j, (name, optimizer) in enumerate(OPTIMIZERS.items())
    ],
)
def test_networks_train_as_on_numpy_in_each_form_with_any_number_of_threads(units, batch, form, optimizer):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(21, units[0])).astype("float32"), rng.integers(0, 3, 21)
    weights = {}
    for threads in (None, 1, 2, 3):  # None: NumPy
        backend = get_backend("numba", threads=threads, products=form) if threads else get_backend("numpy")
        model = fastmlp.MLP(units, activation="tanh", backend=backend, seed=0)
        model.fit(x, y, epochs=1, batch_size=batch, optimizer=optimizer, verbose=0)
        weights[threads] = model.get_weights()
        for found, expected in zip(weights[threads], weights[None], strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-6)


@forms
def test_a_batch_that_is_read_in_place_may_be_anywhere_in_the_data(form):
    """Rows are found by an index, also the last ones, in arrays that may not be written."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(101, 12)).astype("float32"), rng.integers(0, 3, 101)
    x.flags.writeable = False
    losses = {}
    for name, options in (("numpy", {}), ("numba", {"products": form})):
        backend = get_backend(name, **options)
        model = fastmlp.MLP((12, 5, 3), activation="tanh", backend=backend, seed=0)
        losses[name] = model.fit(x, y, epochs=3, batch_size=16, verbose=0).history["loss"]
    np.testing.assert_allclose(losses["numba"], losses["numpy"], rtol=1e-5)
