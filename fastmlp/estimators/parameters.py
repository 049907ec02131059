"""What the parameters of the estimators may be, and what they ask of fastmlp."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, Options, StrOptions

from fastmlp.arguments import check_dtype, check_integer, check_sequence
from fastmlp.backends.base import Backend
from fastmlp.backends.choosing import BackendChoice, chosen_backend, get_backend
from fastmlp.estimators.exact import ExactAdam, ExactSGD
from fastmlp.estimators.training import Curves, Follows, Rules
from fastmlp.formulas.optimizers import SGD, Adam, Optimizer
from fastmlp.formulas.schedules import Schedule
from fastmlp.network.spec import MOST_PARAMETERS
from fastmlp.preprocessing.record import KINDS

CONSTRAINTS: dict[str, list[Any]] = {
    "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
    "activation": [str, "array-like"],
    "solver": [StrOptions({"lbfgs", "sgd", "adam"}), Optimizer],
    "alpha": [Interval(Real, 0, None, closed="left")],
    "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
    "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
    "power_t": [Interval(Real, 0, None, closed="left")],
    "max_iter": [Interval(Integral, 1, None, closed="left")],
    "shuffle": ["boolean"],
    "random_state": ["random_state"],
    "tol": [Interval(Real, 0, None, closed="left")],
    "verbose": ["verbose"],
    "warm_start": ["boolean"],
    "momentum": [Interval(Real, 0, 1, closed="left")],
    "nesterovs_momentum": ["boolean"],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "beta_1": [Interval(Real, 0, 1, closed="left")],
    "beta_2": [Interval(Real, 0, 1, closed="left")],
    "epsilon": [Interval(Real, 0, None, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {math.inf})],
    "max_fun": [Interval(Integral, 1, None, closed="left")],
    "exact": ["boolean"],
    "backend": [str, Backend],
    "n_jobs": [Integral, None],
    "epochs": [Interval(Integral, 1, None, closed="left"), None],
    "schedule": [Schedule, None],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "clip_norm": [Interval(Real, 0, None, closed="neither"), None],
    "max_norm": [Interval(Real, 0, None, closed="neither"), None],
    "ema": [Interval(Real, 0, 1, closed="neither"), None],
    "time_limit": [Interval(Real, 0, None, closed="neither"), None],
    "scoring": [str, callable, None],
    "preprocess": [StrOptions(set(KINDS)), None],
    "callbacks": ["array-like"],
}
"""What each parameter may be; scikit-learn's of its own, in its form."""


RATES = ("learning_rate", "final_rate", "min_rate")
"""Fields of schedules that hold rates."""


_names: dict[type, list[str]] = {}
"""Of the parameters of each class: scikit-learn looks at the signature anew, at each of three calls in a fit."""


