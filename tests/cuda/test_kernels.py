"""Kernels at sizes where their loops go round more than once: what the shared suite's small shapes do not reach."""

import cupy_double
import numpy as np
import pytest
from compare import DTYPES, assert_close, assert_same_bits, loss_records, normal, on, pair, targets_for, unset
from emulator import needs_emulator
from scenarios import Scenario, train

from fastmlp.backends.choosing import get_backend
from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import kernels as cuda_kernels
from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.kernels import column_grid, flat_grid, gradient_slabs, is_wide, row_grid, tile_grid
from fastmlp.backends.cuda.products import BlasProducts, Masks, OwnProducts
from fastmlp.formulas.activations import activation_names
from fastmlp.formulas.losses import SoftmaxCrossEntropy
from fastmlp.formulas.optimizers import SGD, Adam, StepScalars
from fastmlp.formulas.random_bits import keep_threshold

pytestmark = needs_emulator
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cupy_double)
    return cupy_backend.CupyBackend()


@dtypes
@pytest.mark.parametrize("shape", [(30, 35), (300, 4)], ids=str)
def test_max_norm_of_long_columns(cupy, dtype, shape):
    w = normal(shape, dtype, 3)
    norms = np.sqrt((w.astype("f8") ** 2).sum(axis=0))
    limit = float(np.median(norms)) * 1.001
    own = on(cupy, w)
    cupy.max_norm(own, limit)
    assert_close(own.get(), w * np.minimum(1, limit / norms), k=shape[0])


@dtypes
@pytest.mark.parametrize(("loss", "soft"), [(r, False) for r in loss_records()] + [(SoftmaxCrossEntropy(0.2), True)])
def test_losses_of_many_outputs_take_a_block_a_row(cupy, dtype, loss, soft):
    n, k, rng = 3, 1100, np.random.default_rng(0)
    z, t = normal((n, k), dtype, 1), targets_for(loss, n, k, rng, soft)
    t, w = (t if t.ndim == 1 else t.astype(dtype)), rng.uniform(0, 2, n).astype(dtype)
    found = []
    for where in (cupy, get_backend("numpy")):
        out = [unset(where, (n, k), dtype), unset(where, (n,), dtype), unset(where, (n,), dtype)]
        outputs, targets = on(where, z), on(where, t)
        where.loss(loss, outputs, targets, on(where, w), 0.3, out[0], out[1], pair(where, out[0]))
        where.hits(loss, outputs, targets, out[2])
        found.append([where.to_numpy(a) for a in out])
    for a, b in zip(*found, strict=True):
        assert_close(a, b, k=k, scale=np.abs(b) + 1 / k, c=16)


@dtypes
@pytest.mark.parametrize("at", [0, 31, 32, 600, 1099])
def test_the_first_of_equal_largest_outputs_is_the_class(cupy, dtype, at):
    loss = loss_records()[0]
    z = np.zeros((2, 1100), dtype)
    z[:, at] = z[:, min(at + 300, 1099)] = 3
    z[1, 700] = np.nan  # counts as the largest, as in NumPy
    targets, out = on(cupy, np.array([at, 700])), unset(cupy, (2,), dtype)
    cupy.hits(loss, on(cupy, z), targets, out)
    assert out.get().tolist() == [1, 1]


@dtypes
@pytest.mark.parametrize("way", ["slope", "relu"])
def test_gradients_are_multiplied_by_slopes_in_place(cupy, dtype, way):
    a, d, slope = (normal((83, 37), dtype, seed) for seed in (1, 2, 3))
    own = on(cupy, d)
    cupy.activation_backward("relu", on(cupy, a), on(cupy, slope) if way == "slope" else None, own, own)
    assert_same_bits(own.get(), (d * {"slope": slope, "relu": a > 0}[way]).astype(dtype))


@dtypes
@pytest.mark.parametrize(("n", "o", "slabs"), [(83, 37, 1), (83, 37, 3), (83, 37, 8), (4500, 3, 2)])
def test_bias_gradients_are_left_in_slabs(cupy, dtype, n, o, slabs):
    d, db = normal((n, o), dtype, 2), unset(cupy, (slabs * 50,), dtype)
    args = (on(cupy, d), db, np.int64(50), np.int64(n), np.int64(o))
    cupy._launch("layers.cu", "column_sums<{real}>", dtype, column_grid(o, slabs), args)
    parts = db.get().reshape(slabs, 50)
    assert np.isnan(parts[:, o:]).all()
    assert_close(parts[:, :o].sum(axis=0), d.sum(axis=0, dtype="f8"), dtype=dtype, k=n, scale=3)


