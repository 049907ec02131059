"""What all conversions go through: a stack of dense layers, read from another library's or from a model of ours."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastmlp.arguments import check_flag, check_seed
from fastmlp.backends.choosing import chosen_backend
from fastmlp.engine.checks import check_class_names, check_feature_names, check_weights
from fastmlp.engine.inputs import InputRules, InputScale
from fastmlp.engine.learner import Learner
from fastmlp.formulas.activations import IDENTITY
from fastmlp.model import MLP
from fastmlp.network.layout import layout_of
from fastmlp.network.spec import NetworkSpec, make_spec
from fastmlp.network.state import TrainState
from fastmlp.warned import warn_caller

if TYPE_CHECKING:
    from fastmlp.backends.base import Backend
    from fastmlp.estimators.classifier import MLPClassifier
    from fastmlp.estimators.regressor import MLPRegressor
    from fastmlp.formulas.losses import Loss
    from fastmlp.preprocessing.scales import Affine

LINKS = {"softmax_cross_entropy": "softmax", "sigmoid_cross_entropy": "sigmoid", "poisson": "exponential"}
"""For each loss that has one the activation of the outputs that is part of it."""
FEW_DIGITS, NO_DIGITS = (ratio * float(np.finfo(np.float32).eps) for ratio in (1e4, 1e6))
"""Of what a column varies by, the part lost to rounding from which on weights that hold its scaling are told of, and
from which on they are refused; in float32 those of a column that varies by a 10,000th, or a millionth, of its size."""


def library(name: str, cure: str) -> Any:
    """Return a library's module; ImportError, with the cure, where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise ImportError(f"{name.partition('.')[0]} cannot be imported ({e}); {cure}") from e


class Dense(NamedTuple):
    """A layer of a model: its weights and what comes before and after the product.

    Attributes
    ----------
    w : (I, O) array
    b : (O,) array
    activation : str
    dropout : float
        Of its inputs.
    frozen : bool
    """

    w: NDArray[Any]
    b: NDArray[Any]
    activation: str
    dropout: float
    frozen: bool


def as_asked(
    model: MLP,
    who: str,
    as_estimator: bool,
    classes: ArrayLike | None,
    backend: str | Backend,
    seed: int | None,
) -> MLP | MLPClassifier | MLPRegressor:
    """Return a network that was read, or an estimator around it; `who` is the function that was asked for it."""
    if not check_flag("as_estimator", as_estimator):
        if classes is not None:
            raise ValueError(f"{who}: classes are of an estimator; use as_estimator=True, or set model.class_names")
        return model
    if seed is not None:
        raise ValueError(f"{who}: seed={seed!r} is of a network; an estimator has random_state, leave it out")
    from fastmlp.estimators.adopting import around

    return around(who, model, classes, backend)


def network_of(who: str, model: Any) -> MLP:
    """Return a model, or that of a fitted estimator of fastmlp's, a temperature folded in; TypeError for others."""
    if isinstance(model, MLP):
        return model
    from fastmlp.estimators.base import BaseMLP

    if not isinstance(model, BaseMLP):
        raise TypeError(
            f"{who}: model must be a fastmlp.MLP, or a fitted fastmlp.MLPClassifier or MLPRegressor, got "
            f"{type(model).__name__}"
        )
    return model.model_


def layers_of(who: str, model: MLP, known: Mapping[str, Any], library: str) -> list[Dense]:
    """Return the layers of a model, with the weights that predict.

    Parameters
    ----------
    who : str
        Who asks, for messages.
    model : MLP
    known : mapping
        By the names of the activations for which `library` has a counterpart.
    library : str

    Raises
    ------
    ValueError
        An activation has no counterpart, the loss is a user's own, whose link nobody knows, or a column that is scaled
        varies by so little of its size that weights for it as it is have no digit left.

    Warns
    -----
    UserWarning
        A column varies by so little of its size that they have few left.
    """
    spec, weights = model.spec, model.get_weights()
    if (made := model.preprocessing) is not None:
        if made.affine is None:
            raise ValueError(
                f"{who}: {library} has no counterpart of what preprocess={made.kind!r} makes of these columns; only of "
                "'standard' and 'robust' where all of them were numbers and none was missing"
            )
        with np.errstate(over="ignore"):
            weights[:2] = [array.astype(model.dtype) for array in made.affine.folded(*weights[:2])]
        if not all(np.isfinite(array).all() for array in weights[:2]):
            raise ValueError(f"{who}: {model.dtype} does not hold the weights for columns as they are; scale them")
        _check_digits(who, model, made.affine)
    for name in spec.activations:
        if name not in known:
            raise ValueError(f"{who}: {library} has no counterpart of the activation {name!r}; only of {_list(known)}")
    if not spec.loss.compiled:
        raise ValueError(f"{who}: {library} has no counterpart of the loss {spec.loss.name!r}, which is your own")
    parts = zip(weights[::2], weights[1::2], spec.activations, spec.dropout, spec.frozen, strict=True)
    return [Dense(*part) for part in parts]


def _check_digits(who: str, model: MLP, affine: Affine) -> None:
    """Warn, or raise ValueError, where a column lies so far from 0 that folded weights lose what it varies by."""
    with np.errstate(over="ignore"):
        ratios = np.abs(affine.center) / affine.scale  # 0 where it was constant
    at, eps = int(ratios.argmax()), float(np.finfo(model.dtype).eps)
    if (ratio := float(ratios[at])) * eps <= FEW_DIGITS:
        return
    column = at if model.feature_names is None else repr(model.feature_names[at])
    left = "none" if ratio * eps > NO_DIGITS else "few"
    wider = "" if model.dtype == np.float64 else ", or fit with dtype='float64'"
    found = (
        f"{who}: column {column} varies by a {ratio:,.0f}th of its size, and scaling that is part of the first weights "
        f"leaves {left} of the digits of {model.dtype}: fit again after subtracting a constant from the column{wider}"
    )
    if left == "none":
        raise ValueError(found)
    warn_caller(found)


