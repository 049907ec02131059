"""Stacks of dense layers of Keras 3 as networks of ours, and back.

`keras.layers.Dense` computes ``activation(x W + b)`` with W (inputs, units), as here; its models end in probabilities,
where losses here take logits, so the last softmax or sigmoid becomes part of the loss and comes out of it again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from fastmlp.convert.stack import LINKS, Stack, as_asked, layers_of, library, network_of
from fastmlp.engine.inputs import FULL
from fastmlp.formulas.losses import LOSSES

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.estimators.base import BaseMLP
    from fastmlp.estimators.classifier import MLPClassifier
    from fastmlp.estimators.regressor import MLPRegressor
    from fastmlp.formulas.losses import Loss
    from fastmlp.model import MLP

_CURE = "pip install keras, version 3, and one of TensorFlow, JAX and PyTorch, which the variable KERAS_BACKEND names"
# the name of an activation here: that of the function there; its leaky_relu has another slope
_FUNCTIONS = {"identity": "linear", "leaky_relu": ""}
_FUNCTIONS |= {name: name for name in ("relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "sigmoid", "tanh")}
_LINKS = ("softmax", "exponential")
_LEAK = 0.01
_EXPECTED = "InputLayer, Rescaling, Flatten, Dense, Dropout, Activation, ReLU, LeakyReLU, ELU or Softmax"


@overload
def from_keras(
    model: Any,
    loss: str | Loss | None = ...,
    *,
    as_estimator: Literal[False] = ...,
    classes: None = ...,
    backend: str | Backend = ...,
    seed: int | None = ...,
) -> MLP: ...


@overload
def from_keras(
    model: Any,
    loss: str | Loss | None = ...,
    *,
    as_estimator: Literal[True],
    classes: ArrayLike | None = ...,
    backend: str | Backend = ...,
) -> MLPClassifier | MLPRegressor: ...


def from_keras(
    model: Any,
    loss: str | Loss | None = None,
    *,
    as_estimator: bool = False,
    classes: ArrayLike | None = None,
    backend: str | Backend = "auto",
    seed: int | None = None,
) -> MLP | MLPClassifier | MLPRegressor:
    """Return a stack of Dense layers of Keras as a network with the same weights.

    The network takes inputs as they are, uint8 too, as (n, inputs); where the first layer is ``Rescaling(1 / 255)`` it
    divides those of any type by 255, and another Rescaling is put into the first weights and biases.

    Parameters
    ----------
    model : keras.Model
        Sequential, or functional with one layer after the other, and built: of Dense layers with an activation of their
        own or as a layer, and Dropout after it.  A layer without a bias gets one of zeros; one that does not train is
        frozen.
    loss : str or Loss, optional
        As for `fastmlp.MLP`; Keras's names are understood.  The softmax, sigmoid or exponential of the outputs becomes
        part of the loss that has it.  None: that of ``model.compile``, else what the last activation tells: softmax or
        sigmoid cross-entropy.
    as_estimator : bool
        Return `fastmlp.MLPClassifier`, where the loss is of classes, or `fastmlp.MLPRegressor`, fitted: it predicts the
        classes themselves, and trains on, with a fresh optimizer, by `partial_fit` and `warm_start`.
    classes : (K,) array_like, optional
        Of an estimator: what the outputs stand for, in their order (two for a single one).  None: 0, 1, ...
    backend, seed
        As for `fastmlp.MLP`; an estimator has ``random_state`` in the place of a seed.

    Raises
    ------
    TypeError
        It is no model of Keras.
    ValueError
        A layer has no counterpart, or nothing tells the loss, or it does not suit the outputs; the message says which.
    ImportError
        Keras is not installed.
    """
    keras = _keras()
    if not isinstance(model, keras.Model):
        raise TypeError(f"from_keras: model must be a keras.Model, got {type(model).__name__}")
    stack = Stack("from_keras")
    rescaling = _Rescaling(stack)
    layers = _chain(keras, stack, model)
    for layer in layers:
        where = f"layer {layer.name!r}"
        if type(layer) is keras.layers.Rescaling:
            rescaling.add(where, layer)
        elif type(layer) is keras.layers.Dense:
            w, b = _weights(stack, where, layer)
            stack.dense(where, *(rescaling.into(w, b) if not stack.begun else (w, b)), not layer.trainable)
            stack.activate(where, _function(keras, stack, where, layer.activation))
        else:
            _add(keras, stack, where, layer)
    if loss is None:
        loss = _told(model, stack)
    return as_asked(stack.model(loss, backend=backend, seed=seed), stack.who, as_estimator, classes, backend, seed)


def _keras() -> Any:
    keras = library("keras", _CURE)
    if int(keras.__version__.partition(".")[0]) < 3:
        raise ImportError(f"this is Keras {keras.__version__}; {_CURE}")
    return keras


def _chain(keras: Any, stack: Stack, model: Any) -> list[Any]:
    """Return the layers of a model, which must follow one another, inputs left out."""
    if not model.built:
        stack.refuse("model", "not built, so that it has no weights", "one with an Input, or built by model.build")
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    if type(model) is not keras.Sequential:
        # the class of functional models has no public name
        if type(model).__name__ != "Functional" or not type(model).__module__.startswith("keras."):
            stack.refuse("model", f"a {type(model).__name__}, whose call may do anything", "Sequential, or functional")
        follow = [model.inputs, *([layer.output] for layer in layers)]
        chained = len(model.inputs) == len(model.outputs) == 1 and model.outputs[0] is follow[-1][0]
        if not chained or any(layer.input is not before[0] for layer, before in zip(layers, follow, strict=False)):
            stack.refuse("model", "no chain of layers", "one layer after the other, each used once")
    return layers


def _weights(stack: Stack, where: str, layer: Any) -> tuple[Any, Any]:
    arrays = [np.array(array) for array in layer.get_weights()]
    if layer.compute_dtype != layer.variable_dtype or len(arrays) != 1 + layer.use_bias:
        stack.refuse(where, f"of the dtype policy {layer.dtype_policy.name!r}", "'float32' or 'float64'")
    if len(layer.input.shape) != 2:
        stack.refuse(where, f"given inputs of shape {tuple(layer.input.shape)}", "(None, inputs), after a Flatten")
    return arrays[0], arrays[1] if layer.use_bias else None


def _function(keras: Any, stack: Stack, where: str, function: Any) -> str:
    """Return our name of an activation function of Keras, which must be that very function."""
    for name, theirs in [*_FUNCTIONS.items(), *((link, link) for link in _LINKS)]:
        if theirs and function is getattr(keras.activations, theirs):
            return name
    known = ", ".join(map(repr, [*filter(None, _FUNCTIONS.values()), *_LINKS]))
    called = getattr(function, "__name__", repr(function))
    cure = "; its slope is 0.2, so use LeakyReLU(negative_slope=0.01)" if called == "leaky_relu" else ""
    stack.refuse(where, f"with the activation {called!r}", f"one of {known}{cure}")


def _add(keras: Any, stack: Stack, where: str, layer: Any) -> None:
    kind, layers = type(layer), keras.layers
    if kind is layers.Dropout:
        stack.drop(where, layer.rate)
    elif kind is layers.Flatten:
        if stack.begun or layer.data_format == "channels_first":
            stack.refuse(where, "Flatten", "it before the first Dense alone, with the channels last")
    elif kind is layers.Activation:
        stack.activate(where, _function(keras, stack, where, layer.activation))
    elif kind is layers.ReLU:
        if layer.max_value is not None or layer.negative_slope or layer.threshold:
            stack.refuse(where, f"ReLU with {layer.get_config()}", "ReLU without a limit, slope or threshold")
        stack.activate(where, "relu")
    elif kind is layers.LeakyReLU:
        if layer.negative_slope != _LEAK:
            stack.refuse(where, f"LeakyReLU with the slope {layer.negative_slope}", f"the slope {_LEAK}")
        stack.activate(where, "leaky_relu")
    elif kind is layers.ELU:
        if layer.alpha != 1:
            stack.refuse(where, f"ELU with alpha={layer.alpha}", "alpha=1")
        stack.activate(where, "elu")
    elif kind is layers.Softmax:
        if layer.axis not in (-1, 1):
            stack.refuse(where, f"Softmax over axis {layer.axis}", "axis=-1")
        stack.activate(where, "softmax")
    else:
        stack.refuse(where, kind.__name__, _EXPECTED)


class _Rescaling:
    """What is done to inputs before the first layer: ``x * scale + offset``."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._scale, self._offset = 1.0, 0.0

    def add(self, where: str, layer: Any) -> None:
        if self._stack.begun or not (np.ndim(layer.scale) == np.ndim(layer.offset) == 0):
            self._stack.refuse(where, "Rescaling", "it before the first Dense alone, by one number for all inputs")
        self._scale *= layer.scale
        self._offset = self._offset * layer.scale + layer.offset

    def into(self, w: Any, b: Any) -> tuple[Any, Any]:
        """Return the first weights with the scale in them; as they are where the inputs are to be divided by 255."""
        if math.isclose(self._scale, 1 / FULL) and not self._offset:
            self._stack.divisor = FULL
        elif self._scale != 1 or self._offset:
            wide = w.astype(np.float64)
            shift = self._offset * wide.sum(axis=0) + (0.0 if b is None else b)
            return (wide * self._scale).astype(w.dtype), shift.astype(w.dtype)
        return w, b