@dtypes
@pytest.mark.parametrize("columns", [4, 8, 136, 7, 130])
@pytest.mark.parametrize("start", [0, 1])
def test_rows_are_read_wide_where_they_are_aligned_and_singly_where_not(cupy, dtype, columns, start):
    rows = 19
    flat = np.concatenate((np.zeros(start), normal((rows * columns,), dtype, 1).astype("f8"))).astype(dtype)
    z = on(cupy, flat)[start:].reshape(rows, columns)
    b, slope = on(cupy, normal((columns,), dtype, 2)), unset(cupy, (rows, columns), dtype)
    assert is_wide(columns, (z, b, None)) == (columns % 4 == 0 and start == 0)
    expected = flat[start:].reshape(rows, columns) + b.get()
    cupy._bias_activation("relu", b, z, slope)
    assert_same_bits(z.get(), np.maximum(expected, 0))
    assert_same_bits(slope.get(), (expected > 0).astype(dtype))
    kept, ones = unset(cupy, (rows, columns), dtype), np.ones((rows, columns), dtype)
    kept[...] = 1
    cupy.dropout(kept, slope, 0.3, 12345, 6, 1, slope)
    get_backend("numpy").dropout(ones, None, 0.3, 12345, 6, 1, ones.copy())
    assert_close(kept.get(), ones)


@dtypes
@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_norms_of_more_chunks_than_blocks_and_of_slabs(cupy, dtype, clip_norm):
    size, l2, share, behind, stride = 4800, 2.0, 0.25, 100, 4900
    parts = 300  # more than a block has threads, which no step has: a loop that goes round once would leave some out
    chunks = np.array([(i * 8, i * 8 + 7, i % 2, 1 + i % 3, behind, stride) for i in range(600)], np.int64)
    grads, params = normal((3, stride), dtype, 1), normal((size,), dtype, 2)
    rule = on(cupy, np.array([0.0, 0, 1, 0, 0, clip_norm, l2]))
    partials, table = unset(cupy, (parts,), "f8"), on(cupy, np.array([[0.5, 1, 1, 0, 1.0, share]]))
    own, cursor = on(cupy, params), on(cupy, np.zeros(3, np.int64))
    g, c = on(cupy, grads.reshape(-1)), on(cupy, chunks)
    args = (c, np.int64(600), g, own, rule, partials, table, cursor, np.int32(0))
    cupy._launch("optimizers.cu", "gradient_norm<{real}>", dtype, ((parts,), (256,)), args)
    where = (table, cursor, np.int32(0), on(cupy, np.zeros(2, np.int32)))
    args = (np.int32(0), c, own, g, None, None, None, rule, partials, np.int32(parts), *where)
    cupy._launch("optimizers.cu", "update_parameters<{real}>", dtype, ((600,), (256,)), args)
    expected, gradient = params.astype("f8"), np.zeros(size)
    for start, stop, is_weight, slabs, *_ in chunks.tolist():
        found = grads[:slabs, behind + start : behind + stop].sum(axis=0)
        gradient[start:stop] = found + share * l2 * is_weight * params[start:stop]
    norm = np.sqrt((gradient**2).sum())
    assert_close(np.sqrt(partials.get().sum()), norm, dtype=dtype, k=8)
    expected -= 0.5 * gradient * min(1, clip_norm / norm)
    assert_close(own.get(), expected, scale=1 + np.abs(gradient))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (flat_grid(0), ((1,), (256,))),
        (flat_grid(256), ((1,), (256,))),
        (flat_grid(257), ((2,), (256,))),
        (flat_grid(10**9), ((1024,), (256,))),
        (row_grid(1), ((1,), (256,))),
        (row_grid(8), ((1,), (256,))),
        (row_grid(65), ((9,), (256,))),
        (tile_grid(1, 1), ((1, 1), (32, 8))),
        (tile_grid(17, 129), ((3, 2), (32, 8))),
        (tile_grid(10**6, 256), ((4096, 2), (32, 8))),
        (column_grid(32), ((1, 1), (32, 8))),
        (column_grid(33, 5), ((2, 5), (32, 8))),
    ],
)
def test_grids_have_a_place_for_everything_and_no_more_blocks_than_that(found, expected):
    assert found == expected


