"""What is done around the products of a layer: rows, biases, activations, slopes; `forward` and `train` call it."""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from . import elementary as el
from .codes import (
    ELU,
    FLOAT32,
    FLOAT64,
    GELU,
    IDENTITY,
    INT64,
    LEAKY_RELU,
    MISH,
    RELU,
    SELU,
    SIGMOID,
    SILU,
    SIN,
    SOFTPLUS,
    SOURCES,
    TANH,
    UINT8,
    code_of,
)
from .compiling import INLINE, part, shared
from .vectors import first_element, run, seen_as

LEAK = 0.01
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
INVERSE_SQRT_2_PI = 1 / math.sqrt(2 * math.pi)
SUMMED_ROWS = 1024
"""Rows of one sum: of so many terms that are alike float32 loses less than a 10,000th."""


@intrinsic
def _converted(typing, source, kind, position, dtype):
    """Element `position` of an array given as bytes, of the type numbered `kind`, in the type `dtype`."""
    real = dtype.dtype

    def codegen(context, builder, signature, args):
        source, kind, position, _ = args
        number = context.get_value_type(real)
        before = builder.basic_block
        done = builder.append_basic_block("converted")
        choice = builder.switch(kind, done)
        found = []
        for code, name in enumerate(SOURCES):
            block = builder.append_basic_block(name)
            choice.add_case(ir.Constant(kind.type, code), block)
            builder.position_at_end(block)
            stored = types.uint8 if name == "bool" else getattr(types, name)
            value = builder.load(first_element(context, builder, signature.args[0], source, position, stored))
            found.append((context.cast(builder, value, stored, real), builder.basic_block))
            builder.branch(done)
        builder.position_at_end(done)
        result = builder.phi(number)
        result.add_incoming(ir.Constant(number, 0.0), before)
        for value, block in found:
            result.add_incoming(value, block)
        return result

    return real(source, kind, position, dtype), codegen


def converted(source, kind, position, dtype):
    """Return element `position` of an array given as bytes, of the type `SOURCES[kind]`, in the type `dtype`."""
    return dtype(source.view(SOURCES[kind])[position])


@overload(converted, jit_options=INLINE)
def _compiled_converted(source, kind, position, dtype):
    return lambda source, kind, position, dtype: _converted(source, kind, position, dtype)


@shared
def load_row(source, kind, row, out, at, n):
    """Write a row of a matrix of any real type, given as bytes, in the type of `out`; uint8 is divided by 255.

    source (rows * n * itemsize,) uint8; kind, a position in `codes.SOURCES`; out (...): `n` from `at` on are
    overwritten.
    """
    dtype = out.dtype.type
    first = row * n
    target = run(out, at, n)
    if kind == UINT8:
        full = dtype(255)
        pixels = run(source, first, n)
        for q in range(n):
            target[q] = dtype(pixels[q]) / full
    elif kind == own_kind(out):
        _convert(run(seen_as(source, dtype), first, n), target)
    elif kind == FLOAT64:  # the types of most tables, in loops of vectors
        _convert(run(seen_as(source, np.float64), first, n), target)
    elif kind == INT64:
        _convert(run(seen_as(source, np.int64), first, n), target)
    elif kind == FLOAT32:
        _convert(run(seen_as(source, np.float32), first, n), target)
    else:
        for q in range(n):
            target[q] = converted(source, kind, first + q, dtype)


@part
def _convert(numbers, target):
    dtype = target.dtype.type
    for q in range(target.size):
        target[q] = dtype(numbers[q])


def own_kind(array):
    """Return the position of an array's type in `codes.SOURCES`."""
    return code_of(array.dtype.name, SOURCES)


@overload(own_kind, jit_options=INLINE)
def _compiled_own_kind(array):
    code = code_of(str(array.dtype), SOURCES)
    return lambda array: code


# --- activations: a row of z becomes f(z + b), the row of slopes f'(z + b) where it is wanted ---


@part
def _identity(z, b, slope, wanted):
    for q in range(z.size):
        z[q] += b[q]
    if wanted:
        for q in range(z.size):
            slope[q] = z.dtype.type(1)


@part
def _relu(z, b, slope, wanted):
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = zero if v <= zero else v  # so that NaN stays
    if wanted:
        for q in range(z.size):
            slope[q] = one if z[q] > zero else zero


@part
def _leaky_relu(z, b, slope, wanted):
    zero, one, leak = z.dtype.type(0), z.dtype.type(1), z.dtype.type(LEAK)
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = v if v > zero else leak * v
    if wanted:
        for q in range(z.size):
            slope[q] = one if z[q] > zero else leak


@part
def _elu(z, b, slope, wanted):
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = v if v > zero else el.expm1(v)
    if wanted:
        for q in range(z.size):
            slope[q] = one if z[q] > zero else z[q] + one