class Parameters(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type hints
    """The parameters that `MLPClassifier` and `MLPRegressor` share; their constructors store them as they are."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = CONSTRAINTS

    activation: Any
    alpha: float
    backend: str | Backend
    batch_size: int | str
    beta_1: float
    beta_2: float
    calibrate: bool = False
    callbacks: Any
    clip_norm: float | None
    dropout: Any
    dtype: Any
    early_stopping: bool
    ema: float | None
    epochs: int | None
    epsilon: float
    exact: bool
    hidden_layer_sizes: Any
    initializer: Any
    learning_rate: str
    learning_rate_init: float
    max_fun: int
    max_iter: int
    max_norm: float | None
    momentum: float
    n_iter_no_change: float
    n_jobs: int | None
    nesterovs_momentum: bool
    power_t: float
    preprocess: str | None
    random_state: Any
    schedule: Schedule | None
    scoring: Any
    shuffle: bool
    solver: Any
    time_limit: float | None
    tol: float
    validation_fraction: float
    verbose: Any
    warm_start: bool
    weight_decay: float

    @classmethod
    def _get_param_names(cls) -> list[str]:
        if cls not in _names:
            _names[cls] = super()._get_param_names()
        return list(_names[cls])

    def _check_numbers(self) -> None:
        """Raise TypeError or ValueError for numbers that scikit-learn's own check fails on."""
        for name, value in self.get_params(deep=False).items():
            if isinstance(value, Real) and not isinstance(value, (int, float, np.generic)):
                raise TypeError(f"{name} must be a number of Python's or NumPy's, got {value!r}")
            if isinstance(value, int) and abs(value) > sys.float_info.max:
                raise ValueError(f"{name} must be at most {sys.float_info.max:.1e}, got a number of more digits")

    def _check_together(self) -> None:
        """Raise ValueError where a parameter would have no effect beside the others, or cannot hold beside them."""
        idle: dict[str, Any] = {}
        if isinstance(self.solver, Optimizer):
            idle = {"weight_decay": 0.0, "clip_norm": None, "ema": None, "schedule": None, "exact": False}
            why = "the optimizer that is given as solver holds its own"
        elif self.solver == "lbfgs":
            idle = {"weight_decay": 0.0, "clip_norm": None, "ema": None, "schedule": None, "max_norm": None}
            idle |= {"dropout": 0.0, "time_limit": None, "epochs": None, "scoring": None, "callbacks": ()}
            why = "solver='lbfgs' takes no steps of that kind; use 'adam' or 'sgd'"
        for name, default in idle.items():
            if (given := getattr(self, name)) is not default and given != default:
                raise ValueError(f"{name}={given!r} would do nothing: {why}")
        if self.exact and self.n_jobs is not None:
            raise ValueError(f"n_jobs={self.n_jobs!r} would do nothing: exact=True runs on the NumPy backend")
        if self.n_jobs == 0:
            raise ValueError("n_jobs must be a number of threads, -1 for all or None; got 0")

    def _check_solver(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError(
                f"partial_fit is only available for stochastic optimizers. {self.solver} is not stochastic."
            )
        return True

    def _hidden_units(self) -> list[int]:
        given, expected = self.hidden_layer_sizes, "a number of units, or a sequence of one a hidden layer"
        found = [given] if isinstance(given, Integral) else check_sequence("hidden_layer_sizes", given, expected)
        sizes = [check_integer("hidden_layer_sizes", size) for size in found]
        if any(size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        if max(sizes, default=1) > MOST_PARAMETERS:
            raise ValueError(f"hidden_layer_sizes must be at most 2**40, got {sizes}")
        return sizes

    def _dtype(self) -> np.dtype[Any]:
        if self.exact and self.dtype not in (None, "float64", np.float64, np.dtype("float64")):
            raise ValueError(f"exact=True computes in float64, got dtype={self.dtype!r}; leave dtype out")
        if self.dtype is not None:
            return check_dtype(self.dtype)
        return np.dtype("float64" if self.exact or self.solver == "lbfgs" else "float32")

    def _chosen_backend(self) -> tuple[Backend, BackendChoice]:
        """Return where a network to come runs, and why; a long run may choose another where nothing asks for that."""
        if self.exact:
            backend, choice = chosen_backend("numpy" if self.backend == "auto" else self.backend)
            if backend.name != "numpy":
                raise ValueError(f"exact=True needs the backend 'numpy', got {backend.name!r}; leave backend out")
            return backend, choice
        backend, choice = chosen_backend(self.backend)
        if self.n_jobs is None:
            return backend, choice
        if self.n_jobs < 0:
            return backend, replace(choice, left_open=False)
        if not isinstance(self.backend, str) or backend.name != "numba":
            raise ValueError(f"n_jobs is for the backend 'numba', by its name; got backend={self.backend!r}")
        return chosen_backend(get_backend("numba", threads=int(self.n_jobs)))

    def _backend(self) -> Backend:
        return self._chosen_backend()[0]

    def _optimizer_of(self, curves: Curves, gradient: float) -> Optimizer:
        """Return the record of the solver; what fastmlp's smaller gradients ask for is in its numbers."""
        if isinstance(self.solver, Optimizer):
            return self.solver
        clip_norm = None if self.clip_norm is None else self.clip_norm / gradient
        if self.solver == "sgd":
            follows = Follows(curves=curves, factor=gradient, rule=self.learning_rate)
            rate = scaled(self.schedule, gradient) if self.schedule else follows
            nesterov, decay = bool(self.nesterovs_momentum and self.momentum), self.weight_decay / gradient
            sgd = ExactSGD if self.exact else SGD
            return sgd(rate, self.momentum, nesterov, weight_decay=decay, clip_norm=clip_norm, ema=self.ema)
        adam = ExactAdam if self.exact else Adam
        # its steps do not depend on the scale of gradients, but for epsilon
        constants = self.schedule or Follows(curves=curves), self.beta_1, self.beta_2, self.epsilon / gradient
        return adam(*constants, weight_decay=self.weight_decay, clip_norm=clip_norm, ema=self.ema)

    def _rules(self, incremental: bool) -> Rules:
        endless = self.epochs is not None and not self.early_stopping
        ruled = self.solver == "sgd" and self.schedule is None
        return Rules(
            learning_rate=self.learning_rate if ruled else "constant",
            initial_rate=float(self.learning_rate_init),
            power=self.power_t,
            tolerance=self.tol,
            patience=math.inf if endless else self.n_iter_no_change,
            keep_best=self.early_stopping,
            verbose=bool(self.verbose),
        )

    def _batch_size(self, rows: int) -> int:
        if self.batch_size == "auto":
            return min(200, rows)
        if int(self.batch_size) > rows:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=5
            )
        return min(int(self.batch_size), rows)


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Return a schedule whose rates are multiplied by a factor."""
    if factor == 1.0:
        return schedule
    rates = {name: getattr(schedule, name) for name in RATES if hasattr(schedule, name)}
    if "learning_rate" not in rates:
        raise ValueError(f"schedule: {schedule!r} has no learning_rate to scale for this loss; use solver='adam'")
    changed: Schedule = replace(schedule, **{name: rate * factor for name, rate in rates.items()})
    return changed