def _told(model: Any, stack: Stack) -> str:
    """Return the loss that a model was compiled with, or that its last activation tells."""
    last = stack.link()
    compiled = getattr(model, "loss", None)
    if compiled is not None:
        name = compiled if isinstance(compiled, str) else getattr(compiled, "name", getattr(compiled, "__name__", None))
        try:
            own = LOSSES.name_of(name)
        except (TypeError, ValueError) as e:
            raise ValueError(f"from_keras: the model was compiled with {name!r}; pass loss=... ({e})") from None
        if own == "quantile":  # Keras has none, so it is a function of the user's own
            raise ValueError(
                f"from_keras: the model was compiled with {name!r}, and nothing tells its quantiles; pass loss=..., "
                "such as Quantile(0.9)"
            )
        options = compiled.get_config() if hasattr(compiled, "get_config") else {}
        # Keras does not tell where its Huber's parabola becomes a line
        if options.get("label_smoothing") or (options and own == "huber"):
            raise ValueError(
                f"from_keras: the model was compiled with {name!r} and options; pass loss=..., such as Huber(2)"
            )
        return own
    told = {link: loss for loss, link in LINKS.items() if link != "exponential"}
    if last not in told:
        raise ValueError(
            f"from_keras: the model is not compiled and its last activation is {last!r}, so that nothing tells its "
            "loss; pass loss=..., such as 'mean_squared_error'"
        )
    return told[last]


