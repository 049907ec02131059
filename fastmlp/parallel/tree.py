"""One sum for any number of ranks: shards of a batch, added up along one fixed tree, whoever computes them.

Floating-point sums depend on their order.  So the order is that of a binary tree over the shards, whose number does not
depend on how many ranks there are: the sum of shards lo..hi is that of the lower half plus that of the upper half.  A
rank has consecutive shards, adds up what of the tree lies within them, and ranks exchange these sums alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastmlp._typing import Array

SHARDS = 8
"""Parts of a batch where nobody says: as many ranks can share it, and each part is still worth a product."""

Node = tuple[int, int]
"""The shards lo..hi, hi left out, whose sum is one of the tree's."""

Step = tuple[str, int, int]
"""What is done ("shard", "shard onto" or "add"), with which shard or buffer, to which buffer: it becomes the shard's
array, or this is added to it, or a buffer."""


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


def program_of(nodes: Sequence[Node], first: int) -> list[Step]:
    """Return how to add up some sums of the tree: each in a buffer of its own, and others behind these meanwhile.

    Parameters
    ----------
    nodes : sequence of Node
    first : int
        The first shard, from which the program counts.
    """
    steps: list[Step] = []

    def add_up(lo: int, hi: int, buffer: int, spare: int) -> None:
        middle = (lo + hi) // 2
        if hi - lo == 1:
            steps.append(("shard", lo - first, buffer))
            return
        add_up(lo, middle, buffer, spare)
        if hi - middle == 1:
            steps.append(("shard onto", middle - first, buffer))
        else:
            add_up(middle, hi, spare, spare + 1)
            steps.append(("add", spare, buffer))

    for row, (lo, hi) in enumerate(nodes):
        add_up(lo, hi, row, len(nodes))
    return steps


def buffers_of(program: Sequence[Step]) -> int:
    """Return how many buffers a program works in."""
    return 1 + max((buffer for _, _, buffer in program), default=-1)


@dataclass(frozen=True)
class Share:
    """What one of some ranks has of batches in shards.

    Parameters
    ----------
    shards, ranks, rank : int
    """

    shards: int
    ranks: int
    rank: int

    @property
    def first(self) -> int:
        """Its first shard."""
        return cut(self.shards, self.ranks)[self.rank]

    @property
    def stop(self) -> int:
        """The shard after its last."""
        return cut(self.shards, self.ranks)[self.rank + 1]

    @cached_property
    def nodes(self) -> list[list[Node]]:
        """The sums of the tree that each rank brings."""
        owned = cut(self.shards, self.ranks)
        return [nodes_within(owned[rank], owned[rank + 1], 0, self.shards) for rank in range(self.ranks)]

    @cached_property
    def counts(self) -> list[int]:
        """How many these are of each rank."""
        return [len(nodes) for nodes in self.nodes]

    @cached_property
    def program(self) -> list[Step]:
        """How it adds up its own."""
        return program_of(self.nodes[self.rank], self.first)

    @property
    def buffers(self) -> int:
        """In how many arrays it does."""
        return buffers_of(self.program)

    def rows(self, batch: int) -> tuple[int, int]:
        """Return where its rows of a batch of so many begin and end."""
        bounds = cut(batch, self.shards)
        return bounds[self.first], bounds[self.stop]

    def most_rows(self, batch: int) -> tuple[int, int]:
        """Return how many rows it has at most, and a shard, of a batch of so many or fewer."""
        own = self.stop - self.first
        return -(-batch * own // self.shards), -(-batch // self.shards)

    def nbytes(self, size: int, itemsize: int, buffers: int | None = None) -> int:
        """Return the bytes of what arrays of so many elements are added up in, and of the totals of shards.

        Of its buffers all are counted, or as many as are told; and what ranks send each other, though those that have
        memory in common send nothing.
        """
        bounds = cut(size, self.ranks)
        brought = sum(self.counts) * (bounds[self.rank + 1] - bounds[self.rank])
        here = self.buffers if buffers is None else buffers
        return (here * size + brought) * itemsize + 3 * 8 * self.shards


class TreeSum:
    """The part that one rank has in adding up arrays of all shards.

    Attributes
    ----------
    first, stop : int
        Its shards.
    counts : list of int
        How many sums of the tree each rank brings.
    share : Share
    sums : (counts[rank], size) array
        Those of this one; they may be given another place while they are not in use.
    program : list of Step
        How it adds them up.

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
        self.share = share = Share(shards, ranks, rank)
        self.first, self.stop, self.counts, self.program = share.first, share.stop, share.counts, share.program
        self._shards, self._size, self._empty, self._add = shards, size, empty, add
        self._row = {node: row for row, node in enumerate(node for nodes in share.nodes for node in nodes)}
        self.sums = empty((self.counts[rank], size))
        self._spare: list[Array] = []

    def add_up(self, gradients: Callable[[int], Array]) -> None:
        """Overwrite the sums that this rank brings.

        Parameters
        ----------
        gradients : callable
            Returns the array of a shard, which holds until it is called again; called once for each of the rank's own.
        """
        rows = len(self.sums)
        while rows + len(self._spare) < buffers_of(self.program):
            self._spare.append(self._empty((self._size,)))
        buffers = [*self.sums, *self._spare]
        for what, source, buffer in self.program:
            if what == "shard":
                buffers[buffer][...] = gradients(self.first + source)
            else:
                self._add(buffers[buffer], buffers[source] if what == "add" else gradients(self.first + source))

    def whole(self, sums: Sequence[Array] | Array) -> Array:
        """Return the sum over all shards, made of the sums of all ranks in their order, which are overwritten.

        It is left in the first of them.
        """
        return self._whole(0, self._shards, sums)

    def _whole(self, lo: int, hi: int, sums: Sequence[Array] | Array) -> Array:
        row = self._row.get((lo, hi))
        if row is not None:
            return sums[row]
        middle = (lo + hi) // 2
        left, right = self._whole(lo, middle, sums), self._whole(middle, hi, sums)
        self._add(left, right)
        return left
