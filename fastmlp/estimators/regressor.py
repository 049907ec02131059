"""`MLPRegressor`, scikit-learn's, on fastmlp's backends."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from sklearn.metrics import d2_pinball_score, r2_score
from sklearn.utils._param_validation import Interval
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import column_or_1d

from fastmlp.backends.foreign import refuse_sparse
from fastmlp.estimators.base import BaseMLP
from fastmlp.estimators.objective import Objective
from fastmlp.estimators.parameters import CONSTRAINTS
from fastmlp.formulas.losses import Loss, Quantile


class MLPRegressor(RegressorMixin, BaseMLP):  # type: ignore[misc]  # scikit-learn has no type hints
    """A multi-layer perceptron that predicts values, with scikit-learn's interface.

    Parameters
    ----------
    loss : str or Loss, default='squared_error'
        Half the squared error; 'poisson' for counts and rates, of which the outputs are the logarithms; 'quantile' for
        quantiles of y; or a loss of fastmlp's over values, such as ``"mean_absolute_error"`` or ``fastmlp.Huber(0.5)``.
    hidden_layer_sizes : array-like of int, default=(100,)
        Units of each hidden layer.
    activation : str or sequence of str, default='relu'
        ``identity``, ``logistic``, ``tanh``, ``relu``, or any of `fastmlp.activation_names`; one for all hidden
        layers, or one for each.
    solver : {'adam', 'sgd', 'lbfgs'} or Optimizer, default='adam'
        Or a record such as ``fastmlp.RMSprop(1e-3)``, which then holds the rate and all that follows from it.
    alpha : float, default=0.0001
        The loss of a batch grows by ``alpha / 2 ||W||^2`` over the weight of its rows; biases are left out.
    batch_size : int or 'auto', default='auto'
        Rows a step; auto: 200, or all where there are fewer.
    learning_rate : {'constant', 'invscaling', 'adaptive'}, default='constant'
        Of solver='sgd': as it is; ``learning_rate_init / (rows so far + 1) ** power_t``; or divided by 5 whenever
        n_iter_no_change epochs brought no improvement.
    learning_rate_init, power_t : float
    max_iter : int, default=200
        Epochs at most; of 'lbfgs', iterations.
    shuffle : bool, default=True
    random_state : int, RandomState or None
        The first weights are drawn from it as scikit-learn draws them; with exact=True the orders of the rows too.
    tol, n_iter_no_change : float, int
        Training ends when for more than n_iter_no_change epochs the loss (with early_stopping the validation score) has
        not improved by tol; of 'lbfgs', when the gradient is below tol.
    verbose : bool, default=False
        Print a line an epoch.
    warm_start : bool, default=False
        `fit` goes on from the weights that are there, as does `partial_fit`, by the parameters as they are then.
    momentum, nesterovs_momentum : float, bool
        Of solver='sgd'; momentum in [0, 1).
    early_stopping : bool, default=False
        Hold out a part of the rows, stop by the score on them, and keep the weights of the best epoch.
    validation_fraction : float, default=0.1
        That part.
    beta_1, beta_2, epsilon : float
        Of solver='adam'.
    max_fun : int, default=15000
        Calls of the loss by 'lbfgs'.
    quantiles : float or sequence of float, default=0.5
        Of loss='quantile', in (0, 1) and strictly rising: which of y to predict, all by one network, see
        `fastmlp.Quantile`.  They can cross: for some rows a higher quantile may be predicted lower.
    exact : bool, default=False
        Train step by step as scikit-learn does, to rounding: NumPy backend, float64, the same orders of rows.
    backend : str or Backend, default='auto'
        Where to run: ``"numba"``, ``"numpy"``, ``"cupy"``, see `fastmlp.get_backend`.  A long run of 'adam' or 'sgd' on
        "auto" tries a GPU whose self-test has passed, where n_jobs is not given; ``model_.backend_choice`` tells why.
    dtype : {'float32', 'float64'}, optional
        None: float32, and float64 for 'lbfgs' and exact=True.
    n_jobs : int, optional
        Threads of the Numba backend; None: as many as there are cores and limits allow.
    initializer : str or Initializer, optional
        None: scikit-learn's, Glorot's uniform one for weights and biases.
    dropout : float or sequence of float, default=0.0
        See `fastmlp.MLP`, as for max_norm.
    weight_decay, clip_norm, ema
        See `fastmlp.Optimizer`; of 'adam' and 'sgd'.
    max_norm : float, optional
    schedule : Schedule, optional
        Instead of learning_rate and learning_rate_init.
    epochs : int, optional
        Train so many epochs, with no warning at their end; without early_stopping, tol ends nothing.
    time_limit : float, optional
        Seconds after which training ends.
    scoring : str or callable, optional
        Of scikit-learn's scorers, for validation; None: the estimator's own score.
    callbacks : sequence of Callback
        As for `fastmlp.MLP.fit`; their ``run.model`` is the estimator.  `fastmlp.load` makes an `MLP` of a
        `Checkpoint`, whose `resume` goes on to the last epoch: of tol and early_stopping it knows nothing.
    preprocess : {'standard', 'robust', 'quantile'}, optional
        X may be a data frame or an array of objects, and has raw rows wherever it is asked for: numbers are scaled by
        scikit-learn's `StandardScaler`, `RobustScaler` or `QuantileTransformer` (to a normal distribution), where they
        are missing by the median, with a flag for each column in which that was so in training; text, booleans and
        categories become a 0 or 1 for each that was there in training, missing ones being one more.  All is learned of
        the rows that train, each alike whatever its weight, not of those held out nor of X_val, is kept in the file of
        `model_`, and kept by `partial_fit` and warm_start.  Sparse X is refused.

    Attributes
    ----------
    coefs_, intercepts_ : lists of arrays
        Copies.
    n_features_in_, feature_names_in_, n_iter_, n_layers_, n_outputs_, out_activation_, t_
    loss_, best_loss_, loss_curve_, validation_scores_, best_validation_score_
        As scikit-learn's; 'lbfgs' has loss_ alone.
    validation_loss_curve_, history_, model_, preprocessing_
        See `MLPClassifier`.

    Examples
    --------
    >>> from fastmlp import MLPRegressor
    >>> from sklearn.datasets import make_friedman1
    >>> x, y = make_friedman1(1000, random_state=0)
    >>> regressor = MLPRegressor(epochs=100, learning_rate_init=0.01, random_state=0)
    >>> bool(regressor.fit(x, y).score(x, y) > 0.9)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CONSTRAINTS,
        "loss": [str, Loss],
        "quantiles": [Interval(Real, 0, 1, closed="neither"), "array-like"],
    }

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: Any = "adam",
        alpha: Any = 0.0001,
        batch_size: Any = "auto",
        learning_rate: Any = "constant",
        learning_rate_init: Any = 0.001,
        power_t: Any = 0.5,
        max_iter: Any = 200,
        shuffle: Any = True,
        random_state: Any = None,
        tol: Any = 1e-4,
        verbose: Any = False,
        warm_start: Any = False,
        momentum: Any = 0.9,
        nesterovs_momentum: Any = True,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: Any = 1e-8,
        n_iter_no_change: Any = 10,
        max_fun: Any = 15000,
        quantiles: Any = 0.5,
        exact: Any = False,
        backend: Any = "auto",
        dtype: Any = None,
        n_jobs: Any = None,
        initializer: Any = None,
        dropout: Any = 0.0,
        weight_decay: Any = 0.0,
        clip_norm: Any = None,
        max_norm: Any = None,
        ema: Any = None,
        schedule: Any = None,
        epochs: Any = None,
        time_limit: Any = None,
        scoring: Any = None,
        callbacks: Any = (),
        preprocess: Any = None,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.quantiles = quantiles
        self.exact = exact
        self.backend = backend
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.initializer = initializer
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.max_norm = max_norm
        self.ema = ema
        self.schedule = schedule
        self.epochs = epochs
        self.time_limit = time_limit
        self.scoring = scoring
        self.callbacks = callbacks
        self.preprocess = preprocess

    # --- fitting ---

    def _take(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any]:
        refuse_sparse("y", y)
        X, y = self._validated(X, y, reset=reset, y_numeric=True)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _targets(self, y: Any) -> NDArray[Any]:
        self.n_outputs_ = 1 if y.ndim == 1 else y.shape[1]
        return np.asarray(y)

    def _objective(self) -> Objective:
        return Objective.of_values(self.loss, self.n_outputs_, self.quantiles)

    def _score(self, X: Any, y: Any, sample_weight: Any) -> float:
        found = self._predicted(X)
        return self._score_of(y, found, sample_weight) if np.isfinite(found).all() else float("nan")

    def _score_of(self, y: Any, found: NDArray[Any], sample_weight: Any) -> float:
        loss = self._learner.spec.loss
        if not isinstance(loss, Quantile):
            return float(r2_score(y, found, sample_weight=sample_weight))
        each = [found] if loss.outputs_per_target == 1 else np.moveaxis(found, -1, 0)
        pairs = zip(loss.parameters, each, strict=True)
        scores = [d2_pinball_score(y, values, sample_weight=sample_weight, alpha=q) for q, values in pairs]
        return float(np.mean(scores))

    @available_if(lambda self: self._check_solver())  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Go through the data once, on from where the estimator stands.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n, features)
        y : array-like of shape (n,) or (n, outputs)
        sample_weight : array-like of shape (n,), optional

        Returns
        -------
        self
        """
        self._checked()
        self._fit(X, y, sample_weight, None, incremental=True)
        return self

    # --- answering ---

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R2, or with the loss of quantiles D2, the mean of `sklearn.metrics.d2_pinball_score` over them.

        Of either 1 is the best; 0 is what a constant has: the mean of y, or its quantile.  Parameters as for `fit`.
        """
        y, weights = self._on_host(y, "y"), self._on_host(sample_weight, "sample_weight")
        return self._score_of(y, self._predicted(X), weights)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the values, (n,) or (n, outputs); of several quantiles (n, quantiles) or (n, outputs, quantiles).

        On the GPU where X is.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n, features)
        """
        found: NDArray[Any] = self._outputs(X, self._answer)
        return found

    def _answer(self, outputs: NDArray[Any]) -> NDArray[Any]:
        loss = self._learner.spec.loss
        found, each = loss.predict(outputs), loss.outputs_per_target
        return found.reshape(len(found), -1, each) if each > 1 < self.n_outputs_ else found
