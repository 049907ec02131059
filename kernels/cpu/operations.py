"""What Python calls for one fine operation: the kernels that `train` is made of, one at a time.

All arrays are in C order; rows are examples.
"""

from __future__ import annotations

import numpy as np

from .codes import BACKWARD, FORWARD, IDENTITY
from .compiling import allocating_entry, entry
from .forward import output_losses
from .layers import activate_rows, activation_backward_rows, load_row, sum_columns
from .losses import row_hit
from .optimizers import add_l2_squared_norm, average, limit_columns, update
from .products import multiply, multiply_by_transposed, multiply_transposed
from .random import dropout_row
from .threads import barrier

u8 = np.uint64


@entry
def gather(source, kind, order, out):
    """``out[i] = source[order[i]]``; source as bytes, see `layers.load_row`; out (N, I)."""
    n, columns = out.shape
    flat = out.reshape(-1)
    for i in range(n):
        load_row(source, kind, order[i], flat, i * columns, columns)


@allocating_entry
def dense_forward(form, size, x, w, b, out):
    """``out = x @ w + b``, by a form that needs so many numbers of scratch."""
    (n, i), o = x.shape, w.shape[1]
    flat, scratch = out.reshape(-1), np.empty(size, out.dtype)
    multiply(form, x.reshape(-1), 0, np.arange(n), 0, -1, i, n, i, w.reshape(-1), 0, o, flat, 0, scratch)
    activate_rows(IDENTITY, flat, 0, n, o, b, flat, False)


@entry
def activate(activation, z, zeros, slopes, wanted):
    """Z (N, O) becomes f(z), slopes f'(z) where `wanted`; zeros (O,)."""
    activate_rows(activation, z.reshape(-1), 0, z.shape[0], z.shape[1], zeros, slopes.reshape(-1), wanted)


@entry
def activation_backward(activation, a, slopes, has_slope, d):
    """``d *= slope``; all flat."""
    activation_backward_rows(activation, a, slopes, has_slope, d, 0, d.size)


@entry
def dropout(a, slopes, has_slope, threshold, scale, key, step, layer, first_row, lanes):
    """Multiply rows, and slopes where there are any, by ``mask * scale``."""
    for i in range(a.shape[0]):
        dropout_row(a[i], slopes[i], has_slope, threshold, scale, key, first_row + u8(i), step, layer, lanes)


@allocating_entry
def losses(loss, parameters, data, outputs, inverse_total, d_outputs, row_losses, work):
    """Write row losses and gradients, both (N, K), for the targets in `data`."""
    n, k = outputs.shape
    hits = np.empty(n, outputs.dtype)
    output_losses(
        *(loss, parameters, k, data, np.arange(n), outputs.reshape(-1), 0, d_outputs.reshape(-1), 0),
        *(inverse_total, row_losses, hits, work),
    )


@entry
def hits(loss, outputs, labels, targets, out):
    """Write 1 where a row is predicted rightly."""
    for i in range(outputs.shape[0]):
        out[i] = row_hit(loss, outputs[i], labels[i] if labels.size else -1, targets[i])


@allocating_entry
def weight_gradient(form, size, x, dz, dw):
    """``dw = x.T @ dz``, as `dense_forward`."""
    (n, i), o = x.shape, dz.shape[1]
    one, zero = dz.dtype.type(1), dz.dtype.type(0)
    counting, scratch = np.arange(n), np.empty(size, dz.dtype)
    multiply_transposed(
        *(form, x.reshape(-1), 0, counting, 0, i, i, n, dz.reshape(-1), 0, o, one, zero),
        *(dw.reshape(-1), 0, scratch),
    )


@allocating_entry
def bias_gradient(dz, db):
    """``db = sum of dz over rows``."""
    sum_columns(dz.reshape(-1), 0, dz.shape[0], dz.shape[1], 0, dz.shape[1], db, np.empty_like(db))


@allocating_entry
def input_gradient(form, size, dz, w, dx):
    """``dx = dz @ w.T``, as `dense_forward`."""
    (n, o), i = dz.shape, w.shape[0]
    scratch = np.empty(size, dz.dtype)
    multiply_by_transposed(form, dz.reshape(-1), 0, np.arange(n), n, o, w.reshape(-1), 0, i, dx.reshape(-1), 0, scratch)


@entry
def product(form, which, repeats, x, w, d, rows, inputs, outputs, index, out, scratch):
    """Compute one of the three products of a layer (`codes.PRODUCTS`) so many times, to be timed; flat arrays."""
    one, zero = w.dtype.type(1), w.dtype.type(0)
    for _ in range(repeats):
        if which == FORWARD:
            multiply(form, x, 0, index, 0, -1, inputs, rows, inputs, w, 0, outputs, out, 0, scratch)
        elif which == BACKWARD:
            multiply_by_transposed(form, d, 0, index, rows, outputs, w, 0, inputs, out, 0, scratch)
        else:
            multiply_transposed(
                *(form, x, 0, index, 0, inputs, inputs, rows, d, 0, outputs, one, zero, out, 0, scratch)
            )


@entry
def meet(threads, times, arrivals, passed):
    """Wait for the other threads so many times, to be timed, after `passed` barriers."""
    for i in range(times):
        barrier(arrivals, threads, passed + i + 1)


@entry
def optimize(rule, p, g, mean, square, rate, correction1, correction2, kept):
    """Take one optimizer step on flat arrays; those of moments may be empty."""
    zero, one = p.dtype.type(0), p.dtype.type(1)
    update(rule, p, g, mean, square, rate, correction1, correction2, kept, zero, one)


@entry
def squared_norm(array):
    """Return the sum of squares of a flat array, in float64."""
    return add_l2_squared_norm(array, array, array.dtype.type(0))


@entry
def max_norm(w, limit, norms):
    """Scale the columns of w (I, O) down to the 2-norm `limit`; norms (O,) is overwritten."""
    limit_columns(w.reshape(-1), w.shape[0], w.shape[1], 0, w.shape[1], limit, norms)


@entry
def moving_average(mean, p, share):
    """``mean = (1 - share) mean + share p``, flat."""
    average(mean, p, share)
