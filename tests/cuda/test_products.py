"""The products of captured steps: every configuration at odd sizes against float64, and the choice between them."""

import numpy as np
import oracle
import pytest
from compare import DTYPES, assert_close, assert_same_bits, normal
from emulator import module, needs_emulator

from fastmlp.backends import cuda_source
from fastmlp.backends.cuda_kernels import gradient_slabs
from fastmlp.backends.cuda_products import SLABS, activation_code, choose_tile, weight_slabs

TILES = (16, 32, 64)
# (n, i, o): single numbers, one less and one more than tiles and panels, long sums, nothing a multiple of four
SIZES = ((1, 1, 1), (16, 128, 16), (17, 129, 31), (5, 300, 3), (65, 63, 66), (2, 3, 70), (33, 1, 17))

tiles = pytest.mark.parametrize("tile", TILES)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def run(kernel, dtype, tile, grid, args, seed=0):
    real = cuda_source.REALS[dtype]
    return module("products.cu", real).launch(f"{kernel}<{real}, {tile}>", grid, (256,), args, seed=seed)


def blocks(m, n, tile, slabs=1):
    return -(-m // tile), -(-n // tile), slabs


def forward(dtype, tile, size, activation="tanh", threshold=0, rate=0.0, seed=0, slope=True):
    n, i, o = size
    x, w, b = normal((n, i), dtype, 1), normal((i, o), dtype, 2), normal((o,), dtype, 3)
    z = np.full((n, o), np.nan, dtype)
    slopes = np.full((n, o), np.nan, dtype) if slope else None
    cursor = np.array([4, 0, 2**32 - 2], np.int64)
    sizes = np.int64(n), np.int64(i), np.int64(o)
    masks = np.uint32(threshold), np.dtype(dtype).type(1 / (1 - rate)), np.uint64(0xFEDCBA9876543210)
    args = (x, w, b, z, slopes, *sizes, activation_code(activation), *masks, cursor, np.int32(3), np.int32(2))
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


@needs_emulator
@tiles
@sizes
@dtypes
@pytest.mark.parametrize("way", ["slope", "told by the activation", "identity"])
def test_input_gradient_is_the_product_times_the_slope_below(tile, size, dtype, way):
    n, i, o = size
    dz, w, a = normal((n, o), dtype, 1), normal((i, o), dtype, 2), normal((n, i), dtype, 3)
    slope = normal((n, i), dtype, 4) if way == "slope" else None
    dx = np.full((n, i), np.nan, dtype)
    activation = activation_code("identity" if way == "identity" else "relu")
    args = (dz, w, dx, np.int64(n), np.int64(i), np.int64(o), activation, a, slope)
    run("product_input_gradient", dtype, tile, blocks(n, i, tile), args, tile)
    factor = {"slope": slope, "identity": np.ones((n, i))}.get(way, (a > 0).astype(dtype))
    rounding = np.sqrt(dz.astype("f8") ** 2 @ w.astype("f8").T ** 2) * np.abs(factor)
    assert_close(dx, dz.astype("f8") @ w.astype("f8").T * factor, k=o, scale=rounding)


@needs_emulator
@tiles
@sizes
@dtypes
@pytest.mark.parametrize("slabs", [1, 3])
def test_weight_gradient_leaves_slabs_whose_sum_is_the_gradient(tile, size, dtype, slabs):
    i, o, n = size[2], size[0], size[1]  # so that the long sum is over rows
    x, dz = normal((n, i), dtype, 1), normal((n, o), dtype, 2)
    stride = i * o + o + 5
    grads = np.full((slabs, stride), np.nan, dtype)
    flat = grads.reshape(-1)
    args = (x, dz, flat, flat[i * o :], np.int64(stride), np.int64(n), np.int64(i), np.int64(o))
    run("product_weight_gradient", dtype, tile, blocks(i, o, tile, slabs), args, tile)
    assert np.isnan(grads[:, i * o + o :]).all()
    dw, db = grads[:, : i * o].sum(axis=0).reshape(i, o), grads[:, i * o : i * o + o].sum(axis=0)
    x, dz = x.astype("f8"), dz.astype("f8")
    assert_close(dw, x.T @ dz, dtype=dtype, k=n, scale=np.sqrt((x**2).T @ dz**2))
    assert_close(db, dz.sum(axis=0), dtype=dtype, k=n, scale=np.sqrt((dz**2).sum(axis=0)))


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