@dtypes
def test_loops_go_round_where_there_is_more_work_than_blocks(cupy, dtype, monkeypatch):
    monkeypatch.setattr(cuda_kernels, "_ROW_BLOCKS", 2)  # 16 rows at once
    monkeypatch.setattr(cuda_kernels, "_FLAT_BLOCKS", 2)  # 512 numbers
    plain, rows, columns, size = get_backend("numpy"), 50, 7, 1300
    found = []
    for where in (cupy, plain):
        z, slope = on(where, normal((rows, columns), dtype, 1)), unset(where, (rows, columns), dtype)
        where.activate("tanh", z, slope, pair(where, z))
        where.dropout(z, slope, 0.3, 12345, 6, 1, unset(where, (rows, columns), dtype))
        flat = [on(where, normal((size,), dtype, seed)) for seed in range(4)]
        scratch = unset(where, (size,), dtype)
        where.add_scaled(flat[0], flat[1], 0.5, scratch)
        where.scale(flat[1], 3.0)
        where.average(flat[2], flat[1], 0.75, scratch)
        where.update(SGD(0.1, momentum=0.5), flat[1], flat[2], flat[3:], 0.1, StepScalars(0.1, 1, 1, 0, 1), scratch)
        norm = np.array([where.squared_norm(flat[0])])
        found.append([*(where.to_numpy(a) for a in (z, slope, *flat)), norm])
    for own, other in zip(*found, strict=True):
        assert_close(own, other, dtype=dtype, k=4, scale=np.abs(other) + 1)


@dtypes
@pytest.mark.parametrize("way", ["captured", "eager"])
def test_rows_longer_than_a_warp_are_gathered_whole(cupy, dtype, way):
    """Inputs under dropout go by fours, 128 at a time; targets that are values 32 at a time."""
    network = {"activation": "tanh", "loss": "mean_squared_error", "dropout": (0.25, 0.0)}
    scenario = Scenario("", (300, 6, 70), network, SGD(0.5), rows=9, batch=4, epochs=1)
    found, sums, _ = train(scenario, cupy_backend.CupyBackend(way=way), dtype)
    expected, expected_sums, _ = train(scenario, get_backend("numpy"), dtype)
    assert_close(found.params.get(), expected.params, k=300 * 3, scale=1 + np.abs(expected.params), c=16)
    assert_close(sums, expected_sums, dtype=dtype, k=300 * 3, scale=1 + np.abs(expected_sums), c=16)


@dtypes
def test_eager_steps_have_room_for_every_slab_of_the_bias_gradients(cupy, dtype):
    scenario = Scenario("", (5, 4, 3), {"activation": "tanh"}, Adam(epsilon=0.1), rows=200, batch=200, epochs=2)
    assert gradient_slabs(200, 4, cupy.multiprocessors) == 3
    found, _, _ = train(scenario, cupy_backend.CupyBackend(way="eager"), dtype)
    expected, _, _ = train(scenario, get_backend("numpy"), dtype)
    assert_close(found.params.get(), expected.params, k=400, scale=1 + np.abs(expected.params), c=16)


@dtypes
def test_bias_activation_and_dropout_go_round_too(cupy, dtype, monkeypatch):
    monkeypatch.setattr("fastmlp.backends.cuda.products.tile_grid", lambda n, o: ((1, 1), (32, 8)))
    rows, columns, found = 37, 12, []
    for products in (BlasProducts(cupy, 4), OwnProducts(cupy, 4)):
        x, w, b = (on(cupy, normal(s, dtype, 1)) for s in ((rows, 1), (1, columns), (columns,)))
        z, slope, cursor = (
            unset(cupy, (rows, columns), dtype),
            unset(cupy, (rows, columns), dtype),
            on(cupy, np.zeros(3, np.int64)),
        )
        products.forward(x, w, b, z, slope, "tanh", Masks(keep_threshold(0.3), 1 / 0.7, 99, 1, 0), cursor, 2)
        found.append((z.get(), slope.get()))
    for own, other in zip(*found, strict=True):
        assert_close(own, other, k=2, scale=2)
    assert not np.isnan(found[0][0]).any()


def test_every_activation_of_the_source_is_one_of_fastmlps():
    assert list(sources.codes("activations.cuh", "Activation")) == list(activation_names())
