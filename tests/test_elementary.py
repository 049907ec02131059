"""The kernels' elementary functions: accurate everywhere, and vectorised."""

import re

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="Numba is not installed; pip install numba")

from fastmlp.kernels.cpu import elementary  # noqa: E402
from fastmlp.kernels.cpu.compiling import WHOLE  # noqa: E402

JIT = not numba.config.DISABLE_JIT
LONG = np.longdouble
PI_HALVES = np.arange(-2000, 2000) * (np.pi / 2)


def erf_reference(x):
    mpmath = pytest.importorskip("mpmath", reason="mpmath is not installed; pip install mpmath")
    mpmath.mp.dps = 30
    return np.array([LONG(str(mpmath.erf(mpmath.mpf(float(v))))) for v in x])


def sigmoid_reference(x):
    return 1 / (1 + np.exp(-x))


def softplus_reference(x):
    return np.where(x > 60, x, np.log1p(np.exp(np.minimum(x, LONG(60)))))


# name: (reference in extended precision, values at infinity, minus infinity and 0)
FUNCTIONS = {
    "exp": (np.exp, (np.inf, 0, 1)),
    "expm1": (np.expm1, (None, -1, 0)),
    "log1p": (np.log1p, (np.inf, np.nan, 0)),
    "tanh": (np.tanh, (1, -1, 0)),
    "sigmoid": (sigmoid_reference, (1, 0, 0.5)),
    "softplus": (softplus_reference, (np.inf, 0, np.log(2))),
    "erf": (erf_reference, (1, -1, 0)),
    "sin": (np.sin, (np.nan, np.nan, 0)),
    "cos": (np.cos, (np.nan, np.nan, 1)),
}


def compiled(name):
    function = getattr(elementary, name)

    @numba.njit(**WHOLE)
    def loop(x, out):
        for i in range(x.size):
            out[i] = function(x[i])

    return loop


def arguments(name, dtype):
    """Arguments over the whole range: near 0, tiny, large, and where results are smallest or change sign."""
    rng = np.random.default_rng(0)
    n = 20000 if JIT else 200
    top = 745 if dtype == np.float64 else 103
    parts = [
        rng.uniform(-1, 1, n),
        rng.normal(scale=5, size=n),
        rng.uniform(-top, top, n),
        np.exp(rng.uniform(-700 if dtype == np.float64 else -87, 6, n)) * rng.choice([-1, 1], n),
    ]
    if name in ("sin", "cos"):
        parts += [rng.uniform(-elementary.TRIG_LIMIT, elementary.TRIG_LIMIT, n), PI_HALVES[:: 1 if JIT else 40]]
    x = np.concatenate(parts)
    if name == "expm1":
        x = np.minimum(x, 44)
    if name == "log1p":
        big = np.exp(rng.uniform(0, 700 if dtype == np.float64 else 88, n))
        x = np.concatenate((np.abs(x), big, -np.exp(-rng.uniform(0, 36, n))))
        x = x[x > -1]
    if name == "erf":
        x = x[:: max(1, len(x) // 3000)]
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_within_four_units_in_the_last_place(name, dtype):
    reference, _ = FUNCTIONS[name]
    x = arguments(name, dtype)
    out = np.full_like(x, np.nan)
    with np.errstate(all="ignore"):
        compiled(name)(x, out)
        expected = reference(x.astype(LONG))
        rounded = expected.astype(dtype)
        unit = np.spacing(np.abs(rounded)).astype(LONG)
        finite = np.isfinite(rounded)
        error = np.abs(out[finite].astype(LONG) - expected[finite]) / unit[finite]
    worst = int(np.argmax(error))
    assert error[worst] <= 4, f"{name}({x[finite][worst]!r}) is off by {float(error[worst]):.2f} ulp"
    np.testing.assert_array_equal(out[~finite], rounded[~finite])


@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinities_and_nan_come_out_as_in_the_c_library(name, dtype):
    x = np.array([np.inf, -np.inf, 0, np.nan], dtype)
    out = np.zeros_like(x)
    with np.errstate(all="ignore"):
        compiled(name)(x, out)
    assert np.isnan(out[3])
    for got, expected in zip(out, FUNCTIONS[name][1], strict=False):
        if expected is not None:
            np.testing.assert_array_equal(got, dtype(expected))  # 0 of either sign


@pytest.mark.skipif(not JIT, reason="the JIT is off")
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_loops_over_them_are_vectorised(name, dtype):
    loop = compiled(name)
    loop(np.zeros(4, dtype), np.zeros(4, dtype))
    (code,) = loop.inspect_llvm().values()
    lanes = {int(n) for n in re.findall(rf"<(\d+) x {'float' if dtype == np.float32 else 'double'}>", code)}
    assert lanes, f"{name}: no vector operation"
    assert not re.search(rf"call .* @(llvm\.)?{name}(f|\.f)", code), f"{name} calls the C library"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_arguments_of_sin_and_cos_are_the_c_librarys(dtype):
    x = np.array([1e7, -1e30, 3e38], dtype)
    for name in ("sin", "cos"):
        out = np.zeros_like(x)
        compiled(f"far_{name}")(x, out)
        np.testing.assert_allclose(out, getattr(np, name)(x.astype(np.float64)).astype(dtype), rtol=1e-6)
