"""Numbers for names: what kernels are told to choose by; uses nothing, and kernels and the host both read it.

Activation, loss, optimizer and type of the inputs reach a compiled call as positions in the tuples below, and kernels
switch on them outside their inner loops; Numba takes the global integers as constants.
"""

from __future__ import annotations

ACTIVATIONS = (
    *("identity", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh"),
    *("sin", "cos"),
)
IDENTITY, RELU, LEAKY_RELU, ELU, SELU, GELU, SILU, MISH, SOFTPLUS, SIGMOID, TANH, SIN, COS = range(len(ACTIVATIONS))

LOSSES = (
    "softmax_cross_entropy",
    "sigmoid_cross_entropy",
    "mean_squared_error",
    "mean_absolute_error",
    "huber",
    "poisson",
    "categorical_hinge",
    "mean_squared_logarithmic_error",
    "quantile",
)
(
    SOFTMAX_CROSS_ENTROPY,
    SIGMOID_CROSS_ENTROPY,
    MEAN_SQUARED_ERROR,
    MEAN_ABSOLUTE_ERROR,
    HUBER,
    POISSON,
    CATEGORICAL_HINGE,
    MEAN_SQUARED_LOGARITHMIC_ERROR,
    QUANTILE,
) = range(len(LOSSES))

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
SGD, ADAM, ADAMW, RMSPROP = range(len(OPTIMIZERS))

SOURCES = ("float32", "float64", "uint8", "bool", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
FLOAT32, FLOAT64, UINT8, BOOL, INT8, INT16, INT32, INT64, UINT16, UINT32, UINT64 = range(len(SOURCES))
"""Types that inputs and targets may have."""

FORMS = ("blas", "direct", "packed")
BLAS, DIRECT, PACKED = range(len(FORMS))
"""Ways to compute a matrix product, see `products`."""

PRODUCTS = ("forward", "backward", "gradient")
FORWARD, BACKWARD, GRADIENT = range(len(PRODUCTS))
"""The products of a layer: ``x w``, ``d w.T``, ``x.T d``."""

TREE = ("shard", "shard onto", "add")
SHARD, SHARD_ONTO, ADD = range(len(TREE))
"""What is done to a buffer of a tree of sums: it becomes a shard's gradients; these, or a buffer, are added to it."""

STEP_SCALARS = ("rate", "correction1", "correction2", "average_decay", "inverse_total", "l2_share")
RATE, CORRECTION1, CORRECTION2, AVERAGE_DECAY, INVERSE_TOTAL, L2_SHARE = range(len(STEP_SCALARS))
"""The columns of the table of steps, `fastmlp.formulas.optimizers.StepScalars`."""


def code_of(name: str, names: tuple[str, ...]) -> int:
    """Return the position of a name in one of the tuples.

    Raises
    ------
    LookupError
        It is not there: kernels know nothing of that name.
    """
    if name not in names:
        raise LookupError(f"the kernels know no {name!r}; they know {', '.join(names)}")
    return names.index(name)
