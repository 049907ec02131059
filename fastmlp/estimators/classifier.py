"""`MLPClassifier`, scikit-learn's, on fastmlp's backends."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import column_or_1d

from fastmlp.estimators.base import BaseMLP
from fastmlp.estimators.calibration import temperature_of
from fastmlp.estimators.objective import Objective
from fastmlp.estimators.parameters import CONSTRAINTS
from fastmlp.formulas.losses import Loss

if TYPE_CHECKING:
    from fastmlp.backends.data import HostData


class MLPClassifier(ClassifierMixin, BaseMLP):  # type: ignore[misc]  # scikit-learn has no type hints
    """A multi-layer perceptron that classifies, with scikit-learn's interface.

    Two classes have one output and a logistic loss, more classes a softmax, several labels a row one output each.

    Parameters
    ----------
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
    loss : str or Loss, default='log_loss'
        Or a loss of fastmlp's over classes, such as ``"categorical_hinge"``.
    class_weight : dict, list of dict or 'balanced', optional
        Factors of the weights of the rows trained on, by class; of 'balanced', which `partial_fit` refuses, by how
        frequent the classes are among the rows of `fit`.  For several labels a row a dict for each, in a list.
    label_smoothing : float, default=0.0
        In [0, 1), for three classes or more.
    calibrate : bool, default=False
        Fit `temperature_`, after training, to X_val and y_val, or to the rows that early stopping holds out; without it
        too a part of the rows (validation_fraction) is held out for it.  Of several labels a row one for all of them.
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
    classes_ : array of shape (n_classes,)
    coefs_, intercepts_ : lists of arrays
        Copies.
    n_features_in_, feature_names_in_, n_iter_, n_layers_, n_outputs_, out_activation_, t_
    loss_, best_loss_, loss_curve_, validation_scores_, best_validation_score_
        As scikit-learn's; 'lbfgs' has loss_ alone.
    validation_loss_curve_ : list of float or None
        fastmlp's loss of the rows held out, or of X_val, after each epoch.
    history_ : History or None
        fastmlp's figures of each epoch; None where another library has trained it.
    temperature_ : float
        What the network's outputs are divided by before they become probabilities; 1 without `calibrate`.
    model_ : MLP
        The network itself; with a temperature a copy, whose last layer is divided by it.
    preprocessing_ : Preprocessing or None
        What `preprocess` has learned; its `transform` returns what the network is given.

    Examples
    --------
    >>> from fastmlp import MLPClassifier
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.preprocessing import scale
    >>> x, y = load_iris(return_X_y=True)
    >>> classifier = MLPClassifier(max_iter=100, tol=0, learning_rate_init=0.01, epochs=100, random_state=0)
    >>> bool(classifier.fit(scale(x), y).score(scale(x), y) > 0.95)
    True
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **CONSTRAINTS,
        "loss": [str, Loss],
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "calibrate": ["boolean"],
    }

    def __init__(
        self,
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
        loss: Any = "log_loss",
        class_weight: Any = None,
        label_smoothing: Any = 0.0,
        calibrate: Any = False,
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
        self.loss = loss
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.calibrate = calibrate
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
        X, y = self._validated(X, y, reset=reset)
        check_classification_targets(y)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or (not self.warm_start and not incremental):
            # what a binarizer finds in labels of their own it finds by looking at all of them twice more
            self._label_binarizer: Any = LabelBinarizer().fit(y) if y.ndim == 2 else None
            self.classes_ = np.unique(y) if self._label_binarizer is None else self._label_binarizer.classes_
            return X, y
        if (y.ndim == 2) != self._several:
            now, before = ("several labels", "a single one") if y.ndim == 2 else ("a single label", "several")
            raise ValueError(f"y has {now} in a row, and this estimator was fitted to {before}; use another one")
        classes = unique_labels(y)
        if self.warm_start and not incremental and set(classes) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {classes}"
            )
        if len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
            )
        return X, y

    @property
    def _several(self) -> bool:
        """Whether a row has several labels."""
        return self._label_binarizer is not None and bool(self._label_binarizer.y_type_.startswith("multilabel"))

    def _targets(self, y: Any) -> NDArray[Any]:
        if self._several:
            found = self._label_binarizer.transform(y)
            found = found.toarray() if hasattr(found, "toarray") else found
            self.n_outputs_ = found.shape[1]
            return np.asarray(found, np.float32)
        labels = np.searchsorted(self.classes_, y)
        self.n_outputs_ = 1 if len(self.classes_) <= 2 and self._is_log_loss else max(len(self.classes_), 2)
        return np.asarray(labels, np.float32 if self.n_outputs_ == 1 else np.intp)

    @property
    def _is_log_loss(self) -> bool:
        return isinstance(self.loss, str) and self.loss == "log_loss"

    def _objective(self) -> Objective:
        if self._several:
            if not self._is_log_loss:
                raise ValueError(f"loss must be 'log_loss' where rows have several labels, got {self.loss!r}")
            return Objective.of_labels(self.n_outputs_)
        found = Objective.of_classes(self.loss, self.n_outputs_, self.label_smoothing)
        if self.calibrate and found.out_activation not in ("softmax", "logistic"):
            raise ValueError(
                f"calibrate=True divides the logits of probabilities, and loss={found.loss.name!r} has none; use "
                "loss='log_loss', or sklearn.calibration.CalibratedClassifierCV"
            )
        return found

    def _weighted(self, y: Any, sample_weight: NDArray[Any] | None) -> NDArray[Any] | None:
        if self.class_weight is None:
            return sample_weight
        if isinstance(self.class_weight, list) and not self._several:
            raise ValueError(
                f"class_weight must be one dict such as {{0: 1.0, 1: 5.0}}, or 'balanced', where a row has one label; "
                f"got a list of {len(self.class_weight)}, which is for y of several columns"
            )
        if self._several or not isinstance(self.class_weight, dict):
            factors: NDArray[Any] = compute_sample_weight(self.class_weight, y)
        else:  # these rows need not have all classes, nor the dict
            weights = compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_)
            factors = weights[np.searchsorted(self.classes_, y)]
        return factors if sample_weight is None else factors * sample_weight

    def _strata(self, y: Any) -> Any:
        # scikit-learn spreads two classes evenly, and draws more of them freely
        return None if self._several or (self.exact and self.n_outputs_ > 1) else y

    def _class_names(self) -> tuple[str, ...] | None:
        names = tuple(map(str, self.classes_))
        return names if len(set(names)) == len(names) == max(self.n_outputs_, 2) else None

    def _score(self, X: Any, y: Any, sample_weight: Any) -> float:
        return float(accuracy_score(y, self._predicted(X), sample_weight=sample_weight))

    def _temperature(self, held_out: HostData) -> float:
        learner = self._learner
        outputs = learner.inference.outputs(learner.spec, learner.state.evaluated, held_out.x)
        logits = outputs if isinstance(outputs, np.ndarray) else learner.to_numpy(outputs)
        return temperature_of(logits, held_out.y, held_out.weights)

    @available_if(lambda self: self._check_solver())  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> MLPClassifier:
        """Go through the data once, on from where the estimator stands; ValueError with class_weight='balanced'.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n, features)
        y : array-like of shape (n,) or (n, labels)
        sample_weight : array-like of shape (n,), optional
        classes : array-like, optional
            All classes of all calls; needed in the first one.

        Returns
        -------
        self
        """
        self._checked()
        if isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight='balanced' is not supported by partial_fit: the rows of one call do not tell how many "
                "there are of each class in all; give a dict of factors by class, which "
                "sklearn.utils.class_weight.compute_class_weight('balanced', classes=classes, y=y) tells of many rows"
            )
        if not hasattr(self, "classes_"):
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            y = self._on_host(y, "y", True)
            several = type_of_target(y).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(y if several else classes)
            self.classes_ = unique_labels(classes)
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {self.classes_!r}"
            )
        self._fit(X, y, sample_weight, None, incremental=True)
        return self

    # --- answering ---

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of the predictions; parameters as for `fit`."""
        y, weights = self._on_host(y, "y"), self._on_host(sample_weight, "sample_weight")
        return self._score(X, y, weights)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of each row, (n,), or 0 and 1 for each label, (n, labels).

        For X on a GPU they are there too, if the classes are numbers.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n, features)
        """
        found: NDArray[Any] = self._outputs(X, self._classes)
        return found

    def _classes(self, outputs: NDArray[Any]) -> NDArray[Any]:
        on_gpu, backend = not isinstance(outputs, np.ndarray), self._learner.backend
        if self._several:
            labels = (outputs > 0).astype(np.float64)
            found = self._label_binarizer.inverse_transform(backend.to_numpy(labels) if on_gpu else labels)
        else:
            labels = (outputs[:, 0] > 0).astype(np.intp) if self.n_outputs_ == 1 else outputs.argmax(axis=1)
            labels = backend.to_numpy(labels) if on_gpu else labels
            found = self.classes_[np.minimum(labels, len(self.classes_) - 1)]  # there may be a single class
        answer: NDArray[Any] = backend.asarray(found) if on_gpu and self.classes_.dtype.kind in "biuf" else found
        return answer

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return probabilities, (n, n_classes) in the order of `classes_`; ValueError where the loss has none.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n, features)
        """
        found: NDArray[Any] = self._outputs(X, self._probabilities)
        return found

    def _probabilities(self, outputs: NDArray[Any]) -> NDArray[Any]:
        found = self._learner.spec.loss.probabilities(self._logits(outputs))
        if self.n_outputs_ > 1:
            return found
        if isinstance(found, np.ndarray):
            return np.column_stack([1 - found[:, 0], found[:, 0]])
        both: NDArray[Any] = self._learner.backend.empty((len(found), 2), found.dtype)
        both[:, 0], both[:, 1] = 1 - found[:, 0], found[:, 0]
        return both

    def _logits(self, outputs: NDArray[Any]) -> NDArray[Any]:
        return outputs if self.temperature_ == 1.0 else outputs / self.temperature_

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Return the logarithms of the probabilities, parameters as for `predict_proba`."""
        with np.errstate(divide="ignore"):
            found: NDArray[Any] = self._outputs(X, lambda outputs: np.log(self._probabilities(outputs)))
        return found

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return the logits: (n,) for two classes, else (n, n_classes); parameters as for `predict_proba`.

        Their sigmoid, or softmax, are the probabilities: they are divided by `temperature_`.
        """
        logits: NDArray[Any] = self._outputs(X, self._logits)
        return logits[:, 0] if self.n_outputs_ == 1 else logits

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
