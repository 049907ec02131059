"""Names that users of scikit-learn, Keras and PyTorch type: which of them are ours, and what to say of the others.

A name of theirs is taken where it means exactly what ours does, and becomes ours: records and files know no other.
Where it means another thing, or one of several, the answer is an error that tells the name to use.  The same goes for
arguments by their names (`Adam(lr=...)`), none of which is taken under two names.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Collection
from typing import Any, TypeVar

T = TypeVar("T")

ALIASES: dict[str, dict[str, str]] = {
    "activation": {"linear": "identity", "logistic": "sigmoid", "swish": "silu"},
    "loss": {
        "mse": "mean_squared_error",
        "mse_loss": "mean_squared_error",
        "mae": "mean_absolute_error",
        "l1_loss": "mean_absolute_error",
        "absolute_error": "mean_absolute_error",
        "msle": "mean_squared_logarithmic_error",
        "huber_loss": "huber",
        "smooth_l1_loss": "huber",  # of beta = delta = 1
        "pinball": "quantile",
        "pinball_loss": "quantile",
        "mean_pinball_loss": "quantile",
        "quantile_loss": "quantile",
        "poisson_nll_loss": "poisson",  # PyTorch's takes the logarithm of the rate too
        "cross_entropy": "softmax_cross_entropy",
        "cross_entropy_loss": "softmax_cross_entropy",
        "categorical_crossentropy": "softmax_cross_entropy",
        "sparse_categorical_crossentropy": "softmax_cross_entropy",
        "bce": "sigmoid_cross_entropy",
        "bce_loss": "sigmoid_cross_entropy",
        "bce_with_logits": "sigmoid_cross_entropy",
        "bce_with_logits_loss": "sigmoid_cross_entropy",
        "binary_crossentropy": "sigmoid_cross_entropy",
        "binary_cross_entropy_with_logits": "sigmoid_cross_entropy",
    },
    "optimizer": {},
    "initializer": {
        "xavier_uniform": "glorot_uniform",
        "xavier_normal": "glorot_normal",
        "kaiming_uniform": "he_uniform",
        "kaiming_normal": "he_normal",
    },
}
"""For each kind the names that mean the same as one of ours, whatever their case and underscores."""

_LOG_LOSS = (
    "for one class a row use 'softmax_cross_entropy' with one output a class, for two classes with one output or "
    "several labels a row 'sigmoid_cross_entropy'"
)
_CONSTANT = "use Normal(std=...), whose default deviation is another"
ANSWERS: dict[str, dict[str, str]] = {
    "activation": {
        "softmax": "it is part of the loss 'softmax_cross_entropy'; leave the activation of the outputs out",
        "log_softmax": "it is part of the loss 'softmax_cross_entropy'; leave the activation of the outputs out",
        "exponential": "it is part of the loss 'poisson'; leave the activation of the outputs out",
        "gelu_tanh": "'gelu' is the exact one",
        "relu6": "register_activation takes one of your own",
        "prelu": "'leaky_relu' has the slope 0.01 for all",
        "hard_sigmoid": "register_activation takes one of your own",
        "hard_tanh": "register_activation takes one of your own",
        "softsign": "register_activation takes one of your own",
    },
    "loss": {
        "log_loss": _LOG_LOSS,
        "logistic": _LOG_LOSS,
        "nll_loss": "use 'softmax_cross_entropy', which takes the outputs before the log-softmax",
        "squared_error": "use 'mean_squared_error', which is twice scikit-learn's",
        "half_squared_error": "use 'mean_squared_error', which is twice that",
        "hinge": "use 'categorical_hinge' with one output a class",
        "squared_hinge": "use 'categorical_hinge' with one output a class, which is not squared",
        "multi_margin_loss": "use 'categorical_hinge', which takes the strongest wrong class alone",
        "kl_divergence": "use 'softmax_cross_entropy' with rows of probabilities; it differs by their entropy",
        "kl_div_loss": "use 'softmax_cross_entropy' with rows of probabilities; it differs by their entropy",
        "mean_absolute_percentage_error": "register_loss takes one of your own",
        "mape": "register_loss takes one of your own",
    },
    "optimizer": {
        "nesterov": "use SGD(momentum=0.9, nesterov=True)",
        "momentum": "use SGD(momentum=0.9)",
        "nadam": "use 'adam', or SGD(momentum=0.9, nesterov=True)",
        "lbfgs": "it takes all rows a step, and no batches",
    },
    "initializer": {
        "glorot": "use 'glorot_uniform' or 'glorot_normal'",
        "xavier": "use 'glorot_uniform' or 'glorot_normal'",
        "he": "use 'he_normal' or 'he_uniform'",
        "kaiming": "use 'he_normal' or 'he_uniform'",
        "lecun": "use 'lecun_normal' or 'lecun_uniform'",
        "random_normal": _CONSTANT,
        "truncated_normal": _CONSTANT,
        "normal_": _CONSTANT,
        "random_uniform": "use one whose bound follows from the layer, such as 'glorot_uniform'",
    },
    "backend": {
        "cuda": "use 'cupy'",
        "gpu": "use 'cupy'",
        "cpu": "use 'numba' or 'numpy'",
    },
    "figure": {
        "acc": "use 'accuracy'",
        "mse": "use 'mean_squared_error'",
        "mae": "use 'mean_absolute_error'",
        "rmse": "use 'root_mean_squared_error'",
        "mape": "use 'mean_absolute_percentage_error'",
        "auc": "use 'roc_auc'",
        "categorical_accuracy": "use 'accuracy'",
        "sparse_categorical_accuracy": "use 'accuracy'",
        "binary_accuracy": "use 'accuracy'",
    },
}
"""For each kind what to do about names that mean nothing here, or not the same."""


def _said(names: str, answer: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), answer)


_RATE = "give fit the rate: fit(..., optimizer=Adam(learning_rate=1e-3))"
_OPTIMIZER = "give fit an optimizer with its parameters, such as fit(..., optimizer=SGD(0.01, momentum=0.9))"
_STOP = "stop early with fit(..., callbacks=[EarlyStopping(patience=10)])"
_UNITS = "use units, with the numbers of inputs and outputs too, such as MLP((4, 100, 3))"
_OF_FIT = "it is an argument of fit"
_OF_NETWORK = "it is an argument of MLP"
_WRITTEN = "files are written when they change, and a model's best weights by EarlyStopping(restore_best=True)"
KEYWORDS: dict[str, dict[str, str]] = {
    "optimizer": {
        **_said("lr learning_rate_init eta0 step_size", "use learning_rate"),
        "betas": "use beta1 and beta2",
        "beta_1": "use beta1",
        "b1": "use beta1",
        "beta_2": "use beta2",
        "b2": "use beta2",
        "eps": "use epsilon",
        "alpha": "use rho for the decay of RMSprop's squares, and MLP(l2=...) for a penalty",
        "momentum": "use beta1, or the optimizers SGD and RMSprop",
        "nesterovs_momentum": "use nesterov, of SGD",
        "nesterov": "it is an argument of SGD",
        "rho": "use beta2",
        **_said("decay lr_decay lr_schedule scheduler", "use a schedule, such as learning_rate=InverseScaling(...)"),
        "power_t": "use learning_rate=InverseScaling(...)",
        **_said("clipnorm global_clipnorm max_grad_norm", "use clip_norm, of the norm of all gradients together"),
        "clipvalue": "use clip_norm, of the norm of all gradients together",
        **_said("use_ema ema_momentum ema_decay", "use ema, such as ema=0.999"),
        "l2": _OF_NETWORK,
        "params": "leave it out: fit gives an optimizer the parameters",
    },
    "loss": {
        "from_logits": "leave it out: the outputs are logits, and softmax or sigmoid is part of the loss",
        "beta": "use delta, of Huber",
        **_said("quantile tau q alpha levels", "use quantiles, of Quantile"),
        **_said("weight pos_weight class_weight", "use fit(..., class_weight=...)"),
        **_said("reduction size_average reduce", "leave it out: a loss is the mean over the rows"),
    },
    "initializer": {
        **_said("stddev scale sigma", "use std, of Normal"),
        "seed": _OF_NETWORK,
        "gain": "leave it out: it follows from the kind",
    },
    "schedule": {
        **_said("lr initial_learning_rate learning_rate_init max_lr base_lr", "use learning_rate"),
        **_said("gamma decay_rate", "use factor, or final_fraction of Exponential"),
        **_said("step_size", "use every"),
        **_said("decay_steps T_max total_steps", "use steps; without it the run's own"),
    },
    "network": {
        **_said("hidden_layer_sizes hidden_units hidden layers sizes layer_sizes n_hidden", _UNITS),
        **_said("input_shape input_dim in_features out_features n_features n_classes", _UNITS),
        **_said("random_state random_seed", "use seed"),
        **_said("activations hidden_activation", "use activation"),
        "out_activation": "use activation with one name for each layer",
        "alpha": "use l2: for cross-entropy, scikit-learn's alpha divided by the rows of a batch",
        **_said("kernel_regularizer weight_penalty", "use l2, which is twice Keras's"),
        "weight_decay": "use fit(..., optimizer=AdamW(weight_decay=...)), or l2 for a penalty",
        **_said("learning_rate learning_rate_init lr eta0", _RATE),
        **_said("momentum nesterovs_momentum beta_1 beta_2 epsilon betas eps power_t solver optimizer", _OPTIMIZER),
        **_said("early_stopping n_iter_no_change patience tol min_delta", _STOP),
        **_said("max_iter n_epochs num_epochs nb_epoch", "use fit(..., epochs=...)"),
        **_said("validation_fraction", "use fit(..., validation_split=...)"),
        **_said("epochs batch_size shuffle verbose metrics callbacks class_weight validation_split", _OF_FIT),
        "warm_start": "leave it out: fit goes on from where the model stands",
        **_said("dropout_rate p", "use dropout"),
        **_said("kernel_initializer init weight_init", "use initializer"),
        "kernel_constraint": "use max_norm",
        **_said("device", "use backend: 'cupy' for a GPU"),
        **_said("n_jobs n_threads num_threads threads", "use backend=get_backend('numba', threads=...)"),
        "criterion": "use loss",
        **_said("quantile quantiles", "give the loss with them: loss=Quantile(0.9)"),
        "label_smoothing": "give the loss with it: loss=SoftmaxCrossEntropy(label_smoothing=0.1)",
        "delta": "give the loss with it: loss=Huber(delta=0.5)",
    },
    "fit": {
        **_said("max_iter n_epochs num_epochs nb_epoch n_iter", "use epochs"),
        "X": "use x",
        "Y": "use y",
        **_said("learning_rate learning_rate_init lr", "use optimizer=Adam(learning_rate=1e-3)"),
        **_said("solver momentum beta_1 beta_2 epsilon", "use optimizer=SGD(0.01, momentum=0.9) or another"),
        **_said("validation_fraction", "use validation_split"),
        **_said("X_val y_val sample_weight_val eval_set", "use validation_data=(x, y) or (x, y, sample_weight)"),
        **_said("early_stopping n_iter_no_change patience tol", "use callbacks=[EarlyStopping(patience=10)]"),
        **_said("random_state seed loss l2 dropout", "it is an argument of MLP, where seed is the random state"),
        **_said("workers n_jobs", "use MLP(..., backend=get_backend('numba', threads=...))"),
        "initial_epoch": "leave it out: fit goes on from where the model stands",
    },
    "ask": {
        "X": "use x",
        "verbose": "leave it out: nothing is printed",
    },
    "callback": {
        "restore_best_weights": "use restore_best",
        "n_iter_no_change": "use patience",
        "tol": "use min_delta",
        **_said("filepath filename file", "use path"),
        **_said("save_freq period", "use every_epochs, every_steps or every_seconds"),
        **_said("save_best_only save_weights_only", _WRITTEN),
        "append": "leave it out: a run that is resumed goes on in its file",
    },
}
"""For each kind of callable what to do about arguments that it has not, by the names that other libraries have."""


def _folded(name: str) -> str:
    """Return a name without what libraries spell each their own way: case, underscores and hyphens."""
    return name.replace("_", "").replace("-", "").replace(" ", "").lower()


@functools.cache
def _by_spelling(kind: str, answers: bool) -> dict[str, str]:
    return {_folded(name): value for name, value in (ANSWERS if answers else ALIASES).get(kind, {}).items()}


def own_name(kind: str, name: str, options: Collection[str]) -> str | None:
    """Return which of the options a name means: as it stands, in another spelling, or in another library."""
    if name in options:
        return name
    if not name.endswith("_"):  # what PyTorch has under such a name, as normal_, has other defaults
        for option in options:
            if _folded(option) == _folded(name):
                return option
    alias = _by_spelling(kind, False).get(_folded(name))
    return alias if alias in options else None


def answer(kind: str, name: str) -> str:
    """Return what to do about a name of another library; empty where nothing is known of it."""
    return _by_spelling(kind, True).get(_folded(name), "")


def hint(kind: str, name: str, options: Collection[str]) -> str:
    """Return what to say of a name that is none of the options: the one to use, or the nearest; empty for neither."""
    if known := answer(kind, name):
        return f"{known}. "
    aliases = ALIASES.get(kind, {})
    near = difflib.get_close_matches(name.lower(), [*options, *aliases], n=1)
    if not near:
        return ""
    own = aliases.get(near[0])
    return f"did you mean {near[0]!r}{f', here {own!r}' if own else ''}? "


def of_outputs(loss: Any, outputs: int) -> Any:
    """Return a loss with a name that the number of outputs settles by its own: ``log_loss`` of one is of a sigmoid."""
    if isinstance(loss, str) and outputs == 1 and _folded(loss) == "logloss":
        return "sigmoid_cross_entropy"
    return loss


def explains_keywords(**kinds: str) -> Callable[[type[T]], type[T]]:
    """Let methods of a class answer an argument that they have not by the name to use.

    Parameters
    ----------
    **kinds
        For each method its kind in `KEYWORDS`.
    """

    def decorate(cls: type[T]) -> type[T]:
        for method, kind in kinds.items():
            setattr(cls, method, _explaining(getattr(cls, method), kind))
        return cls

    return decorate


def _explaining(method: Callable[..., Any], kind: str) -> Callable[..., Any]:
    code = method.__code__
    accepted = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    known = frozenset(accepted)

    @functools.wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        if not known.issuperset(options):
            name = next(name for name in options if name not in known)
            called = type(args[0]).__name__ if method.__name__ == "__init__" else method.__qualname__
            raise TypeError(_no_such_argument(kind, called, name, accepted))
        return method(*args, **options)

    return call


def _no_such_argument(kind: str, called: str, name: str, accepted: tuple[str, ...]) -> str:
    said = f"; {KEYWORDS[kind][name]}." if name in KEYWORDS[kind] else "."
    if said == "." and (near := difflib.get_close_matches(name, accepted, n=1)):
        said = f"; did you mean {near[0]!r}?"
    there = f"There are: {', '.join(accepted)}" if accepted else "It takes none"
    return f"{called}() got an unexpected keyword argument {name!r}{said} {there}"
