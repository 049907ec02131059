"""One sum for any number of ranks: shards of a batch, added up along one fixed tree, whoever computes them.

Floating-point sums depend on their order.  So the order is that of a binary tree over the shards, whose number does not
depend on how many ranks there are: the sum of shards lo..hi is that of the lower half plus that of the upper half.  A
rank has consecutive shards, adds up what of the tree lies within them, and ranks exchange these sums alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmlp._typing import Array

SHARDS = 8
"""Parts of a batch where nobody says: as many ranks can share it, and each part is still worth a product."""

Node = tuple[int, int]
"""The shards lo..hi, hi left out, whose sum is one of the tree's."""


def cut(total: int, parts: int) -> list[int]:
    """Return the bounds of as many parts, as even as can be: part i is bounds[i]..bounds[i + 1]."""
    return [total * part // parts for part in range(parts + 1)]


def nodes_within(first: int, stop: int, lo: int, hi: int) -> list[Node]:
    """Return the largest sums of the tree over lo..hi that the shards first..stop are enough for, in their order."""
    if first >= stop or stop <= lo or hi <= first:
        return []
    if first <= lo and hi <= stop:
        return [(lo, hi)]
    middle = (lo + hi) // 2
    return nodes_within(first, stop, lo, middle) + nodes_within(first, stop, middle, hi)


class TreeSum:
    """The part that one rank has in adding up arrays of all shards.

    Attributes
    ----------
    first, stop : int
        Its shards.
    counts : list of int
        How many sums of the tree each rank brings.

    Parameters
    ----------
    shards, ranks, rank : int
    size : int
        Elements of each array.
    empty : callable
        Returns an array of a shape, in the type that is added up, where that is done.
    add : callable
        ``add(target, source)``: adds a flat array to another.
    """

    def __init__(
        self,
        shards: int,
        ranks: int,
        rank: int,
        size: int,
        empty: Callable[[tuple[int, ...]], Array],
        add: Callable[[Array, Array], object],
    ) -> None:
        owned = cut(shards, ranks)
        self.first, self.stop = owned[rank], owned[rank + 1]
        by_rank = [nodes_within(owned[r], owned[r + 1], 0, shards) for r in range(ranks)]
        self.counts = [len(nodes) for nodes in by_rank]
        self._shards, self._own = shards, by_rank[rank]
        self._row = {node: row for row, node in enumerate(node for nodes in by_rank for node in nodes)}
        self._size, self._empty, self._add = size, empty, add
        self._sums = empty((len(self._own), size))
        self._spare: list[Array] = []

    def own(self, gradients: Callable[[int], Array]) -> Array:
        """Return the sums that this rank brings, (counts[rank], size).

        Parameters
        ----------
        gradients : callable
            Returns the array of a shard, which holds until it is called again; called once for each of the rank's own.
        """
        for row, (lo, hi) in enumerate(self._own):
            self._add_up(lo, hi, self._sums[row], gradients, 0)
        return self._sums

    def _add_up(self, lo: int, hi: int, out: Array, gradients: Callable[[int], Array], depth: int) -> None:
        if hi - lo == 1:
            out[...] = gradients(lo)
            return
        middle = (lo + hi) // 2
        self._add_up(lo, middle, out, gradients, depth)
        if hi - middle == 1:
            self._add(out, gradients(middle))
            return
        if len(self._spare) == depth:
            self._spare.append(self._empty((self._size,)))
        self._add_up(middle, hi, self._spare[depth], gradients, depth + 1)
        self._add(out, self._spare[depth])

    def whole(self, sums: Sequence[Array] | Array) -> Array:
        """Return the sum over all shards, made of the sums of all ranks in their order; these are overwritten."""
        return self._whole(0, self._shards, sums)

    def _whole(self, lo: int, hi: int, sums: Sequence[Array] | Array) -> Array:
        row = self._row.get((lo, hi))
        if row is not None:
            return sums[row]
        middle = (lo + hi) // 2
        left, right = self._whole(lo, middle, sums), self._whole(middle, hi, sums)
        self._add(left, right)
        return left
