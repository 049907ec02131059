"""Which form a product of a layer takes on this machine: by a rule from what the processor is, or as asked for."""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np

WAYS = ("auto", "rule", "blas", "direct", "packed")


def level2_bytes() -> int:
    """Return the size of a core's second-level cache, or of the smallest there is where nobody tells."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):
        found = 0
    return found if found > 0 else 256 * 1024


class Forms:
    """How products are computed.

    Parameters
    ----------
    way : {'auto', 'rule', 'blas', 'direct', 'packed'}
        One form for all products; by the rule; or by what was measured on this machine.
    """

    def __init__(self, way: str = "auto") -> None:
        if way not in WAYS:
            raise ValueError(f"products must be one of {', '.join(map(repr, WAYS))}; got {way!r}")
        self.way = way

    def of(self, product: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]) -> int:
        """Return the form, a position in `kernels.cpu.codes.FORMS`.

        Parameters
        ----------
        product : int
            A position in `codes.PRODUCTS`.
        rows : int
            Of the batch that one thread works on.
        inputs, outputs : int
            Of the layer; for a gradient, the inputs are those that one thread works on.
        dtype : numpy.dtype
        """
        from fastmlp.kernels.cpu import codes, products

        if len(products.available_forms()) == 1:
            return int(codes.BLAS)
        if self.way in codes.FORMS:
            return int(codes.FORMS.index(self.way))
        return by_rule(product, rows, inputs, outputs, dtype)

    def of_layers(self, rows: int, threads: int, units: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return the forms of all products of a network, (L, 3) int64, for so many rows a thread."""
        from fastmlp.kernels.cpu import codes

        found = np.empty((len(units) - 1, len(codes.PRODUCTS)), np.int64)
        for layer, (i, o) in enumerate(itertools.pairwise(units)):
            for product in range(len(codes.PRODUCTS)):
                gradient = product == codes.GRADIENT
                n, inputs = (rows * threads, -(-i // threads)) if gradient else (rows, i)
                found[layer, product] = self.of(product, n, inputs, o, dtype)
        return found


LARGEST = 1200 * 1024
"""Elements of B up to which tiles multiply with AVX-512: with 2048 x 2048 floats a BLAS was ahead."""


def by_rule(product: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]) -> int:
    """Return the form that what the processor is lets expect to be the fastest; see `Forms.of`."""
    from fastmlp.kernels.cpu import codes, packing, tiles, vectors

    if vectors.MASKS:
        return int(codes.DIRECT if inputs * outputs <= LARGEST else codes.BLAS)
    # a copy of B pays where it is read by more than a few tiles of rows; what is one panel wide lies in order already
    few, narrow = rows <= 4 * tiles.ROWS, outputs <= packing.panel_width(dtype)
    return int(codes.DIRECT if product != codes.BACKWARD and (few or narrow) else codes.PACKED)


def scratch_size(form: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]) -> int:
    """Return how many numbers of scratch a layer's products need in this form."""
    from fastmlp.kernels.cpu import products
    from fastmlp.kernels.cpu.packing import panel_width

    block_rows = level2_bytes() // 2 // (products.DEPTH * dtype.itemsize)
    width = panel_width(dtype)
    return int(products.scratch_size(form, width, rows, inputs, outputs, block_rows))
