"""Fifty wrong values for each parameter of the estimators: refused by name when it comes to fitting, or documented."""

import inspect
import re
import warnings

import pytest
from test_wrong_arguments import VALUES, X, Y, value_of

import fastmlp

NUMBERS, FLAGS, COUNTS = {"2.5", "2**70", "True", "False"}, {"True", "False", "numpy bool"}, {"True", "2**70"}
TAKEN = {
    "hidden_layer_sizes": {"[]", "()", "empty array", "True"},
    "alpha": NUMBERS,
    "batch_size": COUNTS,
    "learning_rate_init": NUMBERS,
    "power_t": NUMBERS,
    "max_iter": {"True"},
    "shuffle": FLAGS,
    "random_state": {"None", "True", "False"},
    "tol": NUMBERS,
    "verbose": {*FLAGS, *COUNTS},
    "warm_start": FLAGS,
    "nesterovs_momentum": FLAGS,
    "early_stopping": FLAGS,
    "calibrate": FLAGS,
    "epsilon": NUMBERS,
    "n_iter_no_change": {*COUNTS, "inf"},
    "max_fun": COUNTS,
    "class_weight": {"None", "{}"},
    "label_smoothing": {"False"},
    "exact": FLAGS,
    "dtype": {"None"},
    "n_jobs": {"None", "-1", "True"},
    "initializer": {"None"},
    "dropout": {"False", "Fraction"},
    "preprocess": {"None"},
    "weight_decay": NUMBERS,
    "clip_norm": {*NUMBERS, "None"},
    "max_norm": {*NUMBERS, "None"},
    "ema": {"None"},
    "schedule": {"None"},
    "epochs": {"None", "True"},
    "time_limit": {*NUMBERS, "None"},
    "scoring": {"None"},
    "callbacks": {"()", "[]", "empty array"},
}
LEFT_OUT = {("max_iter", "2**70"), ("epochs", "2**70"), ("scoring", "type"), ("scoring", "function")}
"""What takes for ever, or is a function that fails by itself."""
BESIDE = {
    "validation_fraction": {"early_stopping": True},
    "scoring": {"early_stopping": True},
    **{name: {"solver": "sgd"} for name in ("momentum", "nesterovs_momentum", "learning_rate", "power_t")},
    "n_jobs": {"backend": "numba"},
    "quantiles": {"loss": "quantile"},
}
OTHER_WORDS = {
    "beta_1": "beta_1|beta1",
    "beta_2": "beta_2|beta2",
    "validation_fraction": "validation_fraction|test_size",
    "n_jobs": "n_jobs|threads",
    "time_limit": "time_limit|seconds",
}
"""Where what is asked lower down says no: 0 and False, a part of no rows, 2**70 threads, True seconds."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "name"),
    [(k, n) for k in ("MLPClassifier", "MLPRegressor") for n in inspect.signature(getattr(fastmlp, k)).parameters],
)
def test_a_wrong_value_is_refused_by_name(kind, name, capsys):
    x, y = [[*row] for row in X] * 4, [*Y] * 4
    faults = []
    for label in VALUES:
        if (name, label) in LEFT_OUT:
            continue
        given = {"backend": "numpy", "max_iter": 2, **BESIDE.get(name, {}), name: value_of(label)}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                getattr(fastmlp, kind)(**given).fit(x, y)
        except (TypeError, ValueError) as e:
            if "Solver produced non-finite" not in str(e) and not re.search(OTHER_WORDS.get(name, name), str(e)):
                faults.append(f"{label}: not named: {e!r}")
        except Exception as e:
            faults.append(f"{label}: {e!r}")
        else:
            if label not in TAKEN.get(name, ()):
                faults.append(f"{label}: taken")
    assert faults == []
