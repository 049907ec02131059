"""Stacks of layers of PyTorch as networks of ours, and back.

`torch.nn.Linear` computes ``x W^T + b`` with W (out, in) and so holds the transpose of what stands here, (in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from fastmlp.convert.stack import Stack, as_asked, layers_of, library, network_of, undivided

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.estimators.base import BaseMLP
    from fastmlp.estimators.classifier import MLPClassifier
    from fastmlp.estimators.regressor import MLPRegressor
    from fastmlp.formulas.losses import Loss
    from fastmlp.model import MLP

_CURE = "install PyTorch: pip install torch"
# the name of an activation here: that of its class there, and the options that make it the same function
_MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "identity": ("Identity", {}),
    "relu": ("ReLU", {}),
    "leaky_relu": ("LeakyReLU", {"negative_slope": 0.01}),
    "elu": ("ELU", {"alpha": 1.0}),
    "selu": ("SELU", {}),
    "gelu": ("GELU", {"approximate": "none"}),
    "silu": ("SiLU", {}),
    "mish": ("Mish", {}),
    "softplus": ("Softplus", {"beta": 1.0, "threshold": 20.0}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
}
_OURS = {theirs: ours for ours, (theirs, _) in _MODULES.items()}
_EXPECTED = f"Linear, Dropout, Flatten at first, Softmax or LogSoftmax at last, {', '.join(_OURS)}, or Sequential"


@overload
def from_torch(
    module: Any,
    loss: str | Loss,
    *,
    as_estimator: Literal[False] = ...,
    classes: None = ...,
    backend: str | Backend = ...,
    seed: int | None = ...,
) -> MLP: ...


@overload
def from_torch(
    module: Any,
    loss: str | Loss,
    *,
    as_estimator: Literal[True],
    classes: ArrayLike | None = ...,
    backend: str | Backend = ...,
) -> MLPClassifier | MLPRegressor: ...


def from_torch(
    module: Any,
    loss: str | Loss,
    *,
    as_estimator: bool = False,
    classes: ArrayLike | None = None,
    backend: str | Backend = "auto",
    seed: int | None = None,
) -> MLP | MLPClassifier | MLPRegressor:
    """Return a stack of linear layers of PyTorch as a network with the same weights.

    The network takes inputs as they are, uint8 too, as (n, inputs).

    Parameters
    ----------
    module : torch.nn.Sequential or torch.nn.Linear
        Of Linear layers, each with at most one activation and then at most one Dropout after it; also stacked in each
        other.  A Flatten of all axes but the first may come first, a Dropout of the inputs too.  The last activation
        may be what the loss has as its part: Softmax or LogSoftmax of a softmax cross-entropy, Sigmoid of a sigmoid
        cross-entropy; without one the outputs are logits (of Poisson the logarithm of the rate).  A layer without a
        bias gets one of zeros; a layer none of whose parameters trains is frozen.
    loss : str or Loss
        As for `fastmlp.MLP`; PyTorch's names, such as ``"CrossEntropyLoss"``, are understood.
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
        It is no module.
    ValueError
        A layer has no counterpart, or the loss does not suit the outputs; the message says which.
    ImportError
        PyTorch is not installed.
    """
    torch = library("torch", _CURE)
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"from_torch: module must be a torch.nn.Sequential, got {type(module).__name__}")
    stack = Stack("from_torch")
    for where, layer in _leaves(torch, module, "module"):
        _add(torch, stack, where, layer)
    return as_asked(stack.model(loss, backend=backend, seed=seed), stack.who, as_estimator, classes, backend, seed)


def _leaves(torch: Any, module: Any, where: str) -> Iterator[tuple[str, Any]]:
    if type(module) is not torch.nn.Sequential:
        yield where, module
        return
    _refuse_hooks(where, module)
    # named_children would leave out a module that stands there twice
    for number, child in enumerate(module):
        yield from _leaves(torch, child, f"{where}[{number}]")


def _refuse_hooks(where: str, module: Any) -> None:
    if module._forward_hooks or module._forward_pre_hooks:  # as of weight_norm: what it computes is not what it is
        raise ValueError(f"from_torch: {where} is a {type(module).__name__} with hooks; expected one without")


def _add(torch: Any, stack: Stack, where: str, layer: Any) -> None:
    nn, kind = torch.nn, type(layer)
    _refuse_hooks(where, layer)
    if kind is nn.Linear:
        arrays = [None if p is None else _array(stack, where, p) for p in (layer.weight, layer.bias)]
        w = arrays[0]
        assert w is not None
        frozen = not any(p.requires_grad for p in layer.parameters())
        stack.dense(where, np.ascontiguousarray(w.T), arrays[1], frozen)
    elif kind is nn.Dropout:
        stack.drop(where, layer.p)
    elif kind is nn.Flatten:
        if stack.begun or (layer.start_dim, layer.end_dim) != (1, -1):
            stack.refuse(where, repr(layer), "Flatten() before the first Linear alone")
    elif kind in (nn.Softmax, nn.LogSoftmax):
        if layer.dim not in (None, 1, -1):
            stack.refuse(where, repr(layer), "it over the outputs, dim=1")
        stack.activate(where, "softmax")
    elif kind.__name__ in _OURS and kind is getattr(nn, kind.__name__):
        name = _OURS[kind.__name__]
        options = _MODULES[name][1]
        if any(getattr(layer, option) != value for option, value in options.items()):
            stack.refuse(where, repr(layer), ", ".join(f"{option}={value!r}" for option, value in options.items()))
        stack.activate(where, name)
    else:
        stack.refuse(where, kind.__name__, _EXPECTED)


def _array(stack: Stack, where: str, parameter: Any) -> Any:
    try:
        return parameter.detach().cpu().numpy().copy()  # ours: training there goes on in its own
    except (RuntimeError, TypeError, ValueError) as e:  # half precision, or on no device
        stack.refuse(where, f"a layer whose weights NumPy cannot hold ({e})", "float32 or float64; see module.float()")


def to_torch(model: MLP | BaseMLP) -> Any:
    """Return a network as a `torch.nn.Sequential` in evaluation mode, on the CPU.

    Its outputs are those of the layers: logits where the loss takes logits, as PyTorch's CrossEntropyLoss and
    BCEWithLogitsLoss have it, of Poisson the logarithm of the rate.  The first weights of a model of pixels are
    divided by 255, since its inputs are not.  Frozen layers require no gradient.  Call ``train()`` before training, or
    there is no dropout.

    Parameters
    ----------
    model : MLP, or MLPClassifier or MLPRegressor of fastmlp's

    Raises
    ------
    ValueError
        PyTorch has no module for an activation.
    TypeError
        It is none of these.
    ImportError
        PyTorch is not installed.
    """
    model = network_of("to_torch", model)
    layers = undivided(layers_of("to_torch", model, _MODULES, "PyTorch"), model.input_divisor)
    torch = library("torch", _CURE)
    modules: list[Any] = []
    for layer in layers:
        if layer.dropout:
            modules.append(torch.nn.Dropout(layer.dropout))
        # what would be drawn from PyTorch's global stream is not
        make: Callable[..., Any] = torch.nn.utils.skip_init
        linear = make(torch.nn.Linear, *layer.w.shape, dtype=getattr(torch, model.dtype.name))
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(layer.w.T)))
            linear.bias.copy_(torch.from_numpy(layer.b))
        modules.append(linear.requires_grad_(not layer.frozen))
        if layer.activation != "identity":
            name, options = _MODULES[layer.activation]
            modules.append(getattr(torch.nn, name)(**options))
    return torch.nn.Sequential(*modules).eval()
