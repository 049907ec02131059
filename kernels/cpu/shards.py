"""What Python calls for the gradients of shards of a batch, added up along a tree: the steps of several processes.

All rows of the shards go forward and back together, where that gives each row the bits that it has alone.  Then a
thread owns slices of the gradients, and works off the tree once for each: what is added up never leaves its cache, and
a sum of two shards is a product that starts from the first one's.
"""

from __future__ import annotations

import numpy as np

from .blocks import rows_at_once
from .codes import ADD, BLAS, GRADIENT, SHARD_ONTO
from .compiling import entry, part
from .forward import load_rows, reads_in_place
from .layers import sum_columns
from .structures import Batch
from .threads import all_begin, barrier
from .train import layer_gradient, rows_of_part
from .vectors import run, seen_as

u8 = np.uint64


@part
def _place(tree, buffer, start, out, spare):
    """Return the flat array that a buffer of the tree lies in, and where it has the slice from `start` on."""
    if buffer < tree.rows:
        return out, buffer * tree.size + start
    return spare, (buffer - tree.rows) * tree.block


@part
def _copy_or_add(source, at, target, target_at, n, adds):
    """``target = source``, or ``target += source``; of each n numbers."""
    old, new = run(target, target_at, n), run(source, at, n)
    if adds:
        for q in range(n):
            old[q] += new[q]
    else:
        for q in range(n):
            old[q] = new[q]


@part
def _clear(array, at, n):
    zeros = run(array, at, n)
    for q in range(n):
        zeros[q] = 0


@part
def _weights_of_shard(net, now, memory, layer, first, stop, adds, target, at, t):
    """Write, or add, the rows first..stop of W's gradient of one shard."""
    one, zero = target.dtype.type(1), target.dtype.type(0)
    own, i_, o = memory.gradients[t], net.units[layer], net.units[layer + 1]
    n = (stop - first) * o
    # bits are those of a sum of two products, whoever computes them: where a product is one block of tiles
    in_one = 1 < now.rows <= rows_at_once(i_, o, target.itemsize) and net.forms[layer, GRADIENT] != BLAS
    if adds and in_one:
        layer_gradient(net, now, memory, layer, first, stop, one, one, target, at, memory.panels[t])
    elif adds:
        if now.rows:
            layer_gradient(net, now, memory, layer, first, stop, one, zero, own, 0, memory.panels[t])
        else:
            _clear(own, 0, n)
        _copy_or_add(own, 0, target, at, n, True)
    elif now.rows:
        layer_gradient(net, now, memory, layer, first, stop, one, zero, target, at, memory.panels[t])
    else:
        _clear(target, at, n)


@entry
def shard_gradients_thread(
    t,
    threads,
    net,
    data,
    params,
    memory,
    order,
    bounds,
    batch,
    joined,
    place,
    inverse_total,
    key,
    step,
    tree,
    out,
    spare,
    sums,
):
    """Take part in the gradients of consecutive shards, L2 left out.

    Parameters
    ----------
    t, threads : int
        Which thread this is, of how many.
    net, data : structures.Network, structures.Data
    params : (size,) float
    memory : structures.Memory
        Shared, for `batch` rows; its barrier stands at 0, and each thread's gradients have room for a slice.
    order : (n,) int64
        The rows of the shards.
    bounds : (shards + 1,) int64
        Where in the order each begins.
    batch : int
    joined : bool
        Whether rows of several shards go forward together.
    place : int
        Of the first row in the whole batch.
    inverse_total : float
    key, step : uint64
    tree : structures.Tree
    out : (rows * size,) float
        The sums of the tree; overwritten but for what does not train.
    spare : (threads, m) float
        Each thread's own, for the buffers of the tree beyond its rows; overwritten.
    sums : (shards, 3) float64
        Overwritten with the sums over each shard's rows of weighted loss, weight and weighted hits.
    """
    if not all_begin(memory.arrivals, t, threads):
        return
    dtype = params.dtype.type
    in_place = reads_in_place(net, data, params, True)
    n, shards = order.size, bounds.size - 1
    x, index = memory.x, memory.counting
    if in_place:
        x, index = seen_as(data.x, dtype), order
    now = Batch(x, index, 0, -1, n, batch, 0, place)
    units = min(threads, n) if joined else shards
    for u in range(t, units, threads):
        r0, r1 = n * u // units, n * (u + 1) // units
        if not joined:
            r0, r1 = bounds[u], bounds[u + 1]
        if r1 > r0:
            if not in_place:
                own, at = run(order, r0, r1 - r0), r0 * net.units[0]
                load_rows(net, data, own, memory.x, at, place + r0, key, step, memory.scratch[t])
            rows_of_part(net, data, params, memory, now, order, r0, r1, t, False, inverse_total, key, step)
    barrier(memory.arrivals, threads, 1)
    for s in range(t, shards, threads):
        loss, weight, hits = 0.0, 0.0, 0.0
        for i in range(bounds[s], bounds[s + 1]):
            w = 1.0
            if data.weights.size:
                w = float(data.weights[order[i]])
            loss += w * float(memory.row_losses[i])
            hits += w * float(memory.row_hits[i])
            weight += w
        sums[s, 0], sums[s, 1], sums[s, 2] = loss, weight, hits
    own = spare[t]
    for layer in range(net.lowest, net.units.size - 1):
        if net.frozen[layer]:
            continue
        i_, o = net.units[layer], net.units[layer + 1]
        w, b = net.weight_at[layer], net.bias_at[layer]
        features = max(8, tree.block // o // 8 * 8)
        if net.forms[layer, GRADIENT] == BLAS:
            features = i_  # in slices a BLAS may sum otherwise
        slices = (i_ + features - 1) // features
        for piece in range(t, slices + 1, threads):
            first, stop = features * piece, min(features * (piece + 1), i_)
            start, count = w + first * o, (stop - first) * o
            if piece == slices:  # the biases
                start, count = b, o
            for k in range(tree.program.shape[0]):
                what, source, buffer = tree.program[k, 0], tree.program[k, 1], tree.program[k, 2]
                target, at = _place(tree, buffer, start, out, own)
                if what == ADD:
                    added, added_at = _place(tree, source, start, out, own)
                    _copy_or_add(added, added_at, target, at, count, True)
                    continue
                r0, r1 = bounds[source], bounds[source + 1]
                shard = Batch(x, index, r0, -1, r1 - r0, batch, r0, 0)
                if piece < slices:
                    _weights_of_shard(net, shard, memory, layer, first, stop, what == SHARD_ONTO, target, at, t)
                else:
                    d = net.z_at[layer] * batch + r0 * o
                    sum_columns(memory.dz, d, r1 - r0, o, 0, o, memory.scratch[t, 0], memory.scratch[t, 1])
                    _copy_or_add(memory.scratch[t, 0], 0, target, at, o, what == SHARD_ONTO)
