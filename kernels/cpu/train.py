"""Whole runs of training steps in one compiled call, which every thread of the run enters once.

A step has two phases, with a barrier after each:

1. rows: a thread gathers its rows of the batch, runs them forward and the gradients of their activations backward;
2. features: a thread owns a slice of the input features of every W (and of every b), takes the products that are its
   gradient over all rows, and updates it.  Nothing is reduced between threads, so every number is written by one.

Where the update is plain gradient descent the product and the update are one: W = beta W - rate A' dZ.
Clipping and max-norm need a number from all threads, and cost a barrier more each.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from .blas import gemm
from .compiling import OPTIONS, entry
from .layers import activate_rows, activation_backward_rows, load_row, sum_columns
from .losses import row_hit, row_loss
from .optimizers import add_l2_squared_norm, average, limit_columns, update
from .random import dropout_row
from .threads import barrier

kernel = njit(**OPTIONS)
u8 = np.uint64


@kernel
def forward_rows(net, params, x, z, slopes, rows, batch, first_row, key, step, lanes):
    """Run rows forward.

    Parameters
    ----------
    net : records.Network
    params : (size,) float
    x : (rows * I,) float
        Inputs of these rows; multiplied by the dropout mask.
    z, slopes : (batch * sum of outputs,) float
        Memory of the whole batch; the part of these rows is overwritten.
    rows, batch, first_row : int
        How many rows, of how many, from which on.
    key, step : uint64
    lanes : (4, m) float
        Overwritten.
    """
    dtype = params.dtype.type
    one, zero = dtype(1), dtype(0)
    units = net.units
    if net.thresholds[0] > u8(0):
        inputs = x.reshape(rows, units[0])
        for i in range(rows):
            row = inputs[i]
            dropout_row(row, row, False, net.thresholds[0], net.scales[0], key, u8(first_row + i), step, u8(0), lanes)
    below = x
    for layer in range(units.size - 1):
        i_, o = units[layer], units[layer + 1]
        start = net.z_at[layer] * batch + first_row * o
        flat = z[start : start + rows * o]
        gemm(False, False, rows, o, i_, one, below, i_, params[net.weight_at[layer] :], o, zero, flat, o)
        wanted = net.needs_slope[layer]
        slope = slopes[start : start + rows * o] if wanted else flat
        b = params[net.bias_at[layer] : net.bias_at[layer] + o]
        activate_rows(net.activations[layer], flat.reshape(rows, o), b, slope.reshape(rows, o), wanted)
        if layer + 2 < units.size and net.thresholds[layer + 1] > u8(0):
            a, s = flat.reshape(rows, o), slope.reshape(rows, o)
            for i in range(rows):
                dropout_row(
                    *(a[i], s[i], wanted, net.thresholds[layer + 1], net.scales[layer + 1]),
                    *(key, u8(first_row + i), step, u8(layer + 1), lanes),
                )
        below = flat


@kernel
def output_losses(net, data, order, outputs, d_outputs, weights_scale, row_losses, row_hits, target, padded):
    """Write the loss of each row, its gradient by the outputs times weight and scale, and whether it was a hit.

    Parameters
    ----------
    net : records.Network
    data : records.Data
    order : (rows,) int64
        Where each row lies in the data.
    outputs, d_outputs : (rows, K) float
    weights_scale : float
        1 over the total weight of the batch.
    row_losses, row_hits : (rows,) float
        Overwritten, without weights.
    target, padded : (>= K + VECTOR,) float
        Overwritten.
    """
    k = outputs.shape[1]
    targets = target[:k]
    label = -1
    for i in range(outputs.shape[0]):
        row = order[i]
        if data.labels.size:
            label = data.labels[row]
        else:
            load_row(data.targets, data.targets_kind, row, targets)
        scale = weights_scale
        if data.weights.size:
            scale = weights_scale * data.weights[row]
        row_losses[i] = row_loss(net.loss, net.loss_parameter, outputs[i], label, targets, d_outputs[i], scale, padded)
        row_hits[i] = row_hit(net.loss, outputs[i], label, targets)


@kernel
def backward_rows(net, params, z, slopes, dz, rows, batch, first_row):
    """Take the gradient of the outputs of these rows down to the lowest layer that trains."""
    dtype = params.dtype.type
    one, zero = dtype(1), dtype(0)
    units = net.units
    for layer in range(units.size - 2, net.lowest - 1, -1):
        i_, o = units[layer], units[layer + 1]
        start = net.z_at[layer] * batch + first_row * o
        stop = start + rows * o
        d = dz[start:stop]
        has = net.needs_slope[layer]
        activation_backward_rows(net.activations[layer], z[start:stop], slopes[start:stop] if has else d, has, d)
        if layer > net.lowest:
            at = net.z_at[layer - 1] * batch + first_row * i_
            weights = params[net.weight_at[layer] :]
            gemm(False, True, rows, i_, o, one, d, o, weights, o, zero, dz[at : at + rows * i_], i_)


@kernel
def layer_gradient(net, x, z, dz, layer, rows, batch, first, stop, alpha, beta, out):
    """``out = beta out + alpha * (rows first..stop of W's gradient)``; out is the whole W, flat."""
    i_, o = net.units[layer], net.units[layer + 1]
    if stop > first:
        below = z[net.z_at[layer - 1] * batch :] if layer else x
        at = net.z_at[layer] * batch
        d = dz[at : at + rows * o]
        gemm(True, False, stop - first, o, rows, alpha, below[first:], i_, d, o, beta, out[first * o :], o)


@kernel
def _pick(buffer, start, stop):
    """Return a run of a buffer, or nothing of one that is empty."""
    return buffer[start:stop] if buffer.size else buffer


@kernel
def _gradients_of_slice(net, buffers, memory, rows, batch, t, threads, scratch):
    """Leave this thread's part of all gradients in ``buffers.grads``; return their sum of squares, L2 included."""
    dtype = buffers.params.dtype.type
    total = 0.0
    for layer in range(net.lowest, net.units.size - 1):
        if net.frozen[layer]:
            continue
        i_, o = net.units[layer], net.units[layer + 1]
        w, b = net.weight_at[layer], net.bias_at[layer]
        first, stop = i_ * t // threads, i_ * (t + 1) // threads
        layer_gradient(
            *(net, memory.x, memory.z, memory.dz, layer, rows, batch, first, stop),
            *(dtype(1), dtype(0), buffers.grads[w : w + i_ * o]),
        )
        part = slice(w + first * o, w + stop * o)
        total += add_l2_squared_norm(buffers.grads[part], buffers.params[part], net.l2)
        first, stop = o * t // threads, o * (t + 1) // threads
        at = net.z_at[layer] * batch
        sum_columns(memory.dz[at : at + rows * o], rows, o, first, stop, scratch)
        for q in range(first, stop):
            buffers.grads[b + q] = scratch[q]
            total += float(scratch[q]) * float(scratch[q])
    return total


@kernel
def _update_slice(net, rule, buffers, memory, rows, batch, t, threads, scalars, clip, scratch):
    """Update this thread's part of all parameters; with a positive `clip` from the gradients that are there."""
    params, grads = buffers.params, buffers.grads
    dtype = params.dtype.type
    one, zero = dtype(1), dtype(0)
    rate, correction1, correction2 = dtype(scalars[0]), dtype(scalars[1]), dtype(scalars[2])
    there = clip > zero
    clip = clip if there else one
    l2 = zero if there else net.l2
    decay = dtype(1.0 - scalars[0] * float(rule.decay))
    averages = rule.has_average and net.max_norm == zero
    fused = rule.optimizer == 0 and rule.a == zero and not there
    for layer in range(net.lowest, net.units.size - 1):
        if net.frozen[layer]:
            continue
        i_, o = net.units[layer], net.units[layer + 1]
        w, b = net.weight_at[layer], net.bias_at[layer]
        first, stop = i_ * t // threads, i_ * (t + 1) // threads
        start, end = w + first * o, w + stop * o
        if fused:
            layer_gradient(
                *(net, memory.x, memory.z, memory.dz, layer, rows, batch, first, stop),
                *(-rate, decay - rate * l2, params[w : w + i_ * o]),
            )
        else:
            if not there:
                layer_gradient(
                    *(net, memory.x, memory.z, memory.dz, layer, rows, batch, first, stop),
                    *(one, zero, grads[w : w + i_ * o]),
                )
            update(
                *(rule, params[start:end], grads[start:end]),
                *(_pick(buffers.moment1, start, end), _pick(buffers.moment2, start, end)),
                *(rate, correction1, correction2, decay, l2, clip),
            )
        if averages:
            average(buffers.average[start:end], params[start:end], dtype(scalars[3]))
        first, stop = o * t // threads, o * (t + 1) // threads
        start, end = b + first, b + stop
        if not there:
            at = net.z_at[layer] * batch
            sum_columns(memory.dz[at : at + rows * o], rows, o, first, stop, scratch)
        gradient = grads[start:end] if there else scratch[first:stop]
        update(
            *(rule, params[start:end], gradient),
            *(_pick(buffers.moment1, start, end), _pick(buffers.moment2, start, end)),
            *(rate, correction1, correction2, one, zero, clip),
        )
        if averages:
            average(buffers.average[start:end], params[start:end], dtype(scalars[3]))


@kernel
def _limit_slice(net, rule, buffers, t, threads, decay, norms):
    """Limit the norms of this thread's columns of every W, then average this thread's part."""
    for layer in range(net.lowest, net.units.size - 1):
        if net.frozen[layer]:
            continue
        i_, o = net.units[layer], net.units[layer + 1]
        w, b = net.weight_at[layer], net.bias_at[layer]
        first, stop = o * t // threads, o * (t + 1) // threads
        limit_columns(buffers.params[w : w + i_ * o], i_, o, first, stop, net.max_norm, norms)
        if rule.has_average:
            for i in range(i_):
                part = slice(w + i * o + first, w + i * o + stop)
                average(buffers.average[part], buffers.params[part], decay)
            part = slice(b + first, b + stop)
            average(buffers.average[part], buffers.params[part], decay)


@entry
def train_thread(t, threads, net, rule, data, buffers, memory, order, batch, first, table, key, step, totals, done):
    """Take part in as many training steps as `table` has rows.

    Parameters
    ----------
    t, threads : int
        Which thread this is, of how many.
    net, rule, data, buffers, memory : records
        The memory is shared; its barrier stands at 0.
    order : (n,) int64
        The rows of the epoch.
    batch, first : int
        Rows a step, and the number of the first step in the epoch.
    table : (count, 5) float64
        See `fastmlp.optimizers.StepScalars`.
    key, step : uint64
        The random key, and how many steps the network has done.
    totals : (3,) float64
        Sums over the rows of weighted loss, weight and weighted hits are added, by thread 0.
    done : (1,) int64
        Overwritten by thread 0 with the steps done; less than asked for where a loss was not finite.
    """
    dtype = buffers.params.dtype.type
    zero = dtype(0)
    units = net.units
    inputs, outputs = units[0], units[-1]
    last = units.size - 2
    lanes = memory.scratch[t]
    passed = 0
    finished = 0
    for s in range(table.shape[0]):
        scalars = table[s]
        if scalars[4] == 0.0:
            finished += 1
            continue
        begin = (first + s) * batch
        rows = min(batch, order.size - begin)
        r0, r1 = rows * t // threads, rows * (t + 1) // threads
        n = r1 - r0
        if n > 0:
            own = order[begin + r0 : begin + r1]
            x = memory.x[r0 * inputs : r1 * inputs]
            for i in range(n):
                load_row(data.x, data.x_kind, own[i], x[i * inputs : (i + 1) * inputs])
            forward_rows(net, buffers.params, x, memory.z, memory.slopes, n, batch, r0, key, step + u8(s), lanes)
            at = net.z_at[last] * batch + r0 * outputs
            end = at + n * outputs
            output_losses(
                *(net, data, own, memory.z[at:end].reshape(n, outputs), memory.dz[at:end].reshape(n, outputs)),
                *(dtype(scalars[4]), memory.row_losses[r0:r1], memory.row_hits[r0:r1], lanes[0], lanes[1]),
            )
            backward_rows(net, buffers.params, memory.z, memory.slopes, memory.dz, n, batch, r0)
        passed += 1
        barrier(memory.arrivals, threads, passed)
        # every thread sums all rows in the same order, so all come to the same decision, for any number of threads
        loss, weight, hits = 0.0, 0.0, 0.0
        for i in range(rows):
            w = 1.0
            if data.weights.size:
                w = float(data.weights[order[begin + i]])
            loss += w * float(memory.row_losses[i])
            hits += w * float(memory.row_hits[i])
            weight += w
        if not math.isfinite(loss):
            break
        clip = zero
        if rule.clip_norm > zero:
            memory.norms[t] = _gradients_of_slice(net, buffers, memory, rows, batch, t, threads, lanes[0])
            passed += 1
            barrier(memory.arrivals, threads, passed)
            norm = math.sqrt(memory.norms.sum())
            clip = dtype(1)
            if norm > float(rule.clip_norm):
                clip = dtype(float(rule.clip_norm) / norm)
        _update_slice(net, rule, buffers, memory, rows, batch, t, threads, scalars, clip, lanes[0])
        if net.max_norm > zero:
            passed += 1
            barrier(memory.arrivals, threads, passed)
            _limit_slice(net, rule, buffers, t, threads, dtype(scalars[3]), lanes[0])
        if t == 0:
            totals[0] += loss
            totals[1] += weight
            totals[2] += hits
        passed += 1
        barrier(memory.arrivals, threads, passed)
        finished += 1
    if t == 0:
        done[0] = finished
