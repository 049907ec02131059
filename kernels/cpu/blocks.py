"""How many rows of a batch a weight gradient is summed over at a time, where its operands are read where they lie."""

from __future__ import annotations

from . import vectors
from .compiling import part
from .tiles import VECTORS

DEPTH = max(128, 16 * 1024 // (VECTORS * vectors.VECTOR_BYTES) // 8 * 8)
"""At most: a panel of B takes half of the smallest first-level cache there is, 32 KiB, so that rows of A pass by it;
and a tile's sums are written once for at least 128 products."""
PAGE_BYTES, PAGES = 4096, 64
"""Pages whose addresses a processor has at hand, the entries of its first-level TLB: of Intel's since Haswell and of
AMD's since Zen; newer ones have more, and Apple's pages are larger."""


@part
def rows_at_once(lda, ldb, itemsize):
    """Return how many rows of A and of B, so many numbers apart, a tile sums over before it writes its sums.

    Each tile goes through all of them again, a few numbers of each row.  With 16 registers it is so small that it waits
    where those are on more pages than are at hand; one of 24 vectors has enough to do meanwhile.
    """
    if vectors.REGISTERS > 16:
        return DEPTH
    of_a_row = min(lda * itemsize, PAGE_BYTES) + min(ldb * itemsize, PAGE_BYTES)
    return min(DEPTH, PAGES * PAGE_BYTES // of_a_row // 8 * 8)
