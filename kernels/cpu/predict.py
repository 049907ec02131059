"""What Python calls to predict and evaluate: each thread runs rows through `forward`, piece by piece."""

from __future__ import annotations

import math

import numpy as np

from .compiling import entry, part
from .forward import forward_rows, load_rows, output_losses, reads_in_place
from .structures import Batch
from .threads import LINE, take
from .vectors import run, seen_as

u8 = np.uint64

RUN = 16
"""Rows whose losses are added up by themselves: where they end the rows may be divided among threads."""
FIRST, STOP, TAKEN = 0, 1, 2
"""A thread's share, a line: its rows, and how many pieces of them are taken."""


@entry
def predict_thread(t, shares, piece, net, data, params, memory, batch, out, totals):
    """Run rows forward: write their outputs, or the sums of their losses; NaN where inputs of a row are not finite.

    A thread takes pieces of its own share, then what is left of others': who is interrupted has not to be waited for.

    Parameters
    ----------
    t : int
        Which thread this is, of as many as there are shares.
    shares : (threads * LINE,) int64
        Of a share, the first row and the one behind its last, multiples of `RUN` but for the end of all, and how many
        pieces are taken; the last is changed where there are several.
    piece : int
        Rows that are taken at once, no more than `batch`; of several threads a multiple of `RUN`.
    net, data : structures.Network, structures.Data
    params : (size,) float
    memory : structures.Memory
        This thread's own, for `batch` rows.
    batch : int
    out : (n * K,) float, or empty
        What is predicted for the rows is written to their part.
    totals : (3 * runs,) float64, or empty
        The sums of weighted loss, weight and weighted hits of each `RUN` rows are added.
    """
    threads = shares.size // LINE
    for ahead in range(threads):
        share = (t + ahead) % threads * LINE
        first, stop = shares[share + FIRST], shares[share + STOP]
        pieces = (stop - first + piece - 1) // piece
        taken = 0 if threads == 1 else take(shares, share + TAKEN, pieces)
        while 0 <= taken < pieces:
            start = first + taken * piece
            rows = min(piece, stop - start)
            _predict_rows(start, rows, net, data, params, memory, batch, out, totals)
            taken = taken + 1 if threads == 1 else take(shares, share + TAKEN, pieces)


@part
def _all_finite(row):
    for q in range(row.size):
        if not math.isfinite(row[q]):
            return False
    return True


@part
def _predict_rows(start, rows, net, data, params, memory, batch, out, totals):
    dtype = params.dtype.type
    inputs, outputs = net.units[0], net.units[-1]
    at = net.z_at[net.units.size - 2] * batch
    lanes = memory.scratch[0]
    in_place = reads_in_place(net, data, params, False)
    x = seen_as(data.x, dtype) if in_place else memory.x
    order = run(memory.order, 0, rows)
    for i in range(rows):
        order[i] = start + i
    x_at = start * inputs
    if not in_place:
        x_at = 0
        load_rows(net, data, order, memory.x, 0, 0, u8(0), u8(0), lanes)
    now = Batch(x, memory.counting, 0, rows if in_place else -1, rows, batch, 0, 0)
    first_sums = run(memory.row_losses, 0, rows)  # there are no losses yet
    forward_rows(net, params, now, x_at, memory, rows, 0, False, u8(0), u8(0), lanes, memory.panels[0], first_sums)
    for i in range(rows):
        if not math.isfinite(first_sums[i]) and not _all_finite(run(x, x_at + i * inputs, inputs)):
            for k in range(outputs):
                memory.z[at + i * outputs + k] = np.nan
    if out.size:
        predicted = run(out, start * outputs, rows * outputs)
        for q in range(predicted.size):
            predicted[q] = memory.z[at + q]
    if totals.size:
        losses, hits = run(memory.row_losses, 0, rows), run(memory.row_hits, 0, rows)
        output_losses(
            *(net.loss, net.loss_parameters, outputs, data, order, memory.z, at, memory.dz, 0),
            *(dtype(1), losses, hits, memory.losses[0]),
        )
        for i in range(rows):
            if math.isnan(memory.z[at + i * outputs]):
                losses[i] = np.nan
            w = 1.0
            if data.weights.size:
                w = float(data.weights[start + i])
            place = (start + i) // RUN * 3
            totals[place] += w * float(losses[i])
            totals[place + 1] += w
            totals[place + 2] += w * float(hits[i])
