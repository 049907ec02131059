"""What `MLPClassifier` and `MLPRegressor` share: scikit-learn's parameters and words, over a `Learner`."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import get_scorer
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from fastmlp.backends.data import HostData
from fastmlp.backends.foreign import lies_on_gpu
from fastmlp.engine import runs
from fastmlp.engine.callbacks import Checkpoint, TimeLimit, check_callbacks
from fastmlp.engine.checks import check_outputs
from fastmlp.engine.learner import Learner
from fastmlp.engine.row_weights import check_parts, in_range
from fastmlp.errors import NonFiniteLossError
from fastmlp.estimators.calibration import folded
from fastmlp.estimators.exact import Drawn, Rows, StepLosses
from fastmlp.estimators.going_on import GoesOn
from fastmlp.estimators.lbfgs import minimize
from fastmlp.estimators.objective import Objective, fastmlp_activation
from fastmlp.estimators.preprocessed import Preprocessed, named
from fastmlp.estimators.training import Curves, ScikitLearnRun
from fastmlp.model import MLP
from fastmlp.network.layout import layout_of
from fastmlp.network.spec import make_spec
from fastmlp.network.state import TrainState, initial_parameters

if TYPE_CHECKING:
    from fastmlp.engine.history import History
    from fastmlp.engine.loop import Training
    from fastmlp.network.spec import NetworkSpec

SOON = 1 << 16
"""Numbers in a NumPy array that are looked at here, where scikit-learn's own look would take longer than the answer."""


