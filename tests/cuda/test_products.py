"""The products of captured steps: every configuration at odd sizes against float64, and the choice between them."""

import cupy_double
import numpy as np
import oracle
import pytest
from compare import DTYPES, assert_close, assert_same_bits, normal
from emulator import EmulatorError, module, needs_emulator

from fastmlp.backends.cuda import backend as cupy_backend
from fastmlp.backends.cuda import sources
from fastmlp.backends.cuda.kernels import gradient_slabs
from fastmlp.backends.cuda.products import SLABS, TILES, OwnProducts, choose_tile, weight_slabs

# (n, i, o): single numbers, one less and one more than tiles and panels, long sums
SIZES = ((1, 1, 1), (16, 128, 16), (17, 129, 31), (5, 300, 3), (65, 63, 66), (2, 3, 70), (33, 1, 17), (66, 12, 68))
# all read wide
WIDE = ((1, 4, 4), (19, 132, 36), (68, 20, 72))

tiles = pytest.mark.parametrize("tile", TILES)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def run(kernel, dtype, tile, grid, args, seed=0):
    real = sources.REALS[dtype]
    return module("products.cu", real).launch(f"{kernel}<{real}, {tile}>", grid, (256,), args, seed=seed)


def blocks(m, n, tile, slabs=1):
    return -(-m // tile), -(-n // tile), slabs


def placed(shape, dtype, seed, start=0):
    """Return normal numbers that begin `start` numbers after a multiple of 16 bytes."""
    whole = np.empty(shape[0] * shape[1] + 16, dtype)
    start += -whole.ctypes.data % 16 // whole.itemsize
    array = whole[start : start + shape[0] * shape[1]].reshape(shape)
    array[...] = normal(shape, dtype, seed)
    return array


def is_wide(*arrays):
    """Return for each matrix whether the host would have it read wide."""
    return tuple(np.bool_(a.shape[1] % 4 == 0 and a.ctypes.data % 16 == 0) for a in arrays)


def forward(
    dtype, tile, size, activation="tanh", threshold=0, rate=0.0, seed=0, slope=True, starts=(0, 0), first_row=0
):
    n, i, o = size
    x, w, b = placed((n, i), dtype, 1, starts[0]), placed((i, o), dtype, 2, starts[1]), normal((o,), dtype, 3)
    z = np.full((n, o), np.nan, dtype)
    slopes = np.full((n, o), np.nan, dtype) if slope else None
    cursor = np.array([4, 0, 2**32 - 2], np.int64)
    sizes = np.int64(n), np.int64(i), np.int64(o), *is_wide(x, w)
    masks = np.uint32(threshold), np.dtype(dtype).type(1 / (1 - rate)), np.uint64(0xFEDCBA9876543210)
    args = (
        x,
        w,
        b,
        z,
        slopes,
        *sizes,
        sources.code_of("activation", activation),
        *masks,
        cursor,
        np.int32(3),
        np.int32(2),
        np.int64(first_row),
    )
    traffic = run("product_forward", dtype, tile, blocks(n, o, tile), args, seed)
    exact = x.astype("f8") @ w.astype("f8") + b
    rounding = np.sqrt(x.astype("f8") ** 2 @ w.astype("f8") ** 2 + b.astype("f8") ** 2)
    return z, slopes, exact, rounding, traffic


@needs_emulator
@tiles
@sizes
@dtypes
def test_forward_is_the_activation_of_the_product(tile, size, dtype):
    z, slope, exact, rounding, traffic = forward(dtype, tile, size, seed=tile)
    # tanh has a slope of at most 1, its slope one of at most 0.77
    assert_close(z, np.tanh(exact), k=size[1] + 1, scale=rounding + 1)
    assert_close(slope, 1 - np.tanh(exact) ** 2, k=size[1] + 1, scale=rounding + 1, c=8)
    n, i, o = size
    item = np.dtype(dtype).itemsize
    assert traffic.written == 2 * n * o * item
    assert traffic.read == (n * i + i * o + o) * item


@needs_emulator
@tiles
@dtypes
def test_forward_drops_the_units_that_the_random_words_name(tile, dtype):
    size, rate = (5, 20, 19), 0.3
    z, slope, exact, rounding, _ = forward(dtype, tile, size, "relu", round(rate * 2**32), rate)
    # step 2**32 - 2 + row 4 + index 3 has gone round
    factors = [[oracle.dropout_factor(rate, 0xFEDCBA9876543210, 5, 2, r, c) for c in range(19)] for r in range(5)]
    assert_close(z, np.maximum(exact, 0) * factors, k=21, scale=2 * rounding)
    assert_close(slope, (exact > 0) * np.array(factors), scale=2)
    without, _, _, _, _ = forward(dtype, tile, size, "relu", round(rate * 2**32), rate, slope=False)
    assert_same_bits(without, z)
    later, _, exact, rounding, _ = forward(dtype, tile, size, "relu", round(rate * 2**32), rate, first_row=7)
    factors = [[oracle.dropout_factor(rate, 0xFEDCBA9876543210, 5, 2, 7 + r, c) for c in range(19)] for r in range(5)]
    assert_close(later, np.maximum(exact, 0) * factors, k=21, scale=2 * rounding)


def input_gradient(dtype, tile, size, way, starts=(0, 0)):
    n, i, o = size
    dz, w, a = placed((n, o), dtype, 1, starts[0]), placed((i, o), dtype, 2, starts[1]), normal((n, i), dtype, 3)
    slope = normal((n, i), dtype, 4) if way == "slope" else None
    dx = np.full((n, i), np.nan, dtype)
    activation = sources.code_of("activation", "identity" if way == "identity" else "relu")
    args = (dz, w, dx, np.int64(n), np.int64(i), np.int64(o), *is_wide(dz, w), activation, a, slope)
    run("product_input_gradient", dtype, tile, blocks(n, i, tile), args, tile)
    return dz, w, a, slope, dx


@needs_emulator
@tiles
@sizes
@dtypes
@pytest.mark.parametrize("way", ["slope", "told by the activation", "identity"])
def test_input_gradient_is_the_product_times_the_slope_below(tile, size, dtype, way):
    dz, w, a, slope, dx = input_gradient(dtype, tile, size, way)
    factor = {"slope": slope, "identity": np.ones(a.shape)}.get(way, (a > 0).astype(dtype))
    rounding = np.sqrt(dz.astype("f8") ** 2 @ w.astype("f8").T ** 2) * np.abs(factor)
    assert_close(dx, dz.astype("f8") @ w.astype("f8").T * factor, k=size[2], scale=rounding)


def weight_gradient(dtype, tile, size, slabs, starts=(0, 0)):
    i, o, n = size[2], size[0], size[1]  # so that the long sum is over rows
    x, dz = placed((n, i), dtype, 1, starts[0]), placed((n, o), dtype, 2, starts[1])
    stride = i * o + o + 5
    grads = np.full((slabs, stride), np.nan, dtype)
    flat = grads.reshape(-1)
    args = (x, dz, flat, flat[i * o :], np.int64(stride), np.int64(n), np.int64(i), np.int64(o), *is_wide(x, dz))
    run("product_weight_gradient", dtype, tile, blocks(i, o, tile, slabs), args, tile)
    return x, dz, grads


@needs_emulator
@tiles
@sizes
@dtypes
@pytest.mark.parametrize("slabs", [1, 3])
def test_weight_gradient_leaves_slabs_whose_sum_is_the_gradient(tile, size, dtype, slabs):
    x, dz, grads = weight_gradient(dtype, tile, size, slabs)
    (n, i), o = x.shape, dz.shape[1]
    assert np.isnan(grads[:, i * o + o :]).all()
    dw, db = grads[:, : i * o].sum(axis=0).reshape(i, o), grads[:, i * o : i * o + o].sum(axis=0)
    x, dz = x.astype("f8"), dz.astype("f8")
    assert_close(dw, x.T @ dz, dtype=dtype, k=n, scale=np.sqrt((x**2).T @ dz**2))
    assert_close(db, dz.sum(axis=0), dtype=dtype, k=n, scale=np.sqrt((dz**2).sum(axis=0)))


@needs_emulator
@tiles
@dtypes
@pytest.mark.parametrize("size", WIDE, ids=str)
def test_wide_and_single_loads_give_the_same_bits(tile, dtype, size):
    n, i, o = size
    wide = forward(dtype, tile, size)
    assert_close(wide[0], np.tanh(wide[2]), k=i + 1, scale=wide[3] + 1)
    assert wide[4].read == (n * i + i * o + o) * np.dtype(dtype).itemsize
    gradient = input_gradient(dtype, tile, size, "slope")[-1]
    slabs = weight_gradient(dtype, tile, (o, n, i), 1)[-1]
    for starts in ((1, 0), (0, 1), (1, 1)):  # a matrix that is not aligned is read number by number
        assert_same_bits(forward(dtype, tile, size, starts=starts)[0], wide[0])
        assert_same_bits(input_gradient(dtype, tile, size, "slope", starts)[-1], gradient)
        assert_same_bits(weight_gradient(dtype, tile, (o, n, i), 1, starts)[-1], slabs)


@needs_emulator
@dtypes
@pytest.mark.parametrize("operand", [0, 1])
def test_wide_loads_of_what_is_not_aligned_are_noticed(monkeypatch, dtype, operand):
    monkeypatch.setitem(globals(), "is_wide", lambda *_: (np.bool_(operand == 0), np.bool_(operand == 1)))
    with pytest.raises(EmulatorError, match="misaligned 16-byte read"):
        forward(dtype, 16, (16, 16, 16), starts=(1, 1))
    with pytest.raises(EmulatorError, match=r"misaligned 16-byte read|outside the arrays"):
        forward(dtype, 16, (16, 17, 17))


@needs_emulator
@dtypes
def test_the_host_looks_at_pointers_and_strides_before_loads_are_wide(monkeypatch, dtype):
    monkeypatch.setattr(cupy_backend, "import_cupy", lambda: cupy_double)
    own, given = cupy_backend.CupyBackend(), []
    monkeypatch.setattr(own, "_launch", lambda file, name, dtype, grid, args: given.append(args))
    products = OwnProducts(own, 4)
    for i, o, start in ((8, 12, 0), (8, 12, 1), (8, 10, 0), (6, 12, 0)):
        flat = own.empty((1000,), np.dtype(dtype))
        x, w, dz = (
            flat[start : start + 3 * i].reshape(3, i),
            flat[64 : 64 + i * o].reshape(i, o),
            flat[512 : 512 + 3 * o],
        )
        dz = dz.reshape(3, o)
        products.forward(x, w, flat[:o], dz, None, "identity", None, flat, 0)
        products.input_gradient(dz, w, x, "identity", None, None)
        products.weight_gradient(x, dz, flat, flat, 100, (1, 1))
        found = [tuple(bool(a) for a in args if isinstance(a, np.bool_)) for args in given[-3:]]
        of_x, of_o = i % 4 == 0 and start == 0, o % 4 == 0
        assert found == [(of_x, of_o), (of_o, of_o), (of_x, of_o)]


@needs_emulator
@tiles
def test_the_order_of_threads_and_blocks_changes_no_bit(tile):
    first = forward("float32", tile, (33, 140, 35))[0]
    for seed in (1, 2):
        assert_same_bits(forward("float32", tile, (33, 140, 35), seed=seed)[0], first)


# --- the choice -----------------------------------------------------------------------------------------------------

ALL = [1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 255, 256, 511, 784, 1000, 1024, 2048, 4095, 4096, 10**5]


@pytest.mark.parametrize("multiprocessors", [1, 14, 46, 132, 170])
def test_every_size_has_a_configuration_that_fits_cudas_grids(multiprocessors):
    for m in ALL:
        for n in [*ALL, 65535 * 64]:
            for k in (1, 100, 10**6):
                tile = choose_tile(m, n, k, multiprocessors)
                assert tile in TILES
                assert -(-n // tile) <= 65535
                assert 1 <= weight_slabs(m, n, k, tile, multiprocessors) <= min(SLABS, max(1, k // 256))


@pytest.mark.parametrize("place", range(3))
def test_every_side_from_1_to_4096_has_a_configuration(place):
    for side in range(1, 4097):
        for others in ((1, 1), (33, 784), (4096, 4096)):
            m, n, k = (*others[:place], side, *others[place:])
            tile = choose_tile(m, n, k, 132)
            assert tile in TILES
            if m * n <= 16 * 16 * 132:  # one tile of the smallest kind for each multiprocessor, or fewer
                assert tile == 16
            elif min(m, n) >= 2048:
                assert tile == 64
            assert 1 <= weight_slabs(m, n, k, tile, 132) <= SLABS


@pytest.mark.parametrize("multiprocessors", [46, 132])
def test_small_products_take_small_tiles_and_large_ones_large(multiprocessors):
    assert choose_tile(32, 64, 784, multiprocessors) == 16
    assert choose_tile(1024, 1024, 1024, multiprocessors) == 64
    assert choose_tile(4096, 4096, 64, multiprocessors) == 64
    previous = 16
    for side in range(16, 4097, 16):
        tile = choose_tile(side, side, 512, multiprocessors)
        assert tile >= previous or tile * 2 == previous  # waves that are just full let it fall back by one
        previous = tile


def test_layers_wider_than_any_grid_are_refused():
    with pytest.raises(ValueError, match=r"a layer of 4194241 units is wider than CUDA's grids allow, 4194240"):
        choose_tile(8, 65535 * 64 + 1, 8, 100)


def test_slabs_keep_the_device_busy_and_long_enough_to_be_worth_it():
    assert weight_slabs(784, 64, 32, 32, 132) == 1
    assert weight_slabs(64, 10, 8192, 16, 132) == SLABS
    assert weight_slabs(4096, 4096, 8192, 64, 132) == 1
    assert gradient_slabs(63, 10, 132) == 1
    assert gradient_slabs(8192, 10, 132) == 8
    assert gradient_slabs(8192, 8192, 46) == 1
    assert gradient_slabs(8192, 1024, 46) == 3  # 92 blocks wanted, 32 columns of them a slab
    assert gradient_slabs(320, 10, 132) == 5  # of 64 rows at least
    assert weight_slabs(512, 512, 8192, 64, 46) == 2
    assert weight_slabs(64, 10, 1023, 16, 132) == 3
