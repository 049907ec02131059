"""Which form a product of a layer takes, and how many threads it is worth: by a rule from what the processor is."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_choice
from fastmlp.backends.cpu.calibration import MEETING, NEAR, RATE, START, Measured, calibrate, is_settled, known

WAYS = ("auto", "rule", "blas", "direct", "packed")

WORTH = 100
"""How many times as long as two threads wait for each other a part of a step has to be: they do so two to five times,
and what one has written the other has to fetch, line by line, at what a meeting takes for each."""

EARNED = 4
"""How many times as long as a thread takes to begin and to end its part of a prediction has to be: it begins with
nothing in its caches."""
FEW_PANELS = 4
"""Panels of outputs at most for which a copy of the inputs' rows costs a gradient more than it gains."""
SETS_BYTES, SPREAD_BYTES = 4096, 256
"""After how many bytes the sets of a first-level cache begin again, and those that rows may have as a common divisor
with it: with 256 they are spread over a quarter of the sets."""
CACHE_FILE = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
"""Where Linux says how large a core's second-level cache is."""
CACHE_BYTES = 512 * 1024
"""What it is taken to be elsewhere: laptops' are from 256 KiB to 2 MiB."""


class Forms:
    """How products are computed.

    Parameters
    ----------
    way : {'auto', 'rule', 'blas', 'direct', 'packed'}
        One form for all products; by the rule; or ('auto') by the rule where no trial of steps (`trial`) found others
        to be faster on this machine.
    """

    def __init__(self, way: str = "auto") -> None:
        self.way = check_choice("products", way, WAYS)

    @property
    def left_open(self) -> bool:
        """Whether a trial may choose."""
        return self.way == "auto" and _only_form(self.way) is None

    def lacks(self, dtype: np.dtype[Any]) -> bool:
        """Tell whether the machine is to be measured before the rule knows what it goes by."""
        return self.way == "auto" and not is_settled(dtype)

    def measure(self, dtype: np.dtype[Any], reach: Callable[[], float], check: Callable[[], None]) -> None:
        """Measure what is lacking, see `calibrate`."""
        calibrate(dtype, reach, check)
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
            Of the layer.
        dtype : numpy.dtype
        """
        return _of(self.way, product, rows, inputs, outputs, 1, dtype, self._near(dtype))

    def threads_for(self, rows: int, most: int, units: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Return how many threads run so many rows forward the fastest: each has to earn what its start costs."""
        here = _measured(self.way, dtype)
        return max(1, min(most, int(_operations(rows, units) / here.rate / (EARNED * here.start))))

    def parts_for(self, batch: int, most: int, units: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        """Return into how many parts a step is divided: each has to be longer than its thread waits for others."""
        return _parts_for(self.way, batch, most, units, dtype)

    def of_layers(
        self, rows: int, threads: int, units: tuple[int, ...], dtype: np.dtype[Any], *, gradients: bool
    ) -> NDArray[np.int64]:
        """Return the forms of all products of a network, (L, 3) int64, for so many rows a thread."""
        return _of_layers(self.way, rows, threads, units, dtype, gradients, self._near(dtype)).copy()

    def _near(self, dtype: np.dtype[Any]) -> float:
        return _measured(self.way, dtype).near


def _operations(rows: int, units: tuple[int, ...]) -> float:
    """Return how many floating-point operations it takes to run so many rows forward."""
    return 2.0 * rows * sum(i * o for i, o in itertools.pairwise(units))


def _spread(apart: int) -> bool:
    """Tell whether rows that are so many bytes apart lie in many sets of a cache."""
    return math.gcd(apart, SETS_BYTES) <= SPREAD_BYTES


@functools.cache
def _cache_bytes() -> int:
    """Return the size of a core's second-level cache."""
    try:
        found = re.fullmatch(r"(\d+)K", CACHE_FILE.read_text("ascii").strip())
    except (OSError, UnicodeError):
        found = None
    return 1024 * int(found[1]) if found else CACHE_BYTES


def _measured(way: str, dtype: np.dtype[Any]) -> Measured:
    """Return what is known of the machine, or taken to be so."""
    return (known(dtype) if way == "auto" else None) or Measured(START, MEETING, RATE, NEAR)


@functools.cache
def _parts_for(way: str, batch: int, most: int, units: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    from fastmlp.kernels.cpu import codes

    here = _measured(way, dtype)
    seconds = len(codes.PRODUCTS) * _operations(batch, units) / here.rate
    return max(1, min(most, int(seconds / (WORTH * here.meeting))))


@functools.cache
def _of(
    way: str, product: int, rows: int, inputs: int, outputs: int, parts: int, dtype: np.dtype[Any], near: float
) -> int:
    from fastmlp.kernels.cpu import codes

    if one := _only_form(way):
        return int(codes.FORMS.index(one))
    return by_rule(product, rows, inputs, outputs, dtype, near, parts)


@functools.cache
def _of_layers(
    way: str, rows: int, threads: int, units: tuple[int, ...], dtype: np.dtype[Any], gradients: bool, near: float
) -> NDArray[np.int64]:
    from fastmlp.kernels.cpu import codes

    found = np.full((len(units) - 1, len(codes.PRODUCTS)), codes.BLAS, np.int64)
    for layer, (i, o) in enumerate(itertools.pairwise(units)):
        for product in range(len(codes.PRODUCTS) if gradients else 1):
            n, parts = (rows * threads, threads) if product == codes.GRADIENT else (rows, 1)
            found[layer, product] = _of(way, product, n, i, o, parts, dtype, near)
    return found


def _only_form(way: str) -> str | None:
    """Return the form that all products have, by its name, where there is no choice."""
    from fastmlp.kernels.cpu import codes, products

    if len(products.available_forms()) == 1:
        return str(codes.FORMS[codes.BLAS])
    return way if way in codes.FORMS else None


def by_rule(
    product: int,
    rows: int,
    inputs: int,
    outputs: int,
    dtype: np.dtype[Any],
    reached: float = NEAR,
    parts: int = 1,
) -> int:
    """Return the form that what the processor is lets expect to be the fastest; see `Forms.of`.

    Up to so many bytes as are `reached` between rows of W, a forward product needs no copy of them; see `near`.  With
    16 registers a few rows at a time read all of W, which has to be in a core's own cache then, or to lie in order.  Of
    a gradient's inputs, a thread works on one of so many `parts`.
    """
    from fastmlp.kernels.cpu import codes, packing, tiles, vectors

    if product == codes.BACKWARD:
        # tiles need a transposed copy of W, which costs more than a single row of products
        return int(codes.BLAS if rows == 1 else codes.PACKED)
    # a copy of B pays where its rows are far from each other; what is one panel wide lies in order already, and the
    # rows of one tile read it once
    near = outputs * dtype.itemsize <= NEAR
    direct = outputs <= packing.panel_width(dtype)
    if product == codes.FORWARD:
        stays = vectors.REGISTERS == 32 or inputs * outputs * dtype.itemsize <= _cache_bytes()
        direct |= (outputs * dtype.itemsize <= reached and stays) or rows <= tiles.ROWS
    elif near:
        # and one of A' too, unless there are too few rows, or few tiles read it, and in order, or few panels of B pass
        # by it, and its rows are not in the same sets of the cache
        own = -(-inputs // parts)
        few = own * dtype.itemsize <= NEAR if vectors.REGISTERS == 32 else own <= 8 * tiles.ROWS
        passed = outputs <= FEW_PANELS * packing.panel_width(dtype) and _spread(inputs * dtype.itemsize)
        direct |= rows <= 4 * tiles.ROWS or few or passed
    return int(codes.DIRECT if direct else codes.PACKED)