class BaseMLP(GoesOn, Preprocessed):
    """An estimator over a `Learner`.

    Subclasses say what they minimise, how targets become the network's and outputs become answers.
    """

    n_outputs_: int
    n_features_in_: int
    temperature_: float

    # --- what subclasses say ---

    def _take(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        """Return checked X and y in the user's terms, and learn classes."""
        raise NotImplementedError

    def _targets(self, y: Any) -> NDArray[Any]:
        """Return y as the network's loss takes it, and set `n_outputs_`."""
        raise NotImplementedError

    def _objective(self) -> Objective:
        raise NotImplementedError

    def _weighted(self, y: Any, sample_weight: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return the weights of the rows to train on."""
        return sample_weight

    def _score(self, X: Any, y: Any, sample_weight: Any) -> float:
        """Return the score that early stopping goes by, of y on the host."""
        raise NotImplementedError

    def _temperature(self, held_out: HostData) -> float:
        """Return what the outputs of the trained network are to be divided by, where the estimator is to calibrate."""
        raise NotImplementedError

    # --- fitting ---

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> BaseMLP:
        """Train from the beginning, or with `warm_start` from where the last call ended.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n, features)
            On the ``"cupy"`` backend arrays of its GPU stay there; y and weights may lie there too.
            Of a sparse one a few rows at a time are made dense, in 16 MiB.
        y : array-like of shape (n,) or (n, outputs)
        sample_weight : array-like of shape (n,), optional
        X_val, y_val, sample_weight_val : optional
            Evaluated after each epoch; early stopping goes by them instead of a part of X.

        Returns
        -------
        self
        """
        self._checked()
        if (X_val is None) != (y_val is None):
            raise ValueError("X_val and y_val go together: give both, or neither")
        if X_val is None and sample_weight_val is not None:
            raise ValueError("sample_weight_val is of rows to validate with: give X_val and y_val too, or leave it out")
        validation = None if X_val is None else (X_val, y_val, sample_weight_val)
        if validation is not None and self.solver == "lbfgs" and not self.calibrate:
            raise ValueError("X_val: solver='lbfgs' has no epochs after which to validate; use 'adam' or 'sgd'")
        if self.scoring is not None and validation is None and not self._holds_out:
            raise ValueError("scoring needs rows to validate with: give X_val and y_val, or early_stopping=True")
        return self._fit(X, y, sample_weight, validation, incremental=False)

    def _checked(self) -> None:
        """Raise the errors that parameters deserve, of themselves and beside each other."""
        self._check_numbers()
        self._validate_params()
        self._check_together()

    def _fit(self, X: Any, y: Any, sample_weight: Any, validation: Any, *, incremental: bool) -> BaseMLP:
        undo = self._undoing(incremental)
        try:
            return self._trained(X, y, sample_weight, validation, incremental)
        except BaseException as e:
            undo()
            if not isinstance(e, NonFiniteLossError):
                raise
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                f"preprocessed. {e}"
            ) from e

    def _trained(self, X: Any, y: Any, sample_weight: Any, validation: Any, incremental: bool) -> BaseMLP:
        begins = not hasattr(self, "_learner") or (not self.warm_start and not incremental)
        self._check_preprocess(begins, incremental)
        if incremental and (self.early_stopping or self.calibrate):
            asked = "early_stopping" if self.early_stopping else "calibrate"
            raise ValueError(f"partial_fit does not support {asked}=True, for which rows are held out; use fit")
        given, (X, y) = X, self._take(X, y, incremental, begins)
        sample_weight = self._on_host(sample_weight, "sample_weight", begins)
        targets = self._targets(y)
        own = None if sample_weight is None else _check_sample_weight(sample_weight, X)
        weights = self._weighted(y, own)
        self._random_state = check_random_state(self.random_state)
        parts = None
        if self.preprocess is not None and self._holds_out and validation is None:
            parts = self._parts(y)  # before anything is learned of the rows
        learned = None if parts is None else parts[0]
        preprocessing = self._fit_preprocessing(X, learned) if begins else self.preprocessing_
        inputs = X.shape[1] if preprocessing is None else preprocessing.width
        each = self._objective().loss.outputs_per_target
        units = (inputs, *self._hidden_units(), self.n_outputs_ * each)
        if begins:
            self._begin(self._spec(units))
            self._preprocess_with(preprocessing)
        elif units != self._learner.spec.units:
            raise ValueError(
                f"hidden_layer_sizes: the network that training goes on with has the units {self._learner.spec.units}, "
                f"these parameters and data ask for {units}; use warm_start=False to begin anew"
            )
        else:
            self._go_on(self._spec(units))
        data = self._data(X, targets, weights)
        train, held_out, judged = self._held_out((given, X, y, own), data, parts, validation)
        self.temperature_ = 1.0  # scores of epochs are of the network that trains
        if self.solver == "lbfgs":
            self._fit_lbfgs(train)
        else:
            self._fit_stochastic(train, held_out, judged, incremental)
        if self.calibrate:
            self.temperature_ = self._temperature(held_out)
        return self

    def _spec(self, units: tuple[int, ...]) -> NetworkSpec:
        """Return the network that the parameters ask for."""
        objective = self._objective()
        activation = fastmlp_activation(self.activation)
        l2 = self.alpha / objective.gradient
        spec = make_spec(units, activation, objective.loss, self.dropout, l2, self.max_norm, self.initializer)
        return replace(spec, l2_over_rows=True)

    def _begin(self, spec: NetworkSpec) -> None:
        """Make a new network, with weights drawn as scikit-learn draws them."""
        dtype = self._dtype()
        layout = layout_of(spec.units, dtype.itemsize)
        if self.initializer is None:
            params = np.zeros(layout.size, dtype)
            factor = 2.0 if self.activation == "logistic" else 6.0
            for w, b in layout.views(params):
                bound = np.sqrt(factor / sum(w.shape))
                w[...] = self._random_state.uniform(-bound, bound, w.shape)
                b[...] = self._random_state.uniform(-bound, bound, b.shape)
        key = self._key()
        if self.initializer is not None:
            params = initial_parameters(spec, layout, dtype, key)
        backend, choice = self._backend_asked()
        with backend.working():
            state = TrainState(layout, backend.copy(params), key)
        self._learner = Learner(spec, dtype, backend, state)
        self._learner.choice = choice
        self._learner.class_names = self._class_names()
        self.n_layers_, self.out_activation_ = len(spec.units), self._objective().out_activation
        self._curves = Curves(rate=float(self.learning_rate_init), losses=[])
        self.n_iter_ = self.t_ = 0

    def _class_names(self) -> tuple[str, ...] | None:
        return None

    def _data(self, X: Any, targets: NDArray[Any], weights: Any, suffix: str = "", training: bool = True) -> HostData:
        """Return data for the network, its inputs in the network's type."""
        learner = self._learner
        data = learner.data(X, targets, weights, suffix=suffix, training=training)
        there = not isinstance(data.x, np.ndarray)
        return replace(data, x=data.x if there else np.ascontiguousarray(data.x, learner.dtype), names=None)

    def _parts(self, y: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Draw the rows that train, and those that are held out."""
        train, held_out = train_test_split(
            np.arange(len(y)),
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._strata(y),
        )
        if len(held_out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        return train, held_out

    # --- L-BFGS ---

    def _fit_lbfgs(self, data: HostData) -> None:
        if data.training is not None:
            data = self._picked(data, data.training)
        objective = self._objective()
        value = objective.value if self.exact else objective.gradient
        weights = np.ones(len(data)) if data.weights is None else data.weights.astype(np.float64)
        constant = float((weights * objective.offsets(data.y)).sum() / weights.sum())
        asked = {"maxiter": self.max_iter, "maxfun": self.max_fun, "gtol": self.tol}
        found = minimize(
            self._learner, data, self.alpha, value, objective.gradient, constant, asked, bool(self.verbose)
        )
        self.n_iter_, self.loss_ = min(found.iterations, self.max_iter), found.loss
        if found.problem:
            warnings.warn(found.problem, ConvergenceWarning, stacklevel=4)

    # --- gradient descent ---

    def _fit_stochastic(self, train: HostData, held_out: HostData | None, judged: Any, incremental: bool) -> None:
        learner, curves, objective = self._learner, self._curves, self._objective()
        self._settle_optimizer(objective.gradient, incremental)
        if judged is not None:
            curves.scores = curves.scores or []
            curves.validation_losses = curves.validation_losses or []
        rows = train.training_rows
        size = self._batch_size(rows)
        draw = Drawn(rows, self._random_state) if self.exact else None
        losses = self._losses(train, size, draw, objective)
        run = ScikitLearnRun(curves, self._rules(incremental), rows, losses, self._scorer(judged, held_out))
        callbacks = [*check_callbacks(self.callbacks, 0), run]
        if self.exact and any(isinstance(callback, Checkpoint) for callback in callbacks):
            raise ValueError(
                "callbacks: a checkpoint cannot hold a run with exact=True, which draws the orders of the rows from "
                "random_state, got a Checkpoint; leave exact out, or take model_.save(path) after fit instead"
            )
        callbacks += [losses] if isinstance(losses, StepLosses) else []
        callbacks += [] if self.time_limit is None else [TimeLimit(self.time_limit)]
        epochs = 1 if incremental else self.epochs or self.max_iter
        wanted = runs.Wanted(epochs, size, self._optimizer, self.shuffle, 0.0)
        extras = runs.Extras({}, callbacks, self, draw=draw)
        try:
            runs.begin(learner, train, held_out, wanted, extras)
        except NonFiniteLossError as e:
            if not run.recovered(learner):
                raise
            warnings.warn(
                f"training diverged, and the weights of the epoch with the best validation score are kept: {e}",
                ConvergenceWarning,
                stacklevel=5,
            )
        self.history_: History | None = run.history
        self._tell(incremental, epochs)

    @property
    def _holds_out(self) -> bool:
        """Whether rows to train on are held out where none are given."""
        return self.calibrate or (self.early_stopping and self.solver != "lbfgs")

    def _held_out(
        self, rows: tuple[Any, Any, Any, Any], data: HostData, parts: Any, validation: Any
    ) -> tuple[HostData, Any, Any]:
        """Return the data to train on, those to validate with, and (X, y, weights) to be scored; None where not.

        `rows` are X as it was given and as it was checked, y and weights.

        Class weights are for training alone, whichever way rows are held out.
        """
        if validation is not None:
            with named("X_val and y_val, which are X and y here"):
                X, y = self._take(validation[0], validation[1], True, False)
            weights = self._on_host(validation[2], "sample_weight_val")
            with named("sample_weight_val, which is sample_weight here"):
                weights = None if weights is None else _check_sample_weight(weights, X)
            judged = self._to_score(validation[0], X)
            return data, self._data(X, self._targets(y), weights, " of X_val", False), (judged, y, weights)
        if not self._holds_out:
            return data, None, None
        given, X, y, own = rows
        train, held_out = self._parts(y) if parts is None else parts
        weights = None
        if own is not None:
            own = in_range(own, self._learner.dtype, "sample_weight", "row").astype(self._learner.dtype)
            split = f"validation_fraction={self.validation_fraction!r}"
            check_parts(own, train, held_out, split, "hold out another part of the rows, or give X_val and y_val")
            weights = own[held_out]
        there = replace(self._picked(data, held_out), weights=weights, weights_there=None)
        judged = there.x
        if self.scoring is not None and not lies_on_gpu(X):
            judged = _safe_indexing(self._to_score(given, X), held_out)
        return replace(data, training=train), there, (judged, y[held_out], weights)

    def _to_score(self, given: Any, X: Any) -> Any:
        """Return rows for a scorer: those that were given where their columns have names, else as they were checked."""
        return given if hasattr(self, "feature_names_in_") else X

    def _picked(self, data: HostData, rows: NDArray[np.intp]) -> HostData:
        backend = self._learner.backend
        with backend.working():
            return data.taken(rows, backend.picked)

    def _strata(self, y: Any) -> Any:
        return None

    def _scorer(self, judged: Any, there: HostData | None) -> Callable[[], float] | None:
        if judged is None:
            return None
        X, y, weights = judged
        if self.scoring is None:
            rows = X if lies_on_gpu(X) else there  # made ready once, not after each epoch
            return lambda: self._score(rows, y, weights)
        scorer = get_scorer(self.scoring)
        more = {} if weights is None else {"sample_weight": weights}
        return lambda: float(scorer(self, X, y, **more))

    def _losses(self, data: HostData, size: int, draw: Drawn | None, objective: Objective) -> Any:
        """Return what tells the loss of an epoch as scikit-learn has it: to the bit in exact mode.

        Else the penalty is that of the weights at the end of the epoch, and rows count by their weights.
        """
        chosen = slice(None) if data.training is None else data.training
        offsets = objective.offsets(data.y[chosen])
        weights = np.ones(len(offsets)) if data.weights is None else data.weights[chosen].astype(np.float64)
        if self.exact:
            every = np.arange(len(offsets))
            order = (lambda: draw.order) if draw is not None and self.shuffle else (lambda: every)
            return StepLosses(Rows(weights, offsets, size), order, objective.value, self._penalty)
        constant, mean = (weights * offsets).sum() / weights.sum(), weights.mean() * size
        return lambda run, loss: objective.value * loss + constant + self._penalty(run) / mean

    def _penalty(self, run: Training) -> float:
        """Return ``alpha / 2 ||W||^2``, of the weights that train."""
        return 0.5 * self.alpha * run.squared_norm() if self.alpha else 0.0

    def _tell(self, incremental: bool, epochs: int) -> None:
        """Set the attributes that end with an underscore, and warn where training came to its last epoch."""
        curves = self._curves
        self.loss_curve_ = list(curves.losses or [])
        self.n_iter_, self.t_ = curves.epochs, curves.samples
        self.loss_ = self.loss_curve_[-1] if self.loss_curve_ else math.nan
        self.validation_scores_ = None if curves.scores is None else list(curves.scores)
        self.validation_loss_curve_ = None if curves.validation_losses is None else list(curves.validation_losses)
        self.best_loss_ = None if self.early_stopping else curves.best_loss
        self.best_validation_score_ = None if curves.scores is None else curves.best_score
        ended = curves.epochs == epochs and not curves.stopped
        if ended and not incremental and self.epochs is None:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({epochs}) reached and the optimization hasn't converged "
                "yet.",
                ConvergenceWarning,
                stacklevel=5,
            )

    # --- answering ---

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_learner")

    def _outputs(self, X: Any, turn: Callable[[Any], Any]) -> Any:
        """Return what a function makes of the outputs (n, K) for a user's X."""
        if not hasattr(self, "_learner"):  # a look that takes no time
            check_is_fitted(self)
        if isinstance(X, HostData):
            return self._outputs_of(X, turn)
        return self._learner.answer(turn, self._rows(X))

    def _outputs_of(self, data: HostData, turn: Callable[[Any], Any]) -> Any:
        """Return what a function makes of the outputs for rows that training holds ready."""
        learner = self._learner
        outputs = learner.inference.outputs(learner.spec, learner.state.evaluated, data.x)
        check_outputs(learner.spec.loss, outputs, data.x, learner.backend, learner.dtype)
        return turn(outputs)

    def _rows(self, X: Any) -> Any:
        """Return checked inputs; scikit-learn's check takes longer than a small network for a few rows."""
        plain = type(X) is np.ndarray and X.dtype in (np.float32, np.float64) and X.ndim == 2 and 0 < X.size <= SOON
        if plain and X.shape[1] == self.n_features_in_ and not hasattr(self, "feature_names_in_"):
            if math.isfinite(np.add.reduce(X, axis=None)):
                return X
        return self._validated(X, reset=False)

    # --- what it holds ---

    @property
    def model_(self) -> MLP:
        """The network as an `MLP`, to be saved, summarised, moved; the estimator's own, not a copy.

        Where a `temperature_` was fitted it is a copy, whose last layer is divided by it: the file has the estimator's
        probabilities, and the estimator trains on from weights that are not divided.
        """
        check_is_fitted(self)
        if self.temperature_ == 1.0:
            return MLP.from_learner(self._learner)
        return folded(MLP.from_learner(copy.deepcopy(self._learner)), self.temperature_)

    @property
    def coefs_(self) -> list[NDArray[Any]]:
        """Copies of the weights of each layer, (fan_in, fan_out)."""
        return self._weights()[0::2]

    @property
    def intercepts_(self) -> list[NDArray[Any]]:
        """Copies of the biases of each layer, (fan_out,)."""
        return self._weights()[1::2]

    def _weights(self) -> list[NDArray[Any]]:
        if not hasattr(self, "_learner"):
            raise AttributeError(f"{type(self).__name__} has no weights before fit")
        return self._learner.weights()
