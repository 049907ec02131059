"""What Python calls to train: a run of whole steps, entered once by every thread; `forward`, back, then `optimizers`.

A step has two phases, with a barrier after each:

1. rows: a thread runs its rows of the batch forward, and the gradients of their activations backward;
2. features: a thread owns a slice of the input features of every W (and of every b), takes the products that are its
   gradient over all rows, and updates it.  Nothing is reduced between threads, so every number is written by one.

Where there is memory for it (`Memory.parts`), the lowest layer's product is shared out by features too, before the
first phase and with a barrier of its own: a thread multiplies the weights that it updates, which never leave its cache.

Where the update is plain gradient descent the product and the update are one: W = beta W - rate A' dZ.
Clipping and max-norm need a number from all threads, and cost a barrier more each.
"""

from __future__ import annotations

import math

import numpy as np

from .codes import (
    AVERAGE_DECAY,
    BACKWARD,
    BLAS,
    CORRECTION1,
    CORRECTION2,
    DIRECT,
    GRADIENT,
    INVERSE_TOTAL,
    L2_SHARE,
    RATE,
    SGD,
)
from .compiling import entry, part
from .forward import forward_rows, load_rows, multiply_features, output_losses, reads_in_place
from .layers import activation_backward_rows, sum_columns
from .optimizers import add_l2_squared_norm, average, limit_columns, squared_norm, update
from .products import multiply_by_transposed, multiply_transposed
from .structures import Batch
from .threads import all_begin, barrier, next_part
from .vectors import run, seen_as

u8 = np.uint64

IN_CACHE = 4 * 1024
"""Parameters that are updated at a time, right after their gradient: four arrays of them fit a second-level cache."""
IN_BLOCKS = 256 * 1024
"""The same, where the gradient's product copies an operand first."""


@part
def backward_rows(net, params, memory, rows, batch, first_row, panels):
    """Take the gradient of the outputs of these rows down to the lowest layer that trains."""
    units, dz = net.units, memory.dz
    for layer in range(units.size - 2, net.lowest - 1, -1):
        i_, o = units[layer], units[layer + 1]
        start = net.z_at[layer] * batch + first_row * o
        has = net.needs_slope[layer]
        activation_backward_rows(net.activations[layer], memory.z, memory.slopes, has, dz, start, rows * o)
        if layer > net.lowest:
            at = net.z_at[layer - 1] * batch + first_row * i_
            w = net.weight_at[layer]
            form = net.forms[layer, BACKWARD]
            multiply_by_transposed(form, dz, start, memory.counting, rows, o, params, w, i_, dz, at, panels)


@part
def layer_gradient(net, batch, memory, layer, first, stop, alpha, beta, out, out_at, panels):
    """``out = beta out + alpha * (rows first..stop of W's gradient)``, from `out_at` on."""
    i_, o = net.units[layer], net.units[layer + 1]
    form, below, at, index, index_at = net.forms[layer, GRADIENT], batch.x, first, batch.index, batch.first
    if layer:
        at += net.z_at[layer - 1] * batch.size + batch.row * i_
        below, index, index_at = memory.z, memory.counting, 0
    elif form == BLAS:
        at += batch.row * i_  # it looks at no index
    d = net.z_at[layer] * batch.size + batch.row * o
    multiply_transposed(
        *(form, below, at, index, index_at, i_, stop - first, batch.rows),
        *(memory.dz, d, o, alpha, beta, out, out_at, panels),
    )


@part
def _gradients_of_slice(net, buffers, batch, memory, t, p, parts, l2):
    """Leave this part of all gradients in ``buffers.grads``; return their sum of squares, L2 included."""
    grads, scratch = buffers.grads, memory.scratch[t, 0]
    dtype = grads.dtype.type
    total = 0.0
    for layer in range(net.lowest, net.units.size - 1):
        if net.frozen[layer]:
            continue
        i_, o = net.units[layer], net.units[layer + 1]
        w, b = net.weight_at[layer], net.bias_at[layer]
        first, stop = i_ * p // parts, i_ * (p + 1) // parts
        start, end = w + first * o, w + stop * o
        layer_gradient(net, batch, memory, layer, first, stop, dtype(1), dtype(0), grads, start, memory.panels[t])
        total += add_l2_squared_norm(run(grads, start, end - start), run(buffers.params, start, end - start), l2)
        first, stop = o * p // parts, o * (p + 1) // parts
        sum_columns(memory.dz, net.z_at[layer] * batch.size, batch.rows, o, first, stop, scratch, memory.scratch[t, 1])
        for q in range(first, stop):
            grads[b + q] = scratch[q]
            total += float(scratch[q]) * float(scratch[q])
    return total


