"""Which form a product of a layer takes on this machine: by a rule from what the processor is, or as asked for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_choice
from fastmlp.backends.cpu.calibration import MEETING, Table, calibrate, is_settled, known

WAYS = ("auto", "rule", "blas", "direct", "packed")

GAIN = 1.05
"""How much faster than the rule's another form has to have been measured to be taken: less is noise."""
GATHERING = 1.1
"""The same, for the BLAS in the lowest layer, whose rows have to be gathered for it."""
START, FLOPS = 60e-6, 1e10
"""Seconds that another thread takes to begin and to end, and operations a second, where nothing was measured."""
WORTH = 100
"""How many times as long as two threads wait for each other a part of a step has to be: they do so two to five times,
and what one has written the other has to fetch, line by line, at what a meeting takes for each."""


class Forms:
    """How products are computed.

    Parameters
    ----------
    way : {'auto', 'rule', 'blas', 'direct', 'packed'}
        One form for all products; by the rule; or ('auto') by the rule where nothing else was measured to be faster on
        this machine.
    """

    def __init__(self, way: str = "auto") -> None:
        self.way = check_choice("products", way, WAYS)

    def lacks(self, dtype: np.dtype[Any]) -> bool:
        """Tell whether something is to be measured before all forms can be chosen."""
        return self.way == "auto" and not is_settled(dtype) and _only_form(self.way) is None

    def measure(self, dtype: np.dtype[Any], check: Callable[[], None]) -> None:
        """Measure what is lacking, see `calibrate`."""
        calibrate(dtype, check)
        _of.cache_clear()
        _of_layers.cache_clear()
        _parts_for.cache_clear()

    def of(self, product: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]) -> int:
        """Return the form of one product, a position in `kernels.cpu.codes.FORMS`.

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
        return _of(self.way, product, rows, inputs, outputs, dtype)

    def threads_for(self, rows: int, most: int, units: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Return how many threads run so many rows forward the fastest: each has to earn what its start costs."""
        table = _table(self.way, dtype)
        start = START if table is None else table.start
        return max(1, min(most, int(_seconds(table, rows, units, (0,)) / (2 * start))))

    def parts_for(self, batch: int, most: int, units: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Return into how many parts a step is divided: each has to be longer than its thread waits for others."""
        return _parts_for(self.way, batch, most, units, dtype)

    def of_layers(
        self, rows: int, threads: int, units: tuple[int, ...], dtype: np.dtype[Any], *, gradients: bool
    ) -> NDArray[np.int64]:
        """Return the forms of all products of a network, (L, 3) int64, for so many rows a thread."""
        return _of_layers(self.way, rows, threads, units, dtype, gradients).copy()


def _seconds(table: Table | None, rows: int, units: tuple[int, ...], which: Iterable[int]) -> float:
    """Return how long these products of all layers take one thread, as far as it is known."""
    seconds = 0.0
    for product, (i, o) in itertools.product(which, itertools.pairwise(units)):
        flops = 2.0 * rows * i * o
        near = None if table is None else table.nearest(product, min(rows, 256), i, o)
        if near is None:
            seconds += flops / FLOPS
        else:
            seconds += min(near.seconds) * flops / (2.0 * near.rows * near.inputs * near.outputs)
    return seconds


def _table(way: str, dtype: np.dtype[Any]) -> Table | None:
    return known(dtype) if way == "auto" else None


@functools.cache
def _parts_for(way: str, batch: int, most: int, units: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    from fastmlp.kernels.cpu import codes

    table = _table(way, dtype)
    meeting = MEETING if table is None else table.meeting
    seconds = _seconds(table, batch, units, range(len(codes.PRODUCTS)))
    return max(1, min(most, int(seconds / (WORTH * meeting))))


@functools.cache
def _of(way: str, product: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]) -> int:
    from fastmlp.kernels.cpu import codes

    if one := _only_form(way):
        return int(codes.FORMS.index(one))
    ruled = by_rule(product, rows, inputs, outputs, dtype)
    seconds = _measured(way, product, rows, inputs, outputs, dtype)
    if seconds is None:
        return ruled
    fastest = min(range(len(seconds)), key=seconds.__getitem__)
    return fastest if seconds[ruled] > GAIN * seconds[fastest] else ruled


@functools.cache
def _of_layers(
    way: str, rows: int, threads: int, units: tuple[int, ...], dtype: np.dtype[Any], gradients: bool
) -> NDArray[np.int64]:
    from fastmlp.kernels.cpu import codes

    found = np.full((len(units) - 1, len(codes.PRODUCTS)), codes.BLAS, np.int64)
    shapes = {}
    for layer, (i, o) in enumerate(itertools.pairwise(units)):
        for product in range(len(codes.PRODUCTS) if gradients else 1):
            n, inputs = (rows * threads, -(-i // threads)) if product == codes.GRADIENT else (rows, i)
            found[layer, product] = _of(way, product, n, inputs, o, dtype)
            shapes[layer, product] = n, inputs, o
    lowest = [p for p in (codes.FORWARD, codes.GRADIENT) if (0, p) in shapes]
    if way == "auto" and codes.BLAS in found[0, lowest]:
        # tiles multiply the lowest layer's rows where they lie; the BLAS has to be worth the gathering of all of them
        taken = by_tiles = 0.0
        tiles = []
        for product in lowest:
            seconds = _measured(way, product, *shapes[0, product], dtype)
            if seconds is None:
                return found
            taken += seconds[found[0, product]]
            tiles.append(min((codes.DIRECT, codes.PACKED), key=seconds.__getitem__))
            by_tiles += seconds[tiles[-1]]
        if by_tiles < GATHERING * taken:
            found[0, lowest] = tiles
    return found


def _only_form(way: str) -> str | None:
    """Return the form that all products have, by its name, where there is no choice."""
    from fastmlp.kernels.cpu import codes, products

    if len(products.available_forms()) == 1:
        return str(codes.FORMS[codes.BLAS])
    return way if way in codes.FORMS else None


def _measured(
    way: str, product: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]
) -> tuple[float, ...] | None:
    """Return the seconds of each form for a shape near this one, where there is a choice and they were measured."""
    table = known(dtype) if way == "auto" and _only_form(way) is None else None
    near = None if table is None else table.nearest(product, rows, inputs, outputs)
    return None if near is None else near.seconds


NEAR = 1024
"""Bytes from one row of B to the next, up to which a direct tile finds several of them on a page and in other sets."""
LARGEST = 1200 * 1024
"""Elements of B up to which tiles multiply with AVX-512: with 2048 x 2048 floats a BLAS was ahead."""


def by_rule(product: int, rows: int, inputs: int, outputs: int, dtype: np.dtype[Any]) -> int:
    """Return the form that what the processor is lets expect to be the fastest; see `Forms.of`."""
    from fastmlp.kernels.cpu import codes, packing, tiles, vectors

    if vectors.MASKS:
        return int(codes.DIRECT if inputs * outputs <= LARGEST else codes.BLAS)
    # a copy of B pays where many rows read it, or where its rows are far from each other; what is one
    # panel wide lies in order already
    few = rows <= 4 * tiles.ROWS and outputs * dtype.itemsize <= NEAR
    narrow = outputs <= packing.panel_width(dtype)
    return int(codes.DIRECT if product != codes.BACKWARD and (few or narrow) else codes.PACKED)
