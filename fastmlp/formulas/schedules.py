"""Learning-rate schedules: the rate of every step, computed on the host in float64.

A schedule is a frozen record.  It is asked for the rates of a run of steps at once, so a user's own schedule costs a
compiled backend nothing: the rates reach it as an array.  Steps count from 0, from where the schedule began: for one
with an explicit horizon (``steps=...``) that is where the optimizer's moments began, for one that takes the horizon
of the training call it is the start of that call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fastmlp.arguments import check_count, check_number
from fastmlp.floating import quiet
from fastmlp.formulas.figures import lower_is_better
from fastmlp.formulas.records import RecordTypes, settle


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What every schedule has: a warm-up.

    Parameters
    ----------
    warmup_steps : int
        The rate of the first steps is multiplied by ``(step + 1) / (warmup_steps + 1)``; 0 for none.
    """

    warmup_steps: int = 0

    name: ClassVar[str]

    def __post_init__(self) -> None:
        settle(self, warmup_steps=check_count("warmup_steps", self.warmup_steps, 0))
        steps = getattr(self, "steps", None)
        if steps is not None:
            settle(self, steps=check_count("steps", steps, also="or None for those of the training call"))

    @property
    def follows_call(self) -> bool:
        """Whether the schedule runs from the start to the end of each training call."""
        return getattr(self, "steps", 0) is None

    @quiet
    def rates(self, first: int, count: int, horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        """Return the learning rates of `count` steps from step `first`.

        Parameters
        ----------
        first, count : int
            The steps, counted from where the schedule began.
        horizon : int
            The number of steps that the schedule spans, for those that need one.
        memory : mapping
            What `observe` returned last; empty at first.

        Returns
        -------
        (count,) float64
        """
        steps = np.arange(first, first + count, dtype=np.float64)
        rates = self._shape(steps, horizon, memory)
        if self.warmup_steps:
            rates = rates * np.minimum(1.0, (steps + 1) / (self.warmup_steps + 1))
        return rates

    def observe(self, memory: Mapping[str, float], figures: Mapping[str, float]) -> dict[str, float]:
        """Return the memory after an epoch with these figures; only plateau schedules have any."""
        return dict(memory)

    def in_files(self) -> Schedule:
        """Return the schedule that files hold of this one; ValueError where none can go on as it does."""
        return self

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate at every step."""

    learning_rate: float = 1e-3

    name: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, learning_rate=check_number("learning_rate", self.learning_rate, 0.0))

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        return np.full(len(steps), self.learning_rate)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """``learning_rate * factor ** floor(step / every)``."""

    learning_rate: float = 1e-3
    every: int = 1000
    factor: float = 0.1

    name: ClassVar[str] = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            learning_rate=check_number("learning_rate", self.learning_rate, 0.0),
            every=check_count("every", self.every),
            factor=check_number("factor", self.factor, 0.0),
        )

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        rates: NDArray[np.float64] = self.learning_rate * self.factor ** np.floor(steps / self.every)
        return rates


@dataclass(frozen=True)
class Exponential(Schedule):
    """``learning_rate * final_fraction ** (step / steps)``: a straight line on a logarithmic scale.

    Parameters
    ----------
    learning_rate : float
        The rate at step 0.
    final_fraction : float
        Positive; the fraction of it that is left at the horizon.
    steps : int, optional
        The horizon; that of the training call when not given.
    """

    learning_rate: float = 1e-3
    final_fraction: float = 0.01
    steps: int | None = None

    name: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            learning_rate=check_number("learning_rate", self.learning_rate, 0.0),
            final_fraction=check_number("final_fraction", self.final_fraction, 0.0, above=True),
        )

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        rates: NDArray[np.float64] = self.learning_rate * self.final_fraction ** (steps / horizon)
        return rates


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """``learning_rate / (step + 1) ** power``, scikit-learn's ``invscaling`` counted in steps."""

    learning_rate: float = 1e-2
    power: float = 0.5

    name: ClassVar[str] = "inverse_scaling"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            learning_rate=check_number("learning_rate", self.learning_rate, 0.0),
            power=check_number("power", self.power, 0.0),
        )

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        rates: NDArray[np.float64] = self.learning_rate / (steps + 1) ** self.power
        return rates


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from `learning_rate` down to `final_rate` at the horizon (Loshchilov, Hutter 2017).

    Parameters
    ----------
    learning_rate, final_rate : float
        The rates at step 0 and from the horizon on.
    steps : int, optional
        The horizon; that of the training call when not given.
    """

    learning_rate: float = 1e-3
    final_rate: float = 0.0
    steps: int | None = None

    name: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            learning_rate=check_number("learning_rate", self.learning_rate, 0.0),
            final_rate=check_number("final_rate", self.final_rate, 0.0),
        )

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        return _half_cosine(self.learning_rate, self.final_rate, steps / horizon)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up from ``peak / start_divisor`` to the peak, then down to ``peak / start_divisor / final_divisor``.

    Both halves are half cosines, as in PyTorch's OneCycleLR (Smith, Topin 2018).

    Parameters
    ----------
    learning_rate : float
        The peak.
    rise : float
        In (0, 1): the fraction of the horizon before the peak.
    start_divisor, final_divisor : float
        At least 1.
    steps : int, optional
        The horizon; that of the training call when not given.
    """

    learning_rate: float = 1e-2
    rise: float = 0.3
    start_divisor: float = 25.0
    final_divisor: float = 1e4
    steps: int | None = None

    name: ClassVar[str] = "one_cycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            learning_rate=check_number("learning_rate", self.learning_rate, 0.0),
            rise=check_number("rise", self.rise, 0.0, 1.0, above=True),
            start_divisor=check_number("start_divisor", self.start_divisor, 1.0),
            final_divisor=check_number("final_divisor", self.final_divisor, 1.0),
        )

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        start = self.learning_rate / self.start_divisor
        # the last step is the lowest point, and the peak lies on a step of its own where there is room for one
        last = max(horizon - 1, 1)
        peak = min(max(self.rise * horizon - 1, 0.5), last - 0.5)
        up = _half_cosine(start, self.learning_rate, steps / peak)
        down = _half_cosine(self.learning_rate, start / self.final_divisor, (steps - peak) / (last - peak))
        return np.where(steps < peak, up, down)


