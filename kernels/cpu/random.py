"""Dropout masks from Philox4x32-10, the bits of `formulas.random_bits`; `forward` and `operations` call it."""

from __future__ import annotations

import numpy as np

from .compiling import inline_part, shared

u4, u8 = np.uint32, np.uint64
DROPOUT = 3
"""`fastmlp.formulas.random_bits.Purpose.DROPOUT`."""


@inline_part
def _philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds (Salmon et al. 2011) on 64-bit integers that hold 32-bit words."""
    low = u8(0xFFFFFFFF)
    for _ in range(10):
        p = c0 * u8(0xD2511F53)
        q = c2 * u8(0xCD9E8D57)
        c0 = (q >> u8(32)) ^ c1 ^ k0
        c1 = q & low
        c2 = (p >> u8(32)) ^ c3 ^ k1
        c3 = p & low
        k0 = (k0 + u8(0x9E3779B9)) & low
        k1 = (k1 + u8(0xBB67AE85)) & low
    return c0, c1, c2, c3


@shared
def dropout_row(a, slope, has_slope, threshold, scale, key, row, step, layer, lanes):
    """Multiply a row, and its slopes, by ``mask * scale``.

    Parameters
    ----------
    a, slope : (O,) float
        Overwritten; `slope` only where `has_slope`.
    threshold : uint64
        The smallest random word that keeps a unit.
    scale : float
    key, row, step, layer : uint64
        The key, and the rest of the counter.
    lanes : (4, >= O / 4) float
        Overwritten.
    """
    columns = a.size
    blocks = (columns + 3) // 4
    k0, k1 = key & u8(0xFFFFFFFF), key >> u8(32)
    tag = (u8(DROPOUT) << u8(24)) | layer
    step = step & u8(0xFFFFFFFF)
    zero = a.dtype.type(0)
    for block in range(blocks):
        w0, w1, w2, w3 = _philox(u8(block), row, step, tag, k0, k1)
        lanes[0, block] = scale if w0 >= threshold else zero
        lanes[1, block] = scale if w1 >= threshold else zero
        lanes[2, block] = scale if w2 >= threshold else zero
        lanes[3, block] = scale if w3 >= threshold else zero
    for lane in range(4):
        factors = lanes[lane]
        for block in range((columns - lane + 3) // 4):
            a[4 * block + lane] *= factors[block]
        if has_slope:
            for block in range((columns - lane + 3) // 4):
                slope[4 * block + lane] *= factors[block]
