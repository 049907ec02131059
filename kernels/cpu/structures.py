"""What a compiled call is told: named tuples that the host (`NumbaSession`) fills in, handed from kernel to kernel.

There is one compiled signature for each dtype.  Choices (activation, loss, optimizer, type of the inputs) are numbers,
see `codes`.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Network(NamedTuple):
    """A network, as numbers.

    Attributes
    ----------
    units : (L + 1,) int64
    weight_at, bias_at : (L,) int64
        Where each layer's parameters start in a flat buffer.
    z_at : (L,) int64
        Where each layer's activations start, in rows' worth: the sum of the outputs below.
    activations : (L,) int64
        Positions in `codes.ACTIVATIONS`.
    needs_slope, frozen : (L,) bool
    lowest : int
        The first layer that trains.
    thresholds : (L,) uint64
        For the input of each layer, the smallest random word that keeps a unit; 0 for no dropout.
    scales : (L,) float
        What those kept are multiplied by.
    loss : int
        A position in `codes.LOSSES`.
    loss_parameters : (P,) float
        Label smoothing, Huber's delta, or the quantiles; empty where there are none.
    l2, max_norm : float
        0 for none.
    forms : (L, 3) int64
        How each of a layer's products (`codes.PRODUCTS`) is computed: positions in `codes.FORMS`.
    """

    units: Any
    weight_at: Any
    bias_at: Any
    z_at: Any
    activations: Any
    needs_slope: Any
    frozen: Any
    lowest: int
    thresholds: Any
    scales: Any
    loss: int
    loss_parameters: Any
    l2: Any
    max_norm: Any
    forms: Any


class Rule(NamedTuple):
    """How parameters change.

    Attributes
    ----------
    optimizer : int
        A position in `codes.OPTIMIZERS`.
    mean_decay : float
        What the mean of gradients is multiplied by: Adam's beta1, the momentum of SGD and RMSprop; 0 for none.
    square_decay : float
        What the mean of their squares is multiplied by: Adam's beta2, RMSprop's rho; 0 for none.
    mean_share, square_share : float
        1 less each of these, as float64 has it: of a decay near 1 the type of the weights leaves few digits.
    epsilon : float
    nesterov : bool
    weight_decay, clip_norm : float
        0 for none.
    smallest : float
        What is smaller in a mean of gradients becomes 0.
    has_average : bool
    """

    optimizer: int
    mean_decay: Any
    square_decay: Any
    mean_share: Any
    square_share: Any
    epsilon: Any
    nesterov: bool
    weight_decay: Any
    clip_norm: Any
    smallest: Any
    has_average: bool


class Data(NamedTuple):
    """Inputs and targets; arrays of any type go as their bytes.

    Attributes
    ----------
    x : (n * I * itemsize,) uint8
    x_kind : int
        A position in `codes.SOURCES`.
    labels : (n,) int64, or empty
    targets : (n * K * itemsize,) uint8, or empty
    targets_kind : int
        As `x_kind`.
    weights : (n,) float, or empty
    """

    x: Any
    x_kind: int
    labels: Any
    targets: Any
    targets_kind: int
    weights: Any


class Buffers(NamedTuple):
    """The flat buffers of a network that trains; those it has no use for are empty.

    `mean` and `square` are moments of the optimizer, see `Rule`; `average` is that of the parameters.
    """

    params: Any
    grads: Any
    mean: Any
    square: Any
    average: Any


class Batch(NamedTuple):
    """The rows of a step, and where their inputs are.

    Attributes
    ----------
    x : (...) float
        Flat: the user's own array, or the memory of gathered rows.
    index : (n,) int64
        From `first` on, which rows of `x` they are.
    first : int
    after : int
        Where in `index` the rows of the next step start; -1 where those of x are near anyway.
    rows : int
    size : int
        Rows of a full batch, by which the memory is laid out.
    row : int
        Of the memory, that the first of them has.
    place : int
        Of the first of them in the whole batch, by which dropout numbers them.
    """

    x: Any
    index: Any
    first: int
    after: int
    rows: int
    size: int
    row: int
    place: int


class Tree(NamedTuple):
    """How gradients of shards are added up, in buffers of which the first `rows` are results.

    Attributes
    ----------
    program : (steps, 3) int64
        One after the other: what is done (`codes.TREE`), with which shard or buffer, to which buffer.
    rows : int
    size : int
        Numbers that a result has.
    block : int
        Numbers of a buffer that are worked on at a time; at least those of 8 inputs of a layer, or where a BLAS takes
        its gradient all.
    """

    program: Any
    rows: int
    size: int
    block: int


class Memory(NamedTuple):
    """Where a batch is worked on.

    Attributes
    ----------
    x : (batch * I,) float
    z, slopes, dz : (batch * sum of outputs,) float
        Layer by layer, each (rows, O).
    row_losses, row_hits : (batch,) float
    scratch : (threads, 4, m) float
        Each thread's own, m at least a quarter of the widest input and the widest layer plus a vector.
    gradients : (threads, m) float
        Each thread's own, for the gradient of the parameters that are updated at a time; clipping needs all at once.
    losses : (threads, m) float
        Each thread's own, where losses are worked out.
    parts : (parts, batch * O) float, or empty
        Of the lowest layer's products, where those are shared out by input features.
    panels : (threads, m) float
        Each thread's own, for copies of what is multiplied (`products.scratch_size`).
    counting, order : (batch,) int64
        0, 1, 2 ...; and rows of the data, in prediction.
    norms : (parts,) float64
    arrivals : (`threads.counters`,) int64
        The barrier's counters and those of parts that are taken, 0 at the start of a call.
    """

    x: Any
    z: Any
    slopes: Any
    dz: Any
    row_losses: Any
    row_hits: Any
    scratch: Any
    gradients: Any
    losses: Any
    parts: Any
    panels: Any
    counting: Any
    order: Any
    norms: Any
    arrivals: Any
