"""How the sums that ranks bring become those of whole batches, on every rank: by messages, or in memory they share.

The bits are the same: each rank adds up a slice of the flat buffer over all shards, along the tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fastmlp.parallel.tree import cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastmlp._typing import Array
    from fastmlp.parallel.group import Carrier
    from fastmlp.parallel.tree import TreeSum


class ByMessages:
    """Ranks send each other the slices, and then the sums of these: what one sends does not grow with their number.

    Parameters
    ----------
    carrier : Carrier
    tree : TreeSum
    size : int
        Of the flat buffer.
    empty : callable
        Returns an array of a shape.
    """

    def __init__(self, carrier: Carrier, tree: TreeSum, size: int, empty: Callable[[tuple[int, ...]], Array]) -> None:
        self._carrier, self._tree, self._bounds = carrier, tree, cut(size, carrier.size)
        self._slice = slice(*self._bounds[carrier.rank : carrier.rank + 2])
        self.brought = empty((sum(tree.counts), self._slice.stop - self._slice.start))
        """The slices of this rank, of all sums."""

    def __call__(self, grads: Array) -> None:
        """Overwrite a flat buffer with the sums over all shards; each rank has added up its own."""
        self._carrier.exchange(self._tree.sums, self._tree.counts, self._bounds, self.brought)
        grads[self._slice] = self._tree.whole(self.brought)
        self._carrier.gather(grads, self._bounds)


class InCommon:
    """Each rank adds up its slice where the sums of all ranks lie, which is read by all, and nothing is sent.

    Parameters
    ----------
    carrier : Carrier
    tree : TreeSum
        Its sums are this rank's array of `sums`.
    sums : sequence of (counts[rank], size) array
        Of all ranks, in memory that they have in common.
    """

    def __init__(self, carrier: Carrier, tree: TreeSum, sums: Sequence[Array]) -> None:
        self._carrier, self._tree = carrier, tree
        bounds = cut(sums[0].shape[1], carrier.size)
        self._slices = [row[bounds[carrier.rank] : bounds[carrier.rank + 1]] for rows in sums for row in rows]
        self._whole = sums[0][0]
        """Where the tree leaves its sum."""

    def __call__(self, grads: Array) -> None:
        """Overwrite a flat buffer with the sums over all shards; all ranks have added up their own, and know it."""
        self._tree.whole(self._slices)
        self._carrier.meet()
        grads[...] = self._whole  # a copy, since the update works in its gradients
        self._carrier.meet()  # else a rank that is ahead would overwrite what another still reads