def undivided(layers: list[Dense], divisor: int) -> list[Dense]:
    """Return layers that take inputs as they are: the first weights are divided in the place of the inputs."""
    return layers if divisor == 1 else [layers[0]._replace(w=layers[0].w / divisor), *layers[1:]]


def _list(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(map(repr, names))


class Stack:
    """Layers of another library as they come, from the inputs on, until `model` makes a network of them.

    Parameters
    ----------
    who : str
        Who reads them, for messages.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.divisor = 1
        self._weights: list[NDArray[Any]] = []
        self._activations: list[str] = []
        self._dropout: list[float] = []
        self._frozen: list[bool] = []
        self._rate = 0.0

    def refuse(self, where: str, got: str, expected: str) -> NoReturn:
        """Raise ValueError: what stands there has no counterpart."""
        raise ValueError(f"{self.who}: {where} is {got}; expected {expected}")

    @property
    def begun(self) -> bool:
        """Whether there is a dense layer yet."""
        return bool(self._weights)

    def dense(self, where: str, w: NDArray[Any], b: NDArray[Any] | None, frozen: bool = False) -> None:
        """Add a product with w (I, O) and b (O,); None for b stands for zeros."""
        if self.begun and self._activations[-1] in ("softmax", "exponential"):
            self.refuse(where, f"a dense layer after {self._activations[-1]}", f"{self._activations[-1]} at the end")
        if self.begun and w.shape[0] != self._weights[-1].shape[0]:
            self.refuse(where, f"a dense layer of {w.shape[0]} inputs", f"{self._weights[-1].shape[0]} of them")
        self._weights += [w, np.zeros(w.shape[1], w.dtype) if b is None else b]
        self._activations.append(IDENTITY)
        self._dropout.append(self._rate)
        self._frozen.append(frozen)
        self._rate = 0.0

    def activate(self, where: str, name: str) -> None:
        """Add an activation, under our name, or softmax or exponential, which only the outputs have."""
        if name == IDENTITY:
            return
        if not self.begun or self._rate:
            self.refuse(where, f"{name} {'after dropout' if self.begun else 'of the inputs'}", "it after a dense layer")
        if self._activations[-1] != IDENTITY:
            self.refuse(where, f"{name} after {self._activations[-1]}", "one activation a layer")
        self._activations[-1] = name

    def drop(self, where: str, rate: float) -> None:
        """Add dropout of what the next layer takes."""
        if self._rate:
            self.refuse(where, "dropout after dropout", "one rate a layer")
        if self.begun and self._activations[-1] in ("softmax", "exponential"):
            self.refuse(where, f"dropout after {self._activations[-1]}", f"{self._activations[-1]} at the end")
        self._rate = rate

    def link(self) -> str:
        """Return the activation of the outputs."""
        return self._activations[-1] if self.begun else IDENTITY

    def model(
        self,
        loss: str | Loss,
        *,
        backend: str | Backend,
        seed: int | None,
        class_names: Sequence[str] | None = None,
        feature_names: Sequence[str] | None = None,
    ) -> MLP:
        """Return the network, with the loss of which the activation of the outputs is a part.

        Raises
        ------
        ValueError
            There is no dense layer, the loss does not suit, or numbers are of no type or value that a network has.
        """
        if not self.begun:
            raise ValueError(f"{self.who}: there is no dense layer; expected one at least")
        if self._rate:
            raise ValueError(f"{self.who}: there is dropout of the outputs; expected a dense layer after it")
        dtype = self._dtype()
        units = (self._weights[0].shape[0], *(b.shape[0] for b in self._weights[1::2]))
        spec = replace(self._spec(units, loss), frozen=tuple(self._frozen))
        where, choice = chosen_backend(backend)
        layout, key = layout_of(spec.units, dtype.itemsize), check_seed(seed)
        params = check_weights(layout, dtype, self._weights, backend=where)
        with where.working():
            state = TrainState(layout, where.copy(params), key)
        learner = Learner(spec, dtype, where, state)
        learner.choice = choice
        # the other library takes inputs as they are, bytes too
        names = check_feature_names(spec.units[0], feature_names)
        learner.rules = InputRules(dtype, names, InputScale(self.divisor, False))
        learner.class_names = check_class_names(spec, class_names)
        return MLP.from_learner(learner)

    def _spec(self, units: tuple[int, ...], loss: str | Loss) -> NetworkSpec:
        last = self._activations[-1]
        hidden, inner = self._activations[:-1], make_spec(units, IDENTITY, loss).loss
        if last == LINKS.get(inner.name):
            last = IDENTITY
        elif last != IDENTITY and (inner.from_logits or (last in LINKS.values() and last != "sigmoid")):
            own = f"{LINKS[inner.name]!r} or none" if inner.name in LINKS else "none"
            suits = own if inner.from_logits else "one that is no link of a loss"
            raise ValueError(f"{self.who}: the outputs have {last!r}; for the loss {inner.name!r} expected {suits}")
        return make_spec(units, [*hidden, last], inner, self._dropout)

    def _dtype(self) -> np.dtype[Any]:
        types = sorted({str(array.dtype) for array in self._weights})
        if len(types) > 1 or types[0] not in ("float32", "float64"):
            raise ValueError(f"{self.who}: the weights are {', '.join(types)}; expected all float32, or all float64")
        return np.dtype(types[0])
