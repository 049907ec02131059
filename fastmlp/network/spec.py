"""What a network is: a frozen record, checked once when it is made, without any arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastmlp.arguments import check_count, check_flag, check_number, check_sequence
from fastmlp.formulas.activations import ACTIVATIONS, IDENTITY, get_activation
from fastmlp.formulas.initializers import INITIALIZERS, Initializer
from fastmlp.formulas.losses import LOSSES, Loss
from fastmlp.formulas.names import hint, of_outputs
from fastmlp.formulas.records import as_named_here, settle

T = TypeVar("T")

MOST_PARAMETERS = 2**40
"""Four terabytes in float32."""


@dataclass(frozen=True)
class NetworkSpec:
    """A multi-layer perceptron: its layers, its loss and what is done to its weights.

    Layer l (from 0) has the weights W (units[l], units[l + 1]) and computes ``f_l(x W + b)``.

    Parameters
    ----------
    units : tuple of int
        From the inputs to the outputs: at least two numbers, each at least 1.
    activations : tuple of str
        One a layer, the last being that of the outputs.
    loss : Loss
        Or its name, as for the initializer; the record is kept.
    dropout : tuple of float
        One rate for the input of each layer: (input, hidden 1, ...), each in [0, 1).  Units are dropped in training
        only, and those kept are scaled by ``1 / (1 - rate)`` (Srivastava et al. 2014).
    l2 : float
        The loss grows by ``0.5 * l2 * ||W||^2`` over all weights, biases excluded.
    max_norm : float, optional
        After each step, every column of every W (what comes into one unit) is scaled down to this 2-norm.
    initializer : Initializer, optional
        None: LeCun (normal) for selu, Glorot (uniform) for the others.
    frozen : tuple of bool
        One a layer: its weights and biases do not train.
    l2_over_rows : bool
        Divide the L2 penalty by the weight of the rows of each batch, as scikit-learn's ``alpha`` is.

    Raises
    ------
    ValueError, TypeError
        A field does not make sense, alone or with the others.
    """

    units: tuple[int, ...]
    activations: tuple[str, ...]
    loss: Loss
    dropout: tuple[float, ...]
    l2: float = 0.0
    max_norm: float | None = None
    initializer: Initializer | None = None
    frozen: tuple[bool, ...] = ()
    l2_over_rows: bool = False

    def __post_init__(self) -> None:
        top, of_layers = self.max_norm, "a sequence of one a layer"
        rates = check_sequence("dropout", self.dropout, of_layers)
        flags = check_sequence("frozen", self.frozen, of_layers)
        settle(
            self,
            units=_units(self.units),
            activations=tuple(
                as_named_here("activation", name, ACTIVATIONS, f"activations[{i}]")
                for i, name in enumerate(check_sequence("activations", self.activations, of_layers))
            ),
            loss=LOSSES.record(self.loss),
            dropout=tuple(check_number(f"dropout[{i}]", rate, 0.0, 1.0) for i, rate in enumerate(rates)),
            l2=check_number("l2", self.l2, 0.0),
            max_norm=None if top is None else check_number("max_norm", top, 0.0, above=True, also="or None"),
            initializer=None if self.initializer is None else INITIALIZERS.record(self.initializer),
            frozen=tuple(check_flag(f"frozen[{i}]", flag) for i, flag in enumerate(flags)),
            l2_over_rows=check_flag("l2_over_rows", self.l2_over_rows),
        )
        if self.parameters > MOST_PARAMETERS:
            raise ValueError(f"units {self.units} ask for more than 2**40 parameters, which no memory holds")
        if not self.frozen:
            settle(self, frozen=(False,) * self.layers)
        for field in ("activations", "dropout", "frozen"):
            if len(getattr(self, field)) != self.layers:
                raise ValueError(f"{field} needs one entry a layer, {self.layers}; got {getattr(self, field)!r}")
        if self.loss.from_logits and not get_activation(self.activations[-1]).is_identity:
            raise ValueError(
                f"activation: the loss {self.loss.name!r} takes the outputs as they are (its link function is part of "
                f"it), so the last activation must be {IDENTITY!r}; got {self.activations[-1]!r}"
            )
        self.loss.check_units(self.units[-1])

    @property
    def layers(self) -> int:
        """Number of layers with weights."""
        return len(self.units) - 1

    @property
    def lowest_trainable(self) -> int:
        """Number of the first layer that trains; `layers` where all are frozen."""
        return self.frozen.index(False) if False in self.frozen else self.layers

    @property
    def parameters(self) -> int:
        """Number of weights and biases, frozen ones included."""
        return sum((i + 1) * o for i, o in zip(self.units[:-1], self.units[1:], strict=True))

    @property
    def compiled(self) -> bool:
        """Whether every function is fastmlp's own, so that compiled backends know it."""
        return self.loss.compiled and all(get_activation(a).compiled for a in self.activations)

    def l2_share(self, inverse_totals: T) -> T | float:
        """Return what `l2` is multiplied by in batches, given 1 over the weights of their rows."""
        return inverse_totals if self.l2_over_rows else 1.0

    def deterministic(self) -> NetworkSpec:
        """Return the network as it predicts: without dropout, and without what concerns training alone."""
        return replace(
            self, dropout=(0.0,) * self.layers, max_norm=None, initializer=None, frozen=(False,) * self.layers
        )

    def initializer_of(self, layer: int) -> Initializer:
        """Return the initializer of a layer: the one chosen, or the one that suits its activation."""
        return self.initializer or INITIALIZERS.record(get_activation(self.activations[layer]).initializer)

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain values for a file."""
        return {
            "units": list(self.units),
            "activations": list(self.activations),
            "loss": LOSSES.to_json(self.loss),
            "dropout": list(self.dropout),
            "l2": self.l2,
            "max_norm": self.max_norm,
            "initializer": None if self.initializer is None else INITIALIZERS.to_json(self.initializer),
            "frozen": list(self.frozen),
            **({"l2_over_rows": True} if self.l2_over_rows else {}),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> NetworkSpec:
        """Return the record that `to_json` described, checked like any other."""
        initializer = values["initializer"]
        of_loss = values["loss"].get("name") if isinstance(values["loss"], Mapping) else None
        _check_registered("loss", [of_loss], LOSSES.types)
        _check_registered("activation", values["activations"], ACTIVATIONS)
        spec = make_spec(
            values["units"],
            activation=values["activations"],
            loss=LOSSES.from_json(values["loss"]),
            dropout=values["dropout"],
            l2=values["l2"],
            max_norm=values["max_norm"],
            initializer=None if initializer is None else INITIALIZERS.from_json(initializer),
        )
        return replace(spec, frozen=values["frozen"], l2_over_rows=values.get("l2_over_rows", False))


def _check_registered(kind: str, names: Any, known: Mapping[str, Any]) -> None:
    """Raise ValueError, with the cure, for names in a file that are nobody's here; those that are no names are left."""
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name.isidentifier() and name not in known:
            raise ValueError(
                f"{kind} {name!r} is not known; {hint(kind, name, known)}where it is your own, call "
                f"fastmlp.register_{kind}({name!r}, ...) before load. There are: {', '.join(known)}"
            )


