"""Networks as ONNX models, for onnxruntime and whatever else reads them.

Input and outputs are as sklearn-onnx has them: ``X`` (n, inputs); ``label`` (n,), the number or the name of the class,
or (n, K) of 0 and 1 for several labels a row, and ``probabilities`` (n, classes); for values ``variable`` (n, K)
(https://onnx.ai/sklearn-onnx).  Operators are those of opset 13 (https://onnx.ai/onnx/operators), the first whose
Softmax is over one axis, and which every onnxruntime since 1.7 runs; activations that onnxruntime has in float32 alone
are put together from operators that it has in float64 too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastmlp._version import __version__
from fastmlp.convert.stack import layers_of, library, network_of
from fastmlp.files.atomic import atomic_writer
from fastmlp.formulas.activations import LEAK, SELU_ALPHA, SELU_SCALE

if TYPE_CHECKING:
    from fastmlp.estimators.base import BaseMLP
    from fastmlp.model import MLP

_CURE = 'install it with fastmlp: pip install "fastmlp[onnx]"'
OPSET = 13
MOST_BYTES = 2**31 - 2**20
"""What the format, protocol buffers, holds in one file, with room for what is no weight."""


class _Graph:
    """The nodes and constants of a model as they are added."""

    def __init__(self, onnx: Any, dtype: np.dtype[Any]) -> None:
        self.onnx, self.dtype = onnx, dtype
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def add(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its result."""
        name = out or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def constant(self, name: str, value: Any) -> str:
        """Add an array and return its name."""
        self.constants[name] = self.onnx.numpy_helper.from_array(np.asarray(value), name)
        return name

    def number(self, value: float) -> str:
        """Add a number of the network's type and return its name."""
        return self.constant(f"number_{value!r}", np.array(value, self.dtype))


def _leaky_relu(g: _Graph, z: str) -> str:
    return g.add("Max", z, g.add("Mul", z, g.number(LEAK)))


def _below(g: _Graph, z: str) -> str:
    """``exp(min(z, 0)) - 1``."""
    return g.add("Sub", g.add("Exp", g.add("Min", z, g.number(0.0))), g.number(1.0))


def _elu(g: _Graph, z: str) -> str:
    return g.add("Add", g.add("Relu", z), _below(g, z))


def _selu(g: _Graph, z: str) -> str:
    below = g.add("Mul", _below(g, z), g.number(SELU_ALPHA))
    return g.add("Mul", g.add("Add", g.add("Relu", z), below), g.number(SELU_SCALE))


def _gelu(g: _Graph, z: str) -> str:
    erf = g.add("Erf", g.add("Mul", z, g.number(2**-0.5)))
    return g.add("Mul", z, g.add("Mul", g.add("Add", erf, g.number(1.0)), g.number(0.5)))


def _silu(g: _Graph, z: str) -> str:
    return g.add("Mul", z, g.add("Sigmoid", z))


def _softplus(g: _Graph, z: str) -> str:
    small = g.add("Exp", g.add("Neg", g.add("Abs", z)))
    return g.add("Add", g.add("Relu", z), g.add("Log", g.add("Add", small, g.number(1.0))))


def _mish(g: _Graph, z: str) -> str:
    return g.add("Mul", z, g.add("Tanh", _softplus(g, z)))


def _operator(name: str) -> Callable[[_Graph, str], str]:
    return lambda g, z: g.add(name, z)


_ACTIVATIONS: dict[str, Callable[[_Graph, str], str]] = {
    "identity": lambda g, z: z,
    "relu": _operator("Relu"),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "selu": _selu,
    "gelu": _gelu,
    "silu": _silu,
    "mish": _mish,
    "softplus": _softplus,
    "sigmoid": _operator("Sigmoid"),
    "tanh": _operator("Tanh"),
    "sin": _operator("Sin"),
    "cos": _operator("Cos"),
}


