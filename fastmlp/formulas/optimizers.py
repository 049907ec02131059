"""Optimizers: records with their parameters, and for each the NumPy definition of one update.

What changes from step to step (the learning rate and Adam's bias corrections) is computed on the host in float64 for
many steps at once and reaches every backend as a table, see `StepScalars`.  Decoupled weight decay, clipping by the
global norm and the moving average of the weights are stages around the update that every optimizer can have.
Compiled backends implement each update under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_flag, check_number
from fastmlp.formulas.records import RecordTypes, settle
from fastmlp.formulas.schedules import SCHEDULES, Schedule, as_schedule

if TYPE_CHECKING:
    from fastmlp._typing import Array

O = TypeVar("O", bound="Optimizer")  # noqa: E741 - an optimizer


class StepScalars(NamedTuple):
    """The numbers of one training step; a table of them, (count, 6) float64 in this order, goes to a backend.

    Attributes
    ----------
    rate : float
        Learning rate.
    correction1, correction2 : float
        Bias corrections ``1 / (1 - beta1**t)`` and ``1 / sqrt(1 - beta2**t)`` of Adam; 1 where there are none.
    average_decay : float
        Decay of the moving average of the weights at this step.
    inverse_total : float
        1 over the sum of the row weights of the batch; 0 where that sum is 0, and then the step changes nothing.
    l2_share : float
        What the network's L2 penalty is multiplied by at this step, see `NetworkSpec.l2_share`.
    """

    rate: float
    correction1: float = 1.0
    correction2: float = 1.0
    average_decay: float = 0.0
    inverse_total: float = 1.0
    l2_share: float = 1.0


class UpdateConstants(NamedTuple):
    """What a compiled update is told beside the optimizer's name; each means the same for all of them.

    Attributes
    ----------
    mean_decay : float
        Of the mean of gradients: beta1, or a momentum.
    square_decay : float
        Of the mean of squared gradients: beta2, or rho.
    epsilon : float
        Added to the root of the mean of squares.
    nesterov : bool
        Whether the mean is looked at a step ahead.
    """

    mean_decay: float = 0.0
    square_decay: float = 0.0
    epsilon: float = 1.0
    nesterov: bool = False


Role = Literal["mean", "square"]
"""What a moment is: a running mean of gradients (a momentum), or of their squares."""


class Optimizer:
    """What every optimizer has; the records below are frozen dataclasses that name these fields among their own.

    Attributes
    ----------
    learning_rate : float or Schedule
        The rate, or the rates.
    weight_decay : float
        Decoupled decay (Loshchilov, Hutter 2019): before the update the weights, not the biases, are multiplied by
        ``1 - rate * weight_decay``.
    clip_norm : float, optional
        Gradients are scaled down to this global 2-norm where they exceed it (Pascanu et al. 2013).
    ema : float, optional
        In (0, 1): keep an exponential moving average of all parameters, which prediction, evaluation and saved models
        then use.  The decay of step t (from 1) is ``min(ema, (1 + t) / (10 + t))``, so that early weights are
        forgotten soon.
    """

    learning_rate: float | Schedule
    weight_decay: float
    clip_norm: float | None
    ema: float | None

    name: ClassVar[str]

    def __post_init__(self) -> None:
        rate, clip, ema = self.learning_rate, self.clip_norm, self.ema
        settle(
            self,
            learning_rate=rate if isinstance(rate, Schedule) else check_number("learning_rate", rate, 0.0),
            weight_decay=check_number("weight_decay", self.weight_decay, 0.0),
            clip_norm=None if clip is None else check_number("clip_norm", clip, 0.0, above=True, also="or None"),
            ema=None if ema is None else check_number("ema", ema, 0.0, 1.0, above=True, also="such as 0.999, or None"),
        )

    @property
    def compiled(self) -> bool:
        """Whether it is fastmlp's own, which compiled backends implement; a class derived from one of these is not."""
        return type(self).__module__ == __name__

    @property
    def plain(self) -> bool:
        """Whether a step is ``p -= rate g``, but for the stages around it."""
        return False

    @property
    def folds_rate(self) -> bool:
        """Whether a step is ``p -= rate g`` and no more, so that gradients that hold the rate already serve as well."""
        return self.plain and not self.weight_decay and self.clip_norm is None

    @property
    def schedule(self) -> Schedule:
        """The learning rate as a schedule."""
        return as_schedule(self.learning_rate)

    @property
    def constants(self) -> UpdateConstants:
        """What compiled backends are told; of use to those that have the update among their kernels."""
        return UpdateConstants()

    @property
    def moment_roles(self) -> tuple[Role, ...]:
        """What each moment is, in the order in which `update` takes them and files keep them."""
        return ()

    @property
    def moments(self) -> int:
        """Number of buffers of the size of the parameters that the update keeps."""
        return len(self.moment_roles)

    def by_role(self, moments: Sequence[Array]) -> tuple[Array | None, Array | None]:
        """Return the mean of gradients and that of their squares, each where the optimizer keeps one."""
        found = dict(zip(self.moment_roles, moments, strict=True))
        return found.get("mean"), found.get("square")

    def without_schedule(self: O) -> O:
        """Return the record with a rate of 0: what a compiled step depends on, since rates reach it as numbers."""
        return replace(self, learning_rate=0.0)  # type: ignore[type-var]  # the records are dataclasses

    def corrections(self, t: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return `correction1` and `correction2` for the steps `t`, counted from 1."""
        return np.ones_like(t), np.ones_like(t)

    def table(
        self,
        rates: NDArray[np.float64],
        first: int,
        inverse_totals: NDArray[np.float64],
        l2_shares: float | NDArray[np.float64] = 1.0,
    ) -> NDArray[np.float64]:
        """Return the numbers of the steps from `first` on, see `StepScalars`.

        Parameters
        ----------
        rates : (count,) float64
            Learning rates.
        first : int
            Steps done since the moments began.
        inverse_totals : (count,) float64
            1 over the sum of each batch's row weights.
        l2_shares : float or (count,) float64
            What the L2 penalty is multiplied by.

        Returns
        -------
        (count, 6) float64
        """
        t = np.arange(first + 1, first + 1 + len(rates), dtype=np.float64)
        decay = np.minimum(self.ema, (1 + t) / (10 + t)) if self.ema is not None else 0.0
        table = np.empty((len(rates), len(StepScalars._fields)))
        for column, values in enumerate((rates, *self.corrections(t), decay, inverse_totals, l2_shares)):
            table[:, column] = values
        return table

    def update(self, p: Array, g: Array, moments: Sequence[Array], scalars: StepScalars, scratch: Array) -> None:
        """Take one step on flat arrays.

        Parameters
        ----------
        p : (n,) float
            Parameters; overwritten.
        g : (n,) float
            Gradients; may be overwritten.
        moments : sequence of (n,) float
            As many as `moments` says, zero before the first step; overwritten.
        scalars : StepScalars
            The numbers of this step.
        scratch : (n,) float
            Overwritten.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum (Polyak 1964) or Nesterov's (Sutskever et al. 2013).

    ``m = momentum m + g``; then ``p -= rate m``, or with `nesterov` ``p -= rate (g + momentum m)``.

    Parameters
    ----------
    learning_rate : float or Schedule
    momentum : float
        In [0, 1).
    nesterov : bool
        Needs a momentum.
    weight_decay, clip_norm, ema
        See `Optimizer`.
    """

    learning_rate: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None

    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            momentum=check_number("momentum", self.momentum, 0.0, 1.0),
            nesterov=check_flag("nesterov", self.nesterov),
        )
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs a momentum above 0, such as momentum=0.9")

    @property
    def plain(self) -> bool:
        return self.compiled and not self.momentum

    @property
    def constants(self) -> UpdateConstants:
        return UpdateConstants(mean_decay=self.momentum, nesterov=self.nesterov)

    @property
    def moment_roles(self) -> tuple[Role, ...]:
        return ("mean",) if self.momentum else ()

    def update(self, p: Array, g: Array, moments: Sequence[Array], scalars: StepScalars, scratch: Array) -> None:
        step = g
        if self.momentum:
            (m,) = moments
            np.multiply(m, self.momentum, out=m)
            np.add(m, g, out=m)
            step = m
            if self.nesterov:
                step = np.add(np.multiply(m, self.momentum, out=scratch), g, out=scratch)
        if scalars.rate != 1:
            step = np.multiply(step, scalars.rate, out=scratch)
        np.subtract(p, step, out=p)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam (Kingma, Ba 2015, algorithm 1).

    ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``,
    ``p -= rate * m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon)``.

    Parameters
    ----------
    learning_rate : float or Schedule
    beta1, beta2 : float
        In [0, 1).
    epsilon : float
        Positive.
    weight_decay, clip_norm, ema
        See `Optimizer`.
    """

    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None

    name: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            beta1=check_number("beta1", self.beta1, 0.0, 1.0),
            beta2=check_number("beta2", self.beta2, 0.0, 1.0),
            epsilon=check_number("epsilon", self.epsilon, 0.0, above=True),
        )

    @property
    def constants(self) -> UpdateConstants:
        return UpdateConstants(self.beta1, self.beta2, self.epsilon)

    @property
    def moment_roles(self) -> tuple[Role, ...]:
        return ("mean", "square")

    def corrections(self, t: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return 1 / (1 - self.beta1**t), 1 / np.sqrt(1 - self.beta2**t)

    def update(self, p: Array, g: Array, moments: Sequence[Array], scalars: StepScalars, scratch: Array) -> None:
        m, v = moments
        decay_towards(m, self.beta1, g, scratch)
        np.multiply(g, g, out=g)
        decay_towards(v, self.beta2, g, scratch)
        np.sqrt(v, out=scratch)
        np.multiply(scratch, scalars.correction2, out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.divide(m, scratch, out=scratch)
        np.multiply(scratch, scalars.rate * scalars.correction1, out=scratch)
        np.subtract(p, scratch, out=p)


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019); PyTorch's default decay."""

    weight_decay: float = 1e-2

    name: ClassVar[str] = "adamw"


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """RMSprop (Hinton 2012, lecture 6e): ``v = rho v + (1 - rho) g^2``, ``p -= rate g / (sqrt(v) + epsilon)``.

    With a momentum, ``m = momentum m + g / (sqrt(v) + epsilon)`` and ``p -= rate m``, as in PyTorch.

    Parameters
    ----------
    learning_rate : float or Schedule
    rho, momentum : float
        In [0, 1).
    epsilon : float
        Positive.
    weight_decay, clip_norm, ema
        See `Optimizer`.
    """

    learning_rate: float | Schedule = 1e-3
    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None

    name: ClassVar[str] = "rmsprop"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            rho=check_number("rho", self.rho, 0.0, 1.0),
            momentum=check_number("momentum", self.momentum, 0.0, 1.0),
            epsilon=check_number("epsilon", self.epsilon, 0.0, above=True),
        )

    @property
    def constants(self) -> UpdateConstants:
        return UpdateConstants(self.momentum, self.rho, self.epsilon)

    @property
    def moment_roles(self) -> tuple[Role, ...]:
        return ("square", "mean") if self.momentum else ("square",)

    def update(self, p: Array, g: Array, moments: Sequence[Array], scalars: StepScalars, scratch: Array) -> None:
        v = moments[0]
        np.multiply(v, self.rho, out=v)
        np.multiply(g, g, out=scratch)
        np.multiply(scratch, 1 - self.rho, out=scratch)
        np.add(v, scratch, out=v)
        np.sqrt(v, out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.divide(g, scratch, out=scratch)
        if self.momentum:
            m = moments[1]
            np.multiply(m, self.momentum, out=m)
            np.add(m, scratch, out=m)
            np.multiply(m, scalars.rate, out=scratch)
        else:
            np.multiply(scratch, scalars.rate, out=scratch)
        np.subtract(p, scratch, out=p)


def decay_towards(mean: Array, decay: float, value: Array, scratch: Array) -> None:
    """``mean = decay mean + (1 - decay) value``."""
    np.multiply(mean, decay, out=mean)
    np.multiply(value, 1 - decay, out=scratch)
    np.add(mean, scratch, out=mean)


OPTIMIZERS: RecordTypes[Optimizer] = RecordTypes("optimizer", Optimizer, (SGD, Adam, AdamW, RMSprop))
"""fastmlp's optimizers by name."""


def choose_optimizer(optimizer: Optimizer | str | None, last: Optimizer | None) -> Optimizer:
    """Return a record given as such or by name; for None that of the last run, at first `Adam`."""
    if optimizer is None:
        return last or OPTIMIZERS.record(Adam.name)
    return OPTIMIZERS.record(optimizer)


def optimizer_to_json(optimizer: Optimizer) -> dict[str, Any]:
    """Return the record, its schedule included, as plain values for a file."""
    values = OPTIMIZERS.to_json(optimizer)
    if isinstance(optimizer.learning_rate, Schedule):
        values["learning_rate"] = SCHEDULES.to_json(optimizer.learning_rate.in_files())
    return values


def optimizer_from_json(values: Mapping[str, Any]) -> Optimizer:
    """Return the record that `optimizer_to_json` described."""
    rate = values["learning_rate"]
    if isinstance(rate, Mapping):
        rate = SCHEDULES.from_json(rate)
    return OPTIMIZERS.from_json({**values, "learning_rate": rate})
