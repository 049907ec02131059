"""Rows of a batch, from their inputs to the loss of each; `train` and `predict` call it, on `layers`, `products`."""

from __future__ import annotations

import numpy as np

from .codes import BLAS, FORWARD, GRADIENT, SOFTMAX_CROSS_ENTROPY
from .compiling import part, shared
from .layers import activate_rows, load_row, own_kind
from .losses import LANES, row_hit, row_loss, softmax_cross_entropy
from .products import multiply
from .random import dropout_row
from .vectors import run

u8 = np.uint64


@part
def reads_in_place(net, data, params, trains):
    """Tell whether the lowest layer can multiply inputs where they lie, in the user's own array."""
    by_index = net.forms[0, FORWARD] != BLAS and not (trains and net.forms[0, GRADIENT] == BLAS)
    return by_index and data.x_kind == own_kind(params) and net.thresholds[0] == u8(0)


@part
def multiply_features(net, params, batch, memory, t, p, parts):
    """Multiply this part's features of all rows by their weights in this thread, into ``memory.parts[p]``."""
    inputs, o = net.units[0], net.units[1]
    first, stop = inputs * p // parts, inputs * (p + 1) // parts
    if first == stop:  # there are more parts than features
        nothing = run(memory.parts[p], 0, batch.rows * o)
        for q in range(nothing.size):
            nothing[q] = 0
        return
    multiply(
        *(net.forms[0, FORWARD], batch.x, first, batch.index, batch.first, batch.after),
        *(
            inputs,
            batch.rows,
            stop - first,
            params,
            net.weight_at[0] + first * o,
            o,
            memory.parts[p],
            0,
            memory.panels[t],
        ),
    )


@part
def add_parts(parts, at, count, z):
    """``z = sum of all parts``; of each and of z, `count` from `at` on."""
    total, own = run(z, at, count), run(parts[0], at, count)
    for q in range(count):
        total[q] = own[q]
    for p in range(1, parts.shape[0]):
        own = run(parts[p], at, count)
        for q in range(count):
            total[q] += own[q]


@part
def load_rows(net, data, order, x, at, first_row, key, step, lanes):
    """Gather rows of the inputs, and apply the dropout of inputs.

    Parameters
    ----------
    net, data : structures.Network, structures.Data
    order : (n,) int64
        Which rows.
    x : (...) float
        Flat; n rows from `at` on are overwritten.
    first_row : int
        The place of the first one in the batch.
    key, step : uint64
    lanes : (4, m) float
        Overwritten.
    """
    inputs = net.units[0]
    for i in range(order.size):
        load_row(data.x, data.x_kind, order[i], x, at + i * inputs, inputs)
    threshold = net.thresholds[0]
    if threshold > u8(0):
        slopes = threshold == u8(0)  # False, as a number that is not known when compiling
        for i in range(order.size):
            row = run(x, at + i * inputs, inputs)
            dropout_row(row, row, slopes, threshold, net.scales[0], key, u8(first_row + i), step, u8(0), lanes)


@part
def forward_rows(net, params, batch, x_at, memory, rows, first_row, multiplied, key, step, lanes, panels, first_sums):
    """Run rows forward.

    Parameters
    ----------
    net : structures.Network
    params : (size,) float
    batch : structures.Batch
        Its inputs start at `x_at`; those of these rows are at ``batch.index[batch.first + first_row :]``.
    memory : structures.Memory
        Of the whole batch; the part of these rows of z and slopes is overwritten.
    rows, first_row : int
        How many rows, from which on.
    multiplied : bool
        Whether the lowest layer's products lie in ``memory.parts``.
    key, step : uint64
    lanes : (4, m) float
        Overwritten.
    panels : (m,) float
        Of ``memory.panels``; overwritten.
    first_sums : (rows,) float, or empty
        Overwritten with what the first unit of the lowest layer sums up of each row.  No infinity and no NaN among a
        row's inputs leaves that finite, as an activation of it may be.
    """
    units, z, slopes = net.units, memory.z, memory.slopes
    below, at, index, first = batch.x, x_at, batch.index, batch.first + first_row
    after = batch.after + first_row if batch.after >= 0 else -1
    if net.forms[0, FORWARD] == BLAS:
        at += first_row * units[0]  # a BLAS looks at no index: these are gathered, and it starts where they do
    for layer in range(units.size - 1):
        i_, o = units[layer], units[layer + 1]
        start = net.z_at[layer] * batch.size + first_row * o
        if multiplied and layer == 0:
            add_parts(memory.parts, start, rows * o, z)
        else:
            form, w = net.forms[layer, FORWARD], net.weight_at[layer]
            multiply(form, below, at, index, first, after, i_, rows, i_, params, w, o, z, start, panels)
        if layer == 0:
            for i in range(first_sums.size):
                first_sums[i] = z[start + i * o]
        wanted = net.needs_slope[layer]
        activate_rows(net.activations[layer], z, start, rows, o, run(params, net.bias_at[layer], o), slopes, wanted)
        threshold = net.thresholds[layer + 1] if layer + 2 < units.size else u8(0)
        if threshold > u8(0):
            for i in range(rows):
                row = run(z, start + i * o, o)
                slope = run(slopes, start + i * o, o) if wanted else row
                dropout_row(
                    *(row, slope, wanted, threshold, net.scales[layer + 1]),
                    *(key, u8(batch.place + first_row + i), step, u8(layer + 1), lanes),
                )
        below, at, index, first, after = z, start, memory.counting, 0, -1


@shared
def output_losses(loss, parameters, k, data, order, z, at, d, d_at, scale, row_losses, row_hits, work):
    """Write the loss of each row, its gradient by the outputs times weight and scale, and whether it was a hit.

    Parameters
    ----------
    loss : int
        A position in `codes.LOSSES`.
    parameters : (P,) float
        Label smoothing, Huber's delta, or the quantiles; empty where there are none.
    k : int
        How many outputs.
    data : structures.Data
    order : (rows,) int64
        Where each row lies in the data.
    z, d : (...) float
        Flat, (rows, K) from `at` and `d_at` on; d is overwritten.
    scale : float
        1 over the total weight of the batch.
    row_losses, row_hits : (rows,) float
        Overwritten, without weights.
    work : (`losses.work_size(K)`,) float
        Overwritten.
    """
    scales, targets = run(work, 0, LANES), run(work, LANES, k * LANES)
    work = run(work, (1 + k) * LANES, work.size - (1 + k) * LANES)
    for first in range(0, order.size, LANES):
        rows = min(LANES, order.size - first)
        chosen = run(order, first, rows)
        for i in range(LANES):
            scales[i] = scale
        if data.weights.size:
            for i in range(rows):
                scales[i] *= data.weights[chosen[i]]
        if data.labels.size == 0:
            for i in range(rows):
                load_row(data.targets, data.targets_kind, chosen[i], targets, i * k, k)
        losses, hits = run(row_losses, first, rows), run(row_hits, first, rows)
        start, d_start = at + first * k, d_at + first * k
        if loss == SOFTMAX_CROSS_ENTROPY:
            softmax_cross_entropy(
                *(z, start, rows, k, data.labels, chosen, targets, parameters, scales),
                *(d, d_start, losses, hits, work),
            )
        else:
            for i in range(rows):
                outputs, gradient = run(z, start + i * k, k), run(d, d_start + i * k, k)
                wanted = run(targets, i * k, k)
                label = data.labels[chosen[i]] if data.labels.size else -1
                losses[i] = row_loss(loss, parameters, outputs, label, wanted, gradient, scales[i])
                hits[i] = row_hit(loss, outputs, label, wanted)