def to_onnx(model: MLP | BaseMLP, path: str | PathLike[str] | None = None) -> Any:
    """Return a network as an ONNX model, and write it to a file where a path is given.

    The input ``X`` is (n, inputs) of the network's type; a model of pixels divides it by 255 itself, so that it takes 0
    to 255.  Classes are named where the network has ``class_names``, else numbers.  A categorical hinge has no
    probabilities.  The model's metadata keep the names of classes and inputs.  onnxruntime has no gelu in float64.
    Of an estimator the labels are its ``classes_``: whole numbers as int64, and all others as text.

    Parameters
    ----------
    model : MLP, or MLPClassifier or MLPRegressor of fastmlp's
    path : path, optional
        Written in one piece; a file that is there is replaced.

    Returns
    -------
    onnx.ModelProto

    Raises
    ------
    ValueError
        An activation or the loss is your own, or the weights take 2 GiB or more, which no such file holds.
    TypeError
        It is none of these.
    OSError
        The file cannot be written; one that was there is as it was.
    ImportError
        The package onnx is not installed.
    """
    classes, model = getattr(model, "classes_", None), network_of("to_onnx", model)
    layers = layers_of("to_onnx", model, _ACTIVATIONS, "ONNX")
    if (size := sum(layer.w.nbytes + layer.b.nbytes for layer in layers)) > MOST_BYTES:
        raise ValueError(f"to_onnx: a file holds weights of up to {MOST_BYTES:,} bytes, the model has {size:,}")
    onnx = library("onnx", _CURE)
    g = _Graph(onnx, model.dtype)
    z = "X" if model.input_divisor == 1 else g.add("Div", "X", g.number(float(model.input_divisor)))
    for number, layer in enumerate(layers):
        names = g.constant(f"layers.{number}.weight", layer.w), g.constant(f"layers.{number}.bias", layer.b)
        z = _ACTIVATIONS[layer.activation](g, g.add("Gemm", z, *names))
    proto = _whole(g, model, _outputs(g, model, z, classes))
    onnx.checker.check_model(proto, full_check=True)
    if path is not None:
        with atomic_writer(path) as file:
            file.write(proto.SerializeToString(deterministic=True))
    return proto


def _labels(model: MLP, classes: NDArray[Any] | None) -> NDArray[Any] | None:
    """Return what each class is called there, by its number; None where its number is its name."""
    if classes is None:
        return None if model.class_names is None else np.array(model.class_names, object)
    count = max(model.spec.units[-1], 2)
    if len(classes) < 2:  # what the network was trained on has a single one
        classes = np.repeat(classes, count)
    whole = classes.dtype.kind in "biu" or (classes.dtype.kind == "f" and bool((classes % 1 == 0).all()))
    if not whole:
        return np.array([str(name) for name in classes], object)
    return None if np.array_equal(classes, np.arange(count)) else classes.astype(np.int64)


def _outputs(g: _Graph, model: MLP, z: str, classes: NDArray[Any] | None) -> list[tuple[str, Any, list[Any]]]:
    """Add what is made of the outputs of the layers; returns the name, type and shape of each result."""
    count, loss, types = model.spec.units[-1], model.spec.loss, g.onnx.TensorProto
    kind = g.onnx.helper.np_dtype_to_tensor_dtype(g.dtype)
    if not loss.has_accuracy:
        g.add("Exp" if loss.from_logits else "Identity", z, out="variable")
        return [("variable", kind, ["n", count])]
    names = _labels(model, classes) if loss.takes_labels or count == 1 else None
    label = "label" if names is None else "class"
    if loss.takes_labels:
        g.add("ArgMax", z, out=label, axis=1, keepdims=0)
        shape: list[Any] = ["n"]
    else:
        above = g.add("Greater", z, g.number(0.0))
        shape = ["n"] if count == 1 else ["n", count]
        above = g.add("Squeeze", above, g.constant("outputs_axis", np.array([1]))) if count == 1 else above
        g.add("Cast", above, out=label, to=types.INT64)
    if names is not None:
        g.add("Gather", g.constant("class_names", names), label, out="label")
    found = [("label", types.STRING if names is not None and names.dtype == object else types.INT64, shape)]
    if loss.name == "softmax_cross_entropy":
        g.add("Softmax", z, out="probabilities", axis=1)
    elif not loss.takes_labels and count > 1:
        g.add("Sigmoid", z, out="probabilities")
    elif not loss.takes_labels:
        second = g.add("Sigmoid", z)
        g.add("Concat", g.add("Sub", g.number(1.0), second), second, out="probabilities", axis=1)
        count = 2
    else:
        return found
    return [*found, ("probabilities", kind, ["n", count])]


def _whole(g: _Graph, model: MLP, outputs: list[tuple[str, Any, list[Any]]]) -> Any:
    helper = g.onnx.helper
    kind = helper.np_dtype_to_tensor_dtype(g.dtype)
    graph = helper.make_graph(
        g.nodes,
        "fastmlp",
        [helper.make_tensor_value_info("X", kind, ["n", model.spec.units[0]])],
        [helper.make_tensor_value_info(*output) for output in outputs],
        list(g.constants.values()),
    )
    opset = helper.make_opsetid("", OPSET)
    proto = helper.make_model(graph, opset_imports=[opset], producer_name="fastmlp", producer_version=__version__)
    proto.ir_version = helper.find_min_ir_version_for([opset])  # the library's own is too new for older runtimes
    names = {"class_names": model.class_names, "feature_names": model.feature_names}
    helper.set_model_props(proto, {name: json.dumps(value) for name, value in names.items() if value is not None})
    return proto
