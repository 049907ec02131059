"""One counter-based random stream for every backend: Philox4x32-10.

Every random number is a pure function of a 64-bit key (the model's seed) and a 128-bit counter that says what the
number is for, so no generator state is kept, threads and devices need not agree on an order of drawing, and a run
resumed in the middle draws exactly what it would have drawn.  The counter's four 32-bit words are

    (column // 4, row, step, purpose << 24 | layer)

and the four words that come out belong to the columns 4*(column//4) + 0, 1, 2, 3.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
# Counters worked on at once by `draws`: the eight uint64 words of each then stay in a 1 MiB second-level cache.
BLOCK = 4096
# Counters up to which `draws` works on them as one Python integer: the hundred calls of NumPy cost more (even at 400).
FEW = 256
# Rows up to which the orders of several epochs are drawn together: more of them are worth calls of their own.
FEW_ROWS = 512
_LOW = 0xFFFFFFFF


class Purpose(IntEnum):
    """What a random number is for; part of its counter, so that no two uses share numbers."""

    INITIAL_WEIGHTS = 1
    EPOCH_ORDER = 2
    DROPOUT = 3


def philox4x32(counters: NDArray[np.uint64], key: int, scratch: NDArray[np.uint64]) -> None:
    """Encrypt counters in place: ten rounds of Philox4x32.

    Parameters
    ----------
    counters : (4, n) uint64
        One counter a column, each word below 2**32.  Overwritten by the random words.
    key : int
        64-bit key; its low 32 bits are the first key word.
    scratch : (2, n) uint64
        Overwritten.
    """
    c0, c1, c2, c3 = counters
    p, q = scratch
    k0, k1 = key & _LOW, key >> 32 & _LOW
    for _ in range(ROUNDS):
        np.multiply(c0, MULTIPLIERS[0], out=p)
        np.multiply(c2, MULTIPLIERS[1], out=q)
        np.right_shift(q, 32, out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, k0, out=c0)
        np.bitwise_and(q, _LOW, out=c1)
        np.right_shift(p, 32, out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, k1, out=c2)
        np.bitwise_and(p, _LOW, out=c3)
        k0, k1 = k0 + KEY_INCREMENTS[0] & _LOW, k1 + KEY_INCREMENTS[1] & _LOW


def philox4x32_of_few(counters: tuple[int, int, int, int], key: int, ones: int) -> tuple[int, int, int, int]:
    """Return what `philox4x32` makes of counters that stand side by side in Python integers.

    A product of two 32-bit words has 64 bits, so that counters in slots of 64 bits never touch each other, and one
    operation on the integer is one on all of them.

    Parameters
    ----------
    counters : tuple of int
        The four words, each with a slot of 64 bits a counter.
    key : int
        64-bit key.
    ones : int
        1 in each slot.
    """
    c0, c1, c2, c3 = counters
    low = ones * _LOW
    k0, k1 = key & _LOW, key >> 32 & _LOW
    for _ in range(ROUNDS):
        p, q = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1 = (q >> 32 & low) ^ c1 ^ ones * k0, q & low
        c2, c3 = (p >> 32 & low) ^ c3 ^ ones * k1, p & low
        k0, k1 = k0 + KEY_INCREMENTS[0] & _LOW, k1 + KEY_INCREMENTS[1] & _LOW
    return c0, c1, c2, c3


def draw_scratch() -> NDArray[np.uint64]:
    """Return the scratch memory that `draws` works in, (6, BLOCK) uint64."""
    return np.empty((6, BLOCK), np.uint64)


def draws(
    key: int,
    purpose: Purpose,
    out: NDArray[np.uint32],
    *,
    first_row: int = 0,
    step: int = 0,
    layer: int = 0,
    scratch: NDArray[np.uint64] | None = None,
) -> None:
    """Fill `out` with random words, `out[i, j]` from the counter of row `first_row + i` and column `j`.

    Parameters
    ----------
    key : int
        64-bit key.
    purpose : Purpose
        What the numbers are for.
    out : (rows, columns) uint32
        Overwritten.
    first_row, step, layer : int
        The rest of the counter; `step` is taken modulo 2**32.
    scratch : (6, BLOCK) uint64, optional
        Overwritten; allocated when not given.
    """
    rows, columns = out.shape
    blocks = -(-columns // 4)
    if 0 < rows * blocks <= FEW:
        _draw_few(key, purpose, out, first_row, step, layer)
        return
    if scratch is None:
        scratch = draw_scratch()
    for left in range(0, blocks, BLOCK):
        width = min(BLOCK, blocks - left)
        height = max(1, BLOCK // width)
        for top in range(0, rows, height):
            part = out[top : top + height, 4 * left : 4 * (left + width)]
            n = part.shape[0] * width
            counters = scratch[:4, :n]
            grid = counters.reshape(4, part.shape[0], width)
            grid[0] = np.arange(left, left + width, dtype=np.uint64)
            grid[1] = np.arange(first_row + top, first_row + top + part.shape[0], dtype=np.uint64)[:, None]
            grid[2] = step & _LOW
            grid[3] = int(purpose) << 24 | layer
            philox4x32(counters, key, scratch[4:, :n])
            for lane in range(4):
                words = part[:, lane::4]
                words[...] = grid[lane, :, : words.shape[1]]


def _draw_few(key: int, purpose: Purpose, out: NDArray[np.uint32], first_row: int, step: int, layer: int) -> None:
    """Do what `draws` does, for few counters."""
    rows, columns = out.shape
    blocks = -(-columns // 4)
    ones, c0, c1 = _slots(rows, blocks, first_row)
    tag = int(purpose) << 24 | layer
    c0, c1, c2, c3 = philox4x32_of_few((c0, c1, ones * (step & _LOW), ones * tag), key, ones)
    words = np.empty((rows, blocks, 4), np.uint32)
    for left, pair in ((0, c0 | c1 << 32), (2, c2 | c3 << 32)):
        in_bytes = pair.to_bytes(8 * rows * blocks, "little")
        words[:, :, left : left + 2] = np.frombuffer(in_bytes, "<u4").reshape(rows, blocks, 2)
    out[...] = words.reshape(rows, 4 * blocks)[:, :columns]


@functools.lru_cache(maxsize=64)
def _slots(rows: int, blocks: int, first_row: int) -> tuple[int, int, int]:
    """Return 1, the block and the row of each counter, in slots of 64 bits of Python integers."""
    words = np.ones((3, rows, blocks), "<u8")
    words[1] = np.arange(blocks)
    words[2] = np.arange(first_row, first_row + rows)[:, None]
    ones, block, row = (int.from_bytes(word.tobytes(), "little") for word in words)
    return ones, block, row


def epoch_order(key: int, step: int, rows: int) -> NDArray[np.intp]:
    """Return the order in which the epoch that begins at `step` takes the rows: a random permutation.

    Every row gets a random word; the order is that of sorting ``word << 32 | row``: ties are settled by the row, so it
    is the same wherever it is computed.

    Parameters
    ----------
    key : int
        64-bit key.
    step : int
        Number of training steps done before the epoch begins.
    rows : int
        Number of rows, below 2**32.

    Returns
    -------
    (rows,) intp
    """
    words = np.empty((1, rows), np.uint32)
    draws(key, Purpose.EPOCH_ORDER, words, step=step)
    order: NDArray[np.intp] = _order_of(words)[0]
    return order


def _order_of(words: NDArray[np.uint32]) -> NDArray[np.intp]:
    """Return the places of each row's words in the order of ``word << 32 | place``, (n, rows) intp.

    No two of these are equal, so they need no stable sort, and NumPy's others are several times as fast.
    """
    keys = words.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= np.arange(words.shape[1], dtype=np.uint64)
    keys.sort(axis=1)
    keys &= np.uint64(_LOW)
    return keys.astype(np.intp)


def epoch_orders(key: int, steps: Sequence[int], rows: int) -> NDArray[np.intp]:
    """Return the orders of several epochs, those of `epoch_order` for each of the steps that they begin at.

    Returns
    -------
    (len(steps), rows) intp
    """
    blocks = -(-rows // 4)
    together = BLOCK // blocks
    if rows > FEW_ROWS or len(steps) == 1:
        return np.stack([epoch_order(key, step, rows) for step in steps])
    words = np.empty((len(steps), blocks, 4), np.uint32)
    scratch = draw_scratch()
    for top in range(0, len(steps), together):
        some = steps[top : top + together]
        counters = scratch[:4, : len(some) * blocks]
        grid = counters.reshape(4, len(some), blocks)
        grid[0] = np.arange(blocks, dtype=np.uint64)
        grid[1] = 0
        grid[2] = np.array([step & _LOW for step in some], np.uint64)[:, None]
        grid[3] = int(Purpose.EPOCH_ORDER) << 24
        philox4x32(counters, key, scratch[4:, : counters.shape[1]])
        words[top : top + together] = grid.transpose(1, 2, 0)
    return _order_of(words.reshape(len(steps), 4 * blocks)[:, :rows])


def keep_threshold(rate: float) -> int:
    """Return the smallest random word that keeps a unit under dropout of `rate`: ``round(rate * 2**32)``."""
    return min(round(rate * 2.0**32), _LOW)


def uniforms(key: int, shape: tuple[int, int], layer: int) -> NDArray[np.float64]:
    """Return uniforms in the open interval (0, 1) for initial weights: ``(word + 0.5) / 2**32``.

    Returns
    -------
    `shape` float64
    """
    words = np.empty(shape, np.uint32)
    draws(key, Purpose.INITIAL_WEIGHTS, words, layer=layer)
    fractions = np.add(words, 0.5, dtype=np.float64)
    fractions *= 2.0**-32
    return fractions


def normals(key: int, shape: tuple[int, int], layer: int) -> NDArray[np.float64]:
    """Return standard normals for initial weights, by the transform of Box and Muller (1958).

    Columns 2j and 2j + 1 share the two uniforms drawn for them.

    Returns
    -------
    `shape` float64
    """
    rows, columns = shape
    u = uniforms(key, (rows, columns + columns % 2), layer)
    radius = np.sqrt(-2.0 * np.log(u[:, 0::2]))
    angle = 2.0 * np.pi * u[:, 1::2]
    u[:, 0::2] = radius * np.cos(angle)
    u[:, 1::2] = radius * np.sin(angle)
    return u[:, :columns]