@dataclass(frozen=True)
class ReduceOnPlateau(Schedule):
    """Multiply the rate by `factor` when a figure has not improved for `patience` epochs.

    Parameters
    ----------
    learning_rate : float
        The rate at first.
    factor : float
        In (0, 1).
    patience : int
        Epochs without an improvement of more than `min_delta` before the rate falls.
    min_rate : float
        The rate does not fall below it.
    monitor : str
        A figure of the history, such as ``"val_loss"`` or ``"loss"``; an epoch where it is NaN is no improvement.
    min_delta : float
        The least change that counts, in units of the figure.
    mode : {"auto", "min", "max"}
        Whether less or more is better; auto: as is known of the loss, the accuracy and scikit-learn's metrics.
    """

    learning_rate: float = 1e-3
    factor: float = 0.1
    patience: int = 5
    min_rate: float = 0.0
    monitor: str = "val_loss"
    min_delta: float = 1e-4
    mode: str = "auto"

    name: ClassVar[str] = "reduce_on_plateau"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(
            self,
            learning_rate=check_number("learning_rate", self.learning_rate, 0.0),
            factor=check_number("factor", self.factor, 0.0, 1.0, above=True),
            patience=check_count("patience", self.patience, 0),
            min_rate=check_number("min_rate", self.min_rate, 0.0),
            min_delta=check_number("min_delta", self.min_delta, 0.0),
        )
        lower_is_better("ReduceOnPlateau", self.monitor, self.mode)  # refuses a figure of which that is not known
        settle(self, monitor=str(self.monitor), mode=str(self.mode))

    def observe(self, memory: Mapping[str, float], figures: Mapping[str, float]) -> dict[str, float]:
        if self.monitor not in figures:
            raise ValueError(
                f"ReduceOnPlateau(monitor={self.monitor!r}): there is no such figure; there are {', '.join(figures)}. "
                "Give fit validation_data or validation_split, or monitor 'loss'"
            )
        lower = lower_is_better("ReduceOnPlateau", self.monitor, self.mode)
        value = figures[self.monitor] if lower else -figures[self.monitor]
        scale, best, waited = (
            memory.get("scale", 1.0),
            memory.get("best", math.inf),
            memory.get("waited", 0.0),
        )
        if value < best - self.min_delta:
            best, waited = value, 0.0
        else:
            waited += 1
            if waited > self.patience:
                scale, waited = scale * self.factor, 0.0
        return {"scale": scale, "best": best, "waited": waited}

    def _shape(self, steps: NDArray[np.float64], horizon: int, memory: Mapping[str, float]) -> NDArray[np.float64]:
        floor = min(self.min_rate, self.learning_rate)
        return np.full(len(steps), max(self.learning_rate * memory.get("scale", 1.0), floor))


def _half_cosine(start: float, end: float, fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    rates: NDArray[np.float64] = end + (start - end) * 0.5 * (1 + np.cos(np.pi * np.clip(fraction, 0.0, 1.0)))
    return rates


SCHEDULES: RecordTypes[Schedule] = RecordTypes(
    "schedule",
    Schedule,
    (Constant, StepDecay, Exponential, InverseScaling, Cosine, OneCycle, ReduceOnPlateau),
)
"""fastmlp's schedules by name."""


def as_schedule(rate: float | Schedule) -> Schedule:
    """Return a schedule; a number becomes a constant one."""
    return rate if isinstance(rate, Schedule) else Constant(rate)
