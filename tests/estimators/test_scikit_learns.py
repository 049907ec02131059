"""scikit-learn's own checks: those of any estimator, and those of its own perceptrons with fastmlp's in their place."""

import importlib
import inspect

import numpy as np
import pytest
from estimator_checks import hold_the_checks

import fastmlp

BACKENDS = ["numpy", "numba"]
ESTIMATORS = ["MLPClassifier", "MLPRegressor"]


# which of them stands on which backend is the same to the checks
@pytest.mark.parametrize(
    ("name", "where"),
    [
        *zip(ESTIMATORS, BACKENDS, strict=True),
        *(pytest.param(*other, marks=pytest.mark.thorough) for other in zip(ESTIMATORS, BACKENDS[::-1], strict=True)),
    ],
)
def test_any_estimator(name, where):
    """In float64: they ask for the same predictions to 1e-7 where rows are repeated, and where they have weights."""
    hold_the_checks(getattr(fastmlp, name)(backend=where, dtype="float64", max_iter=20))


@pytest.mark.whole_ladder
@pytest.mark.usefixtures("cupy_or_its_double")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_any_estimator_on_cupy(name):
    """Few units and steps, since an emulator takes its time; all that the checks ask for is learned with them."""
    options = {"hidden_layer_sizes": 10, "max_iter": 8, "learning_rate_init": 0.1}
    backend = fastmlp.get_backend("cupy", way="eager")
    hold_the_checks(getattr(fastmlp, name)(backend=backend, dtype="float64", **options))


PRIVATE = {
    "test_fit": "sets and reads private members",
    "test_gradient": "reads private members",
    "test_learning_rate_warmstart": "reads _optimizer",
    "test_adaptive_learning_rate": "reads _optimizer",
    "test_n_iter_no_change": "reads _no_improvement_count",
    "test_n_iter_no_change_inf": "reads _no_improvement_count",
}
OTHERWISE = {
    "test_early_stopping_stratified": "the class with too few rows is named as the user has it, not as True",
    "test_nonfinite_params": "inputs of 1e308 are refused before training, by row and column",
    "test_mlp_param_dtypes": "float32 is the default, whatever X is",
}


def own_tests():
    """Return scikit-learn's tests, each with one set of the arguments that it is parametrised with."""
    module = importlib.import_module("sklearn.neural_network.tests.test_mlp")
    found = []
    for name, function in vars(module).items():
        if name.startswith("test_") and name not in PRIVATE and name not in OTHERWISE:
            sets = [{}]
            for mark in getattr(function, "pytestmark", []):
                if mark.name == "parametrize":
                    names, values, *_ = mark.args
                    names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
                    rows = [value if len(names) > 1 else (value,) for value in values]
                    sets = [{**given, **dict(zip(names, row, strict=True))} for given in sets for row in rows]
            found += [pytest.param(function, given, id=f"{name}-{i}") for i, given in enumerate(sets)]
    return found


@pytest.mark.filterwarnings("ignore")  # as they expect of theirs
@pytest.mark.parametrize(("function", "given"), own_tests())
def test_their_own_tests(function, given, monkeypatch, capsys, tmp_path):
    module = inspect.getmodule(function)
    for name in ESTIMATORS:
        monkeypatch.setattr(module, name, getattr(fastmlp, name))
    ours = {
        k: getattr(fastmlp, v.__name__) if getattr(v, "__name__", "") in ESTIMATORS else v for k, v in given.items()
    }
    fixtures = {"global_random_seed": 0, "capsys": capsys, "tmp_path": tmp_path}
    wanted = inspect.signature(function).parameters
    function(**ours, **{name: value for name, value in fixtures.items() if name in wanted})


@pytest.mark.parametrize("name", sorted(PRIVATE))
def test_what_is_left_out_reaches_into_private_members(name):
    module = importlib.import_module("sklearn.neural_network.tests.test_mlp")
    if not hasattr(module, name):
        pytest.skip("this scikit-learn has no such test")
    private = ("._optimizer", "._no_improvement_count", "._random_state", "._unpack", "._loss_grad_lbfgs")
    assert any(member in inspect.getsource(getattr(module, name)) for member in private)


def test_the_default_is_float32():
    x, y = np.random.default_rng(0).normal(size=(30, 3)), np.arange(30) % 2
    assert fastmlp.MLPClassifier(epochs=1).fit(x, y).coefs_[0].dtype == np.float32
