"""What sizes decide for the sake of speed is what was the faster on a device: an NVIDIA H100, `benchmarks/RESULTS.md`.

Nothing here is computed wrongly otherwise, only slowly; a constant that is a thousand times what it was shows.
"""

import types

import pytest
from scenarios import Scenario

from fastmlp.backends.cuda.products import BlasProducts, CapturedProducts, OwnProducts, choose_tile
from fastmlp.formulas.optimizers import SGD

MULTIPROCESSORS = 132

# the product, (batch, in, out), and the microseconds in tiles of 16, 32 and 64, float32
TILES = [
    ("x w", (32, 784, 64), (5.7, 11.1, 30.0)),
    ("x w", (128, 784, 512), (9.4, 11.2, 31.8)),
    ("d w'", (128, 512, 256), (4.3, 5.5, 14.3)),
    ("x' d", (128, 784, 512), (13.3, 8.9, 7.7)),
    ("x w", (512, 784, 512), (32.5, 17.8, 31.9)),
    ("d w'", (512, 512, 512), (21.3, 13.3, 23.5)),
    ("x' d", (512, 784, 512), (33.2, 23.2, 19.6)),
    ("d w'", (512, 512, 10), (9.2, 4.4, 6.8)),
    ("x w", (1024, 1024, 1024), (145.2, 84.4, 67.1)),
    ("x' d", (1024, 1024, 1024), (152.9, 83.8, 67.9)),
    ("d w'", (4096, 1024, 1024), (563.9, 345.1, 287.4)),
]


@pytest.mark.parametrize(("product", "sizes", "times"), TILES, ids=str)
def test_the_tile_that_is_chosen_was_the_fastest(product, sizes, times):
    n, i, o = sizes
    rows, columns, inner = {"x w": (n, o, i), "d w'": (n, i, o), "x' d": (i, o, n)}[product]
    chosen = choose_tile(rows, columns, inner, MULTIPROCESSORS, slabs=product == "x' d")
    by_tile = dict(zip((16, 32, 64), times, strict=True))
    assert by_tile[chosen] <= 1.05 * min(times), (chosen, by_tile)


def plan_of(batch, *units, dtype="float32"):
    return Scenario("", units, {}, SGD(0.1), batch=batch).plan(dtype)


@pytest.mark.parametrize(
    ("dtype", "batch", "units", "by_cublas"),
    [
        ("float32", 512, (784, 512), False),  # 61 microseconds by own kernels, 66 by cuBLAS
        ("float32", 1024, (784, 1024), True),  # 189 and 157
        ("float64", 32, (64, 32), False),  # 7 and 11
        ("float64", 128, (512, 256), True),  # 24 and 18
    ],
)
def test_cublas_multiplies_from_the_size_on_at_which_it_was_the_faster(dtype, batch, units, by_cublas):
    operations = types.SimpleNamespace(_blas=None, graph_blas=object())
    products = CapturedProducts(operations, MULTIPROCESSORS, plan_of(batch, *units, dtype=dtype))
    assert isinstance(products._of(*units), BlasProducts if by_cublas else OwnProducts)
    assert products.workspaces(products._plan) == (2 if by_cublas else 0)
