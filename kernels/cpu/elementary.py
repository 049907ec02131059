"""exp, log1p, tanh, erf, sin, cos and kin, such that LLVM can vectorise them; `layers` and `losses` call them.

`np.exp` and its like are calls into the C library, one element at a time; these are polynomials without branches, so
that a loop over them becomes wide instructions.  Each is within 4 units in the last place over the whole range (sin
and cos: up to `TRIG_LIMIT`, beyond which the C library is asked), and infinities and NaN come out as in the C library.

Each name is an ordinary function of a NumPy scalar with an `@overload` for compiled code, so that kernels also run
with the JIT off.  Sources: the reductions and polynomials of fdlibm (Sun Microsystems 1993) and Cephes (Moshier 1989)
where a comment says so; the others are interpolations at Chebyshev nodes, computed with 50 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from .compiling import INLINE
from .compiling import inline_part as inline

f4, f8, i4, i8 = np.float32, np.float64, np.int32, np.int64

INVERSE_SQRT_2 = math.sqrt(0.5)

TRIG_LIMIT = 1048576.0
"""2**20: up to here the argument of sin and cos is reduced by three exact products."""


def _by_type(single: Any, double: Any, doc: str) -> Callable[[Any], Any]:
    """Return the function of a float32 or float64 scalar that is `single` or `double`."""

    def function(x):
        return single(x) if isinstance(x, np.float32) else double(x)

    @overload(function, jit_options=INLINE)
    def _compiled(x):
        chosen = single if x == types.float32 else double
        return lambda x: chosen(x)

    function.__doc__ = doc
    return function


# --- powers of two ---


@inline
def _two_to_32(n):
    """2**n for -126 <= n <= 127."""
    return i4((n + i4(127)) << i4(23)).view(np.float32)


@inline
def _two_to_64(n):
    """2**n for -1022 <= n <= 1023."""
    return i8((n + i8(1023)) << i8(52)).view(np.float64)


# --- exp: x = n log 2 + r, exp(x) = 2**n exp(r) ---


@inline
def _exp_poly_32(r):
    """(exp(r) - 1 - r) / r**2 for |r| <= log(2) / 2."""
    q = f4(0.00019890990824673654)
    q = q * r + f4(0.0013933649996309251)
    q = q * r + f4(0.0083333109254809)
    q = q * r + f4(0.041666464925285904)
    q = q * r + f4(0.16666666681623232)
    return q * r + f4(0.500000001346581)


@inline
def _exp_poly_64(r):
    """(exp(r) - 1 - r) / r**2 for |r| <= log(2) / 2."""
    q = 2.0914686968086876e-09
    q = q * r + 2.5105217004720745e-08
    q = q * r + 2.75572736431103e-07
    q = q * r + 2.7557255400206422e-06
    q = q * r + 2.4801587325547743e-05
    q = q * r + 0.00019841269874820627
    q = q * r + 0.0013888888888883748
    q = q * r + 0.008333333333326136
    q = q * r + 0.04166666666666667
    q = q * r + 0.1666666666666667
    return q * r + 0.5


@inline
def _exp_32(x):
    c = min(max(x, f4(-104.0)), f4(89.0))
    n = np.floor(c * f4(1.44269504) + f4(0.5))
    r = (c - n * f4(0.693359375)) - n * f4(-2.12194440e-4)  # Cephes: the first product is exact
    y = _exp_poly_32(r) * r * r + r + f4(1.0)
    i = i4(n)
    h = i >> i4(1)  # in two steps, since 2**n itself may overflow or be subnormal
    y = y * _two_to_32(h) * _two_to_32(i4(i - h))
    return y if x == x else x


@inline
def _exp_64(x):
    c = min(max(x, -746.0), 710.0)
    n = np.floor(c * 1.4426950408889634 + 0.5)
    r = (c - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6  # Cephes
    y = _exp_poly_64(r) * r * r + r + 1.0
    i = i8(n)
    h = i >> i8(1)
    y = y * _two_to_64(h) * _two_to_64(i - h)
    return y if x == x else x


@inline
def _expm1_32(x):
    c = min(max(x, f4(-18.0)), f4(44.0))
    n = np.floor(c * f4(1.44269504) + f4(0.5))
    r = (c - n * f4(0.693359375)) - n * f4(-2.12194440e-4)
    p = _exp_poly_32(r) * r * r + r
    s = _two_to_32(i4(n))
    y = s * p + (s - f4(1.0))
    return y if x == x else x


@inline
def _expm1_64(x):
    c = min(max(x, -40.0), 44.0)
    n = np.floor(c * 1.4426950408889634 + 0.5)
    r = (c - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6
    p = _exp_poly_64(r) * r * r + r
    s = _two_to_64(i8(n))
    y = s * p + (s - 1.0)
    return y if x == x else x


exp = _by_type(_exp_32, _exp_64, "Return exp(x).")
expm1 = _by_type(_expm1_32, _expm1_64, "Return exp(x) - 1 for x <= 44, what elu and tanh need; above, exp(44) - 1.")


# --- log1p: fdlibm's, with the correction for the rounding of 1 + x ---


@inline
def _log1p_32(x):
    u = f4(1.0) + x
    bits = i4(f4(u).view(np.int32) + i4(0x3F800000 - 0x3F3504F3))
    k = i4(bits >> i4(23)) - i4(127)
    c = f4(1.0) - (u - x) if k >= 2 else x - (u - f4(1.0))
    c = c / u if k < 25 else f4(0.0)
    f = i4((bits & i4(0x7FFFFF)) + i4(0x3F3504F3)).view(np.float32) - f4(1.0)
    s = f / (f4(2.0) + f)
    z = s * s
    w = z * z
    t = w * (f4(0.40000972152) + w * f4(0.24279078841))
    t = z * (f4(0.66666662693) + w * f4(0.28498786688)) + t
    h = f4(0.5) * f * f
    n = f4(k)
    y = s * (h + t) + (n * f4(9.0580006145e-06) + c) - h + f + n * f4(0.69313812256)
    y = y if x > f4(-1.0) else (f4(-np.inf) if x == f4(-1.0) else f4(np.nan))
    return y if x < f4(np.inf) else x


@inline
def _log1p_64(x):
    u = 1.0 + x
    bits = f8(u).view(np.int64) + i8((0x3FF00000 - 0x3FE6A09E) << 32)
    k = i8(bits >> i8(52)) - i8(1023)
    c = 1.0 - (u - x) if k >= 2 else x - (u - 1.0)
    c = c / u if k < 54 else 0.0
    f = i8((bits & i8(0xFFFFFFFFFFFFF)) + i8(0x3FE6A09E << 32)).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    t = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01))
    t = (
        z
        * (
            6.666666666666735130e-01
            + w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01))
        )
        + t
    )
    h = 0.5 * f * f
    n = f8(k)
    y = s * (h + t) + (n * 1.90821492927058770002e-10 + c) - h + f + n * 6.93147180369123816490e-01
    y = y if x > -1.0 else (-np.inf if x == -1.0 else np.nan)
    return y if x < np.inf else x


log1p = _by_type(_log1p_32, _log1p_64, "Return log(1 + x).")


# --- tanh and sigmoid, from the exponential of what cannot overflow ---


@inline
def _tanh_32(x):
    e = _expm1_32(f4(2.0) * min(abs(x), f4(10.0)))
    y = e / (e + f4(2.0))
    y = -y if x < f4(0.0) else y
    return y if x == x else x


@inline
def _tanh_64(x):
    e = _expm1_64(2.0 * min(abs(x), 20.0))
    y = e / (e + 2.0)
    y = -y if x < 0.0 else y
    return y if x == x else x


@inline
def _sigmoid_32(x):
    e = _exp_32(-abs(x))
    return (f4(1.0) if x >= f4(0.0) else e) / (f4(1.0) + e)


@inline
def _sigmoid_64(x):
    e = _exp_64(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


@inline
def _softplus_32(x):
    y = max(x, f4(0.0)) + _log1p_32(_exp_32(-abs(x)))
    return y if x == x else x


@inline
def _softplus_64(x):
    y = max(x, 0.0) + _log1p_64(_exp_64(-abs(x)))
    return y if x == x else x


tanh = _by_type(_tanh_32, _tanh_64, "Return tanh(x).")
sigmoid = _by_type(_sigmoid_32, _sigmoid_64, "Return 1 / (1 + exp(-x)).")
softplus = _by_type(_softplus_32, _softplus_64, "Return log(1 + exp(x)).")


# --- erf and the normal distribution: polynomials near 0, and for exp(a**2) erfc(a) beyond ---


@inline
def _erf_ratio_32(s):
    """erf(a) / a - 1 for s = a**2 <= 0.92**2; after N. Juffa."""
    p = f4(-5.96761703e-4)
    p = p * s + f4(4.99119423e-3)
    p = p * s + f4(-2.67681349e-2)
    p = p * s + f4(1.12819925e-1)
    p = p * s + f4(-3.76125336e-1)
    return p * s + f4(1.28379166e-1)


@inline
def _erf_ratio_64(s):
    """erf(a) / a - 1 for s = a**2 <= 1."""
    p = 5.957176147748911e-11
    p = p * s - 1.1372848856791674e-09
    p = p * s + 1.4659775274047436e-08
    p = p * s - 1.6350312701054695e-07
    p = p * s + 1.6461000484121368e-06
    p = p * s - 1.4925595266831182e-05
    p = p * s + 0.0001205533111164271
    p = p * s - 0.000854832698083379
    p = p * s + 0.0052239776248180145
    p = p * s - 0.026866170645076792
    p = p * s + 0.11283791670954879
    p = p * s - 0.3761263890318375
    return p * s + 0.1283791670955126


@inline
def _erfcx_32(a):
    """exp(a**2) erfc(a) for 0.9 <= a <= 6."""
    t = (a - f4(2.5)) / (a + f4(2.5))
    q = f4(-0.00012887483134837842)
    q = q * t + f4(0.0002283799633257643)
    q = q * t + f4(0.0008759152875774328)
    q = q * t - f4(0.0026423659518134547)
    q = q * t - f4(0.003993701160123029)
    q = q * t + f4(0.03992253907546523)
    q = q * t - f4(0.12503305237891782)
    q = q * t + f4(0.2517131932174488)
    q = q * t - f4(0.37173673394897294)
    return q * t + f4(0.2108063640611436)


@inline
def _erfcx_64(a):
    """exp(a**2) erfc(a) for 1 <= a <= 6."""
    t = (a - 2.5) / (a + 2.5)
    q = -1.587633893127344e-06
    q = q * t - 2.2328516517555215e-06
    q = q * t + 7.499735050763299e-06
    q = q * t + 1.8596747731144528e-05
    q = q * t - 3.4175718896856294e-05
    q = q * t - 0.00012887483134837842
    q = q * t + 0.0002283799633257643
    q = q * t + 0.0008759152875774328
    q = q * t - 0.0026423659518134547
    q = q * t - 0.003993701160123029
    q = q * t + 0.03992253907546523
    q = q * t - 0.12503305237891782
    q = q * t + 0.2517131932174488
    q = q * t - 0.37173673394897294
    return q * t + 0.2108063640611436


@inline
def _erf_32(x):
    a = min(abs(x), f4(6.0))
    near = _erf_ratio_32(min(a * a, f4(0.85))) * a + a
    far = f4(1.0) - _erfcx_32(a) * _exp_32(-a * a)
    y = near if a < f4(0.921875) else far
    y = -y if x < f4(0.0) else y
    return y if x == x else x


@inline
def _erf_64(x):
    a = min(abs(x), 6.0)
    near = _erf_ratio_64(min(a * a, 1.0)) * a + a
    far = 1.0 - _erfcx_64(a) * _exp_64(-a * a)
    y = near if a < 1.0 else far
    y = -y if x < 0.0 else y
    return y if x == x else x


@inline
def _normal_32(x):
    bell = _exp_32(f4(-0.5) * x * x)
    a = abs(x) * f4(INVERSE_SQRT_2)
    near = f4(0.5) - f4(0.5) * (_erf_ratio_32(min(a * a, f4(0.85))) * a + a)
    far = f4(0.5) * _erfcx_32(min(a, f4(6.0))) * bell
    lower = near if a < f4(0.921875) else far
    lower = lower if x == x else x
    return (lower if x < f4(0.0) else f4(1.0) - lower), bell


@inline
def _normal_64(x):
    bell = _exp_64(-0.5 * x * x)
    a = abs(x) * INVERSE_SQRT_2
    near = 0.5 - 0.5 * (_erf_ratio_64(min(a * a, 1.0)) * a + a)
    far = 0.5 * _erfcx_64(min(a, 6.0)) * bell
    lower = near if a < 1.0 else far
    lower = lower if x == x else x
    return (lower if x < 0.0 else 1.0 - lower), bell


erf = _by_type(_erf_32, _erf_64, "Return the error function of x.")
normal = _by_type(
    *(_normal_32, _normal_64),
    "Return the normal distribution function of x, small values to their last digits, and exp(-x**2 / 2).",
)


# --- sin and cos: x = n pi / 2 + r + tail, then fdlibm's polynomials ---


@inline
def _sin_cos_reduced(x):
    """Return (sin(r), cos(r), n modulo 4) for a float64 x up to TRIG_LIMIT."""
    n = np.floor(x * 0.6366197723675814 + 0.5)
    # pi / 2 in parts of 33 bits: products with n below 2**20 are exact
    a = x - n * 1.57079632673412561417e00
    b = n * 6.07710050630396597660e-11
    c = a - b
    d = n * 2.02226624879595063154e-21
    r = c - d
    tail = ((a - c) - b) + ((c - r) - d)
    z = r * r
    v = z * r
    p = 1.58969099521155010221e-10
    p = p * z - 2.50507602534068634195e-08
    p = p * z + 2.75573137070700676789e-06
    p = p * z - 1.98412698298579493134e-04
    p = p * z + 8.33333333332248946124e-03
    sine = r - ((z * (0.5 * tail - v * p) - tail) + v * 1.66666666666666324348e-01)
    q = -1.13596475577881948265e-11
    q = q * z + 2.08757232129817482790e-09
    q = q * z - 2.75573143513906633035e-07
    q = q * z + 2.48015872894767294178e-05
    q = q * z - 1.38888888888741095749e-03
    q = q * z + 4.16666666666666019037e-02
    h = 0.5 * z
    w = 1.0 - h
    cosine = w + (((1.0 - w) - h) + (z * (z * q) - r * tail))
    return sine, cosine, i8(n) & i8(3)


@inline
def _sin_64(x):
    c = min(max(x, -TRIG_LIMIT), TRIG_LIMIT)
    sine, cosine, quarter = _sin_cos_reduced(c)
    y = cosine if quarter & i8(1) else sine
    y = -y if quarter & i8(2) else y
    return y if abs(x) < np.inf else np.nan


@inline
def _cos_64(x):
    c = min(max(x, -TRIG_LIMIT), TRIG_LIMIT)
    sine, cosine, quarter = _sin_cos_reduced(c)
    y = sine if quarter & i8(1) else cosine
    y = -y if (quarter + i8(1)) & i8(2) else y
    return y if abs(x) < np.inf else np.nan


@inline
def _sin_32(x):
    return f4(_sin_64(f8(x)))


@inline
def _cos_32(x):
    return f4(_cos_64(f8(x)))


sin = _by_type(_sin_32, _sin_64, "Return sin(x) for |x| <= TRIG_LIMIT.")
cos = _by_type(_cos_32, _cos_64, "Return cos(x) for |x| <= TRIG_LIMIT.")


@inline
def _far_sin_32(x):
    return f4(math.sin(f8(x)))


@inline
def _far_sin_64(x):
    return math.sin(x)


@inline
def _far_cos_32(x):
    return f4(math.cos(f8(x)))


@inline
def _far_cos_64(x):
    return math.cos(x)


far_sin = _by_type(_far_sin_32, _far_sin_64, "Return sin(x) of any finite x, by the C library.")
far_cos = _by_type(_far_cos_32, _far_cos_64, "Return cos(x) of any finite x, by the C library.")
