"""Prediction and evaluation: each thread runs its own share of the rows, in chunks that fit its memory."""

from __future__ import annotations

import numpy as np
from numba import njit

from .compiling import OPTIONS, entry
from .layers import load_row
from .train import forward_rows, output_losses

kernel = njit(**OPTIONS)
u8 = np.uint64


@kernel
def _load(data, first, rows, inputs, x):
    for i in range(rows):
        load_row(data.x, data.x_kind, first + i, x[i * inputs : (i + 1) * inputs])


@entry
def predict_thread(first, stop, net, data, params, memory, batch, out):
    """Write the outputs of the rows from `first` to `stop`.

    Parameters
    ----------
    first, stop : int
    net, data : records
    params : (size,) float
    memory : records.Memory
        This thread's own, for `batch` rows.
    batch : int
    out : (n, K) float
        Rows first..stop are overwritten.
    """
    inputs, outputs = net.units[0], net.units[-1]
    at = net.z_at[net.units.size - 2] * batch
    for start in range(first, stop, batch):
        rows = min(batch, stop - start)
        _load(data, start, rows, inputs, memory.x)
        x = memory.x[: rows * inputs]
        forward_rows(net, params, x, memory.z, memory.slopes, rows, batch, 0, u8(0), u8(0), memory.scratch[0])
        out[start : start + rows] = memory.z[at : at + rows * outputs].reshape(rows, outputs)


@entry
def evaluate_thread(first, stop, net, data, params, memory, batch, totals):
    """Add the sums of weighted loss, weight and weighted hits of the rows from `first` to `stop`.

    Parameters as for `predict_thread`; totals (3,) float64 is this thread's own.
    """
    dtype = params.dtype.type
    inputs, outputs = net.units[0], net.units[-1]
    at = net.z_at[net.units.size - 2] * batch
    lanes = memory.scratch[0]
    order = np.empty(batch, np.int64)
    for start in range(first, stop, batch):
        rows = min(batch, stop - start)
        _load(data, start, rows, inputs, memory.x)
        x = memory.x[: rows * inputs]
        forward_rows(net, params, x, memory.z, memory.slopes, rows, batch, 0, u8(0), u8(0), lanes)
        for i in range(rows):
            order[i] = start + i
        end = at + rows * outputs
        z, d = memory.z[at:end].reshape(rows, outputs), memory.dz[: rows * outputs].reshape(rows, outputs)
        losses, hits = memory.row_losses[:rows], memory.row_hits[:rows]
        output_losses(net, data, order[:rows], z, d, dtype(1), losses, hits, lanes[0], lanes[1])
        for i in range(rows):
            w = 1.0
            if data.weights.size:
                w = float(data.weights[start + i])
            totals[0] += w * float(losses[i])
            totals[1] += w
            totals[2] += w * float(hits[i])
