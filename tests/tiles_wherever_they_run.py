"""Products by tiles wherever they can be computed, also where the BLAS is faster; imported before any compilation.

Compiled code is kept by the processor and the kernels' text, which do not tell this: a process that imports it has a
cache of its own (NUMBA_CACHE_DIR).
"""

from fastmlp.kernels.cpu import products

products.TILES = products.vectors.HAS_MASKS