def to_keras(model: MLP | BaseMLP) -> Any:
    """Return a network as a `keras.Sequential`, not compiled.

    Its outputs are probabilities where the network has them, rates of Poisson, else the outputs of the layers, as
    Keras's losses take them by default.  A model of pixels begins with ``Rescaling(1 / 255)``.  Frozen layers do not
    train.

    Parameters
    ----------
    model : MLP, or MLPClassifier or MLPRegressor of fastmlp's

    Raises
    ------
    ValueError
        Keras has no function for an activation, or its backend does not hold float64.
    TypeError
        It is none of these.
    ImportError
        Keras is not installed.
    """
    model = network_of("to_keras", model)
    layers = layers_of("to_keras", model, _FUNCTIONS, "Keras")
    keras, dtype = _keras(), model.dtype.name
    link = LINKS.get(model.spec.loss.name)
    stack = [keras.Input((model.spec.units[0],), dtype=dtype)]
    if model.input_divisor == FULL:
        stack.append(keras.layers.Rescaling(1 / FULL, dtype=dtype))
    for number, layer in enumerate(layers):
        if layer.dropout:
            stack.append(keras.layers.Dropout(layer.dropout, dtype=dtype))
        function = _FUNCTIONS[layer.activation]
        if link is not None and number == len(layers) - 1:
            function = link
        options = {"activation": function or "linear", "trainable": not layer.frozen, "dtype": dtype}
        stack.append(keras.layers.Dense(layer.w.shape[1], **options))
        if not function:
            stack.append(keras.layers.LeakyReLU(negative_slope=_LEAK, dtype=dtype))
    made = keras.Sequential(stack)
    dense = [layer for layer in made.layers if type(layer) is keras.layers.Dense]
    for theirs, ours in zip(dense, layers, strict=True):
        theirs.set_weights([ours.w, ours.b])
        if theirs.get_weights()[0].dtype != model.dtype:
            raise ValueError(
                f"to_keras: the model is {dtype}, and Keras on {keras.backend.backend()} holds "
                f"{theirs.get_weights()[0].dtype}; for JAX call jax.config.update('jax_enable_x64', True) before"
            )
    return made
