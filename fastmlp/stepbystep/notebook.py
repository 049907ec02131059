"""The notebook's functions; `fastmlp.stepbystep` is where users find them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_count, check_flag, check_number, check_sequence
from fastmlp.floating import quiet
from fastmlp.stepbystep.columns import (
    as_rows,
    backend_of,
    expect_examples,
    expect_matrix,
    expect_shape,
    float_type,
    layer_units,
    layers_of,
    outputs_and_targets,
    parts_of,
    row_copies,
)

if TYPE_CHECKING:
    from fastmlp._typing import Array

Parameters: TypeAlias = "dict[str, Array]"
LinearCache: TypeAlias = "tuple[Array, Array, Array]"
Cache: TypeAlias = "tuple[LinearCache, Array]"
COSTS_EVERY = 100
"""Iterations between two costs that training keeps."""


# --- parameters -----------------------------------------------------------------------------------------------------


def initialize_parameters(n_x: int, n_h: int, n_y: int) -> dict[str, NDArray[np.float64]]:
    """Return W1, b1, W2, b2 of a two-layer network: ``0.01 * randn`` of seed 1, and zeros.

    Parameters
    ----------
    n_x, n_h, n_y : int
        Numbers of inputs, hidden units and outputs.
    """
    return _draw([check_count(*n) for n in (("n_x", n_x), ("n_h", n_h), ("n_y", n_y))], seed=1, scale=0.01)


def initialize_parameters_deep(
    layer_dims: Sequence[int], *, seed: int = 3, scale: float | None = 0.01
) -> dict[str, NDArray[np.float64]]:
    """Return W1, b1, ..., WL, bL: ``scale * randn`` of NumPy's legacy generator, and zeros.

    Parameters
    ----------
    layer_dims : sequence of int
        Numbers of units from the inputs to the outputs.
    seed : int
        Of the generator.
    scale : float, optional
        Standard deviation of the weights; None: ``1 / sqrt(n_{l-1})``, with which deep networks train (the sequel's
        helper: seed 1, None).  With 0.01 each layer passes on a hundredth of sqrt(n_{l-1}) of the signal, which fades.
    """
    return _draw(layer_units("layer_dims", layer_dims), seed, scale)


@quiet
def _draw(units: Sequence[int], seed: int, scale: float | None) -> dict[str, NDArray[np.float64]]:
    random = np.random.RandomState(int(check_number("seed", check_count("seed", seed, 0), 0, 2**32)))
    parameters: dict[str, NDArray[np.float64]] = {}
    for layer, (n_in, n_out) in enumerate(pairwise(units), start=1):
        size = 1 / math.sqrt(n_in) if scale is None else check_number("scale", scale)
        parameters[f"W{layer}"] = random.randn(n_out, n_in) * size
        parameters[f"b{layer}"] = np.zeros((n_out, 1))
    return parameters


@quiet
def update_parameters(parameters: Mapping[str, Array], grads: Mapping[str, Array], learning_rate: float) -> Parameters:
    """Return ``p - learning_rate * dp`` for every parameter, in new arrays.

    Parameters
    ----------
    parameters : dict
        W1, b1, ..., WL, bL.
    grads : dict
        dW1, db1, ..., shaped like them; what else it holds is not used.
    learning_rate : float
    """
    updated: Parameters = {}
    rate = check_number("learning_rate", learning_rate)
    for layer in range(1, layers_of(parameters, grads=grads) + 1):
        for name in (f"W{layer}", f"b{layer}"):
            if f"d{name}" not in grads:
                raise ValueError(f"layer {layer}: grads has no {'d' + name!r}; there are {', '.join(grads) or 'none'}")
            p, g = parameters[name], grads[f"d{name}"]
            backend = backend_of(**{name: p, f"d{name}": g})
            expect_shape(layer, f"d{name}", g, p.shape, f"{name} is {p.shape}")
            new = backend.copy(p.astype(float_type(p), copy=False))
            flat = backend.copy(g.astype(new.dtype, copy=False)).reshape(-1)
            backend.add_scaled(new.reshape(-1), flat, -rate, backend.empty(flat.shape, new.dtype))
            updated[name] = new
    return updated


# --- forward --------------------------------------------------------------------------------------------------------


def linear_forward(A: Array, W: Array, b: Array) -> tuple[Array, LinearCache]:
    """Return ``Z = W A + b`` and the cache (A, W, b).

    Parameters
    ----------
    A : (n_{l-1}, m) array
    W : (n_l, n_{l-1}) array
    b : (n_l, 1) array

    Returns
    -------
    Z : (n_l, m) float array
    cache : tuple
        The three arrays as given.

    Raises
    ------
    ValueError
        Shapes do not fit; the message says which array, what was got and expected.
    """
    return _linear_forward(None, A, W, b)


@quiet
def _linear_forward(layer: int | None, A: Array, W: Array, b: Array) -> tuple[Array, LinearCache]:
    backend = backend_of(**{"A_prev" if layer else "A": A, "W": W, "b": b})
    expect_matrix(layer, "A_prev" if layer else "A", A)
    expect_matrix(layer, "W", W)
    expect_shape(layer, "W", W, (W.shape[0], A.shape[0]), f"{'A_prev' if layer else 'A'} is {A.shape}")
    expect_shape(layer, "b", b, (W.shape[0], 1), f"W is {W.shape}")
    x, w, bias = as_rows(A, W, b)
    z = backend.empty((A.shape[1], W.shape[0]), x.dtype)
    backend.dense_forward(x, w, bias[0], z)
    return z.T, (A, W, b)


def sigmoid(Z: Array) -> tuple[Array, Array]:
    """Return ``A = 1 / (1 + exp(-Z))`` and the cache, Z as given."""
    return _activate("sigmoid", Z)


def relu(Z: Array) -> tuple[Array, Array]:
    """Return ``A = max(Z, 0)`` and the cache, Z as given."""
    return _activate("relu", Z)


@quiet
def _activate(activation: str, Z: Array) -> tuple[Array, Array]:
    backend = backend_of(Z=Z)
    (a,) = row_copies(backend, Z)
    backend.activate(activation, a, None, (backend.empty(a.shape, a.dtype), backend.empty(a.shape, a.dtype)))
    return a.reshape(Z.shape[::-1]).T, Z


def linear_activation_forward(A_prev: Array, W: Array, b: Array, activation: str) -> tuple[Array, Cache]:
    """Return ``A = activation(W A_prev + b)`` and the cache (linear_cache, Z).

    Parameters
    ----------
    A_prev, W, b : arrays
        As for `linear_forward`.
    activation : str
        ``"sigmoid"``, ``"relu"`` or any other of `fastmlp.activation_names`.
    """
    return _linear_activation_forward(None, A_prev, W, b, activation)


def _linear_activation_forward(
    layer: int | None, A_prev: Array, W: Array, b: Array, activation: str
) -> tuple[Array, Cache]:
    z, linear_cache = _linear_forward(layer, A_prev, W, b)
    a, activation_cache = _activate(activation, z)
    return a, (linear_cache, activation_cache)


def L_model_forward(X: Array, parameters: Mapping[str, Array]) -> tuple[Array, list[Cache]]:
    """Return the outputs of [LINEAR -> RELU] x (L-1) -> LINEAR -> SIGMOID, and a cache for each layer.

    Parameters
    ----------
    X : (n_x, m) array
    parameters : dict
        W1, b1, ..., WL, bL.

    Returns
    -------
    AL : (n_L, m) float array
    caches : list
        What `linear_activation_forward` returned for layer 1, ..., L.
    """
    last = layers_of(parameters)
    a, caches = X, []
    backend_of(X=X)
    for layer in range(1, last + 1):
        name = "sigmoid" if layer == last else "relu"
        a, cache = _linear_activation_forward(layer, a, parameters[f"W{layer}"], parameters[f"b{layer}"], name)
        caches.append(cache)
    return a, caches


@quiet
def compute_cost(AL: Array, Y: Array) -> np.float64:
    """Return the binary cross-entropy ``-sum(Y log AL + (1 - Y) log(1 - AL)) / m``, in nats.

    A probability of 0 or 1 costs nothing where it is right (NaN in the notebook) and is infinitely wrong elsewhere.

    Parameters
    ----------
    AL : (n, m) array
        Probabilities of 1.
    Y : (n, m) array
        0 or 1; for one output (m,) will do.
    """
    al, y = outputs_and_targets(AL, Y)
    terms = np.where(y == 0, 0, y * np.log(al)) + np.where(y == 1, 0, (1 - y) * np.log(1 - al))
    # multiplied by -1 / m, as the notebook does it, so that the last digit is the same; and no cost is 0, not -0
    return np.float64(-1 / al.shape[1] * float(terms.sum()) + 0.0)


# --- backward -------------------------------------------------------------------------------------------------------


def linear_backward(dZ: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    """Return ``dA_prev = W^T dZ``, ``dW = dZ A_prev^T / m`` and ``db = sum of dZ over columns / m``.

    Parameters
    ----------
    dZ : (n_l, m) array
    cache : tuple
        (A_prev, W, b), what `linear_forward` returned.

    Returns
    -------
    dA_prev : (n_{l-1}, m) float array
        Not divided by m: the division by the number of examples is done where a parameter's gradient is.
    dW : (n_l, n_{l-1}) float array
    db : (n_l, 1) float array
    """
    return _linear_backward(None, dZ, cache)


@quiet
def _linear_backward(layer: int | None, dZ: Array, cache: LinearCache) -> tuple[Array, Array, Array]:
    A_prev, W, _ = parts_of(layer, cache, "A_prev, W, b", "linear_forward")
    backend = backend_of(dZ=dZ, A_prev=A_prev, W=W)
    expect_shape(layer, "W", W, (W.shape[0], A_prev.shape[0]), f"A_prev is {A_prev.shape}")
    expect_shape(layer, "dZ", dZ, (W.shape[0], A_prev.shape[1]), f"A_prev is {A_prev.shape} and W {W.shape}")
    expect_examples(layer, "dZ", dZ)
    dz, x, w = as_rows(dZ, A_prev, W)
    dw, db, dx = (backend.empty(shape, x.dtype) for shape in (w.shape, w.shape[1:], x.shape))
    backend.dense_backward(x, dz, w, dw, db, dx)
    dw /= len(x)
    db /= len(x)
    return dx.T, dw.T, db.reshape(-1, 1)


def sigmoid_backward(dA: Array, cache: Array) -> Array:
    """Return ``dZ = dA * s (1 - s)``, s the sigmoid of the cache, Z (n, m)."""
    return _activation_backward(None, dA, cache, "sigmoid")


def relu_backward(dA: Array, cache: Array) -> Array:
    """Return ``dZ = dA * [Z > 0]``, Z (n, m) the cache."""
    return _activation_backward(None, dA, cache, "relu")


@quiet
def _activation_backward(layer: int | None, dA: Array, Z: Array, activation: str) -> Array:
    backend = backend_of(dA=dA, Z=Z)
    expect_shape(layer, "dA", dA, Z.shape, f"Z is {Z.shape}")
    a, d = row_copies(backend, Z, dA)
    slope, first, second = (backend.empty(a.shape, a.dtype) for _ in range(3))
    backend.activate(activation, a, slope, (first, second))
    backend.activation_backward(activation, a, slope, d, first)
    return d.reshape(Z.shape[::-1]).T


def linear_activation_backward(dA: Array, cache: Cache, activation: str) -> tuple[Array, Array, Array]:
    """Return dA_prev, dW and db of a layer, as `linear_backward` does.

    Parameters
    ----------
    dA : (n_l, m) array
    cache : tuple
        What `linear_activation_forward` returned.
    activation : str
        That of the layer.
    """
    return _linear_activation_backward(None, dA, cache, activation)


def _linear_activation_backward(
    layer: int | None, dA: Array, cache: Cache, activation: str
) -> tuple[Array, Array, Array]:
    linear_cache, Z = parts_of(layer, cache, "linear_cache, Z", "linear_activation_forward")
    return _linear_backward(layer, _activation_backward(layer, dA, Z, activation), linear_cache)


def L_model_backward(AL: Array, Y: Array, caches: Sequence[Cache]) -> dict[str, Array]:
    """Return the gradients of the network of `L_model_forward`, under dA0, ..., dA(L-1), dW1, db1, ..., dWL, dbL.

    Those of parameters are of `compute_cost`; ``dAl`` (n_l, m), not yet divided by m, of m times it.

    Parameters
    ----------
    AL : (n_L, m) array
        Outputs.
    Y : (n_L, m) array
        0 or 1; for one output (m,) will do.
    caches : list
        What `L_model_forward` returned.
    """
    al, y = outputs_and_targets(AL, Y)
    if not (last := len(caches := check_sequence("caches", caches, "what L_model_forward returned"))):
        raise ValueError("L_model_backward: caches is empty; give what L_model_forward returned")
    linear_cache, Z = parts_of(last, caches[-1], "linear_cache, Z", "linear_activation_forward")
    # the notebook's dAL = -(Y / AL - (1 - Y) / (1 - AL)) in one fraction; where AL is exactly 0 or 1 that is 0 / 0 or
    # infinite, and its product with the sigmoid's slope is taken as what it is everywhere else: AL - Y
    slope = al * (1 - al)
    saturated = slope == 0
    dZ = _activation_backward(last, (al - y) / (slope + saturated), Z, "sigmoid")
    grads: dict[str, Array] = {}
    gradients = _linear_backward(last, dZ + saturated * (al - y), linear_cache)
    for layer in range(last, 0, -1):
        if layer < last:
            gradients = _linear_activation_backward(layer, grads[f"dA{layer}"], caches[layer - 1], "relu")
        grads[f"dA{layer - 1}"], grads[f"dW{layer}"], grads[f"db{layer}"] = gradients
    return grads


# --- the sequel: training and asking --------------------------------------------------------------------------------


def two_layer_model(
    X: Array,
    Y: Array,
    layers_dims: Sequence[int],
    learning_rate: float = 0.0075,
    num_iterations: int = 3000,
    print_cost: bool = False,
) -> tuple[Parameters, list[float]]:
    """Train LINEAR -> RELU -> LINEAR -> SIGMOID by gradient descent on all examples at once.

    Parameters
    ----------
    X : (n_x, m) array
    Y : (n_y, m) array
        0 or 1.
    layers_dims : (n_x, n_h, n_y)
    learning_rate : float
    num_iterations : int
    print_cost : bool
        Print each cost that is kept.

    Returns
    -------
    parameters : dict
        W1, b1, W2, b2, from those of `initialize_parameters`.
    costs : list of float
        Before the iterations 0, 100, 200, ...
    """
    units = layer_units("layers_dims", layers_dims)
    if len(units) != 3:
        raise ValueError(f"two_layer_model: layers_dims must be (n_x, n_h, n_y), got {tuple(units)}")
    return _train(X, Y, units, initialize_parameters(*units), learning_rate, num_iterations, print_cost)


def L_layer_model(
    X: Array,
    Y: Array,
    layers_dims: Sequence[int],
    learning_rate: float = 0.0075,
    num_iterations: int = 3000,
    print_cost: bool = False,
) -> tuple[Parameters, list[float]]:
    """Train [LINEAR -> RELU] x (L-1) -> LINEAR -> SIGMOID as `two_layer_model` trains its two layers.

    It starts from ``initialize_parameters_deep(layers_dims, seed=1, scale=None)``, as the sequel does.
    """
    units = layer_units("layers_dims", layers_dims)
    start = initialize_parameters_deep(units, seed=1, scale=None)
    return _train(X, Y, units, start, learning_rate, num_iterations, print_cost)


def _train(
    X: Array,
    Y: Array,
    units: Sequence[int],
    start: Mapping[str, NDArray[np.float64]],
    learning_rate: float,
    num_iterations: int,
    print_cost: bool,
) -> tuple[Parameters, list[float]]:
    backend, said = backend_of(X=X, Y=Y), check_flag("print_cost", print_cost)
    expect_matrix(None, "X", X)
    expect_shape(None, "X", X, (units[0], X.shape[1]), f"layers_dims is {tuple(units)}; columns are examples")
    parameters: Parameters = {name: backend.asarray(array) for name, array in start.items()}
    costs: list[float] = []
    for iteration in range(check_count("num_iterations", num_iterations)):
        AL, caches = L_model_forward(X, parameters)
        if iteration % COSTS_EVERY == 0:
            costs.append(float(compute_cost(AL, Y)))
            if said:
                print(f"Cost after iteration {iteration}: {costs[-1]}")
        parameters = update_parameters(parameters, L_model_backward(AL, Y, caches), learning_rate)
    return parameters, costs


def predict(X: Array, y: Array, parameters: Mapping[str, Array]) -> Array:
    """Return 1 where the output is above one half, else 0, and print the accuracy.

    Parameters
    ----------
    X : (n_x, m) array
    y : (n_L, m) array
        The right answers.
    parameters : dict
        W1, b1, ..., WL, bL.

    Returns
    -------
    (n_L, m) float array
    """
    p, right = _predict(X, y, parameters)
    print(f"Accuracy: {right}")
    return p


def accuracy(X: Array, y: Array, parameters: Mapping[str, Array]) -> float:
    """Return the share of outputs on the right side of one half; parameters as for `predict`."""
    return _predict(X, y, parameters)[1]


def _predict(X: Array, y: Array, parameters: Mapping[str, Array]) -> tuple[Array, float]:
    backend_of(X=X, y=y)
    al, targets = outputs_and_targets(L_model_forward(X, parameters)[0], y)
    p = (al > 0.5).astype(al.dtype)
    return p, float((p == targets).mean())
