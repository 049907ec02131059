"""What Python calls to predict and evaluate: each thread runs its own rows through `forward`, chunk by chunk."""

from __future__ import annotations

import numpy as np

from .compiling import entry
from .forward import forward_rows, load_rows, output_losses, reads_in_place
from .structures import Batch
from .vectors import run, seen_as

u8 = np.uint64

RUN = 16
"""Rows whose losses are added up by themselves: where they end the rows may be divided among threads."""


@entry
def predict_thread(first, stop, net, data, params, memory, batch, out, totals):
    """Run the rows from `first` to `stop`: write their outputs, or the sums of their losses.

    Parameters
    ----------
    first, stop : int
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
    dtype = params.dtype.type
    inputs, outputs = net.units[0], net.units[-1]
    at = net.z_at[net.units.size - 2] * batch
    lanes = memory.scratch[0]
    in_place = reads_in_place(net, data, params, False)
    x = seen_as(data.x, dtype) if in_place else memory.x
    for start in range(first, stop, batch):
        rows = min(batch, stop - start)
        order = run(memory.order, 0, rows)
        for i in range(rows):
            order[i] = start + i
        x_at = start * inputs
        if not in_place:
            x_at = 0
            load_rows(net, data, order, memory.x, 0, 0, u8(0), u8(0), lanes)
        now = Batch(x, memory.counting, 0, -1, rows, batch, 0, 0)
        forward_rows(net, params, now, x_at, memory, rows, 0, False, u8(0), u8(0), lanes, memory.panels[0])
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
                w = 1.0
                if data.weights.size:
                    w = float(data.weights[start + i])
                place = (start + i - first) // RUN * 3
                totals[place] += w * float(losses[i])
                totals[place + 1] += w
                totals[place + 2] += w * float(hits[i])