@part
def _selu(z, b, slope, wanted):
    zero, scale = z.dtype.type(0), z.dtype.type(SELU_SCALE)
    below = z.dtype.type(SELU_SCALE * SELU_ALPHA)
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = scale * v if v > zero else below * el.expm1(v)
    if wanted:
        for q in range(z.size):
            slope[q] = scale if z[q] > zero else z[q] + below


@part
def _gelu(z, b, slope, wanted):
    to_density = z.dtype.type(INVERSE_SQRT_2_PI)
    for q in range(z.size):
        v = z[q] + b[q]
        cumulative, bell = el.normal(v)
        z[q] = v * cumulative
        if wanted:
            slope[q] = cumulative + v * (to_density * bell)


@part
def _silu(z, b, slope, wanted):
    one = z.dtype.type(1)
    for q in range(z.size):
        v = z[q] + b[q]
        s = el.sigmoid(v)
        z[q] = v * s
        if wanted:
            slope[q] = s * (one + v * (one - s))


@part
def _mish(z, b, slope, wanted):
    one = z.dtype.type(1)
    for q in range(z.size):
        v = z[q] + b[q]
        t = el.tanh(el.softplus(v))
        z[q] = v * t
        if wanted:
            slope[q] = t + v * el.sigmoid(v) * (one - t * t)


@part
def _softplus(z, b, slope, wanted):
    for q in range(z.size):
        v = z[q] + b[q]
        z[q] = el.softplus(v)
        if wanted:
            slope[q] = el.sigmoid(v)


@part
def _sigmoid(z, b, slope, wanted):
    one = z.dtype.type(1)
    for q in range(z.size):
        z[q] = el.sigmoid(z[q] + b[q])
    if wanted:
        for q in range(z.size):
            slope[q] = z[q] * (one - z[q])


@part
def _tanh(z, b, slope, wanted):
    one = z.dtype.type(1)
    for q in range(z.size):
        z[q] = el.tanh(z[q] + b[q])
    if wanted:
        for q in range(z.size):
            slope[q] = one - z[q] * z[q]


@part
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


@shared
def activate_rows(activation, z, at, rows, columns, b, slopes, wanted):
    """Rows of pre-activations without bias become activations, in place.

    Parameters
    ----------
    activation : int
        A position in `codes.ACTIVATIONS`.
    z : (...) float
        Flat; from `at` on (rows, columns) is overwritten.
    b : (columns,) float
    slopes : (...) float
        As z; overwritten where `wanted`, else not looked at.
    wanted : bool
    """
    for i in range(rows):
        start = at + i * columns
        row = run(z, start, columns)
        slope = run(slopes, start, columns) if wanted else row
        if activation == IDENTITY:
            _identity(row, b, slope, wanted)
        elif activation == RELU:
            _relu(row, b, slope, wanted)
        elif activation == LEAKY_RELU:
            _leaky_relu(row, b, slope, wanted)
        elif activation == ELU:
            _elu(row, b, slope, wanted)
        elif activation == SELU:
            _selu(row, b, slope, wanted)
        elif activation == GELU:
            _gelu(row, b, slope, wanted)
        elif activation == SILU:
            _silu(row, b, slope, wanted)
        elif activation == MISH:
            _mish(row, b, slope, wanted)
        elif activation == SOFTPLUS:
            _softplus(row, b, slope, wanted)
        elif activation == SIGMOID:
            _sigmoid(row, b, slope, wanted)
        elif activation == TANH:
            _tanh(row, b, slope, wanted)
        else:
            _sin_cos(row, b, slope, wanted, activation == SIN)


@part
def activation_backward_rows(activation, a, slopes, has_slope, d, at, count):
    """``d *= slope``; without slopes, d stays where the activation is identity, and for relu is 0 where a is.

    a, slopes, d (...) float, flat; of each, `count` from `at` on; d is overwritten.
    """
    gradient = run(d, at, count)
    if has_slope:
        slope = run(slopes, at, count)
        for q in range(count):
            gradient[q] *= slope[q]
    elif activation == RELU:
        zero = d.dtype.type(0)
        active = run(a, at, count)
        for q in range(count):
            gradient[q] = gradient[q] if active[q] > zero else zero


@part
def sum_columns(d, at, rows, columns, first, stop, out, work):
    """``out[q] = sum over rows of d[i, q]`` for first <= q < stop; d flat, from `at` on (rows, columns).

    Blocks of rows have sums of their own: of millions of terms that are alike, one sum loses some percent in float32.
    work (>= columns,) float is overwritten.
    """
    sums = run(out, first, stop - first)
    for begin in range(0, max(rows, 1), SUMMED_ROWS):
        block = sums if begin == 0 else run(work, first, stop - first)
        for q in range(sums.size):
            block[q] = 0
        for i in range(begin, min(rows, begin + SUMMED_ROWS)):
            start = at + i * columns
            row = run(d, start + first, stop - first)
            for q in range(sums.size):
                block[q] += row[q]
        if begin > 0:
            for q in range(sums.size):
                sums[q] += block[q]
