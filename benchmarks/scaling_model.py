"""A model of data-parallel steps: how long `fastmlp.engine.sharded` takes, from what a rank, a link and a call take.

With N ranks, S shards, and a flat buffer of P numbers, a step is, one after the other,

1. the gradients of a rank's shards, each of which is added to its sum (`TreeSum.add_up`);
2. a gather of three float64 a shard: loss, weight, hits;
3. an exchange: each rank sends each other one the P / N numbers that it adds up, once for each sum that it brings;
4. the sum of these over all shards (`TreeSum.whole`), of P / N numbers;
5. a gather of the N parts;
6. the update of all P numbers.

Ranks of one machine on processors have memory in common: a rank adds up its P / N numbers where they lie, all wait for
each other, each copies the P sums, and they wait once more, instead of 3 to 5.

A call waits once for the latency of the farthest rank and pays for each message that a rank sends; a gather takes
log2(N) rounds, as in Thakur, Rabenseifner, Gropp 2005 (recursive doubling).  Near and far messages follow each other.
With overlap, 3 to 5 are done layer by layer from the top, each as soon as its gradients of the last shard are there and
the layer above is done; captured steps on CuPy do that, with layers that are large enough, and no other engine does.
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastmlp.bench.costs import of_gradients, of_update
from fastmlp.bench.limits import Limits
from fastmlp.parallel.tree import SHARDS, cut, nodes_within

SUMS = 3 * 8
"""Bytes that each shard tells of its loss, weight and hits."""
ITEMSIZE, MOMENTS = 4, 2
"""Of float32, and of Adam."""


@dataclass(frozen=True)
class Link:
    """What joins two ranks.

    Parameters
    ----------
    latency : float
        Seconds of a call, or of a round of it, beside its messages.
    message : float
        Seconds that a message costs the rank which sends it, beside its bytes.
    bandwidth : float
        Bytes a second that a rank sends while it receives as many.
    """

    latency: float
    message: float
    bandwidth: float


@dataclass(frozen=True)
class Wires:
    """What joins all ranks: those of a node, and nodes.

    Parameters
    ----------
    node : int
        Ranks of a node.
    near, far : Link
        Within a node, and between nodes.
    """

    node: int
    near: Link
    far: Link

    def _others(self, ranks: int) -> list[tuple[Link, int, int]]:
        """Return each link that there is, how many ranks are at its other end, and the rounds until all have met."""
        near, nodes = min(ranks, self.node), math.ceil(ranks / self.node)
        found = (self.near, near - 1, _rounds(near)), (self.far, ranks - near, _rounds(nodes))
        return [kind for kind in found if kind[1]]

    def exchange(self, size: float, ranks: int) -> float:
        """Return the seconds in which each rank sends each other one so many bytes."""
        others = self._others(ranks)
        latency = max((link.latency for link, _, _ in others), default=0.0)
        return latency + sum(count * (link.message + size / link.bandwidth) for link, count, _ in others)

    def gather(self, size: float, ranks: int) -> float:
        """Return the seconds after which each rank has the so many bytes of all."""
        return sum(
            rounds * (link.latency + link.message) + count * size / link.bandwidth
            for link, count, rounds in self._others(ranks)
        )


def _rounds(parties: int) -> int:
    return math.ceil(math.log2(parties))


class Work(NamedTuple):
    """What a rank does by itself.

    Attributes
    ----------
    units : tuple of int
    gradients : float
        Seconds of the gradients of one shard.
    call : float
        Seconds of an operation on an array, however small.
    add : float
        Seconds in which an array of all parameters is added to another, beside `call`.
    update : float
        Seconds of an update of all parameters.
    itemsize : int
        Bytes of a number.
    at_once : bool
        Whether a rank's shards are one call, in which they are added up too (`Backend.open_shards`).
    """

    units: tuple[int, ...]
    gradients: float
    call: float
    add: float
    update: float
    itemsize: int = ITEMSIZE
    at_once: bool = False

    @property
    def pieces(self) -> list[tuple[int, float]]:
        """Return for each layer, from the top, its parameters, and after which part of a shard's time they are ready.

        Time goes by multiply-adds: a forward pass, then for each layer one as long for its weights, and but for the
        lowest one for what goes down.
        """
        sizes = list(itertools.pairwise(self.units))
        forward = sum(i * o for i, o in sizes)
        whole = 3 * forward - sizes[0][0] * sizes[0][1]
        done, found = float(forward), []
        for i, o in reversed(sizes):
            done += i * o
            found.append(((i + 1) * o, done / whole))
            done += i * o
        return found


class Step(NamedTuple):
    """The seconds of a step, by what is done in them; those that overlap with the gradients are not in `reduction`.

    Attributes
    ----------
    gradients : float
        Of a rank's shards, added up.
    reduction : float
        Of what all ranks have: their parts are exchanged, added up, and gathered.
    update : float
    """

    gradients: float
    reduction: float
    update: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.gradients + self.reduction + self.update

    @property
    def share(self) -> float:
        """Of the reduction in the step."""
        return self.reduction / self.seconds


def passes(shards: int) -> int:
    """Return how many arrays are copied or added until a rank has the sum of consecutive shards of one node."""
    if shards == 1:
        return 1
    upper = shards - shards // 2
    return passes(shards // 2) + (1 if upper == 1 else passes(upper) + 1)


def step(
    work: Work,
    wires: Wires,
    ranks: int,
    shards: int | None = None,
    overlap: bool = False,
    crowd: float = 1.0,
    in_common: bool = False,
) -> Step:
    """Return how long a step takes.

    Parameters
    ----------
    work : Work
        Of a rank that has its processor for itself.
    wires : Wires
    ranks : int
    shards : int, optional
        Of the batch; None: as many as an engine takes by itself, or a rank each where that is more.
    overlap : bool
        Whether layers are reduced while those below them go on.
    crowd : float
        How many ranks share a processor, each of which takes so many times as long for everything.
    in_common : bool
        Whether all ranks have memory in common.

    Raises
    ------
    ValueError
        There are more ranks than shards.
    """
    shards = max(SHARDS, ranks) if shards is None else shards
    if not 1 <= ranks <= shards:
        raise ValueError(f"ranks must be from 1 to shards={shards}; got {ranks}")
    owned = cut(shards, ranks)
    by_rank = [nodes_within(lo, hi, 0, shards) for lo, hi in itertools.pairwise(owned)]
    counts = [len(nodes) for nodes in by_rank]
    adding = 0 if work.at_once else max(sum(passes(hi - lo) for lo, hi in nodes) for nodes in by_rank)
    own = max(hi - lo for lo, hi in itertools.pairwise(owned)) * work.gradients + adding * (work.call + work.add)
    rounds, operations = max(counts), max(counts) + sum(counts)  # what is a rank's own is copied in each round
    whole = sum(numbers for numbers, _ in work.pieces)

    def reduced(numbers: int) -> float:
        if in_common:
            add, waiting = work.add * numbers / whole, 2 * wires.gather(0, ranks)
            return (sum(counts) - 1) * (work.call + add / ranks) + waiting + work.call + add
        part = numbers * work.itemsize / ranks
        adding = operations * (work.call + work.add * numbers / whole / ranks)
        return rounds * wires.exchange(part, ranks) + adding + wires.gather(part, ranks)

    told = wires.gather(SUMS * shards / ranks, ranks)
    if overlap and ranks > 1:
        last, end = own - work.gradients, 0.0
        for numbers, ready in work.pieces:
            end = max(end, last + ready * work.gradients) + reduced(numbers)
        reduction = max(end, own) - own + told
    else:
        reduction = told + reduced(whole)
    return Step(crowd * own, crowd * reduction, crowd * work.update)


# --- machines that are described ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """How fast a device computes.

    Parameters
    ----------
    product : float
        Floating-point operations a second.
    memory : float
        Bytes a second.
    fixed : float
        Seconds of the gradients of a tiny network.
    call : float
        Seconds of one operation on tiny arrays.
    """

    product: float
    memory: float
    fixed: float
    call: float


@dataclass(frozen=True)
class Machine:
    """Devices, all alike, and what joins them.

    Parameters
    ----------
    name : str
    rates : Rates
    wires : Wires
    steps : dict
        Seconds of a whole step that were measured on one device, by units and rows; where there are some of a network
        they are taken, between them in proportion to the rows, and not the rates.
    """

    name: str
    rates: Rates
    wires: Wires
    steps: Mapping[tuple[int, ...], Mapping[int, float]]

    def work(self, units: Sequence[int], rows: int, measured: bool = True) -> Work:
        """Return what one device does by itself with so many rows of a shard."""
        units, rates = tuple(units), self.rates
        limits = Limits(rates.product, ((1.0, rates.memory),), 0.0)
        gradients = rates.fixed + limits.least_seconds(of_gradients(units, rows, ITEMSIZE))[0]
        update = of_update(units, ITEMSIZE, MOMENTS)
        add = 3 * update.bytes / (2 * (1 + MOMENTS)) / rates.memory  # two arrays are read, one is written
        rest = rates.call + update.bytes / rates.memory
        if measured and units in self.steps:
            gradients = max(_between(self.steps[units], rows) - rest, rates.fixed)
        return Work(units, gradients, rates.call, add, rest)

    def plain(self, units: Sequence[int], batch: int, measured: bool = True) -> float:
        """Return the seconds of a step of one device, without shards and all that comes with them."""
        work = self.work(units, batch, measured)
        return work.gradients + work.update

    def sharded(self, units: Sequence[int], batch: int, ranks: int, overlap: bool = False) -> Step:
        """Return how long a step of several devices takes, each of which has as few shards as there can be."""
        shards = max(SHARDS, ranks)
        return step(self.work(units, math.ceil(batch / shards)), self.wires, ranks, shards, overlap)


def _between(found: Mapping[int, float], rows: int) -> float:
    """Return seconds at a number of rows; beyond the most that were measured, in proportion."""
    at = sorted(found)
    return float(np.interp(rows, at, [found[n] for n in at])) * max(1.0, rows / at[-1])


def read_machine(path: Path) -> Machine:
    """Return the machine that a TOML file describes, see ``benchmarks/machines``.

    Raises
    ------
    ValueError
        Something is missing, not known, or no positive number; the message names it.
    """
    given = tomllib.loads(path.read_text(encoding="utf-8"))
    expected = {"name", "arithmetic", "node", "near", "far", "steps"}
    _check_keys(path, "", given, expected, expected - {"steps"})
    kinds = {"arithmetic": Rates, "near": Link, "far": Link}
    rates, near, far = (_record(path, name, given[name], kind) for name, kind in kinds.items())
    steps: dict[tuple[int, ...], dict[int, float]] = {}
    for i, found in enumerate(given.get("steps", [])):
        _check_keys(path, f"steps[{i}]", found, {"units", "rows", "seconds"}, {"units", "rows", "seconds"})
        if len(found["rows"]) != len(found["seconds"]):
            raise ValueError(f"{path}: steps[{i}]: rows and seconds must be as many; got {found}")
        steps[tuple(found["units"])] = dict(zip(found["rows"], found["seconds"], strict=True))
    node = _positive(path, "node", given["node"])
    return Machine(given["name"], rates, Wires(int(node), near, far), steps)


def _check_keys(path: Path, where: str, given: Mapping[str, Any], known: set[str], needed: set[str]) -> None:
    named = f"{where}: " if where else ""
    if not isinstance(given, Mapping) or set(given) - known or needed - set(given):
        raise ValueError(f"{path}: {named}expected {', '.join(sorted(known))}; got {', '.join(sorted(given))}")


def _positive(path: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{path}: {name} must be a positive number; got {value!r}")
    return value


def _record(path: Path, where: str, given: Mapping[str, Any], kind: type[Any]) -> Any:
    names = {field.name for field in fields(kind)}
    _check_keys(path, where, given, names, names)
    return kind(**{name: _positive(path, f"{where}.{name}", value) for name, value in given.items()})
