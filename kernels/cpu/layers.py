"""What is done around the matrix products of a layer: gather rows, add biases, activate, and the same backwards."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from . import elementary as el
from .compiling import OPTIONS

LEAK = 0.01
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
INVERSE_SQRT_2_PI = 1 / math.sqrt(2 * math.pi)

kernel = njit(**OPTIONS)


@kernel
def _convert(source, out):
    for q in range(out.size):
        out[q] = out.dtype.type(source[q])


@kernel
def load_row(source, kind, row, out):
    """Write a row of a matrix of any real type, given as bytes, in the type of `out`; uint8 is divided by 255.

    source (n * columns * itemsize,) uint8; kind, a position in `records.SOURCES`; out (columns,).
    """
    n = out.size
    if kind == 0:
        _convert(source[row * n * 4 : (row + 1) * n * 4].view(np.float32), out)
    elif kind == 1:
        _convert(source[row * n * 8 : (row + 1) * n * 8].view(np.float64), out)
    elif kind == 2:
        full = out.dtype.type(255)
        pixels = source[row * n : (row + 1) * n]
        for q in range(n):
            out[q] = out.dtype.type(pixels[q]) / full
    elif kind == 3:
        _convert(source[row * n : (row + 1) * n], out)
    elif kind == 4:
        _convert(source[row * n : (row + 1) * n].view(np.int8), out)
    elif kind == 5:
        _convert(source[row * n * 2 : (row + 1) * n * 2].view(np.int16), out)
    elif kind == 6:
        _convert(source[row * n * 4 : (row + 1) * n * 4].view(np.int32), out)
    elif kind == 7:
        _convert(source[row * n * 8 : (row + 1) * n * 8].view(np.int64), out)
    elif kind == 8:
        _convert(source[row * n * 2 : (row + 1) * n * 2].view(np.uint16), out)
    elif kind == 9:
        _convert(source[row * n * 4 : (row + 1) * n * 4].view(np.uint32), out)
    elif kind == 10:
        _convert(source[row * n * 8 : (row + 1) * n * 8].view(np.uint64), out)


# --- activations: a row of z becomes f(z + b), the row of slopes f'(z + b) where it is wanted ---


@kernel
def _identity(z, b, slope, wanted):
    for q in range(z.size):
        z[q] += b[q]
    if wanted:
        slope[:] = z.dtype.type(1)


@kernel
def _relu(z, b, slope, wanted):
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = zero if v <= zero else v  # so that NaN stays
    if wanted:
        for q in range(z.size):
            slope[q] = one if z[q] > zero else zero


@kernel
def _leaky_relu(z, b, slope, wanted):
    zero, one, leak = z.dtype.type(0), z.dtype.type(1), z.dtype.type(LEAK)
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = v if v > zero else leak * v
    if wanted:
        for q in range(z.size):
            slope[q] = one if z[q] > zero else leak


@kernel
def _elu(z, b, slope, wanted):
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = v if v > zero else el.expm1(v)
    if wanted:
        for q in range(z.size):
            slope[q] = one if z[q] > zero else z[q] + one


@kernel
def _selu(z, b, slope, wanted):
    zero, scale = z.dtype.type(0), z.dtype.type(SELU_SCALE)
    below = z.dtype.type(SELU_SCALE * SELU_ALPHA)
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = scale * v if v > zero else below * el.expm1(v)
    if wanted:
        for q in range(z.size):
            slope[q] = scale if z[q] > zero else z[q] + below


@kernel
def _gelu(z, b, slope, wanted):
    to_density = z.dtype.type(INVERSE_SQRT_2_PI)
    for q in range(z.size):
        v = z[q] + b[q]
        cumulative, bell = el.normal(v)
        z[q] = v * cumulative
        if wanted:
            slope[q] = cumulative + v * (to_density * bell)


@kernel
def _silu(z, b, slope, wanted):
    one = z.dtype.type(1)
    for q in range(z.size):
        v = z[q] + b[q]
        s = el.sigmoid(v)
        z[q] = v * s
        if wanted:
            slope[q] = s * (one + v * (one - s))


@kernel
def _mish(z, b, slope, wanted):
    one = z.dtype.type(1)
    for q in range(z.size):
        v = z[q] + b[q]
        t = el.tanh(el.softplus(v))
        z[q] = v * t
        if wanted:
            slope[q] = t + v * el.sigmoid(v) * (one - t * t)


@kernel
def _softplus(z, b, slope, wanted):
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = el.softplus(v)
        if wanted:
            slope[q] = el.sigmoid(v)


@kernel
def _sigmoid(z, b, slope, wanted):
    one = z.dtype.type(1)
    for q in range(z.size):
        z[q] = el.sigmoid(z[q] + b[q])
    if wanted:
        for q in range(z.size):
            slope[q] = z[q] * (one - z[q])


@kernel
def _tanh(z, b, slope, wanted):
    one = z.dtype.type(1)
    for q in range(z.size):
        z[q] = el.tanh(z[q] + b[q])
    if wanted:
        for q in range(z.size):
            slope[q] = one - z[q] * z[q]


@kernel
def _sin_cos(z, b, slope, wanted, sine):
    limit = z.dtype.type(el.TRIG_LIMIT)
    far = False
    for q in range(z.size):
        v = z[q] + b[q]
        far |= abs(v) > limit
        z[q] = v
    if far:  # rare: arguments of more than a million, by the C library
        for q in range(z.size):
            s, c = el.far_sin(z[q]), el.far_cos(z[q])
            z[q] = s if sine else c
            if wanted:
                slope[q] = c if sine else -s
    elif sine:
        if wanted:
            for q in range(z.size):
                slope[q] = el.cos(z[q])
        for q in range(z.size):
            z[q] = el.sin(z[q])
    else:
        if wanted:
            for q in range(z.size):
                slope[q] = -el.sin(z[q])
        for q in range(z.size):
            z[q] = el.cos(z[q])


@kernel
def activate_rows(activation, z, b, slopes, wanted):
    """Rows of pre-activations without bias become activations, in place.

    Parameters
    ----------
    activation : int
        A position in `records.ACTIVATIONS`.
    z : (n, O) float
        Overwritten.
    b : (O,) float
    slopes : (n, O) float
        Overwritten where `wanted`; else not looked at.
    wanted : bool
    """
    for i in range(z.shape[0]):
        row = z[i]
        slope = slopes[i] if wanted else row
        if activation == 0:
            _identity(row, b, slope, wanted)
        elif activation == 1:
            _relu(row, b, slope, wanted)
        elif activation == 2:
            _leaky_relu(row, b, slope, wanted)
        elif activation == 3:
            _elu(row, b, slope, wanted)
        elif activation == 4:
            _selu(row, b, slope, wanted)
        elif activation == 5:
            _gelu(row, b, slope, wanted)
        elif activation == 6:
            _silu(row, b, slope, wanted)
        elif activation == 7:
            _mish(row, b, slope, wanted)
        elif activation == 8:
            _softplus(row, b, slope, wanted)
        elif activation == 9:
            _sigmoid(row, b, slope, wanted)
        elif activation == 10:
            _tanh(row, b, slope, wanted)
        else:
            _sin_cos(row, b, slope, wanted, activation == 11)


@kernel
def activation_backward_rows(activation, a, slopes, has_slope, d):
    """``d *= slope``; without slopes, d stays where the activation is identity, and for relu is 0 where a is.

    a, slopes, d (m,) float, flat; d is overwritten.
    """
    if has_slope:
        for q in range(d.size):
            d[q] *= slopes[q]
    elif activation == 1:
        zero = d.dtype.type(0)
        for q in range(d.size):
            d[q] = d[q] if a[q] > zero else zero


@kernel
def sum_columns(d, rows, columns, first, stop, out):
    """``out[q] = sum over rows of d[i, q]`` for first <= q < stop; d flat, (rows, columns)."""
    for q in range(first, stop):
        out[q] = d[q]
    for i in range(1, rows):
        for q in range(first, stop):
            out[q] += d[i * columns + q]