def make_spec(
    units: Sequence[int],
    activation: str | Sequence[str] = "relu",
    loss: str | Loss = "softmax_cross_entropy",
    dropout: float | Sequence[float] = 0.0,
    l2: float = 0.0,
    max_norm: float | None = None,
    initializer: str | Initializer | None = None,
) -> NetworkSpec:
    """Return the spec that a user's arguments describe; see `fastmlp.MLP` for them.

    Raises
    ------
    ValueError, TypeError
        An argument does not make sense; the message names it, what was got and what was expected.
    """
    sizes = _units(units)
    layers = len(sizes) - 1
    return NetworkSpec(
        units=sizes,
        activations=_activations(activation, layers),
        loss=LOSSES.record(of_outputs(loss, sizes[-1])),
        dropout=_dropout(dropout, layers),
        l2=l2,
        max_norm=max_norm,
        initializer=None if initializer is None else INITIALIZERS.record(initializer),
    )


def _units(units: Sequence[int]) -> tuple[int, ...]:
    expected = "numbers of units from input to output, such as (784, 100, 10)"
    sizes = check_sequence("units", units, expected)
    if len(sizes) < 2:
        raise ValueError(f"units must be {expected}: at least the inputs and the outputs; got {tuple(sizes)!r}")
    return tuple(check_count(f"units[{i}]", size) for i, size in enumerate(sizes))


def _activations(activation: str | Sequence[str], layers: int) -> tuple[str, ...]:
    if isinstance(activation, str):
        names: tuple[str, ...] = (as_named_here("activation", activation, ACTIVATIONS),) * (layers - 1) + (IDENTITY,)
    else:
        names = tuple(check_sequence("activation", activation, "a name, or a sequence of one a layer"))
        if len(names) == layers - 1:
            names += (IDENTITY,)
        if len(names) != layers:
            raise ValueError(
                f"activation needs one name for all hidden layers, one for each hidden layer ({layers - 1}) or one "
                f"for each layer ({layers}, the last being the outputs'); got {len(names)}: {names!r}"
            )
        names = tuple(as_named_here("activation", name, ACTIVATIONS) for name in names)
    return names


def _dropout(dropout: float | Sequence[float], layers: int) -> tuple[float, ...]:
    if hasattr(dropout, "__iter__") and getattr(dropout, "shape", None) != ():
        given = check_sequence("dropout", dropout, "a rate, or a sequence of (input, hidden 1, ...)")
        rates = tuple(check_number(f"dropout[{i}]", rate, 0.0, 1.0) for i, rate in enumerate(given))
        if len(rates) != layers:
            raise ValueError(
                f"dropout needs one rate for all hidden layers or {layers} of them: (input, hidden 1, ...); "
                f"got {len(rates)}: {rates!r}"
            )
        return rates
    return (0.0,) + (check_number("dropout", dropout, 0.0, 1.0),) * (layers - 1)