@part
def _update_run(rule, buffers, start, end, g, rate, correction1, correction2, kept, l2, clip, averages, average_share):
    """Update the parameters from `start` to `end`, and their average."""
    p = run(buffers.params, start, end - start)
    # of buffers that are empty too, which nothing reads
    mean, square = run(buffers.mean, start, end - start), run(buffers.square, start, end - start)
    update(rule, p, g, mean, square, rate, correction1, correction2, kept, l2, clip)
    if averages:
        average(run(buffers.average, start, end - start), p, average_share)


@part
def _update_slice(net, rule, buffers, batch, memory, t, p, parts, scalars, clip):
    """Update this part of all parameters; where they are clipped, which may be to 0, from the gradients there are."""
    params, gradients, scratch = buffers.params, memory.gradients[t], memory.scratch[t, 0]
    dtype = params.dtype.type
    one, zero = dtype(1), dtype(0)
    rate, correction1, correction2 = dtype(scalars[RATE]), dtype(scalars[CORRECTION1]), dtype(scalars[CORRECTION2])
    average_share = dtype(1 - scalars[AVERAGE_DECAY])
    there = rule.clip_norm > zero
    l2 = zero if there else net.l2 * dtype(scalars[L2_SHARE])
    kept = dtype(1.0 - scalars[RATE] * float(rule.weight_decay))
    averages = rule.has_average and net.max_norm == zero
    # with a penalty, 1 - rate l2 would be rounded alike in every step, and of a small one nothing left
    fused = rule.optimizer == SGD and rule.mean_decay == zero and l2 == zero and not there
    # from the top: the next step begins with what was written last, and may still be in the cache
    for layer in range(net.units.size - 2, net.lowest - 1, -1):
        if net.frozen[layer]:
            continue
        i_, o = net.units[layer], net.units[layer + 1]
        w, b = net.weight_at[layer], net.bias_at[layer]
        low, high = i_ * p // parts, i_ * (p + 1) // parts
        most = IN_CACHE if net.forms[layer, GRADIENT] == DIRECT else IN_BLOCKS
        features = max(8, most // o // 8 * 8)
        if fused:
            features = i_
        for first in range(low, high, features):
            stop = min(first + features, high)
            start, end = w + first * o, w + stop * o
            if fused:
                layer_gradient(
                    *(net, batch, memory, layer, first, stop, -rate, kept, params, start),
                    memory.panels[t],
                )
                if averages:
                    average(run(buffers.average, start, end - start), run(params, start, end - start), average_share)
            else:
                if there:
                    gradient = run(buffers.grads, start, end - start)
                else:
                    layer_gradient(net, batch, memory, layer, first, stop, one, zero, gradients, 0, memory.panels[t])
                    gradient = run(gradients, 0, end - start)
                _update_run(
                    *(rule, buffers, start, end, gradient),
                    *(rate, correction1, correction2, kept, l2, clip, averages, average_share),
                )
        first, stop = o * p // parts, o * (p + 1) // parts
        start, end = b + first, b + stop
        if not there:
            z = net.z_at[layer] * batch.size
            sum_columns(memory.dz, z, batch.rows, o, first, stop, scratch, memory.scratch[t, 1])
        gradient = run(buffers.grads, start, end - start) if there else run(scratch, first, stop - first)
        _update_run(
            *(rule, buffers, start, end, gradient),
            *(rate, correction1, correction2, one, zero, clip, averages, average_share),
        )


@part
def _limit_slice(net, rule, buffers, p, parts, share, norms):
    """Limit the norms of this part's columns of every W, then average this part."""
    for layer in range(net.lowest, net.units.size - 1):
        if net.frozen[layer]:
            continue
        i_, o = net.units[layer], net.units[layer + 1]
        w, b = net.weight_at[layer], net.bias_at[layer]
        first, stop = o * p // parts, o * (p + 1) // parts
        limit_columns(run(buffers.params, w, i_ * o), i_, o, first, stop, net.max_norm, norms)
        if rule.has_average:
            n = stop - first
            for i in range(i_):
                at = w + i * o + first
                average(run(buffers.average, at, n), run(buffers.params, at, n), share)
            average(run(buffers.average, b + first, n), run(buffers.params, b + first, n), share)


@part
def _apply_gradients(net, rule, buffers, batch, memory, t, threads, parts, scalars, passed):
    """Take the rest of a step, this thread's parts of it, from the gradients of the activations.

    The gradients of the parameters are taken here too, each slice right before it is updated while it is in the cache.
    `passed` is the barriers met so far; returned with those met here.
    """
    dtype = buffers.params.dtype.type
    zero, clip = dtype(0), dtype(1)
    if rule.clip_norm > zero:
        l2 = net.l2 * dtype(scalars[L2_SHARE])
        p, whose = next_part(memory.arrivals, t, threads, parts, passed, t, -1)
        while p >= 0:
            memory.norms[p] = _gradients_of_slice(net, buffers, batch, memory, t, p, parts, l2)
            p, whose = next_part(memory.arrivals, t, threads, parts, passed, whose, p)
        passed += 1
        barrier(memory.arrivals, threads, passed)
        total = 0.0
        for p in range(parts):
            total += memory.norms[p]
        norm = math.sqrt(total)
        if norm > float(rule.clip_norm):
            clip = dtype(float(rule.clip_norm) / norm)
    p, whose = next_part(memory.arrivals, t, threads, parts, passed, t, -1)
    while p >= 0:
        _update_slice(net, rule, buffers, batch, memory, t, p, parts, scalars, clip)
        p, whose = next_part(memory.arrivals, t, threads, parts, passed, whose, p)
    if net.max_norm > zero:
        passed += 1
        barrier(memory.arrivals, threads, passed)
        p, whose = next_part(memory.arrivals, t, threads, parts, passed, t, -1)
        while p >= 0:
            _limit_slice(net, rule, buffers, p, parts, dtype(1 - scalars[AVERAGE_DECAY]), memory.scratch[t, 0])
            p, whose = next_part(memory.arrivals, t, threads, parts, passed, whose, p)
    return passed


@part
def _load_part(net, data, memory, chosen, first, stop, t, key, step):
    """Gather the inputs of these rows of the batch."""
    own, at = run(chosen, first, stop - first), first * net.units[0]
    load_rows(net, data, own, memory.x, at, first, key, step, memory.scratch[t])


@part
def rows_of_part(net, data, params, memory, now, chosen, first, stop, t, shared, inverse_total, key, step):
    """Run these rows of the batch forward in this thread, and the gradients of their activations backward."""
    n, outputs = stop - first, net.units[-1]
    start, scale = net.z_at[net.units.size - 2] * now.size + first * outputs, params.dtype.type(inverse_total)
    panels = memory.panels[t]
    forward_rows(
        *(net, params, now, 0, memory, n, first, shared, key, step, memory.scratch[t], panels),
        run(memory.row_losses, first, 0),
    )
    output_losses(
        *(net.loss, net.loss_parameters, outputs, data, run(chosen, first, n), memory.z, start, memory.dz, start),
        *(scale, run(memory.row_losses, first, n), run(memory.row_hits, first, n), memory.losses[t]),
    )
    backward_rows(net, params, memory, n, now.size, first, panels)


@part
def _end_of_epoch(net, buffers, epoch, norms):
    """Note the squared norm of all weights, biases left out, where it is asked for."""
    if norms.size:
        norms[epoch] = squared_norm(run(buffers.params, 0, net.bias_at[0]))


@entry
def train_thread(
    t,
    threads,
    parts,
    net,
    rule,
    data,
    buffers,
    memory,
    order,
    each,
    batch,
    first,
    table,
    key,
    step,
    totals,
    norms,
    done,
):
    """Take part in as many training steps as `table` has rows.

    Parameters
    ----------
    t, threads : int
        Which thread this is, of how many.
    parts : int
        Into how many the work is divided, at least `threads`: each part is one thread's, and of the same arithmetic
        whoever it is.  The numbers depend on `parts` alone.  Where there are more than threads, who is done with its
        own takes others' (`threads.next_part`).
    net, rule, data, buffers, memory : structures
        The memory is shared; its barrier stands at 0.
    order : (epochs * each,) int64
        The rows of each epoch, one after the other.
    each, batch, first : int
        Rows an epoch, rows a step, and the number of the first step in the first epoch.
    table : (count, 6) float64
        See `fastmlp.formulas.optimizers.StepScalars`.
    key, step : uint64
        The random key, and how many steps the network has done.
    totals : (epochs, 3) float64
        Sums over the rows of weighted loss, weight and weighted hits are added, by thread 0.
    norms : (epochs,) or (0,) float64
        Overwritten by thread 0 with the squared norm of the weights at the end of each epoch, where there is room.
    done : (1,) int64
        Overwritten by thread 0 with the steps done; less than asked for where a loss was not finite.
    """
    if not all_begin(memory.arrivals, t, threads):
        return
    dtype = buffers.params.dtype.type
    in_place = reads_in_place(net, data, buffers.params, True)
    shared = memory.parts.size > 0
    passed = 0
    finished = 0
    steps_each = (each + batch - 1) // batch
    for s in range(table.shape[0]):
        scalars = table[s]
        epoch = (first + s) // steps_each
        within = first + s - epoch * steps_each
        if scalars[INVERSE_TOTAL] == 0.0:
            finished += 1
            if t == 0 and within == steps_each - 1:
                _end_of_epoch(net, buffers, epoch, norms)
            continue
        begin = epoch * each + within * batch
        rows = min(batch, each - within * batch)
        chosen = run(order, begin, rows)
        now = Batch(memory.x, memory.counting, 0, -1, rows, batch, 0, 0)
        if in_place:
            now = Batch(seen_as(data.x, dtype), order, begin, begin + rows, rows, batch, 0, 0)
        if shared and not in_place:
            p, whose = next_part(memory.arrivals, t, threads, parts, passed, t, -1)
            while p >= 0:
                r0, r1 = rows * p // parts, rows * (p + 1) // parts
                _load_part(net, data, memory, chosen, r0, r1, t, key, step + u8(s))
                p, whose = next_part(memory.arrivals, t, threads, parts, passed, whose, p)
            passed += 1
            barrier(memory.arrivals, threads, passed)
        if shared:
            p, whose = next_part(memory.arrivals, t, threads, parts, passed, t, -1)
            while p >= 0:
                multiply_features(net, buffers.params, now, memory, t, p, parts)
                p, whose = next_part(memory.arrivals, t, threads, parts, passed, whose, p)
            passed += 1
            barrier(memory.arrivals, threads, passed)
        p, whose = next_part(memory.arrivals, t, threads, parts, passed, t, -1)
        while p >= 0:
            r0, r1 = rows * p // parts, rows * (p + 1) // parts
            if r1 > r0:
                if not (shared or in_place):
                    _load_part(net, data, memory, chosen, r0, r1, t, key, step + u8(s))
                rows_of_part(
                    *(net, data, buffers.params, memory, now, chosen, r0, r1, t, shared),
                    *(scalars[INVERSE_TOTAL], key, step + u8(s)),
                )
            p, whose = next_part(memory.arrivals, t, threads, parts, passed, whose, p)
        passed += 1
        barrier(memory.arrivals, threads, passed)
        # every thread sums all rows in the same order, so all come to the same decision, for any number of threads
        loss, weight, hits = 0.0, 0.0, 0.0
        for i in range(rows):
            w = 1.0
            if data.weights.size:
                w = float(data.weights[chosen[i]])
            loss += w * float(memory.row_losses[i])
            hits += w * float(memory.row_hits[i])
            weight += w
        if not math.isfinite(loss):
            break
        passed = _apply_gradients(net, rule, buffers, now, memory, t, threads, parts, scalars, passed)
        if t == 0:
            totals[epoch, 0] += loss
            totals[epoch, 1] += weight
            totals[epoch, 2] += hits
        passed += 1
        barrier(memory.arrivals, threads, passed)
        finished += 1
        if t == 0 and within == steps_each - 1:  # others only read the weights until they wait for this thread
            _end_of_epoch(net, buffers, epoch, norms)
    if t == 0:
        done[0] = finished
